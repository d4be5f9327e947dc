"""Tables of cells: CSV, TSV and plain text as rows under one header.

A file is read in pieces, each of which ends at the end of a line and outside of quotes. `csv` parses a piece in one
step. After the first misplaced quote, the rest of the file is parsed line by line, and the line with the misplaced
quote becomes a row with an error.

Bytes that are not UTF-8 pass through the cells unchanged.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from promptmill.core import values
from promptmill.core.bounds import LONGEST_HEADER, LONGEST_ROW, MOST_LINES, TOO_LONG
from promptmill.core.errors import Named, input_error
from promptmill.files import encodings
from promptmill.files.encodings import NOT_UTF8
from promptmill.files.files import InputFile, InputFiles
from promptmill.files.row import WHOLE, Column, Extent, InputRow, Stretch, Style, Window, digest_of, numbered

_DELIMITERS = ",;\t|"
_SEP = re.compile(rb"sep=([,;\t|])\r?(?:\n|$)")  # a first line that names the delimiter, as Excel writes it
_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a line end; a \r at the end of the block may be half of a \r\n
_QUOTED = re.compile(r'"(?:[^"]|"")*("|$)')  # a quoted cell; the delimiters in it are not counted
# A cell of more than `MOST_LINES` lines is taken for an unclosed quote: its first line becomes the row, and its other
# lines are read again. Among these, a cell may have only `_MOST_DOUBTFUL_LINES` lines; otherwise, the lines of a file
# with many such quotes would be read thousands of times.
_MOST_DOUBTFUL_LINES = 32
_PIECE = 1 << 18  # bytes read at a time: thousands of rows, so that the overhead of a piece is small
_LONGEST_PIECE = 4 << 20  # max bytes of a piece; if it still ends inside quotes, it is parsed line by line
_MANY = 5  # a cell with so many lines looks like rows: an address or a short list has fewer lines
_NUMBER = re.compile(r"\d+")
_AT_ONCE = 1024  # rows of a page
_NONE: list[str] = []
_TOO_LONG = "is longer than"
_UNCLOSED = "opens a quote that is not closed"


class _Header(NamedTuple):
    names: list[str]
    delimiter: str
    line_end: str = "\n"


@dataclass(slots=True)
class _Page:
    """Rows of a file that were parsed together."""

    rows: list[list[str]]
    extent: Extent = field(default_factory=Extent)
    digest: bytes = b""
    problems: Mapping[int, str] = field(default_factory=dict)
    """The rows' problems, by the index of the row."""
    lines: Sequence[int] = ()
    """For each row, the number of its last line in the file; empty if `line_of` computes these numbers from `text`."""
    text: str = ""
    delimiter: str = ""
    first_line: int = 0
    """The number of lines of the file before `text`."""

    def line_of(self, at: int) -> int:
        """Return the number (from 1) of the last line of the row with this index."""
        if not self.lines:
            reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.delimiter)
            ends = [self.first_line + reader.line_num for row in reader if row]
            self.lines = ends[len(ends) - len(self.rows) :]  # without the header's line
        return self.lines[at]


