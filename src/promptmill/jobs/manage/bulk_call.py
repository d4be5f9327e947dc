"""The jobs of Python programs: `promptmill.bulk`, its async variant, and the variants that yield rows.

    rows ─▶ a temporary file ─▶ job.db ─▶ answers ─▶ the result

If the program is interrupted, the answers are kept, and the same call resumes the job. A job without an output file is
removed when the program has the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import queue
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from promptmill.answers.response_format import AnswerType
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError, input_error, worded
from promptmill.core.feature import replacement
from promptmill.core.values import JsonObject
from promptmill.jobs import door
from promptmill.jobs.door import SILENT, MadeRows, NamedRows, OpenJob, Rows, Telling, decided, open_job
from promptmill.jobs.export.answered import AnsweredRow, answered_rows, outcomes_so_far
from promptmill.jobs.export.output import end_of
from promptmill.jobs.export.text import AnswerValues, OwnValues
from promptmill.jobs.inputs.remote_files import Say
from promptmill.jobs.inputs.short_forms import answer_forms
from promptmill.jobs.manage.bulk_keywords import (
    argument_of,
    check_path,
    configuration_of,
    errors_of,
    option_forms,
    takes_options,
)
from promptmill.jobs.manage.bulk_result import BulkResult, answer_of, like, lines_of, refusal_of
from promptmill.jobs.manage.step_model import StepModel
from promptmill.jobs.rows.template import template_of
from promptmill.jobs.run.job import Hooks, Job
from promptmill.jobs.run.planning import resent
from promptmill.jobs.run.row_check import Complain
from promptmill.jobs.store import progress, statistics, status, status_words
from promptmill.jobs.store.database import JobDatabase, Row
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.progress import Progress, Watch
from promptmill.jobs.store.records import Record
from promptmill.options.check import check
from promptmill.options.keywords import BulkOptions
from promptmill.options.table import with_implied
from promptmill.service.service import Service
from promptmill.system import runtime

_INNER = frozenset({"promptmill", "asyncio", "contextlib", "concurrent", "threading"})  # packages of skipped frames
_KEPT = "The answers so far are kept: the same call resumes the job."


@takes_options
def bulk(rows: Any, output: str | Path | None = None, **options: Unpack[BulkOptions]) -> BulkResult:
    """Answer all rows and return them with their answers, in the same order.

    `rows`: a column or a table of pandas, polars, pyarrow or `datasets`; any iterable of texts, dicts (as in a file of
    rows) or lists of messages; the path of a file, a folder or a pattern, as text or `pathlib.Path`; None if the option
    `sql` names the files. `rows` and `output` may be URLs, such as "https://example.com/mails.csv" and
    "s3://bucket/out.csv". `output`: a file to write. If it is given and `rows` is a path, `rows` and `answers` of the
    result are empty.

    Raises `PromptmillError` when the job stops. The answers up to this point, or up to Ctrl-C, are kept: the same call
    resumes the job.
    """
    return runtime.run_anywhere(_answered(_Call.of(rows, output, options, warning_caller())))


@takes_options
async def bulk_async(rows: Any, output: str | Path | None = None, **options: Unpack[BulkOptions]) -> BulkResult:
    """Do the same as `bulk`, inside a running event loop."""
    return await _answered(await asyncio.to_thread(_Call.of, rows, output, options, warning_caller()))


def step_model(options: Mapping[str, Any], watch: Watch | None) -> StepModel:
    """Return the model of a step of a series. `options`: as in `bulk`; None means not set. Raises `PromptmillError`."""
    given = {name: value for name, value in options.items() if value is not None}
    configuration = decided(configuration_of(given | answer_forms(given)))

    async def run(opened: OpenJob) -> None:
        call = _Call(opened, configuration, watch)
        async with call.admitted() as (job, service):
            await call.run(job, service)

    return StepModel(configuration, lambda job: runtime.run_anywhere(run(job)))


async def _answered(call: _Call) -> BulkResult:
    with errors_of(call.given):
        async with call.admitted() as (job, service):
            await call.run(job, service)
        await asyncio.to_thread(call.upload)
        return await asyncio.to_thread(call.result)


@takes_options
async def stream_async(
    rows: Any, output: str | Path | None = None, **options: Unpack[BulkOptions]
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield each row when it is answered; field `row` is its number, from 1. The arguments are as in `bulk`."""
    async for row in _rows_of(await asyncio.to_thread(_Call.of, rows, output, options, warning_caller())):
        yield row


