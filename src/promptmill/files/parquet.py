"""Parquet as rows: the files of an input under one schema, read a few megabytes at a time."""

from __future__ import annotations

import base64
import datetime as dt
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from promptmill.core import values
from promptmill.core.bounds import LONGEST_ROW, TOO_LONG
from promptmill.core.errors import input_error
from promptmill.core.values import cell_text
from promptmill.files.files import InputFile, InputFiles, check_ratio
from promptmill.files.path_formats import compression_of
from promptmill.files.row import WHOLE, InputRow, Stretch, Style, Window

_MAGIC = b"PAR1"
_MOMENT = re.compile(r"(-?\d+)-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d)(?:\.(\d+))?Z?)?")
_ERA = 146_097  # the days of 400 years
_EPOCH = dt.date(1970, 1, 1).toordinal()
_DAY_S = 86_400
_DIGITS = MappingProxyType({"s": 0, "ms": 3, "us": 6, "ns": 9})
_MIDNIGHT = "24:00:00"  # the end of a day, for which Python has no time
_NS_S = (1 << 63) // 10**9  # the seconds before and after 1970 that nanoseconds reach
_BATCH_BYTES = 1 << 20
_EXPANDED_BYTES = 16 << 20
_SMALL_DICTIONARY = 4 << 10
_PAGE_HEADER = 32  # bytes at the start of a page's header that hold its first fields
_PAGE_BYTES = 1 << 20


