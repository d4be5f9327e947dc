"""The jobs that a server runs for its callers, in this process or in another one, and the jobs that they may see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar

from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.bounds import LONGEST_PATH, MOST_RUNNERS
from promptmill.core.errors import Code, Named, PromptmillError, argument_name, input_error, worded
from promptmill.jobs import members
from promptmill.jobs.caller import USER, Caller
from promptmill.jobs.databases import SQLITE
from promptmill.jobs.ingest import CALL_DISK_SHARE
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs import formats
from promptmill.jobs.inputs import given as given_rows
from promptmill.jobs.inputs.files import InputFiles
from promptmill.jobs.inputs.given import Given
from promptmill.jobs.inputs.row_secrets import OTHERWISE, check_encoding
from promptmill.jobs.inputs.whole_files import PdfForm, RowFiles, WholeFiles
from promptmill.jobs.manage import detached, prune
from promptmill.jobs.manage.call_limits import Place, Places
from promptmill.jobs.manage.job_rows import Only, results_page
from promptmill.jobs.run import admission, steps
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.order_files import check_name
from promptmill.jobs.run.runner import Hooks, Runner
from promptmill.jobs.store import progress, statistics, status, status_words
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders, no_job
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.spec import JobSpec, digest
from promptmill.jobs.store.status_record import Status
from promptmill.service.service import Service
from promptmill.system.call_files import FileRule, RefusedError
from promptmill.system.safe_open import OutsideError, home_expanded

T = TypeVar("T")
_WAIT_S = 1.0
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")  # as a path it has a single slash; a drive has a single letter
Approve: TypeAlias = Callable[[float | None, float | None, float | None], Awaitable[None]]
"""Gets the estimated and the highest cost of a job (None: unknown). It raises to prevent the job."""


class RunningJobs:
    """The jobs that a server starts for its callers, and this user's jobs that the callers may see.

    A job that runs in this process ends with the service.
    """

    def __init__(self, service: Service, rule: Callable[[], FileRule], folders: JobFolders | None = None) -> None:
        """`rule` gives the rule for the files that are read and written; `folders` is where jobs live."""
        self._service, self._rule = service, rule
        self.folders = folders or JobFolders.from_environ()
        self._own: dict[str, str] = {}
        """Jobs of callers of this process whose files are ours, and the session of each."""
        self._here: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        """The jobs of calls that wait for a place, or are about to run in it."""
        self._validating = asyncio.Semaphore(MOST_RUNNERS // 2)
        self._places = asyncio.Semaphore(MOST_RUNNERS // 2)
        self._apart = detached.Apart(self._places)
        self._runners = 0
        """Processes that run jobs for this one."""
        self.places = Places.of_process(is_shared=service.is_shared)

    @property
    def rule(self) -> FileRule:
        """The rule for the files that calls read and write."""
        return self._rule()

    def status(self, job_id: str | None, limit: int = 20, caller: Caller = USER) -> dict[str, Any]:
        """Return the status of one job, or the newest as `{"jobs": […], "more": how many there are besides}`.

        Jobs on rows that came in a call are listed for their session only. A job that waits for a place
        has the state `starting`.
        """
        if job_id is not None:
            found = status.read(self.find(job_id, caller))
            return {**found, **({"state": progress.STARTING} if found["job_id"] in self._waiting else {})}
        jobs = status.read_all(self.folders.all(), partial(self._is_listed, caller=caller))
        return {"jobs": jobs[:limit], "more": max(0, len(jobs) - limit)}

    async def start(
        self,
        order: JobOrder,
        *,
        prompts: Sequence[Any] | None = None,
        files: Sequence[str] | None = None,
        each: Literal["file", "line"] | None = None,
        as_pdf: PdfForm | None = None,
        validate: bool = False,
        plan: ResolvedConfig | None = None,
        plans: Mapping[str, ResolvedConfig] = MappingProxyType({}),
        approve: Approve | None = None,
        caller: Caller = USER,
    ) -> dict[str, Any]:
        """Start the job of `order`, or resume it, and return at once with its status.

        The paths of `order` are as the call named them, relative or absolute; `.` means no output. `prompts`
        are rows in place of an input file. So are `files`, of which each is a row, its content or its image for the
        prompt alone; with `each` "line", their rows are the rows. Without an output, their answers are in the job's
        database. The same rows resume the same job for the same `caller` only, because no client may learn what another
        one asks.

        `plan`: the plan of the call, if it changes settings of the configuration. `plans`: see `admission.admit`.

        `validate` starts nothing and returns the findings in the file instead. `approve` gets the cost of the rows
        that have no answer yet.

        On the openai backend a process of its own runs it; otherwise it runs on this server's engine. Raises
        `PromptmillError` (`invalid_input`) for what `admission` and the rule on files refuse.
        """
        check_encoding(order.reading.encoding)
        async with contextlib.AsyncExitStack() as opened:
            if prompts is not None:
                if not prompts:
                    raise input_error("`prompts` is an empty list; send at least one prompt.")
                lines = given_rows.lines_of(prompts, "text" if order.question.templates else "prompt", "prompts")
                source, notes = await self._given(lines, caller, opened), dict[str, Any]()
            elif files is not None and each == "line":
                paths = await asyncio.to_thread(RowFiles(files, self.rule).paths)
                order, source, notes = order.model_copy(update={"inputs": tuple(paths)}), None, {"files": len(paths)}
            elif files is not None:
                order, source, notes = await self._whole_files(
                    order, files, as_pdf, caller, opened, has_schema=(plan or self._service.plan).has_schema
                )
                if "raw" in notes and each is None and not validate:  # before anything is sent
                    anyway = Named("each", "file", "; {} sends them all the same")
                    raise input_error(f"Nothing was sent yet; tell the user: {notes['raw']}", anyway, ".")
            else:
                source, notes = None, {}
            plan = await self._service.settled(plan or self._service.plan)
            order = self._resolved(order, source, caller, are_inputs_resolved=files is not None)
            if source is not None and order.output == Path():
                job_id = given_rows.loose_id(source, plan, order)
                order = order.model_copy(update={"output": self.folders.loose(job_id).answers})
                self._own[job_id] = caller.session
            found = await self._started(order, source, plan, plans, approve=approve, validate=validate)
            return found | notes

    async def start_given(
        self, order: JobOrder, source: Given, plan: ResolvedConfig, approve: Approve | None, caller: Caller
    ) -> dict[str, Any]:
        """Start the job of rows that the server wrote for a call, without an output; or resume it. See `start`."""
        self._own[order.output.parent.name] = caller.session
        return await self._started(order.model_copy(update={"owner": caller.owner}), source, plan, approve=approve)

    async def _started(
        self,
        order: JobOrder,
        source: Given | None,
        plan: ResolvedConfig,
        plans: Mapping[str, ResolvedConfig] = MappingProxyType({}),
        *,
        approve: Approve | None,
        validate: bool = False,
    ) -> dict[str, Any]:
        """Start the job of an order whose paths are resolved. See `start`."""
        running = await asyncio.to_thread(self._running, order)
        if running is not None and not validate:
            return dict(running)
        if validate or approve is not None:
            async with self._validating:
                checked = await detached.validated(plan, order, self.folders, source)
            if validate:
                message = "Nothing was sent and no job was made."
                return {"job_id": "", "state": "validated", "message": message} | checked
            assert approve is not None
            await self._approved(approve, order, checked)
        job = await self._admitted(order, plan, source, plans)
        with contextlib.ExitStack() as held:
            held.callback(job.close)
            if job.finished:
                job.close()
                return dict(self._status_of(job, "The job is finished already."))
            # a call's rows and query end with it
            is_of_call = source is not None or (order.reading.sql is not None and job.change.before is None)
            if is_of_call or job.change.before is not None:
                unread = await asyncio.to_thread(job.unread)
                if unread is not None:
                    await self._read(job, unread, is_trial=not is_of_call)
            held.pop_all()
        await self._launch(job)
        return dict(self._status_of(job, "Ask bulk_status how far it is."))

    async def _read(self, job: Job, files: InputFiles, *, is_trial: bool) -> None:
        """Read the input of a job, or only find out whether that is refused (`is_trial`).

        Raises `PromptmillError` (`invalid_input`). Then the job is as it was before the call, or gone if it was new.
        """
        try:
            if is_trial:
                await self._apart(steps.trial(job, files), job, lambda _: None)
            else:
                await self._apart(steps.reading(job, files), job, lambda _: None)
                job.load()
        except BaseException:
            if job.change.before is None and job.folder.store.is_empty:
                job.folder.close()
                self.folders.unregister(job.folder)
                prune.remove(job.folder)
            else:
                job.folder.roll_back()
            raise

    async def _whole_files(
        self,
        order: JobOrder,
        files: Sequence[str],
        as_pdf: PdfForm | None,
        caller: Caller,
        opened: contextlib.AsyncExitStack,
        *,
        has_schema: bool,
    ) -> tuple[JobOrder, Given, dict[str, Any]]:
        """Return an order, its rows, each of which is a file, and notes: how many, which are left out."""
        encoding = order.reading.encoding
        find = partial(WholeFiles, files, self.rule, order.question, as_pdf, encoding, has_schema=has_schema)
        found = await asyncio.to_thread(find)
        source = await self._given(found.lines(), caller, opened)
        left_out = [worded(reason, argument_name) for reason in found.left_out]
        notes: dict[str, Any] = {"files": found.count, **({"left_out": left_out} if left_out else {})}
        if found.raw:
            notes["raw"] = found.raw
        if found.forms:
            notes["pdf"] = worded(found.forms[0], argument_name)
        reading = order.reading.model_copy(update={"encoding": None})  # the lines are UTF-8
        return order.model_copy(update={"question": found.question, "reading": reading}), source, notes

    async def _given(self, lines: Iterator[bytes], caller: Caller, opened: contextlib.AsyncExitStack) -> Given:
        """Return rows that came in a call, in a file as long as `opened` is."""
        writing = given_rows.written(self.folders, lines, ".jsonl")
        source = await asyncio.to_thread(writing.__enter__)
        opened.push_async_callback(asyncio.to_thread, writing.__exit__, None, None, None)
        return source._replace(key=digest(source.key, caller.session))

    def _resolved(
        self, order: JobOrder, source: Given | None, caller: Caller, *, are_inputs_resolved: bool
    ) -> JobOrder:
        """Return an order with the resolved paths of the files that a call names. Raises `PromptmillError`."""
        changes: dict[str, Any] = {}
        if source is None and not are_inputs_resolved:
            changes["inputs"] = (self.allowed(str(order.inputs[0]), "input_file"),)
        if source is not None:
            changes["owner"] = caller.owner
        if source is None or order.output != Path():
            changes["output"] = self.allowed(str(order.output), "output_file")
        return order.model_copy(update=changes)

    def _running(self, order: JobOrder) -> Status | None:
        """Return the status of the job of an order if a process runs it as this order says. Blocks."""
        folder = self.folders.of(order.target)
        if order != folder.order:  # `earlier` is not stored, so one with `again` differs
            return None
        now = status.read(folder)
        if not now["alive"] or now["state"] not in progress.ALIVE:  # it may be about to leave
            return None
        return {"job_id": folder.job_id, "message": "The job is running already."} | now

    def _status_of(self, job: Job, message: str) -> Status:
        return {"job_id": job.spec.job_id, "message": message} | status.read(job.folder)

    async def _approved(self, approve: Approve, order: JobOrder, checked: Mapping[str, Any]) -> None:
        """Call `approve` with the costs that are known: the estimate and the highest cost of the rows that an earlier
        job of these files has not answered, and the cost of the sample, if there will be one."""
        estimated, most, left = checked.get("estimated_cost"), checked.get("most_cost"), 1.0
        sample = checked.get("sure", {}).get("sample_cost") or None
        if order.earlier.again != "all":
            folder = self.folders.of(order.output)
            found = await asyncio.to_thread(lambda: folder.status)
            answered: int = found.get("done", 0) - found.get("failed", 0)
            wanted = checked["rows"] * (1 if order.plan.chooses else max(1, len(order.variants)))
            left = max(0, wanted - answered) / max(1, wanted)
            sample = None if answered > 0 else sample
        if left:
            estimated, most = (None if cost is None else cost * left for cost in (estimated, most))
            await approve(estimated, most, sample)

    async def resume(self, job_id: str, plan: ResolvedConfig, caller: Caller) -> None:
        """Resume the job of a call with its last order and the `plan` of its model; without a place, it waits for one.

        A job whose runs die again and again without another answer is stopped instead. Raises `PromptmillError` like
        `start`, also when another process runs the job, and `rate_limited` if too many jobs are in progress.
        """
        if job_id not in self._here and job_id not in self._waiting:
            place = self.places.take(caller.session)
            resuming = self.run_later(job_id, plan, place)
            if place.entry.is_set():
                await asyncio.shield(resuming)

    async def resume_call(self, job_id: str, caller: Caller) -> Status:
        """Resume the job of a call; return its status. Raises `PromptmillError` like `resume`."""
        folder, spec = self._found(job_id, caller)
        if not spec.of_call:
            raise input_error(f"Job {job_id} is not the job of a call; call bulk_generate as before to resume it.")
        note = folder.task or {}
        plan = self._service.offered_plan(note["model"]) if "model" in note else self._service.plan
        await self.resume(spec.job_id, plan, caller)
        return status.read(folder)

    def run_later(self, job_id: str, plan: ResolvedConfig, place: Place) -> asyncio.Task[None]:
        """Run the job of a call, whose files are closed, when it gets its place; return the wait for that."""
        waiting = self._waiting[job_id] = asyncio.ensure_future(self._run_in(place, job_id, plan))

        def ended(_: asyncio.Task[None]) -> None:
            del self._waiting[job_id]
            if waiting.cancelled():  # perhaps before its first step
                place.leave()
            _report(job_id, waiting)

        waiting.add_done_callback(ended)
        self._show(job_id)
        return waiting

    async def _run_in(self, place: Place, job_id: str, plan: ResolvedConfig) -> None:
        with contextlib.ExitStack() as held:
            held.callback(place.leave)
            await place.entry.wait()
            if self._service.state == "closed":
                return
            folder = self.folders.find(job_id)
            order = folder.order
            if order is None:
                raise input_error(f"Job {job_id} has no order to resume.")
            order = order.model_copy(update={"output": folder.known_spec().output.path})
            job = await self._admitted(order, await self._service.settled(plan), None)
            held.callback(job.close)
            if not job.finished and not await asyncio.to_thread(_dies_again, job):
                held.pop_all()
                await self._launch(job, place)

    async def _launch(self, job: Job, place: Place | None = None) -> None:
        """Run an admitted job: in this process if it needs the server's engine or comes from a call, else in its own.

        `place`: for a job that comes from a call.
        """
        with contextlib.ExitStack() as held:
            held.callback(job.close)
            if place is None and job.plan.record.is_engine:
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
            if place is not None:
                held.pop_all()
                self.run_here(job, place)
                return
            self._runners += 1
            held.callback(self._runner_ended)
            charge = await self._budgeted(job)
            held.pop_all()
        loop = asyncio.get_running_loop()

        def ended() -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._runner_ended)
            charge()

        start = partial(detached.start, is_shared=self._service.is_shared)
        starting = asyncio.ensure_future(asyncio.to_thread(start, job, ended))

        def started(done: asyncio.Future[None]) -> None:
            job.close()  # not earlier, even if the caller waits no more
            if done.cancelled() or done.exception():
                ended()

        starting.add_done_callback(started)
        await asyncio.shield(starting)

    def _runner_ended(self) -> None:
        self._runners -= 1

    async def _budgeted(self, job: Job) -> Callable[[], None]:
        """Let the job, which another process runs, spend the free part of the server's budget.

        Returns a function for the end of that process: it charges the job's spending, and frees the rest.
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
            except (OSError, DamagedError):  # it cannot be known any more
                spent = lent
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(budget.free, lent, max(0.0, spent))

        return ended

    async def _are_columns_checked(self, order: JobOrder, plan: ResolvedConfig) -> bool:
        """Check the columns of a Parquet file, workbook or query in another process.

        A crafted file can end its reader, and a query may compute for ever.
        """
        path = order.inputs[0]
        kind = formats.format_by_suffix(path, "input_file") if path.is_absolute() else ""
        if kind not in {"parquet", "xlsx", "sql"}:
            return False
        folder = self.folders.of(order.target)
        if kind == "sql" or await asyncio.to_thread(lambda: folder.spec) is None:
            async with self._places:
                await detached.check_columns(order, plan.file_rule)
        return True

    async def _admitted(
        self,
        order: JobOrder,
        plan: ResolvedConfig,
        given: Given | None,
        plans: Mapping[str, ResolvedConfig] = MappingProxyType({}),
    ) -> Job:
        admit = partial(
            admission.admit,
            order,
            plan,
            self.folders,
            given=given,
            plans=plans,
            are_columns_checked=given is None and await self._are_columns_checked(order, plan),
            are_paths_resolved=True,
        )
        job = await admission.admit_in_thread(admit)
        job.change = replace(job.change, disk_share=CALL_DISK_SHARE)
        return job

    async def apart(self, call: partial[T], name: str, module: str) -> T:
        """Return the result of a step of `module` in a process of its own. Raises as `detached.done_apart` does."""
        async with self._places:
            return await detached.done_apart(call, name, module=module)

    async def cancel(self, job_id: str, caller: Caller = USER, *, also_interrupted: bool = False) -> Status:
        """End a job if it runs, within about a second; answers are kept.

        `also_interrupted`: also if it runs nowhere now, so that its task is not resumed.
        """
        folder, spec = self._found(job_id, caller)
        if (waiting := self._waiting.get(spec.job_id)) is not None:
            waiting.cancel()
        if folder.request_cancel(even_if_it_runs_nowhere=also_interrupted or waiting is not None):
            await asyncio.to_thread(folder.wait_for_end, _WAIT_S)
        return status.read(folder)

    def run_here(self, job: Job, place: Place | None = None) -> asyncio.Task[Any]:
        """Run a job in this process, in `place` if it has one; return its run.

        Other processes read its files, unless we wrote its requests.
        """

        async def run() -> None:
            with job.folder.log.open("a") as log:
                hooks = Hooks(watch=status_words.progress_lines(job.spec.job_id, log))
                await Runner(job, self._service, hooks, apart=None if job.spec.of_call else self._apart).run()

        task = asyncio.ensure_future(run())
        self.adopt(job, task, place)
        return task

    def adopt(self, job: Job, run: asyncio.Task[Any], place: Place | None = None) -> None:
        """Look after a job that runs here until its end; then close it, and leave its place."""
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
        """Let `status` list a call's job, if this server has only one client."""
        if not self._service.is_shared:
            self._own[job_id] = ""

    def results(
        self,
        job_id: str,
        offset: int,
        limit: int,
        only: Only = "all",
        caller: Caller = USER,
        *,
        with_input: bool = True,
    ) -> dict[str, Any]:
        """Return answered rows after the first `offset` rows, in input order; also before the job's end. Blocks.

        `only`: only answered rows, or only failed ones. `with_input`: with all fields of the input rows, not only those
        that identify them.

        `next_offset` is the next page's, None at the end of the input; rows without an answer yet are left out.
        """
        folder, _ = self._found(job_id, caller)
        return results_page(folder, self.rule, offset, limit, only, with_input=with_input)

    def output_of(self, job_id: str, caller: Caller) -> Path:
        """Return the output of a job that its caller may see. Raises `PromptmillError` (`invalid_input`). Blocks."""
        _, spec = self._found(job_id, caller)
        if self._is_loose(spec):
            raise input_error(f"Job {job_id} has no output file; run it with `output_file`.")
        return spec.output.path

    def control(self, job_id: str, caller: Caller = USER, **changes: Any) -> Status:
        """Pause or continue a job, or change its limits; `changes` are fields of `Control`. Blocks.

        A change takes effect within two seconds, and holds for later runs. Raises `PromptmillError` (`invalid_input`).
        """
        folder = self.find(job_id, caller)
        folder.change_control(**changes)
        return status.read(folder)

    def find(self, job_id: str, caller: Caller) -> Folder:
        """Return the folder of a job that its caller may see, by its id or its output.

        Raises `PromptmillError` (`invalid_input`).
        """
        return self._found(job_id, caller)[0]

    def _found(self, job_id: str, caller: Caller) -> tuple[Folder, JobSpec]:
        folder = self.folders.named(job_id)
        spec = folder.known_spec()  # read once: its folder could be another one by the second time
        if not self._is_owner(spec, caller):
            raise no_job(job_id)
        if not self._may_see(spec):
            if job_id != spec.job_id:  # or a client could find out which files other folders have
                raise no_job(job_id)
            raise input_error(f"Job {job_id} has files outside the folders that may be used here, or other such files.")
        return folder, spec

    def _is_listed(self, spec: JobSpec, caller: Caller) -> bool:
        if self._is_loose(spec):
            return self._own.get(spec.job_id) == caller.session
        return self._is_owner(spec, caller) and self._may_see(spec)

    @staticmethod
    def _is_owner(spec: JobSpec, caller: Caller) -> bool:
        """Return whether a job is its caller's. A job on files is everybody's."""
        return spec.origin.owner is None or spec.origin.owner == caller.owner

    def _may_see(self, spec: JobSpec) -> bool:
        paths = [*(part.path for part in spec.input.parts if spec.input.is_file)]
        if not self._is_loose(spec):
            paths.append(spec.output.path)
        return all(map(self._passes, paths))

    def allowed(self, text: str, name: str) -> Path:
        """Return the resolved path of a file of rows that a call names in its argument `name`.

        Raises `PromptmillError` (`invalid_input`) for a file that the rule on files refuses.
        """
        real = self._resolved_path(text, name)
        if input_files.is_several(real):
            folders = "name folders and patterns in `files`" if name == "input_file" else "name a file"
            raise input_error(f"{name} is a folder or a pattern; {folders}.")
        kind = formats.format_by_suffix(real, name)
        is_database = (name, kind) == ("input_file", "sql") and members.file_of(real).suffix.lower() in SQLITE
        if kind not in formats.OF_CALLS and not is_database:
            usable = ".jsonl, .csv, .tsv, .parquet, .xlsx" + (", .db" if name == "input_file" else "")
            whole = "; `files` sends whole texts." if (name, kind) == ("input_file", "txt") else "."
            raise input_error(
                f"{name} is a {formats.plain(real).suffix} file; use one of {usable} here: others may be a "
                f"program's{whole}"
            )
        return real

    def allowed_page(self, text: str) -> Path:
        """Return the resolved path of an HTML file that a call names as its `report`. Raises as `allowed` does."""
        return self.allowed_of(text, "report", (".html",))

    def allowed_of(self, text: str, name: str, suffixes: Sequence[str]) -> Path:
        """Return the resolved path of a file to write that has one of the `suffixes`. Raises as `allowed` does."""
        real = self._resolved_path(text, name)
        if real.suffix.lower() not in suffixes:
            raise input_error(f"{name} is no {' or '.join(suffixes)} file; name one, such as answers{suffixes[0]}.")
        return real

    def _resolved_path(self, text: str, name: str) -> Path:
        if len(text) > LONGEST_PATH:
            raise input_error(f"{name} has {len(text):,} characters; no path is that long.")
        if _URL.match(text):
            raise input_error(f"{name} is a URL; a call reads and writes files of this machine alone.")
        rule, path = self.rule, home_expanded(text)
        try:
            file, member = members.split(path)
            real = rule.resolved(file)
            real = real.with_name(f"{real.name}#{member}") if member else real
        except (OSError, ValueError, RuntimeError):
            raise input_error(f"{name} is not a usable path.") from None
        except OutsideError:
            raise input_error(
                f"{name} is outside {rule.words}. Use a file inside, or whoever runs the server allows its folder: "
                f"`allowed_roots: [{json.dumps(str(path.parent))}]` in parameter.yaml."
            ) from None
        except RefusedError as error:
            raise input_error(
                f"{name} {error}. {OTHERWISE if name == 'input_file' else 'Name another file.'}"
            ) from None
        check_name(real)
        return real

    def foreign_output(self, text: str) -> tuple[Path, members.Stamp] | None:
        """Return the file at a job's output that the job did not make, and its stamp; None if there is none. Blocks.

        Raises as `allowed` does.
        """
        output = self.allowed(text, "output_file")
        there, made = members.stamp(output), self.folders.of(output).result
        return None if there is None or (made is not None and made.is_own(there)) else (output, there)

    def _passes(self, path: Path) -> bool:
        try:
            self.rule.check(path)
        except (OutsideError, RefusedError):
            return False
        return True

    def _is_loose(self, spec: JobSpec) -> bool:
        """Return whether the answers of a job are in no file: its rows came in a call."""
        return self.folders.owner(spec.output.path) is not None


def _report(job_id: str, work: asyncio.Task[Any]) -> None:
    if not work.cancelled() and (error := work.exception()):
        print(f"promptmill: job {job_id} ended: {type(error).__name__}", file=sys.stderr)


def _dies_again(job: Job) -> bool:
    """Count the last run if it died; return whether to stop the job: too many runs died without a new answer."""
    folder = job.folder
    if folder.status.get("state") not in progress.ALIVE:  # its end was noted
        return False
    before, done = folder.store.get("deaths") or {}, statistics.counts(folder.store).done
    times = 1 + (before["times"] if before.get("done") == done else 0)
    folder.put(deaths={"done": done, "times": times})
    if times < 3:
        return False
    reason = f"The process that ran the job ended {times} times without another answer, perhaps for lack of memory."
    folder.put(status={**folder.status, "state": progress.STOPPED, "reason": reason})
    return True
