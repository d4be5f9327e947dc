"""CSV and Parquet: rows streamed into lines before the job, and answers beside their columns after it."""

from __future__ import annotations

import base64
import csv
import io
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from promptmill.backends.row_fields import IMAGES, NAMES
from promptmill.core.errors import input_error
from promptmill.jobs import disk
from promptmill.jobs.disk import RandomFile
from promptmill.jobs.output_records import ANSWER_FIELDS, answer_fields, cells, plain_line
from promptmill.jobs.records import Record

Answer = Callable[[int], Record | None]  # None leaves the row out
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"(?:[^"]|"")*("|$)')  # what stands there separates nothing
_BATCH_ROWS = 1024
_GROUP_ROWS = 16 * _BATCH_ROWS
_LONGEST_CELL = 2**31 - 1


class Halted(Exception):  # noqa: N818 (a finding, told to the runner alone)
    """Nobody wants the result any more."""


def spool(file: RandomFile, table_format: str, target: Path, halt: threading.Event | None = None) -> int:
    """Write the rows of a table into `target`, one line each, and return how many there are.

    Only the columns that are asked about are kept. `target` is there whole or not at all. Raises `PromptmillError`
    (`invalid_input`) for what is no table, or one without a `prompt` or `messages` column; `OSError`; `Halted` once
    `halt` is set.
    """
    beside = target.with_name(f"{target.name}.new")
    lines = _csv_lines(file) if table_format == "csv" else _parquet_lines(file)
    count = 0
    with beside.open("wb") as out:
        beside.chmod(disk.PRIVATE_FILE)
        for line in lines:
            if halt is not None and halt.is_set():
                raise Halted
            out.write(line + b"\n")
            count += 1
        out.flush()
        disk.sync_file(out)
    beside.replace(target)
    disk.sync_folder(target.parent)
    return count


class _Csv:
    """A CSV file's dialect and rows. What is not UTF-8 is carried through unchanged."""

    def __init__(self, file: RandomFile) -> None:
        csv.field_size_limit(_LONGEST_CELL)
        self._text = io.TextIOWrapper(file.stream(), encoding="utf-8-sig", errors="surrogateescape", newline="")
        first = _QUOTED.sub("", self._text.readline())
        self.delimiter = max(_DELIMITERS, key=first.count)
        self._text.seek(0)
        self._reader = csv.reader(self._text, delimiter=self.delimiter)
        try:
            self.header = next(self._reader, [])
        except csv.Error as error:
            raise input_error(f"The input is not a valid CSV file: {error}.") from None

    @property
    def line(self) -> int:
        """Where the row that was read last ends; a row has several lines when a cell holds line breaks."""
        return self._reader.line_num

    def rows(self) -> Iterator[list[str]]:
        """Yield the rows under the header; empty lines are none."""
        while True:
            try:
                row = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise input_error(
                    f"The CSV file cannot be read beyond line {self._reader.line_num}: {error}."
                ) from None
            if row:
                yield row


def _is_utf8(text: str) -> bool:
    """Return whether `text`, read with `surrogateescape`, was UTF-8."""
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


class _Encoded:
    """What `csv` writes into, over a file of bytes. Rows end with a line feed.

    Told so, `csv` would leave a lone carriage return unquoted before Python 3.13, and readers take it for a row's end.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, text: str) -> int:
        return self._out.write(text.removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n")


def _csv_lines(file: RandomFile) -> Iterator[bytes]:
    table = _Csv(file)
    _check_columns(table.header)
    asked = [(at, name) for at, name in enumerate(table.header) if name in NAMES]
    for cells_ in table.rows():
        row = _csv_row(cells_, len(table.header), asked)
        yield orjson.dumps(f"{row.removesuffix('.')} (line {table.line})." if isinstance(row, str) else row)


def _csv_row(found: list[str], width: int, asked: list[tuple[int, str]]) -> dict[str, Any] | str:
    if len(found) != width:
        return f"has {len(found)} cells, but the header has {width}."
    row: dict[str, Any] = {}
    for at, name in asked:
        text = found[at]
        if not _is_utf8(text):
            return f"{name} is not UTF-8 text."
        if not text and name != "prompt":
            continue
        if name == "prompt" and not text and len(asked) > 1:
            continue  # the other columns may ask
        if name == "messages" or (name in IMAGES and text.lstrip().startswith("[")):
            try:
                row[name] = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                return f"{name} is not valid JSON: {error.msg}."
        else:
            row[name] = text
    return row


def _parquet(file: RandomFile) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file.stream(), pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise input_error(f"The input is not a valid Parquet file: {str(error).splitlines()[0]:.200}") from None


def _parquet_lines(file: RandomFile) -> Iterator[bytes]:
    table = _parquet(file)
    _check_columns(table.schema_arrow.names)
    asked = [name for name in table.schema_arrow.names if name in NAMES]
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=asked, use_threads=False):
        for row in batch.to_pylist():
            images = {name: row.pop(name) for name in IMAGES if name in row}
            try:
                line = orjson.dumps(row)
                yield orjson.dumps(row | images, default=_as_base64) if images else line
            except TypeError:
                yield orjson.dumps("prompt, messages or images hold values that are not text.")


def _as_base64(value: object) -> str:
    """Return the bytes of an image as JSON can hold them."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError


def _check_columns(names: list[str]) -> None:
    if not {"prompt", "messages"} & set(names):
        if not all(map(_is_utf8, names)):
            raise input_error("The first line of the input is not UTF-8 text; save the file as UTF-8.")
        shown = ", ".join(name[:40] for name in names[:10]) or "none"
        raise input_error(f"The input has no column `prompt` or `messages`; its columns: {shown}.")


def write_csv(file: RandomFile, out: IO[bytes], answer: Answer, extra: tuple[str, ...], most: int) -> None:
    """Write the first `most` rows of the CSV `file` with answers into `out`; `extra` names more of their columns."""
    table = _Csv(file)
    names = ANSWER_FIELDS + extra
    kept = [at for at, name in enumerate(table.header) if name not in names]
    writer = csv.writer(_Encoded(out), delimiter=table.delimiter, lineterminator="\r\n")
    writer.writerow([table.header[at] for at in kept] + list(names))
    for number, row in enumerate(table.rows()):
        if number >= most:
            break
        record = answer(number)
        if record is not None:
            writer.writerow([row[at] if at < len(row) else "" for at in kept] + cells(record, names))


def table_as_jsonl(file: RandomFile, table_format: str, answer: Answer, most: int) -> Iterator[bytes]:
    """Yield the first `most` rows of a table with their answers as JSON lines."""
    for number, row in enumerate(_rows(file, table_format)):
        if number >= most:
            return
        record = answer(number)
        if record is None:
            continue
        fields = answer_fields(record)
        yield plain_line({name: value for name, value in row.items() if name not in fields} | fields)


def _rows(file: RandomFile, table_format: str) -> Iterator[dict[str, Any]]:
    if table_format == "parquet":
        for batch in _parquet(file).iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            yield from batch.to_pylist()
        return
    table = _Csv(file)
    header = _readable(table.header)
    for row in table.rows():
        yield dict(zip(header, _readable(row), strict=False))


def _readable(texts: list[str]) -> list[str]:
    """Return cells with the replacement character for what is not UTF-8."""
    return [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts]


def write_parquet(file: RandomFile, out: IO[bytes], answer: Answer, extra: tuple[str, ...], most: int) -> None:
    """Write the first `most` rows of the Parquet `file` with their answers into `out`, types kept."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    kinds = {
        "answer": text,
        "error": pa.struct([("code", text), ("message", text), ("retryable", pa.bool_()), ("attempts", pa.int64())]),
        "usage": pa.struct([("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64())]),
        "finish_reason": text,
    } | dict.fromkeys(extra, text)
    table = _parquet(file)
    kept = [field for field in table.schema_arrow if field.name not in kinds]
    schema = pa.schema(kept + [pa.field(name, kind) for name, kind in kinds.items()])
    with parquet.ParquetWriter(out, schema) as writer:
        number, group = 0, []
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            rows = batch.slice(0, most - number)
            found = [(at, record) for at in range(rows.num_rows) if (record := answer(number + at)) is not None]
            records = [answer_fields(record) for _, record in found]
            seen, rows = rows.num_rows, rows.take(pa.array([at for at, _ in found], pa.int64()))
            columns = [rows.column(field.name) for field in kept]
            columns += [
                pa.array([_parquet_cell(record.get(name), kind == text) for record in records], kind)
                for name, kind in kinds.items()
            ]
            group.append(pa.record_batch(columns, schema=schema))
            number += seen
            if len(group) * _BATCH_ROWS >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(group, schema))
                group = []
            if number >= most:
                break
        writer.write_table(pa.Table.from_batches(group, schema))


def _parquet_cell(value: Any, as_text: bool) -> Any:  # noqa: FBT001 (a column's kind)
    return orjson.dumps(value).decode() if as_text and not isinstance(value, str | None) else value
