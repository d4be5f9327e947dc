"""Tables as rows under one header: CSV, TSV and plain text as cells, and Parquet as record batches.

Bytes that are not UTF-8 are carried through cells unchanged.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple, TypeAlias

from promptmill.backends import rows
from promptmill.core.errors import Named, input_error
from promptmill.jobs.files import row_files
from promptmill.jobs.files.disk import LONGEST_LINE, TOO_LONG
from promptmill.jobs.files.row_files import InputFiles, Part

_DELIMITERS = ",;\t|"
_QUOTE, _TWO = '"', '""'
_QUOTED = re.compile(r'"(?:[^"]|"")*("|$)')  # a delimiter inside separates nothing
# A cell over more lines than this is a quote that is never closed. Its first line is the row, and the other lines are
# read again: among them a cell has fewer lines, or a file of such quotes would be read thousands of times.
_MOST_LINES = 10_000
_MOST_DOUBTFUL_LINES = 32
_MOST_COLUMNS = 100_000
_LONGEST_HEADER = 2 << 20
_TOO_LONG = "is longer than"
_UNCLOSED = "opens a quote that is not closed"
_MAGIC = b"PAR1"
_MOST_ROWS = 4096
_BATCH_BYTES = 1 << 20
_EXPANDED_BYTES = 16 << 20
_SMALL_DICTIONARY = 4 << 10
_PAGE_HEADER = 32  # bytes that hold its first fields
_PAGE_BYTES = 1 << 20
_INTEGER, _LONG, _MIXED = "integer", "long", "mixed"
_SCALARS = MappingProxyType({str: "string", bool: "boolean", int: _INTEGER, float: "number"})
_WIDER = MappingProxyType({frozenset((_INTEGER, _LONG)): _LONG, frozenset((_INTEGER, "number")): "number"})
_EXACT = 1 << 53  # a float holds every whole number up to it
_LARGEST = 1 << 63
_DEEPEST = 20
_MOST_PARTS = 100  # fields of an object; one with more has keys for names


class CellRow(NamedTuple):
    """One row: its cells under the table's header. `line` is the last line of the row in its file."""

    cells: list[str]
    line: int
    problem: str = ""
    """The reason why it cannot be sent, `""` if it can."""
    surplus: tuple[str, ...] = ()
    """The cells after those that the header names."""


