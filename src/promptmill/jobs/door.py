"""The entry to jobs: this module makes a runnable job from the job's options and from rows of any origin.

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
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from promptmill.backends import registry
from promptmill.backends.protocol import Call
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, PromptmillError, Words, input_error, redact
from promptmill.core.feature import query, replacement
from promptmill.files.files import InputFiles, find, holds_output
from promptmill.files.files import opened as opened_files
from promptmill.files.format_table import of_input
from promptmill.files.path_formats import is_url
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
from promptmill.jobs.store import rounds, status
from promptmill.jobs.store.database import DamagedError, Work
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import Earlier, InputReading, JobOrder, OrderTexts, as_written
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.spec import digest
from promptmill.jobs.store.status_record import RunStatus, Status
from promptmill.options.option import are_outside
from promptmill.options.table import SAMPLING_KEYS, errors_about, options, with_implied
from promptmill.service import choosing
from promptmill.service.service import Service
from promptmill.steps.costs import lacking
from promptmill.system import runtime
from promptmill.system.call_files import FileRule
from promptmill.system.safe_open import home_expanded, real_path
from promptmill.system.subprocesses import Halt

_TRUST = Named("trust", text="{} resumes it with them.")
_MOST_NAMED = 5  # options and files that an error names


@dataclass(frozen=True, slots=True)
class Telling:
    """Functions that show the user the progress while rows are opened."""

    say: Say = lambda _: None
    """Called with a text about each step."""
    warn: Say = lambda _: None
    """Called with each warning."""
    waiting: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    """Returns a context manager for the time that a URL's store takes. The argument is a text for the user."""


SILENT = Telling()
"""Shows nothing to the user."""


