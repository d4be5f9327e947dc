"""CSV, TSV and plain text as rows of cells under a header. Bytes that are not UTF-8 are carried through unchanged."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from promptmill.core.errors import input_error
from promptmill.jobs.files.disk import LONGEST_LINE, TOO_LONG
from promptmill.jobs.files.input_files import InputFiles, Part

_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"(?:[^"]|"")*("|$)')  # a delimiter inside separates nothing
# A cell over more lines than this is a quote that is never closed. Its first line is the row, and the other lines are
# read again: among them a cell has fewer lines, or a file of such quotes would be read thousands of times.
_MOST_LINES = 10_000
_MOST_DOUBTFUL_LINES = 32
_MOST_COLUMNS = 100_000


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
        self.delimiter = "\t" if kind == "tsv" else ","
        self._headers: list[list[str]] = []
        for at in reversed(range(len(files.parts))):  # the first file's delimiter is the table's
            with files.stream(at) as stream:
                self._headers.insert(0, self._header(_text(stream)))
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
                for row in self._part(_text(stream), len(header)):
                    yield row if places is None else self._fitted(row, places, brought)

    def _fitted(self, row: CellRow, places: list[int | None], brought: Mapping[str, str]) -> CellRow:
        own = row.cells
        cells = [
            own[place] if place is not None and place < len(own) else brought.get(name, "")
            for name, place in zip(self.header, places, strict=True)
        ]
        return CellRow(cells, row.line, row.problem, row.surplus)

    def _header(self, text: Iterator[str]) -> list[str]:
        if self._kind == "txt":
            return ["prompt"]
        self.delimiter, lines = self._delimited(text)
        try:
            return next(csv.reader(lines, delimiter=self.delimiter), [])
        except csv.Error as error:
            raise input_error(f"The input is not a valid CSV file: {error}.") from None

    def _delimited(self, text: Iterator[str]) -> tuple[str, Iterator[str]]:
        """Return the delimiter, guessed from the first line, and all lines."""
        if self._kind == "tsv":
            return "\t", text
        first = next(text, "")
        return max(_DELIMITERS, key=_QUOTED.sub("", first).count), itertools.chain([first] if first else [], text)

    def _part(self, text: Iterator[str], width: int) -> Iterator[CellRow]:
        if self._kind == "txt":
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
                line = lines.only_first()
                cells = line.rstrip("\r\n").split(delimiter)
                if self._kind == "csv" or len(cells) != width:  # in TSV a quote may be an ordinary letter
                    problem = f"has a quote that does not belong there: {error}"
                    yield CellRow(cells[:width], lines.number, problem, tuple(cells[width:]))
                    continue
            if not cells:
                continue
            problem = "" if len(cells) == width else _wrong_width(len(cells), width)
            yield CellRow(cells[:width], lines.number, problem, tuple(cells[width:]))


def _wrong_width(cells: int, width: int) -> str:
    quote = ". Put a cell that holds the separator into double quotes" if cells > width else ""
    return f"has {cells} cells, but the header has {width}{quote}"


class _Record:
    """The lines of a file. Those after the first line of a record can be given back, to be read again."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text = text
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
            raise csv.Error("it is never closed")
        if self._size > LONGEST_LINE:
            raise csv.Error(f"the cell {TOO_LONG}")
        return line

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
    found: dict[str, None] = {}
    for name in names:
        new, count = name, 1
        while new in found or (count > 1 and new in names):
            count += 1
            new = f"{name}_{count}"
        found[new] = None
    return list(found)


def _text(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a table. Raises `PromptmillError` (`invalid_input`) for a line above `LONGEST_LINE`."""
    text, number = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""), 0
    while line := text.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise input_error(f"Line {number} of the input {TOO_LONG}; no table has such a line.")
        yield line


def is_utf8(text: str) -> bool:
    """Return whether `text`, read from a table, was UTF-8."""
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


def readable(text: str) -> str:
    """Return a cell with the replacement character for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Encoded:
    """A text file for `csv` to write to, over a file of bytes. Rows end with a line feed.

    With `lineterminator="\\n"`, `csv` leaves a lone carriage return unquoted before Python 3.13, and readers take it
    for the end of a row.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Write a row that ends with `\\r\\n`."""
        return self._out.write(text.removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n")