async def _rows_of(call: _Call) -> AsyncGenerator[dict[str, Any], None]:
    with errors_of(call.given):
        async with call.admitted() as (job, service), contextlib.aclosing(call.rows_of(job, service)) as rows:
            async for row in rows:
                yield row
        await asyncio.to_thread(call.upload)
        await asyncio.to_thread(call.forget)


@takes_options
def stream(
    rows: Any, output: str | Path | None = None, **options: Unpack[BulkOptions]
) -> Generator[dict[str, Any], None, None]:
    """Do the same as `stream_async` without an event loop. Closing the generator interrupts the job."""
    answered: queue.Queue[dict[str, Any] | None] = queue.Queue()
    warn = warning_caller()
    stop: list[Callable[[], object]] = []

    async def work() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        async for row in _rows_of(await asyncio.to_thread(_Call.of, rows, output, options, warn)):
            answered.put(row)

    result = runtime.in_daemon_thread(lambda: runtime.run_anywhere(work()), "promptmill")
    result.add_done_callback(lambda _: answered.put(None))
    try:
        while (row := answered.get()) is not None:
            yield row
        result.result()
    finally:
        if stop and not result.done():
            with contextlib.suppress(RuntimeError):  # the work has just ended and closed its event loop
                stop[0]()
        wait([result])


