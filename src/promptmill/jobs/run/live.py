"""A live round: a source reads open rows, a service answers them, and a sink records the outcomes."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from promptmill.answering.step import Step
from promptmill.answers.check import Check
from promptmill.backends.protocol import LOOKED_AT, Call, Completion, Failure, Outcome, Sink, Source, Totals
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import NOTHING_SHARED, Request, Shared
from promptmill.files import disk
from promptmill.jobs.rows.questions import RowRequests
from promptmill.jobs.run.shared_beginnings import WINDOW_ROWS, beginnings, in_groups
from promptmill.jobs.store.database import PAGE, DamagedError, JobDatabase, check_rows, limited
from promptmill.jobs.store.order import FailureLimit
from promptmill.jobs.store.plan import PlanWork
from promptmill.jobs.store.records import FIRST, SLOT, Provenance, record_of
from promptmill.jobs.store.rounds import Round, join_of
from promptmill.jobs.store.statistics import JobCounts
from promptmill.jobs.store.stored import Target
from promptmill.service.driver import record_outcome
from promptmill.service.service import Service

_NO_QUESTION = bytes(16)
_LARGE = 32 * 1024  # bytes; a larger question is parsed in a thread, not on the event loop
_LARGEST_COMMIT, _MOST_CHARACTERS = 64, 1 << 20
_GATHER_S = 0.005
_SYNC_S = 0.9  # seconds between the starts of two syncs, so that answers reach the disk every second
# Errors that always concern all rows: those of the configuration, a deadline, the end of the process.
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


async def answer_rows(
    service: Service,
    rows: OpenRows,
    sink: StoreSink,
    stats: Call,
    plan: ResolvedConfig,
    *,
    steps: Sequence[Step] = (),
) -> None:
    """Answer every open row of a round. The model of `plan` answers rows that name no model. `steps`: see
    `PlanWork.steps`.

    Raises the `PromptmillError` that ends the run, and `DamagedError`.
    """
    commits = sink.commits
    syncing = asyncio.ensure_future(commits.keep_synced())
    source = RowSource(rows, sink, stats)
    try:
        has_images = await source.has_images()
        stats.facts = replace(
            stats.facts,
            keep_raw=rows.requests[0].reader.keep_raw,
            has_images=has_images,
            checks=rows.checks,
            vector_bytes=await asyncio.to_thread(rows.vector_bytes),
        )
        answering = asyncio.ensure_future(service.run(source, sink, stats, plan, steps=steps))
        commits.on_error = answering.cancel
        await answering
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if commits.error is None or (task is not None and task.cancelling()):
            raise
    finally:
        await source.aclose()
        syncing.cancel()
        try:
            await commits.aclose()
        finally:
            await asyncio.wait({syncing})
    if commits.error is not None:
        raise commits.error


Batch: TypeAlias = list[tuple[int, Outcome]]
"""Outcomes with the keys of their rows."""
Between: TypeAlias = Callable[[int, int], Iterator["list[OpenRow]"]]
"""Yields the rows to send after the answers to the rows `first` to `following - 1`."""


@dataclass(frozen=True, slots=True)
class OpenRows:
    """The rows of a round that have not been sent."""

    store: JobDatabase
    round: Round
    targets: Sequence[Target]
    """The targets of the rows, by slot."""
    requests: Sequence[RowRequests]
    """The request makers of the rows, by slot."""
    among: range = range(SLOT)
    """The range of row numbers to send."""
    enough: Callable[[], bool] = bool
    """Returns True when no more rows should be taken."""
    held_bytes: int | None = None
    """The most bytes of large rows in flight; None: no limit. One row may exceed the limit if it is alone."""
    between: Between | None = None
    """Yields more rows between the windows of the round."""
    window: int = PlanWork.window
    """The row numbers of a window."""
    only: str = "1"
    """A further SQL condition for the rows, in which `{base}` is the key of the slot's first row."""
    sharing: int = 0
    """The fewest rows to group by their beginning; 0: the endpoint does not cache beginnings."""
    least_shared: int = 0
    """The fewest bytes of a beginning that the endpoint caches."""
    sends_once: bool = False
    """Whether rows with the same question share one request, and so no beginning."""
    checks: tuple[Check, ...] = ()
    """The checks of the answers, next to those that the parameters of a row want."""

    def pages(self) -> Iterator[list[OpenRow]]:
        """Yield pages of rows, in the order of the input and then of the slots. A page may be empty."""
        ((last,),) = self.store.read("SELECT coalesce(max(n), -1) FROM row WHERE n < ?", self.among.stop)
        before: tuple[int, int] | None = None  # the previous window, whose rows have been answered
        for first in range(self.among.start, last + 1, self.window):
            following = min(first + self.window, last + 1)
            slots = [self._window(slot, first, following) for slot in self.round.slots]
            merged = heapq.merge(*map(itertools.chain.from_iterable, slots), key=lambda row: row.n)
            yield from slots[0] if len(slots) == 1 else _paged(merged)
            if self.between is not None and before is not None:
                yield from self.between(*before)
            before = first, following

    def in_groups(self) -> Iterator[list[OpenRow]]:
        """Yield `pages` in which rows with the same beginning follow each other; see `shared_beginnings`."""

        sent: dict[tuple[int, bytes], int] = {}

        def look(row: OpenRow) -> list[Shared]:
            if row.size + constants[row.slot] < self.least_shared:
                return []
            if self.sends_once and row.asked is not None:
                if len(sent) >= WINDOW_ROWS:
                    sent.clear()
                if sent.setdefault((row.slot, row.asked), row.n) != row.n:
                    return []
            requests, model = self.requests[row.slot], self.targets[row.slot].model
            return beginnings(requests, row.n, row.line, row.cells, least=self.least_shared, model=model)

        constants = [requests.constant for requests in self.requests]
        reorders = self.between is None  # not with `between`, which needs the windows in order
        for page in in_groups(self.pages(), look, lambda row: row.size, self.sharing, reorders=reorders):
            yield [row._replace(shared=shared or NOTHING_SHARED) for row, shared in page]

    def vector_bytes(self) -> int:
        """Return the length of a vector that the round keeps; 0 if it keeps none, or vectors may differ in length.

        Slots after the first may keep their vectors in a form of their own.
        """
        (slot, *others), store = self.round.slots, self.store
        first = "SELECT vector IS NULL FROM answer WHERE code IS NULL LIMIT 1"  # which spares a scan of texts
        if others or slot or self.requests[0].reader.row_settings or store.read(first) != [(0,)]:
            return 0
        is_open = self.round.condition(self.targets[slot].counted, slot)
        kept = f"SELECT length(vector) FROM {join_of(slot)} WHERE vector IS NOT NULL AND NOT ({is_open}) LIMIT 1"
        return next((length for (length,) in store.read(kept)), 0)

    def _window(self, slot: int, first: int, following: int) -> Iterator[list[OpenRow]]:
        condition = self.round.condition(self.targets[slot].counted, slot)
        query = (
            "SELECT row.n, row.asked, row.line, row.cells, answer.attempts, "
            f"answer.key IS NOT NULL AND answer.code IS NULL FROM {join_of(slot)} "
            f"WHERE row.n >= ? AND row.n < ? AND ({condition}) AND {self.only.replace('{base}', str(slot * SLOT))} "
            "ORDER BY row.n"
        )
        at = 16 * self.targets[slot].prompt
        while first < following:
            open_rows = self.store.read(query, first, following, fetched=functools.partial(limited, texts=slice(2, 4)))
            check_rows(open_rows, first)
            yield [
                OpenRow(
                    n,
                    slot,
                    None if (digest := asked[at : at + 16]) == _NO_QUESTION else digest,
                    line,
                    cells,
                    # a new answer does not count the attempts of the answer it replaces
                    0 if is_answered else attempts or 0,
                    bool(is_answered),
                )
                for n, asked, line, cells, attempts, is_answered in open_rows
            ]
            first = open_rows[-1][0] + 1 if open_rows else following