class CellTable:
    """The rows of all files of an input under one header: columns of the same name are one column."""

    def __init__(self, files: InputFiles, kind: str) -> None:
        """`kind` is `csv`, `tsv` or `txt`. Raises `PromptmillError` (`invalid_input`)."""
        csv.field_size_limit(LONGEST_LINE)
        self._files = files
        self._kind = kind
        self.is_text = kind == "txt"
        """Whether each line is a row of one column."""
        self.delimiter = "\t" if kind == "tsv" else ","
        self.is_utf8 = files.encoding is not None
        """Whether some text showed that it is UTF-8, or the user says which encoding it has."""
        self._headers: list[list[str]] = []
        for at in reversed(range(len(files.parts))):  # the first file's delimiter is the table's
            with files.stream(at) as stream:
                text = _text(stream, files.encoding, _LONGEST_HEADER)
                header = self._header(text, files.parts[at].path.name)
                self._headers.insert(0, header)
        if not any(self._headers):
            raise input_error(f"{files.parts[0].path.name} has no header: its first line, with the columns, is empty.")
        self.header = list(self._headers[0])
        known = set(self.header)
        for header, part in zip(self._headers, files.parts, strict=True):
            self.header += [name for name in dict.fromkeys((*header, *part.columns)) if name not in known]
            known.update(self.header)
        if len(self.header) > _MOST_COLUMNS:
            raise input_error(f"The input has more than {_MOST_COLUMNS:,} columns, which no readable table has.")

    def rows(self) -> Iterator[CellRow]:
        """Yield the rows under the headers, without empty lines."""
        for at, part in enumerate(self._files.parts):
            header, places = self._headers[at], _places(self._headers[at], part, self.header)
            brought = {name: value for name, value in part.columns.items() if name not in header}
            with self._files.stream(at) as stream:
                for row in self._part(_text(stream, self._files.encoding), len(header)):
                    yield row if places is None else self._fitted(row, places, brought)

    def _fitted(self, row: CellRow, places: list[int | None], brought: Mapping[str, str]) -> CellRow:
        own = row.cells
        cells = [
            own[place] if place is not None and place < len(own) else brought.get(name, "")
            for name, place in zip(self.header, places, strict=True)
        ]
        return CellRow(cells, row.line, row.problem, row.surplus)

    def _header(self, text: Iterator[str], name: str) -> list[str]:
        if self.is_text:
            return ["prompt"]
        self.delimiter, found = self._delimited(text)
        lines = _Record(found, _LONGEST_HEADER)
        try:
            return next(csv.reader(lines, delimiter=self.delimiter, strict=True), [])
        except csv.Error as error:
            if lines.taken > 1:
                raise input_error(f"The header of {name} {_quote_problem(error, lines.taken)}.") from None
            return next(csv.reader([lines.only_first()], delimiter=self.delimiter))

    def _delimited(self, text: Iterator[str]) -> tuple[str, Iterator[str]]:
        """Return the delimiter, guessed from the first line, and all lines."""
        if self._kind == "tsv":
            return "\t", text
        first = next(text, "")
        return max(_DELIMITERS, key=_QUOTED.sub("", first).count), itertools.chain([first] if first else [], text)

    def _part(self, text: Iterator[str], width: int) -> Iterator[CellRow]:
        if self.is_text:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield CellRow([line.rstrip("\r\n")], number)
            return
        delimiter, found = self._delimited(text)
        lines = _Record(found)
        # strict: a misplaced quote would take the following rows into its cell
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        next(csv.reader(lines, delimiter=delimiter), None)  # the header
        while True:
            lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                taken = lines.taken
                line = lines.only_first()
                cells = line.rstrip("\r\n").split(delimiter)
                if self._kind == "csv" or len(cells) != width:  # in TSV a quote may be an ordinary letter
                    problem = _quote_problem(error, taken)
                    yield CellRow(cells[:width], lines.number, problem, tuple(cells[width:]))
                    continue
            if not cells:
                continue
            problem = "" if len(cells) == width else _wrong_width(len(cells), width)
            yield CellRow(cells[:width], lines.number, problem, tuple(cells[width:]))


def _quote_problem(error: csv.Error, lines: int) -> str:
    """Return the problem of a misplaced quote in a row of so many lines."""
    never = lines > 1 or "end of data" in str(error)
    return _UNCLOSED if never and _TOO_LONG not in str(error) else f"has a quote that does not belong there: {error}"


def _wrong_width(cells: int, width: int) -> str:
    quote = ". Put a cell that holds the separator into double quotes" if cells > width else ""
    return f"has {cells} cells, but the header has {width}{quote}"


class _Record:
    """The lines of a file. Those after the first line of a record can be given back, to be read again."""

    def __init__(self, text: Iterator[str], longest: int | None = None) -> None:
        self._text = text
        self._longest, self._too_long = _limit(longest)
        self._back: deque[str] = deque()
        self._taken: list[str] = []
        self._size = 0
        self._most = _MOST_LINES
        self._doubtful = 0  # up to this line, the misplaced quote may be an earlier one
        self.number = 0
        """The number of the last line that was read."""

    def __iter__(self) -> _Record:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._text)
        self._taken.append(line)
        self.number += 1
        self._size += len(line)
        if len(self._taken) > self._most:
            raise csv.Error(_UNCLOSED)
        if self._size > self._longest:
            raise csv.Error(f"the cell {self._too_long}")
        return line

    @property
    def taken(self) -> int:
        """The number of lines of the record so far."""
        return len(self._taken)

    def begin(self) -> None:
        """Start a record."""
        self._taken, self._size = [], 0
        self._most = _MOST_LINES if self.number >= self._doubtful else _MOST_DOUBTFUL_LINES

    def only_first(self) -> str:
        """Return the first line of the record as the whole record; the other lines are read again."""
        first, *others = self._taken
        self._doubtful = max(self._doubtful, self.number)
        self._back.extendleft(reversed(others))
        self.number -= len(others)
        return first


