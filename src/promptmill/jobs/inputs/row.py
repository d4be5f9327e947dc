"""Rows of an input, as its format gives them: stretch by stretch."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from promptmill.core.values import JsonObject

_AT_ONCE = 64  # lines of any size


class InputRow(NamedTuple):
    """A row as its format gives it."""

    n: int
    """Its number: the index of its line in a file of lines, its index among the rows of a table."""
    cells: bytes
    """The row itself: its line of JSON, or the array of its cells."""
    fields: JsonObject | None = None
    """Of a table: the requested fields."""
    problem: str = ""
    """The reason why the row cannot be sent."""


class Extent(NamedTuple):
    """The size of a part of an input."""

    size: int = 0
    """In bytes."""
    rows: int = 0
    """How many numbers its rows take."""
    lines: int = 0

    def __add__(self, other: tuple[int, ...]) -> Extent:  # type: ignore[override]
        return Extent(*(one + its for one, its in zip(self, other, strict=True)))


class Stretch(NamedTuple):
    """Some rows of an input, one after the other, that are committed together."""

    rows: Sequence[InputRow]
    extent: Extent = Extent()
    digest: bytes = b""
    """The digest of its bytes; `b""` where the input cannot be read from the middle."""


class Window(NamedTuple):
    """The part of an input to read."""

    before: Extent = Extent()
    """The part before it; a table's first part has its header."""
    end: int | None = None
    """The offset in bytes at which it ends; None: at the end."""


WHOLE = Window()


class Style(NamedTuple):
    """The style of the files of an input."""

    delimiter: str = ""
    """The text between cells."""
    has_bom: bool = False
    """Whether text begins with a byte-order mark, or comes from a program that needs one: Excel takes UTF-8 without a
    mark for cp1252."""
    arrow_schema: str = ""
    """The schema of Parquet, see `parquet.packed_schema`."""


class Input(Protocol):
    """The rows of an input, read once from beginning to end."""

    @property
    def header(self) -> Sequence[str]:
        """The columns of a table; none for rows that are JSON objects."""
        ...

    @property
    def style(self) -> Style:
        """The style of its files, which an output of the same format keeps."""
        ...

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows, each with the fields `columns`: the place of the cell in the header, and the field's name.

        `window` is a part between two stretches. Raises `PromptmillError` (`invalid_input`) for a file that is not of
        its format, and `OSError`.
        """
        ...


def digest_of(data: bytes) -> bytes:
    """Return the digest of a stretch."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Lines:
    """Rows that a call has as lines of JSON, with their numbers."""

    header: Sequence[str] = ()
    style = Style()

    def __init__(self, lines: Iterable[tuple[int, bytes]]) -> None:
        self._lines = lines

    def stretches(self, columns: Sequence[tuple[int, str]] = (), window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the lines, some at a time."""
        del columns, window
        lines = iter(self._lines)
        while page := [InputRow(n, line) for n, line in itertools.islice(lines, _AT_ONCE)]:
            yield Stretch(page)
