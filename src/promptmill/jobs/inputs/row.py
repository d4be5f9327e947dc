"""Rows of an input, in stretches of consecutive rows."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from promptmill.core.values import JsonObject

_AT_ONCE = 64  # lines of any size


class InputRow(NamedTuple):
    """A row as it was read from a file."""

    n: int
    """The row's number, from 0: the index of its line in a file of lines, or its index among a table's rows."""
    cells: bytes
    """The row's line of JSON, or its cells as a JSON array."""
    fields: JsonObject | None = None
    """The requested fields of a table's row; None for a line of JSON."""
    problem: str = ""
    """The reason why the row cannot be sent."""


class Extent(NamedTuple):
    """The size of a part of an input."""

    size: int = 0
    """In bytes."""
    rows: int = 0
    """The number of rows; in a format of lines, blank lines count, too."""
    lines: int = 0

    def __add__(self, other: tuple[int, ...]) -> Extent:  # type: ignore[override]
        return Extent(*(one + its for one, its in zip(self, other, strict=True)))


class Stretch(NamedTuple):
    """Consecutive rows of an input that are committed together."""

    rows: Sequence[InputRow]
    extent: Extent = Extent()
    digest: bytes = b""
    """The digest of the stretch's bytes; `b""` if the input cannot be read from the middle."""


class Window(NamedTuple):
    """The part of an input to read."""

    before: Extent = Extent()
    """The part before the window, including the header of a table."""
    end: int | None = None
    """The byte offset of the window's end; None: the end of the input."""


WHOLE = Window()


class Style(NamedTuple):
    """The style of the files of an input."""

    delimiter: str = ""
    """The text between cells."""
    has_bom: bool = False
    """Whether the text begins with a byte-order mark, or needs one: Excel reads UTF-8 without a mark as cp1252."""
    arrow_schema: str = ""
    """The schema of Parquet, see `parquet.packed_schema`."""
    uncomputed: tuple[str, ...] = ()
    """The columns of a workbook with formulas that no program has computed: their cells are read as empty."""
    sheet: str = ""
    """The sheet of the workbook that was read."""
    header_row: int = 0
    """The index of the sheet's row with the header."""
    errors: tuple[str, ...] = ()
    """The columns of a workbook with errors, such as #N/A, which are read as texts."""
    merged: tuple[str, ...] = ()
    """The columns of a workbook with cells that are merged over several rows: only the first row has the value."""
    hidden: int = 0
    """The number of rows of a workbook that are hidden, as by a filter."""
    short_line: int = 0
    """The first line of a CSV file with fewer cells than the header; 0: there is none."""
    above: tuple[str, ...] = ()
    """The texts above the row that the user names as the header."""


Column: TypeAlias = tuple[str, int]
"""The name of a column, and its number among the columns of this name, from 1."""


def numbered(names: Iterable[str]) -> Iterator[Column]:
    """Yield the columns of one file: those of several files are the same if name and number are.

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
        """The columns of a table; empty for rows that are JSON objects."""
        ...

    @property
    def style(self) -> Style:
        """The style of the files, which an output of the same format keeps."""
        ...

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows with the fields `columns`: pairs of the cell's index in the header and the field's name.

        `window` begins and ends between two stretches. Raises `OSError`, and `PromptmillError` (`invalid_input`) for
        content that does not match the file's format.
        """
        ...


@runtime_checkable
class Headed(Protocol):
    """A table whose columns are named in one of its rows, which titles may precede."""

    @property
    def header_row(self) -> int:
        """The line, or the row of the sheet, with the columns in the first file, from 1."""
        ...

    def header_at(self, row: int) -> Sequence[str]:
        """Return the columns that the first file had if this row named them; empty behind the end."""
        ...


def digest_of(data: bytes) -> bytes:
    """Return the digest of a stretch."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Lines:
    """The rows of a call, as lines of JSON with their numbers."""

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
