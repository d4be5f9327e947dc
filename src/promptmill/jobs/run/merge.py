"""Writes the output from the input rows and their records, in input order. The file appears complete or not at all."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import orjson

from promptmill.backends import rows as rows_
from promptmill.backends.batch_lines import provider_of
from promptmill.config import backends
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs.files import disk, row_files, tables
from promptmill.jobs.files.disk import Lines, RandomFile
from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.files.spool import HaltedError, cells_of
from promptmill.jobs.files.tables import CellTable, ParquetTable
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.custom_ids import CustomIds
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.records import (
    ANSWER_FIELDS,
    RARE_FIELDS,
    Record,
    answer_fields,
    cells,
    jsonl_line,
)
from promptmill.jobs.store.spec import JobSpec

_BUFFER = 1 << 20
_DELIMITERS = MappingProxyType({"csv": ",", "tsv": "\t"})
_GROUP_BYTES = 4 << 20
_VALUES_AT_ONCE = 32  # how often a page's size is looked at: one of 1,024 images, as by default, is large
_ANTHROPIC_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_GEMINI_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
# Each code as Anthropic's error type (`ErrorType` of its SDK) and as a number of google.rpc.Code.
_THE_REQUEST, _THE_SERVICE = ("invalid_request_error", 3), ("api_error", 13)
_ERRORS: Mapping[str, tuple[str, int]] = {
    Code.INVALID_INPUT: _THE_REQUEST,
    Code.EMPTY_PROMPT: _THE_REQUEST,
    Code.INVALID_CONFIG: _THE_REQUEST,
    Code.INVALID_IMAGE: _THE_REQUEST,
    Code.UNSUPPORTED: _THE_REQUEST,
    Code.BAD_REQUEST: _THE_REQUEST,
    Code.CONTEXT_LENGTH: _THE_REQUEST,
    Code.REQUEST_TOO_LARGE: _THE_REQUEST,
    Code.CONTENT_FILTER: _THE_REQUEST,
    Code.UNAUTHORIZED: ("authentication_error", 16),
    Code.INSUFFICIENT_QUOTA: ("billing_error", 8),
    Code.BUDGET: ("billing_error", 8),
    Code.NOT_FOUND: ("not_found_error", 5),
    Code.RATE_LIMITED: ("rate_limit_error", 8),
    Code.TIMEOUT: ("timeout_error", 4),
    Code.ITEM_TIMEOUT: ("timeout_error", 4),
    Code.DEADLINE: ("timeout_error", 4),
    Code.UNREACHABLE: ("api_error", 14),
    Code.CONNECTION_LOST: ("api_error", 14),
    Code.NAME_RESOLUTION: ("api_error", 14),
}


class UnansweredError(Exception):
    """A row that is counted as answered has no sound record."""


class Answers:
    """The records of a job, found row by row in input order."""

    def __init__(self, *stores: JobStore) -> None:
        """`stores` have the records; those of each store come after those of the one before."""
        self._stores = stores
        self._records = itertools.chain.from_iterable(store.records() for store in stores)
        self._next = next(self._records, None)
        self.rows = 0
        """The number of rows of the input, with blank lines, up to the last one that was looked up."""

    def rare_fields(self) -> tuple[str, ...]:
        """Return which of `RARE_FIELDS` some answer has."""
        found = {name for store in self._stores for name in store.rare_fields()}
        return tuple(name for name in RARE_FIELDS if name in found)

    def find(self, row: int) -> Record | None:
        """Return the record of `row`, None when it is to be left out. Raises `UnansweredError`."""
        return self.of(row)

    def of(self, row: int) -> Record:
        """Return the record of `row`. Raises `UnansweredError`."""
        self.rows = row + 1
        while self._next is not None and self._next.row < row:
            self._next = next(self._records, None)
        record = self._next
        if record is None or record.row != row or not record.is_sound:
            raise UnansweredError(row)
        return record


@dataclass(frozen=True, slots=True)
class Merge:
    """Rows of the job `spec` and their answers, to be written into `target`."""

    spec: JobSpec
    input: InputFiles
    lines: RandomFile
    """The rows as lines: the input itself, or its spool."""
    answers: Answers
    target: Path
    output_format: str
    most: int | None = None
    """Only the first rows, this many."""
    ids: CustomIds | None = None
    """Collects the ids of a Batch file."""
    halt: threading.Event | None = None
    """Set when the run ends and needs no output."""
    passed: Callable[[int], None] | None = None
    """Called with the number of rows that are done."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The names of the answers' columns that are not the usual ones."""
        return self.spec.columns or {}

    def answer(self, row: int) -> Record | None:
        """Return the record of `row`, None to leave the row out. Raises `UnansweredError`, `HaltedError`."""
        record = self.answers.find(row)
        if record is not None and self.spec.leaves_out(record.code):
            record = None
        if self.passed is not None:
            self.passed(row + 1)
        if self.halt is not None and self.halt.is_set():
            raise HaltedError
        return record


