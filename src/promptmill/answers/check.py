"""Checks: conditions for answers. An answer that fails a check is requested again, with the complaint."""

from __future__ import annotations

from collections.abc import Collection

from promptmill.core.request import Request, Sampling


class Check:
    """A check of answers: `complaint` returns the problem of an answer. `steps.checked` asks again, and puts failures
    into words."""

    blocks = False
    """Whether `complaint` is slow or blocks, so that a thread must call it. (A thread checks long answers anyway.)"""

    trims = False
    """Whether the answer is checked and delivered without the blanks around it."""

    wanted_by: Collection[str] = ()
    """Names of parameters: the answer to a request that sets one of them is checked. Empty: every answer is checked."""

    def is_wanted(self, sampling: Sampling) -> bool:
        """Return whether answers to requests with these parameters are checked."""
        return not self.wanted_by or sampling.sets(self.wanted_by)

    def matched(self, answer: str, request: Request) -> tuple[str, str] | None:
        """Return a pattern, and the text that must match it as a whole; if it does not, `complaint` is called. A long
        text is matched in another process. Return None if only `complaint` decides."""
        del answer, request
        return None

    def complaint(self, answer: str, request: Request) -> str | None:
        """Return the problem of an answer, to complete the sentence `The answer …`; None if there is none."""
        raise NotImplementedError