class Opening(NamedTuple):
    """An order whose rows are being opened."""

    order: JobOrder
    options: Mapping[str, Any]
    config: ModelConfig
    folders: JobFolders
    telling: Telling
    is_of_call: bool
    source: InputRows | None = None
    """The rows, if they are not in the user's files; else None."""
    files: WholeFiles | None = None
    """The files, if each file is one row; else None."""

    def having(self, source: InputRows | None, **changes: Any) -> Opening:
        """Return the order with the rows `source`. `changes`: fields of the order that get new values."""
        return self._replace(order=self.order.model_copy(update=changes), source=source)

    @property
    def asked(self) -> FileQuestion:
        """The question about each file, if each file is a row."""
        order = self.order
        return FileQuestion(order.question, self.options.get("pdf"), order.reading.encoding, self.config.has_schema)

    def fetched(self, source: InputRows, text: str, **changes: Any) -> Opening:
        """Return the order with the rows `source`, fetched from the address `text`. `changes`: see `having`."""
        shown = self.order.shown.model_copy(update={"urls": {**self.order.shown.urls, "input_file": text}})
        return self.having(source, shown=shown, **changes)

    @contextlib.contextmanager
    def with_files(self, files: WholeFiles, **changes: Any) -> Iterator[Opening]:
        """Yield the order with a row for each file. `changes`: see `having`. Raises `PromptmillError`."""
        order = self.order.model_copy(update=changes)
        if order.output.is_absolute():  # check the output before the files are read, which may take long
            check_output(order, real_path(order.target))
        with written(self.folders, files.lines(), ".jsonl", files.name) as source:
            yield self._replace(order=files.asked(order), source=source, files=files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of a job, in a temporary file or in the job's database; subclasses have rows from elsewhere."""

    given: InputRows | None = None
    """The rows in the temporary file; None if they are in the job's database."""
    name: str = "rows"
    """The name of rows that are not in the user's files, for messages and ids."""
    owned_by: str | None = None
    """The owner of the rows. Equal rows of two owners become two jobs; without an owner (None), they share one job."""
    job_id: str = ""
    """The id of a job without an output; if it is `""`, the rows, the question and the settings determine the id."""
    halt: Halt | None = None
    """Set when the call was cancelled."""

    @property
    def source(self) -> str:
        """The kind of source, one of `options.table.ROWS`."""
        return "values"

    @property
    def as_written(self) -> str:
        """The names of the files as the user wrote them, without secrets; `""` if the rows are not in files."""
        return ""

    def opened(self, opening: Opening) -> AbstractContextManager[Opening]:
        """Return a context manager that yields the order with these rows, and then removes temporary files. Blocks.

        Raises `PromptmillError`.
        """
        return nullcontext(opening.having(self.given))


@dataclass(frozen=True, slots=True)
class MadeRows(Rows):
    """Rows from standard input or from a program."""

    blocks: Iterable[bytes]
    suffix: str = ".jsonl"
    """The suffix that files in the format of `blocks` have."""
    has_lines: bool = True
    """Whether messages call a row a line; False if rows are elements, for example of a list."""

    @contextlib.contextmanager
    def opened(self, opening: Opening) -> Iterator[Opening]:
        """See `Rows`."""
        with written(opening.folders, self.blocks, self.suffix, self.name, has_lines=self.has_lines) as source:
            yield opening.having(source)


@dataclass(frozen=True, slots=True)
class NamedRows(Rows):
    """Rows in the user's files, at URLs, or from a query."""

    names: Sequence[str]
    """Paths, patterns or URLs; `()` if a query names the files."""

    @property
    def as_written(self) -> str:
        """See `Rows`."""
        return as_written(self.names)

    @property
    def source(self) -> str:
        """See `Rows`."""
        return "urls" if any(map(is_url, self.names)) else "paths" if self.names else "query"

    def opened(self, opening: Opening) -> AbstractContextManager[Opening]:
        """See `Rows`. In a call, all names are resolved paths of files on this machine."""
        sql = None if opening.is_of_call else opening.order.reading.sql
        if sql is not None and is_query(sql, self.names):
            return self._queried(opening, sql)
        if self.source == "urls" and not opening.is_of_call:
            return self._fetched(opening)
        order, paths = opening.order, tuple(home_expanded(name).absolute() for name in self.names)
        if paths and are_asked_whole(paths, opening.options.get("each"), order.question.templates, order.output):
            return opening.with_files(OwnFiles(paths, order.output, opening.asked), inputs=paths)
        return nullcontext(opening.having(None, inputs=paths or order.inputs))

    @contextlib.contextmanager
    def _queried(self, opening: Opening, sql: str) -> Iterator[Opening]:
        text = redact(", ".join(self.names) or "a query")
        reading = opening.order.reading.model_copy(update={"sql": None})
        with contextlib.ExitStack() as opened:
            with opening.telling.waiting(text):
                source = opened.enter_context(query()(opening.folders, sql, self.names))
            yield opening.fetched(source._replace(name="query"), text, reading=reading)

    @contextlib.contextmanager
    def _fetched(self, opening: Opening) -> Iterator[Opening]:
        folders, telling = opening.folders, opening.telling
        with contextlib.ExitStack() as opened:
            with telling.waiting(redact(self.names[0])):
                folder, command = folders.of(real_path(opening.order.output)), opening.order.shown.command
                before, last = folder.spec, folder.order
                is_same = command and last is not None and last.shown.command == command
                # a new command may have a new question, so the rows are read again
                known = before.input.sha256 if is_same and before is not None and before.is_read else ""
                pinned = remote_files.pinned(self.names, folder, telling.warn)
                source = opened.enter_context(remote_files.fetched(folders, pinned, telling.say, known))
            yield opening.fetched(source, as_written(pinned))


@dataclass(frozen=True, slots=True)
class CallFiles(NamedRows):
    """The files of a call, if each file is one row. `names` has paths, folders and patterns."""

    rule: FileRule

    def opened(self, opening: Opening) -> AbstractContextManager[Opening]:
        """See `Rows`."""
        files = WholeFiles(self.names, self.rule, opening.asked, opening.order.output, self.halt)
        return opening.with_files(files)


@dataclass(frozen=True, slots=True)
class OpenJob(WantedJob):
    """A job before its admission."""

    loose: Folder | None = None
    """The folder of a job without an output."""
    remote: RemoteOutput | None = None
    """The output, if it is at a URL; else None."""
    files: WholeFiles | None = None
    """The files, if each file is one row; else None."""

    @property
    def notes(self) -> Sequence[Words]:
        """Remarks about the models and the rows for the user. Raises `PromptmillError`."""
        ends = registry.ends_soon(self.asked)
        if self.files is None:
            given = self.order.inputs if self.source is None else ()
            left_out = [omitted(IS_OUTPUT, [Path(self.order.output.name)])]
            hints = [hint for each in self.order.parts.values() for hint in each.hints(given)]
            return [*ends, *(left_out if holds_output(given, self.order.target) else []), *hints]
        raw = [f"Warning: {self.files.raw}."] if self.files.raw else []
        return [*ends, *self.files.left_out, *self.files.forms, *raw]

    def check(self) -> None:
        """Check the order and the files, but not the rows. Blocks. Raises as `admit`, and changes nothing."""
        admission.checked(self)

    def admit(self, *, are_columns_checked: bool = False) -> Job:
        """Return the admitted job, which the caller closes. Blocks. Raises as `admission.admit`."""
        return admission.admit(self, are_columns_checked=are_columns_checked)

    async def admitted(self, *, are_columns_checked: bool = False) -> Job:
        """Do the same as `admit`, in a thread. If the caller is cancelled meanwhile, close the job."""

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
        """Check all rows, and return their problems and an estimate. Sends no request. Raises as `admit`."""
        from promptmill.jobs.run.validation import check  # imported on use, because it imports the readers of images

        return check(self)

    def detach(self, seen: Callable[[Job], None], followers: Mapping[str, Any]) -> Status:
        """Start the job in its own process, and return its status. `seen` is called with the job before the start.
        `followers`: see `detached.start`. Raises as `admit`."""
        with contextlib.closing(self.admit()) as job:
            seen(job)
            if self.source is not None and (files := job.unread()) is not None:
                job.reading(files)(Work(), job.folder)
            if not job.finished:
                status.write_starting(job.folder)
                detached.start(job, followers=followers)
        return status.read(job.folder)


async def run(
    job: Job, service: Service, hooks: Hooks = NO_HOOKS, *, call: Call | None = None, apart: Apart | None = None
) -> PromptmillError | None:
    """Run an admitted job in this process until it ends. Return the error that stopped it early. See `Runner`."""
    running = runner.Runner(job, service, hooks, call=call, apart=apart)
    await running.run()
    return running.progress.error


async def until_signal(job: Job, service: Service, hooks: Hooks) -> tuple[RunStatus, PromptmillError | None, bool]:
    """Run the only job of this process until it ends, or until SIGTERM or Ctrl-C. See `runner.until_ended`."""
    return await runner.until_ended(job, service, hooks)


def decided(configuration: Configuration) -> Configuration:
    """Return the configuration with its backend and model chosen, because both are part of a job. Blocks."""
    return runtime.run_anywhere(choosing.decided(configuration)) if configuration.config.is_open else configuration


def check_budget(options: Mapping[str, Any], configuration: Configuration) -> None:
    """Raise `PromptmillError` (`invalid_config`) if a model of a job lacks a value that a budget needs, such as a
    price. The rows of the job may not be known yet."""
    order = JobOrder.of((), Path("-"), {**with_implied(options), "from_job": None})
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
    is_trusted: bool = False,
    is_of_call: bool = False,
) -> OpenJob:
    """Return the job in `folder` with its last order and the present paths of its files. `again`: see `Earlier.again`.
    `is_trusted`: the user confirmed an order without a seal.

    Raises `PromptmillError` if there is no such job, or if an order without a seal names what only the operator may
    set.
    """
    spec, order = folder.known_spec(), folder.order
    inputs = order.inputs if order is not None and order.inputs[1:] else (spec.input.path,)
    now = {"inputs": inputs, "output": spec.output.path}
    order = JobOrder(**now) if order is None else order.model_copy(update=now)
    order = order.model_copy(update={"earlier": Earlier(again=again)})
    is_received = not (is_trusted or folder.is_own)
    if is_received:
        try:
            with folder.reading() as store:
                ways = () if is_of_call else rounds.awaited(store)
        except (OSError, DamagedError):
            raise folder.gone() from None
        _check_received(order, spec, folder.place, ways, are_paths_checked=is_of_call)
    return OpenJob(order, models, folders, is_fixed=not is_of_call, is_received=is_received, is_of_call=is_of_call)


