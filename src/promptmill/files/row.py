"""Rows of an input, in stretches of consecutive rows."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from promptmill.core.values import JsonObject

_AT_ONCE = 64  # max lines of a page, whatever their size


class InputRow(NamedTuple):
    """A row, as the reader of a file yields it."""

    n: int
    """The row's number, from 0: the index of its line in a file of lines, or its index among a table's rows."""
    cells: bytes
    """The row's line of JSON; for a table, its cells as a JSON array."""
    fields: JsonObject | None = None
    """The requested fields of a row of a table; None for a line of JSON."""
    problem: str = ""
    """The reason why no request can be made from the row; `""` if there is none."""


class Extent(NamedTuple):
    """The extent of a part of an input."""

    size: int = 0
    """The number of bytes."""
    rows: int = 0
    """The number of rows. In formats of lines, blank lines count too."""
    lines: int = 0

    def __add__(self, other: tuple[int, ...]) -> Extent:  # type: ignore[override]
        return Extent(*(one + its for one, its in zip(self, other, strict=True)))


class Stretch(NamedTuple):
    """Consecutive rows of an input that are committed together."""

    rows: Sequence[InputRow]
    extent: Extent = Extent()
    digest: bytes = b""
    """The digest of the stretch's bytes; `b""` if the input can only be read from the beginning."""


class Window(NamedTuple):
    """The part of an input to read."""

    before: Extent = Extent()
    """The extent of the input before the window, including the header of a table."""
    end: int | None = None
    """The byte offset of the window's end; None: the end of the input."""


WHOLE = Window()


class Style(NamedTuple):
    """Properties of the input files that outputs and messages use."""

    delimiter: str = ""
    """The delimiter of cells."""
    has_bom: bool = False
    """Whether the text starts with a byte-order mark, or needs one: without it, Excel reads UTF-8 as cp1252."""
    arrow_schema: str = ""
    """The schema of a Parquet input, see `parquet.packed_schema`."""
    uncomputed: tuple[str, ...] = ()
    """Workbook columns that have formulas without a stored result; their cells are read as empty."""
    sheet: str = ""
    """The sheet of the workbook that was read."""
    header_row: int = 0
    """The index of the header's row in the sheet."""
    errors: tuple[str, ...] = ()
    """Workbook columns that have error values, such as #N/A, which are read as texts."""
    merged: tuple[str, ...] = ()
    """Workbook columns with cells that are merged over several rows: only the first of these rows has the value."""
    hidden: int = 0
    """The number of workbook rows that are hidden, for example by a filter."""
    has_wide_header: bool = False
    """Whether header cells of a workbook are merged over several columns, so that the next row may have the names."""
    repeated_line: int = 0
    """The number of the first line of a CSV file that repeats the header and is left out; 0 if none does."""
    joined_line: int = 0
    """The number of the first line with a quoted cell that seems to contain rows of a CSV or TSV file; 0 if none."""
    short_line: int = 0
    """The number of the first line of a CSV file that has fewer cells than the header; 0 if none has."""
    above: tuple[str, ...] = ()
    """The texts above the header row, if the user named that row."""
    line_end: str = "\n"
    """The end of a line of cells."""
    mixed: tuple[str, ...] = ()
    """Parquet columns that have several types in the files, so that their values are read as texts."""


Column: TypeAlias = tuple[str, int]
"""The name of a column, and the column's number among the columns with this name, from 1."""


def numbered(names: Iterable[str]) -> Iterator[Column]:
    """Yield the columns of a file. Columns of two files match if their names and numbers are equal.

    >>> list(numbered(["id", "text", "text"]))
    [('id', 1), ('text', 1), ('text', 2)]
    """
    counts = Counter[str]()
    for name in names:
        counts[name] += 1
        yield name, counts[name]


class Input(Protocol):
    """The rows of an input, read once from beginning to end."""

    @property
    def header(self) -> Sequence[str]:
        """The columns of a table; empty if the rows are JSON objects."""
        ...

    @property
    def style(self) -> Style:
        """The style of the files. An output of the same format uses it."""
        ...

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows with the fields `columns`: pairs of a cell's index in the header and a field's name.

        `window` must begin and end between two stretches. Raises `OSError`; `PromptmillError` (`invalid_input`) if the
        content does not match the file's format.
        """
        ...


@runtime_checkable
class Headed(Protocol):
    """A table with a header row, which may follow rows of titles."""

    @property
    def header_row(self) -> int:
        """The number of the header's line or sheet row in the first file, from 1."""
        ...

    def header_at(self, row: int) -> Sequence[str]:
        """Return the columns that the first file would have with this row as its header; empty after the last row."""
        ...


def digest_of(data: bytes) -> bytes:
    """Return the digest of a stretch."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Lines:
    """The rows of a call as lines of JSON, each with its number."""

    header: Sequence[str] = ()
    style = Style()

    def __init__(self, lines: Iterable[tuple[int, bytes]]) -> None:
        self._lines = lines

    def stretches(self, columns: Sequence[tuple[int, str]] = (), window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the lines in stretches of 64."""
        del columns, window
        lines = iter(self._lines)
        while page := [InputRow(n, line) for n, line in itertools.islice(lines, _AT_ONCE)]:
            yield Stretch(page)
