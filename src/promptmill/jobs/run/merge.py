"""The two steps of a job that read its files: rows become lines; lines and records become the output.

A server has another process do them for a call (see `manage.detached`), because a template, or a file that somebody
else made, may take any amount of memory and time. The output is in input order; the file appears complete or
not at all.

A row keeps its own columns: if it has one called `answer`, the answers are in `answer_1`. The names are chosen for the
whole input before anything is sent, so that every output and every page of a job has the same ones.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import orjson

from promptmill.backends import rows as rows_
from promptmill.config import backends
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.wording import mended
from promptmill.jobs.files import disk, row_files, row_secrets
from promptmill.jobs.files.disk import Lines, RandomFile
from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.files.spool import HaltedError, cells_of, spool
from promptmill.jobs.files.tables import (
    CellTable,
    CellWriter,
    ColumnTypes,
    ParquetTable,
    distinct,
    objects,
    readable,
)
from promptmill.jobs.run.batch_output import CustomIds, batch_output
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.records import (
    ANSWER_FIELDS,
    FIELD,
    OURS,
    RARE_FIELDS,
    Record,
    answer_fields,
    cell,
    cells,
    jsonl_line,
)
from promptmill.jobs.store.spec import WHOLE_REQUESTS, JobSpec
from promptmill.system.call_files import FileRule

if TYPE_CHECKING:
    from promptmill.jobs.run.schema_columns import SchemaColumns

_BUFFER = 1 << 20
_DELIMITERS = MappingProxyType({"csv": ",", "tsv": "\t"})
_GROUP_BYTES = 4 << 20
_ROWS_AT_ONCE = 4096
_CUSTOM_ID = "custom_id"
_PROBLEM = rows_.PROBLEM.encode()
_LONG_NUMBER = re.compile(rb"\d{20}")  # orjson makes a fraction of one beyond 64 bits
_VALUES_AT_ONCE = 32  # how often a page's size is looked at: one of 1,024 images, as by default, is large
_MOST_FIELDS = 10_000
_MOST_OF_A_NAME = 100  # columns, numbered


Note: TypeAlias = Callable[[str, Any], None]
"""Gets what a step reports: `activity`, `spec` (fields that it has found) and `passed` (rows of the output)."""


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The files of a job, for one step."""

    spec: JobSpec
    folder: Folder
    input: InputFiles
    limit: int | None
    """Only the first rows, this many."""
    note: Note
    halt: threading.Event = field(default_factory=threading.Event)
    """Set when a step is to leave what it does."""
    disk_share: float = 1.0
    """The share of the free disk that rows written as lines may take."""
    rule: FileRule = field(default_factory=FileRule)
    """Decides about secrets in the rows."""


def check_secrets(files: JobFiles) -> None:
    """Look for secrets in the rows. Blocks, about 10 s per gigabyte.

    Raises `PromptmillError` (`invalid_input`); `HaltedError` once `halt` is set.
    """
    files.note("activity", "looking for keys and passwords")
    row_secrets.check(files.input, files.rule, files.halt)


def are_rows_read(spec: JobSpec, folder: Folder) -> bool:
    """Return whether `read_rows` has nothing left to do."""
    return spec.columns is not None and _has_lines(spec, folder)


def _has_lines(spec: JobSpec, folder: Folder) -> bool:
    return not spec.spooled or (spec.lines is not None and folder.rows.exists())


def read_rows(files: JobFiles) -> None:
    """Write the rows as lines if the job needs them so, and name the columns of the answers. Blocks.

    Raises `PromptmillError` (`invalid_input`, `storage`), `OSError`; `HaltedError` once `halt` is set.
    """
    spec, folder = files.spec, files.folder
    if not _has_lines(spec, folder):
        files.note("activity", "reading the rows")
        count = spool(
            files.input,
            spec.input_format,
            folder.rows,
            files.halt,
            prompt_column=spec.prompt_column,
            prompt_template=spec.prompt_template,
            prompt_only=spec.prompt_only,
            image_column=spec.image_column,
            row_settings=spec.rows_set,
            most_bytes=_most_bytes(files),
        )
        spec = spec.model_copy(update={"lines": count})
        files.note("spec", {"lines": count})
    with folder.lines(files.input, spec) as lines:
        found = with_columns(spec, files.input, lines, files.halt)
    if found is not spec:
        files.note("spec", {"columns": found.columns, "settings_read": found.settings_read})


