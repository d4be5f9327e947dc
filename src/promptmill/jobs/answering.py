"""From a job's unanswered rows to records in its journal, through the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmill.backends.protocol import CallStats, Request
from promptmill.backends.rows import RowReader
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Completion, Failure, Outcome
from promptmill.jobs.disk import RandomFile
from promptmill.jobs.duplicates import DedupedSource, FirstSeen
from promptmill.jobs.job_request import FailureLimit
from promptmill.jobs.ledger import Ledger
from promptmill.jobs.sink import JournalSink
from promptmill.jobs.source import FileSource, Rows
from promptmill.service.service import Service

_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Answering:
    """What is needed to have rows answered. `give_up` is told why it cannot go on, and then has the task cancelled."""

    service: Service
    ledger: Ledger
    stats: CallStats
    file: RandomFile
    path: Path
    reading: RowReader
    limit: int | None
    failure_limit: FailureLimit | None
    duplicates: Path | None
    """Where to note what was asked, to ask it once; None to ask everything."""
    guard: Callable[[], None]
    give_up: Callable[[PromptmillError], None]

    async def run(self) -> int:
        """Answer every row that has no answer yet. Returns how many rows there are, answered earlier or now."""
        sink = JournalSink(self.ledger.journal, self.ledger.index, self.ledger.tally, self.give_up, self.failure_limit)
        try:
            if self.duplicates is None:
                return await self._all(sink)
            asked = FirstSeen(self.duplicates)
            try:
                return await self._once_each(sink, asked)
            finally:
                asked.close()
        finally:
            sink.flush()
            self.ledger.index.flush()

    async def _all(self, sink: JournalSink) -> int:
        source = self._source(sink)
        try:
            await self.service.run(source, sink, self.stats)
        finally:
            await source.aclose()
        return source.rows

    async def _once_each(self, sink: JournalSink, asked: FirstSeen) -> int:
        """Ask each thing once; then answer the rows that were left out from the records of those that asked first."""
        source = self._source(sink, everything=True)
        try:
            await self.service.run(DedupedSource(source, asked, self.ledger.is_answered), sink, self.stats)
        finally:
            await source.aclose()
        sink.flush()
        self.ledger.index.flush()
        left_out = self._source(sink)
        try:
            while requests := await left_out.take(_AT_ONCE):
                for request in requests:
                    self._copy(sink, request, asked.first(request))
        finally:
            await left_out.aclose()
        return source.rows

    def _copy(self, sink: JournalSink, request: Request, first: int) -> None:
        record = self.ledger.journal.read(self.ledger.index.get(first), first) if first != request.key else None
        if record is None:
            return  # the merge will find it unanswered
        outcome = _outcome(record, request.attempts)
        sink.record(request.key, outcome)
        self.stats.settle(outcome)

    def _source(self, sink: JournalSink, *, everything: bool = False) -> FileSource:
        async def settle(row: int, failure: Outcome) -> None:
            if not self.ledger.is_answered(row):
                sink.record(row, failure)
                self.stats.settle(failure)

        ledger = self.ledger
        rows = Rows(
            self.file, self.path, self.reading, ledger.index_file, ledger.journal, self.limit, self.guard, everything
        )
        return FileSource(rows, settle, self.give_up)


def _outcome(record: Mapping[str, Any], attempts: int) -> Outcome:
    """Return the outcome of another row as this row's own, which cost nothing more than its `attempts` so far."""
    if record["code"] is not None:
        return Failure(PromptmillError(Code(record["code"]), record["message"], ""), attempts)
    return Completion(
        record["text"],
        record["finish_reason"],
        reasoning=record.get("reasoning"),
        tool_calls=tuple(record.get("tool_calls", ())),
        attempts=attempts,
        logprobs=record.get("logprobs"),
        details=_copied(record.get("details")),
    )


def _copied(details: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the details of another row's answer without what that cost."""
    if details is None or "body" not in details:
        return details
    return {**details, "body": {name: value for name, value in details["body"].items() if name != "usage"}}
