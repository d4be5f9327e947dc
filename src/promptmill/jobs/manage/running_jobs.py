"""Jobs as a server's callers see them: start, watch, read, cancel, inside the folders that they may use."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import orjson

from promptmill.backends import rows
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.secret_text import SecretFinder, find_field
from promptmill.jobs.caller import USER, Caller
from promptmill.jobs.files import row_files
from promptmill.jobs.files.disk import Line, Lines, RandomFile
from promptmill.jobs.files.row_secrets import OTHERWISE
from promptmill.jobs.files.whole_files import WholeFiles
from promptmill.jobs.manage import detached
from promptmill.jobs.manage.call_limits import Place, Places
from promptmill.jobs.run import admission
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.merge import JobFiles
from promptmill.jobs.run.runner import Runner
from promptmill.jobs.store import status
from promptmill.jobs.store.answers import FARTHEST_ROW, DamagedError, JobStore
from promptmill.jobs.store.folder import Folder, JobFolders, no_job
from promptmill.jobs.store.given_rows import GivenRows, lines_of, root_of
from promptmill.jobs.store.records import Record, answer_fields
from promptmill.jobs.store.spec import JobRequest, JobSpec
from promptmill.service.service import Service
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule, RefusedError
from promptmill.system.safe_open import LONGEST_PATH, NoFileError, OutsideError, home_expanded, is_remote, real_path

_LARGEST_MORE = 1 << 20
_LARGEST_PAGE = 8 << 20
_VALUE = 24  # bytes of text that take as long on the event loop as a value; a page has up to 300,000 values
_WAIT_S = 1.0
_MOST_DEATHS = 3
_MOST_LISTED = 20
_MOST_VALIDATED = 2  # at a time: each is a process
_MOST_APART = 8  # steps of jobs at a time, likewise
_MOST_RUNNERS = 16  # likewise, of a hundred megabytes or more
_DISK_SHARE = 0.5  # of the free disk, for the rows of one job
_NAME_ANOTHER = "Name another file."
Only = Literal["all", "answers", "failed"]
Approve: TypeAlias = Callable[[float | None, float | None], Awaitable[None]]
"""Gets the estimated and the highest cost of a job, None for an unknown one, and raises to prevent the job."""
_FORMATS = frozenset({"jsonl", "csv", "tsv", "parquet"})


class RunningJobs:
    """All jobs of this user that a server's callers may see. Jobs that run here end with the service."""

    def __init__(self, service: Service, rule: Callable[[], FileRule], folders: JobFolders | None = None) -> None:
        """`rule` gives the rule for the files that are read and written; `folders` is where jobs live."""
        self._service = service
        self._rule = rule
        self.folders = folders or JobFolders.from_environ()
        self._here: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        """The jobs of calls that wait for a place, or are about to run in it."""
        self._own: dict[str, str] = {}
        """Jobs of callers of this process whose files are ours, and the session of each."""
        self._validating = asyncio.Semaphore(_MOST_VALIDATED)
        self._apart = asyncio.Semaphore(_MOST_APART)
        self._runners = 0
        """Processes that run jobs for this one."""
        self.places = Places.of_process(is_shared=service.is_shared)

    async def start(
        self,
        input_file: str,
        output_file: str,
        system_prompt: str,
        *,
        prompts: Sequence[Any] | None = None,
        files: Sequence[str] | None = None,
        validate: bool = False,
        plan: ResolvedConfig | None = None,
        approve: Approve | None = None,
        caller: Caller = USER,
        **options: Any,
    ) -> dict[str, Any]:
        """Start a job, or go on with it, and return at once with its status. `options` are those of `JobRequest`.

        `prompts` are rows in place of an input file; they are kept with the jobs, and so are their answers if
        `output_file` is empty. So are `files`, of which each is a row, with its content for the prompt alone. The same
        rows go on with the same job for the same `caller` only, because no client may learn what another one asks.

        `plan` is the call's own, where it asks for more than the configuration says.

        `validate` starts nothing and returns what is found in the file instead. `approve` gets the cost of the rows
        that have no answer yet.

        On the openai backend a process of its own runs it; otherwise it runs on this server's engine. Raises
        `PromptmillError` (`invalid_input`) for what `admission` and the rule on files refuse.
        """
        given: GivenRows | None = None
        if prompts is not None:
            if not prompts:
                raise input_error("`prompts` is an empty list; send at least one prompt.")
            name = "prompt" if options.get("prompt_template") is None else "text"
            lines = lines_of(prompts, name, "prompts")
            given = await asyncio.to_thread(GivenRows.write, self.folders, lines, ".jsonl", apart=caller.session)
        notes: dict[str, Any] = {}
        if files is not None:
            found = WholeFiles(files, self._rule())
            given = await asyncio.to_thread(
                GivenRows.write, self.folders, found.lines(), ".jsonl", apart=caller.session
            )
            options["prompt_only"] = ("content",)
            notes = {"files": found.count, **({"left_out": found.left_out} if found.left_out else {})}
        order = JobRequest(
            input=self._allowed(input_file, "input_file", caller) if given is None else given.input,
            output=self._allowed(output_file, "output_file", caller) if output_file or given is None else Path("-"),
            owner=None if given is None else caller.owner,
            system_prompt=system_prompt,
            **options,
        )
        plan = await self._service.settled(plan or self._service.plan)
        if given is not None and not output_file:
            order = order.model_copy(update={"output": given.output(plan, order, ".jsonl")})
            self._own[self.folders.id_of(self.folders.of(order.input, order.output))] = caller.session
        if validate or approve is not None:
            async with self._validating:
                checked = await detached.validated(plan, order, self.folders)
            if validate:
                about = {"job_id": "", "state": "validated", "message": "Nothing was sent and no job was made."}
                return about | notes | checked
            assert approve is not None
            await self._approved(approve, order, checked)
        job = await self._admitted(order, plan, are_columns_checked=await self._are_columns_checked(order, plan))
        folder = job.folder
        with contextlib.ExitStack() as held:
            held.callback(job.close)
            if job.finished:
                job.close()
                return (
                    {"job_id": job.spec.job_id, "message": "The job is finished already."} | notes | status.read(folder)
                )
            held.pop_all()
        await self._launch(job)
        return {"job_id": job.spec.job_id, "message": "Ask bulk_status how far it is."} | notes | status.read(folder)

    async def _approved(self, approve: Approve, order: JobRequest, checked: Mapping[str, Any]) -> None:
        """Call `approve` with the cost of the rows that an earlier job of these files has not answered, if known."""
        estimated, most, left = checked.get("estimated_cost"), checked.get("most_cost"), 1.0
        if order.again != "all":
            folder = self.folders.of(order.input, order.output)
            found = await asyncio.to_thread(lambda: folder.status)
            answered: int = found.get("done", 0) - found.get("failed", 0)
            left = max(0, checked["rows"] - answered) / max(1, checked["rows"])
        if left:
            await approve(*(None if cost is None else cost * left for cost in (estimated, most)))

    async def resume(self, job_id: str, plan: ResolvedConfig, caller: Caller) -> None:
        """Resume the job of a call with its last order and the `plan` of its model; without a place, it waits for one.

        A job whose runs die again and again without another answer is
        stopped instead. Raises `PromptmillError` like `start`, also when another process runs the job, and
        `rate_limited` if too many jobs are in progress.
        """
        if job_id not in self._here and job_id not in self._waiting:
            place = self.places.take(caller.session)
            resuming = self.run_later(job_id, plan, place)
            if place.is_ready:
                await asyncio.shield(resuming)

    def run_later(self, job_id: str, plan: ResolvedConfig, place: Place) -> asyncio.Task[None]:
        """Run the job of a call, whose files are closed, when it gets its place; return the wait for that."""
        waiting = self._waiting[job_id] = asyncio.ensure_future(self._go_on(job_id, plan, place))

        def ended(_: asyncio.Task[None]) -> None:
            del self._waiting[job_id]
            if waiting.cancelled():  # perhaps before its first step
                place.leave()
            _report(job_id, waiting)

        waiting.add_done_callback(ended)
        self._show(job_id)
        return waiting

    async def _go_on(self, job_id: str, plan: ResolvedConfig, place: Place) -> None:
        """Run the job of a call when it has its place."""
        with contextlib.ExitStack() as held:
            held.callback(place.leave)
            await place.ready()
            if self._service.state == "closed":
                return
            order = self.folders.find(job_id).request
            if order is None:
                raise input_error(f"Job {job_id} has no order to go on with.")
            job = await self._admitted(order, await self._service.settled(plan))
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
            if not (self._runners < _MOST_RUNNERS if place is None else place.is_ready):
                raise PromptmillError(
                    Code.RATE_LIMITED,
                    "This server runs as many jobs as it can at a time.",
                    "Start this one when one of them has ended.",
                )
            status.write_starting(job.folder)
            job.disk_share = _DISK_SHARE
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
        starting = asyncio.ensure_future(asyncio.to_thread(start, job, self.folders, ended))

        def started(done: asyncio.Future[None]) -> None:
            job.close()  # not earlier, even if the caller waits no more
            if done.cancelled() or done.exception():
                ended()

        starting.add_done_callback(started)
        await asyncio.shield(starting)

    def _runner_ended(self) -> None:
        self._runners -= 1

    async def _budgeted(self, job: Job) -> Callable[[], None]:
        """Let the job, which another process runs, spend what the server's budget has room for.

        Returns what to call when that process has ended: it charges what the job has spent, and frees the rest.
        """
        budget, folder = self._service.budget, job.folder
        if budget is None:
            return lambda: None
        before = await asyncio.to_thread(status.spent, folder)
        wanted = job.order.max_cost
        lent = budget.lend(None if wanted is None else wanted - before)
        job.order = job.order.model_copy(update={"max_cost": before + lent})
        loop = asyncio.get_running_loop()

        def ended() -> None:
            try:
                spent = status.spent(folder) - before
            except (OSError, DamagedError):  # it cannot be known any more
                spent = lent
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(budget.free, lent, max(0.0, spent))

        return ended

    async def _are_columns_checked(self, order: JobRequest, plan: ResolvedConfig) -> bool:
        """Check the columns of Parquet in another process: a crafted schema can end the one that reads it."""
        if row_files.format_by_suffix(order.input, "input_file") != "parquet":
            return False
        folder = self.folders.of(order.input, order.target)
        if await asyncio.to_thread(lambda: folder.spec) is None:
            async with self._apart:
                await detached.check_columns(order, plan.file_rule)
        return True

    async def _admitted(self, order: JobRequest, plan: ResolvedConfig, *, are_columns_checked: bool = False) -> Job:
        """Return the job of `order`, whose paths are resolved; close it if its caller left meanwhile."""

        def let_go(done: asyncio.Future[Job]) -> None:
            if not done.cancelled() and not done.exception():
                done.result().close()

        admit = partial(
            admission.admit,
            order,
            plan,
            self.folders,
            are_columns_checked=are_columns_checked,
            are_paths_resolved=True,
        )
        admitting = asyncio.ensure_future(asyncio.to_thread(admit))
        try:
            return await asyncio.shield(admitting)
        except asyncio.CancelledError:
            admitting.add_done_callback(let_go)
            raise

    def status(self, job_id: str | None, limit: int = _MOST_LISTED, caller: Caller = USER) -> dict[str, Any]:
        """Return the status of one job, or the newest as `{"jobs": […], "more": how many there are besides}`.

        Jobs on rows that came in a call are listed for their session only.
        """
        if job_id is not None:
            state = status.read(self.find(job_id, caller))
            return state | {"state": status.STARTING} if job_id in self._waiting else state
        found = status.read_all(self.folders.all(), partial(self._is_listed, caller=caller))
        return {"jobs": found[:limit], "more": max(0, len(found) - limit)}

    def results(
        self, job_id: str, offset: int, limit: int, only: Only = "all", caller: Caller = USER
    ) -> dict[str, Any]:
        """Return answered rows from row `offset` (from 0) on, in input order; also before the job's end. Blocks.

        `only` leaves out rows that failed, or those that did not.

        `next_offset` is where to go on, None at the end of the input; rows without an answer yet are left out.
        """
        folder, spec = self._found(job_id, caller)
        fields = (
            _index if spec.of_call else partial(_fields, rule.finder if (rule := self._rule()).is_guarded else None)
        )
        found: list[dict[str, Any]] = []
        names = spec.columns or {}
        size, after = 0, None
        with folder.reading() as store:
            for line, record in _rows(folder, spec, store, min(offset, FARTHEST_ROW)):
                if len(found) >= limit or size > _LARGEST_PAGE:
                    after = line.row
                    break
                if record is not None and _is_wanted(record, only) and not spec.leaves_out(record.code):
                    answered = _answer_fields(record, names)
                    found.append({names.get("row", "row"): line.row} | fields(line) | answered)
                    size += _size(line.data or b"") + _size(orjson.dumps(answered))
        told = status.read(folder)
        return {
            "job_id": job_id,
            "state": told["state"],
            "done": told.get("done", 0),
            "total": told.get("total"),
            **({"columns": names} if names else {}),
            "rows": found,
            "next_offset": after,
        }

    async def cancel(self, job_id: str, caller: Caller = USER, *, also_interrupted: bool = False) -> dict[str, Any]:
        """End a job if it runs, within about a second; what is answered is kept.

        `also_interrupted`: also if it runs nowhere now, so that its task does not go on.
        """
        folder = self.find(job_id, caller)
        if (waiting := self._waiting.get(job_id)) is not None:
            waiting.cancel()
        if folder.request_cancel(even_if_it_runs_nowhere=also_interrupted or waiting is not None):
            await asyncio.to_thread(folder.wait_for_end, _WAIT_S)
        return status.read(folder)

    def run_here(self, job: Job, place: Place | None = None) -> asyncio.Task[Any]:
        """Run a job in this process, in `place` if it has one; return its run.

        Other processes read its files, unless we wrote its requests.
        """

        async def apart(step: str, files: JobFiles) -> Any:
            async with self._apart:
                return await detached.apart(step, files)

        async def run() -> None:
            with job.folder.log.open("a") as log:
                runner = Runner(
                    job,
                    self._service,
                    watch=status.progress_lines(job.spec.job_id, log),
                    apart=None if job.spec.of_call else apart,
                )
                await runner.run()

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
        """List the job of a call for its client, if that is the only one."""
        if not self._service.is_shared:
            self._own[job_id] = ""

    def find(self, job_id: str, caller: Caller) -> Folder:
        """Return the folder of a job that its caller may see. Raises `PromptmillError` (`invalid_input`)."""
        return self._found(job_id, caller)[0]

    def _found(self, job_id: str, caller: Caller) -> tuple[Folder, JobSpec]:
        folder = self.folders.find(job_id)
        spec = folder.known_spec()  # read once: its folder could be another one by the second time
        if not self._is_owner(folder, spec, caller):
            raise no_job(job_id)
        if not self._may_see(folder, spec):
            raise input_error(f"Job {job_id} has files outside the folders that may be used here, or other such files.")
        return folder, spec

    def _is_listed(self, folder: Folder, spec: JobSpec, caller: Caller) -> bool:
        if spec.of_call or self._is_given(spec.output):
            return self._own.get(spec.job_id) == caller.session
        return self._is_owner(folder, spec, caller) and self._may_see(folder, spec)

    def _is_owner(self, folder: Folder, spec: JobSpec, caller: Caller) -> bool:
        """Return whether a job is its caller's, or everybody's: those on files are."""
        owner = spec.owner
        if owner is None and (spec.of_call or self._is_given(spec.output)):  # of an older release
            owner = (folder.task or {}).get("owner", "")
        return owner is None or owner == caller.owner

    def _may_see(self, folder: Folder, spec: JobSpec) -> bool:
        if spec.of_call and folder.output_beside is None:
            return True
        paths = (spec.output, *(part.path for part in spec.parts))
        return all(self._is_given(path) or self._passes(path) for path in paths)

    def _allowed(self, text: str, name: str, caller: Caller) -> Path:
        if len(text) > LONGEST_PATH:
            raise input_error(f"{name} has {len(text):,} characters; no path is that long.")
        rule, path = self._rule(), home_expanded(text)
        try:
            if self._is_own_call(path, caller):
                return real_path(path)
            real = rule.resolved(path)
        except (OSError, ValueError, RuntimeError):
            raise input_error(f"{name} is not a usable path.") from None
        except OutsideError:
            raise input_error(f"{name} is outside {rule.words}. Use a file inside.") from None
        except RefusedError as error:
            raise input_error(f"{name} {error}. {OTHERWISE if name == 'input_file' else _NAME_ANOTHER}") from None
        admission.check_name(real)
        kind = row_files.format_by_suffix(real, name)
        if kind not in _FORMATS:  # the user's texts and JSON files are no concern of a caller
            whole = "; `files` sends whole texts." if (name, kind) == ("input_file", "txt") else "."
            raise input_error(
                f"{name} is a .{kind} file; use one of .jsonl, .csv, .tsv, .parquet here: others may be a program's"
                f"{whole}"
            )
        if row_files.is_several(real):
            raise input_error(f"{name} is a folder or a pattern; name a file.")
        return real

    def _is_own_call(self, path: Path, caller: Caller) -> bool:
        """Return whether `path` is the input or output of a call of the caller's own that became a job."""
        if is_remote(str(path)):
            return False
        folder = self.folders.owner(real_path(path))
        return folder is not None and self._is_owner(folder, folder.known_spec(), caller)

    def _passes(self, path: Path) -> bool:
        """Return whether the rule on files lets a resolved path pass."""
        try:
            self._rule().check(path)
        except (OutsideError, RefusedError):
            return False
        return True

    def _is_given(self, path: Path) -> bool:
        """Return whether a file is one of ours, with rows that came in a call or their answers."""
        return path.is_relative_to(root_of(self.folders).resolve())