def warning_caller() -> Say:
    """Return a function that any thread may call: it shows a warning for the program's line that called promptmill."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER:
        frame = frame.f_back
    place, line, names = frame.f_code.co_filename, frame.f_lineno, frame.f_globals
    shown = names.setdefault("__warningregistry__", {})
    return lambda text: warnings.warn_explicit(text, UserWarning, place, line, names.get("__name__"), shown)


@dataclass
class _Call:
    """One call of `bulk`: its job and its result."""

    job: OpenJob
    configuration: Configuration
    watch: Watch | None
    rows: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)
    """The options of the call that are not None."""
    written: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """Removes the temporary file of the rows."""
    folder: Folder | None = None
    """The job's folder, after admission."""
    status: Mapping[str, Any] = field(default_factory=dict)
    warn: Say = field(default_factory=warning_caller)

    @classmethod
    def of(cls, rows: Any, output: str | Path | None, options: BulkOptions, warn: Say) -> _Call:
        """Write the rows to a temporary file and return the call. Raises `PromptmillError`."""
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        with errors_of([*given, "rows"]), contextlib.ExitStack() as written:
            given |= option_forms({**given, "output": output or ""})
            source = _rows_of_program(rows, given)
            check({**given, "output": output}, source.source)
            given |= answer_forms(given)
            configuration = decided(configuration_of(given))
            state = {"PROMPTMILL_STATE": str(given["state"])} if "state" in given else os.environ
            folders = JobFolders.from_environ(state)
            is_name = source.source == "paths" and isinstance(rows, str)
            if is_name and " " in rows and "*" not in rows and not Path(rows).exists():
                text = "rows is one text, and no file has this name; send a list to have it answered: [text]."
                raise input_error(text)
            telling = Telling(warn=warn)
            order = {**given, "system_prompt": given.get("system")}
            job = written.enter_context(open_job(source, output, order, configuration, folders, telling=telling))
            for note in job.notes:
                warn(worded(note, argument_of))
            watch = watch_of(show=given.get("progress"))
            return cls(job, configuration, watch, rows, given, written.pop_all(), warn=warn)

    @cached_property
    def schema(self) -> AnswerType | None:
        """The answers' schema or class, which `schema` sets or another option implies; None if there is none."""
        schema: AnswerType | None = with_implied(self.given).get("schema")
        return schema

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncGenerator[tuple[Job, Service]]:
        # `written` stays open, because the run reads the rows from a temporary file
        with self.written, contextlib.closing(await self.job.admitted()) as job:
            self.folder = job.folder
            async with contextlib.aclosing(job.service(self.configuration)) as service:
                yield job, service

    async def run(self, job: Job, service: Service, **hooks: Any) -> None:
        """Run the job to its end. `hooks`: fields of `Hooks`. Raises `PromptmillError` if the job stops early."""
        if job.finished:
            self.status = status.read(job.folder)
            return
        try:
            error = await door.run(job, service, Hooks(watch=self.watch, check=self._check_of(job), **hooks))
        finally:
            self.status = status.read(job.folder)
            for note in self.status.get("warnings", ()):
                self.warn(note)
        if error is not None:
            if self.status.get("done"):
                error.add_note(_KEPT)
            raise error
        if self.status["state"] != progress.FINISHED:
            raise PromptmillError(Code.SHUTDOWN, f"The job ended as {self.status['state']}.", _KEPT)

    def _check_of(self, job: Job) -> Complain | None:
        """Return a function that applies `check` and the validators of the schema's class; None without these."""
        complain, schema = self.given.get("check"), self.schema
        if complain is None and not isinstance(schema, type):
            return None

        def check(answer: str, row: Row) -> str | None:
            if (refused := refusal_of(answer, schema)) is not None:
                return str(refused["message"])
            return None if complain is None else complain(answer_of(answer, schema), OwnValues(job.spec).of(row))

        return check

    async def rows_of(self, job: Job, service: Service) -> AsyncGenerator[dict[str, Any]]:
        """Run the job and yield each row when it is answered. Raises the errors of `run`."""
        recorded: asyncio.Queue[Sequence[int]] = asyncio.Queue()
        bound, passed = asyncio.Event(), asyncio.Event()

        async def before_answers() -> None:
            bound.set()
            await passed.wait()

        counted = [settings for target in job.spec.targets for settings in target.counted]
        stays = statistics.DELIVERED
        if not job.finished:
            stays += f" AND NOT ({resent(job.order, job.change.since, counted)})"
        store = job.folder.store
        running = asyncio.ensure_future(
            self.run(job, service, before_answers=before_answers, recorded=recorded.put_nowait)
        )
        running.add_done_callback(lambda _: recorded.put_nowait(()))
        running.add_done_callback(lambda _: bound.set())
        try:
            await bound.wait()  # until the answers of earlier runs are bound to the rows
            async for page in _pages(store, stays):
                for row in await asyncio.to_thread(self._shown, job, page):
                    yield row
            passed.set()
            while keys := await recorded.get():
                for row in self._shown(job, store.records_at(keys)):
                    yield row
            await running
        finally:
            running.cancel()
            await asyncio.wait({running})

    def _shown(self, job: Job, records: Collection[Record] | Iterator[Record]) -> list[dict[str, Any]]:
        """Return the rows of the records, each with its number. Rows that the output omits are left out."""
        form, shown = _Form(job.spec, self.schema), []
        for record in records:
            if job.spec.leaves_out(record.code) or record.slot >= job.spec.delivered:
                continue
            (row,) = job.folder.store.row_page(record.row, record.row)
            values = form.values(AnsweredRow.of(job.folder.store, job.spec, row, record))
            values[form.answer] = answer_of(values[form.answer], self.schema)
            shown.append({form.row: record.row + 1, **values})
        return shown

    def upload(self) -> None:
        """Upload the output if `output` is a URL. Raises `PromptmillError`."""
        if self.job.remote is not None and self.folder is not None:
            self.job.remote.deliver(self.folder, SILENT.say)

    def result(self) -> BulkResult:
        """Return the result. If the job has no output file, remove it."""
        assert self.folder is not None
        spec, shown = self.folder.known_spec(), []
        numbers, replaced, is_replaced = list[int](), list[JsonObject](), replacement(self.given) is not None
        form, own = _Form(spec, self.schema), OwnValues(spec)
        if self.job.loose is not None or self.job.source is not None:
            with self.folder.reading() as store:
                end = end_of(store, self.job.order.limits.limit)
                for each in answered_rows(store, spec, outcomes_so_far, 0, end):
                    numbers.append(each.row.n)
                    shown.append(form.values(each))
                    if is_replaced:
                        replaced.append(own.of(each.row))
        given = self.rows
        if is_replaced:
            given, numbers = like(self.rows, replaced), list(range(len(replaced)))
        self.forget()
        output = None if self.job.loose is not None else spec.output.path
        names = spec.output.names or {}
        variants = [target.name for target in spec.targets] if spec.is_grid else []
        return BulkResult(form.with_refused(self.status), shown, names, output, given, self.schema, numbers, variants)

    def forget(self) -> None:
        if self.job.loose is not None and self.folder is not None:
            shutil.rmtree(self.folder.path, ignore_errors=True)


