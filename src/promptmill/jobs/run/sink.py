"""Outcomes into the job's database. Errors that are not about one row stop the job instead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from promptmill.backends.protocol import Call, Sink
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Completion, Failure, Outcome
from promptmill.jobs.files.disk import why
from promptmill.jobs.store.answers import DamagedError, JobStore
from promptmill.jobs.store.records import FIRST, JobCounts, Made, record_of
from promptmill.jobs.store.spec import FailureLimit

_LARGEST_BATCH = 16
_SYNC_S = 0.9  # from one start to the next, so that data is on the disk at least every second
_DAMAGED = "is damaged. Run the command again: what can be read of it is kept"
# Never a row's own: the key, the account, the way to the host, the end of the process.
_ENDS_ALL = frozenset(
    {
        Code.INVALID_CONFIG,
        Code.BUDGET,
        Code.DEADLINE,
        Code.REPLACED,
        Code.SHUTDOWN,
    }
)
# The same when the row was not sent: then the whole endpoint has failed.
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


class Taken(NamedTuple):
    """A row that was taken and has no outcome yet."""

    attempts: int = 0
    """Made for it by earlier runs."""
    asked: bytes | None = None
    """See `rows.digest`."""
    answered: bool = False
    """Whether it has an answer, which a new one replaces."""


_UNKNOWN = Taken()


class StoreSink(Sink):
    """Writes what has come within one turn of the event loop at its end, in one commit, or when 16 outcomes wait.

    So a killed process pays twice for what was in flight and for at most 16 outcomes of that very turn. If `put` waited
    for its write it would be the former alone, at twice the cost. Where a commit waits for the disk, it does: the
    commit is made in a thread, and whatever comes meanwhile waits for the next one.
    """

    def __init__(
        self,
        store: JobStore,
        counts: JobCounts,
        stats: Call,
        taken: dict[int, Taken],
        give_up: Callable[[PromptmillError], None],
        *,
        failure_limit: FailureLimit | None = None,
        made: Made = FIRST,
        recorded: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """`taken` has the rows on their way; those that are recorded are removed from it.

        `give_up` is told why the job cannot go on; whoever is told cancels the run. `made` is noted in every record.
        `recorded` gets the rows that were recorded.
        """
        self._store = store
        self._counts = counts
        self._stats = stats
        self._taken = taken
        self._give_up = give_up
        self._failures = _Failures(failure_limit)
        self._made = made
        self._recorded = recorded
        self._waiting = _Waiting()
        self._committing: asyncio.Task[None] | None = None
        self._broken = False
        self._loop = asyncio.get_running_loop()

    async def put(self, key: int, outcome: Outcome) -> None:
        """Record the outcome of row `key`.

        Raises `CancelledError` once the job was given up, for this outcome's sake or because nothing can be recorded:
        whoever was told is cancelling the run.
        """
        if self._broken or (isinstance(outcome, Failure) and self._concerns_all(key, outcome)):
            raise asyncio.CancelledError
        self._record(key, outcome)
        if self._store.waits_for_disk:
            waiting = self._waiting
            if waiting.committed is None:
                waiting.committed = self._loop.create_future()
            await asyncio.shield(waiting.committed)

    @property
    def without_request(self) -> Sink:
        """The sink of rows for which no request is sent: no outcome of theirs stops the job, and none waits."""
        return _WithoutRequest(self._record)

    def _record(self, key: int, outcome: Outcome) -> None:
        if (lost := self._store.in_flight.lost.get(key)) is not None:
            outcome = self._with_lost(outcome, *lost[1:])
        batch = self._waiting.outcomes
        if not batch:
            self._loop.call_soon(self._turn_ended)
        batch.append((key, outcome))
        if (error := self._failures.count(outcome, self._counts)) is not None:
            self._give_up(error)
        if len(batch) >= _LARGEST_BATCH and not self._store.waits_for_disk:
            self._flush()

    def _with_lost(self, outcome: Outcome, billed: int, most: float) -> Outcome:
        """Return the outcome with what requests cost that a kill cut off: as much as the answer, else the `most`."""
        cost = most
        if isinstance(outcome, Completion) and outcome.cost is not None and outcome.attempts:
            each = outcome.cost / max(1, outcome.unmetered + outcome.is_metered)
            cost = min(billed * each, most or billed * each)
        if self._stats.budget is not None:
            self._stats.budget.free(most, cost)
        if not cost:
            return outcome
        self._stats.cost = (self._stats.cost or 0.0) + cost
        return replace(outcome, cost=(outcome.cost or 0.0) + cost)

    async def keep_synced(self) -> None:
        """Bring what is written to the disk itself, at least once a second, until this is cancelled."""
        while not self._broken:
            began = time.monotonic()
            syncing = asyncio.ensure_future(asyncio.to_thread(self._store.sync))
            try:
                await asyncio.shield(syncing)
            except asyncio.CancelledError:
                await asyncio.wait({syncing})  # the database is closed after this
                syncing.exception()
                raise
            except FileNotFoundError:
                self._break("was removed while the job ran", "Run the command again; it begins anew.")
            except OSError as error:
                self._break(f"cannot be kept: {why(error)}")
            except DamagedError:
                self._break(_DAMAGED)
            await asyncio.sleep(max(0.0, began + _SYNC_S - time.monotonic()))

    async def aclose(self) -> None:
        """Write what was put."""
        if self._committing is not None:
            await asyncio.wait({self._committing})
        self._flush()

    def _turn_ended(self) -> None:
        if not self._store.waits_for_disk:
            self._flush()
        elif self._committing is None and self._waiting.outcomes:
            self._committing = self._loop.create_task(self._commit())

    async def _commit(self) -> None:
        """Write batch after batch in a thread, until nothing waits."""
        while self._waiting.outcomes:
            waiting, self._waiting = self._waiting, _Waiting()
            await asyncio.to_thread(self._write, waiting.outcomes)
            self._count(waiting.outcomes)
            if waiting.committed is not None:
                waiting.committed.set_result(None)
        self._committing = None

    def _flush(self) -> None:
        if batch := self._waiting.outcomes:
            self._waiting.outcomes = []
            self._write(batch)
            self._count(batch)

    def _write(self, batch: Sequence[tuple[int, Outcome]]) -> None:
        if self._broken:
            return
        taken = self._taken
        # all of a batch at once: encoding each when it comes costs half as much again, for its code is cold then
        made = self._made
        records = [record_of(row, outcome, taken.get(row, _UNKNOWN).asked, made) for row, outcome in batch]
        replaced = [row for row, _ in batch if taken.get(row, _UNKNOWN).answered]
        try:
            self._store.write(records, replaced)
        except OSError as error:
            self._break(f"cannot be written: {why(error)}")
        except DamagedError:
            self._break(_DAMAGED)

    def _break(self, reason: str, hint: str | None = None) -> None:
        error = PromptmillError(Code.STORAGE, f"The job's database {self._store.path} {reason}.", hint)
        self._loop.call_soon_threadsafe(self._give_up, error)
        self._broken = True  # last: whoever sees it ends by it, and the reason is to be known then

    def _count(self, batch: Sequence[tuple[int, Outcome]]) -> None:
        if self._broken:
            return
        self._store.in_flight.recorded([row for row, _ in batch])
        if self._recorded is not None:
            self._recorded([row for row, _ in batch])
        for row, outcome in batch:
            self._taken.pop(row, None)
            self._counts.count(outcome)

    def _concerns_all(self, row: int, failure: Failure) -> bool:
        """Return whether the job is to stop instead of counting this failure, having said so."""
        code = failure.error.code
        if code in _ENDS_UNSENT and not failure.concerns_all:
            concerns_all = failure.attempts == self._taken.get(row, _UNKNOWN).attempts
        else:
            concerns_all = failure.concerns_all or code in _ENDS_ALL
        if concerns_all:
            self._give_up(failure.error)
        return concerns_all


@dataclass(slots=True)
class _Waiting:
    """Outcomes that are not written, and what those wait for that must be on the disk."""

    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    committed: asyncio.Future[None] | None = None


@dataclass(slots=True)
class _Failures:
    """How many rows of this run failed, against the job's limit."""

    limit: FailureLimit | None
    failed: int = 0
    rows: int = 0

    def count(self, outcome: Outcome, counts: JobCounts) -> PromptmillError | None:
        """Count a row; return the error that ends the job if too many have failed."""
        self.rows += 1
        if not isinstance(outcome, Failure):
            return None
        self.failed += not counts.skips(outcome.error.code)
        if self.limit is None or not self.limit.exceeded(self.failed, self.rows):
            return None
        said = f"{self.failed} of {self.rows} rows failed, more than `max_failures` allows."
        return PromptmillError(outcome.error.code, f"{said} The last one: {outcome.error}", "")


@dataclass(frozen=True, slots=True)
class _WithoutRequest(Sink):
    record: Callable[[int, Outcome], None]

    async def put(self, key: int, outcome: Outcome) -> None:
        self.record(key, outcome)