def _report(job_id: str, work: asyncio.Task[Any]) -> None:
    """Print the error that ended the work on a job."""
    if not work.cancelled() and (error := work.exception()):
        print(f"promptmill: job {job_id} ended: {type(error).__name__}", file=sys.stderr)


def _dies_again(job: Job) -> bool:
    """Count the last run if it died; return whether so many died without another answer that the job is stopped."""
    folder = job.folder
    if folder.status.get("state") not in status.ALIVE:  # its end was noted
        return False
    before, done = folder.store.get("deaths") or {}, folder.store.counts().done
    times = 1 + (before["times"] if before.get("done") == done else 0)
    folder.put(deaths={"done": done, "times": times})
    if times < _MOST_DEATHS:
        return False
    reason = f"The process that ran the job ended {times} times without another answer, perhaps for lack of memory."
    folder.put(status={**folder.status, "state": status.STOPPED, "reason": reason})
    return True


def _answer_fields(record: Record, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer's fields as for the output, without logprobs and the like where they take megabytes.

    Their values would take many times their size in memory, and seconds of the event loop to send.
    """
    size = len(record.more or "")
    if size <= _LARGEST_MORE and _size((record.more or "").encode()) <= _LARGEST_PAGE:
        return answer_fields(record, names)
    left_out = f"`logprobs`, `tool_calls` and the like take {size:,} bytes; they are in the job's output file."
    return answer_fields(record._replace(more=None), names) | {"left_out": left_out}


def _rows(folder: Folder, spec: JobSpec, store: JobStore, first: int) -> Iterator[tuple[Line, Record | None]]:
    """Yield the lines from row `first` on with their records, None for those without a sound one.

    The first line behind the last record is the last one: the rest of a large input is not read.
    """
    try:
        file = RandomFile(folder.rows) if spec.spooled else RandomFile.given(spec.input)
    except (FileNotFoundError, OutsideError, NoFileError):
        if spec.spooled:
            return  # nothing is answered yet
        raise input_error(  # gone, or a link to something else now
            f"{spec.input} is not there any more, and rows are read from it; put it back. "
            "What is answered is kept, and a finished job's output has all of it."
        ) from None
    try:
        if spec.to_bind == "questions" or (not spec.spooled and file.stamp()[0] != spec.size):
            # the answers are those to other rows
            raise admission.changed_while_running(spec)
        lines = Lines(file)
        lines.skip(first)
        records = store.records(first)
        record = next(records, None)
        while block := lines.read():
            for line in block:
                while record is not None and record.row < line.row:
                    record = next(records, None)
                if not line.blank:
                    is_its_own = record is not None and record.row == line.row and record.is_sound
                    yield line, record if is_its_own else None
                    if record is None:
                        return
    finally:
        file.close()


def _size(text: bytes) -> int:
    """Return the size of JSON as a part of a page: its bytes, and more for many values."""
    return len(text) + _VALUE * text.count(b",")


def _is_wanted(record: Record, only: Only) -> bool:
    return only == "all" or (record.code is None) == (only == "answers")


def _index(line: Line) -> dict[str, Any]:
    """Return which item of its call the row is; the caller has the prompt."""
    return {"index": rows.load(line.data or b"", "")["index"]}


def _fields(finder: SecretFinder | None, line: Line) -> dict[str, Any]:
    """Return the row's own fields, as far as they can be sent; `{}` for a row that is too large for a page.

    A row of a job of the operator's may hold secrets, which are left out.
    """
    if _size(line.data or b"") > _LARGEST_PAGE:
        return {}
    try:
        value = rows.load(rows.row_of(line.data or b""), "")
        if isinstance(value, list):  # the cells of a table
            value = rows.load(rows.question(line.data or b""), "")
        text = orjson.dumps(value)
    except (PromptmillError, TypeError):
        return {}
    if not isinstance(value, dict):
        return {}
    if finder is not None and (find_field(value) or finder.find(text)):
        return {"left_out": f"The row's fields {MAY_HOLD_SECRETS}."}
    return value