def _places(own: list[str], part: Part, header: list[str]) -> list[int | None] | None:
    """Return the places of the table's columns in the file, None if they are the same."""
    if own == header and not part.columns:
        return None
    places = {name: at for at, name in reversed([*enumerate(own)])}
    return [places.get(name) for name in header]


def distinct(names: Sequence[str]) -> list[str]:
    """Return distinct names for the fields of an object: of columns of the same name, the later ones get a number."""
    known, found, counts = frozenset(names), dict[str, None](), dict[str, int]()
    for name in names:
        new = name
        while new in found or (new != name and new in known):
            counts[name] = counts.get(name, 1) + 1
            new = f"{name}_{counts[name]}"
        found[new] = None
    return list(found)


def _text(stream: IO[bytes], encoding: str | None, longest: int | None = None) -> Iterator[str]:
    """Yield the lines of a table.

    Raises `PromptmillError` (`invalid_input`) for a line above `longest` (`LONGEST_LINE`), and for text in another
    `encoding`.
    """
    most, too_long = _limit(longest)
    is_utf8 = encoding is None or codecs.lookup(encoding).name == "utf-8"
    named, errors = ("utf-8-sig", "surrogateescape") if is_utf8 else (encoding, "strict")
    text, number = io.TextIOWrapper(stream, encoding=named, errors=errors, newline=""), 0
    try:
        while line := text.readline(most + 1):
            number += 1
            if len(line) > most:
                raise input_error(f"Line {number} of the input {too_long}; no table has such a line.")
            yield line
    except UnicodeError as error:
        said = f" is not that of the input: {error}, after line {number}."
        raise input_error(Named("encoding", encoding), said) from None


def _limit(longest: int | None) -> tuple[int, str]:
    """Return the longest line or cell, and the words for a longer one."""
    return (LONGEST_LINE, TOO_LONG) if longest is None else (longest, f"{_TOO_LONG} {longest >> 20} MiB")


def is_utf8(text: str) -> bool:
    """Return whether `text`, read from a table, was UTF-8."""
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


def readable(text: str) -> str:
    """Return a cell with the replacement character for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class CellWriter:
    """Writes rows of cells into a file of bytes: the text that `csv.writer` writes, in less than half of the time.

    `csv` looks each letter up in its line end. And with a line feed for its line end, it leaves a lone carriage return
    unquoted before Python 3.13, which readers take for the end of a row.
    """

    def __init__(self, out: IO[bytes], delimiter: str) -> None:
        self._out, self._delimiter = out, delimiter

    def write(self, cells: Iterable[str]) -> None:
        """Write a row, which has two cells at least."""
        delimiter = self._delimiter
        quoted = [
            f'"{cell.replace(_QUOTE, _TWO)}"'
            if delimiter in cell or _QUOTE in cell or "\n" in cell or "\r" in cell
            else cell
            for cell in cells
        ]
        self._out.write(f"{delimiter.join(quoted)}\n".encode("utf-8", "surrogateescape"))


class ParquetTable:
    """The rows of all files of an input under one schema; columns of the same name are one column."""

    def __init__(self, files: InputFiles) -> None:
        """Read the files' schemas. Raises `PromptmillError` (`invalid_input`)."""
        if sys.platform == "linux":  # where every build of pyarrow's has it
            # it keeps the fewest freed pages; the system's allocator keeps a varying number
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
            raise input_error(f"The Parquet files have columns of different kinds: {error}") from None

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Yield all rows as record batches of a few megabytes, with `columns` alone if given."""
        import pyarrow as pa

        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        for at, part in enumerate(self._files.parts):
            with self._opened(at) as (file, stream):
                there = set(file.schema_arrow.names)  # computed at each access
                own = [name for name in wanted.names if name in there]
                rows = _rows_at_once(file, stream, set(own))
                for batch in file.iter_batches(batch_size=rows, columns=own, use_threads=False):
                    yield batch if batch.schema.equals(wanted) else _fitted(batch, wanted, part.columns)

    @contextmanager
    def _opened(self, at: int) -> Iterator[tuple[Any, IO[bytes]]]:
        import pyarrow as pa
        from pyarrow import parquet

        with self._files.stream(at, seekable=True) as stream:
            # by its path, because a page that passes through Python is in memory twice
            path = self._files.shared_path(at)
            try:
                # without a buffer, and with what is read ahead, the column of a whole row group would be in memory
                file = parquet.ParquetFile(stream if path is None else path, pre_buffer=False, buffer_size=_PAGE_BYTES)
            except (pa.ArrowException, OSError) as error:
                raise input_error(_unreadable(self._files.parts[at].path, stream, error)) from None
            yield file, stream


def objects(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a record batch as objects; times in nanoseconds, which Python has no type for, as texts."""
    import pyarrow as pa

    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except ValueError:
        columns = [
            column.cast(pa.int64() if pa.types.is_duration(column.type) else pa.string())
            if pa.types.is_temporal(column.type) and "[ns" in str(column.type)
            else column
            for column in batch.columns
        ]
        found = pa.record_batch(columns, names=batch.schema.names).to_pylist()
    return found