class _Form:
    """Converts a row and its answer to a dict with the fields of the JSON output.

    If a validator of the schema's class refuses an answer, the row fails.
    """

    def __init__(self, spec: JobSpec, answer_schema: AnswerType | None) -> None:
        self._own, self._answers, self._schema = OwnValues(spec), AnswerValues(spec), answer_schema
        names = spec.output.names or {}
        self.row, self.answer, self._error = (names.get(name, name) for name in ("row", "answer", "error"))
        self._refused = 0

    def values(self, answered: AnsweredRow) -> dict[str, Any]:
        values = self._own.of(answered.row) | self._answers.in_json(answered)
        if refusal := refusal_of(values[self.answer], self._schema):
            self._refused += 1
            values |= {self.answer: None, self._error: refusal}
        return values

    def with_refused(self, status: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a job's status in which refused answers count as failed."""
        if not self._refused:
            return status
        errors = Counter(status.get("errors", {})) + Counter({str(Code.INVALID_ANSWER): self._refused})
        answered, failed = status.get("answered", 0) - self._refused, status.get("failed", 0) + self._refused
        return {**status, "answered": answered, "failed": failed, "errors": dict(errors)}


async def _pages(store: JobDatabase, where: str) -> AsyncGenerator[list[Record], None]:
    """Yield pages of records that meet the condition `where`. A thread reads the pages."""
    first = 0
    while page := await asyncio.to_thread(store.page, first, where):
        yield page
        first = page[-1].key + 1


def _rows_of_program(rows: object, given: Mapping[str, Any]) -> Rows:
    """Return the rows of a call: rows at paths or URLs, rows that a query selects, or the rows that were passed."""
    if rows is None:
        return NamedRows(())
    if isinstance(rows, str | Path):
        check_path("rows", rows)
        return NamedRows([str(rows)])
    if isinstance(rows, list) and rows and all(isinstance(row, Path) for row in rows):
        for path in rows:
            check_path("rows", path)
        return NamedRows([str(row) for row in rows])
    columns = list(map(str, getattr(rows, "column_names", getattr(rows, "columns", ()))))
    prompts = given.get("prompt") or ()
    texts = [prompts] if isinstance(prompts, str) else prompts.values() if isinstance(prompts, Mapping) else prompts
    for text in texts if len({*columns}) < len(columns) else ():
        used = template_of(text, columns).names
        if twice := next((name for name in used if columns.count(name) > 1), None):
            raise input_error(f"The input has two columns `{twice}`; rename one of them.")
    return MadeRows(lines_of(rows, "text" if "prompt" in given else "prompt"), has_lines=False)


def watch_of(*, show: bool | Callable[[Mapping[str, Any]], object] | None) -> Watch | None:
    """Return the function that shows the progress; None if nothing is shown."""
    if callable(show):

        def tell(now: Progress) -> None:
            show(now.as_dict())

        return tell
    if show is False:
        return None
    if (shell := _notebook()) is not None:
        return _bar(shell)
    return status_words.progress_lines("bulk", sys.stderr) if show or sys.stderr.isatty() else None


def _notebook() -> Any:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return None if getattr(shell, "kernel", None) is None else ipython


def _bar(ipython: Any) -> Watch:
    handle = ipython.display.DisplayHandle()
    handle.display({"text/plain": ""}, raw=True)
    shown: list[str] = []

    def show(now: Progress) -> None:
        counts = now.as_dict()
        text = f"{status_words.in_words(counts['state'])}, {status_words.line(counts)}"
        if shown != [text]:
            shown[:] = [text]
            total = counts.get("total")
            size = "" if total is None else f' max="{total or 1}" value="{counts.get("done", 0)}"'
            bar = f"<progress{size}></progress> {html.escape(text)}"
            handle.update({"text/plain": text, "text/html": bar}, raw=True)

    return show
