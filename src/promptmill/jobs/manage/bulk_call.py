"""A job of a Python program: `promptmill.bulk`, and the same as a stream of rows, or async.

The answers are kept however the program ends: the same call resumes the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import inspect
import os
import queue
import re
import sys
import tempfile
import threading
from array import array
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import orjson
from pydantic import ValidationError

from promptmill.answers.schema import AnswerType, with_schema
from promptmill.backends import rows as rows_
from promptmill.config import resolved_config
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.request import BESIDE, Sampling
from promptmill.core.wording import close_matches
from promptmill.jobs.manage.bulk_result import BulkResult, answer_of, lines_of
from promptmill.jobs.run import admission
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.partial_output import export
from promptmill.jobs.run.runner import Runner
from promptmill.jobs.store import status
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.folder import Folder, JobFolders
from promptmill.jobs.store.given_rows import GivenRows
from promptmill.jobs.store.records import Record, answer_fields
from promptmill.jobs.store.spec import Again, JobRequest, cluster_of
from promptmill.jobs.store.status import Progress, Watch
from promptmill.service.service import Service
from promptmill.system import runtime

_KEPT = "The answers so far are kept: the same call resumes the job."
_OF_THE_ENDPOINT = ("base_url", "provider", "api_key", "api_key_env", "concurrency")
_ARGUMENTS = {
    "prompt_template": "prompt",
    "input": "rows",
    "model_name": "model",
    "model_name_or_path": "model",
    "default_model": "model",
    "response_format": "answer_schema",
}
"""Fields and keys whose arguments have other names."""
_KEY_AT_START = re.compile(r"^(?:[^:]*: )?(?:\w+\.)*(\w+)(?=: )")


P = ParamSpec("P")
R = TypeVar("R")


def _takes(arguments: Callable[P, _Call]) -> Callable[[Callable[[Callable[[], _Call]], R]], Callable[P, R]]:
    """Give a function that gets a call the arguments of the function `arguments`, which makes the call."""
    signature = inspect.signature(arguments)

    def taking(function: Callable[[Callable[[], _Call]], R]) -> Callable[P, R]:
        returned = inspect.signature(function).return_annotation

        @functools.wraps(function)
        def called(*args: P.args, **options: P.kwargs) -> R:
            for name in options.keys() - signature.parameters.keys():
                near = close_matches(name, signature.parameters, 1)
                meant = f"; did you mean {near[0]}?" if near else ""
                raise TypeError(f"{function.__name__}() has no argument {name!r}{meant}")
            try:
                return function(functools.partial(arguments, *args, **options))
            except PromptmillError as error:
                raise error.with_traceback(None) from None  # its text says all; ours would fill a notebook's screen

        called.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        return called

    return taking


def _call_of(
    rows: Any,
    output: str | Path | None = None,
    *,
    prompt: str | None = None,
    prompt_column: str | None = None,
    image_column: str | None = None,
    encoding: str | None = None,
    answer_column: str = "answer",
    fields: bool = True,
    row_settings: bool = False,
    skip_empty: bool = False,
    system_prompt: str = "",
    choices: Sequence[str] | None = None,
    answer_schema: AnswerType | None = None,
    model: str | None = None,
    base_url: str | Sequence[str] | None = None,
    provider: str | None = None,
    api_key: str | Sequence[str] | None = None,
    api_key_env: str | None = None,
    concurrency: int | None = None,
    tier: Literal["default", "flex", "priority"] | None = None,
    backend: str | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    limit: int | None = None,
    shard: str | None = None,
    max_cost: float | None = None,
    max_failures: int | str | None = None,
    dedupe: bool = False,
    again: Again | None = None,
    keep: bool = False,
    from_job: str | Path | None = None,
    overwrite: bool = False,
    state: str | Path | None = None,
    ray: str | None = None,
    replicas: int = 1,
    num_gpus: float = 0,
    num_cpus: float = 1,
    progress: bool | Callable[[Mapping[str, Any]], object] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    n: int | None = None,
    seed: int | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    response_format: Mapping[str, Any] | None = None,
    reasoning_effort: str | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    enable_thinking: bool | None = None,
    reasoning: Literal["separate", "inline"] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    parallel_tool_calls: bool | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
) -> _Call:
    """Return the call with these arguments, its rows written down. Raises `PromptmillError`."""
    given = {name: value for name, value in locals().items() if value is not None}
    with _errors(given):
        return _Call.of(given)


@_takes(_call_of)
def bulk(make: Callable[[], _Call]) -> BulkResult:
    """Answer all rows and return them with their answers, in their order.

    `rows`: a column or a table of pandas, polars, pyarrow or `datasets`; a list or any iterable of texts, dicts as in a
    file of rows, or lists of messages; the path of a file, a folder or a pattern, as a text or a `pathlib.Path`.
    `output`: a file to write; with a path as `rows`, the result's `rows` and `answers` are then empty.

    `prompt`: what to ask of each row, such as "Classify: {{text}}". A placeholder names a field; a text of a list is
    the field `text`, a value of a column has the column's name. Without it, `prompt_column` or the field `prompt` is
    asked. `choices`: what the answers may be. `answer_schema`: a JSON Schema, or a pydantic class, whose instances
    `answers` then are.

    `model`, `base_url`, `provider`, `api_key`, …: the model; else the configuration's. `config`: a configuration file;
    `settings`: values by the paths of their keys, {"backend_configs.openai.rpm": 60}. The names of the other arguments
    are those of the options of `promptmill bulk` and of OpenAI's parameters.

    `progress`: True for progress in a notebook or on stderr, False for none, or a function that gets the status several
    times a second.

    Raises `PromptmillError` when the job stops. The answers until then, or until Ctrl-C, are kept: the same call
    resumes the job.
    """
    return runtime.run_anywhere(_answered(make()))


@_takes(_call_of)
async def bulk_async(make: Callable[[], _Call]) -> BulkResult:
    """Do what `bulk` does, inside a running event loop."""
    return await _answered(await asyncio.to_thread(make))


async def _answered(call: _Call) -> BulkResult:
    with _errors(call.given):
        async with contextlib.aclosing(call.run()) as run:
            async for _ in run:
                pass
    return await asyncio.to_thread(call.result)


@_takes(_call_of)
async def stream_async(make: Callable[[], _Call]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield rows with their answers as they come; `row` is the row's index, from 0. Takes the arguments of `bulk`."""
    async for row in _rows_of(await asyncio.to_thread(make)):
        yield row


