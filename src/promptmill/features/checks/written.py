"""The checks for the parameters `max_words` and `match`."""

from __future__ import annotations

from promptmill.answers.check import Check
from promptmill.core.request import Request
from promptmill.features.checks.parameters import Wanted, whole_match


class MaxWords(Check):
    """A limit of words."""

    wanted_by = ("max_words",)

    def complaint(self, answer: str, request: Request) -> str | None:
        """Return the number of words if there are too many."""
        wanted, words = request.sampling, len(answer.split())
        assert isinstance(wanted, Wanted)
        most = wanted.max_words or words
        return None if words <= most else f"it has {words} words, and at most {most} are allowed"


class Match(Check):
    """A pattern for the whole answer."""

    wanted_by = ("match",)

    def complaint(self, answer: str, request: Request) -> str | None:
        """Return the pattern if the answer does not match it."""
        wanted = request.sampling
        assert isinstance(wanted, Wanted)
        pattern = wanted.match or ""
        return None if whole_match(pattern).is_valid(answer.strip()) else f"it does not match the pattern {pattern}"
