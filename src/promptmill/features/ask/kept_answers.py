"""Answers of rows that still wait for other answers, kept in the job's database for the next run.

A row is recorded when all of its requests have ended. Without kept answers, a kill before that would lose answers that
were paid for. When the row is recorded, its kept answers are deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import orjson

from promptmill.backends.protocol import Completion, Usage
from promptmill.core.request import Request
from promptmill.core.wording import mended
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.plan import RunningJob
from promptmill.jobs.store.records import SLOT

_BEGINNING = "asked "  # the beginning of the kept answers' names in the table `job`


class KeptAnswers:
    """The kept answers of a job, for one run. Only rows with several requests have kept answers."""

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self._names: dict[int, list[str]] = {}
        """The names of kept answers, by the keys of their rows."""
        self._before: frozenset[int] = frozenset()
        """The keys of rows whose answers a killed run has kept."""
        self.round = 0
        """The id of the round that sends the rows."""
        self._unneeded: list[str] = []
        """The names of answers whose rows are recorded."""

    @property
    def _store(self) -> JobDatabase:
        return self._job.store

    def begin(self) -> None:
        """Find the answers that a killed run has kept, and delete the answers of recorded rows. Blocks."""
        names, self._names = self._store.read("SELECT name FROM job WHERE name GLOB ?", f"{_BEGINNING}*"), {}
        gone = [*self._unneeded]
        for (name,) in names:
            key, round_ = map(int, name.split()[1:3])
            is_recorded = self._store.read("SELECT 1 FROM answer WHERE key = ? AND round >= ?", key, round_)
            (gone if is_recorded else self._names.setdefault(key, [])).append(name)
        self._before = frozenset(self._names)
        self._store.change(("DELETE FROM job WHERE name = ?", [(name,) for name in gone]))
        self._unneeded.clear()

    async def of(self, request: Request) -> dict[tuple[str, ...], Completion]:
        """Return the answers that a killed run has kept for a row, by the names of their questions."""
        if request.key not in self._before:
            return {}
        return await asyncio.to_thread(self._read, request)

    def _read(self, request: Request) -> dict[tuple[str, ...], Completion]:
        found: dict[tuple[str, ...], Completion] = {}
        for name in self._names.get(request.key, ()):
            kept = self._store.get(name)
            if kept is None or kept["of"] != self._identity(request):
                continue
            usage = Usage(*kept["usage"])  # without the cost, which is in the ledger of requests in flight
            found[tuple(kept["names"])] = Completion(
                kept["text"],
                kept["finish_reason"],
                usage,
                kept["reasoning"],
                attempts=0,
                probabilities=kept["probabilities"],
            )
        return found

    async def keep(self, request: Request, number: int, names: Sequence[str], answer: Completion) -> None:
        """Keep the answer to the request `number` about a row. Delete kept answers that are no longer needed."""
        used, name = answer.usage, f"{_BEGINNING}{request.key} {self.round} {number}"
        kept: dict[str, Any] = {
            "of": self._identity(request),
            "names": names,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "reasoning": answer.reasoning,
            "probabilities": answer.probabilities,
            "usage": (used.prompt_tokens, used.completion_tokens, used.cached_tokens, used.reasoning_tokens),
        }
        value = orjson.dumps(mended(kept)).decode()
        unneeded, self._unneeded = self._unneeded, []
        self._names.setdefault(request.key, []).append(name)
        with contextlib.suppress(
            OSError, DamagedError
        ):  # not reported here: the commit of the row fails, too, and reports it
            await asyncio.to_thread(
                self._store.change,
                ("INSERT OR REPLACE INTO job VALUES (?, ?)", [(name, value)]),
                ("DELETE FROM job WHERE name = ?", [(one,) for one in unneeded]),
            )

    def recorded(self, keys: Sequence[int]) -> None:
        """Mark rows as recorded: their kept answers are no longer needed."""
        for key in keys:
            self._unneeded += self._names.pop(key, ())

    def _identity(self, request: Request) -> list[Any]:
        """Return the digest of a row's question, and the id of its settings."""
        question = b"" if request.question is None else request.question
        return [question.hex(), self._job.spec.targets[request.key // SLOT].settings]
