"""The sink of a round: records the outcomes of rows, and ends the run if an outcome concerns all rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from promptmill.backends.protocol import Call, Completion, Failure, Outcome, Sink, Totals
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.run.commits import Commits, KeyedOutcomes
from promptmill.jobs.run.open_rows import OpenRow
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.order import FailureLimit
from promptmill.jobs.store.records import FIRST, SLOT, Provenance, record_of
from promptmill.jobs.store.statistics import JobCounts

# Errors that concern all rows: a wrong configuration, a deadline, the end of the process.
_ENDS_ALL = frozenset({Code.INVALID_CONFIG, Code.DEADLINE, Code.REPLACED, Code.SHUTDOWN})
# Errors that end the run if no request was sent for the row.
_ENDS_UNSENT = frozenset(
    {
        Code.UNREACHABLE,
        Code.CONNECTION_LOST,
        Code.RATE_LIMITED,
        Code.SERVER_ERROR,
        Code.BAD_RESPONSE,
        Code.TIMEOUT,
        Code.NAME_RESOLUTION,
        Code.NO_FILE_DESCRIPTORS,
        Code.ENGINE_DIED,
        Code.NOT_FOUND,
    }
)
_UNKNOWN = OpenRow(0, 0, None, None, b"", 0, answered=False)
_ESTIMATED = "The cost includes an estimate for requests that were in flight when a run of this job was killed."


class StoreSink(Sink):
    """Records the outcomes of rows, and ends the run if an outcome concerns all rows."""

    def __init__(
        self,
        store: JobDatabase,
        counts: JobCounts,
        call: Call,
        no_room: Callable[[PromptmillError], None],
        *,
        failure_limit: FailureLimit | None = None,
        delivered: int = SLOT,
        failing: int = SLOT,
        made: Sequence[Provenance] = (FIRST,),
        recorded: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """`no_room` is called with the error of a row that exceeds the budget; then the run takes no more rows.

        Outcomes count as rows in slots below `delivered`, and failures count for the limit of failures in slots below
        `failing`. `made`: the provenance of the records, by slot. `recorded` is called with the keys of recorded rows.
        """
        self._store = store
        self._call = call
        self.taken: dict[int, OpenRow] = {}
        """The rows in flight, by their keys."""
        self._no_room = no_room
        self._failures = _Failures(failure_limit, counts)
        self._made = made
        self._delivered = delivered
        self._failing = failing
        self._recorded = recorded
        self._answering: set[int] = set()
        """The slots whose model has answered, in a job with several slots."""
        self.commits = Commits(store, self._write, self._count)

    def put(self, key: int, outcome: Outcome) -> Awaitable[None] | None:
        """Record `outcome` under `key`.

        Raises `PromptmillError` if this outcome ends the run; `CancelledError` if nothing can be recorded any more.
        """
        if self.commits.error is not None:
            raise asyncio.CancelledError
        if outcome.is_copy:
            if isinstance(outcome, Failure) and outcome.error.code is Code.BATCHED:  # the row stays open
                self.taken.pop(key, None)
                return None
        elif isinstance(outcome, Failure) and (self._concerns_all(key, outcome) or self._lacks_model(key, outcome)):
            raise outcome.error
        if isinstance(outcome, Failure) and outcome.error.code is Code.BUDGET:
            self._no_room(outcome.error)  # the run still waits for the requests in flight, which are already paid
            if not outcome.cost:
                self.taken.pop(key, None)
                return None
        self._record(key, outcome)
        return self.commits.committed()

    @property
    def without_request(self) -> Sink:
        """A sink for rows without a request. Their outcomes never stop the job, and `put` does not wait."""
        return _WithoutRequest(self._record)

    def _record(self, key: int, outcome: Outcome) -> None:
        if (lost := self._store.in_flight.lost.get(key)) is not None:
            requests = self._store.in_flight.charged_again.get(key, 0)
            outcome = self._with_lost(outcome, requests, lost.open, lost.most, lost.cost)
        self.commits.add(key, outcome, len(self.taken))
        if key // SLOT < self._failing:
            self._failures.count(outcome)
        if len(self._made) > 1 and isinstance(outcome, Completion):
            self._answering.add(key // SLOT)

    def _with_lost(self, outcome: Outcome, requests: int, count: int, most: float, known: float) -> Outcome:
        """Add the cost of requests that earlier runs sent for this row without recording an outcome.

        `known`: the cost of those requests that had ended. A kill interrupted `count` others. Each of these is assumed
        to cost as much as one of the answer's `requests`; if that cost is unknown, they cost `most` in total.
        """
        cost = most
        if isinstance(outcome, Completion) and outcome.cost is not None and requests:
            like_it = count * outcome.cost / requests
            cost = min(like_it, most or like_it)
        if cost:
            self._call.warn(_ESTIMATED)
        cost += known
        if self._call.ledger.budget is not None:
            self._call.ledger.budget.free(most + known, cost)
        if not cost:
            return outcome
        self._call.counts.cost = (self._call.counts.cost or 0.0) + cost
        return replace(outcome, cost=(outcome.cost or 0.0) + cost)

    def _write(self, batch: KeyedOutcomes) -> None:
        taken, made = self.taken, self._made
        replaced = [row for row, _ in batch if taken.get(row, _UNKNOWN).answered]
        again = [row for row, _ in batch if taken.get(row, _UNKNOWN).attempts]
        earlier = {record.key: record.outcome() for record in self._store.records_at(again)}
        outcomes = [(row, _with_earlier(outcome, earlier.get(row))) for row, outcome in batch]
        # the whole batch is encoded in one step: encoding each outcome on its arrival costs 50 % more, because the code
        # leaves the CPU's cache meanwhile
        records = [
            record_of(row, outcome, taken.get(row, _UNKNOWN).asked, made[row // SLOT]) for row, outcome in outcomes
        ]
        self._store.write(records, replaced)

    def _count(self, batch: KeyedOutcomes) -> None:
        self._store.in_flight.recorded([row for row, _ in batch])
        if self._recorded is not None:
            self._recorded([row for row, _ in batch])
        for row, outcome in batch:
            self.taken.pop(row, None)
            if row // SLOT < self._delivered:
                self._failures.counts.count(outcome)

    def _concerns_all(self, row: int, failure: Failure) -> bool:
        """Return whether a failure must end the run, instead of being recorded as a failure of the row."""
        code = failure.error.code
        if code in _ENDS_UNSENT and not failure.concerns_all:
            return failure.attempts == self.taken.get(row, _UNKNOWN).attempts
        return failure.concerns_all or code in _ENDS_ALL

    def _lacks_model(self, key: int, failure: Failure) -> bool:
        """Return whether the failure means that one of several models does not exist: its slot has no answer.

        The endpoint answers the rows of the other models, so the refusal seems to concern only this row.
        """
        slot = key // SLOT
        if failure.error.code is not Code.NOT_FOUND or len(self._made) == 1 or slot in self._answering:
            return False
        return not self._store.has_answers_in(slot)


def _with_earlier(outcome: Outcome, before: Outcome | None) -> Outcome:
    """Add the usage, cost and requests of the outcome `before`, which `outcome` replaces for the same row."""
    return outcome if before is None else Totals.of((before, outcome)).on(outcome)


@dataclass(slots=True)
class _Failures:
    limit: FailureLimit | None
    counts: JobCounts
    failed: int = 0
    rows: int = 0

    def count(self, outcome: Outcome) -> None:
        """Count a row. Raises the error that ends the job if too many rows have failed."""
        if outcome.is_copy:
            return
        self.rows += 1
        if not isinstance(outcome, Failure) or outcome.error.code is Code.BUDGET:
            return
        self.failed += not self.counts.skips(outcome.error.code)
        if self.limit is not None and self.limit.exceeded(self.failed, self.rows):
            said = f"{self.failed} of {self.rows} rows failed, more than `max_failures` allows."
            raise PromptmillError(outcome.error.code, f"{said} The last one: {outcome.error}", "")


@dataclass(frozen=True, slots=True)
class _WithoutRequest(Sink):
    record: Callable[[int, Outcome], None]

    def put(self, key: int, outcome: Outcome) -> None:
        self.record(key, outcome)
