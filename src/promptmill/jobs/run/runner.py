"""Runs a job in this process: reads its input, runs its rounds, and writes its output."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Facts
from promptmill.backends.questions import RowRequests
from promptmill.backends.rows import RowReader
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.bounds import MOST_VALUES
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.money import Budget
from promptmill.core.wording import counted
from promptmill.jobs import columns, disk, members
from promptmill.jobs.export import output
from promptmill.jobs.export.answered import UnansweredError
from promptmill.jobs.run import steps, ways
from promptmill.jobs.run.copies import Duplicates
from promptmill.jobs.run.job import NO_HOOKS, Apart, Hooks, Job
from promptmill.jobs.run.job_rounds import JobRounds, reader_of, requests_of
from promptmill.jobs.run.live import OpenRows, StoreSink
from promptmill.jobs.run.shared_beginnings import saved
from promptmill.jobs.run.ways import RoundRun, way_named
from promptmill.jobs.store import progress as states
from promptmill.jobs.store import rounds, statistics, status
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.database import DamagedError, Work
from promptmill.jobs.store.progress import Course, Progress
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import NEVER, Round
from promptmill.jobs.store.spec import UNREAD, OutputRecord
from promptmill.jobs.store.statistics import JobCounts
from promptmill.jobs.store.status_record import RunStatus
from promptmill.jobs.store.stored import Target
from promptmill.service.observers import exported
from promptmill.service.service import Service
from promptmill.system.runtime import stay_responsive

T = TypeVar("T")
_LOOK_S = 0.2
_HELD_BYTES = 64 << 20
_STATUS_S = 1.0
_UNANSWERED = "SELECT EXISTS (SELECT 1 FROM row LEFT JOIN answer ON key = n WHERE n < ? AND key IS NULL)"
_TRIES = 3  # attempts of a run to repair damaged records or a damaged database
_SALVAGED = "The job's database was damaged; rows whose answers were lost are sent again."
_NO_BUDGET = "`max_cost` has no effect on this run: it needs a known price and `max_tokens`."
_LEAVING_S = 60.0
_AGAIN = "Run the job again: its readable part is kept."


class _JobStopped(Exception):  # noqa: N818 (ends a run early; never leaves the runner)
    """Ends the run early. Its arguments: the job's new `state`, and the `error` if there is one."""

    def __init__(self, state: str, error: PromptmillError | None = None) -> None:
        super().__init__(state)
        self.state = state
        self.error = error


