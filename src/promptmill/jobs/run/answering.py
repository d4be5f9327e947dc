"""From a job's unanswered rows to records in its database, through the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptmill.backends.protocol import Call
from promptmill.core.errors import PromptmillError
from promptmill.core.outcome import Outcome
from promptmill.jobs.run.sink import StoreSink, Taken
from promptmill.jobs.run.source import FileSource, Rows
from promptmill.jobs.store.binding import Twins
from promptmill.jobs.store.records import JobCounts, Made, copied
from promptmill.jobs.store.spec import FailureLimit
from promptmill.service.driver import settle
from promptmill.service.service import Service


@dataclass(frozen=True, slots=True)
class Answering:
    """Has the rows of a job answered. `give_up` gets the error that stops it, and cancels the task."""

    service: Service
    rows: Rows
    counts: JobCounts
    stats: Call
    failure_limit: FailureLimit | None
    twins: Twins | None
    """Rows that have the answer of another row; None to send all."""
    give_up: Callable[[PromptmillError], None]
    made: Made
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
            made=self.made,
            recorded=self.recorded,
        )
        syncing = asyncio.ensure_future(sink.keep_synced())
        try:
            rows = await self._send(sink, taken)
            if self.twins is not None:
                await self._fill(self.twins, sink, taken, last=False)
                if await asyncio.to_thread(self.twins.send_again):
                    await self._send(sink, taken)
                    await self._fill(self.twins, sink, taken, last=True)
            return rows
        finally:
            syncing.cancel()
            try:
                await sink.aclose()
            finally:
                await asyncio.wait({syncing})

    async def _send(self, sink: StoreSink, taken: dict[int, Taken]) -> int:
        """Have rows answered; return how many there are in all."""

        async def settle_line(row: int, failure: Outcome) -> None:
            await settle(row, failure, sink.without_request, self.stats)

        source = FileSource(self.rows, taken, settle_line, self.give_up, self.twins)
        self.stats.file, self.stats.keep_raw = source.file, self.rows.reading.keep_raw
        self.stats.size = source.file.path.stat().st_size
        try:
            await self.service.run(source, sink, self.stats, self.model)
        finally:
            await source.aclose()
        await sink.aclose()
        return source.rows

    async def _fill(self, twins: Twins, sink: StoreSink, taken: dict[int, Taken], *, last: bool) -> None:
        """Give twins the outcome of the row that asked the same; the `last` time also a failure that may pass."""
        after, store = -1, self.rows.store
        while page := await asyncio.to_thread(twins.page, after, self.rows.again):
            for row, first, attempts, answered in page:
                record = store.record(first)
                if record is None or (record.retryable and not last):
                    continue
                taken[row] = Taken(attempts, record.asked, answered)
                await settle(row, copied(record.outcome(), attempts), sink.without_request, self.stats)
            await sink.aclose()
            after = page[-1][0]