def _paged(open_rows: Iterator[OpenRow]) -> Iterator[list[OpenRow]]:
    while page := list(itertools.islice(open_rows, PAGE)):
        yield page


class OpenRow(NamedTuple):
    """A row to send to the target of a slot."""

    n: int
    slot: int
    asked: bytes | None
    """The digest of the row's question; None if the row has no question."""
    line: bytes | None
    cells: bytes
    attempts: int
    """The attempts of earlier runs."""
    answered: bool
    """Whether the row has an answer, which the new answer replaces."""

    shared: Shared | None = None
    """The beginning of the question that other rows share; None if the endpoint does not cache beginnings."""

    @property
    def key(self) -> int:
        """The key of the row's answer."""
        return self.n + self.slot * SLOT

    @property
    def size(self) -> int:
        """The most bytes of the row's question."""
        return len(self.cells) + len(self.line or b"")


class RowSource(Source):
    """Reads the open rows in a thread, one page ahead. A row without a valid request fails in this class."""

    def __init__(self, rows_: OpenRows, sink: StoreSink, call: Call) -> None:
        """`sink` receives the taken rows and the failures."""
        self._rows, self._sink, self._call = rows_, sink, call
        self._pages = rows_.in_groups() if rows_.sharing else rows_.pages()
        self._ready: deque[OpenRow] = deque()
        self._ahead: asyncio.Future[list[OpenRow] | None] | None = None
        self._has_ended = False

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests. Raises `PromptmillError` (`storage`, or the sink's error) and `DamagedError`."""
        requests: list[Request] = []
        while not requests and await self._fill():
            while self._ready and len(requests) < n:
                row = self._ready[0]
                is_large = row.size > _LARGE
                if is_large and not await self._has_space(row, waits=not requests):
                    break
                self._ready.popleft()
                self._sink.taken[row.key] = row
                try:
                    requests.append(await asyncio.to_thread(self._request, row) if is_large else self._request(row))
                except PromptmillError as error:
                    outcome = Failure(error, row.attempts)
                    record_outcome(row.key, outcome, self._sink.without_request, self._call)
        return requests

    async def has_images(self) -> bool:
        """Return whether one of the first rows has an image. Raises as `take` does."""
        await self._fill()
        first = [*itertools.islice(self._ready, LOOKED_AT)]
        return await asyncio.to_thread(lambda: any(map(self._has_images, first)))

    async def aclose(self) -> None:
        """Wait until this source's thread has finished reading."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})

    def _has_images(self, row: OpenRow) -> bool:
        try:
            return bool(self._request(row).conversation.images)
        except PromptmillError:  # recorded by `take`
            return False

    def _request(self, row: OpenRow) -> Request:
        request = self._rows.requests[row.slot].request(row.n, row.line, row.cells, row.attempts)
        request.key, request.shared, request.question = row.key, row.shared, row.asked
        return request

    async def _has_space(self, row: OpenRow, *, waits: bool) -> bool:
        """Return whether a large row may be in flight with the others. With `waits`, wait until it may."""
        most = self._rows.held_bytes
        if most is None:
            return True
        while (held := sum(taken.size for taken in self._sink.taken.values() if taken.size > _LARGE)) and (
            held + row.size > most
        ):
            if not waits:
                return False
            for send in tuple(self._call.waits.starved):
                send()
            await asyncio.sleep(_GATHER_S)
        return True

    async def _fill(self) -> bool:
        """Load open rows if none is ready; return whether there are any."""
        if self._rows.enough():
            self._ready.clear()
            return False
        while not self._ready and not self._has_ended:
            ahead = self._ahead or self._read_ahead()
            page = await asyncio.shield(ahead)
            self._has_ended = page is None
            self._ready.extend(page or ())
            self._ahead = None if self._has_ended else self._read_ahead()
        return bool(self._ready)

    def _read_ahead(self) -> asyncio.Future[list[OpenRow] | None]:
        future = asyncio.ensure_future(asyncio.to_thread(self._page))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    def _page(self) -> list[OpenRow] | None:
        try:
            return next(self._pages, None)
        except OSError as error:
            unreadable = f"The job's database {self._rows.store.path} cannot be read: {disk.why(error)}."
            raise PromptmillError(Code.STORAGE, unreadable) from None


_UNKNOWN = OpenRow(0, 0, None, None, b"", 0, answered=False)


class Commits:
    """Writes outcomes in commits of up to 64. A commit has the outcomes of one turn of the event loop. If more than 64
    rows are in flight, the next commit follows at least 5 ms after the last, with all outcomes until then. So a kill
    costs a second payment for the requests in flight and, with more than 64 in flight and more than 200 outcomes a
    second, for at most 64 outcomes of the last 5 ms. A commit takes as much CPU time as encoding 20 outcomes: a commit
    per turn would take 25 % more. If commits wait for the disk, a thread commits, and the caller waits for it. Outcomes
    that arrive meanwhile are in the next commit.
    """

    def __init__(self, store: JobDatabase, write: Callable[[Batch], None], written: Callable[[Batch], None]) -> None:
        """`write`: writes outcomes into the store, perhaps in a thread. `written`: called in the loop afterwards."""
        self._store, self._write_batch, self._written = store, write, written
        self._waiting = _Waiting()
        self._committing: asyncio.Task[None] | None = None
        self._flushed_at = 0.0
        self._loop = asyncio.get_running_loop()
        self.error: PromptmillError | DamagedError | None = None
        """The error that prevents further recording."""
        self.on_error: Callable[[], object] = lambda: None
        """Called in the event loop after `error` was set."""

    def add(self, key: int, outcome: Outcome, in_flight: int) -> None:
        """Take an outcome for the next commit. `in_flight`: the number of rows in flight."""
        waiting = self._waiting
        batch = waiting.outcomes
        if not batch:
            is_soon = self._store.waits_for_disk or in_flight <= _LARGEST_COMMIT
            due = 0.0 if is_soon else max(0.0, self._flushed_at + _GATHER_S - self._loop.time())
            self._loop.call_later(due, self._gathered, batch)
        batch.append((key, outcome))
        waiting.characters += len(outcome.text)
        is_full = len(batch) >= _LARGEST_COMMIT or waiting.characters >= _MOST_CHARACTERS
        if is_full and not self._store.waits_for_disk:
            self._flush()

    def committed(self) -> Awaitable[None] | None:
        """Return an awaitable for the commit of all outcomes so far; None if commits do not wait for the disk."""
        if not self._store.waits_for_disk:
            return None
        waiting = self._waiting
        if waiting.committed is None:
            waiting.committed = self._loop.create_future()
        return asyncio.shield(waiting.committed)

    async def keep_synced(self) -> None:
        """Sync written outcomes to disk at least once a second, until cancelled."""
        while self.error is None:
            began = time.monotonic()
            syncing = asyncio.ensure_future(asyncio.to_thread(self._store.sync))
            try:
                await asyncio.shield(syncing)
            except asyncio.CancelledError:
                await asyncio.wait({syncing})  # before the caller closes the database
                syncing.exception()
                raise
            except FileNotFoundError:
                self._break("was removed while the job ran", "Run the job again; it begins anew.")
            except OSError as error:
                self._break(f"cannot be kept: {disk.why(error)}")
            except DamagedError as error:
                self._end(error)
            await asyncio.sleep(max(0.0, began + _SYNC_S - time.monotonic()))

    async def aclose(self) -> None:
        """Write all outcomes that were added."""
        if self._committing is not None:
            await asyncio.wait({self._committing})
        self._flush()

    def _gathered(self, batch: Batch) -> None:
        if batch is not self._waiting.outcomes:  # already written, because it was full
            return
        if not self._store.waits_for_disk:
            self._flush()
        elif self._committing is None and self._waiting.outcomes:
            self._committing = self._loop.create_task(self._commit())

    async def _commit(self) -> None:
        """Write batches in a thread until no outcome is waiting."""
        while self._waiting.outcomes:
            waiting, self._waiting = self._waiting, _Waiting()
            await asyncio.to_thread(self._write, waiting.outcomes)
            if self.error is None:
                self._written(waiting.outcomes)
            if waiting.committed is not None:
                waiting.committed.set_result(None)
        self._committing = None

    def _flush(self) -> None:
        if batch := self._waiting.outcomes:
            self._waiting = _Waiting()
            self._flushed_at = self._loop.time()
            self._write(batch)
            if self.error is None:
                self._written(batch)

    def _write(self, batch: Batch) -> None:
        if self.error is not None:
            return
        try:
            self._write_batch(batch)
        except OSError as error:
            self._break(f"cannot be written: {disk.why(error)}")
        except DamagedError as error:
            self._end(error)

    def _break(self, reason: str, hint: str | None = None) -> None:
        self._end(PromptmillError(Code.STORAGE, f"The job's database {self._store.path} {reason}.", hint))

    def _end(self, error: PromptmillError | DamagedError) -> None:
        self.error = self.error or error
        self._loop.call_soon_threadsafe(self.on_error)


class StoreSink(Sink):
    """Records the outcomes of rows, and ends the run if an outcome concerns all rows."""

    def __init__(
        self,
        store: JobDatabase,
        counts: JobCounts,
        stats: Call,
        no_room: Callable[[PromptmillError], None],
        *,
        failure_limit: FailureLimit | None = None,
        delivered: int = SLOT,
        failing: int = SLOT,
        made: Sequence[Provenance] = (FIRST,),
        recorded: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """`no_room` is called with the error of a row that exceeds the budget; then the run takes no more rows.

        `delivered`: outcomes of the first so many slots count as rows. `failing`: failures of the first so many slots
        count for the limit of failures. `made`: the provenance of the records, by slot. `recorded` is called with the
        keys of recorded rows.
        """
        self._store = store
        self._stats = stats
        self.taken: dict[int, OpenRow] = {}
        """The rows in flight, by their keys."""
        self._no_room = no_room
        self._failures = _Failures(failure_limit, counts)
        self._made = made
        self._delivered = delivered
        self._failing = failing
        self._recorded = recorded
        self._answering: set[int] = set()
        """The slots whose model has answered, in a job with several."""
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

        `known`: the cost of the requests that had ended. A kill interrupted `count` others: each is assumed to cost as
        much as one of the answer's `requests`; if that cost is unknown, they cost `most` in total.
        """
        cost = most
        if isinstance(outcome, Completion) and outcome.cost is not None and requests:
            like_it = count * outcome.cost / requests
            cost = min(like_it, most or like_it)
        cost += known
        if self._stats.ledger.budget is not None:
            self._stats.ledger.budget.free(most + known, cost)
        if not cost:
            return outcome
        self._stats.counts.cost = (self._stats.counts.cost or 0.0) + cost
        return replace(outcome, cost=(outcome.cost or 0.0) + cost)

    def _write(self, batch: Batch) -> None:
        taken, made = self.taken, self._made
        replaced = [row for row, _ in batch if taken.get(row, _UNKNOWN).answered]
        again = [row for row, _ in batch if taken.get(row, _UNKNOWN).attempts]
        earlier = {record.key: record.outcome() for record in self._store.records_at(again)}
        outcomes = [(row, _with_earlier(outcome, earlier.get(row))) for row, outcome in batch]
        # the whole batch in one step: encoding each outcome on arrival costs 50 % more, because the code
        # leaves the CPU's cache
        records = [
            record_of(row, outcome, taken.get(row, _UNKNOWN).asked, made[row // SLOT]) for row, outcome in outcomes
        ]
        self._store.write(records, replaced)

    def _count(self, batch: Batch) -> None:
        self._store.in_flight.recorded([row for row, _ in batch])
        if self._recorded is not None:
            self._recorded([row for row, _ in batch])
        for row, outcome in batch:
            self.taken.pop(row, None)
            if row // SLOT < self._delivered:
                self._failures.counts.count(outcome)

    def _concerns_all(self, row: int, failure: Failure) -> bool:
        """Return whether a failure must stop the job, instead of being counted as the row's failure."""
        code = failure.error.code
        if code in _ENDS_UNSENT and not failure.concerns_all:
            return failure.attempts == self.taken.get(row, _UNKNOWN).attempts
        return failure.concerns_all or code in _ENDS_ALL

    def _lacks_model(self, key: int, failure: Failure) -> bool:
        """Return whether one of several models does not exist: no row of its slot has an answer.

        The endpoint answers the rows of other models, so for it, the row caused the refusal.
        """
        slot = key // SLOT
        if failure.error.code is not Code.NOT_FOUND or len(self._made) == 1 or slot in self._answering:
            return False
        return not self._store.has_answers_in(slot)


def _with_earlier(outcome: Outcome, before: Outcome | None) -> Outcome:
    """Add the usage, cost and requests of the outcome `before`, which `outcome` replaces for the same row."""
    return outcome if before is None else Totals.of((before, outcome)).on(outcome)


@dataclass(slots=True)
class _Waiting:
    """Outcomes that are not yet written. If commits wait for the disk, the callers await the future `committed`."""

    outcomes: Batch = field(default_factory=list)
    characters: int = 0
    """The total length of the outcomes' texts in characters."""
    committed: asyncio.Future[None] | None = None


@dataclass(slots=True)
class _Failures:
    limit: FailureLimit | None
    counts: JobCounts
    failed: int = 0
    rows: int = 0

    def count(self, outcome: Outcome) -> None:
        """Count a row. If too many rows have failed, raises the error that ends the job."""
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
