"""Parquet as rows: the files of an input under one schema, read a few megabytes at a time."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from promptmill.core import values
from promptmill.core.bounds import LONGEST_ROW, TOO_LONG
from promptmill.core.errors import input_error
from promptmill.jobs.inputs.files import InputFiles, check_ratio
from promptmill.jobs.inputs.formats import compression_of
from promptmill.jobs.inputs.row import WHOLE, InputRow, Stretch, Style, Window

_MAGIC = b"PAR1"
_BATCH_BYTES = 1 << 20
_EXPANDED_BYTES = 16 << 20
_SMALL_DICTIONARY = 4 << 10
_PAGE_HEADER = 32  # bytes at the start of a page's header, with its first fields
_PAGE_BYTES = 1 << 20


class ParquetTable:
    """The rows of all files of an input under one schema; columns of the same name become one column."""

    def __init__(self, files: InputFiles) -> None:
        """Read the files' schemas. Raises `PromptmillError` (`invalid_input`)."""
        if sys.platform == "linux":  # every build of pyarrow for Linux has jemalloc
            # keeps the fewest freed pages; other allocators keep more, depending on the system
            os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
        import pyarrow as pa

        self._files = files
        schemas = []
        for at, part in enumerate(files.parts):
            with self._opened(at) as (file, _):
                schema = file.schema_arrow
            if len(set(schema.names)) < len(schema.names):
                twice = next(name for at, name in enumerate(schema.names) if name in schema.names[:at])
                raise input_error(f"{part.path.name} has two columns {twice[:60]!r}, which cannot be told apart.")
            for name in part.columns:
                if name not in schema.names:
                    schema = schema.append(pa.field(name, pa.string()))
            schemas.append(schema)
        try:
            self.schema = pa.unify_schemas(schemas, promote_options="permissive") if len(schemas) > 1 else schemas[0]
        except pa.ArrowException as error:
            raise input_error(f"The Parquet files have a column of two types; convert it to one: {error}") from None

    @property
    def style(self) -> Style:
        """The style of the input: its Arrow schema."""
        return Style(arrow_schema=packed_schema(self.schema))

    @property
    def header(self) -> list[str]:
        """The columns."""
        return list(self.schema.names)

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`. Each record batch is a stretch, and is read only as a whole."""
        del window
        n = 0
        for batch in self._batches():
            finite = all(map(_is_finite, batch.columns))
            rows = zip(*map(_python_values, batch.columns), strict=True)
            yield Stretch(
                [
                    InputRow(number, values.dumps(cells, finite=finite), {name: cells[at] for at, name in columns})
                    for number, cells in enumerate(rows, n)
                ]
            )
            n += batch.num_rows

    def _batches(self) -> Iterator[Any]:
        """Yield all rows as record batches of a few megabytes."""
        for at, part in enumerate(self._files.parts):
            with self._opened(at) as (file, stream):
                known = set(file.schema_arrow.names)
                own = [name for name in self.schema.names if name in known]
                rows = _rows_at_once(file, stream, set(own))
                for batch in file.iter_batches(batch_size=rows, columns=own, use_threads=False):
                    yield batch if batch.schema.equals(self.schema) else _fitted(batch, self.schema, part.columns)

    @contextmanager
    def _opened(self, at: int) -> Iterator[tuple[Any, IO[bytes]]]:
        import pyarrow as pa
        from pyarrow import parquet

        with self._files.stream(at, seekable=True) as stream:
            # opened by path, because a page that passes through Python would be in memory twice
            is_plain = sys.platform == "linux" and not compression_of(self._files.parts[at].path)
            path = Path(f"/proc/self/fd/{stream.fileno()}") if is_plain else stream
            try:
                # without `pre_buffer`, which keeps the column of a whole row group in memory
                file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=_PAGE_BYTES)
            except (pa.ArrowException, OSError) as error:
                raise input_error(_unreadable(self._files.parts[at].path, stream, error)) from None
            yield file, stream


def packed_schema(schema: Any) -> str:
    """Return an Arrow schema as text."""
    return base64.b64encode(schema.serialize()).decode()


def unpacked_schema(text: str) -> Any:
    """Return the Arrow schema from the text of `packed_schema`."""
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def without_nanoseconds(kind: Any) -> Any:
    """Return an Arrow type with times in nanoseconds replaced by texts, and durations in nanoseconds by integers.

    Python has no types for nanoseconds.
    """
    import pyarrow as pa

    def changed(kind: Any, usual: Any) -> Any:
        is_ns = getattr(kind, "unit", "") == "ns"
        return usual if not is_ns else pa.int64() if pa.types.is_duration(kind) else pa.string()

    return _with(changed, kind)


def _with(changed: Callable[[Any, Any], Any], kind: Any) -> Any:
    """Return an Arrow type with its inner types changed. `changed` takes a type and its result for most types."""
    import pyarrow as pa

    kinds = pa.types
    if kinds.is_struct(kind):
        return pa.struct([field.with_type(_with(changed, field.type)) for field in kind])
    if kinds.is_list(kind) or kinds.is_large_list(kind):
        inner = kind.value_field.with_type(_with(changed, kind.value_type))
        return pa.list_(inner) if kinds.is_list(kind) else pa.large_list(inner)
    if kinds.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_with(changed, kind.value_type)), kind.list_size)
    return changed(kind, kind)


def _python_values(column: Any) -> list[Any]:
    """Return the values of a column. A time in nanoseconds becomes a text in Python's format; a duration that is not a
    whole number of microseconds becomes a number of nanoseconds; 0.1 of 32 bits is 0.1, as other programs show it."""
    import pyarrow as pa
    from pyarrow import compute

    as_texts, as_floats = (_with({pa.float32(): to}.get, column.type) for to in (pa.string(), pa.float64()))
    if as_floats != column.type:
        column = column.cast(as_texts).cast(as_floats)
    kind = without_nanoseconds(column.type)
    if pa.types.is_duration(column.type):
        with suppress(pa.ArrowInvalid):  # a duration that is no whole number of microseconds stays as it is
            column, kind = column.cast(pa.duration("us")), pa.duration("us")
    if kind != column.type:
        column = column.cast(kind)
        if pa.types.is_string(kind):
            column = compute.replace_substring(column, ".000000000", "")
            column = compute.replace_substring_regex(column, r"(\.\d{6})000", r"\1")
    values: list[Any] = column.to_pylist()
    return values


def _is_finite(column: Any) -> bool:
    """Return whether a column contains neither NaN nor infinity."""
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    if pa.types.is_map(kind):
        return _is_finite(column.keys) and _is_finite(column.items)
    if pa.types.is_floating(kind):
        return compute.all(compute.is_finite(column)).as_py() is not False
    if pa.types.is_struct(kind):
        return all(map(_is_finite, column.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_finite(column.flatten())
    return True


def _unreadable(path: Path, stream: IO[bytes], error: Exception) -> str:
    stream.seek(0)
    if stream.read(4) != _MAGIC:
        return f"{path.name} is not a Parquet file; name it by what it holds, such as {path.stem}.csv or .jsonl."
    return f"{path.name} is damaged or cut off; copy or write it again. Read was: {str(error).splitlines()[0]:.200}"


def _rows_at_once(file: Any, stream: IO[bytes], columns: set[str]) -> int:
    """Return the number of rows of these columns that take about 1 MiB, in the row group with the largest rows.

    It assumes that every row has the largest value in the dictionary of its column chunk.
    Raises `PromptmillError` (`invalid_input`).
    """
    rows = 4096
    for at in range(file.num_row_groups):
        group, size, largest = file.metadata.row_group(at), 0, 0
        for chunk in (group.column(number) for number in range(group.num_columns)):
            if chunk.path_in_schema.split(".")[0] not in columns:
                continue
            size += chunk.total_uncompressed_size
            check_ratio(chunk.total_uncompressed_size, chunk.total_compressed_size)
            largest += _largest_repeated(stream, chunk)
        rows = min(rows, _BATCH_BYTES * group.num_rows // max(1, size), _EXPANDED_BYTES // max(1, largest))
    return max(1, rows)


def _largest_repeated(stream: IO[bytes], chunk: Any) -> int:
    """Return an upper bound of the size in bytes of a value in the dictionary of a column chunk."""
    if not chunk.has_dictionary_page or not (start := chunk.dictionary_page_offset):
        return 0
    stream.seek(start)
    _, size, packed = _page_header(stream.read(_PAGE_HEADER))
    if size > LONGEST_ROW:
        raise input_error(f"A cell of {chunk.path_in_schema:.60} {TOO_LONG}.")
    if size <= _SMALL_DICTIONARY or chunk.physical_type != "BYTE_ARRAY":
        return size
    import pyarrow as pa

    stream.seek(chunk.data_page_offset - packed)
    data, codec = stream.read(packed), chunk.compression.lower()
    try:
        values = memoryview(data if codec == "uncompressed" else pa.decompress(data, size, codec=codec, asbytes=True))
    except (pa.ArrowException, OSError, ValueError):
        return size
    at = largest = 0
    while at + 4 <= len(values):  # the size of each value precedes it
        length = int.from_bytes(values[at : at + 4], "little")
        largest, at = max(largest, length), at + 4 + length
    return min(size, largest)


def _page_header(data: bytes) -> list[int]:
    """Return the first three fields of a page's header in Thrift's compact encoding: kind, size, compressed size."""
    numbers: list[int] = []
    at = 0
    while len(numbers) < 3 and at < len(data):
        at += 1  # the byte that names the field
        value = shift = 0
        while at < len(data):
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        numbers.append(value >> 1)  # zigzag encoding; the values are not negative
    return numbers + [0] * (3 - len(numbers))


def _fitted(batch: Any, schema: Any, columns: Any) -> Any:
    import pyarrow as pa

    arrays = []
    for field in schema:
        if field.name in batch.schema.names:
            arrays.append(batch.column(field.name).cast(field.type))
        elif field.name in columns:
            arrays.append(pa.repeat(pa.scalar(columns[field.name], field.type), batch.num_rows))
        else:
            arrays.append(pa.nulls(batch.num_rows, field.type))
    return pa.record_batch(arrays, schema=schema)
