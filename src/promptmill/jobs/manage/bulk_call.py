"""A job of a Python program: `promptmill.bulk`, and the same as a stream of rows, or async.

The answers are kept however the program ends: the same call resumes the job.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import queue
import sys
import threading
from array import array
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from promptmill.answers.schema import AnswerType, with_schema
from promptmill.config import resolved_config
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.sampling import BESIDE, Sampling
from promptmill.core.wording import close_matches, shape
from promptmill.jobs.run import admission
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.runner import Runner
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import JobFolders
from promptmill.jobs.store.given_rows import GivenRows
from promptmill.jobs.store.records import Record, answer_fields
from promptmill.jobs.store.spec import JobRequest
from promptmill.jobs.store.status import Progress, Watch
from promptmill.service.service import Service
from promptmill.system import runtime

_KEPT = "The answers so far are kept: the same call resumes the job."
_OF_THE_ENDPOINT = ("base_url", "provider", "api_key")
_OF_THE_JOB = frozenset(JobRequest.model_fields) - {"input", "more", "output"}
_AT_ONCE = 1024
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_ANSWERS = ("answer", "error", "finish_reason")


@dataclass(frozen=True)
class BulkResult:
    """All rows with their answers, in their order."""

    status: Mapping[str, Any]
    """Counts, tokens, seconds and cost of the whole job, as `promptmill jobs` shows them."""
    rows: list[dict[str, Any]] = field(repr=False)
    """Each row with `answer`, `error`, `usage`, `finish_reason`; empty if rows and output are files."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The names of these columns that differ, because rows have fields of the same names."""
    output: Path | None = None
    given: Any = field(default=None, repr=False)
    answer_schema: AnswerType | None = field(default=None, repr=False)
    left_out: Sequence[int] = field(default=(), repr=False)
    """Rows without a prompt, with `skip_empty`."""

    @cached_property
    def answers(self) -> list[Any]:
        """The answers alone, `""` for a row that failed; instances of the pydantic class if `answer_schema` is one."""
        name = self.columns.get("answer", "answer")
        return [_answer_of(row[name], self.answer_schema) for row in self.rows]

    @property
    def failed(self) -> int:
        """How many rows have no answer."""
        return int(self.status.get("failed", 0))

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of all runs of the job."""
        return {name: self.status.get(name, 0) for name in ("prompt_tokens", "completion_tokens")}

    @property
    def cost(self) -> float | None:
        """The cost of all runs of the job, None if the price is unknown."""
        return self.status.get("cost")

    def table(self) -> Any:
        """Return the table that was given (of pandas, polars, pyarrow or `datasets`) with columns of answers."""
        return _joined(self.given, self.rows, self.columns, self.left_out)


def bulk(rows: Any, output: str | Path | None = None, **options: Any) -> BulkResult:
    """Answer all rows and return them with their answers, in their order.

    `rows`: a list or any iterable of texts, dicts as in a file of rows, or lists of messages; a table of pandas,
    polars, pyarrow or `datasets`; a `pathlib.Path` of a file, a folder or a pattern. `output`: a file to write;
    for a Path with an output, the result's `rows` and `answers` are empty: they are in that file.

    Options: `model`, `base_url`, `provider`, `api_key`, `backend`; sampling parameters by their names, `tools` and
    `logprobs`; `answer_schema`, a JSON Schema, or a pydantic class, whose instances `answers` then are; `config`, a
    configuration file, and `settings`, values by the paths of their keys; those of a job (`system_prompt`,
    `prompt_template` such as "Classify: {{text}}", `limit`, `prompt_column`, `max_cost`, `max_failures`, …);
    `progress`: True for lines on stderr, False for none, or a function that gets the status several times a second.

    Raises `PromptmillError` when the job stops. The answers until then, or until Ctrl-C, are kept: the same call
    resumes the job.
    """
    return runtime.run_anywhere(bulk_async(rows, output, **options))


async def bulk_async(rows: Any, output: str | Path | None = None, **options: Any) -> BulkResult:
    """Do what `bulk` does, inside a running event loop."""
    call = await asyncio.to_thread(_Call.of, rows, output, options)
    async with contextlib.aclosing(call.run()) as run:
        async for _ in run:
            pass
    return call.result(rows)


async def stream_async(
    rows: Any, output: str | Path | None = None, **options: Any
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield rows with their answers as they come; `row` is the row's index, from 0. Takes the arguments of `bulk`."""
    call = await asyncio.to_thread(_Call.of, rows, output, options)
    async with contextlib.aclosing(call.run()) as run:
        async for record in run:
            yield call.row(record)
    call.forget()


