"""Runs a job in this process: reads its input, runs its rounds, and writes its output."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Facts
from promptmill.backends.questions import RowRequests
from promptmill.backends.rows import RowReader
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.bounds import MOST_VALUES
from promptmill.core.errors import Code, Named, PromptmillError
from promptmill.core.money import Budget
from promptmill.core.wording import counted
from promptmill.jobs import columns, disk, members
from promptmill.jobs.export import output
from promptmill.jobs.export.answered import UnansweredError
from promptmill.jobs.run import steps, ways
from promptmill.jobs.run.job import NO_HOOKS, Apart, Hooks, Job
from promptmill.jobs.run.job_rounds import JobRounds, reader_of, requests_of
from promptmill.jobs.run.live import OpenRows, StoreSink
from promptmill.jobs.run.row_check import RowCheck
from promptmill.jobs.run.ways import RoundRun, way_named
from promptmill.jobs.store import progress as states
from promptmill.jobs.store import rounds, statistics, status
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.database import DamagedError, Work
from promptmill.jobs.store.progress import Progress, StatusWriter
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import NEVER, Round
from promptmill.jobs.store.spec import UNREAD, OutputRecord
from promptmill.jobs.store.statistics import JobCounts
from promptmill.jobs.store.status_record import RunStatus
from promptmill.jobs.store.stored import Target
from promptmill.service import choosing
from promptmill.service.observers import exported
from promptmill.service.service import Service
from promptmill.system.runtime import stay_responsive

T = TypeVar("T")
_LOOK_S = 0.2
_HELD_BYTES = 64 << 20
_STATUS_S = 1.0
_UNANSWERED = "SELECT EXISTS (SELECT 1 FROM row LEFT JOIN answer ON key = n WHERE n < ? AND key IS NULL)"
_TRIES = 3  # times that a run repairs damaged records or a damaged database
_SALVAGED = "The job's database was damaged; rows whose answers were lost are sent again."
_NO_BUDGET = "`max_cost` has no effect on this run: it needs a known price and `max_tokens`."
# Enough to tell a limit that is too low from a few long answers, and few to pay for.
_FIRST_ANSWERS, _MANY_CUT = 50, 0.2
_LEAVING_S = 60.0  # the longest wait for the requests in flight, which are paid anyway
_DROPPED = " in flight ended with the job, and may be charged; when it is resumed, their rows are sent again."
_AGAIN = "Run the job again: its readable part is kept."


class _JobStopped(Exception):  # noqa: N818 (ends a run early; never leaves the runner)
    """Ends the run early. Its arguments: the job's new `state`, and the `error` if there is one."""

    def __init__(self, state: str, error: PromptmillError | None = None) -> None:
        super().__init__(state)
        self.state = state
        self.error = error


class _Ending:
    """The early end of a run: at once, or after the rows in flight. The first reason counts."""

    def __init__(self) -> None:
        self.stopped: _JobStopped | None = None
        """The end that has come; None if the run goes to its natural end."""
        self.after_flight: _JobStopped | None = None
        """The end of a run that takes no new rows and waits for the rows in flight."""
        self._working: asyncio.Task[None] | None = None

    def stop(self, stopped: _JobStopped) -> None:
        """End the run at once."""
        if self.stopped is None and self._working is not None:
            self.stopped = stopped
            self._working.cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether the user has cancelled the job."""
        return self.stopped is not None and self.stopped.state == states.CANCELLED

    async def until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of the run. Raises `_JobStopped` if the run is ended early."""
        working = self._working = asyncio.ensure_future(work)
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError:
            if self.stopped is None:  # not while the run is ending already
                working.cancel()
            await asyncio.wait({working})
            raise
        try:
            working.result()
        except BaseException as error:
            self.stopped = self.stopped or (error if isinstance(error, _JobStopped) else None)
            if self.stopped is None:
                raise
            raise self.stopped from None


