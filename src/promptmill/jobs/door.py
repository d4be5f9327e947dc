"""The door of jobs: rows from anywhere and the options of a job become an order with its rows.

paths, URLs, a query, blocks of bytes ─▶ `open_job` ─▶ `OpenJob`: admit, detach, validate
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from promptmill.config.loading import Configuration
from promptmill.core.errors import Named, Words, input_error, redact
from promptmill.core.feature import query
from promptmill.jobs.inputs import remote
from promptmill.jobs.inputs.given import Given, loose_id, written
from promptmill.jobs.inputs.remote import RemoteOutput, Say, as_written
from promptmill.jobs.inputs.sql_table import is_query
from promptmill.jobs.inputs.whole_files import written_whole
from promptmill.jobs.manage import detached
from promptmill.jobs.run import admission, steps
from promptmill.jobs.run.admission import Job
from promptmill.jobs.store import status
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder, Shown
from promptmill.jobs.store.spec import digest
from promptmill.jobs.store.status_record import Status
from promptmill.system.safe_open import home_expanded, real_path


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a job as the user names them."""

    names: Sequence[str] = ()
    """Paths, patterns or URLs; `()` for a query that names its files."""
    blocks: Iterable[bytes] | None = None
    """The rows themselves, in place of names."""
    suffix: str = ".jsonl"
    """The format of `blocks`."""

    @property
    def source(self) -> str:
        """The source, one of `options.table.ROWS`."""
        return "urls" if any(map(remote.is_elsewhere, self.names)) else "paths" if self.names else "query"


@dataclass(frozen=True, slots=True)
class Telling:
    """The functions by which a face shows how the rows are opened."""

    say: Say = lambda _: None
    """Gets each step."""
    warn: Say = lambda _: None
    """Gets what the user should know."""
    waiting: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    """The context in which the store behind a URL is waited for."""


SILENT = Telling()
"""Shows nothing."""


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job before its admission."""

    order: JobOrder
    configuration: Configuration
    folders: JobFolders
    source: Given | None = None
    """The rows that are in no file of the user; None for files."""
    loose: Folder | None = None
    """The folder of a job without an output."""
    remote: RemoteOutput | None = None
    """The output by URL."""
    notes: Sequence[Words] = ()
    """Remarks about the rows for the user."""

    def admit(self) -> Job:
        """Return the admitted job, which the caller closes. Raises as `admission.admit`."""
        plans = admission.plans_of(self.order, self.configuration)
        return admission.admit(self.order, self.configuration.plan, self.folders, given=self.source, plans=plans)

    def validate(self) -> dict[str, Any]:
        """Return the findings in the rows, and an estimate. Sends nothing. Raises as `admit`."""
        from promptmill.jobs.run.validation import check  # imports the readers of images

        plans = admission.plans_of(self.order, self.configuration)
        return check(self.configuration.plan, self.order, self.folders, given=self.source, plans=plans)

    def detach(self, seen: Callable[[Job], None]) -> Status:
        """Start the job in a process of its own and return its status. `seen` gets it first. Raises as `admit`."""
        with contextlib.closing(self.admit()) as job:
            seen(job)
            if self.source is not None and (files := job.unread()) is not None:
                steps.reading(job, files)(Work(), job.folder)
            if not job.finished:
                status.write_starting(job.folder)
                detached.start(job)
        return status.read(job.folder)


@contextlib.contextmanager
def open_job(
    rows: Rows,
    output: str | Path | None,
    options: Mapping[str, Any],
    configuration: Configuration,
    folders: JobFolders,
    *,
    command: Sequence[str] = (),
    telling: Telling = SILENT,
) -> Iterator[OpenJob]:
    """Yield the job of `rows` and `options`, see `JobOrder.of`; temporary files of its rows are removed at the end.

    `output`: a path or a URL; None for a job without an output. `command`: the command line, without keys.

    Raises `PromptmillError`.
    """
    names, sql, urls = rows.names, options.get("sql"), dict[str, str]()
    target, uploaded = Path("-") if output is None else home_expanded(output).absolute(), None
    if output is not None and remote.is_elsewhere(str(output)):
        uploaded = RemoteOutput.of(folders, str(output))
        if not options.get("validate"):
            with telling.waiting(redact(str(output))):
                uploaded.check(may_replace=bool(options.get("overwrite")))
        target, urls["output_file"] = uploaded.local, redact(uploaded.url)
    with contextlib.ExitStack() as opened:
        paths, source = list[Path](), None
        if rows.blocks is not None:
            source = opened.enter_context(written(folders, rows.blocks, rows.suffix))
        elif sql is not None and is_query(sql, names):
            urls["input_file"] = redact(", ".join(names) or "a query")
            with telling.waiting(urls["input_file"]):
                source = opened.enter_context(query()(folders, sql, names))
            options = {**options, "sql": None}
        elif rows.source == "urls":
            with telling.waiting(redact(names[0])):
                pinned, known = _pinned(names, folders.of(real_path(target)), command, telling.warn)
                urls["input_file"] = as_written(pinned)
                source = opened.enter_context(remote.fetched(folders, pinned, telling.say, known))
        else:
            paths = [home_expanded(name).absolute() for name in names]
        order = _order(options, paths or [Path("rows")], target, folders)
        shown = Shown(command=[*command], urls=urls, input=as_written(names))
        order, notes = order.model_copy(update={"shown": shown}), list[Words]()
        if paths:
            has_schema, pdf = configuration.plan.has_schema, options.get("pdf")
            each = options.get("each")
            order, source, of_files = written_whole(order, folders, each, opened, as_pdf=pdf, has_schema=has_schema)
            notes += of_files
        loose = None
        if output is None:
            key = source or Given((), digest([str(path) for path in paths]))
            loose = folders.loose(loose_id(key, configuration.plan, order))
            order = order.model_copy(update={"output": loose.answers})
        yield OpenJob(order, configuration, folders, source, loose, uploaded, notes)


def _pinned(names: Sequence[str], folder: Folder, command: Sequence[str], warn: Say) -> tuple[list[str], str]:
    """Return URLs with the commits of their datasets, and the digest of the objects that the job has read.

    Another command may ask other questions, for which the rows are read again: then the digest is `""`.
    """
    before, order = folder.spec, folder.order
    is_same = order is not None and before is not None and before.is_read and order.shown.command == [*command]
    known = before.input.sha256 if before is not None and is_same and command else ""
    return remote.pinned(names, folder, warn), known


def _order(options: Mapping[str, Any], inputs: Sequence[Path], output: Path, folders: JobFolders) -> JobOrder:
    if options.get("from_job") is not None:
        options = {**options, "from_job": folders.at(str(options["from_job"])).database}
    try:
        return JobOrder.of(inputs, output, options)
    except ValidationError as error:
        first = error.errors()[0]
        raise input_error(Named(str(first["loc"][0])), f" {first['msg'].removeprefix('Input ')}.") from None