def texts_in(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a record batch with texts or bytes at any depth: the name, and all of them as lines."""
    import pyarrow as pa
    from pyarrow import compute

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for values in _texts_of(column):
            found = values.cast(pa.large_binary()).drop_null()
            whole = pa.ListArray.from_arrays(pa.array([0, len(found)], pa.int32()), found)
            yield name, compute.binary_join(whole, pa.scalar(b"\n", pa.large_binary()))[0].as_buffer().to_pybytes()


def _texts_of(array: Any) -> Iterator[Any]:
    """Yield the arrays of texts or bytes in an Arrow array."""
    import pyarrow as pa

    types, kind = pa.types, array.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _texts_of(array.storage)
    elif types.is_dictionary(kind):
        yield from _texts_of(array.dictionary)
    elif types.is_struct(kind):
        for inner in array.flatten():
            yield from _texts_of(inner)
    elif types.is_map(kind):
        yield from _texts_of(array.keys)
        yield from _texts_of(array.items)
    elif types.is_nested(kind):  # lists of any kind
        yield from _texts_of(array.flatten())
    elif not types.is_primitive(kind) and not types.is_decimal(kind) and not types.is_null(kind):
        yield array


_Kind: TypeAlias = "str | list[_Kind] | dict[str, _Kind] | None"
"""The type of all values of a field: None while they are null; a list or an object holds the types of its parts."""


class ColumnTypes:
    """The columns of a Parquet file for rows of JSON: the type of a column is that of all of its values.

    A column of values of different types is one of texts, with JSON for those that are no text. So is one with whole
    numbers beyond 64 bits, and one with whole numbers that its fractions' type cannot hold.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def include(self, row: Mapping[str, Any]) -> None:
        """Have columns for the fields of `row`, and types for its values."""
        for name, value in row.items():
            known = self._kinds.setdefault(name, None)
            if known != _MIXED and (kind := _kind_of(value, _DEEPEST)) != known:
                self._kinds[name] = _joined(known, kind)

    def schema(self) -> Any:
        """Return the Arrow schema of the columns."""
        import pyarrow as pa

        return pa.schema([(name, _arrow_type(kind)) for name, kind in self._kinds.items()])

    def batch(self, found: Sequence[Mapping[str, Any]]) -> Any:
        """Return rows as a record batch of this schema."""
        import pyarrow as pa

        schema = self.schema()
        columns = []
        for (name, kind), field in zip(self._kinds.items(), schema, strict=True):
            values = [row.get(name) for row in found]
            columns.append(pa.array(values if _is_plain(kind) else [_value(kind, one) for one in values], field.type))
        return pa.record_batch(columns, schema=schema)


def _kind_of(value: Any, levels: int) -> _Kind:
    kind = _SCALARS.get(type(value))
    if kind == _INTEGER:
        return kind if abs(value) <= _EXACT else _LONG if -_LARGEST <= value < _LARGEST else _MIXED
    if kind is not None or value is None:
        return kind
    if not levels:
        return _MIXED
    if isinstance(value, dict):
        found = {name: _kind_of(inner, levels - 1) for name, inner in value.items()}
        return found if len(found) <= _MOST_PARTS else _MIXED
    inner: _Kind = None
    for one in value:
        inner = _joined(inner, _kind_of(one, levels - 1))
    return _MIXED if inner == _MIXED else [inner]


def _joined(one: _Kind, other: _Kind) -> _Kind:
    """Return the kind of a column with values of both kinds."""
    if one is None or other is None or one == other:
        return other if one is None else one
    if isinstance(one, dict) and isinstance(other, dict):
        found = {name: _joined(one.get(name), other.get(name)) for name in {**one, **other}}
        return found if len(found) <= _MOST_PARTS else _MIXED
    if isinstance(one, list) and isinstance(other, list):
        inner = _joined(one[0], other[0])
        return _MIXED if inner == _MIXED else [inner]
    if isinstance(one, str) and isinstance(other, str):
        return _WIDER.get(frozenset((one, other)), _MIXED)
    return _MIXED


def _arrow_type(kind: _Kind) -> Any:
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(_arrow_type(kind[0]))
    if isinstance(kind, dict) and kind:
        return pa.struct([(name, _arrow_type(inner)) for name, inner in kind.items()])
    types = {"boolean": pa.bool_(), _INTEGER: pa.int64(), _LONG: pa.int64(), "number": pa.float64()}
    return types.get(kind, pa.string()) if isinstance(kind, str) else pa.string()


def _is_plain(kind: _Kind) -> bool:
    """Return whether values of this kind are stored as they are."""
    if isinstance(kind, dict):
        return bool(kind) and all(map(_is_plain, kind.values()))
    return _is_plain(kind[0]) if isinstance(kind, list) else kind != _MIXED


def _value(kind: _Kind, value: Any) -> Any:
    """Return a value as it is stored: JSON where the column is one of texts."""
    if value is None or (kind != _MIXED and _is_plain(kind)):
        return value
    if isinstance(kind, list):
        return [_value(kind[0], one) for one in value]
    if isinstance(kind, dict) and kind:
        return {name: _value(inner, value.get(name)) for name, inner in kind.items()}
    return value if isinstance(value, str) else rows.json_line(value)[:-1].decode()


def _unreadable(path: Path, stream: IO[bytes], error: Exception) -> str:
    stream.seek(0)
    if stream.read(4) != _MAGIC:
        return f"{path.name} is not a Parquet file; name it by what it holds, such as {path.stem}.csv or .jsonl."
    return f"{path.name} is damaged or cut off; copy or write it again. Read was: {str(error).splitlines()[0]:.200}"


def _rows_at_once(file: Any, stream: IO[bytes], columns: set[str]) -> int:
    """Return the number of rows of these columns that make a few megabytes, by the fullest row group.

    A value that is in a chunk's dictionary once may be the value of every row: the number is low enough for that.
    Raises `PromptmillError` (`invalid_input`).
    """
    rows = _MOST_ROWS
    for at in range(file.num_row_groups):
        group, size, largest = file.metadata.row_group(at), 0, 0
        for chunk in (group.column(number) for number in range(group.num_columns)):
            if chunk.path_in_schema.split(".")[0] not in columns:
                continue
            size += chunk.total_uncompressed_size
            row_files.check_ratio(chunk.total_uncompressed_size, chunk.total_compressed_size)
            largest += _largest_repeated(stream, chunk)
        rows = min(rows, _BATCH_BYTES * group.num_rows // max(1, size), _EXPANDED_BYTES // max(1, largest))
    return max(1, rows)


def _largest_repeated(stream: IO[bytes], chunk: Any) -> int:
    """Return the size in bytes of the largest value that the chunk's dictionary may have."""
    if not chunk.has_dictionary_page or not (start := chunk.dictionary_page_offset):
        return 0
    stream.seek(start)
    _, size, packed = _page_header(stream.read(_PAGE_HEADER))
    if size > LONGEST_LINE:
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
    while at + 4 <= len(values):  # each value follows its length
        length = int.from_bytes(values[at : at + 4], "little")
        largest, at = max(largest, length), at + 4 + length
    return min(size, largest)


def _page_header(data: bytes) -> list[int]:
    """Return the first three fields of a page's header, in Thrift's compact form: kind, size, compressed size."""
    found: list[int] = []
    at = 0
    while len(found) < 3 and at < len(data):
        at += 1  # which field it is
        value = shift = 0
        while at < len(data):
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        found.append(value >> 1)  # zigzag; none is negative
    return found + [0] * (3 - len(found))


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
