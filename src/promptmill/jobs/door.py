"""The door of jobs: rows from anywhere and the options of a job become a job that can be run.

    `open_job`: paths, URLs, a query, rows ─┐              ┌─▶ validate
    `reopened`: the folder of a job ────────┴─▶ `OpenJob` ─┼─▶ detach ─▶ a process of its own
                                                           └─▶ admit ─▶ `Job` ─▶ `run`, `until_signal`

The command line, the tools, Python and features start jobs only through this module (`tests/test_architecture.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from promptmill.backends.protocol import Call
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, PromptmillError, Words, input_error, redact
from promptmill.core.feature import query, replacement
from promptmill.files.files import InputFiles, find, holds_output
from promptmill.files.files import opened as opened_files
from promptmill.files.format_table import of_input
from promptmill.files.formats import is_url
from promptmill.files.sql_table import is_query
from promptmill.jobs.caller import Caller, CallModels
from promptmill.jobs.inputs import remote_files
from promptmill.jobs.inputs.any_format import format_of_input, input_of
from promptmill.jobs.inputs.input_rows import InputRows, loose_id, temporary_folder, written
from promptmill.jobs.inputs.remote_files import RemoteOutput, Say
from promptmill.jobs.inputs.row_secrets import check_encoding
from promptmill.jobs.inputs.whole_files import (
    IS_OUTPUT,
    FileQuestion,
    OwnFiles,
    WholeFiles,
    are_asked_whole,
    omitted,
)
from promptmill.jobs.run import admission, detached, runner
from promptmill.jobs.run.job import NO_HOOKS, Apart, Hooks, Job
from promptmill.jobs.run.wanted_job import WantedJob, check_output, with_query
from promptmill.jobs.store import status
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import InputReading, JobOrder, OrderTexts, as_written
from promptmill.jobs.store.spec import digest
from promptmill.jobs.store.status_record import RunStatus, Status
from promptmill.jobs.store.stored import Target
from promptmill.options.table import errors_about
from promptmill.service import choosing
from promptmill.service.service import Service
from promptmill.steps.costs import lacking
from promptmill.system import runtime
from promptmill.system.call_files import FileRule
from promptmill.system.safe_open import home_expanded, real_path
from promptmill.system.subprocesses import Halt


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a job: their names (paths, URLs), or the rows themselves."""

    names: Sequence[str] = ()
    """Paths, patterns or URLs; `()` if a query names the files."""
    blocks: Iterable[bytes] | None = None
    """The content of the rows, instead of names."""
    suffix: str = ".jsonl"
    """The format of `blocks`."""
    written: InputRows | None = None
    """Rows in a temporary file of promptmill, instead of names."""
    rule: FileRule | None = None
    """The file rule for `names` from a call, if the content of each file is a row."""
    halt: Halt | None = None
    """Set when the call was cancelled."""
    has_lines: bool = True
    """Whether the user knows a row of `blocks` as a line; False: as a row, such as one of a list."""
    name: str = "rows"
    """In messages and ids: the name of rows that are not in the user's files."""
    owned_by: str | None = None
    """If two owners send equal rows, each owner gets a job. None: equal rows share one job."""
    job_id: str = ""
    """The id of a job without an output; `""`: derive the id from the rows, question and settings."""

    @property
    def source(self) -> str:
        """The kind of source, one of `options.table.ROWS`."""
        if self.blocks is not None:
            return "values"
        return "urls" if any(map(is_url, self.names)) else "paths" if self.names else "query"


@dataclass(frozen=True, slots=True)
class Telling:
    """Functions that show the user how the rows are opened."""

    say: Say = lambda _: None
    """Called with each step."""
    warn: Say = lambda _: None
    """Called with each warning."""
    waiting: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    """The context that is entered while the store of a URL has not answered."""


SILENT = Telling()
"""Shows nothing to the user."""