def _check_received(
    order: JobOrder, spec: JobSpec, place: Path, ways: Iterable[str], *, are_paths_checked: bool
) -> None:
    """Raise `PromptmillError` (`invalid_input`) if an order without a valid seal names what only the operator may set,
    or files outside `place`, unless `are_paths_checked` already. `ways`: the ways that the job used. A way remembers
    ids of its work at a provider, which would be read and deleted with the operator's key."""
    known = options()
    parts = (name for name in order.parts if name in known and known[name].is_of_operator("", place))
    own: list[str | Named] = [Named(name) for name in dict.fromkeys((*ways, *parts))]
    for option in known.values():
        keys = [key.removeprefix(SAMPLING_KEYS) for key in option.keys if key.startswith(SAMPLING_KEYS)]
        if any(option.is_of_operator(order.sampling.get(key), place) for key in keys):
            own.append(Named(option.name))
    paths = [] if are_paths_checked else [*(order.inputs if spec.input.is_file else ()), spec.output.path]
    own += [str(path) for path in paths if are_outside(str(path), place)]
    if own:
        words = [word for each in own[:_MOST_NAMED] for word in (", ", each)][1:]
        stored = f"Job {spec.job_id[:60]} was stored by another user or on another computer, and names "
        raise input_error(stored, *words, ". Look at them, and repeat the command of the job; ", _TRUST)


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
    """Yield the job for `rows` and `options`, see `JobOrder.of`. After the block, remove the rows' temporary files.

    `output`: a path or a URL; None: no output file. `shown`: texts for status and report, such as the command line.
    `caller`: the client of a call. In a call, all names are resolved paths of files on this machine. Blocks.

    Raises `PromptmillError`.
    """
    remote, urls = None, dict[str, str]()
    target = Path("-") if output is None else home_expanded(output).absolute()
    with errors_about(options), contextlib.ExitStack() as opened:
        options = with_implied(options)
        if output is not None and is_url(str(output)):
            remote = RemoteOutput.of(folders, str(output))
            if not options.get("validate"):
                with telling.waiting(redact(str(output))):
                    remote.check(may_replace=bool(options.get("overwrite")))
            target, urls["output_file"] = remote.local, redact(remote.url)
        order = _order(options, Path(rows.name), target, folders)
        shown = (shown or OrderTexts()).model_copy(update={"urls": urls, "input": rows.as_written})
        is_of_call = caller is not None
        if is_of_call:
            check_encoding(order.reading.encoding)
        order = order.model_copy(update={"shown": shown})
        opening = Opening(order, options, models.config, folders, telling, is_of_call)
        opening = opened.enter_context(_replaced(opened.enter_context(rows.opened(opening))))
        order, source = opening.order, opening.source
        if source is not None:
            order = order.model_copy(update={"inputs": (Path(source.name),)})
            source = source if rows.owned_by is None else source._replace(key=digest(source.key, rows.owned_by))
        if caller is not None and (source is not None or output is None):
            order = order.model_copy(update={"owner": caller.owner})
        loose = None
        if output is None:
            key = source or InputRows((), digest([str(path) for path in order.inputs]))
            loose = folders.loose(rows.job_id or loose_id(key, models.config, order))
            order = order.model_copy(update={"output": loose.answers})
        files = opening.files
        yield OpenJob(order, models, folders, source, loose=loose, remote=remote, files=files, is_of_call=is_of_call)