def _most_bytes(files: JobFiles) -> int | None:
    if files.disk_share == 1.0:
        return None
    return int(shutil.disk_usage(files.folder.path).free * files.disk_share)


def write_output(files: JobFiles) -> dict[str, Any]:
    """Write the output next to its place. Blocks.

    Returns the path, the number of rows, and a warning if ids are repeated. Raises as `write` does.
    """
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(files.folder.reading())
        lines = opened.enter_context(files.folder.lines(files.input, files.spec))
        answers = Answers(store)
        spec = files.spec
        ids = None
        if spec.input_format == "batch":
            ids = opened.enter_context(contextlib.closing(CustomIds(files.folder.duplicates)))
        merge = of_files(spec, files.input, lines, answers, files.limit)
        partial = write(replace(merge, ids=ids, halt=files.halt, passed=lambda rows: files.note("passed", rows)))
        return {"partial": str(partial), "rows": answers.rows, "warning": "" if ids is None else ids.warning}


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
        """Return the record of `row`, None to leave the row out. Raises `UnansweredError`."""
        record = self.answers.find(row)
        if record is not None and record.code is not None and self.spec.leaves_out(record.code):
            return None
        return record

    def pass_rows(self, rows: int) -> None:
        """Report that so many rows are done. Raises `HaltedError`."""
        if self.passed is not None:
            self.passed(rows)
        if self.halt is not None and self.halt.is_set():
            raise HaltedError


def of_files(spec: JobSpec, files: InputFiles, lines: RandomFile, answers: Answers, limit: int | None) -> Merge:
    """Return the merge that makes the output of the job `spec`, whose input is `files` and whose rows are `lines`."""
    return Merge(spec, files, lines, answers, spec.output, spec.output_format, limit)


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
        with open(created(partial, mode), "wb", _BUFFER) as out:
            with row_files.compressed(out, row_files.compression_of(merge.target)) as content:
                write_rows(merge, content)
            out.flush()
            disk.sync_file(out)
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
        write = _write_cells if merge.spec.input_format in row_files.CELLS else _write_objects
        write(merge, out, most)
        return
    ours = _AnswerColumns(merge)
    lines: Iterator[bytes]
    if merge.spec.input_format in row_files.TABLES:
        lines = (rows_.json_line(row | ours.in_json(record)) for row, record in _rows(merge, most))
    elif merge.spec.input_format == "batch":
        lines = _batch_lines(merge, most)
    else:
        lines = (jsonl_line(rows_.row_of(line), ours.in_json(record)) for line, record in _answered(merge, most))
    if merge.output_format == "json":
        separator = b"[\n"
        for line in lines:
            out.write(separator + line.removesuffix(b"\n"))
            separator = b",\n"
        out.write(b"[]\n" if separator == b"[\n" else b"\n]\n")
        return
    for line in lines:
        out.write(line)


