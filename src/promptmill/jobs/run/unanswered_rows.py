"""The unanswered rows of a job: a source of requests, a sink of outcomes, and both with a service in between."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from promptmill.backends import rows
from promptmill.backends.protocol import Call, Completion, Failure, InputFile, Outcome, Sink, Source, sum_of
from promptmill.backends.rows import RowReader
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.request import Request, RowPlace
from promptmill.jobs.files import row_files
from promptmill.jobs.files.disk import TOO_LONG, Line, LineRange, Lines, why
from promptmill.jobs.store.answers import DamagedError, JobStore
from promptmill.jobs.store.binding import Twins
from promptmill.jobs.store.records import FIRST, JobCounts, Made, copied, record_of
from promptmill.jobs.store.spec import FailureLimit, above_rows
from promptmill.service.driver import settle
from promptmill.service.service import Service

_LARGE = 32 * 1024  # bytes of a line that are not parsed on the event loop
Settle = Callable[[int, Outcome], Awaitable[None]]
_LARGEST_BATCH, _MOST_CHARACTERS = 64, 1 << 20
_GATHER_S = 0.005
_SYNC_S = 0.9  # from one start to the next, so that data is on the disk at least every second
_DAMAGED = "is damaged. Run the job again: what can be read of it is kept"
# Never a row's own: the key, the account, the way to the host, the end of the process.
_ENDS_ALL = frozenset(
    {
        Code.INVALID_CONFIG,
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


@dataclass(frozen=True, slots=True)
class Answering:
    """Has the rows of a job answered. `give_up` gets the error that stops it, and cancels the task."""

    service: Service
    rows: Rows
    sink: StoreSink
    stats: Call
    give_up: Callable[[PromptmillError], None]
    plan: ResolvedConfig
    """The job's: its model answers the rows which name none."""
    twins: Twins | None = None
    """Rows that have the answer of another row; None to send all."""

    async def run(self) -> int:
        """Answer every row that has no answer yet. Returns how many rows there are, answered earlier or now."""
        syncing = asyncio.ensure_future(self.sink.keep_synced())
        try:
            count = await self._send()
            if self.twins is not None:
                await self._fill(self.twins, last=False)
                if await asyncio.to_thread(self.twins.send_again):
                    await self._send()
                    await self._fill(self.twins, last=True)
            return count
        finally:
            syncing.cancel()
            try:
                await self.sink.aclose()
            finally:
                await asyncio.wait({syncing})

    async def _send(self) -> int:
        """Have rows answered; return how many there are in all."""
        source = FileSource(self.rows, self.sink.taken, self._settle, self.give_up, self.twins)
        self.stats.file, self.stats.keep_raw = source.file, self.rows.reading.keep_raw
        self.stats.size = source.file.path.stat().st_size
        try:
            await self.service.run(source, self.sink, self.stats, self.plan)
        finally:
            await source.aclose()
        await self.sink.aclose()
        return source.rows

    async def _settle(self, row: int, outcome: Outcome) -> None:
        await settle(row, outcome, self.sink.without_request, self.stats)

    async def _fill(self, twins: Twins, *, last: bool) -> None:
        """Give twins the outcome of the row that asked the same; the `last` time also a failure that may pass."""
        after, store = -1, self.rows.store
        while page := await asyncio.to_thread(twins.page, after, self.rows.again):
            for row, first, attempts, answered in page:
                record = store.record(first)
                if record is None or (record.retryable and not last):
                    continue
                self.sink.taken[row] = Taken(attempts, record.asked, answered)
                await self._settle(row, copied(record.outcome(), attempts))
            await self.sink.aclose()
            after = page[-1][0]


