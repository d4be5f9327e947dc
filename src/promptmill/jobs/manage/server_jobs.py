"""The jobs that a server runs for its callers, in this process or in child processes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from promptmill.backends import registry
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_RUNNERS
from promptmill.core.errors import Code, PromptmillError, argument_name, input_error, worded
from promptmill.files import path_formats
from promptmill.files.files import InputFiles
from promptmill.jobs import door
from promptmill.jobs.caller import USER, Caller, CallModels
from promptmill.jobs.door import CallFiles, OpenJob, Rows, open_job, reopened
from promptmill.jobs.manage import child_step, prune
from promptmill.jobs.manage.call_limits import JobPlace, JobPlaces, Readers
from promptmill.jobs.manage.call_paths import CallPaths
from promptmill.jobs.manage.call_results import shown_results
from promptmill.jobs.manage.visible_jobs import VisibleJobs
from promptmill.jobs.run import detached
from promptmill.jobs.run.job import Hooks, Job
from promptmill.jobs.store import progress, rounds, statistics, status, status_words
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.status_record import Status
from promptmill.options.table import errors_about
from promptmill.service.service import Service
from promptmill.steps.prices import no_price_known
from promptmill.system.call_files import FileRule
from promptmill.system.subprocesses import Halt

T = TypeVar("T")
_WAIT_S = 1.0
Approve: TypeAlias = Callable[[float | None, float | None, float | None, Sequence[ModelConfig]], Awaitable[None]]
"""Called with a job's estimated cost, highest cost and sample cost (None: unknown). Raises to prevent the job."""