@contextlib.contextmanager
def _replaced(opening: Opening) -> Iterator[Opening]:
    """Yield an order with its rows, or with the rows by which a feature replaces them, see `Feature.replaced`.

    Raises `PromptmillError`.
    """
    if (found := replacement(opening.options)) is None:
        yield opening
        return
    (option, replace_rows), order, source, folders = found, opening.order, opening.source, opening.folders
    if opening.files is not None:
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
            question, lines = replace_rows(rows, order.question, opening.options[option], place)
            replaced = opened.enter_context(written(folders, lines, ".jsonl", name, has_lines=False))
        yield opening.having(replaced, question=question, reading=InputReading(), shown=shown)


def _all_files(order: JobOrder, source: InputRows | None) -> InputFiles:
    """Return the files with an order's rows. Queries ignore the order's limit here. Raises `PromptmillError`."""
    if source is not None:
        return opened_files(source.parts, reading=order.reading)
    target = real_path(order.target)
    if order.output.is_absolute():  # an output that is not absolute is only a name
        check_output(order, target)
    parts = with_query(find(order.inputs, target), order)
    return opened_files([replace(part, most_rows=None) for part in parts], reading=order.reading)


def _order(options: Mapping[str, Any], rows: Path, output: Path, folders: JobFolders) -> JobOrder:
    if earlier := options.get("from_job"):
        named = earlier if isinstance(earlier, Sequence) and not isinstance(earlier, str) else [earlier]
        databases = [(job if isinstance(job, Folder) else folders.at(str(job))).database for job in named]
        options = {**options, "from_job": databases}
    try:
        return JobOrder.of([rows], output, options)
    except ValidationError as error:
        first = error.errors()[0]
        raise input_error(Named(str(first["loc"][0])), f" {first['msg'].removeprefix('Input ')}.") from None