class _CostLimit:
    """The most that all runs of a job may cost. It becomes the budget of each round, and may change meanwhile."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        self.awaits_budget = False
        """Whether the round takes no new rows, because it began without a budget. It is resumed with one."""

    def begin_round(self) -> None:
        """Limit the round's budget to the unspent part of the job's budget. Blocks."""
        self.awaits_budget = False
        ledger, folder = self._progress.stats.ledger, self._job.folder
        limit = self._most(folder.control)
        if limit is None or ledger.budget is not None:
            return
        awaited = sum(way.most_cost(folder.store) for way in rounds.awaited(folder.store).values())
        ledger.budget = Budget(limit, self._progress.cost or 0.0, folder.store.in_flight.most + awaited)

    def follow(self, control: Control) -> None:
        """Apply a limit that has changed."""
        limit, progress = self._most(control), self._progress
        if limit is None:
            return
        if (budget := progress.stats.ledger.budget) is not None:
            budget.limit = limit
        elif progress.state == states.RUNNING and progress.stats.in_flight:
            if progress.cost is not None and self._job.plan.settings.sampling_params.max_tokens is not None:
                self.awaits_budget = True  # the requests in flight have no reserved budget
            elif _NO_BUDGET not in progress.notes:
                progress.notes.append(_NO_BUDGET)

    def _most(self, control: Control) -> float | None:
        job = self._job
        wanted = (control.max_cost, job.order.limits.max_cost, job.plan.operator.max_cost)
        limits = [*[most for most in wanted if most is not None][:1], job.most_cost]
        return min((most for most in limits if most is not None), default=None)


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
        leaving_s: float = _LEAVING_S,
    ) -> None:
        """`stats` counts the costs of this run. `apart` runs the steps that read the input and write the output in a
        child process. `leaving_s`: the longest time that an ended run waits for its requests in flight.

        Needs a running event loop.
        """
        self._job = job
        self.service = service
        self._hooks = hooks
        self._apart = apart
        self._given = None if job.spec.input.is_file else job.input
        self._end = SLOT
        """The number of the first row beyond the order's limit."""
        self.progress = Progress(JobCounts(), Call(Facts(of_job=True)) if stats is None else stats, job.folder.status)
        self.progress.counts.skips_empty = job.spec.question.skip_empty
        self._long_work = Work(self.progress.pass_row)
        self._status = StatusWriter(self.progress, job.folder, hooks.watch, self._activity)
        self._cost_limit = _CostLimit(job, self.progress)
        self._ending = _Ending()
        self._leaving_s = leaving_s
        self._leaving: asyncio.TimerHandle | None = None
        """Ends the wait for the requests in flight."""
        self._has_judged = False
        """Whether the first answers have been searched for cut ones."""

    async def run(self) -> RunStatus:
        """Run until the output is written or the run is stopped; return the final status.

        Its `state` is `finished`; `stopped` (`progress.error` is the cause); `cancelled`; or `interrupted` if the
        service or this task ends. In all cases, the answers are kept and the job can be resumed.
        """
        progress = self.progress
        looking_after = asyncio.ensure_future(self._look_after())
        try:
            await self._ending.until_stopped(self._work())
            progress.state = states.FINISHED
        except _JobStopped as ended:
            progress.state, progress.error = ended.state, ended.error
        except asyncio.CancelledError:
            progress.state = states.INTERRUPTED
            progress.error = None if self._ending.stopped is None else self._ending.stopped.error
            raise
        except BaseException as error:
            bug = f"A bug in promptmill ({type(error).__name__}); please report it."
            progress.state, progress.error = states.STOPPED, PromptmillError(Code.INTERNAL, bug, "")
            raise
        finally:
            progress.activity = ""
            if self._leaving is not None:
                self._leaving.cancel()
            looking_after.cancel()
            await asyncio.wait({looking_after})
            await self._in_thread(self._close)
            self._status.report()
        return self.progress.as_dict()

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

    def leave(self, state: str = states.INTERRUPTED) -> bool:
        """End the run in `state` after its rows in flight. If there are none, do nothing; return False."""
        if self.progress.state != states.RUNNING or not self.progress.stats.in_flight:
            return False
        if self._leaving is None:
            self._end_after_flight(stopped := _JobStopped(state))
            self._leaving = asyncio.get_running_loop().call_later(self._leaving_s, self._leave_flight, stopped)
        return True

    def _leave_flight(self, stopped: _JobStopped) -> None:
        """End the run without its requests in flight."""
        notes, in_flight = self.progress.notes, self.progress.stats.in_flight
        if in_flight and not any(_DROPPED in note for note in notes):
            notes.append(f"{counted(in_flight, 'request')}{_DROPPED}")
        self._ending.stop(stopped)

    def _end_without_room(self, error: PromptmillError) -> None:
        if self._ending.after_flight is None:
            self._end_after_flight(_JobStopped(states.STOPPED, error))

    def _end_after_flight(self, stopped: _JobStopped) -> None:
        self._ending.after_flight = stopped
        self._status.show()

    def _activity(self) -> str:
        """Return the activity of a running job."""
        if (stopped := self._ending.after_flight) is not None:
            again = {
                states.INTERRUPTED: "; Ctrl-C again stops at once",
                states.CANCELLED: "; a second cancel ends them at once",
                states.STOPPED: ", as the budget has no more room",
            }[stopped.state]
            return f"finishing {self.progress.stats.in_flight} in flight{again}"
        return "" if self.progress.stats.counts.done else self.service.activity

    def _close(self) -> None:
        job = self._job
        error = self.progress.error
        if error is not None and error.code is Code.STORAGE and job.folder.is_open:
            with contextlib.suppress(OSError, DamagedError):  # outcomes that were not written do not count
                self.progress.take(statistics.counts(job.folder.store, skips_empty=job.spec.question.skip_empty))
                if lost := job.folder.store.in_flight.rows:
                    self.progress.notes.append(
                        f"{counted(lost, 'row')} had a request whose answer could not be stored. What they cost "
                        "is paid, their answers are lost, and the next run sends the rows again."
                    )
        if self.progress.state == states.FINISHED:
            with contextlib.suppress(OSError, DamagedError):  # the next run then finds no rows for the last round
                rounds.end(job.folder.store)
                for way in rounds.awaited(job.folder.store).values():
                    way.forget(job.folder.store)
        self._status.store()
        with contextlib.suppress(OSError, DamagedError):
            if job.folder.is_open:  # not if it could not be repaired
                job.folder.store.sync()
        with contextlib.suppress(OSError):
            job.folder.control.changed(cancel=False, at_once=False).write(job.folder.path)

    async def _work(self) -> None:
        try:
            await self._answer()
        except PromptmillError as error:
            gone = error.code in {Code.SHUTDOWN, Code.REPLACED}
            raise _JobStopped(states.INTERRUPTED if gone else states.STOPPED, await self._with_models(error)) from None
        except OSError as error:
            raise _JobStopped(states.STOPPED, disk.unusable(error, self._job.folder.path)) from None
        except DamagedError:  # beyond repair
            damaged = f"The job's database {self._job.folder.database} is damaged."
            raise _JobStopped(states.STOPPED, PromptmillError(Code.STORAGE, damaged, _AGAIN)) from None

    async def _with_models(self, error: PromptmillError) -> PromptmillError:
        """Return an error; if the endpoint lacks a model of the job, with the models that it has."""
        plan = self._job.plan
        asked = [target.model or plan.model for target in self._job.spec.targets]
        named = [model for model in asked if model not in plan.settings.models]
        if not named or not (meant := await choosing.meant_model(plan, error, "\0", named)):
            return error
        text = meant.replace("{", "{{").replace("}", "}}").replace("\0", "{}")
        return PromptmillError(error.code, error.message, [Named("model", "NAME", f"{text[0].upper()}{text[1:]}")])

    async def _answer(self) -> None:
        """Read the input, run the rounds, and write the output. If the database is damaged, repair it and repeat."""
        live = self._hooks.live
        is_read, damaged = False, 0
        try:
            for _ in range(_TRIES):
                try:
                    if self._job.has_output:  # the last run wrote the output, but did not store its final status
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
                    damaged += await self._drop_damaged()
                except DamagedError:
                    damaged += 1
                    await self._salvage()
                    is_read = False
            if not damaged:
                raise RuntimeError(f"the plan {', '.join(self._job.spec.parts)} leaves rows open")
            raise PromptmillError(Code.STORAGE, "The job's database is damaged again and again.")
        finally:
            if live is not None:
                live.stop()

    async def _count_again(self) -> None:
        """Count the outcomes of an earlier run that ended before it stored its final status."""
        spec, progress = self._job.spec, self.progress
        if spec.output.format:
            output.discard(spec.output.path, spec.job_id)
        await self._count()
        progress.total = progress.counts.done
        await self._in_thread(self._count_values)

    async def _salvage(self) -> None:
        """Repair the damaged database, and continue with its content. Lost rows are read from the input again."""
        job = self._job
        await self._in_thread(job.folder.salvage)
        job.put(job.folder.spec or job.spec.with_input(**UNREAD).with_output(names=None))
        job.input = self._given

    def _limit_rows(self) -> None:
        job = self._job
        self._end = output.end_of(job.folder.store, job.order.limits.limit)
        ((rows,),) = job.folder.store.read("SELECT count(*) FROM row WHERE n < ?", self._end)
        self.progress.total = rows * job.spec.delivered

    async def _read_input(self) -> None:
        job, progress = self._job, self.progress
        self._status.enter(states.STARTING, "reading the input")
        if job.folder.is_salvaged and _SALVAGED not in progress.notes:
            progress.notes.append(_SALVAGED)
        files = await self._in_thread(lambda: job.unread(self._long_work.halt))
        store = job.folder.store
        if files is None and job.order.earlier.from_job is not None:
            self._note_kept(await self._in_thread(lambda: job.change.rebind(store, job.spec, self._long_work)))
        if files is not None:
            if lost := store.in_flight.most:  # paid requests whose rows may have changed since
                progress.earlier.charge(lost)
                self._status.show()
            store.in_flight.clear()
            try:
                bound = await self._do(job.reading(files))
            except PromptmillError:
                # undone: the same command is refused again, and the previous one resumes the job
                job.folder.roll_back()
                self._status.is_refused = job.change.before is not None
                raise
            job.spec = job.folder.known_spec()
            await self._in_thread(self._rebind_awaited)
            self._note_kept(bound)
        await self._check_secrets()
        if job.spec.output.kind.has_sheets:
            await self._do(functools.partial(steps.check_output))
        progress.figures["columns"] = job.spec.output.names or {}
        progress.notes += [note for each in job.order.parts.values() for note in each.notes]
        progress.notes += [note for note in columns.notes(job.spec) if note not in progress.notes]
        await self._in_thread(self._limit_rows)
        await self._in_thread(self._note_persons)
        if (most := job.folder.control.concurrency) is not None:
            progress.notes.append(
                f"At most {counted(most, 'request')} in flight: an earlier run was set to `concurrency={most}`, which "
                "stays until the job is set to another."
            )
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
            # not with a limit, which does not send all new rows
            new = f", {bound.new:,} {are} new" if self._job.order.limits.limit is None else ""
            self.progress.notes.append(f"{kept} of {of} keep their answers{new}.")

    async def _check_secrets(self) -> None:
        """Look for keys and passwords in a file of rows that a call named. The same content is checked only once."""
        job, content = self._job, {"sha256": self._job.spec.input.sha256}
        if not job.plan.file_rule.is_guarded or not job.spec.input.is_file:
            return
        if await self._in_thread(lambda: job.folder.store.get("secrets_checked")) != content:
            self._status.enter(states.STARTING, "looking for keys and passwords")
            await self._do(functools.partial(steps.check_secrets, rule=job.plan.file_rule))
            job.folder.put(secrets_checked=content)

    async def _rounds(self) -> None:
        job_rounds = JobRounds(self._job, self._end, self._long_work, self._show)
        is_counted = False
        while (round_ := await self._next(job_rounds)) is not None:
            try:
                await self._run_round(round_, job_rounds)
            except PromptmillError as error:
                if not await self._in_thread(functools.partial(self._continues_without, round_, error)):
                    raise
            is_counted = round_.way == "live"  # a live round counts its outcomes itself
            if self._ending.after_flight is not None:
                raise self._ending.after_flight
        if not is_counted:
            await self._count()

    async def _next(self, job_rounds: JobRounds) -> Round | None:
        """Return the next round; None at the end."""
        return await self._in_thread(job_rounds.next)

    def _show(self, figures: Mapping[str, object]) -> None:
        """Put figures into the status. A new object, because this runs in a thread."""
        self.progress.figures = {**self.progress.figures, **figures}

    def _continues_without(self, round_: Round, error: PromptmillError) -> bool:
        """Try to drop a parameter that an endpoint has refused. Return whether the plan can work without it."""
        spec = self._job.spec
        targets = spec.plan.without(spec.targets, round_, error)
        if targets is not None:
            self._job.put(spec.model_copy(update={"targets": tuple(targets)}))
        return targets is not None

    def _rebind_awaited(self) -> None:
        store = self._job.folder.store  # read again, because reading the input may have replaced it
        for way in rounds.awaited(store).values():
            way.rebind(store, self._job.spec.targets)

    async def _run_round(self, round_: Round, job_rounds: JobRounds) -> None:
        job, progress = self._job, self.progress
        store, stats, live = job.folder.store, progress.stats, self._hooks.live
        targets = await self._in_thread(lambda: job_rounds.targets(round_))
        await self._in_thread(lambda: progress.count(store, job_rounds.condition(round_), self._end))
        progress.round = round_.reason
        stats.facts = replace(stats.facts, total=sum(opened.rows for opened in job_rounds.open_in(round_)))
        progress.begin_rates()
        self._status.enter(states.RUNNING)
        if round_.way == "copy":
            soon = asyncio.get_running_loop().call_soon_threadsafe
            await self._in_thread(lambda: job_rounds.copy(round_, lambda keys: soon(self._recorded, keys)))
            return
        self._cost_limit.begin_round()
        stats.ledger.journal = store.in_flight
        if live is not None:
            live.begin(job.folder, job.spec, job_rounds.answered_in(round_), self._end, self._give_up)
        run = RoundRun(
            job,
            self.service,
            progress,
            self._open_rows(round_, job_rounds, targets),
            functools.partial(self._sink, round_, job_rounds, targets),
            is_cancelled=lambda: self._ending.is_cancelled,
            no_room=self._end_without_room,
            steps=job_rounds.steps,
        )
        await way_named(round_.way).run(run)

    def _open_rows(self, round_: Round, job_rounds: JobRounds, targets: Sequence[Target]) -> OpenRows:
        opens, soon = job_rounds.open_in(round_), asyncio.get_running_loop().call_soon_threadsafe
        return OpenRows(
            self._job.folder.store,
            round_,
            targets,
            self._requests(targets),
            range(min((one.first for one in opens if one.rows), default=0), max(one.last for one in opens) + 1),
            lambda: self._ending.after_flight is not None or self._cost_limit.awaits_budget,
            None if self._apart is None else _HELD_BYTES,
            job_rounds.between(round_, lambda copies: soon(self._count_copies, copies)),
            job_rounds.work.window,
            sharing=2 if registry.prompt_cache_of(self._job.plan) else 0,
            sends_once=self._job.order.limits.dedupe,
            checks=() if self._hooks.check is None else (RowCheck(self._job.folder.store, self._hooks.check),),
        )

    def _sink(
        self, round_: Round, job_rounds: JobRounds, targets: Sequence[Target], kind: type[StoreSink], call: Call
    ) -> StoreSink:
        job, spec = self._job, self._job.spec

        def recorded(keys: Sequence[int]) -> None:
            job_rounds.recorded(keys)
            self._recorded(keys)

        is_live = round_.way == "live"  # a live round sends a batch's failures again
        return kind(
            job.folder.store,
            self.progress.counts,
            call,
            self._end_without_room,
            failure_limit=job.order.limits.failures if is_live else None,
            delivered=spec.delivered,
            failing=len(spec.targets) if spec.plan.all_may_fail else spec.delivered,
            made=[target.made(round_.id, round_.model) for target in targets],
            recorded=recorded,
        )

    def _count_copies(self, copies: Sequence[Record]) -> None:
        for copy in copies:
            self.progress.counts.count(copy.outcome())
        self._recorded([copy.key for copy in copies])

    def _recorded(self, keys: Sequence[int]) -> None:
        if not self._has_judged and (counts := self.progress.stats.counts).done >= _FIRST_ANSWERS:
            self._has_judged = True
            wordless = counts.codes[Code.TRUNCATED]
            if (cut := counts.truncated + wordless) > _MANY_CUT * counts.done:
                which = "all" if wordless == cut else f"{wordless:,} of them"
                before = f", {which} before the first word" if wordless else ""
                self.progress.stats.warn(
                    f"{cut:,} of the first {counts.done:,} answers were cut by `max_tokens` or the model's own "
                    f"limit{before}, and are paid. Stop the job, and send them again with more room: `max_tokens: "
                    '4096` and `again: "truncated"`.'
                )
        if self._hooks.recorded is not None:
            self._hooks.recorded(keys)

    async def _count(self) -> None:
        self._status.enter(self.progress.state, "counting the answers")
        await self._in_thread(lambda: self.progress.count(self._job.folder.store, NEVER, self._end))

    async def _drop_damaged(self) -> int:
        """Delete damaged records, whose rows are sent again. Return their number."""
        store = self._job.folder.store
        if damaged := await self._in_thread(store.drop_damaged):
            self.progress.notes.append(
                f"{damaged} damaged record(s) in the job's database are not trusted; their rows are sent again."
            )
        return damaged

    def _requests(self, targets: Sequence[Target]) -> list[RowRequests]:
        """Return the request makers of the targets, by slot. Raises `PromptmillError` (`replaced`)."""
        job, plan = self._job, self._job.plan
        if not plan.is_same_model(self.service.plan_of(plan.name)):
            raise PromptmillError(Code.REPLACED, "Another model was loaded before the job began.")
        reader, plans = self._reader(plan), self._plans()
        if len(plans) > 1:
            reader = replace(reader, models={name: self._reader(plan) for name, plan in plans.items()})
        return list(requests_of(job.spec, reader, targets))

    def _plans(self) -> dict[str, ResolvedConfig]:
        """Return the plans of the models that the job may name."""
        service, sampling, offered = self.service, self._job.order.sampling, self.service.offered
        names = [name for name in service.usable if name in offered]
        return {name: service.plan_of(name).with_sampling(sampling).capped for name in names}

    def _configs(self) -> list[ResolvedConfig]:
        """Return the plan of the model of each slot."""
        own, plans = self._job.plan, self._plans()
        names = [target.model for target in self._job.spec.targets]
        return [plans.get(name) or (own.with_model(name) if name else own) for name in names]

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
        self.progress.written = 0  # the steps before this one also count rows
        self._status.enter(states.MERGING, "writing the output")
        job, spec, folder = self._job, self._job.spec, self._job.folder
        limit = job.order.limits.limit
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
            except BaseException:  # also a cancellation, which may come after the file was written
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
        own = {"columns": spec.output.names or {}} | ways.figures(store, self._configs())
        self.progress.figures = status.figures_of(store, spec, self._end) | own

    def _give_up(self, error: PromptmillError) -> None:
        self._ending.stop(_JobStopped(states.STOPPED, error))

    async def _look_after(self) -> None:
        """Show the progress, and obey commands of other processes, until cancelled."""
        stored = 0.0
        while True:
            self._follow(self._job.folder.control)
            if time.monotonic() - stored >= _STATUS_S:
                stored = time.monotonic()
                self.progress.sample()
                # in a thread, because a large commit of answers may lock the database
                values, shown = self._status.values(), self._status.shown
                await self._in_thread(functools.partial(self._status.store, values))
                if shown != self._status.shown:  # the state has changed since; the stored status may be older
                    self._status.store()
            self._status.report()
            await asyncio.sleep(_LOOK_S)

    def _follow(self, control: Control) -> None:
        if control.cancel and (control.at_once or not self.leave(states.CANCELLED)):
            self._leave_flight(_JobStopped(states.CANCELLED))
        stopped = self._ending.after_flight
        if stopped is not None and self.progress.is_paused and not self.progress.stats.in_flight:
            self._ending.stop(stopped)  # a paused round does not end by itself
        if control.concurrency is not None:
            self.service.widen(self._job.plan, control.concurrency)
        self._cost_limit.follow(control)
        waits = self.progress.stats.waits
        if waits.most != control.most:
            waits.most = control.most
            waits.freed()


async def until_ended(job: Job, service: Service, hooks: Hooks) -> tuple[RunStatus, PromptmillError | None, bool]:
    """Run a job until its end, SIGTERM or Ctrl-C. Return its status, its error, and whether a signal ended it.

    The process runs only this job, and observers follow it. After the first Ctrl-C, the requests in flight have a
    minute to end. Raises `KeyboardInterrupt` after Ctrl-C.
    """
    stay_responsive()
    runner = Runner(job, service, hooks)
    signals: list[int] = []
    async with exported(service):
        work = asyncio.ensure_future(runner.run())

        def on_signal(number: int) -> None:
            signals.append(number)
            if signals != [signal.SIGINT] or not runner.leave():
                work.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows does not support this
                asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
        try:
            job_status = await work
        except asyncio.CancelledError:
            if not signals:
                raise
            job_status = runner.progress.as_dict()
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    return job_status, runner.progress.error, bool(signals)