class ServerJobs:
    """The jobs that a server starts for its callers. Jobs that run in this process end with the service."""

    def __init__(self, service: Service, rule: Callable[[], FileRule]) -> None:
        """`rule` returns the rule for files that are read and written."""
        self._service = service
        self.folders, self.paths = JobFolders.from_environ(), CallPaths(rule)
        self.visible = VisibleJobs(self.folders, self.paths)
        self._here: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        """The tasks for those jobs of calls that wait for a place or are about to start, by job id."""
        self._readers = Readers()
        self._validating = asyncio.Semaphore(MOST_RUNNERS // 2)
        self._places = asyncio.Semaphore(MOST_RUNNERS // 2)
        self._apart = child_step.OtherProcess(self._places)
        self._runners = 0
        """The number of processes that run jobs for this process."""
        self.places = JobPlaces.of_process(is_shared=service.is_shared)

    def status(self, job_id: str | None, limit: int = 20, caller: Caller = USER) -> dict[str, Any]:
        """Return the status of a job, or of the newest jobs (`job_id` None): `{"jobs": […], "more": number of others}`.

        A job on rows that came in a call is listed only for the session of the call. A job that waits for a place has
        the state `starting`.
        """
        if job_id is None:
            return self.visible.newest(limit, caller)
        job_status: dict[str, Any] = {**status.read(self.visible.find(job_id, caller))}
        if "results" in job_status:
            job_status["results"] = shown_results(job_status["results"], self.paths.rule)
        return {**job_status, **({"state": progress.STARTING} if job_status["job_id"] in self._waiting else {})}

    @contextlib.asynccontextmanager
    async def opened(
        self, rows: Rows, output: str | Path | None, options: Mapping[str, Any], models: CallModels, caller: Caller
    ) -> AsyncGenerator[OpenJob]:
        """Yield the job of a call, which `open_job` opens in a thread. `CallPaths` has checked the call's paths.

        Calls with files take turns to read the files, see `Readers`. A cancelled call stops reading. Raises
        `PromptmillError`."""
        halt = Halt()
        door_ = open_job(replace(rows, halt=halt), output, options, models, self.folders, caller=caller)

        async def close() -> None:
            await asyncio.to_thread(door_.__exit__, None, None, None)

        async with self._readers.turn(caller.session) if isinstance(rows, CallFiles) else contextlib.nullcontext():
            opening = asyncio.ensure_future(asyncio.to_thread(door_.__enter__))
            try:
                job = await asyncio.shield(opening)
            except asyncio.CancelledError:
                halt.set()
                await asyncio.shield(_closed(opening, close))
                raise
        try:
            with errors_about(options):
                yield job
        finally:
            await close()

    async def start(
        self, opened: OpenJob, caller: Caller, approve: Approve | None = None, *, validate: bool = False
    ) -> dict[str, Any]:
        """Start or resume the job of a call, and return its status without waiting for its end.

        `approve` is called with the cost of the rows that have no answer yet. With `validate`, nothing is started, and
        the result of the validation is returned.

        With the openai backend, the job runs in a child process; otherwise, it runs on this server's engine. Raises
        `PromptmillError` (`invalid_input`) if `admission` refuses the order.
        """
        order, source = opened.order, opened.source
        if opened.loose is not None:
            self.visible.add(opened.loose.job_id, caller)
        running = await asyncio.to_thread(self._running, order)
        if running is not None:
            return dict(running)
        if validate or approve is not None:
            async with self._validating:
                checked = await child_step.validated(opened)
            others = [self._service.config_of(name) for name in checked.pop("row_models", ())]
            if validate:
                message = " ".join([*registry.ends_soon(opened.asked), "Nothing was sent and no job was made."])
                if names := checked.pop("unpriced"):
                    price = worded(no_price_known(opened.config, names), argument_name)
                    message += f" {price[0].upper()}{price[1:]}."
                return {"job_id": "", "state": "validated", "message": message} | checked
            assert approve is not None
            await self._approved(approve, order, checked, others)
        job = await opened.admitted(are_columns_checked=source is None and await self._are_columns_checked(opened))
        with contextlib.ExitStack() as held:
            held.callback(job.close)
            if job.finished:
                job.close()
                return dict(self._status_of(job, "The job is finished already."))
            # the input is read now, because a call's rows and query are not kept after the call
            is_of_call = source is not None or (order.reading.sql is not None and job.change.before is None)
            if is_of_call or job.change.before is not None:
                unread = await asyncio.to_thread(job.unread)
                if unread is not None:
                    await self._read(job, unread, is_trial=not is_of_call)
            held.pop_all()
        await self._launch(job)
        ends = registry.ends_soon(opened.asked)
        return dict(self._status_of(job, " ".join([*ends, "bulk_status reports its progress."])))

    async def _read(self, job: Job, files: InputFiles, *, is_trial: bool) -> None:
        """Read the input of a job. `is_trial`: only check whether the input would be refused, and change nothing.

        Raises `PromptmillError` (`invalid_input`). In this case, an existing job stays unchanged; a new one is removed.
        """
        try:
            step: partial[Any] = job.trial(files) if is_trial else job.reading(files)
            await self._apart(step, job, lambda _: None)
            if not is_trial:
                job.spec = job.folder.known_spec()
        except BaseException:
            if job.change.before is None and rounds.is_empty(job.folder.store):
                prune.forget(job.folder, self.folders)
            else:
                job.folder.roll_back()
            raise

    def _running(self, order: JobOrder) -> Status | None:
        """If a process runs the job of `order` with an equal order, return the job's status; else None. Blocks."""
        folder = self.folders.of(order.target)
        if order != folder.order:  # a stored order lacks `earlier`, so it never equals an order with `earlier.again`
            return None
        now = status.read(folder)
        if not now["alive"] or now["state"] not in progress.ALIVE:  # the job has ended; its runner may be about to exit
            return None
        return {"job_id": folder.job_id, "message": "The job is running already."} | now

    def _status_of(self, job: Job, message: str) -> Status:
        return {"job_id": job.spec.job_id, "message": message} | status.read(job.folder)

    async def _approved(
        self, approve: Approve, order: JobOrder, checked: Mapping[str, Any], others: Sequence[ModelConfig]
    ) -> None:
        """Call `approve` with the costs (None: unknown): the estimated and the highest cost of the rows without an
        answer of an earlier job of these files, and the cost of the sample, if one will be drawn. `others`: the models
        that rows name."""
        estimated, most, left = checked.get("estimated_cost"), checked.get("most_cost"), 1.0
        sample = checked.get("first_cost")
        if order.earlier.again != "all":
            folder = self.folders.of(order.target)
            job_status = await asyncio.to_thread(lambda: folder.status)
            answered: int = job_status.get("done", 0) - job_status.get("failed", 0)
            wanted = checked["rows"] * (1 if order.plan.chooses else max(1, len(order.variants)))
            left = max(0, wanted - answered) / max(1, wanted)
            sample = None if answered > 0 else sample
        if left:
            estimated, most = (None if cost is None else cost * left for cost in (estimated, most))
            await approve(estimated, most, sample, others)

    async def resume(self, job_id: str, config: ModelConfig, caller: Caller) -> None:
        """Resume the job of a call with its last order and the `config` of its model, or let it wait for a place.

        If the job's runs die repeatedly without a new answer, the job is stopped instead. Raises `PromptmillError`: as
        `start` does, if another process runs the job, or if too many jobs are in progress (`rate_limited`).
        """
        if job_id not in self._here and job_id not in self._waiting:
            place = self.places.take(caller.session)
            resuming = self.run_later(job_id, config, place)
            if place.entry.is_set():
                await asyncio.shield(resuming)

    async def resume_call(self, job_id: str, caller: Caller) -> Status:
        """Resume the job of a call; return its status. Raises `PromptmillError` like `resume`."""
        folder, spec = self.visible.found(job_id, caller)
        if not spec.of_call:
            raise input_error(f"Job {job_id} is not the job of a call; call bulk_generate as before to resume it.")
        note = folder.task or {}
        config = self._service.offered_config(note["model"]) if "model" in note else self._service.config
        await self.resume(spec.job_id, config, caller)
        return status.read(folder)

    def run_later(self, job_id: str, config: ModelConfig, place: JobPlace) -> asyncio.Task[None]:
        """Run a call's job when it gets its place; until then, its files are closed. Return the task that does this."""
        waiting = self._waiting[job_id] = asyncio.ensure_future(self._run_in(place, job_id, config))

        def ended(_: asyncio.Task[None]) -> None:
            del self._waiting[job_id]
            if waiting.cancelled():  # the task was cancelled before it started
                place.leave()
            _report(job_id, waiting)

        waiting.add_done_callback(ended)
        self._show(job_id)
        return waiting

    async def _run_in(self, place: JobPlace, job_id: str, config: ModelConfig) -> None:
        with contextlib.ExitStack() as held:
            held.callback(place.leave)
            await place.entry.wait()
            if self._service.state == "closed":
                return
            folder = self.folders.find(job_id)
            if folder.order is None:
                raise input_error(f"Job {job_id} has no order to resume.")
            models = CallModels(await self._service.resolved_config(config))
            job = await reopened(folder, models, self.folders, is_of_call=True).admitted()
            held.callback(job.close)
            if not job.finished and not await asyncio.to_thread(_dies_again, job):
                held.pop_all()
                await self._launch(job, place)

    async def _launch(self, job: Job, place: JobPlace | None = None) -> None:
        """Run an admitted job: in this process if it comes from a call or needs the engine; else in a child process."""
        with contextlib.ExitStack() as held:
            held.callback(job.close)
            if place is None and job.config.record.is_engine:
                place = self.places.take("")
            if place is not None:
                held.callback(place.leave)
            if not (self._runners < MOST_RUNNERS if place is None else place.entry.is_set()):
                raise PromptmillError(
                    Code.RATE_LIMITED,
                    "This server runs as many jobs as it can at a time.",
                    "Start this one when one of them has ended.",
                )
            status.write_starting(job.folder)
            held.pop_all()
        if place is not None:
            self.run_here(job, place)
        else:
            await self._run_apart(job)

    async def _run_apart(self, job: Job) -> None:
        """Run an admitted job in a child process. Return when the process has started."""
        self._runners += 1
        with contextlib.ExitStack() as held:
            held.callback(job.close)
            held.callback(self._runner_ended)
            charge = await self._budgeted(job)
            held.pop_all()
        loop = asyncio.get_running_loop()

        def ended() -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended, and its event loop is closed
                loop.call_soon_threadsafe(self._runner_ended)
            charge()

        start = partial(detached.start, is_shared=self._service.is_shared)
        starting = asyncio.ensure_future(asyncio.to_thread(start, job, ended))

        def started(done: asyncio.Future[None]) -> None:
            job.close()  # even after a cancellation, because the runner has the lock by now
            if done.cancelled() or done.exception():
                ended()

        starting.add_done_callback(started)
        await asyncio.shield(starting)

    def _runner_ended(self) -> None:
        self._runners -= 1

    async def _budgeted(self, job: Job) -> Callable[[], None]:
        """Permit a job, which a child process will run, to spend the free part of the server's budget.

        Return a function that charges the spent amount and frees the rest; call it when that process has ended.
        """
        budget, folder = self._service.budget, job.folder
        if budget is None:
            return lambda: None
        before = await asyncio.to_thread(status.spent, folder)
        now = folder.control.max_cost
        wanted = job.order.limits.max_cost if now is None else now
        lent = budget.lend(None if wanted is None else wanted - before)
        job.most_cost = before + lent
        loop = asyncio.get_running_loop()

        def ended() -> None:
            try:
                spent = status.spent(folder) - before
            except (OSError, DamagedError):  # the status is unreadable, so the spent amount is unknown
                spent = lent
            with contextlib.suppress(RuntimeError):  # the server has ended, and its event loop is closed
                loop.call_soon_threadsafe(budget.free, lent, max(0.0, spent))

        return ended

    async def _are_columns_checked(self, opened: OpenJob) -> bool:
        """Check the columns of a query, or of a file that is not text, in another process.

        A crafted file can crash its reader, and a query may run forever.
        """
        order = opened.order
        path = order.inputs[0]
        known = path_formats.format_of_input(path) if path.is_absolute() else None
        if known is None or known.is_text:
            return False
        folder = self.folders.of(order.target)
        if known.database or await asyncio.to_thread(lambda: folder.spec) is None:
            async with self._places:
                await child_step.check_columns(order, opened.config.file_rule)
        return True

    async def apart(self, call: partial[T], name: str, computing_s: float = child_step.COMPUTING_S) -> T:
        """Return the result of a call in a child process. Raises as `child_step.done_apart` does."""
        async with self._places:
            return await child_step.done_apart(call, name, computing_s=computing_s)

    async def cancel(self, job_id: str, caller: Caller = USER, *, is_call: bool = False) -> Status:
        """End a running job; see `Folder.request_cancel`. The job's answers are kept.

        `is_call`: the job is of a call for which no client waits any more. It ends at once, and the request to end it
        is stored even if no process runs the job, so that the job's task is not resumed.
        """
        folder, spec = self.visible.found(job_id, caller)
        if (waiting := self._waiting.get(spec.job_id)) is not None:
            waiting.cancel()
        runs_nowhere = is_call or waiting is not None
        if folder.request_cancel(at_once=is_call, even_if_it_runs_nowhere=runs_nowhere):
            await asyncio.to_thread(folder.wait_for_end, _WAIT_S)
        return status.read(folder)

    def run_here(self, job: Job, place: JobPlace | None = None) -> asyncio.Task[Any]:
        """Run a job in this process; return the task of the run. `place`: the job's place, if it has one.

        Child processes read the job's files, except for the job of a call, whose requests promptmill wrote itself.
        """

        async def run() -> None:
            with job.folder.log.open("a") as log:
                hooks = Hooks(watch=status_words.progress_lines(job.spec.job_id, log))
                await door.run(job, self._service, hooks, apart=None if job.spec.of_call else self._apart)

        task = asyncio.ensure_future(run())
        self.adopt(job, task, place)
        return task

    def adopt(self, job: Job, run: asyncio.Task[Any], place: JobPlace | None = None) -> None:
        """Close the job and leave its place when the task `run`, which runs the job in this process, has ended."""
        job_id = job.spec.job_id
        self._here[job_id] = run
        if job.spec.of_call:
            self._show(job_id)

        def ended(done: asyncio.Task[Any]) -> None:
            job.close()
            if place is not None:
                place.leave()
            del self._here[job_id]
            _report(job_id, done)

        run.add_done_callback(ended)

    def _show(self, job_id: str) -> None:
        """Let `status` list the job of a call, if this server has only one client."""
        if not self._service.is_shared:
            self.visible.add(job_id, USER)


async def _closed(opening: asyncio.Future[OpenJob], close: Callable[[], Awaitable[object]]) -> None:
    """Wait until a job is open, then close it.

    An opening error is not raised: FastMCP cancels the waiting call again, so no caller would get the error.
    """
    with contextlib.suppress(PromptmillError):
        await opening
        await close()


def _report(job_id: str, work: asyncio.Task[Any]) -> None:
    if not work.cancelled() and (error := work.exception()):
        print(f"promptmill: job {job_id} ended: {type(error).__name__}", file=sys.stderr)


def _dies_again(job: Job) -> bool:
    """Count the last run if it died. Return whether too many runs died without a new answer."""
    folder = job.folder
    if folder.status.get("state") not in progress.ALIVE:  # the last run has stored its end
        return False
    before, done = folder.store.get("deaths") or {}, statistics.counts(folder.store).done
    times = 1 + (before["times"] if before.get("done") == done else 0)
    folder.put(deaths={"done": done, "times": times})
    if times < 3:
        return False
    reason = f"The process that ran the job ended {times} times without another answer, perhaps for lack of memory."
    folder.put(status={**folder.status, "state": progress.STOPPED, "reason": reason})
    return True