async def _rows_of(call: _Call) -> AsyncGenerator[dict[str, Any], None]:
    with _errors(call.given):
        async with contextlib.aclosing(call.run()) as run:
            async for record in run:
                yield call.row(record)
    call.forget()


@_takes(_call_of)
def stream(make: Callable[[], _Call]) -> Generator[dict[str, Any], None, None]:
    """Do what `stream_async` does, for programs without an event loop. Closing the generator ends the job."""
    found: queue.Queue[tuple[dict[str, Any] | None, BaseException | None]] = queue.Queue()
    stop: list[Callable[[], object]] = []

    async def work() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        async for row in _rows_of(await asyncio.to_thread(make)):
            found.put((row, None))

    def run() -> None:
        try:
            runtime.run_anywhere(work())
            found.put((None, None))
        except BaseException as error:  # noqa: BLE001 (raised where the rows are taken)
            found.put((None, error))

    thread = threading.Thread(target=run, name="promptmill", daemon=True)
    thread.start()
    try:
        while True:
            row, error = found.get()
            if error is not None:
                raise error
            if row is None:
                return
            yield row
    finally:
        if stop and thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has just ended
                stop[0]()
        thread.join()


@contextlib.contextmanager
def _errors(given: Collection[str]) -> Iterator[None]:
    """Raise a `PromptmillError` again with a text of one line that names the arguments of `bulk`.

    An invalid value of a key that an argument in `given` sets is that argument's.
    """

    def argument(path: re.Match[str]) -> str:
        name = _ARGUMENTS.get(path[1], path[1])
        return f"`{name}`" if name in given else path[0]

    try:
        yield
    except PromptmillError as error:
        text = " ".join([error.worded(_argument_of), *getattr(error, "__notes__", ())])
        if error.code is Code.INVALID_CONFIG:
            text = _KEY_AT_START.sub(argument, text)
        found = PromptmillError(error.code, " ".join(text.split()), "")
        found.said = error.said
        raise found from None


@functools.cache
def _signature() -> inspect.Signature:
    return inspect.signature(_call_of)


def _argument_of(named: Named) -> str:
    """Return the argument for a field in an error: a key of the configuration without one is set by `settings`."""
    if named.field == "status":
        return f"`promptmill jobs {named.value}`"
    key = named.field.rpartition(".")[2]
    name = _ARGUMENTS.get(key, key)
    argument = _signature().parameters.get(name)
    if argument is None:
        return f"`settings={{{named.field!r}: {named.value!r}}}`" if named.value != "" else f"`{named.field}`"
    value = True if named.value == "" and argument.default is False else named.value
    return f"`{name}`" if value == "" else f"`{name}={value!r}`"