def stream(rows: Any, output: str | Path | None = None, **options: Any) -> Generator[dict[str, Any], None, None]:
    """Do what `stream_async` does, for programs without an event loop. Closing the generator ends the job."""
    found: queue.Queue[tuple[dict[str, Any] | None, BaseException | None]] = queue.Queue()
    stop: list[Callable[[], object]] = []

    async def work() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        async for row in stream_async(rows, output, **options):
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


@dataclass
class _Call:
    """One call: its rows in a file, its job and the result."""

    configuration: Configuration
    order: JobRequest
    given: GivenRows | None
    offsets: _Offsets
    is_loose: bool
    watch: Watch | None
    answer_schema: AnswerType | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Any, output: str | Path | None, options: Mapping[str, Any]) -> _Call:
        """Return the call, its rows written down. Raises `PromptmillError`, `TypeError` for an unknown option."""
        options = dict(options)
        asked = {name: options.pop(name) for name in _OF_THE_JOB & options.keys()}
        watch = _watch(progress=options.pop("progress", None))
        answer_schema = options.pop("answer_schema", None)
        options = dict(with_schema(options, answer_schema))
        configuration = _configuration(options)
        folders, offsets, given = JobFolders.from_environ(), _Offsets(), None
        more: list[Path] = []
        if isinstance(rows, Path):
            source = rows
        elif isinstance(rows, list) and rows and all(isinstance(row, Path) for row in rows):
            source, *more = rows
        else:
            given = GivenRows.write(folders, map(offsets.passed, _lines(rows)), ".jsonl")
            source = given.input
        target = Path(output) if output is not None else None
        order = JobRequest(input=source, more=tuple(more), output=target or Path("-"), **asked)
        if target is None:
            beside = given or GivenRows.write(folders, [orjson.dumps(list(map(str, (source, *more))))], ".input")
            given = beside
            order = order.model_copy(update={"output": beside.output(configuration.plan, order, ".jsonl")})
        return cls(configuration, order, given, offsets, target is None, watch, answer_schema)

    async def run(self) -> AsyncGenerator[Record, None]:
        """Run the job to its end and yield the records of its rows as they come. Raises `PromptmillError`."""
        folders = JobFolders.from_environ()
        job = await asyncio.to_thread(admission.admit, self.order, self.configuration.plan, folders)
        service = Service(self.configuration, plan=job.plan)
        try:
            if job.finished:
                for record in job.folder.store.records():
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
        settled: asyncio.Queue[int | None] = asyncio.Queue()

        def recorded(rows: Sequence[int]) -> None:
            for row in rows:
                settled.put_nowait(row)

        bound, passed = asyncio.Event(), asyncio.Event()

        async def before_answers() -> None:
            bound.set()
            await passed.wait()

        runner = Runner(job, service, watch=self.watch, before_answers=before_answers, recorded=recorded)
        store = job.folder.store
        running = asyncio.ensure_future(runner.run())
        running.add_done_callback(lambda _: settled.put_nowait(None))
        running.add_done_callback(lambda _: bound.set())
        try:
            await bound.wait()  # from now on each answer there is belongs to its row
            for record in store.records(where=f"NOT ({job.spec.to_replace})"):
                yield record
            passed.set()
            while (row := await settled.get()) is not None:
                if (one := store.record(row)) is not None:
                    yield one
            await running
        finally:
            running.cancel()
            await asyncio.wait({running})
            self.status = status.read(job.folder)
            self.columns = job.spec.columns or {}
        if runner.error is not None:
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
        if self.given is not None and record.row < len(self.offsets):
            asked = self.offsets.read(self.given.input, record.row)
        fields = answer_fields(record, self.columns)
        name = self.columns.get("answer", "answer")
        fields[name] = _answer_of(fields[name], self.answer_schema)
        return {self.columns.get("row", "row"): record.row, **asked, **fields}

    def result(self, rows: Any) -> BulkResult:
        """Return the result, and remove the files that were made for the call."""
        output = self.order.output
        found: list[dict[str, Any]] = []
        if self.is_loose or (self.given is not None and output.suffix in {".jsonl", ".ndjson"}):
            with output.open("rb") as file:
                found = [orjson.loads(line) for line in file]
        self.forget()
        output_file = None if self.is_loose else output
        return BulkResult(self.status, found, self.columns, output_file, rows, self.answer_schema, self.left_out)

    def forget(self) -> None:
        """Remove the rows that were written for the job, which is done."""
        if self.given is not None:
            self.given.forget(self.order.output if self.is_loose else None)


def _answer_of(answer: str, answer_schema: AnswerType | None) -> Any:
    """Return a row's answer. Raises what a validator of the class raises that its schema cannot tell."""
    return answer_schema.model_validate_json(answer) if answer and isinstance(answer_schema, type) else answer


def _watch(*, progress: bool | Callable[[Mapping[str, Any]], object] | None) -> Watch | None:
    if callable(progress):

        def show(found: Progress) -> None:
            progress(found.as_dict())

        return show
    if progress or (progress is None and sys.stderr.isatty()):
        return status.progress_lines("bulk", sys.stderr)
    return None