def row_reader(
    plan: ResolvedConfig,
    input_format: str,
    *,
    system_prompt: str,
    prompt_column: str | None,
    row_settings: bool,
    begun_in: Path | None = None,
    may_name: frozenset[str] | None = None,
) -> RowReader:
    """Return how rows become requests to the model of `plan`; `begun_in` is where relative paths of images start.

    `may_name` are the models that a row may name, None: any.
    """
    settings = plan.settings
    return RowReader(
        row_files.row_kind(input_format),
        settings.sampling_params,
        settings.extra_params,
        above_rows(plan, system_prompt, input_format),
        settings.image_tag,
        "" if begun_in is None or begun_in == Path.cwd() else str(begun_in),
        "" if plan.record.any_model else plan.model or plan.backend,
        plan.record.other_paths,
        keep_raw=input_format == "batch",
        image_position=settings.image_position,
        prompt_column=prompt_column if input_format == "jsonl" else None,
        row_settings=row_settings,
        may_name=may_name,
        most_tokens=None if plan.trust_client else plan.operator.client_limits.max_tokens,
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Lines as one job sees them. `guard` raises when their file is not what it was (`PromptmillError`)."""

    lines: LineRange
    path: Path
    """The path of their file."""
    reading: RowReader
    store: JobStore
    again: str
    """Which records are to be replaced, as a condition for `store`."""
    limit: int | None
    guard: Callable[[], None]
    enough: Callable[[], bool] = bool
    """Whether no further row is to be taken."""
    most_held: int | None = None
    """The most bytes of large rows in flight, if more than one row is; None: any number."""


class FileSource(Source):
    """Reads in a thread, one block of lines ahead of what was taken. A line that is wrong is settled here."""

    def __init__(
        self,
        rows_: Rows,
        taken: dict[int, Taken],
        settle: Settle,
        give_up: Callable[[PromptmillError], None],
        twins: Twins | None = None,
    ) -> None:
        """`taken` gets what is known of the rows that were taken.

        `settle` takes the failure of a line that cannot be asked; `give_up` why reading cannot go on. The `twins` of
        other rows are not taken.
        """
        self.taken = taken
        self.rows = 0
        """Rows seen so far, answered ones included, blank lines not."""
        self.exhausted = False
        self._rows = rows_
        self._twins = twins
        self._settle = settle
        self._give_up = give_up
        self._lines = Lines(rows_.lines.file, rows_.lines.row, rows_.lines.offset)
        self._ready: deque[tuple[Line, Taken]] = deque()
        self._ahead: asyncio.Future[list[tuple[Line, Taken]]] | None = None

    @property
    def file(self) -> InputFile:
        """The file, for processes that read its rows by themselves."""
        return InputFile(self._rows.lines.file.shared_path() or self._rows.path, self._rows.reading.packed())

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests."""
        taken: list[Request] = []
        while not taken and await self._fill():
            while self._ready and len(taken) < n:
                line, about = self._ready[0]
                large = line.length > _LARGE
                if large and not await self._has_space(line, waits=not taken):
                    break
                self._ready.popleft()
                self.taken[line.row] = about._replace(size=line.length) if large else about
                try:
                    taken.append(
                        await asyncio.to_thread(self._request, line, about.attempts)
                        if large
                        else self._request(line, about.attempts)
                    )
                except PromptmillError as error:
                    await self._settle(line.row, Failure(error, about.attempts))
        return taken

    async def _has_space(self, line: Line, *, waits: bool) -> bool:
        """Return whether a large row may be in flight with the others, or wait until it may."""
        most = self._rows.most_held
        if most is None:
            return True
        while (held := sum(about.size for about in self.taken.values())) and held + line.length > most:
            if not waits:
                return False
            await asyncio.sleep(_GATHER_S)
        return True

    async def aclose(self) -> None:
        """Wait until no thread reads the file any more."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})

    async def _fill(self) -> bool:
        """Have lines without an answer ready; return whether there are any."""
        if self._rows.enough():
            self._ready.clear()
            return False
        while not self._ready and not self.exhausted:
            ahead = self._ahead or self._read_ahead()
            try:
                self._ready.extend(await asyncio.shield(ahead))
            except PromptmillError as error:
                self._give_up(error)
                raise asyncio.CancelledError from None  # `give_up` is cancelling this run
            self._ahead = None if self.exhausted else self._read_ahead()
        return bool(self._ready)

    def _read_ahead(self) -> asyncio.Future[list[tuple[Line, Taken]]]:
        future = asyncio.ensure_future(asyncio.to_thread(self._read))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    def _read(self) -> list[tuple[Line, Taken]]:
        job = self._rows
        job.guard()
        lines = self._lines.read()
        job.guard()  # the lines between the two are those of the unchanged input
        if not lines:
            self.exhausted = True
            return []
        try:
            return self._unsettled(lines)
        except (OSError, DamagedError) as error:
            said = why(error) if isinstance(error, OSError) else "it is damaged"
            raise PromptmillError(
                Code.STORAGE, f"The job's database {job.store.path} cannot be read: {said}."
            ) from None

    def _unsettled(self, lines: list[Line]) -> list[tuple[Line, Taken]]:
        job = self._rows
        known = job.store.known(lines[0].row, lines[-1].row, job.again)
        twins = self._twins.left_out([line.row for line in lines]) if self._twins is not None else ()
        found: list[tuple[Line, Taken]] = []
        for line in lines:
            if line.blank:
                continue
            if job.limit is not None and self.rows >= job.limit:
                self.exhausted = True
                break
            self.rows += 1
            settled, attempts, answered = known.get(line.row, (False, 0, False))
            if not settled and line.row not in twins:
                asked = None if line.data is None else self._rows.reading.digest(line.data)
                # what an answer took stays with it
                found.append((line, Taken(0 if answered else attempts, asked, answered)))
        return found

    def _request(self, line: Line, attempts: int) -> Request:
        if line.data is None:
            raise input_error(f"{rows.place(self._rows.reading.kind, line.row)} {TOO_LONG}.")
        request = self._rows.reading.request(line.row, line.data, attempts)
        request.row = RowPlace(line.offset, line.length)
        return request


class Taken(NamedTuple):
    """A row that was taken and has no outcome yet."""

    attempts: int = 0
    """Made for it by earlier runs."""
    asked: bytes | None = None
    """See `rows.digest`."""
    answered: bool = False
    """Whether it has an answer, which a new one replaces."""
    size: int = 0
    """Of a large row, the length of its line."""


_UNKNOWN = Taken()


class StoreSink(Sink):
    """Writes outcomes in commits of up to 64: with more rows than that in flight, at most 5 ms after the first outcome.

    So a killed process pays twice for what was in flight and, if that is more than 64 rows, for at most 64 outcomes of
    the last 5 ms. A commit costs as much CPU as the encoding of 20 outcomes. With fewer rows in flight, a commit has
    the outcomes of one turn of the event loop. Where a commit waits for the disk, `put` waits for the commit, which is
    made in a thread, and the outcomes that come meanwhile are in the next one.
    """

    def __init__(
        self,
        store: JobStore,
        counts: JobCounts,
        stats: Call,
        give_up: Callable[[PromptmillError], None],
        no_room: Callable[[PromptmillError], None],
        *,
        failure_limit: FailureLimit | None = None,
        made: Made = FIRST,
        recorded: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """`give_up` gets the error for which the job cannot go on, and cancels the run.

        `no_room` gets the error of a row for which the budget has no room; the run takes no more rows then.
        `made` is noted in every record. `recorded` gets the rows that were recorded.
        """
        self._store = store
        self._counts = counts
        self._stats = stats
        self.taken: dict[int, Taken] = {}
        """The rows on their way."""
        self._give_up, self._no_room = give_up, no_room
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
        if isinstance(outcome, Failure) and outcome.error.code is Code.BUDGET:
            self._no_room(outcome.error)  # the requests in flight are paid for: their rows are answered first
            if not outcome.cost:
                self.taken.pop(key, None)
                return
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
            requests = self._store.in_flight.charged_again.get(key, 0)
            outcome = self._with_lost(outcome, requests, lost.open, lost.most, lost.cost)
        batch = self._waiting.outcomes
        if not batch:
            is_soon = self._store.waits_for_disk or len(self.taken) <= _LARGEST_BATCH
            self._loop.call_later(0.0 if is_soon else _GATHER_S, self._gathered, batch)
        batch.append((key, outcome))
        if (error := self._failures.count(outcome, self._counts)) is not None:
            self._give_up(error)
        waiting = self._waiting
        waiting.characters += len(outcome.text)
        is_full = len(batch) >= _LARGEST_BATCH or waiting.characters >= _MOST_CHARACTERS
        if is_full and not self._store.waits_for_disk:
            self._flush()

    def _with_lost(self, outcome: Outcome, requests: int, count: int, most: float, known: float) -> Outcome:
        """Return the outcome, of so many `requests`, with the cost of those of earlier runs that are in no record.

        It is `known` for requests that had ended. Those `count` that a kill cut off cost as much as one of the answer,
        else the `most`.
        """
        cost = most
        if isinstance(outcome, Completion) and outcome.cost is not None and requests:
            like_it = count * outcome.cost / requests
            cost = min(like_it, most or like_it)
        cost += known
        if self._stats.budget is not None:
            self._stats.budget.free(most + known, cost)
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
                self._break("was removed while the job ran", "Run the job again; it begins anew.")
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

    def _gathered(self, batch: Sequence[tuple[int, Outcome]]) -> None:
        if batch is not self._waiting.outcomes:  # it was full earlier
            return
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
            self._waiting = _Waiting()
            self._write(batch)
            self._count(batch)

    def _write(self, batch: Sequence[tuple[int, Outcome]]) -> None:
        if self._broken:
            return
        taken, made = self.taken, self._made
        replaced = [row for row, _ in batch if taken.get(row, _UNKNOWN).answered]
        again = [row for row, _ in batch if taken.get(row, _UNKNOWN).attempts]
        try:
            earlier = {record.row: record.outcome() for record in self._store.records_at(again)}
            outcomes = [(row, _with_earlier(outcome, earlier.get(row))) for row, outcome in batch]
            # all of a batch at once: encoding each when it comes costs half as much again, for its code is cold then
            records = [record_of(row, outcome, taken.get(row, _UNKNOWN).asked, made) for row, outcome in outcomes]
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
            self.taken.pop(row, None)
            self._counts.count(outcome)

    def _concerns_all(self, row: int, failure: Failure) -> bool:
        """Return whether the job is to stop instead of counting this failure, having said so."""
        code = failure.error.code
        if code in _ENDS_UNSENT and not failure.concerns_all:
            concerns_all = failure.attempts == self.taken.get(row, _UNKNOWN).attempts
        else:
            concerns_all = failure.concerns_all or code in _ENDS_ALL
        if concerns_all:
            self._give_up(failure.error)
        return concerns_all


def _with_earlier(outcome: Outcome, before: Outcome | None) -> Outcome:
    """Return the outcome with the usage and cost of the row's outcome `before`, which it takes the place of."""
    if before is None:
        return outcome
    return replace(outcome, usage=before.usage + outcome.usage, cost=sum_of(before.cost, outcome.cost))


@dataclass(slots=True)
class _Waiting:
    """Outcomes that are not written, and what those wait for that must be on the disk."""

    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    characters: int = 0
    """Of their texts."""
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
        if not isinstance(outcome, Failure) or outcome.error.code is Code.BUDGET:
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
