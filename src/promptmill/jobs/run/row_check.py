"""A check of answers by a function of the calling program, which also gets the answer's row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from promptmill.answers.check import Check
from promptmill.core.request import Request
from promptmill.jobs.store.database import JobDatabase, Row
from promptmill.jobs.store.records import SLOT

Complain: TypeAlias = Callable[[str, Row], str | None]
"""Takes an answer and the answer's row. Returns what is wrong with the answer; None if nothing is."""


class RowCheck(Check):
    """Checks each answer of a job."""

    blocks = True

    def __init__(self, store: JobDatabase, complain: Complain) -> None:
        self._store, self._complain = store, complain

    def complaint(self, answer: str, request: Request) -> str | None:
        """Return the problem that the function finds in the answer."""
        (row,) = self._store.rows_at([request.key % SLOT])
        return self._complain(answer, row)
