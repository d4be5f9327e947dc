"""The checks for the parameters `max_words`, `match` and `language`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from promptmill.answers.check import Check
from promptmill.answers.schema import AnswerSchema
from promptmill.core.request import Request
from promptmill.core.values import read_json
from promptmill.features.checks.parameters import CheckWishes, likelihoods
from promptmill.features.checks.words import word_count

_SURE = 10  # the least logarithm of a ratio of likelihoods (22,000); for German sentences of three words, it reaches 13


class MaxWords(Check):
    """A limit of words."""

    wanted_by = ("max_words",)

    def complaint(self, answer: str, request: Request) -> str | None:
        """Return the number of words if there are too many. In a JSON answer, only the words of its texts count."""
        wanted = request.sampling
        assert isinstance(wanted, CheckWishes)
        if too_long := AnswerSchema.why_not_read(answer):
            return too_long
        words = sum(map(word_count, _texts(answer)))
        most = wanted.max_words or words
        return None if words <= most else f"it has {words} words, and at most {most} are allowed"


class Match(Check):
    """A pattern for the whole answer."""

    trims = True
    wanted_by = ("match",)

    def matched(self, answer: str, request: Request) -> tuple[str, str]:
        """Return the pattern, and the text that must match it: the answer."""
        wanted = request.sampling
        assert isinstance(wanted, CheckWishes)
        return wanted.match or "", answer

    def complaint(self, answer: str, request: Request) -> str:
        """Return the problem: the pattern that the answer does not match."""
        return f"it does not match the pattern {self.matched(answer, request)[0]}"


class Language(Check):
    """The language of the answer, or of the texts in a JSON answer."""

    blocks = True
    wanted_by = ("language",)

    def complaint(self, answer: str, request: Request) -> str | None:
        """Return a complaint if another language is far likelier; an answer of few words may fit several languages."""
        wanted = request.sampling
        assert isinstance(wanted, CheckWishes)
        if too_long := AnswerSchema.why_not_read(answer):
            return too_long
        found = likelihoods("\n".join(_texts(answer)))
        likeliest = max(found, key=found.__getitem__)
        if wanted.language is None or found[likeliest] - found[wanted.language] <= _SURE:
            return None
        return f"it is not in the language `{wanted.language}`, but in `{likeliest}`"


def _texts(answer: str) -> Iterator[str]:
    """Yield the texts in a JSON answer; for any other answer, yield the answer itself."""
    try:
        value = read_json(answer)
    except json.JSONDecodeError:
        value = answer
    nested: list[Any] = [value]
    while nested:
        match nested.pop():
            case str() as text:
                yield text
            case list() as items:
                nested += items
            case dict() as fields:
                nested += fields.values()