class _AnswerColumns:
    """The columns of the answers in the output of a merge, and the values of a row in them."""

    def __init__(self, merge: Merge) -> None:
        self._renamed = merge.columns
        self._schema = schema = _schema_columns(merge.spec)
        rare = merge.answers.rare_fields() if merge.output_format in row_files.TABLES else ()
        usual = dict(zip(names := (*ANSWER_FIELDS, *rare), names, strict=True))
        if schema is not None and schema.names:
            usual = {**schema.names, **{name: name for name in usual if name != "answer"}}
        self.names = {key: merge.columns.get(key, name) for key, name in usual.items()}
        """The columns of a table, by their keys."""

    def in_json(self, record: Record) -> dict[str, Any]:
        """Return the fields of a row of JSON, by their names in the output."""
        if self._schema is None:
            return answer_fields(record, self._renamed)
        found = self._schema.in_json(answer_fields(record))
        return {self._renamed.get(name, name): value for name, value in found.items()}

    def in_table(self, record: Record) -> dict[str, Any]:
        """Return the values of a row of a table, by the keys of their columns."""
        found = answer_fields(record)
        if not found["answer"] and (payload := record.extras.get("details", {}).get("payload")) is not None:
            found["answer"] = cell(payload)  # embeddings that a line of a Batch file asks for
        return found if self._schema is None else self._schema.in_table(found)

    def arrow_types(self) -> dict[str, Any]:
        """Return the Arrow types of the columns of a table, by their keys."""
        import pyarrow as pa

        text = pa.string()
        structs = {
            "error": pa.struct(
                [("code", text), ("message", text), ("retryable", pa.bool_()), ("attempts", pa.int64())]
            ),
            "usage": pa.struct([("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64())]),
        }
        schema = self._schema
        return {
            key: schema.arrow_type(key) if schema is not None and key in schema.names else structs.get(key, text)
            for key in self.names
        }

    def arrow_value(self, key: str, value: Any) -> Any:
        """Return a value of the column `key` in its Arrow type; in a column of texts, a value with parts is JSON."""
        if self._schema is not None and key in self._schema.names:
            return self._schema.arrow_value(key, value)
        is_text = isinstance(value, str | None) or key in {"error", "usage"}
        return value if is_text else orjson.dumps(value).decode()


def _schema_columns(spec: JobSpec) -> SchemaColumns | None:
    """Return the columns of a job whose answers have a schema."""
    if spec.answer_schema is None:
        return None
    from promptmill.jobs.run.schema_columns import SchemaColumns  # other jobs do not need it

    return SchemaColumns(spec.answer_schema, apart=spec.fields)


def _answered(merge: Merge, most: int) -> Iterator[tuple[bytes, Record]]:
    """Yield the first `most` rows, as lines, with their answers."""
    lines, count = Lines(merge.lines), 0
    while block := lines.read():
        merge.pass_rows(block[0].row)
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


def _rows(merge: Merge, most: int) -> Iterator[tuple[dict[str, Any], Record]]:
    """Yield the first `most` rows, as objects with the columns of the input, with their answers."""
    if merge.spec.input_format != "parquet":
        read, _ = _reading(merge)
        yield from ((read(line, record), record) for line, record in _answered(merge, most))
        return
    number = 0
    for batch in ParquetTable(merge.input).batches():
        merge.pass_rows(number)
        for row in objects(batch.slice(0, most - number)):
            record = merge.answer(number)
            number += 1
            if record is not None:
                yield row, record
        if number >= most:
            return


def _reading(merge: Merge) -> tuple[Callable[[bytes, Record], dict[str, Any]], Iterator[dict[str, Any]]]:
    """Return the reader of a line, which gives an object, and examples of these objects with all fields.

    The rows are lines of JSON, of a Batch file, or of a table of cells.
    """
    if merge.spec.input_format == "batch":
        return functools.partial(_batch_row, merge), iter([{_CUSTOM_ID: ""}])
    if merge.spec.input_format not in row_files.CELLS:
        return (lambda line, _: _object(line)), _objects(merge.lines, merge.halt)
    names = distinct(list(map(readable, CellTable(merge.input, merge.spec.input_format).header)))
    surplus = merge.columns.get("surplus_cells", "surplus_cells")

    def read(line: bytes, _: Record) -> dict[str, Any]:
        own = list(map(readable, cells_of(line)))
        row: dict[str, Any] = dict(zip(names, own, strict=False))
        if len(own) > len(names):
            row[surplus] = own[len(names) :]
        return row

    def examples() -> Iterator[dict[str, Any]]:
        yield dict.fromkeys(names, "")
        found = Lines(merge.lines)
        while block := found.read():
            for line in block:  # only a row that is an error has surplus cells
                if _PROBLEM in (line.data or b"") and len(cells_of(line.data or b"")) > len(names):
                    yield {surplus: [""]}
                    return

    return read, examples()


def _batch_row(merge: Merge, line: bytes, record: Record) -> dict[str, Any]:
    """Return the column of a line of a Batch file in a table: its id, which Gemini calls `key`."""
    asked = _object(line)
    value = asked.get(_CUSTOM_ID, asked.get("key"))
    if merge.ids is not None and isinstance(value, str):
        merge.ids.note(value, record.row)
    return {_CUSTOM_ID: value if isinstance(value, str | None) else cell(value)}


def _write_cells(merge: Merge, out: IO[bytes], most: int) -> None:
    """Write the first `most` rows with their answers; surplus cells come last."""
    table = CellTable(merge.input, merge.spec.input_format)
    ours, width = _AnswerColumns(merge), len(table.header)
    delimiter = table.delimiter if merge.output_format == merge.spec.input_format else _DELIMITERS[merge.output_format]
    writer = CellWriter(out, delimiter)
    writer.write([*table.header, *ours.names.values()])
    for line, record in _answered(merge, most):
        own = cells_of(line)
        own += [""] * (width - len(own))
        own[width:width] = cells(ours.in_table(record), ours.names)
        writer.write(own)


def _write_objects(merge: Merge, out: IO[bytes], most: int) -> None:
    """Write the first `most` rows that are no cells with their answers: a column for each field that some row has."""
    ours, names = _AnswerColumns(merge), dict[str, None]()
    if merge.spec.input_format == "parquet":
        names.update(dict.fromkeys(ParquetTable(merge.input).schema.names))
    else:
        for row in _reading(merge)[1]:
            names.update(dict.fromkeys(row))
            _check_width(len(names))
    writer = CellWriter(out, _DELIMITERS[merge.output_format])
    writer.write([*names, *ours.names.values()])
    for row, record in _rows(merge, most):
        writer.write([*(cell(row.get(name)) for name in names), *cells(ours.in_table(record), ours.names)])


def _check_width(columns: int) -> None:
    if columns > _MOST_FIELDS:
        raise input_error(f"The rows have more than {_MOST_FIELDS:,} different fields; name the output .jsonl.")


def _write_parquet(merge: Merge, out: IO[bytes], most: int) -> None:
    """Write the first `most` rows with their answers; columns of Parquet keep their types and metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    ours = _AnswerColumns(merge)
    kinds = ours.arrow_types()
    if merge.spec.input_format == "parquet":
        table = ParquetTable(merge.input)
        own, blocks = table.schema, _table_blocks(merge, table, most)
    else:
        read, examples = _reading(merge)
        types = ColumnTypes()
        for row in examples:
            types.include(row)
            _check_width(len(types))
        own, blocks = types.schema(), _line_blocks(merge, read, types, most)
    fields = [*own, *(pa.field(ours.names[key], kind) for key, kind in kinds.items())]
    schema = pa.schema(fields, metadata=own.metadata)
    with parquet.ParquetWriter(out, schema, write_batch_size=_VALUES_AT_ONCE) as writer:
        group, size = [], 0
        for rows, found in blocks:
            records = [ours.in_table(record) for record in found]
            answered = [
                pa.array([ours.arrow_value(key, record.get(key)) for record in records], kind)
                for key, kind in kinds.items()
            ]
            group.append(pa.record_batch([*rows.columns, *answered], schema=schema))
            size += group[-1].nbytes
            if size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group, schema))
                group, size = [], 0
        writer.write_table(pa.Table.from_batches(group, schema))


def _table_blocks(merge: Merge, table: ParquetTable, most: int) -> Iterator[tuple[Any, list[Record]]]:
    """Yield the first `most` rows of `table`, record batches with the answers of their rows."""
    import pyarrow as pa

    number = 0
    for batch in table.batches():
        merge.pass_rows(number)
        rows = batch.slice(0, most - number)
        found = [(at, record) for at in range(rows.num_rows) if (record := merge.answer(number + at)) is not None]
        number += rows.num_rows
        if len(found) < rows.num_rows:
            rows = rows.take(pa.array([at for at, _ in found], pa.int64()))
        yield rows, [record for _, record in found]
        if number >= most:
            return


def _line_blocks(
    merge: Merge, read: Callable[[bytes, Record], dict[str, Any]], types: ColumnTypes, most: int
) -> Iterator[tuple[Any, list[Record]]]:
    """Yield the same of rows that are lines, a few megabytes at a time."""
    rows: list[dict[str, Any]] = []
    records: list[Record] = []
    size = 0
    for line, record in _answered(merge, most):
        rows.append(read(line, record))
        records.append(record)
        size += len(line) + len(record.text)
        if size >= _GROUP_BYTES or len(rows) >= _ROWS_AT_ONCE:
            yield types.batch(rows), records
            rows, records, size = [], [], 0
    if rows:
        yield types.batch(rows), records


def created(path: Path, mode: int) -> int:
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
    try:
        os.link(partial, target)  # unlike a rename, never over a file that is there
    except OSError as error:
        if isinstance(error, FileExistsError) or target.exists():
            taken = f"{target} was made by another program meanwhile; move it away and run the job again."
            raise input_error(taken) from None
        partial.replace(target)  # a file system without hard links
    else:
        partial.unlink()


def notes_on_columns(spec: JobSpec, *, is_grid: bool = False) -> Iterator[str]:
    """Yield sentences for the summary: columns with unusual names, and columns that are settings.

    `is_grid`: the column `model` is not the user's.
    """
    names = spec.columns or {}
    wanted = {key: spec.answer_column if key == "answer" else _usual(key) for key in names}
    moved = {wanted[key]: new for key, new in names.items() if new != wanted[key]}
    if moved:
        its, ours = (", ".join(f"`{name}`" for name in names) for names in (moved, moved.values()))
        yield f"The input has columns {its} of its own; those of the job are called {ours}."
    if read := [name for name in spec.settings_read if not (is_grid and name == "model")]:
        yield f"Read as settings of each row: {', '.join(f'`{name}`' for name in read)}."


def with_columns(spec: JobSpec, files: InputFiles, lines: RandomFile, halt: threading.Event | None = None) -> JobSpec:
    """Return `spec` with the columns of the job; the input is read unless `spec` has them. Blocks.

    `lines` are the rows as lines. Raises `PromptmillError` (`invalid_input`); `HaltedError` once `halt` is set.
    """
    if spec.columns is not None:
        return spec
    wanted = _wanted(spec)
    watched = frozenset(each for name in wanted.values() for each in _candidates(name)) | rows_.SETTINGS
    taken: set[str] = set()
    settings: set[str] = set()
    if spec.input_format in row_files.TABLES:
        taken = settings = _header(files, spec.input_format)
    elif spec.input_format not in WHOLE_REQUESTS:
        for row in _objects(lines, halt):
            if not watched.isdisjoint(row):
                found = watched.intersection(row)
                taken |= found
                settings.update(name for name in found & rows_.SETTINGS if not rows_.is_null(row[name]))
    read = sorted(settings & rows_.SETTINGS - {spec.prompt_column}) if spec.rows_set else []
    return spec.model_copy(update={"columns": _names(wanted, taken), "settings_read": read})


def _wanted(spec: JobSpec) -> dict[str, str]:
    """Return the usual names of the job's columns by their keys, those first that come first to a name."""
    wanted = {name: spec.answer_column if name == "answer" else name for name in OURS}
    schema = _schema_columns(spec)
    if schema is None:
        return wanted
    if schema.names and spec.output_format in row_files.TABLES:  # it has no `answer`
        answer = wanted.pop("answer")
        return wanted | schema.names | {"answer": answer}
    return wanted | schema.names


def _usual(key: str) -> str:
    return key.removeprefix(FIELD)


def _names(wanted: Mapping[str, str], taken: Container[str]) -> dict[str, str]:
    """Return the names of the job's columns that are not the usual ones."""
    found: dict[str, str] = {}
    for ours, name in wanted.items():
        used = found.values()
        free = next((each for each in _candidates(name) if each not in taken and each not in used), None)
        if free is None:
            raise input_error(f"The input has {_MOST_OF_A_NAME} columns `{name}`, `{name}_1`, …; rename some of them.")
        found[ours] = free
    return {key: name for key, name in found.items() if name != _usual(key)}


def _candidates(name: str) -> Iterator[str]:
    yield name
    for number in range(1, _MOST_OF_A_NAME):
        yield f"{name}_{number}"


def _header(files: InputFiles, input_format: str) -> set[str]:
    if input_format == "parquet":
        return set(ParquetTable(files).schema.names)
    header = CellTable(files, input_format).header
    return {*header, *distinct(list(map(readable, header)))}


def _objects(lines: RandomFile, halt: threading.Event | None) -> Iterator[dict[str, Any]]:
    """Yield the rows as they are in the input, without the prompts of a template."""
    found = Lines(lines)
    while block := found.read():
        if halt is not None and halt.is_set():
            raise HaltedError
        yield from (_object(line.data or b"") for line in block)


def _object(line: bytes) -> dict[str, Any]:
    """Return a row of JSON as it is in the input; `{}` for an unreadable one, which has an error already."""
    own = rows_.row_of(line).removeprefix(rows_.BOM)
    try:
        row = json.loads(own) if _LONG_NUMBER.search(own) else rows_.load(own, "")
    except (PromptmillError, ValueError, RecursionError):
        return {}
    if not isinstance(row, dict):
        return {}
    found: dict[str, Any] = mended(row) if b"\\u" in own else row  # half a surrogate pair
    return found