def of_job(job: Job, lines: RandomFile, answers: Answers) -> Merge:
    """Return the merge that makes the output of `job`, whose rows are `lines`."""
    return Merge(job.spec, job.input, lines, answers, job.spec.output, job.spec.output_format, job.order.limit)


def check_folder(target: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the resolved path `target` leads over a link now."""
    if target.parent.resolve() != target.parent:
        raise input_error(f"{target.parent} is not the folder that it was; put it back and run the job again.")


def beside(target: Path, job_id: str) -> Path:
    """Return the path of the output before it gets its name: in the same folder, so on the same file system."""
    return target.with_name(f".{target.name}.{job_id[-10:]}.partial")


def discard(target: Path, job_id: str) -> None:
    """Remove the file that a merge may have left next to its target."""
    with contextlib.suppress(OSError, PromptmillError):
        check_folder(target)
        beside(target, job_id).unlink(missing_ok=True)


def write(merge: Merge) -> Path:
    """Write the output next to its target, on the disk itself, and return its path. Blocks.

    Raises `UnansweredError`, `HaltedError`, `OSError`; nothing is left behind then.
    """
    check_folder(merge.target)
    partial = beside(merge.target, merge.spec.job_id)
    try:
        mode = disk.PRIVATE_FILE if merge.spec.of_call else disk.PUBLIC_FILE
        with open(_created(partial, mode), "wb", _BUFFER) as out:
            with row_files.compressed(out, row_files.compression_of(merge.target)) as content:
                write_rows(merge, content)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return partial


def write_rows(merge: Merge, out: IO[bytes]) -> None:
    """Write the rows of `merge` with their answers into `out`. Raises as `write` does."""
    most = 1 << 62 if merge.most is None else merge.most
    if merge.output_format == "parquet":
        _write_parquet(merge, out, most)
        return
    if merge.output_format in row_files.CELLS:
        _write_cells(merge, out, most)
        return
    if merge.spec.input_format == "parquet":
        lines = _parquet_lines(merge, most)
    elif merge.spec.input_format in row_files.CELLS:
        lines = _cell_lines(merge, most)
    elif merge.spec.input_format == "batch":
        lines = _batch_lines(merge, most)
    else:
        lines = (jsonl_line(rows_.row_of(line), record, merge.columns) for line, record in _answered(merge, most))
    if merge.output_format == "json":
        separator = b"[\n"
        for line in lines:
            out.write(separator + line.removesuffix(b"\n"))
            separator = b",\n"
        out.write(b"[]\n" if separator == b"[\n" else b"\n]\n")
        return
    for line in lines:
        out.write(line)


def _answered(merge: Merge, most: int) -> Iterator[tuple[bytes, Record]]:
    """Yield the first `most` rows, as lines, with their answers."""
    lines, count = Lines(merge.lines), 0
    while block := lines.read():
        for line in block:
            if line.blank:
                continue
            if count >= most:
                return
            count += 1
            record = merge.answer(line.row)
            if record is not None:
                yield line.data or b"", record


def _batch_lines(merge: Merge, most: int) -> Iterator[bytes]:
    spec = merge.spec
    takes_model = backends.record(spec.backend).any_model  # then the line's own model answered it
    for line, record in _answered(merge, most):
        found = batch_output(
            line, record, job_id=spec.job_id, model=spec.model, created=spec.created, takes_model=takes_model
        )
        if merge.ids is not None and isinstance(found.get("custom_id"), str):
            merge.ids.note(found["custom_id"], record.row)
        yield rows_.json_line(found)


def _parquet_lines(merge: Merge, most: int) -> Iterator[bytes]:
    rows = (row for batch in ParquetTable(merge.input).batches() for row in batch.to_pylist())
    for number, row in enumerate(itertools.islice(rows, most)):
        record = merge.answer(number)
        if record is not None:
            yield rows_.json_line(row | answer_fields(record, merge.columns))


def _cell_lines(merge: Merge, most: int) -> Iterator[bytes]:
    header = CellTable(merge.input, merge.spec.input_format).header
    names = tables.distinct(list(map(tables.readable, header)))
    surplus = merge.columns.get("surplus_cells", "surplus_cells")
    for line, record in _answered(merge, most):
        own = list(map(tables.readable, cells_of(line)))
        row: dict[str, Any] = dict(zip(names, own, strict=False))
        if len(own) > len(names):
            row[surplus] = own[len(names) :]
        yield rows_.json_line(row | answer_fields(record, merge.columns))


def _write_cells(merge: Merge, out: IO[bytes], most: int) -> None:
    """Write the first `most` rows with their answers; surplus cells come last."""
    table = CellTable(merge.input, merge.spec.input_format)
    names, width = ANSWER_FIELDS + merge.answers.rare_fields(), len(table.header)
    delimiter = table.delimiter if merge.output_format == merge.spec.input_format else _DELIMITERS[merge.output_format]
    writer = csv.writer(tables.Encoded(out), delimiter=delimiter, lineterminator="\r\n")
    writer.writerow([*table.header, *(merge.columns.get(name, name) for name in names)])
    for line, record in _answered(merge, most):
        own = cells_of(line)
        own += [""] * (width - len(own))
        own[width:width] = cells(record, names)
        writer.writerow(own)


def _write_parquet(merge: Merge, out: IO[bytes], most: int) -> None:
    """Write the first `most` rows with their answers; the columns keep their types and metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    kinds = dict.fromkeys(ANSWER_FIELDS, text) | {
        "error": pa.struct([("code", text), ("message", text), ("retryable", pa.bool_()), ("attempts", pa.int64())]),
        "usage": pa.struct([("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64())]),
        **dict.fromkeys(merge.answers.rare_fields(), text),
    }
    table = ParquetTable(merge.input)
    fields = [*table.schema, *(pa.field(merge.columns.get(name, name), kind) for name, kind in kinds.items())]
    schema = pa.schema(fields, metadata=table.schema.metadata)
    with parquet.ParquetWriter(out, schema, write_batch_size=_VALUES_AT_ONCE) as writer:
        number, group, size = 0, [], 0
        for batch in table.batches():
            rows = batch.slice(0, most - number)
            found = [(at, record) for at in range(rows.num_rows) if (record := merge.answer(number + at)) is not None]
            records = [answer_fields(record) for _, record in found]
            seen = rows.num_rows
            if len(found) < seen:
                rows = rows.take(pa.array([at for at, _ in found], pa.int64()))
            answered = [
                pa.array([_parquet_cell(record.get(name), kind, text) for record in records], kind)
                for name, kind in kinds.items()
            ]
            group.append(pa.record_batch([*rows.columns, *answered], schema=schema))
            number, size = number + seen, size + group[-1].nbytes
            if size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group, schema))
                group, size = [], 0
            if number >= most:
                break
        writer.write_table(pa.Table.from_batches(group, schema))


def _parquet_cell(value: Any, kind: Any, text: Any) -> Any:
    """Return a value of a column; in a column of texts, a value with parts is JSON."""
    return orjson.dumps(value).decode() if kind == text and not isinstance(value, str | None) else value


def _created(path: Path, mode: int) -> int:
    """Return a new file at `path`. An existing file, perhaps a link, is removed and never written to."""
    path.unlink(missing_ok=True)
    return disk.created(path, mode)


def publish(partial: Path, target: Path, *, may_replace: bool) -> None:
    """Give the output its name in one step, and wait until that is on the disk.

    Raises `PromptmillError` (`invalid_input`) if another file has the name by now, or the folder is another one;
    `OSError`.
    """
    check_folder(target)
    if may_replace:
        partial.replace(target)
    else:
        _place(partial, target)
    disk.sync_folder(target.parent)


def _place(partial: Path, target: Path) -> None:
    taken = input_error(f"{target} was made by another program meanwhile; move it away and run the job again.")
    try:
        os.link(partial, target)  # unlike a rename, never over a file that is there
    except FileExistsError:
        raise taken from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise taken from None
        partial.replace(target)
    else:
        partial.unlink()


def batch_output(
    line: bytes, record: Record, *, job_id: str, model: str, created: int, takes_model: bool
) -> dict[str, Any]:
    """Return the output of a Batch line.

    `takes_model`: the line's own model answered it, where it names one.
    """
    try:
        asked = rows_.load(line.strip(), "")
    except PromptmillError:
        asked = None
    asked = asked if isinstance(asked, dict) else {}
    number = f"{job_id[-10:]}-{record.row + 1}"
    match provider_of(asked):
        case "anthropic":
            named = _model_name(asked.get("params"), model, takes_model=takes_model)
            return {"custom_id": asked.get("custom_id"), "result": _of_anthropic(record, number, named)}
        case "gemini":
            named = _model_name(asked.get("request"), model, takes_model=takes_model)
            rest = {name: value for name, value in asked.items() if name != "request"}
            return rest | _of_gemini(record, number, named)
    named = _model_name(asked.get("body"), model, takes_model=takes_model)
    return {
        "id": f"batch_req_{number}",
        "custom_id": asked.get("custom_id"),
        **_of_openai(record, number, named, created),
    }


@dataclass(frozen=True, slots=True)
class _Answer:
    """One of the answers to a line."""

    index: int
    text: str
    finish_reason: str | None
    reasoning: str | None
    tool_calls: Sequence[Mapping[str, Any]]
    logprobs: Mapping[str, Any] | None
    details: Mapping[str, Any]


def _answers(record: Record) -> list[_Answer]:
    """Return the answers of a line, several where it asked for them; one that failed is left out."""
    extras = record.extras
    details = extras.get("details", {})
    if choices := details.get("choices"):
        return [_Answer(**choice) for choice in choices]
    calls, logprobs = extras.get("tool_calls", ()), extras.get("logprobs")
    return [_Answer(0, record.text, record.finish_reason, record.reasoning, calls, logprobs, details)]


def _model_name(body: Any, model: str, *, takes_model: bool) -> str:
    return str((takes_model and isinstance(body, dict) and body.get("model")) or model)


def _of_openai(record: Record, number: str, model: str, created: int) -> dict[str, Any]:
    """Return `response` and `error` (platform.openai.com/docs/api-reference/batch/request-output)."""
    extras = record.extras
    if record.code is not None:
        error = {"code": record.code, "message": record.text}
        said = extras.get("response")
        if said is None:
            return {"response": None, "error": error}
        body = {"error": {"message": record.text, "type": None, "param": None, "code": None} | said["error"]}
        return {
            "response": {"status_code": said["status_code"], "request_id": f"req_{number}", "body": body},
            "error": error,
        }
    prompt, completion = record.prompt_tokens, record.completion_tokens
    details = extras.get("details", {})
    if "payload" in details:
        return {"response": _response(number, details["payload"]), "error": None}
    said = details.get("body", {})
    if not isinstance(said.get("usage", {}), dict):
        said = {name: value for name, value in said.items() if name != "usage"}
    answered = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": list(map(_openai_choice, _answers(record))),
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }
    # the endpoint's own id, model and usage if it sent them
    return {"response": _response(number, answered | said), "error": None}


def _response(number: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"status_code": 200, "request_id": f"req_{number}", "body": body}


def _openai_choice(answer: _Answer) -> dict[str, Any]:
    said = answer.details.get("message", {})
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None, **said}
    if message["refusal"] == answer.text:  # other outputs have it as the answer; this format has a field for it
        message["content"] = None
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
        message["content"] = answer.text or None
    details: dict[str, Any] = answer.details.get("choice", {})
    return details | {
        "index": answer.index,
        "message": message,
        "logprobs": answer.logprobs,
        "finish_reason": answer.finish_reason or "stop",
    }