class Runner:
    """One run of an admitted job. The caller creates and closes the job and the service."""

    def __init__(
        self,
        job: Job,
        service: Service,
        hooks: Hooks = NO_HOOKS,
        *,
        stats: Call | None = None,
        apart: Apart | None = None,
    ) -> None:
        """`stats` counts the costs of this run. `apart` runs the steps that read the input and write the output in a
        child process.

        Needs a running event loop.
        """
        self._job = job
        self.service = service
        self._hooks = hooks
        self._apart = apart
        self._given = None if job.spec.input.is_file else job.input
        self._working: asyncio.Task[None] | None = None
        self._stopped: _JobStopped | None = None
        self._leaves_as: _JobStopped | None = None
        """The final state of a run that takes no new rows and waits for the rows in flight."""
        self._before = job.folder.status
        self._is_refused = False
        """Whether the run was refused and changed nothing; then the job keeps its earlier status."""
        self._takes_no_more = False
        """Whether the round takes no new rows. After the rows in flight, it resumes with a budget."""
        self._end = SLOT
        """The number of the first row beyond the order's limit."""
        self.progress = Progress(JobCounts(), Call(Facts(of_job=True)) if stats is None else stats, job.folder.status)
        self._long_work = Work(self.progress.pass_row)
        self.progress.counts.skips_empty = job.spec.question.skip_empty
        self._course = Course(job.folder.course)

    @property
    def error(self) -> PromptmillError | None:
        """The error that stopped the run early."""
        return None if self._stopped is None else self._stopped.error

    async def run(self) -> RunStatus:
        """Run until the output is written or the run is stopped; return the final status.

        Its `state` is `finished`; `stopped` (`reason` and `self.error` hold the cause); `cancelled`; or `interrupted`
        if the service or this task ends. In all cases, the answers are kept and the job can be resumed.
        """
        progress = self.progress
        self._working = asyncio.ensure_future(self._work())
        looking_after = asyncio.ensure_future(self._look_after())
        try:
            await self._until_stopped(self._working)
            progress.state = states.FINISHED
        except _JobStopped as ended:
            self._stopped, progress.state = ended, ended.state
            progress.reason = redact(str(ended.error)) if ended.error else ""
        except asyncio.CancelledError:
            progress.state = states.INTERRUPTED
            raise
        except BaseException as error:
            progress.state = states.STOPPED
            progress.reason = f"A bug in promptmill ({type(error).__name__}); please report it."
            raise
        finally:
            progress.activity = ""
            looking_after.cancel()
            await asyncio.wait({looking_after})
            await self._in_thread(self._close)
            self._report()
        return self.progress.as_dict()

    async def _until_stopped(self, working: asyncio.Task[None]) -> None:
        """Wait for the work. Raises `_JobStopped` if the run is ended early; the first reason counts."""
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError:
            if self._stopped is None:  # otherwise the run is already ending
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
        if self._stopped is None and self._working is not None:
            self._stopped = stopped
            self._working.cancel()

    async def _do(self, step: functools.partial[T]) -> T:
        if self._apart is not None:
            return await self._apart(step, self._job, self._long_work.note)
        return await self._in_thread(lambda: step(self._long_work, self._job.folder))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking work in a thread. If the run is cancelled, set `halt` and wait for the thread."""
        thread = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._long_work.halt.set()
            await asyncio.wait({thread})
            thread.cancelled() or thread.exception()  # retrieves the exception, so that asyncio logs none
            raise

    def leave(self) -> bool:
        """Let the run end as `interrupted` after the rows in flight. Return False if none are in flight."""
        if self.progress.state != states.RUNNING or not self.progress.stats.in_flight:
            return False
        self._leaves_as = _JobStopped(states.INTERRUPTED)
        self._show()
        return True

    def _end_without_room(self, error: PromptmillError) -> None:
        if self._leaves_as is None:
            self._leaves_as = _JobStopped(states.STOPPED, error)
            self._show()

    def _leaving(self) -> str:
        if self._leaves_as is None:
            return ""
        remaining = self.progress.stats.in_flight
        again = "; Ctrl-C again stops at once" if self._leaves_as.error is None else ", as the budget has no more room"
        return f"finishing {remaining} in flight{again}"

    def _close(self) -> None:
        job = self._job
        if self.error is not None and self.error.code is Code.STORAGE and job.folder.is_open:
            with contextlib.suppress(OSError, DamagedError):  # outcomes that were not written must not count
                self.progress.take(statistics.counts(job.folder.store, skips_empty=job.spec.question.skip_empty))
        if self.progress.state == states.FINISHED:
            with contextlib.suppress(
                OSError, DamagedError
            ):  # without this, the next run finds no rows for the last round
                rounds.end(job.folder.store)
                for way in rounds.awaited(job.folder.store).values():
                    way.forget(job.folder.store)
        self._keep({"status": self._before} if self._is_refused else self._status())
        with contextlib.suppress(OSError, DamagedError):
            if job.folder.is_open:  # a database that could not be repaired is not open
                job.folder.store.sync()
        with contextlib.suppress(OSError):
            job.folder.control.changed(cancel=False).write(job.folder.path)

    async def _work(self) -> None:
        try:
            await self._answer()
        except PromptmillError as error:
            gone = error.code in {Code.SHUTDOWN, Code.REPLACED}
            raise _JobStopped(states.INTERRUPTED if gone else states.STOPPED, error) from None
        except OSError as error:
            raise _JobStopped(states.STOPPED, disk.unusable(error, self._job.folder.path)) from None
        except DamagedError:  # the database cannot be repaired
            damaged = f"The job's database {self._job.folder.database} is damaged."
            raise _JobStopped(states.STOPPED, PromptmillError(Code.STORAGE, damaged, _AGAIN)) from None

    async def _answer(self) -> None:
        """Read the input, run the rounds, and write the output. If the database is damaged, repair it and repeat."""
        live = self._hooks.live
        is_read = False
        try:
            for _ in range(_TRIES):
                try:
                    if self._job.has_output:  # the last run ended before it stored its final status
                        await self._count_again()
                        return
                    if not is_read:
                        await self._read_input()
                        is_read = True
                    await self._rounds()
                    if await self._export():
                        if live is not None:
                            await self._in_thread(functools.partial(live.wait, self._long_work.halt))
                        return
                    await self._drop_damaged()
                except DamagedError:
                    await self._salvage()
                    is_read = False
            raise PromptmillError(Code.STORAGE, "The job's database is damaged again and again.")
        finally:
            if live is not None:
                live.stop()

    async def _count_again(self) -> None:
        """Count the outcomes of an earlier run that ended before it stored its final status."""
        spec, progress = self._job.spec, self.progress
        if spec.output.format:
            output.discard(spec.output.path, spec.job_id)
        await self._count(NEVER)
        progress.total = progress.counts.done
        progress.output.columns = spec.output.names or {}
        await self._in_thread(self._count_values)

    async def _salvage(self) -> None:
        """Repair the damaged database, and continue with its content. Lost rows are read from the input again."""
        job = self._job
        await self._in_thread(job.folder.salvage)
        job.put(job.folder.spec or job.spec.with_input(**UNREAD).with_output(names=None))
        job.input = self._given

    def _limit_rows(self) -> None:
        job = self._job
        self._end = output.end_of(job.folder.store, job.order.limits.rows)
        ((rows,),) = job.folder.store.read("SELECT count(*) FROM row WHERE n < ?", self._end)
        self.progress.total = rows * job.spec.delivered

    async def _read_input(self) -> None:
        job, progress = self._job, self.progress
        self._enter(states.STARTING, "reading the input")
        if job.folder.is_salvaged and _SALVAGED not in progress.notes:
            progress.notes.append(_SALVAGED)
        files = await self._in_thread(lambda: job.unread(self._long_work.halt))
        store = job.folder.store
        if files is None and job.order.earlier.from_job is not None:
            self._note_kept(await self._in_thread(lambda: job.change.rebind(store, job.spec, self._long_work)))
        if files is not None:
            if lost := store.in_flight.most:  # requests whose rows may have changed since
                progress.earlier.charge(lost)
                self._show()
            store.in_flight.clear()
            try:
                bound = await self._do(job.reading(files))
            except PromptmillError:
                # so the same command is refused again, and the previous command resumes the job
                job.folder.roll_back()
                self._is_refused = job.change.before is not None
                raise
            job.load()
            await self._in_thread(self._rebind_awaited)
            self._note_kept(bound)
        await self._check_secrets()
        if job.spec.output.format == "xlsx":
            await self._do(functools.partial(steps.check_output))
        progress.output.columns = job.spec.output.names or {}
        progress.notes += [note for each in job.order.parts.values() for note in each.notes]
        progress.notes += [note for note in columns.notes(job.spec) if note not in progress.notes]
        await self._in_thread(self._limit_rows)
        await self._in_thread(self._note_persons)
        if self._hooks.before_answers is not None:
            await self._hooks.before_answers()

    def _note_persons(self) -> None:
        """Count the labels of a person, because an order `again` does not replace them. Blocks."""
        store, order = self._job.folder.store, self._job.order
        if order.earlier.again is not None and (kept := store.count(f"settings = {PERSON}")):
            self.progress.notes.append(f"{counted(kept, 'label')} of a person stay as they are.")

    def _note_kept(self, bound: Bound) -> None:
        if (bound.answers or bound.kept) and self._job.order.earlier.again != "all":
            kept, of = f"{bound.kept:,}", counted(bound.rows, "row")
            are = "is" if bound.new == 1 else "are"
            # a limited part of the rows: no other row is sent
            new = f", {bound.new:,} {are} new" if self._job.order.limits.rows is None else ""
            self.progress.notes.append(f"{kept} of {of} keep their answers{new}.")

    async def _check_secrets(self) -> None:
        """Look for keys and passwords in a file of rows that a call named. The same content is checked only once."""
        job, content = self._job, {"sha256": self._job.spec.input.sha256}
        if not job.plan.file_rule.is_guarded or not job.spec.input.is_file:
            return
        if await self._in_thread(lambda: job.folder.store.get("secrets_checked")) != content:
            self._enter(states.STARTING, "looking for keys and passwords")
            await self._do(functools.partial(steps.check_secrets, rule=job.plan.file_rule))
            job.folder.put(secrets_checked=content)

    async def _rounds(self) -> None:
        job_rounds = JobRounds(self._job, self._duplicates(), self._end, self._long_work)
        is_counted = False
        while (round_ := await self._next(job_rounds)) is not None:
            try:
                await self._run_round(round_, job_rounds)
            except PromptmillError as error:
                if not await self._in_thread(functools.partial(self._goes_without, round_, error)):
                    raise
            is_counted = round_.way == "live"  # a live round counts each outcome itself
            if self._leaves_as is not None:
                raise self._leaves_as
        if not is_counted:
            await self._count(NEVER)

    async def _next(self, job_rounds: JobRounds) -> Round | None:
        """Return the next round; None at the end. Put the figures of the plan's decisions into the status."""
        try:
            return await self._in_thread(job_rounds.next)
        finally:
            self.progress.figures |= self._job.spec.plan.running_figures(self._job.spec)

    def _goes_without(self, round_: Round, error: PromptmillError) -> bool:
        """Try to drop a parameter that an endpoint has refused. Return whether the plan can work without it."""
        spec = self._job.spec
        targets = spec.plan.without(spec.targets, round_, error)
        if targets is not None:
            self._job.put(spec.model_copy(update={"targets": tuple(targets)}))
        return targets is not None

    def _rebind_awaited(self) -> None:
        store = self._job.folder.store  # reading the input may have replaced the database
        for way in rounds.awaited(store).values():
            way.rebind(store, self._job.spec.targets)

    def _duplicates(self) -> Duplicates | None:
        job = self._job
        if not job.order.limits.dedupe:
            return None
        requests = self._requests(job.spec.targets)

        def is_repeatable(n: int, slot: int) -> bool:
            try:
                (row,) = job.folder.store.row_page(n, n)
                request = requests[slot].request(n, row.line, row.cells or b"")
            except PromptmillError:
                return False
            # a temperature in the extra parameters overrides the target's
            return not request.path and request.extra.get("temperature", request.sampling.temperature) == 0

        return Duplicates(job.folder.store, job.spec, is_repeatable)

    async def _run_round(self, round_: Round, job_rounds: JobRounds) -> None:
        job, progress = self._job, self.progress
        store, stats, live = job.folder.store, progress.stats, self._hooks.live
        targets = await self._in_thread(lambda: job_rounds.targets(round_))
        await self._in_thread(lambda: progress.count(store, job_rounds.condition(round_), self._end))
        opens = job_rounds.open_in(round_)
        progress.round, self._takes_no_more = round_.reason, False
        stats.facts = replace(stats.facts, total=sum(opened.rows for opened in opens))
        progress.begin_rates()
        self._enter(states.RUNNING)
        if round_.way == "copy":
            soon = asyncio.get_running_loop().call_soon_threadsafe
            await self._in_thread(lambda: job_rounds.copy(round_, lambda keys: soon(self._recorded, keys)))
        else:
            self._limit_cost()
            stats.ledger.journal = store.in_flight
            if live is not None:
                live.begin(job.folder, job.spec, job_rounds.answered_in(round_), self._end, self._give_up)
            open_rows = OpenRows(
                store,
                round_,
                targets,
                self._requests(targets),
                range(min((one.first for one in opens if one.rows), default=0), max(one.last for one in opens) + 1),
                lambda: self._leaves_as is not None or self._takes_no_more,
                None if self._apart is None else _HELD_BYTES,
                job_rounds.between(round_, self._delivered_copies(asyncio.get_running_loop())),
                job_rounds.window,
                sharing=2 if registry.prompt_cache_of(job.plan) else 0,
            )

            def sink_of(kind: type[StoreSink], call: Call) -> StoreSink:
                is_live = round_.way == "live"  # a live round sends the failures of a batch again
                return kind(
                    store,
                    progress.counts,
                    call,
                    self._end_without_room,
                    failure_limit=job.order.limits.failures if is_live else None,
                    delivered=job.spec.delivered,
                    failing=len(job.spec.targets) if job.spec.plan.all_may_fail else job.spec.delivered,
                    made=[target.made(round_.id, round_.model) for target in targets],
                    recorded=self._recorded,
                )

            run = RoundRun(
                job,
                self.service,
                progress,
                open_rows,
                sink_of,
                is_cancelled=lambda: self._stopped is not None and self._stopped.state == states.CANCELLED,
                no_room=self._end_without_room,
                around=job_rounds.around,
            )
            await way_named(round_.way).run(run)

    def _delivered_copies(self, loop: asyncio.AbstractEventLoop) -> Callable[[Sequence[Record]], None]:
        """Return a function that a thread calls with the copies it delivers while a round runs."""

        def count(copies: Sequence[Record]) -> None:
            for copy in copies:
                self.progress.counts.count(copy.outcome())
            self._recorded([copy.key for copy in copies])

        def delivered(copies: Sequence[Record]) -> None:
            loop.call_soon_threadsafe(count, copies)

        return delivered

    def _recorded(self, keys: Sequence[int]) -> None:
        if self._hooks.live is not None:
            self._hooks.live.recorded(keys)
        if self._hooks.recorded is not None:
            self._hooks.recorded(keys)

    async def _count(self, is_open: str) -> None:
        """Count the records. Records that meet the condition `is_open` count as not done."""
        self._enter(self.progress.state, "counting the answers")
        store = self._job.folder.store
        await self._in_thread(lambda: self.progress.count(store, is_open, self._end))

    async def _drop_damaged(self) -> None:
        store = self._job.folder.store
        if damaged := await self._in_thread(store.drop_damaged):
            self.progress.notes.append(
                f"{damaged} damaged record(s) in the job's database are not trusted; their rows are sent again."
            )

    def _limit_cost(self) -> None:
        """Limit the call's budget to the unspent part of the job's budget."""
        job, stats, progress = self._job, self.progress.stats, self.progress
        limit = self._most_cost(job.folder.control)
        if limit is None or stats.ledger.budget is not None:
            return
        store = job.folder.store
        awaited = sum(way.most_cost(store) for way in rounds.awaited(store).values())
        stats.ledger.budget = Budget(limit, progress.cost or 0.0, store.in_flight.most + awaited)

    def _most_cost(self, control: Control) -> float | None:
        """Return the most that all runs of the job may spend; None: no limit."""
        job = self._job
        wanted = (control.max_cost, job.order.limits.max_cost, job.plan.operator.max_cost)
        limits = [
            *[most for most in wanted if most is not None][:1],
            *([] if job.most_cost is None else [job.most_cost]),
        ]
        return min(limits, default=None)

    def _requests(self, targets: Sequence[Target]) -> list[RowRequests]:
        """Return the request makers of the targets, by slot. Raises `PromptmillError` (`replaced`)."""
        job, plan = self._job, self._job.plan
        if not plan.is_same_model(self.service.plan_of(plan.name)):
            raise PromptmillError(Code.REPLACED, "Another model was loaded before the job began.")
        reader, offered = self._reader(plan), self.service.offered
        names = [name for name in self.service.usable if name in offered]
        if len(names) > 1:
            reader = replace(reader, models={name: self._reader(self._plan_of(name)) for name in names})
        return list(requests_of(job.spec, reader, targets))

    def _plan_of(self, name: str) -> ResolvedConfig:
        """Return the plan of another model of this job, with the job's sampling."""
        return self.service.plan_of(name).with_sampling(self._job.order.sampling).capped

    def _reader(self, plan: ResolvedConfig) -> RowReader:
        job, spec = self._job, self._job.spec
        return reader_of(
            plan,
            spec,
            job.order.system_prompt,
            may_name=self.service.row_models(plan),
            most_values=None if self._apart is None else MOST_VALUES,
        )

    async def _export(self) -> bool:
        """Write the output and rename it. Return False if a row has no intact answer.

        If an error is raised, no temporary file remains.
        """
        self.progress.output.written = 0  # steps before this one count their rows, too
        self._enter(states.MERGING, "writing the output")
        job, spec, folder = self._job, self._job.spec, self._job.folder
        limit = job.order.limits.rows
        if not spec.output.format:
            ((unanswered,),) = await self._in_thread(lambda: folder.store.read(_UNANSWERED, self._end))
            if unanswered:
                return False
            folder.put(output=OutputRecord(size=0, mtime_ns=0, limit=limit))
        else:
            there = await self._in_thread(lambda: members.stamp(spec.output.path))
            try:
                written = await self._do(functools.partial(steps.export, limit=limit))
            except UnansweredError:
                return False
            except BaseException:  # the run may be stopped after the file was written
                output.discard(spec.output.path, spec.job_id)
                raise
            if written.warning:
                self.progress.notes.append(written.warning)
            overwrite = job.order.earlier.overwrite
            await self._in_thread(lambda: steps.publish(folder, written, there, limit, overwrite=overwrite))
        self.progress.take(await self._in_thread(self._final_counts), has_ended=True)
        self.progress.earlier.lost = folder.store.in_flight.requests_lost
        return True

    def _final_counts(self) -> JobCounts:
        self._count_values()
        skips_empty = self._job.spec.question.skip_empty
        return statistics.counts(self._job.folder.store, before=self._end, skips_empty=skips_empty)

    def _count_values(self) -> None:
        store, spec = self._job.folder.store, self._job.spec
        self.progress.figures = status.figures_of(store, spec, self._end) | ways.figures(store, self._job.plan)
        self.progress.figures["cache_saved"] = round(saved(store, self._job.plan), 6)

    def _give_up(self, error: PromptmillError) -> None:
        self._stop(_JobStopped(states.STOPPED, error))

    async def _look_after(self) -> None:
        """Show the progress, and obey commands of other processes, until cancelled."""
        shown = 0.0
        while True:
            self._follow(self._job.folder.control)
            if time.monotonic() - shown >= _STATUS_S:
                shown = time.monotonic()
                self.progress.sample()
                # in a thread, because a large commit of answers may lock the database
                fields = self._status()
                entered = self.progress.state, self.progress.activity
                await self._in_thread(functools.partial(self._keep, fields))
                if entered != (
                    self.progress.state,
                    self.progress.activity,
                ):  # another status was stored meanwhile; it may be older
                    self._keep(self._status())
            self._report()
            await asyncio.sleep(_LOOK_S)

    def _follow(self, control: Control) -> None:
        if control.cancel:
            self._stop(_JobStopped(states.CANCELLED))
        stats, limit = self.progress.stats, self._most_cost(control)
        if control.concurrency is not None:
            self.service.widen(self._job.plan, control.concurrency)
        if limit is not None:
            self._set_limit(limit)
        if stats.waits.most != control.most:
            stats.waits.most = control.most
            stats.waits.freed()

    def _set_limit(self, limit: float) -> None:
        budget, progress = self.progress.stats.ledger.budget, self.progress
        if budget is not None:
            budget.limit = limit
        elif progress.state == states.RUNNING and progress.stats.in_flight:
            if progress.cost is not None and self._job.plan.settings.sampling_params.max_tokens is not None:
                self._takes_no_more = True  # the requests in flight have no reserved budget
            elif _NO_BUDGET not in progress.notes:
                progress.notes.append(_NO_BUDGET)

    def _enter(self, state: str, activity: str = "") -> None:
        self.progress.state, self.progress.activity = state, activity
        self._show()

    def _show(self) -> None:
        self._keep(self._status())
        self._report()

    def _status(self) -> dict[str, Mapping[str, object]]:
        """Update the progress. Return the job's `status` and, if a new sample was taken, the `course`."""
        progress = self.progress
        if not self._job.folder.is_open:
            return {}
        in_flight, budget = self._job.folder.store.in_flight, progress.stats.ledger.budget
        is_running = progress.state == states.RUNNING
        if is_running:
            progress.activity = self._leaving() or ("" if progress.stats.counts.done else self.service.activity)
        progress.earlier.set_aside = budget.set_aside if budget is not None and is_running else in_flight.most
        job_status = progress.as_dict()
        if self.error is not None:
            job_status["code"] = self.error.code
        return {"status": job_status, **({"course": self._course.as_dict()} if self._course.note(job_status) else {})}

    def _keep(self, values: Mapping[str, Mapping[str, object]]) -> None:
        if values and self._job.folder.is_open:
            with contextlib.suppress(OSError, DamagedError):  # the next write of answers reports the error more clearly
                self._job.folder.put(**values)

    def _report(self) -> None:
        if self._hooks.watch:
            with contextlib.suppress(OSError):  # a closed terminal must not end a job
                self._hooks.watch(self.progress)


async def until_ended(runner: Runner) -> tuple[RunStatus, PromptmillError | None, bool]:
    """Run a job until its end, SIGTERM or Ctrl-C. Return its status, its error, and whether a signal ended it.

    The process runs only this job, and observers follow it. After the first Ctrl-C, the requests in flight, which are
    paid anyway, have a minute to end. Raises `KeyboardInterrupt` after Ctrl-C.
    """
    stay_responsive()
    loop = asyncio.get_running_loop()
    signals: list[int] = []
    async with exported(runner.service):
        work = asyncio.ensure_future(runner.run())

        def on_signal(number: int) -> None:
            signals.append(number)
            if signals == [signal.SIGINT] and runner.leave():
                loop.call_later(_LEAVING_S, work.cancel)
            else:
                work.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows does not support this
                loop.add_signal_handler(number, on_signal, number)
        try:
            job_status = await work
        except asyncio.CancelledError:
            if not signals:
                raise
            job_status = runner.progress.as_dict()
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    return job_status, runner.error, bool(signals)