class CellTable:
    """The rows of all files of an input under one header. Two columns of the same name in one file stay separate."""

    def __init__(self, files: InputFiles, kind: str) -> None:
        """`kind` is `csv`, `tsv` or `txt`. Raises `PromptmillError` (`invalid_input`)."""
        csv.field_size_limit(LONGEST_ROW)
        self._files = files
        self._kind = kind
        self._is_utf8 = files.encoding is not None
        """Whether a non-ASCII cell has shown that the input is UTF-8, or whether the user has named the encoding."""
        self.header_row = files.header_row or 1
        self._headers: list[_Header] = []
        above = list[str]()
        for at in range(len(files.parts)):
            header, texts = self._header(at, files.header_row)
            self._headers.append(header)
            above += texts
        if not any(header.names for header in self._headers):
            name, line = files.parts[0].path.name, "first line" if self.header_row == 1 else f"line {self.header_row}"
            if not any(files.parts[at].path.stat().st_size for at in range(len(files.parts))):
                raise input_error(f"{name} is empty: write the names of the columns, and the rows, into it.")
            other = Named("header_row", text="; {} names another line")
            raise input_error(f"{name} has no header: its {line}, with the columns, is empty", other, ".")
        first = self._headers[0]
        self.style = Style(first.delimiter, _wants_bom(files), above=tuple(above), line_end=first.line_end)
        known: dict[Column, None] = {}
        for header, part in zip(self._headers, files.parts, strict=True):
            known |= dict.fromkeys((*numbered(header.names), *numbered(part.columns)))
        self._columns = list(known)
        self.header = [name for name, _ in known]

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`."""
        n, wrong, first_wrong, dumps = window.before.rows, 0, 0, values.dumps
        for at, part in enumerate(self._files.parts):
            names = self._headers[at].names
            width = len(names)
            places = _places(names, part, self._columns)
            for page in self._pages(at, window):
                input_rows, is_ascii = [], places is None and page.text.isascii() and page.text != ""
                for index, cells in self._without_headers(page, names):
                    own, surplus, problem = cells, _NONE, page.problems.get(index, "") if page.problems else ""
                    if len(cells) < width and not problem:
                        own = cells + [""] * (width - len(cells))
                        if not self.style.short_line:
                            self.style = self.style._replace(short_line=page.line_of(index))
                    elif problem or len(cells) != width:
                        own, surplus = cells[:width], cells[width:]
                        problem = problem or _surplus(len(cells), width)
                    if places is not None:
                        own = _fitted(own, places)
                    fields = {} if problem else {name: own[place] for place, name in columns}
                    for name, text in () if is_ascii else fields.items():
                        if text.isascii():
                            continue
                        if is_utf8(text):
                            self._is_utf8 = True
                            continue
                        problem = f"{readable(name)} {NOT_UTF8} {encodings.AS_UTF8}"
                        first_wrong, wrong = first_wrong or page.line_of(index), wrong + 1
                        break
                    if problem:
                        problem = _placed(problem, page.line_of(index))
                    input_rows.append(InputRow(n, dumps([*own, *surplus] if surplus else own), fields, problem))
                    n += 1
                self._note(page, self._headers[at].delimiter, width)
                yield Stretch(input_rows, page.extent._replace(rows=len(input_rows)), page.digest)
        if wrong and not self._is_utf8:
            count = "a row is" if wrong == 1 else f"{wrong:,} rows are"
            with self._files.stream() as stream:
                sample = stream.read(encodings.SAMPLE)
            raise input_error(
                f"The input is not UTF-8 text: {count} in another encoding, the first in line {first_wrong}",
                encodings.remedy(sample),
                Named("encoding", "utf-8", "; with {} such a row is a failure"),
                ".",
            )

    def _without_headers(self, page: _Page, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows of a page with their indices, except rows that repeat the header, as in files joined into one.

        In a file with one column, no row is left out: a value may equal the column's name. Raises `PromptmillError`
        (`invalid_input`) for a row with the names of the header in another order.
        """
        header = [*map(_folded, names)] if len(names) > 1 and self._kind != "txt" else []
        longest = max(map(len, names), default=0) + 2  # with room for a byte-order mark and a space
        for index, cells in enumerate(page.rows):
            if len(cells[0]) > longest or _folded(cells[0]) not in header or len(cells) != len(header):
                yield index, cells
                continue
            folded = [*map(_folded, cells)]
            if folded != header and sorted(folded) == sorted(header):
                order = "repeats the header in another order: split the file above this line"
                raise input_error(f"Line {page.line_of(index):,} {order}.")
            if folded != header:
                yield index, cells
            elif not self.style.repeated_line:
                self.style = self.style._replace(repeated_line=page.line_of(index))

    def _note(self, page: _Page, delimiter: str, width: int) -> None:
        """Record a quoted cell that seems to contain rows: a stray pair of quotes joins rows without an error."""
        if self.style.joined_line or (page.text and page.extent.lines <= len(page.rows)):
            return
        if self._kind == "tsv":
            joined = (at for at, row in enumerate(page.rows) if any("\n" in cell and "\t" in cell for cell in row))
        else:
            most, rows = width - 1, enumerate(map(delimiter.join, page.rows))
            joined = (
                at
                for at, row in rows
                if (ends := row.count("\n")) and row.count(delimiter) == most * (ends + 1) and _are_rows(row, delimiter)
            )
        if (index := next(joined, None)) is not None:
            self.style = self.style._replace(joined_line=page.line_of(index))

    def header_at(self, row: int) -> Sequence[str]:
        """Return the columns that the first file would have if its header were in line `row`; see `Headed`."""
        return self._header(0, row)[0].names

    def _header(self, at: int, row: int | None) -> tuple[_Header, list[str]]:
        """Return the header of file `at`, and the texts above it. `row`: the header's line, if the user named it."""
        if self._kind == "txt":
            return _Header(["prompt"], ""), []
        with self._files.stream(at) as stream:
            pieces = _Pieces(stream, self._files.encoding, LONGEST_HEADER, row)
            header = self._first_of(pieces, self._files.parts[at].path.name)
        return header, [cell for cells in csv.reader(pieces.above, delimiter=header.delimiter) for cell in cells]

    def _first_of(self, pieces: _Pieces, name: str) -> _Header:
        lines = itertools.chain.from_iterable(io.StringIO(piece.text, newline="") for piece in pieces)
        first = next(lines, "")
        likely = max(_DELIMITERS, key=(count := _count_of(first)))
        if self._kind == "tsv" and ("\t" in first or not count(likely)):
            likely = "\t"
        elif self._kind == "tsv":  # a .tsv file may use another delimiter, if the next line has equally many
            second = next(lines, "")
            lines = itertools.chain([second], lines)
            likely = likely if _count_of(second)(likely) == count(likely) else "\t"
        delimiter = pieces.delimiter or likely
        records = _Records(itertools.chain([first], lines), delimiter, LONGEST_HEADER)
        cells, problem = records.next()
        if problem == _UNCLOSED or _TOO_LONG in problem:
            raise input_error(f"The header of {name} {problem}.")
        if problem:
            cells = next(csv.reader([first], delimiter=delimiter))
        return _Header(cells or [], delimiter, "\r\n" if records.line.endswith("\r\n") else "\n")

    def _pages(self, at: int, window: Window) -> Iterator[_Page]:
        delimiter = self._headers[at].delimiter
        with self._files.stream(at) as stream:
            pieces = _Pieces(stream, self._files.encoding, LONGEST_ROW, self._files.header_row, window)
            for piece in pieces:
                text, extent = piece.text, piece.extent
                digest = digest_of(piece.data) if self._files.is_plain else b""
                if self._kind == "txt":
                    numbered = enumerate(io.StringIO(text, newline=""), piece.line + 1)
                    lines = [(line.rstrip("\r\n"), number) for number, line in numbered if line.strip()]
                    extent = extent._replace(rows=len(lines))
                    yield _Page([[line] for line, _ in lines], extent, digest, lines=[number for _, number in lines])
                    continue
                try:
                    parsed = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
                    if extent.lines - len(parsed) > MOST_LINES and any(map(_is_endless, parsed)):
                        raise csv.Error(_UNCLOSED)
                except csv.Error:
                    yield from self._doubtful(pieces.rest(piece), at, piece.line, has_header=piece.begins)
                    return
                if piece.begins:
                    del parsed[:1]
                parsed = list(filter(None, parsed))
                extent = extent._replace(rows=len(parsed))
                yield _Page(parsed, extent, digest, text=text, delimiter=delimiter, first_line=piece.line)

    def _doubtful(self, lines: Iterator[str], at: int, first_line: int, *, has_header: bool) -> Iterator[_Page]:
        """Yield the rows of a file from a misplaced quote on. The line with the quote becomes a row with an error."""
        names, delimiter, _ = self._headers[at]
        records = _Records(lines, delimiter, LONGEST_ROW, first_line)
        if has_header:
            records.next()
        page, problems = _Page([], lines=(ends := [])), dict[int, str]()
        while True:
            cells, problem = records.next()
            if cells and problem and (self._kind == "csv" or len(cells) != len(names)):
                problems[len(page.rows)] = problem  # in TSV, a quote may be an ordinary character
            if cells:
                page.rows.append(cells)
                ends.append(records.number)
            if cells is None or len(page.rows) >= _AT_ONCE:
                page.problems, page.extent = problems, Extent(rows=len(page.rows))
                yield page
                page, problems = _Page([], lines=(ends := [])), {}
            if cells is None:
                return


class _Piece(NamedTuple):
    data: bytes
    text: str
    line: int
    """The number of lines before the piece."""
    begins: bool
    """Whether the piece is the beginning of the file."""
    extent: Extent = Extent()
    """The size of the piece; `rows` is 0."""


class _Pieces:
    def __init__(
        self, stream: IO[bytes], encoding: str | None, longest: int, header_row: int | None, window: Window = WHOLE
    ) -> None:
        """`longest`: the largest size of a line in bytes. `header_row`: the line with the columns (None: the first)."""
        self._encoding, self._longest = encoding, longest
        self._read = stream.read
        if encoding is not None and codecs.lookup(encoding).name != "utf-8":
            decoder = codecs.getincrementaldecoder(encoding)()

            def read(size: int = -1) -> bytes:
                text = ""
                while not text and (data := stream.read(size)):
                    text = decoder.decode(data)
                return (text or decoder.decode(b"", final=True)).encode("utf-8", "surrogatepass")

            self._read = read
        self._at, self._end, self._line = window.before.size, window.end, window.before.lines
        if self._at:
            stream.seek(self._at)
        self._begins = not self._at
        self._lines_above = (header_row or 1) - 1
        self.delimiter = ""
        """The delimiter that the file's first line names (`sep=;`); set once the first piece is read."""
        self.above: Sequence[str] = ()
        """The lines above the header; set once the first piece is read."""
        self._rest = b""

    def __iter__(self) -> Iterator[_Piece]:
        above = self._above() if self._begins else b""
        while data := self._next():
            text, skipped = data, 0
            if self._begins:
                named = _SEP.match((above or data).removeprefix(codecs.BOM_UTF8))
                self.delimiter = named[1].decode() if named else ""
                skipped = self._lines_above or bool(named)
                if not above:
                    text = data.removeprefix(codecs.BOM_UTF8)[named.end() if named else 0 :]
                data = above + data
            ends = text.count(b"\n") + (text.count(b"\r") - text.count(b"\r\n") if b"\r" in text else 0)
            extent = Extent(len(data), 0, skipped + ends)  # includes the `skipped` lines, which are not in the text
            piece = _Piece(data, text.decode("utf-8", "surrogateescape"), self._line + skipped, self._begins, extent)
            yield piece
            self._begins = False
            self._line += piece.extent.lines

    def rest(self, piece: _Piece) -> Iterator[str]:
        """Yield the lines of `piece` and of all pieces after it."""
        for each in itertools.chain([piece], self):
            yield from io.StringIO(each.text, newline="")

    def _above(self) -> bytes:
        """Read the lines above the header. Their quotes need not be balanced."""
        data = b""
        while self._lines_above:
            block = self._block()
            data += block
            ends = [match.end() for match in itertools.islice(_END.finditer(data), self._lines_above)]
            if len(ends) == self._lines_above or not block:
                self._rest, data = data[ends[-1] if ends else 0 :], data[: ends[-1] if ends else 0]
                self.above = data.decode("utf-8", "replace").splitlines()
                return data
            if len(data) > LONGEST_HEADER:
                field = Named("header_row", self._lines_above + 1)
                raise input_error(field, f": the text above {_too_long(LONGEST_HEADER)}.")
        return data

    def _next(self) -> bytes:
        """Return the next whole lines. They have an even number of quotes: otherwise they could end inside a cell."""
        data = self._rest
        while block := self._block():
            data += block
            end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1  # a \r at the end may be half of a \r\n
            if end and (end > _LONGEST_PIECE or data.count(b'"', 0, end) % 2 == 0):
                self._rest = data[end:]
                return data[:end]
            if not end and len(data) > self._longest:
                problem = f"Line {self._line + 1} of the input {_too_long(self._longest)}; no table has such a line."
                raise input_error(problem)
        self._rest = b""
        return data

    def _block(self) -> bytes:
        try:
            block = self._read(_PIECE if self._end is None else min(_PIECE, self._end - self._at))
        except UnicodeError as error:
            problem = f" is not that of the input: {error}, after line {self._line}."
            raise input_error(Named("encoding", self._encoding), problem) from None
        self._at += len(block)
        return block


def _quote_problem(error: csv.Error, lines: int) -> str:
    never = lines > 1 or "end of data" in str(error)
    return _UNCLOSED if never and _TOO_LONG not in str(error) else f"has a quote that does not belong there: {error}"


def _folded(name: str) -> str:
    """Return the name of a column in small letters, without a byte-order mark and without white space around it."""
    return name.strip("\ufeff \t").lower()


def _surplus(cells: int, width: int) -> str:
    return f"has {cells} cells, but the header has {width}. Put a cell that holds the separator into double quotes"


class _Records:
    """Reads records from lines that may have misplaced quotes. A record with such a quote ends after its first line."""

    def __init__(self, lines: Iterator[str], delimiter: str, longest: int, number: int = 0) -> None:
        self._lines, self._delimiter, self._longest = lines, delimiter, longest
        self._back: deque[str] = deque()
        self._doubtful = 0  # the number of the last line that is read again because of a misplaced quote
        self.number = number
        """The number of the last line of the record."""
        self.line = ""
        """The last line of the record."""

    def next(self) -> tuple[list[str] | None, str]:
        """Return the cells of the next record (None at the end of the file), and the record's problem or `""`."""
        taken: list[str] = []
        reader = csv.reader(self._take(taken), delimiter=self._delimiter, strict=True)
        try:
            cells, problem, used = next(reader, None), "", len(taken)
        except csv.Error as error:
            cells, problem = taken[0].rstrip("\r\n").split(self._delimiter), _quote_problem(error, len(taken))
            used, self._doubtful = 1, max(self._doubtful, self.number + len(taken))
        self.line = taken[used - 1] if used else ""
        self._back.extendleft(reversed(taken[used:]))
        self.number += used
        return cells, problem

    def _take(self, taken: list[str]) -> Iterator[str]:
        """Yield the lines of one record to `csv`, which stops at the record's end, and add them to `taken`."""
        most = MOST_LINES if self.number >= self._doubtful else _MOST_DOUBTFUL_LINES
        size = 0
        while line := self._back.popleft() if self._back else next(self._lines, ""):
            taken.append(line)
            size += len(line)
            if len(taken) > most:
                raise csv.Error(_UNCLOSED)
            if size > self._longest:
                raise csv.Error(f"the cell {_too_long(self._longest)}")
            yield line


def _count_of(line: str) -> Callable[[str], int]:
    """Return a function that counts a delimiter in a line, except inside quotes."""
    return _QUOTED.sub("", line).count


def _wants_bom(files: InputFiles) -> bool:
    """Return whether Excel needs a byte-order mark in the output: the first file has one, or has a Windows encoding."""
    with files.stream() as stream:
        start = stream.read(3)
    is_windows = files.encoding is not None and codecs.lookup(files.encoding).name.startswith("cp125")
    return is_windows or start.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _places(own: list[str], part: InputFile, columns: list[Column]) -> list[int | str] | None:
    """Return each table column's index in the file, or its constant value; None if the file has just these columns."""
    places = {column: at for at, column in enumerate(numbered(own))}
    if list(places) == columns:
        return None
    return [places.get(column, part.columns.get(column[0], "")) for column in columns]


def _fitted(cells: list[str], places: list[int | str]) -> list[str]:
    return [place if isinstance(place, str) else cells[place] if place < len(cells) else "" for place in places]


def _is_endless(cells: list[str]) -> bool:
    return any(cell.count("\n") > MOST_LINES for cell in cells)


def _are_rows(row: str, delimiter: str) -> bool:
    """Return whether the lines of a row with line breaks look like separate rows.

    All lines must have equally many delimiters. They must also begin with a number or an id of one form, or there must
    be at least `_MANY` lines.
    """
    lines = row.split("\n")
    count = lines[0].count(delimiter)
    if not count or any(line.count(delimiter) != count for line in lines):
        return False
    forms = {_NUMBER.sub("0", line.partition(delimiter)[0].strip(' "')) for line in lines}
    return (len(forms) == 1 and "0" in min(forms)) or (len(lines) >= _MANY and count > 1)


def _too_long(longest: int) -> str:
    return TOO_LONG if longest == LONGEST_ROW else f"{_TOO_LONG} {longest >> 20} MiB"


def _placed(problem: str, line: int) -> str:
    what, _, todo = problem.removesuffix(".").partition(". ")
    return f"{what} (line {line}).{todo and f' {todo}.'}"


def is_utf8(text: str) -> bool:
    """Return whether a cell was UTF-8 in its file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(text: str) -> str:
    """Return a cell with replacement characters in place of bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


CSV, TSV, TEXT = (functools.partial(CellTable, kind=kind) for kind in ("csv", "tsv", "txt"))