def _of_anthropic(record: Record, number: str, model: str) -> dict[str, Any]:
    """Return a result (docs.anthropic.com/en/api/retrieving-message-batch-results)."""
    if record.code is not None:
        kind, _ = _ERRORS.get(record.code, _THE_SERVICE)
        return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": record.text}}}
    content: list[dict[str, Any]] = [{"type": "text", "text": record.text}] if record.text else []
    calls = record.extras.get("tool_calls", ())
    for call in calls:
        name, given = _function_call(call)
        content.append({"type": "tool_use", "id": call.get("id"), "name": name, "input": given})
    finish_reason = record.finish_reason or "stop"
    if calls and finish_reason == "stop":  # what some servers say with calls in the message
        finish_reason = "tool_calls"
    message = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": _ANTHROPIC_REASONS.get(finish_reason, "end_turn"),
        "stop_sequence": None,
        "usage": {"input_tokens": record.prompt_tokens, "output_tokens": record.completion_tokens},
    }
    return {"type": "succeeded", "message": message}


def _of_gemini(record: Record, number: str, model: str) -> dict[str, Any]:
    """Return `response`, a GenerateContentResponse, or `error`, a google.rpc.Status."""
    if record.code is not None:
        _, number_of_code = _ERRORS.get(record.code, _THE_SERVICE)
        return {"error": {"code": number_of_code, "message": record.text}}
    prompt, completion = record.prompt_tokens, record.completion_tokens
    response = {
        "candidates": list(map(_gemini_candidate, _answers(record))),
        "usageMetadata": {
            "promptTokenCount": prompt,
            "candidatesTokenCount": completion,
            "totalTokenCount": prompt + completion,
        },
        "modelVersion": model,
        "responseId": number,
    }
    return {"response": response}


def _gemini_candidate(answer: _Answer) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": answer.text}] if answer.text else []
    for call in answer.tool_calls:
        name, given = _function_call(call)
        parts.append({"functionCall": {"name": name, "args": given}})
    return {
        "content": {"parts": parts, "role": "model"},
        "finishReason": _GEMINI_REASONS.get(answer.finish_reason or "stop", "OTHER"),
        "index": answer.index,
    }


def _function_call(call: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name of the function that is called, and its arguments as an object as far as they are one."""
    function = call.get("function", {})
    text = function.get("arguments") or "{}"
    try:
        return function.get("name", ""), orjson.loads(text)
    except orjson.JSONDecodeError:
        return function.get("name", ""), {"arguments": text}