@dataclass(frozen=True, slots=True)
class OpenJob(WantedJob):
    """A job before its admission."""

    loose: Folder | None = None
    """The folder of a job without an output."""
    remote: RemoteOutput | None = None
    """The output by URL."""
    files: WholeFiles | None = None
    """If each file is a row: these files."""

    @property
    def notes(self) -> Sequence[Words]:
        """Remarks about the rows for the user."""
        if self.files is None:
            given = self.order.inputs if self.source is None else ()
            left_out = [omitted(IS_OUTPUT, [Path(self.order.output.name)])]
            hints = [hint for each in self.order.parts.values() for hint in each.hints(given)]
            return [*(left_out if holds_output(given, self.order.target) else []), *hints]
        raw = [f"Warning: {self.files.raw}."] if self.files.raw else []
        return [*self.files.left_out, *self.files.forms, *raw]

    def check(self) -> None:
        """Check the order and the files, not the rows. Blocks. Raises as `admit`, and changes nothing."""
        admission.checked(self)

    def admit(self, *, are_columns_checked: bool = False) -> Job:
        """Return the admitted job, which the caller closes. Blocks. Raises as `admission.admit`."""
        return admission.admit(self, are_columns_checked=are_columns_checked)

    async def admitted(self, *, are_columns_checked: bool = False) -> Job:
        """Like `admit`, in a thread. If the caller is cancelled meanwhile, the job is closed."""

        def let_go(done: asyncio.Future[Job]) -> None:
            if not done.cancelled() and not done.exception():
                done.result().close()

        admit = functools.partial(self.admit, are_columns_checked=are_columns_checked)
        admitting = asyncio.ensure_future(asyncio.to_thread(admit))
        try:
            return await asyncio.shield(admitting)
        except asyncio.CancelledError:
            admitting.add_done_callback(let_go)
            raise

    def validate(self) -> dict[str, Any]:
        """Check all rows; return the problems, and an estimate. Sends no request. Raises as `admit`."""
        from promptmill.jobs.run.validation import check  # imported on use, because it imports the readers of images

        return check(self)

    def detach(self, seen: Callable[[Job], None]) -> Status:
        """Start the job in its own process; return its status. `seen` gets the job before the start. Raises as
        `admit`."""
        with contextlib.closing(self.admit()) as job:
            seen(job)
            if self.source is not None and (files := job.unread()) is not None:
                job.reading(files)(Work(), job.folder)
            if not job.finished:
                status.write_starting(job.folder)
                detached.start(job)
        return status.read(job.folder)


async def run(
    job: Job, service: Service, hooks: Hooks = NO_HOOKS, *, call: Call | None = None, apart: Apart | None = None
) -> PromptmillError | None:
    """Run an admitted job in this process until it ends. Return the error that stopped it early. See `Runner`."""
    running = runner.Runner(job, service, hooks, call=call, apart=apart)
    await running.run()
    return running.progress.error


async def until_signal(job: Job, service: Service, hooks: Hooks) -> tuple[RunStatus, PromptmillError | None, bool]:
    """Run the only admitted job of this process until it ends, or until SIGTERM or Ctrl-C. See `runner.until_ended`."""
    return await runner.until_ended(job, service, hooks)


def decided(configuration: Configuration) -> Configuration:
    """Return the configuration with its backend and model resolved, because both are part of a job. Blocks."""
    return runtime.run_anywhere(choosing.decided(configuration)) if configuration.config.is_open else configuration


def check_budget(options: Mapping[str, Any], configuration: Configuration) -> None:
    """Raise `PromptmillError` (`invalid_config`) if a model of a job, whose rows may be missing yet, lacks what a
    budget needs."""
    order = JobOrder.of((), Path("-"), {**options, "from_job": None})
    first, named = configuration.config, configuration.names
    models = order.plan.asked([Target(model=variant.model) for variant in order.variants] or [Target()])
    own = {name: configuration.config_of(name) if name in named else first.with_model(name) for name in models if name}
    asked = [order.plan.answering(name, own.get(name, first)) for name in models]
    if (error := lacking(asked, rows_set=order.question.rows_set)) is not None:
        raise error