class ParquetTable:
    """The rows of all files of an input under one schema; columns of the same name become one column."""

    def __init__(self, files: InputFiles) -> None:
        """Read the files' schemas. Raises `PromptmillError` (`invalid_input`)."""
        if sys.platform == "linux":  # every build of pyarrow for Linux has jemalloc
            # jemalloc keeps fewer freed pages than other allocators, which differ between systems.
            os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
        import pyarrow as pa

        self._files, self._int96_unit = files, "ns"
        schemas = list(map(self._schema, range(len(files.parts))))
        if self._int96_unit != "ns":
            schemas = list(map(self._schema, range(len(files.parts))))
        if any(schema != schemas[0] for schema in schemas):  # one of the files may store a text column as categories
            schemas = [pa.schema([field.with_type(_with(_decoded, field.type)) for field in each]) for each in schemas]
        self.schema, self._mixed = _joined(schemas)

    @property
    def style(self) -> Style:
        """The style of the input: its Arrow schema."""
        return Style(arrow_schema=packed_schema(self.schema), mixed=self._mixed)

    @property
    def header(self) -> list[str]:
        """The columns."""
        return list(self.schema.names)

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`. Each record batch is a stretch, and is read only as a whole."""
        del window
        n = 0
        for arrays in self._batches():
            finite = all(map(_is_finite, arrays))
            rows = zip(*map(python_values, arrays), strict=True)
            yield Stretch(
                [
                    InputRow(number, values.dumps(cells, finite=finite), {name: cells[at] for at, name in columns})
                    for number, cells in enumerate(rows, n)
                ]
            )
            n += len(arrays[0]) if arrays else 0

    def _schema(self, at: int) -> Any:
        import pyarrow as pa

        part = self._files.parts[at]
        with self._opened(at) as (file, _):
            schema, columns = file.schema_arrow, [file.schema.column(each) for each in range(len(file.schema))]
        old = {column.path.split(".")[0] for column in columns if column.physical_type == "INT96"}
        if old and self._int96_unit == "ns" and not self._is_in_nanoseconds(at, old):
            self._int96_unit = "us"
        if len(set(schema.names)) < len(schema.names):
            twice = next(name for place, name in enumerate(schema.names) if name in schema.names[:place])
            raise input_error(f"{part.path.name} has two columns {twice[:60]!r}, which cannot be told apart.")
        for name in part.columns:
            if name not in schema.names:
                schema = schema.append(pa.field(name, pa.string()))
        return schema

    def _is_in_nanoseconds(self, at: int, names: set[str]) -> bool:
        """Return whether the times of 96 bits in these columns, as Spark and Hive write them, fit into 64 bits."""
        with self._opened(at, "s") as (file, _):
            leaves = (
                leaf
                for batch in file.iter_batches(columns=[*names], use_threads=False)
                for column in batch.columns
                for leaf in _leaves(column)
            )
            return all(_is_within(leaf, -_NS_S, _NS_S) for leaf in leaves)

    def _batches(self) -> Iterator[Sequence[Any]]:
        """Yield all rows in batches of a few megabytes, each as the arrays of its columns."""
        for at, part in enumerate(self._files.parts):
            with self._opened(at) as (file, stream):
                known = set(file.schema_arrow.names)
                own = [name for name in self.schema.names if name in known]
                rows = _rows_at_once(file, stream, set(own))
                for batch in file.iter_batches(batch_size=rows, columns=own, use_threads=False):
                    yield batch.columns if batch.schema.equals(self.schema) else _fitted(batch, self.schema, part)

    @contextmanager
    def _opened(self, at: int, int96_unit: str = "") -> Iterator[tuple[Any, IO[bytes]]]:
        import pyarrow as pa
        from pyarrow import parquet

        with self._files.stream(at, seekable=True) as stream:
            # The file is opened by path, because a page that passes through Python would be in memory twice.
            is_plain = sys.platform == "linux" and not compression_of(self._files.parts[at].path)
            path = Path(f"/proc/self/fd/{stream.fileno()}") if is_plain else stream
            try:
                # `pre_buffer` is off: it would keep the column of a whole row group in memory.
                file = parquet.ParquetFile(
                    path,
                    pre_buffer=False,
                    buffer_size=_PAGE_BYTES,
                    coerce_int96_timestamp_unit=int96_unit or self._int96_unit,
                )
            except (pa.ArrowException, OSError) as error:
                raise input_error(_unreadable(self._files.parts[at].path, stream, error)) from None
            yield file, stream


def _joined(schemas: Sequence[Any]) -> tuple[Any, tuple[str, ...]]:
    """Return the schema of several files, and the names of columns that become texts because no type fits them all."""
    import pyarrow as pa

    if all(schema == schemas[0] for schema in schemas):
        return schemas[0], ()
    fields, mixed = [], []
    for name in dict.fromkeys(name for schema in schemas for name in schema.names):
        alike = [schema.field(name) for schema in schemas if name in schema.names]
        try:
            if _has_no_common_type([field.type for field in alike]):
                raise pa.ArrowTypeError
            (field,) = pa.unify_schemas([pa.schema([field]) for field in alike], promote_options="permissive")
        except pa.ArrowException:
            field = pa.field(name, pa.string())
            mixed.append(name)
        fields.append(field)
    return pa.schema(fields, metadata=None if mixed else schemas[0].metadata), tuple(mixed)


def _has_no_common_type(kinds: Sequence[Any]) -> bool:
    """Return whether Arrow's common type would change some numbers: it rounds decimals next to other numbers, and it
    cannot hold both signed and unsigned whole numbers of 64 bits."""
    import pyarrow as pa

    numbers = [kind for kind in kinds if not pa.types.is_null(kind)]
    decimals, unsigned, signed = (
        [check(kind) for kind in numbers]
        for check in (pa.types.is_decimal, lambda kind: kind == pa.uint64(), pa.types.is_signed_integer)
    )
    return (any(decimals) and not all(decimals)) or (any(unsigned) and any(signed))


def packed_schema(schema: Any) -> str:
    """Return an Arrow schema as text."""
    return base64.b64encode(schema.serialize()).decode()


def unpacked_schema(text: str) -> Any:
    """Return the Arrow schema that `packed_schema` wrote as `text`."""
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
    """Return an Arrow type with its inner types changed. `changed` takes a type and its default result."""
    import pyarrow as pa

    kinds = pa.types
    if kinds.is_struct(kind):
        return pa.struct([field.with_type(_with(changed, field.type)) for field in kind])
    if kinds.is_list(kind) or kinds.is_large_list(kind):
        inner = kind.value_field.with_type(_with(changed, kind.value_type))
        return pa.list_(inner) if kinds.is_list(kind) else pa.large_list(inner)
    if kinds.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_with(changed, kind.value_type)), kind.list_size)
    if kinds.is_map(kind):
        return pa.map_(
            kind.key_field.with_type(_with(changed, kind.key_type)),
            kind.item_field.with_type(_with(changed, kind.item_type)),
        )
    return changed(kind, kind)


def python_values(column: Any) -> list[Any]:
    """Return the values of a column. A time in nanoseconds becomes a text in Python's format; a duration that is not a
    whole number of microseconds becomes a number of nanoseconds; a float of 32 bits gets the digits that other programs
    show, such as 0.1."""
    import pyarrow as pa
    from pyarrow import compute

    exact = column.type
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
            column = compute.replace_substring(column, f"<value out of range: {_DAY_S}000000000>", _MIDNIGHT)
    times = [leaf for leaf in _leaves(column) if pa.types.is_time(leaf.type)]
    is_plain = all(_is_within(leaf, 0, _DAY_S * 10 ** _DIGITS[leaf.type.unit] - 1) for leaf in times)
    try:
        values: list[Any] = column.to_pylist() if is_plain else list(map(_value_of, column))
    except (ValueError, OverflowError, KeyError):  # a time outside of Python's years, 1 to 9999, or an unknown zone
        values = list(map(_value_of, column))
    return [_rounded(value, exact) for value in values] if _has_halves(exact) else values


def _value_of(scalar: Any) -> Any:
    """Return the value of a scalar. A day or time that Python cannot represent becomes a text."""
    import pyarrow as pa

    kind, kinds = scalar.type, pa.types
    if not scalar.is_valid:
        return None
    if kinds.is_dictionary(kind):
        return _value_of(scalar.value)
    if kinds.is_struct(kind):
        return {name: _value_of(inner) for name, inner in scalar.items()}
    if kinds.is_map(kind):
        return [(_value_of(each["key"]), _value_of(each["value"])) for each in scalar.values]
    if kinds.is_nested(kind):
        return list(map(_value_of, scalar.values))
    if kinds.is_time(kind):
        return scalar.as_py() if scalar.value < _DAY_S * 10 ** _DIGITS[kind.unit] else _MIDNIGHT
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, KeyError):
        return scalar.value if kinds.is_duration(kind) else _text_of(scalar.value, kind)


def _text_of(units: int, kind: Any) -> str:
    """Return the day or time that an Arrow type stores as a number, as a text. Databases have infinite ones.

    >>> import pyarrow
    >>> _text_of(2932897, pyarrow.date32()), _text_of(-(2**63) + 1, pyarrow.timestamp("us"))
    ('10000-01-01', '-infinity')
    """
    if abs(units) == _largest(kind):
        return "infinity" if units > 0 else "-infinity"
    digits = _digits_in(kind)
    days, rest = (units, 0) if digits is None else divmod(units, _DAY_S * 10**digits)
    eras, within = divmod(days + _EPOCH - 1, _ERA)  # the calendar repeats after 400 years
    day = dt.date.fromordinal(within + 1)
    text = f"{day.year + 400 * eras:0{4 if day.year + 400 * eras >= 0 else 5}}-{day:%m-%d}"
    if digits is None:
        return text
    seconds, fraction = divmod(rest, 10**digits)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text} {clock}{f'.{fraction:0{digits}}' if fraction else ''}{'Z' if getattr(kind, 'tz', None) else ''}"


def _largest(kind: Any) -> int:
    return int(1 << (kind.bit_width - 1)) - 1


def _digits_in(kind: Any) -> int | None:
    """Return the digits of a second's fraction in an Arrow type; None for days."""
    import pyarrow as pa

    return None if kind == pa.date32() else _DIGITS["ms" if kind == pa.date64() else kind.unit]


def unit_of(text: str, kind: Any) -> int:
    """Return the number by which an Arrow type stores the day or time in a text of `python_values`.

    >>> import pyarrow
    >>> unit_of("10000-01-01", pyarrow.date32()), unit_of("10000-01-01 00:00:00.5Z", pyarrow.timestamp("ms", "UTC"))
    (2932897, 253402300800500)
    >>> unit_of("24:00:00", pyarrow.time32("s")), unit_of("-infinity", pyarrow.date32())
    (86400, -2147483647)
    """
    import pyarrow as pa

    if text.endswith("infinity"):
        return -_largest(kind) if text.startswith("-") else _largest(kind)
    moment = _MOMENT.fullmatch(f"1970-01-01 {text}" if pa.types.is_time(kind) else text)
    year, month, day, *clock, fraction = moment.groups("0")  # type: ignore[union-attr] # of `python_values`
    eras, within = divmod(int(year), 400)
    days = dt.date(within + 400, int(month), int(day)).toordinal() - _EPOCH + (eras - 1) * _ERA
    if (digits := _digits_in(kind)) is None:
        return days
    seconds = days * _DAY_S + int(clock[0]) * 3600 + int(clock[1]) * 60 + int(clock[2])
    return int(seconds * 10**digits + int(fraction.ljust(9, "0")[:9]) // 10 ** (9 - digits))


def _has_halves(kind: Any) -> bool:
    import pyarrow as pa

    return bool(kind == pa.float16()) or any(_has_halves(kind.field(at).type) for at in range(kind.num_fields))


def _rounded(value: Any, kind: Any) -> Any:
    """Return a value in which each float of 16 bits has the fewest digits that suffice: 0.1, not 0.0999755859375."""
    import pyarrow as pa

    if isinstance(value, dict):
        return {field.name: _rounded(value[field.name], field.type) for field in kind}
    if isinstance(value, list | tuple) and pa.types.is_map(kind):
        return [(_rounded(name, kind.key_type), _rounded(inner, kind.item_type)) for name, inner in value]
    if isinstance(value, list):
        return [_rounded(inner, kind.value_type) for inner in value]
    return value if kind != pa.float16() or value is None else values.short_float(value, "e")


def _is_finite(column: Any) -> bool:
    """Return whether a column contains neither NaN nor infinity."""
    import pyarrow as pa
    from pyarrow import compute

    floats = (leaf for leaf in _leaves(column) if pa.types.is_floating(leaf.type))
    return all(compute.all(compute.is_finite(leaf)).as_py() is not False for leaf in floats)


def _is_within(column: Any, least: int, most: int) -> bool:
    """Return whether the numbers by which a column of times is stored are from `least` to `most`."""
    from pyarrow import compute

    found = compute.min_max(column.view(f"int{column.type.bit_width}")).as_py()
    return found["min"] is None or (found["min"] >= least and found["max"] <= most)


def _leaves(column: Any) -> Iterator[Any]:
    """Yield the arrays of a column's values that are neither lists nor objects."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_map(kind):
        inner = [column.keys, column.items]
    elif pa.types.is_struct(kind):
        inner = column.flatten()
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = [column.flatten()]
    else:
        yield column
        return
    for each in inner:
        yield from _leaves(each)


def _unreadable(path: Path, stream: IO[bytes], error: Exception) -> str:
    stream.seek(0)
    if stream.read(4) != _MAGIC:
        return f"{path.name} is not a Parquet file; name it by what it holds, such as {path.stem}.csv or .jsonl."
    return f"{path.name} is damaged or cut off; copy or write it again. Read was: {str(error).splitlines()[0]:.200}"


def _rows_at_once(file: Any, stream: IO[bytes], columns: set[str]) -> int:
    """Return how many rows, with only these columns, take about 1 MiB in the row group with the largest rows.

    The estimate assumes that every row has the largest value in the dictionary of its column chunk. Raises
    `PromptmillError` (`invalid_input`).
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
    """Return an upper bound, in bytes, for the size of any value in a column chunk's dictionary."""
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
        at += 1  # skips the byte that names the field
        value = shift = 0
        while at < len(data):
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        numbers.append(value >> 1)  # zigzag encoding; the values are not negative
    return numbers + [0] * (3 - len(numbers))


def _fitted(batch: Any, schema: Any, part: InputFile) -> list[Any]:
    """Return the columns of a batch in the types of `schema`. Raises `PromptmillError` (`invalid_input`)."""
    import pyarrow as pa

    arrays = []
    for field in schema:
        if field.name in batch.schema.names:
            column = batch.column(field.name)
            if pa.types.is_string(field.type) and not _is_text(column.type):
                column = pa.array(map(_shown, python_values(column)), pa.string())
            elif _with(_widened, column.type) != _with(
                _widened, field.type
            ):  # floats of fewer bits are not cast: they keep their digits
                try:
                    fitted = column.cast(field.type)
                    column = column if _keeps_digits(column.type, field.type) else fitted
                except pa.ArrowException as error:
                    problem = f"{part.path.name} has values in {field.name[:60]!r} that do not fit the type of the "
                    raise input_error(f"{problem}other files; convert it to one: {error!s:.200}") from None
            arrays.append(column)
        elif field.name in part.columns:
            arrays.append(pa.repeat(pa.scalar(part.columns[field.name], field.type), batch.num_rows))
        else:
            arrays.append(pa.nulls(batch.num_rows, field.type))
    return arrays


def _keeps_digits(kind: Any, wider: Any) -> bool:
    """Return whether a value keeps its own digits in the rows although the output's type is wider, such as 5 in a
    column of fractions, or 1.50 in a column of decimals with more digits."""
    import pyarrow as pa

    kinds = pa.types
    is_whole = bool(kinds.is_integer(kind) and kinds.is_floating(wider))
    return is_whole or bool(kinds.is_decimal(kind) and kinds.is_decimal(wider))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kinds = pa.types
    checks = kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null
    return any(check(kind) for check in checks) or (kinds.is_dictionary(kind) and _is_text(kind.value_type))


def _shown(value: Any) -> str | None:
    """Return a value as prompts show it."""
    return None if value is None else cell_text(value)


def _widened(kind: Any, usual: Any) -> Any:
    import pyarrow as pa

    return pa.float64() if kind in {pa.float16(), pa.float32()} else usual


def _decoded(kind: Any, usual: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else usual