@dataclass
class _Call:
    """One call: its rows in a file, its job and the result."""

    given: Mapping[str, Any]
    """The arguments, by name."""
    configuration: Configuration
    order: JobRequest
    folders: JobFolders
    written: GivenRows | None
    offsets: _Offsets
    is_loose: bool
    watch: Watch | None
    answer_schema: AnswerType | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    folder: Folder | None = None
    """The job's, once it is admitted."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> _Call:
        """Return the call with the arguments `given`, its rows written down. Raises `PromptmillError`."""
        rows, output, answer_schema = given["rows"], given.get("output"), given.get("answer_schema")
        configuration = _configuration(given)
        folders = JobFolders.from_environ({"PROMPTMILL_STATE": str(given["state"])} if "state" in given else os.environ)
        asked = _order(given, folders)
        source, more, written, offsets = Path(), [], None, _Offsets()
        paths = _paths(rows)
        if "shard" in given and (output is None or not paths):  # the parts are joined by their names
            raise input_error(Named("shard"), " goes with rows in files, and with ", Named("output"), ".")
        if isinstance(rows, str) and " " in rows and "*" not in rows and not Path(rows).exists():
            raise input_error("rows is one text, and no file has this name; send a list to have it answered: [text].")
        if paths:
            source, *more = paths
        else:
            lines = lines_of(rows, "text" if "prompt_template" in asked else "prompt")
            written = GivenRows.write(folders, map(offsets.passed, lines), ".jsonl")
            source = written.input
        target = None if output is None else Path(output).expanduser()
        try:
            order = JobRequest(input=source, more=tuple(more), output=target or Path("-"), **asked)
        except ValidationError as error:
            first = error.errors()[0]
            raise input_error(Named(str(first["loc"][0])), f" {first['msg'].removeprefix('Input ')}.") from None
        if target is None:
            beside = written or GivenRows.write(folders, [orjson.dumps(list(map(str, (source, *more))))], ".input")
            written = beside
            order = order.model_copy(update={"output": beside.output(configuration.plan, order, ".jsonl")})
        watch = _watch(progress=given.get("progress"))
        return cls(given, configuration, order, folders, written, offsets, target is None, watch, answer_schema)

    async def run(self) -> AsyncGenerator[Record, None]:
        """Run the job to its end and yield the records of its rows as they come. Raises `PromptmillError`."""
        job = await asyncio.to_thread(admission.admit, self.order, self.configuration.plan, self.folders)
        self.folder = job.folder
        create = None if job.order.ray is None else job.order.ray.create
        service = Service(self.configuration, plan=job.plan, create=create)
        try:
            if job.finished:
                async for record in _records(job.folder.store):
                    if self._is_kept(job, record):
                        yield record
                self.columns = job.spec.columns or {}
                self.status = status.read(job.folder)
                return
            async for record in self._run(job, service):
                if self._is_kept(job, record):
                    yield record
        finally:
            job.close()
            await service.aclose()

    async def _run(self, job: Job, service: Service) -> AsyncGenerator[Record, None]:
        settled: asyncio.Queue[Sequence[int]] = asyncio.Queue()
        bound, passed = asyncio.Event(), asyncio.Event()

        async def before_answers() -> None:
            bound.set()
            await passed.wait()

        runner = Runner(job, service, watch=self.watch, before_answers=before_answers, recorded=settled.put_nowait)
        store = job.folder.store
        running = asyncio.ensure_future(runner.run())
        running.add_done_callback(lambda _: settled.put_nowait(()))
        running.add_done_callback(lambda _: bound.set())
        try:
            await bound.wait()  # from now on each answer there is belongs to its row
            async for record in _records(store, f"NOT ({job.spec.to_replace})"):
                yield record
            passed.set()
            while rows := await settled.get():
                for record in store.records_at(rows):
                    yield record
            await running
        finally:
            running.cancel()
            await asyncio.wait({running})
            self.status = status.read(job.folder)
            self.columns = job.spec.columns or {}
        if runner.error is not None:
            if self.status.get("done"):
                runner.error.add_note(_KEPT)
            raise runner.error
        if self.status["state"] != status.FINISHED:
            raise PromptmillError(Code.SHUTDOWN, f"The job ended as {self.status['state']}.", _KEPT)

    def _is_kept(self, job: Job, record: Record) -> bool:
        """Return whether a row is part of the result; what the columns are called is known once one is answered."""
        self.columns = job.spec.columns or {}
        if job.spec.leaves_out(record.code):
            self.left_out.append(record.row)
            return False
        return True

    def row(self, record: Record) -> dict[str, Any]:
        """Return a row with its answer, as far as the row itself was given by the program."""
        asked: dict[str, Any] = {}
        if self.written is not None and record.row < len(self.offsets):
            asked = self.offsets.read(self.written.input, record.row)
        fields = answer_fields(record, self.columns)
        name = self.columns.get("answer", "answer")
        fields[name] = answer_of(fields[name], self.answer_schema)
        return {self.columns.get("row", "row"): record.row, **asked, **fields}

    def result(self) -> BulkResult:
        """Return the result, and remove the files that were made for the call."""
        output = self.order.target
        found: list[dict[str, Any]] = []
        if self.is_loose or (self.written is not None and output.suffix in {".jsonl", ".ndjson"}):
            found = _rows_in(output)
        elif self.written is not None and self.folder is not None:
            with tempfile.TemporaryDirectory() as place:  # a table or a compressed file: its rows, with their types
                export(self.folder, copy := Path(place, "rows.jsonl"), failures=True)
                found = _rows_in(copy)
        self.forget()
        output_file = None if self.is_loose else output
        return BulkResult(
            self.status, found, self.columns, output_file, self.given["rows"], self.answer_schema, self.left_out
        )

    def forget(self) -> None:
        """Remove the rows that were written for the job, which is done."""
        if self.written is not None:
            self.written.forget(self.order.output if self.is_loose else None)


def _rows_in(file: Path) -> list[dict[str, Any]]:
    with file.open("rb") as lines:
        return [rows_.load(line, "") for line in lines]


async def _records(store: JobStore, where: str = "1") -> AsyncGenerator[Record, None]:
    """Yield the records of earlier runs, which may be millions: they are read in a thread."""
    first = 0
    while page := await asyncio.to_thread(store.page, first, where):
        for record in page:
            yield record
        first = page[-1].row + 1


def _paths(rows: object) -> list[Path]:
    """Return the paths of the files that `rows` names, `[]` for rows themselves."""
    if isinstance(rows, str | Path):
        return [Path(rows).expanduser()]
    return rows if isinstance(rows, list) and all(isinstance(row, Path) for row in rows) else []


def _watch(*, progress: bool | Callable[[Mapping[str, Any]], object] | None) -> Watch | None:
    """Return the function that shows the progress, None if nothing is shown."""
    if callable(progress):

        def show(found: Progress) -> None:
            progress(found.as_dict())

        return show
    if progress is False:
        return None
    if (shell := _notebook()) is not None:
        return _bar(shell)
    return status.progress_lines("bulk", sys.stderr) if progress or sys.stderr.isatty() else None


def _notebook() -> Any:
    """Return IPython's module if the program runs in a notebook, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return None if getattr(shell, "kernel", None) is None else ipython