def reopened(
    folder: Folder,
    models: Configuration | CallModels,
    folders: JobFolders,
    *,
    again: Literal["failed"] | None = None,
    is_of_call: bool = False,
) -> OpenJob:
    """Return the job in `folder` with its last order and the present paths of its files. `again`: rows to send again.

    Raises `PromptmillError` if there is no such job.
    """
    spec, order = folder.known_spec(), folder.order
    inputs = order.inputs if order is not None and order.inputs[1:] else (spec.input.path,)
    now = {"inputs": inputs, "output": spec.output.path}
    order = JobOrder(**now) if order is None else order.model_copy(update=now)
    order = order.with_earlier(again=again)
    return OpenJob(order, models, folders, is_fixed=not is_of_call, is_of_call=is_of_call)


@contextlib.contextmanager
def open_job(
    rows: Rows,
    output: str | Path | None,
    options: Mapping[str, Any],
    models: Configuration | CallModels,
    folders: JobFolders,
    *,
    shown: OrderTexts | None = None,
    caller: Caller | None = None,
    telling: Telling = SILENT,
) -> Iterator[OpenJob]:
    """Yield the job for `rows` and `options`, see `JobOrder.of`. Afterwards, remove the temporary files of its rows.

    `output`: a path or a URL; None: no output. `shown`: texts for status and report, such as the command line.
    `caller`: the client of a call; a call names only files of this machine, by resolved paths. Blocks.

    Raises `PromptmillError`.
    """
    names, sql, urls, shown = rows.names, options.get("sql"), dict[str, str](), shown or OrderTexts()
    target, uploaded = Path("-") if output is None else home_expanded(output).absolute(), None
    if output is not None and is_url(str(output)):
        uploaded = RemoteOutput.of(folders, str(output))
        if not options.get("validate"):
            with telling.waiting(redact(str(output))):
                uploaded.check(may_replace=bool(options.get("overwrite")))
        target, urls["output_file"] = uploaded.local, redact(uploaded.url)
    with errors_about(options), contextlib.ExitStack() as opened:
        paths, source = list[Path](), rows.written
        if rows.blocks is not None:
            source = opened.enter_context(
                written(folders, rows.blocks, rows.suffix, rows.name, has_lines=rows.has_lines)
            )
        elif caller is None and sql is not None and is_query(sql, names):
            urls["input_file"] = redact(", ".join(names) or "a query")
            with telling.waiting(urls["input_file"]):
                source = opened.enter_context(query()(folders, sql, names))
            options = {**options, "sql": None}
        elif caller is None and rows.source == "urls":
            with telling.waiting(redact(names[0])):
                pinned, known = _pinned(names, folders.of(real_path(target)), shown.command, telling.warn)
                urls["input_file"] = as_written(pinned)
                source = opened.enter_context(remote_files.fetched(folders, pinned, telling.say, known))
        elif rows.rule is None:
            paths = [home_expanded(name).absolute() for name in names]
        order = _order(options, paths or [Path(rows.name)], target, folders)
        if caller is not None:
            check_encoding(order.reading.encoding)
        shown = shown.model_copy(update={"urls": urls, "input": as_written(names)})
        order, files = (
            order.model_copy(update={"shown": shown}),
            _whole_files(order, paths, rows, options, models.config),
        )
        if files is not None:
            lines = files.lines() if output is None else _lines_with_output(files, order)
            source = opened.enter_context(written(folders, lines, ".jsonl", files.name))
            order = files.asked(order)
        source, order = opened.enter_context(_replaced(folders, options, order, source, files))
        if source is not None:
            order = order.model_copy(update={"inputs": (Path(source.name),)})
        if source is not None and rows.owned_by is not None:
            source = source._replace(key=digest(source.key, rows.owned_by))
        if caller is not None and (source is not None or output is None):
            order = order.model_copy(update={"owner": caller.owner})
        loose = None
        if output is None:
            key = source or InputRows((), digest([str(path) for path in paths]))
            loose = folders.loose(rows.job_id or loose_id(key, models.config, order))
            order = order.model_copy(update={"output": loose.answers})
        is_of_call = caller is not None
        yield OpenJob(order, models, folders, source, loose=loose, remote=uploaded, files=files, is_of_call=is_of_call)