def _configuration(options: dict[str, Any]) -> Configuration:
    """Return the configuration that a call's options name. Raises `PromptmillError`, `TypeError` for an unknown one."""
    config, settings = options.pop("config", None), dict(options.pop("settings", {}))
    endpoint = {name: options.pop(name) for name in _OF_THE_ENDPOINT if name in options}
    model, backend = options.pop("model", None), options.pop("backend", None)
    for name in options.keys() - Sampling.model_fields.keys() - BESIDE:
        known = {*Sampling.model_fields, *BESIDE, *_OF_THE_JOB, *_OF_THE_ENDPOINT, "answer_schema"}
        near = close_matches(name, known, 1)
        raise TypeError(f"there is no option {name!r}{f'; did you mean {near[0]}?' if near else ''}")

    def values(raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
        chosen = resolved_config.settings_of(raw, backend=backend, endpoint=endpoint, model=model, sampling=options)
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


def _lines(rows: Any) -> Iterator[bytes]:
    """Yield `rows` as lines of JSON: texts, dicts, lists of messages, or a table.

    Bytes and Pillow's images become base64. Raises `PromptmillError` (`invalid_input`).
    """
    for index, row in enumerate(_rows(rows)):
        match row:
            case str():
                found: Mapping[Any, Any] = {"prompt": row}
            case list() | tuple():
                found = {"messages": row}
            case Mapping():
                found = row
            case _:
                raise input_error(f"rows[{index}] is {shape(row)}; send a text, a dict or a list of messages.")
        try:
            yield orjson.dumps(found, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE, default=_as_json)
        except TypeError as error:
            raise input_error(f"rows[{index}] cannot be written as JSON: {error}.") from None


def _rows(rows: Any) -> Iterable[Any]:
    if isinstance(rows, str | bytes | Mapping):
        raise input_error("rows is one row; send a list of rows, a table, or the path of a file as a pathlib.Path.")
    if hasattr(rows, "features") and hasattr(rows, "with_format"):  # of `datasets`: its images as they are kept
        return (row for table in rows.with_format("arrow").iter(_AT_ONCE) for row in table.to_pylist())
    if hasattr(rows, "to_batches"):  # pyarrow
        return (row for batch in rows.to_batches(_AT_ONCE) for row in batch.to_pylist())
    if hasattr(rows, "iter_rows"):  # polars
        return rows.iter_rows(named=True)  # type: ignore[no-any-return]
    if hasattr(rows, "to_dict") and hasattr(rows, "iloc"):  # pandas
        return (row for at in range(0, len(rows), _AT_ONCE) for row in rows.iloc[at : at + _AT_ONCE].to_dict("records"))
    if not isinstance(rows, Iterable):
        raise input_error(f"rows is {shape(rows)}; send a list of rows or a table.")
    return rows


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if hasattr(value, "save") and hasattr(value, "getbands"):  # Pillow's
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()
    return str(value)


def _joined(
    rows: Any,
    answers: Sequence[Mapping[str, Any]],
    names: Mapping[str, str] = MappingProxyType({}),
    left_out: Collection[int] = (),
) -> Any:
    """Return the table `rows` with the columns `answer`, `error` and `finish_reason`, as a table of the same kind.

    `names`: those of the columns that are not these. `left_out`: rows without an answer, which are left out.
    """
    called = [names.get(name, name) for name in _ANSWERS]
    columns: dict[str, list[str | None]] = {name: [_cell(row.get(name)) for row in answers] for name in called}
    if left_out:
        rows = _without(rows, set(left_out))
    if hasattr(rows, "add_column") and hasattr(rows, "features"):
        for name, values in columns.items():
            rows = rows.add_column(name, values)
        return rows
    if hasattr(rows, "append_column"):
        import pyarrow as pa

        for name, values in columns.items():
            rows = rows.append_column(name, pa.array(values, pa.string()))
        return rows
    if hasattr(rows, "with_columns"):
        import polars as pl

        return rows.with_columns(*(pl.Series(name, values) for name, values in columns.items()))
    if hasattr(rows, "assign"):
        return rows.assign(**columns)
    raise input_error("The rows are not a table; `rows` of the result has them with their answers.")


def _without(rows: Any, left_out: Collection[int]) -> Any:
    """Return a table without the rows at these places."""
    kept = [at for at in range(len(rows)) if at not in left_out]
    if hasattr(rows, "iloc"):
        return rows.iloc[kept]
    if hasattr(rows, "features"):  # of `datasets`
        return rows.select(kept)
    return rows.take(kept) if hasattr(rows, "append_column") else rows[kept]  # pyarrow, polars


def _cell(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return f"{value['code']}: {value['message']}"
    return value if value is None else str(value)
