"""Runs one job in this process: what is unanswered goes through the service, what is answered becomes the output."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from promptmill.backends.protocol import Call
from promptmill.backends.rows import RowReader
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.money import Budget
from promptmill.core.wording import counted
from promptmill.jobs.files import disk, spool
from promptmill.jobs.files.disk import Line, LineRange, Lines, RandomFile
from promptmill.jobs.run import admission, merge, shards
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.merge import JobFiles
from promptmill.jobs.run.partial_output import LiveOutput
from promptmill.jobs.run.unanswered_rows import Answering, Rows, StoreSink, row_reader
from promptmill.jobs.store import status
from promptmill.jobs.store.answers import FARTHEST_ROW, NEVER, DamagedError, JobStore
from promptmill.jobs.store.binding import Binding, Bound, Twins
from promptmill.jobs.store.records import JobCounts
from promptmill.jobs.store.spec import JobSpec, OutputRecord
from promptmill.jobs.store.status import Course, Progress, Watch
from promptmill.service.service import Service
from promptmill.system.runtime import stay_responsive

T = TypeVar("T")
Apart: TypeAlias = Callable[[str, JobFiles], Awaitable[Any]]
"""Does a step (`read_rows`, `write_output`) in another process. Raises as the step does."""
_LOOK_S = 0.2
_MOST_HELD = 64 << 20
_MOST_VALUES = 300_000  # of a row that a server reads for a call: they take 0.1 s
_STATUS_S = 1.0
# A record that turns out damaged when the output is written is done again, but not without end.
_ROUNDS = 3
_SALVAGED = "The job's database was damaged; rows whose answers were lost are done again."
_LEAVING_S = 60.0
_GO_ON = "Run the job again: what can be read of it is kept."


class _JobStopped(Exception):  # noqa: N818 (how a run ends early, told to the runner alone)
    """The job's new `state`, and why when it is an `error`."""

    def __init__(self, state: str, error: PromptmillError | None = None) -> None:
        super().__init__(state)
        self.state = state
        self.error = error