def _whole_files(
    order: JobOrder, paths: Sequence[Path], rows: Rows, options: Mapping[str, Any], config: ModelConfig
) -> WholeFiles | None:
    """Return the files if each file is a row; None if each file contains rows. Raises `PromptmillError`."""
    asked = FileQuestion(order.question, options.get("pdf"), order.reading.encoding, config.has_schema)
    if rows.rule is not None:
        return WholeFiles(rows.names, rows.rule, asked, order.output, rows.halt)
    if paths and are_asked_whole(paths, options.get("each"), order.question.templates, order.output):
        return OwnFiles(paths, order.output, asked)
    return None


def _lines_with_output(files: WholeFiles, order: JobOrder) -> Iterator[bytes]:
    """Check the output before the files are read, which may take long. Raises `PromptmillError`."""
    check_output(order, real_path(order.target))
    return files.lines()


@contextlib.contextmanager
def _replaced(
    folders: JobFolders,
    options: Mapping[str, Any],
    order: JobOrder,
    source: InputRows | None,
    files: WholeFiles | None,
) -> Iterator[tuple[InputRows | None, JobOrder]]:
    """Yield the rows of an order and the order, or those that a feature puts in their place, see `Feature.replaced`.

    Raises `PromptmillError`.
    """
    if (found := replacement(options)) is None:
        yield source, order
        return
    option, replace_rows = found
    if files is not None:
        raise input_error(Named(option), " works only for rows of tables, not for whole files.")
    if order.fills_input:
        raise input_error(Named(option), " makes other rows than those of the sheet; name another sheet or file.")
    inputs = _all_files(order, source)
    if of_input(input_format := format_of_input(inputs)).rows == "requests":
        raise input_error(Named(option), " works only for rows of values; this input holds complete requests.")
    name, shown = inputs.parts[0].path.name if source is None and not inputs.parts[1:] else "rows", order.shown
    if shown.input:
        shown = shown.model_copy(update={"urls": {"input_file": shown.input, **shown.urls}})
    with contextlib.ExitStack() as opened:
        with temporary_folder(folders) as place:
            rows = input_of(inputs, input_format)
            question, lines = replace_rows(rows, order.question, options[option], place)
            replaced = opened.enter_context(written(folders, lines, ".jsonl", name, has_lines=False))
        yield replaced, order.model_copy(update={"question": question, "reading": InputReading(), "shown": shown})


def _all_files(order: JobOrder, source: InputRows | None) -> InputFiles:
    """Return the files with the rows of an order, of a query without the order's limit. Raises `PromptmillError`."""
    if source is not None:
        return opened_files(source.parts, reading=order.reading)
    target = real_path(order.target)
    if order.output.is_absolute():  # a job without an output has only a name
        check_output(order, target)
    parts = with_query(find(order.inputs, target), order)
    return opened_files([replace(part, most_rows=None) for part in parts], reading=order.reading)


def _pinned(names: Sequence[str], folder: Folder, command: Sequence[str], warn: Say) -> tuple[list[str], str]:
    """Return the URLs, each with the commit of its dataset, and the digest of the objects that the job has read.

    If the command has changed, its question may have changed too and the rows are read again: the digest is then `""`.
    """
    before, order = folder.spec, folder.order
    is_same = order is not None and before is not None and before.is_read and order.shown.command == [*command]
    known = before.input.sha256 if before is not None and is_same and command else ""
    return remote_files.pinned(names, folder, warn), known


def _order(options: Mapping[str, Any], inputs: Sequence[Path], output: Path, folders: JobFolders) -> JobOrder:
    if earlier := options.get("from_job"):
        named = earlier if isinstance(earlier, Sequence) and not isinstance(earlier, str) else [earlier]
        databases = [(job if isinstance(job, Folder) else folders.at(str(job))).database for job in named]
        options = {**options, "from_job": databases}
    try:
        return JobOrder.of(inputs, output, options)
    except ValidationError as error:
        first = error.errors()[0]
        raise input_error(Named(str(first["loc"][0])), f" {first['msg'].removeprefix('Input ')}.") from None
