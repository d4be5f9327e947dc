"""From a job's unanswered rows to records in its database, through the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promptmill.backends.protocol import Call
from promptmill.core.errors import PromptmillError
from promptmill.core.outcome import NO_USAGE, Completion, Failure, Outcome
from promptmill.jobs.run.duplicates import DedupedSource, FirstSeen
from promptmill.jobs.run.sink import StoreSink, Taken
from promptmill.jobs.run.source import FileSource, Rows
from promptmill.jobs.store.records import JobCounts
from promptmill.jobs.store.spec import FailureLimit
from promptmill.service.service import Service

_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Answering:
    """What is needed to have rows answered. `give_up` is told why it cannot go on, and then has the task cancelled."""

    service: Service
    rows: Rows
    counts: JobCounts
    stats: Call
    failure_limit: FailureLimit | None
    duplicates: Path | None
    """Where to note what was asked, to ask it once; None to ask everything."""
    give_up: Callable[[PromptmillError], None]
    changed: Sequence[str]
    recorded: Callable[[Sequence[int]], None] | None
    """Gets the rows that were recorded."""
    model: str
    """The name of the model that answers rows which name none."""

    async def run(self) -> int:
        """Answer every row that has no answer yet. Returns how many rows there are, answered earlier or now."""
        taken: dict[int, Taken] = {}
        sink = StoreSink(
            self.rows.store,
            self.counts,
            self.stats,
            taken,
            self.give_up,
            failure_limit=self.failure_limit,
            changed=self.changed,
            recorded=self.recorded,
        )
        syncing = asyncio.ensure_future(sink.keep_synced())
        try:
            if self.duplicates is None:
                return await self._all(sink, taken)
            asked = FirstSeen(self.duplicates)
            try:
                return await self._once_each(sink, taken, asked)
            finally:
                asked.close()
        finally:
            syncing.cancel()
            try:
                await sink.aclose()
            finally:
                await asyncio.wait({syncing})

    async def _all(self, sink: StoreSink, taken: dict[int, Taken]) -> int:
        source = self._source(sink, taken)
        try:
            await self.service.run(source, sink, self.stats, self.model)
        finally:
            await source.aclose()
        return source.rows

    async def _once_each(self, sink: StoreSink, taken: dict[int, Taken], asked: FirstSeen) -> int:
        """Ask each thing once; then answer the rows that were left out from the records of those that asked first.

        Where that one failed in a way that may pass, those that asked the same are asked once more, together.
        """
        assert self.duplicates is not None
        source = self._source(sink, taken, everything=True)
        await self._ask(DedupedSource(source, asked), source, sink)
        if await self._copy(sink, taken, asked):
            again = FirstSeen(self.duplicates.with_name(f"{self.duplicates.name}-again"))
            try:
                left_out = self._source(sink, taken)
                await self._ask(DedupedSource(left_out, again, asked), left_out, sink)
                await self._copy(sink, taken, again, asked)
            finally:
                again.close()
        return source.rows

    async def _ask(self, deduped: DedupedSource, source: FileSource, sink: StoreSink) -> None:
        try:
            await self.service.run(deduped, sink, self.stats, self.model)
        finally:
            await source.aclose()
        await sink.aclose()

    async def _copy(
        self, sink: StoreSink, taken: dict[int, Taken], asked: FirstSeen, earlier: FirstSeen | None = None
    ) -> int:
        """Answer rows from those that asked the same; return how many are left, because that one's failure may pass.

        None is left after an `earlier` round, whose rows are not touched.
        """
        left, left_out = 0, self._source(sink, taken)
        try:
            while requests := await left_out.take(_AT_ONCE):
                for request in requests:
                    first = asked.first(request)
                    record = self.rows.store.record(first) if first != request.key else None
                    if record is None:  # it will be found unanswered when the output is written
                        continue
                    if earlier is not None and earlier.first(request) == request.key:
                        continue
                    outcome = _copied(record.outcome(), request.attempts)
                    if isinstance(outcome, Failure) and outcome.error.retryable and earlier is None:
                        left += 1
                        taken.pop(request.key, None)
                        continue
                    sink.record(request.key, outcome)
                    self.stats.count(outcome)
        finally:
            await left_out.aclose()
        await sink.aclose()
        return left

    def _source(self, sink: StoreSink, taken: dict[int, Taken], *, everything: bool = False) -> FileSource:
        async def settle(row: int, failure: Outcome) -> None:
            if not taken[row].settled:
                sink.record(row, failure)
                self.stats.count(failure)

        loop = asyncio.get_running_loop()

        def count(number: int) -> None:
            self.counts.done += number

        def reused(number: int) -> None:
            loop.call_soon_threadsafe(count, number)

        told = reused if self.rows.store.reuses else None
        source = FileSource(self.rows, taken, settle, self.give_up, reused=told, everything=everything)
        self.stats.file, self.stats.keep_raw = source.file, self.rows.reading.keep_raw
        self.stats.size = source.file.path.stat().st_size
        return source


def _copied(outcome: Outcome, attempts: int) -> Outcome:
    """Return the outcome of another row as that of one which cost nothing more than its `attempts` so far."""
    if not isinstance(outcome, Completion):
        return Failure(outcome.error, attempts)
    details = outcome.details
    if details is not None and "body" in details:
        details = {**details, "body": {name: value for name, value in details["body"].items() if name != "usage"}}
    cost = None if outcome.cost is None else 0.0
    return replace(outcome, usage=NO_USAGE, attempts=attempts, latency_s=0.0, details=details, cost=cost)