class Runner:
    """One run of a job that `admission` let in. The caller made job and service, and closes them."""

    def __init__(
        self,
        job: Job,
        service: Service,
        *,
        watch: Watch | None = None,
        stats: Call | None = None,
        before_answers: Callable[[], Awaitable[None]] | None = None,
        before_output: Callable[[], Awaitable[None]] | None = None,
        recorded: Callable[[Sequence[int]], None] | None = None,
        live: LiveOutput | None = None,
        apart: Apart | None = None,
    ) -> None:
        """`watch` gets the progress several times a second; `stats` counts the costs of this run.

        `before_answers` is waited for before any row is sent, `before_output` when all are answered. `recorded` gets
        the rows that were recorded, and `live` writes them while they come. `apart` does the steps that read the input,
        for a job whose input and template may be hostile. Needs a running event loop.
        """
        self._job = job
        self.service = service
        self._watch = watch
        self._before_answers = before_answers
        self._before_output = before_output
        self._live = live
        self._apart = apart
        self._recorded = recorded if live is None else live.recorded
        self._working: asyncio.Task[None] | None = None
        self._stopped: _JobStopped | None = None
        self._halt = threading.Event()
        """Set when a thread is to leave what it does."""
        self._leaves_as: _JobStopped | None = None
        """The end of the run after the answers to the rows in flight, if no more rows are taken."""
        self.progress = Progress(JobCounts(), Call(of_job=True) if stats is None else stats, job.folder.status)
        self.progress.counts.skips_empty = job.spec.skip_empty
        self.progress.course = Course(job.folder.course)

    @property
    def error(self) -> PromptmillError | None:
        """The error that stopped the run early."""
        return None if self._stopped is None else self._stopped.error

    async def run(self) -> dict[str, Any]:
        """Run until the output is there or something ends it; returns the final status.

        Its `state` is `finished`, `stopped` (`reason` and `self.error` say why) or `cancelled`; when the service or
        this task is ended, `interrupted`. Whatever happens, what is answered is kept, and the job can be run again.
        """
        progress = self.progress
        self._working = asyncio.ensure_future(self._work())
        looking_after = asyncio.ensure_future(self._look_after())
        try:
            await self._until_stopped(self._working)
            progress.state = status.FINISHED
        except _JobStopped as ended:
            self._stopped, progress.state = ended, ended.state
            progress.reason = redact(str(ended.error)) if ended.error else ""
        except asyncio.CancelledError:
            progress.state = status.INTERRUPTED
            raise
        except BaseException as error:
            progress.state = status.STOPPED
            progress.reason = f"A bug in promptmill ({type(error).__name__}); please report it."
            raise
        finally:
            progress.activity = ""
            looking_after.cancel()
            await asyncio.wait({looking_after})
            await self._in_thread(self._close)
            self._tell()
        return self.progress.as_dict()

    async def _until_stopped(self, working: asyncio.Task[None]) -> None:
        """Wait for the work. Raises `_JobStopped` with the first reason to end it before it is done."""
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError:
            if self._stopped is None:  # else it is ending, which a second time would cut short
                working.cancel()
            await asyncio.wait({working})
            raise
        try:
            working.result()
        except BaseException:
            if self._stopped is None:
                raise
            raise self._stopped from None

    def _stop(self, stopped: _JobStopped) -> None:
        """End the run early; the first reason counts."""
        if self._stopped is None and self._working is not None:
            self._stopped = stopped
            self._working.cancel()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run what blocks in a thread; when the run ends before, `_halt` asks it to leave, and it is waited for."""
        thread = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._halt.set()
            await asyncio.wait({thread})
            thread.cancelled() or thread.exception()  # of no interest any more
            raise

    def leave(self) -> bool:
        """Take no more rows and end as `interrupted` when those in flight are answered; return whether any are."""
        if self.progress.state != status.RUNNING or not self.progress.stats.in_flight:
            return False
        self._leaves_as = _JobStopped(status.INTERRUPTED)
        self._show()
        return True

    def _end_without_room(self, error: PromptmillError) -> None:
        """Take no more rows, for the budget has no room, and end as `stopped` when those in flight are answered."""
        if self._leaves_as is None:
            self._leaves_as = _JobStopped(status.STOPPED, error)
            self._show()

    def _leaving(self) -> str:
        if self._leaves_as is None:
            return ""
        left = self.progress.stats.in_flight
        again = "; Ctrl-C again stops at once" if self._leaves_as.error is None else ", for the budget has no more room"
        return f"finishing {left} in flight{again}"

    def _close(self) -> None:
        if self.error is not None and self.error.code is Code.STORAGE:
            with contextlib.suppress(OSError, DamagedError):  # what was not written is not kept, whatever came of it
                spec, counts = self._job.spec, self.progress.counts
                counts.replace(self._job.folder.store.counts(spec.to_replace, skips_empty=spec.skip_empty))
        self._keep(self._status())
        with contextlib.suppress(OSError, DamagedError):
            self._job.folder.store.sync()
        with contextlib.suppress(OSError):
            self._job.folder.cancel.unlink(missing_ok=True)

    async def _work(self) -> None:
        job = self._job
        try:
            if job.has_output:  # ended between the output's rename and its last words
                merge.discard(job.spec.output, job.spec.job_id)
                await self._count(NEVER)
                self.progress.total = self.progress.counts.done
                self.progress.columns = job.spec.columns or {}
                await self._in_thread(self._count_values)
                return
            self._enter(status.STARTING, "reading the input")
            await self._in_thread(lambda: admission.check_content(job, self._halt))
            with contextlib.ExitStack() as opened:
                await self._read_rows()
                path = job.folder.rows if job.spec.spooled else job.spec.input
                lines = opened.enter_context(job.folder.lines(job.input, job.spec))
                rows, shard = LineRange(lines, lines=job.spec.lines), job.order.cut
                if shard is not None:
                    rows = await self._in_thread(functools.partial(shards.cut, job, shard))
                    opened.callback(rows.file.close)
                await self._bind(rows)
                if self._before_answers is not None:
                    await self._before_answers()
                await self._rounds(lines, rows, path)
        except PromptmillError as error:
            gone = error.code in {Code.SHUTDOWN, Code.REPLACED}
            raise _JobStopped(status.INTERRUPTED if gone else status.STOPPED, error) from None
        except OSError as error:
            unusable = f"A file of the job cannot be used: {disk.why(error)}."
            raise _JobStopped(status.STOPPED, PromptmillError(Code.STORAGE, unusable)) from None
        except DamagedError:
            damaged = f"The job's database {job.folder.database} is damaged."
            raise _JobStopped(status.STOPPED, PromptmillError(Code.STORAGE, damaged, _GO_ON)) from None

    async def _rounds(self, lines: RandomFile, rows: LineRange, path: Path) -> None:
        """Have the rows answered and the output written, again where records turn out to be damaged."""
        live = self._live
        try:
            for _ in range(_ROUNDS):
                try:
                    again = self._job.spec.to_replace
                    await self._count(again)
                    if live is not None:
                        replaced = await self._in_thread(functools.partial(self._job.folder.store.rows, again))
                        live.begin(self._job, lines, set(replaced), self._give_up)
                    await self._answer(rows, path)
                    if self._leaves_as is not None:
                        raise self._leaves_as
                    if self._before_output is not None:
                        await self._before_output()
                    if await self._merge():
                        if live is not None:
                            await self._in_thread(functools.partial(live.wait, self._halt))
                        return
                    await self._drop_unsound()
                except DamagedError:
                    await self._in_thread(self._job.folder.salvage)
                    self.progress.notes.append(_SALVAGED)
            raise PromptmillError(Code.STORAGE, "The job's database is damaged again and again.")
        finally:
            if live is not None:
                live.stop()

    async def _read_rows(self) -> None:
        """Have the rows looked at and written as lines if need be, and the columns of the answers named."""
        job, rule = self._job, self._job.plan.file_rule
        if rule.is_guarded and not rule.is_own(job.spec.input):  # else the rows came in a call
            await self._step(merge.check_secrets)
        if not merge.are_rows_read(job.spec, job.folder):
            try:
                await self._step(merge.read_rows)
            except BaseException:
                spool.discard(job.folder.rows)
                raise
        self.progress.columns = job.spec.columns or {}
        self.progress.notes += merge.notes_on_columns(job.spec, is_grid=bool(job.order.variants))

    async def _step(self, step: Callable[[JobFiles], T]) -> T:
        """Return the result of a step that reads the input."""
        job = self._job
        files = JobFiles(
            job.spec,
            job.folder,
            job.input,
            job.order.limit,
            self._note,
            self._halt,
            job.disk_share,
            job.plan.file_rule,
        )
        if self._apart is None:
            return await self._in_thread(lambda: step(files))
        found: T = await self._apart(step.__name__, files)
        return found

    def _note(self, name: str, value: Any) -> None:
        """Take notice of what a step reports; for any thread."""
        job = self._job
        match name:
            case "activity":
                self._enter(self.progress.state, value)
            case "passed":
                self.progress.pass_row(value)
            case "spec":
                job.spec = job.spec.model_copy(update=value)
                job.folder.put(spec=job.spec)

    async def _count(self, again: str) -> None:
        """Count the answers; rows whose record meets `again` are not done."""
        self._enter(self.progress.state, "counting the answers")
        store = self._job.folder.store
        await self._in_thread(lambda: self.progress.count(store, again))

    async def _bind(self, rows: LineRange) -> None:
        """Bind the answers there are to the rows, where the input or what its rows ask has changed."""
        job = self._job
        if job.spec.to_bind is None and job.order.from_job is None:
            return
        self._enter(self.progress.state, "finding the answers of the rows")
        store, before = job.folder.store, job.before or job.spec
        if lost := store.in_flight.most:  # whose rows may be others now
            self.progress.earlier.charge(lost)
            self._show()
        store.in_flight.settle()
        bound = await self._in_thread(lambda: self._bound(rows, before))
        if self._halt.is_set():
            return
        job.spec = job.spec.model_copy(update={"to_bind": None})
        job.folder.put(spec=job.spec)
        if job.order.again != "all":
            kept, of = f"{bound.kept:,}", counted(bound.rows, "row")
            self.progress.notes.append(f"{kept} of {of} keep their answers, {_new(bound)} new.")

    def _bound(self, rows: LineRange, before: JobSpec) -> Bound:
        """Bind the answers and return the counts. Blocks. After an error the job is as it was `before`."""
        job, reading = self._job, self._reader(self._job.plan)
        binding = Binding(job.folder.store, job.spec.counted, by_row=job.spec.to_bind == "rows")
        with contextlib.ExitStack() as opened:
            if job.order.from_job is not None:
                other = JobStore(job.order.from_job)
                opened.callback(other.close)
                binding.offer(other)
            for block in self._blocks(rows):
                binding.note([(line.row, None if line.data is None else reading.digest(line.data)) for line in block])
            bound = binding.match()
            if not (job.order.keep or job.spec.again == "all"):
                try:
                    admission.check_bound(before, job.spec.input, bound)
                except PromptmillError:
                    job.folder.put(spec=before.model_copy(update={"lines": None if before.spooled else before.lines}))
                    raise
            binding.apply(self._halt.is_set, job.spec.made)
        return bound

    def _found_twins(self, rows: LineRange, reading: RowReader) -> Twins:
        """Return the rows that ask what another row asks, at temperature 0. Blocks."""
        twins, left = Twins(self._job.folder.store), self._job.order.limit
        for block in self._blocks(rows):
            found = block if left is None else block[:left]
            left = None if left is None else left - len(found)
            asking = [(line.row, asked) for line in found if (asked := _question(reading, line)) is not None]
            twins.note(asking)
        twins.find()
        return twins

    def _blocks(self, rows: LineRange) -> Iterator[list[Line]]:
        """Yield the lines that are not blank, block by block, until the run is to halt."""
        found = Lines(rows.file, rows.row, rows.offset)
        while not self._halt.is_set() and (block := found.read()):
            yield [line for line in block if not line.blank]

    async def _drop_unsound(self) -> None:
        store = self._job.folder.store
        if damaged := await self._in_thread(store.drop_unsound):
            self.progress.notes.append(
                f"{damaged} damaged record(s) in the job's database are not trusted; their rows are done again."
            )

    async def _answer(self, rows: LineRange, path: Path) -> None:
        """Have every unanswered row answered and recorded."""
        job, progress, limit = self._job, self.progress, self._job.order.limit
        store, stats = job.folder.store, progress.stats
        progress.total = rows.lines if limit is None or rows.lines is None else min(limit, rows.lines)
        stats.total = None if progress.total is None else max(0, progress.total - progress.counts.done)
        progress.begin_rates()
        self._enter(status.RUNNING)
        self._limit_cost()
        stats.journal = store.in_flight
        reading, twins = self._reading(), None
        if job.order.dedupe:
            twins = await self._in_thread(lambda: self._found_twins(rows, reading))
        unanswered = Rows(
            rows,
            path,
            reading,
            store,
            job.spec.to_replace,
            limit,
            self._guard,
            lambda: self._leaves_as is not None,
            None if self._apart is None else _MOST_HELD,
        )
        sink = StoreSink(
            store,
            progress.counts,
            stats,
            self._give_up,
            self._end_without_room,
            failure_limit=job.order.failure_limit,
            made=job.spec.made,
            recorded=self._recorded,
        )
        seen = await Answering(self.service, unanswered, sink, stats, self._give_up, job.plan, twins).run()
        progress.total = seen if self._leaves_as is None else progress.total

    def _limit_cost(self) -> None:
        """Let the rows cost what is left of the job's budget, where it has one."""
        order, stats, progress = self._job.order, self.progress.stats, self.progress
        limit = self._job.plan.operator.max_cost if order.max_cost is None else order.max_cost
        if limit is None or stats.budget is not None:
            return

        stats.budget = Budget(limit, progress.cost or 0.0, self._job.folder.store.in_flight.most)

    def _reading(self) -> RowReader:
        """Return how rows are read, those that name another model too. Raises `PromptmillError` (`replaced`)."""
        plan = self._job.plan
        if not plan.is_same_model(self.service.plan_of(plan.name)):
            raise PromptmillError(Code.REPLACED, "Another model was loaded before the job began.")
        reader, offered = self._reader(plan), self.service.offered
        names = [name for name in self.service.usable if name in offered]
        if len(names) < 2:
            return reader
        return replace(reader, models={name: self._reader(self.service.plan_of(name).capped) for name in names})

    def _reader(self, plan: ResolvedConfig) -> RowReader:
        job, spec = self._job, self._job.spec
        reader = row_reader(
            plan,
            spec.input_format,
            system_prompt=job.order.system_prompt,
            prompt_column=spec.prompt_column,
            row_settings=spec.rows_set,
            begun_in=spec.working_folder,
            may_name=self.service.row_models(plan),
        )
        return reader if self._apart is None else replace(reader, most_values=_MOST_VALUES)

    async def _merge(self) -> bool:
        """Write the output and give it its name; False when some row turns out to have no answer after all.

        No file is left when it raises.
        """
        self._enter(status.MERGING, "writing the output")
        job, spec, folder = self._job, self._job.spec, self._job.folder
        self._guard()
        try:
            partial, counts = await self._write_output()
        except merge.UnansweredError:
            return False
        except BaseException:  # it may have been written whole at that very moment
            merge.discard(spec.output, spec.job_id)
            raise
        made = folder.result
        is_own = made is not None and made.is_own(spec.output)
        folder.put(output=OutputRecord.of(partial, job.order.limit, spec.output if is_own else None))
        try:
            merge.publish(partial, spec.output, may_replace=job.order.overwrite or is_own)
        except (PromptmillError, OSError):
            partial.unlink(missing_ok=True)
            raise
        job.spec = spec.model_copy(update={"again": None})  # the round is finished
        folder.put(spec=job.spec)
        self.progress.counts, self.progress.is_counted = counts, True
        self.progress.earlier.lost = folder.store.in_flight.requests_lost
        return True

    async def _write_output(self) -> tuple[Path, JobCounts]:
        """Write the output beside its place; return where it lies, and the counts of what is in it."""
        spec, store = self._job.spec, self._job.folder.store

        def counts(rows: int = FARTHEST_ROW) -> JobCounts:
            self._count_values(rows)
            return store.counts(before=rows, skips_empty=spec.skip_empty)

        if spec.shard is not None:
            return await self._in_thread(lambda: (shards.write_part(store, spec), counts()))
        found = await self._step(merge.write_output)
        if found["warning"]:
            self.progress.notes.append(found["warning"])
        return Path(found["partial"]), await self._in_thread(lambda: counts(found["rows"]))

    def _count_values(self, rows: int = FARTHEST_ROW) -> None:
        """Count the different answers to the first `rows` of the input. Blocks."""
        by_field = self._job.spec.answer_schema is not None
        self.progress.results = self._job.folder.store.results(rows, by_field=by_field)

    def _guard(self) -> None:
        """Raise `PromptmillError` when the input has changed since it was read; for any thread."""
        job = self._job
        if admission.check_unchanged(job, self._halt):
            self.progress.stats.warn("Lines were appended to the input while the job ran; the next run sends them.")

    def _give_up(self, error: PromptmillError) -> None:
        self._stop(_JobStopped(status.STOPPED, error))

    async def _look_after(self) -> None:
        """Show the progress, and end the run when the job is cancelled."""
        shown = 0.0
        while True:
            if self._job.folder.cancel.exists():
                self._stop(_JobStopped(status.CANCELLED))
            if self._job.lock.lost:
                self._give_up(PromptmillError(Code.STORAGE, "Another process has taken the job over.", ""))
            if time.monotonic() - shown >= _STATUS_S:
                shown = time.monotonic()
                self.progress.sample()
                # in a thread, for a large commit of answers may hold the database meanwhile
                found = self._status()
                entered = self.progress.state, self.progress.activity
                await self._in_thread(functools.partial(self._keep, found))
                if entered != (self.progress.state, self.progress.activity):  # kept meanwhile, and perhaps before it
                    self._keep(self._status())
            self._tell()
            await asyncio.sleep(_LOOK_S)

    def _enter(self, state: str, activity: str = "") -> None:
        self.progress.state, self.progress.activity = state, activity
        self._show()

    def _show(self) -> None:
        self._keep(self._status())
        self._tell()

    def _status(self) -> dict[str, Mapping[str, Any]]:
        """Bring the progress up to date; return it as the job's `status`, and the `course` when it has a new sample."""
        progress, in_flight = self.progress, self._job.folder.store.in_flight
        budget, is_running = progress.stats.budget, progress.state == status.RUNNING
        if is_running:
            progress.activity = self._leaving() or ("" if progress.stats.done else self.service.activity)
        progress.set_aside = budget.set_aside if budget is not None and is_running else in_flight.most
        found = progress.as_dict() | ({} if self.error is None else {"code": str(self.error.code)})
        return {"status": found, **({"course": progress.course.as_dict()} if progress.course.note(found) else {})}

    def _keep(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        with contextlib.suppress(OSError, DamagedError):  # the next write of answers reports it in clearer words
            self._job.folder.put(**found)

    def _tell(self) -> None:
        if self._watch:
            with contextlib.suppress(OSError):  # a closed terminal is no reason to end a job
                self._watch(self.progress)


def _new(bound: Bound) -> str:
    new = bound.rows - bound.kept
    return f"{new:,} {'is' if new == 1 else 'are'}"


def _question(reading: RowReader, line: Line) -> bytes | None:
    """Return the digest of what a row asks where its answer is the same each time, None where it is not."""
    try:
        request = reading.request(line.row, line.data or b"")
        # one in the extra parameters counts first
        if request.path or request.extra.get("temperature", request.sampling.temperature) != 0:
            return None
        return reading.digest(line.data or b"")
    except PromptmillError:
        return None


async def until_ended(runner: Runner) -> tuple[dict[str, Any], PromptmillError | None, bool]:
    """Run a job until its end, SIGTERM or Ctrl-C. Returns its status, why it stopped early, and whether SIGTERM came.

    The process is the job's own, and exports to OpenTelemetry what it does. The first Ctrl-C lets what is in flight
    come to its end, for a minute: it will be paid for. Raises `KeyboardInterrupt` after Ctrl-C.
    """
    if not any(name.startswith("OTEL_") for name in os.environ):
        return await _until_ended(runner)
    from promptmill.service.telemetry import exported  # imported only where something may be exported

    async with exported(runner.service):
        return await _until_ended(runner)


async def _until_ended(runner: Runner) -> tuple[dict[str, Any], PromptmillError | None, bool]:
    stay_responsive()
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(runner.run())
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        if signals == [signal.SIGINT] and runner.leave():
            loop.call_later(_LEAVING_S, work.cancel)
        else:
            work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, on_signal, number)
    try:
        found = await work
    except asyncio.CancelledError:
        if not signals:
            raise
        found = runner.progress.as_dict()
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    return found, runner.error, bool(signals)