def _bar(ipython: Any) -> Watch:
    """Return a function that shows the progress below the cell of a notebook."""
    handle = ipython.display.DisplayHandle()
    handle.display({"text/plain": ""}, raw=True)
    shown: list[str] = []

    def show(found: Progress) -> None:
        about = found.as_dict()
        text = f"{about['state']}, {status.line(about)}"
        if shown != [text]:
            shown[:] = [text]
            size = "" if about.get("total") is None else f' max="{about["total"] or 1}" value="{about.get("done", 0)}"'
            bar = f"<progress{size}></progress> {html.escape(text)}"
            handle.update({"text/plain": text, "text/html": bar}, raw=True)

    return show


def _order(given: Mapping[str, Any], folders: JobFolders) -> dict[str, Any]:
    """Return the fields of the order that arguments name. Raises `PromptmillError`."""
    found = {name: given[name] for name in JobRequest.model_fields.keys() & given.keys() - {"output", "ray"}}
    if "prompt" in given:
        found["prompt_template"] = given["prompt"]
    if "max_failures" in given:
        found["max_failures"] = str(given["max_failures"])
    if "from_job" in given:
        found["from_job"] = folders.at(str(given["from_job"])).database
    return found | {"ray": cluster_of(given.get("ray"), given["replicas"], given["num_gpus"], given["num_cpus"])}


def _configuration(given: Mapping[str, Any]) -> Configuration:
    """Return the configuration that arguments name. Raises `PromptmillError`."""
    endpoint = {name: given[name] for name in _OF_THE_ENDPOINT if name in given}
    config, backend, settings = given.get("config"), given.get("backend"), given.get("settings", {})
    sampling = {name: given[name] for name in Sampling.model_fields.keys() | BESIDE if name in given}
    sampling = dict(with_schema(sampling, given.get("answer_schema")))

    def values(raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
        chosen = resolved_config.settings_of(
            raw, backend=backend, endpoint=endpoint, model=given.get("model"), sampling=sampling, tier=given.get("tier")
        )
        return chosen | {tuple(path.split(".")): value for path, value in settings.items()}

    return Configuration.load(None if config is None else Path(config), backend=backend, values=values)


class _Offsets:
    """The offsets of the lines of a file, collected while it is written."""

    def __init__(self) -> None:
        self._at = array("Q", [0])

    def __len__(self) -> int:
        return len(self._at) - 1

    def passed(self, line: bytes) -> bytes:
        """Count `line` and return it."""
        self._at.append(self._at[-1] + len(line))
        return line

    def read(self, file: Path, row: int) -> dict[str, Any]:
        """Return the object in line `row` of `file`."""
        with file.open("rb") as opened:
            opened.seek(self._at[row])
            found: dict[str, Any] = orjson.loads(opened.read(self._at[row + 1] - self._at[row]))
            return found
