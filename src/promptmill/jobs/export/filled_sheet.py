"""Writes answers as columns of an existing sheet, behind all columns that the sheet already has.

    id │ text │ answer │ Topic    a new header has the format of the header left of it; a table or filter that ends
    1  │ …    │ yes    │ price    beside the new columns is extended over them

All other bytes of the sheet stay unchanged. Columns that the job has written before are filled again.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from promptmill.core.bounds import MOST_COLUMNS
from promptmill.core.errors import PromptmillError, input_error
from promptmill.files import xlsx
from promptmill.files.databases import Stamp
from promptmill.jobs.columns import column_names
from promptmill.jobs.export.workbook_xml import (
    MEASURED,
    Cells,
    Changed,
    Dates,
    literal,
    recalculated,
    widths_of,
    with_last,
)
from promptmill.jobs.store.plan import JobSpec

_BLOCK = 1 << 20
_EDITED = frozenset({"dimension", "cols", "col", "sheetData", "autoFilter"})
"""The elements of a sheet, in addition to its rows, that may change."""
_CHECKSUM = 7  # bytes, few enough for SQLite and JSON to hold a checksum as a whole number
_HIDING = ("hidden", "collapsed", "outlineLevel", "bestFit")
"""The attributes that a new column does not take over from an unused column in its place."""


class FilledSheet:
    """The sheet that a job has read, with the job's answers."""

    def __init__(self, spec: JobSpec, names: Sequence[str], rows: Iterable[tuple[int, Sequence[Any]]]) -> None:
        """`rows`: the numbers of the rows, in ascending order, each with the row's answers in the order of `names`."""
        self._file, style = spec.output.path.name, spec.input.style
        self._sheet, self._header = style.sheet, style.header_row
        self._names, self._rows = names, rows

    def changed(self, packed: zipfile.ZipFile) -> Changed:
        """Return the parts of the workbook that change. Raises errors that `xlsx.opened` converts."""
        parts = xlsx.parts_of(packed)
        place, part = next((at, each.part) for at, each in enumerate(parts.sheets) if each.name == self._sheet)
        data = packed.read(part)
        head = _Head.of(packed, parts, data, self._header)
        added = _Added(self._header, head.width, [name for name in self._names if name not in head.columns])
        if added.first + len(added.names) > MOST_COLUMNS:
            raise input_error(f"{self._file} has no columns left behind its own; name another file for the output.")
        places = head.columns | {name: added.first + at for at, name in enumerate(added.names)}
        of_answers = [places[name] for name in self._names]
        answered = iter(self._rows)
        first = list(itertools.islice(answered, MEASURED))

        def rows() -> Iterator[tuple[int, dict[int, Any]]]:
            yield self._header, dict(zip(of_answers, self._names, strict=True))
            for n, answers in itertools.chain(first, answered):
                yield self._header + 1 + n, dict(zip(of_answers, answers, strict=True))

        widths = dict(zip(of_answers, widths_of([self._names, *(answers for _, answers in first)]), strict=True))
        dates = Dates(packed, parts)
        new = [widths[places[name]] for name in added.names]
        filling = _Filling(data, rows(), added, new, style=head.style, dates=dates)
        book = recalculated(added.in_names(packed.read(parts.book), place))
        return {part: filling.blocks(), parts.book: [book], **added.in_tables(packed, part), **dates.changed()}


def stamp_of_answers(file: Path, spec: JobSpec) -> Stamp | None:
    """Return the number and the checksum of the cells in the job's columns of the sheet that the job fills; None if the
    sheet cannot be read. The order of the sheet's rows does not matter. Blocks."""
    style, own = spec.input.style, column_names.own_names(spec)
    try:
        with xlsx.opened(file, file.name) as packed:
            parts = xlsx.parts_of(packed)
            data = packed.read(next(each.part for each in parts.sheets if each.name == style.sheet))
            head = _Head.of(packed, parts, data, style.header_row)
            names = {column: name for name, column in head.columns.items() if name in own}
            answers = _Answers(data, style.header_row, names)
            texts = _shared(packed, parts.texts, {number for _, number in answers.shared}) if answers.shared else {}
            for (name, number), count in answers.shared.items():
                answers.add(name, texts[number], count)
    except (OSError, PromptmillError):
        return None
    return answers.count, answers.checksum


@dataclass(frozen=True, slots=True)
class _Added:
    """The columns that are added to a sheet."""

    header: int
    """The index of the header's row."""
    first: int
    """The index of the first added column."""
    names: Sequence[str]

    def extended(self, ref: str) -> str:
        """Return the range `ref`, extended by these columns if it begins in the header's row and ends next to them.

        >>> _Added(0, 3, ["Tone", "Topic"]).extended("A1:C31"), _Added(0, 3, ["Tone"]).extended("A1:B31")
        ('A1:E31', 'A1:B31')
        """
        first, _, last = ref.partition(":")
        if not last or xlsx.row_of(first) != self.header or xlsx.column_of(last) + 1 != self.first:
            return ref
        return f"{first}:{xlsx.letters_of(self.first + len(self.names) - 1)}{xlsx.row_of(last) + 1}"

    def in_tables(self, packed: zipfile.ZipFile, sheet: str) -> Changed:
        """Return the parts of those tables of a sheet that get the added columns."""
        if xlsx.rels_of(sheet) not in packed.namelist():
            return {}
        tables = [path for kind, path in xlsx.related(packed, sheet).values() if kind == "table"]
        return {path: [text] for path in tables if (text := self._in_table(packed, path)) is not None}

    def _in_table(self, packed: zipfile.ZipFile, path: str) -> bytes | None:
        table = xlsx.tree_of(packed, path)
        ref = table.attrib["ref"]
        if not self.names or self.extended(ref) == ref or table.get("tableType", "worksheet") != "worksheet":
            return None
        known = xlsx.children(table, "tableColumns")
        last = max(int(column.attrib["id"]) for column in known)
        text = packed.read(path)
        text = _with_attribute(text, "table", "ref", self.extended)
        text = _with_attribute(text, "autoFilter", "ref", self.extended)
        text = _with_attribute(text, "tableColumns", "count", lambda _: str(len(known) + len(self.names)))
        for number, name in enumerate(self.names, last + 1):
            text = with_last(text, "tableColumns", f'tableColumn id="{number}" name={quoteattr(literal(name))}/>')
        return text

    def in_names(self, book: bytes, sheet: int) -> bytes:
        """Return the workbook's XML, with the range of a sheet's hidden filter name extended over the added columns."""

        def extended(found: re.Match[bytes]) -> bytes:
            of_sheet = re.search(rb"\slocalSheetId=[\"'](\d+)", found[1])
            if of_sheet is None or int(of_sheet[1]) != sheet:
                return found[0]
            ref = self.extended(found[3].replace(b"$", b"").decode())
            return found[1] + found[2] + re.sub("(?<![A-Z])([A-Z]+)([0-9]+)", r"$\1$\2", ref).encode()

        name = (
            rb"(<(?:[\w.-]+:)?definedName\b[^<>]*_xlnm\._FilterDatabase[^<>]*>)([^<>]*!)(\$[A-Z]+\$\d+:\$[A-Z]+\$\d+)"
        )
        return re.sub(name, extended, book) if self.names else book

    def in_widths(self, known: Sequence[Mapping[str, str]], widths: Sequence[int]) -> Iterator[dict[str, object]]:
        """Yield the attributes of a sheet's `col` elements, in order: `known`, and those of the new columns."""
        least, most = self.first + 1, self.first + len(widths)
        of_new: Mapping[str, str] = {}
        ranges: list[dict[str, object]] = []
        for each in known:
            first, last = int(each["min"]), int(each["max"])
            pieces = (first, min(last, least - 1)), (max(first, most + 1), last)
            ranges += [{**each, "min": start, "max": end} for start, end in pieces if start <= end]
            if first <= least <= last:
                of_new = {name: value for name, value in each.items() if name not in _HIDING}
        ranges += [
            {**of_new, "min": at, "max": at, "width": width, "customWidth": 1} for at, width in enumerate(widths, least)
        ]
        yield from sorted(ranges, key=lambda each: int(str(each["min"])))


# ---- the XML of a sheet


@dataclass(frozen=True, slots=True)
class _Head:
    """The header of a sheet."""

    columns: dict[str, int]
    """The indices of the columns, by the texts of their headers."""
    width: int
    """The index of the first column without values."""
    style: str
    """The format number of the last header cell that has a text; `""` for the usual format."""

    @classmethod
    def of(cls, packed: zipfile.ZipFile, parts: xlsx.Parts, data: bytes, header: int) -> _Head:
        """Return the header in the row with the index `header`."""
        cells = _Filled(data, header)
        wanted = {int(text) for kind, text in cells.head.values() if kind == "s"}
        texts = _shared(packed, parts.texts, wanted) if wanted else {}
        heads = {column: texts[int(text)] if kind == "s" else text for column, (kind, text) in cells.head.items()}
        named = {text: column for column, text in reversed(heads.items()) if text}
        return cls(named, cells.width, cells.styles.get(max(named.values(), default=-1), ""))


def _with_attribute(data: bytes, element: str, name: str, new: Callable[[str], str]) -> bytes:
    """Return XML in which `new` has converted the value of the attribute `name` of the first `element`."""

    def changed(found: re.Match[bytes]) -> bytes:
        return found[1] + new(found[2].decode()).encode()

    attribute = rb"(<(?:[\w.-]+:)?%b\b[^<>]*?\s%b=[\"'])([^\"']*)" % (element.encode(), name.encode())
    return re.sub(attribute, changed, data, count=1)


def _shared(packed: zipfile.ZipFile, part: str, wanted: set[int]) -> dict[int, str]:
    """Return those shared texts of the workbook whose numbers are in `wanted`, by number."""
    texts, at = {}, 0
    for element in xlsx.elements_of(packed, part):
        if xlsx.local(element.tag) == "si":
            if at in wanted:
                texts[at] = xlsx.text_in(element)
            at += 1
            if len(texts) == len(wanted):
                break
            element.clear()
    return texts


class _Walk:
    """Goes through only those cells that a sheet's XML contains: the whole grid may have 17 billion positions."""

    def __init__(self, data: bytes) -> None:
        self.data, self.row, self.column = data, -1, -1
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declared
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        self.parser, self._names = parser, dict[str, str]()

    def walk(self) -> Iterator[None]:
        """Call the handlers for the whole sheet. Yields after each block of the XML."""
        for at in range(0, len(self.data), _BLOCK):
            self.parser.Parse(self.data[at : at + _BLOCK])
            yield
        self.parser.Parse(b"", True)

    @staticmethod
    def _declared(_: str, encoding: str | None, __: int) -> None:
        if encoding is not None and encoding.lower() not in {"utf-8", "us-ascii"}:
            raise ValueError  # an encoding that no known program writes

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        if (word := self._names.get(name)) is None:
            word = self._names[name] = xlsx.local(name)
        if word == "row":
            before, self.row, self.column = self.row, int(attributes.get("r", self.row + 2)) - 1, -1
            if self.row <= before:
                raise ValueError  # rows in another order, which no spreadsheet program writes
        elif word == "c":
            reference = attributes.get("r")
            self.column = self.column + 1 if reference is None else xlsx.column_of(reference)
        self.start(word, attributes)

    def _end(self, name: str) -> None:
        self.end(self._names[name])

    def start(self, word: str, attributes: Mapping[str, str]) -> None:
        """Handle the start of an element."""
        raise NotImplementedError

    def end(self, word: str) -> None:
        """Handle the end of an element."""
        raise NotImplementedError


class _Filled(_Walk):
    """Finds the texts of the header, and the last column that has a value or merged cells."""

    def __init__(self, data: bytes, header: int) -> None:
        super().__init__(data)
        self.head: dict[int, tuple[str, str]] = {}
        """By column: the type and the text of each header cell."""
        self.styles: dict[int, str] = {}
        """By column: the format number of each header cell."""
        self.width = 0
        self._header, self._kind = header, ""
        deque(self.walk(), maxlen=0)

    def start(self, word: str, attributes: Mapping[str, str]) -> None:
        if word == "c":
            self._kind = attributes.get("t", "")
            if self.row == self._header:
                self.styles[self.column] = attributes.get("s", "")
        elif word in {"v", "f", "is"}:
            self.width = max(self.width, self.column + 1)
            if self.row == self._header and word != "f":
                self.parser.CharacterDataHandler = self._add
        elif word == "mergeCell":  # of merged cells, only the first one is shown
            last = attributes["ref"].rpartition(":")[2]
            if xlsx.row_of(last) >= self._header and (end := xlsx.column_of(last) + 1) < MOST_COLUMNS:
                self.width = max(self.width, end)

    def _add(self, text: str) -> None:
        _, known = self.head.get(self.column, ("", ""))
        self.head[self.column] = self._kind, known + text

    def end(self, word: str) -> None:
        if word in {"v", "is"}:
            self.parser.CharacterDataHandler = None


class _Answers(_Walk):
    """Counts the values in some columns below the header, and adds up their checksums."""

    def __init__(self, data: bytes, header: int, names: Mapping[int, str]) -> None:
        """`names`: the names of the columns, by index."""
        super().__init__(data)
        self.count = self.checksum = 0
        self.shared = Counter[tuple[str, int]]()
        """The number of times that a column has a shared text, by the column's name and the number of the text."""
        self._header, self._columns, self._kind, self._text = header, names, "", ""
        deque(self.walk(), maxlen=0)

    def add(self, name: str, value: str, count: int = 1) -> None:
        """Add `count` cells of a column."""
        digest = hashlib.blake2b(f"{name}\0{value}".encode(), digest_size=_CHECKSUM).digest()
        self.count += count
        self.checksum = (self.checksum + count * int.from_bytes(digest)) % (1 << 8 * _CHECKSUM)

    def start(self, word: str, attributes: Mapping[str, str]) -> None:
        if word == "c":
            self._kind = attributes.get("t", "n")
        elif word in {"v", "is"} and self.column in self._columns and self.row > self._header:
            self.parser.CharacterDataHandler = self._read

    def _read(self, text: str) -> None:
        self._text += text

    def end(self, word: str) -> None:
        if word not in {"v", "is"}:
            return
        text, self.parser.CharacterDataHandler, self._text = self._text, None, ""
        if not text:
            return
        name = self._columns[self.column]
        if self._kind == "s":
            self.shared[name, int(text)] += 1
        else:  # programs may write the same number in several ways
            self.add(name, repr(float(text)) if self._kind in {"n", "b"} else text)


class _Filling(_Walk):
    """Replaces the values of some cells in a sheet's XML. All other bytes stay unchanged."""

    def __init__(
        self,
        data: bytes,
        rows: Iterator[tuple[int, dict[int, Any]]],
        added: _Added,
        widths: Sequence[int],
        *,
        style: str,
        dates: Dates,
    ) -> None:
        """`rows`: the indices of rows, in ascending order, each with the row's new values by column. `widths`: the
        widths of the columns `added`. `style`: the format number of their headers. `dates`: the workbook's dates.
        """
        super().__init__(data)
        self._added, self._widths, self._style = added, widths, style
        self._known_widths: list[Mapping[str, str]] = []
        self._rows, self._next = rows, next(rows, None)
        self._pending: list[tuple[int, Any]] = []
        self._replaced: tuple[Any, str] | None = None
        self._done = self._left_out = 0
        self._blocks: list[bytes] = []
        self._dates, self._cells = dates, Cells(dates)

    def blocks(self) -> Iterator[bytes]:
        """Yield the XML of the filled sheet."""
        for _ in self.walk():
            yield from self._blocks
            self._blocks.clear()
        if self._next is not None:
            raise ValueError  # the sheet does not have this row
        yield self.data[self._done :]

    def start(self, word: str, attributes: Mapping[str, str]) -> None:
        at = self.parser.CurrentByteIndex
        if word == "row":
            if self._next is not None and self._next[0] == self.row:
                self._pending = sorted(self._next[1].items(), reverse=True)
                self._next = next(self._rows, None)
                tag = self.data[at : self._end_of_tag(at)]
                if tag.endswith(b"/>"):
                    raise ValueError  # a row without cells, which no job reads
                self._cells = Cells(self._dates, _prefix(tag))
                self._copy(at)
                self._blocks.append(re.sub(rb'\sspans="[^"]*"', b"", tag))  # `spans` lists the columns, which change
                self._done = at + len(tag)
        elif word == "c" and self._pending:
            self._put(at, self.column)
            if self._pending and self._pending[-1][0] == self.column:
                self._replaced = self._pending.pop()[1], attributes.get("s", "") or self._head_style
                self._leave_out(at)
        elif word in _EDITED:
            self._edit(word, attributes, at)

    def _edit(self, word: str, attributes: Mapping[str, str], at: int) -> None:
        """Handle the start of an element that describes the whole sheet."""
        if word == "dimension" or (word == "cols" and self._widths):  # `dimension` is optional, and would be wrong now
            self._leave_out(at)
        elif word == "col":
            self._known_widths.append(attributes)
        elif word == "sheetData" and self._widths:
            self._copy(at)
            self._put_widths(at)
        elif word == "autoFilter":
            self._copy(at)
            self._done = self._end_of_tag(at)
            self._blocks.append(_with_attribute(self.data[at : self._done], word, "ref", self._added.extended))

    def end(self, word: str) -> None:
        at = self.parser.CurrentByteIndex
        if word == "c" and self._replaced is not None:
            value, style = self._replaced
            self._blocks.append(self._cells.cell(self.row + 1, self.column, value, style).encode())
            self._done, self._replaced = self._left_out or self._end_of_tag(at), None
        elif word == "row" and self._pending:
            self._put(at, MOST_COLUMNS)
        elif word == "dimension" or (word == "cols" and self._widths):
            self._done = self._left_out or self._end_of_tag(at)

    def _put_widths(self, at: int) -> None:
        """Write the widths of all columns. `at`: the byte offset of an element, whose prefix the new elements get."""
        prefix = _prefix(self.data[at : self._end_of_tag(at)])
        cols = self._added.in_widths(self._known_widths, self._widths)
        wide = "".join(
            f"<{prefix}col {' '.join(f'{name}={quoteattr(str(value))}' for name, value in each.items())}/>"
            for each in cols
        )
        self._blocks.append(f"<{prefix}cols>{wide}</{prefix}cols>".encode())

    @property
    def _head_style(self) -> str:
        """The format number of a new cell in the present row."""
        return self._style if self.row == self._added.header else ""

    def _put(self, at: int, before: int) -> None:
        """Write the pending cells whose columns are left of the column `before`, at the byte offset `at`."""
        while self._pending and self._pending[-1][0] < before:
            column, value = self._pending.pop()
            if value is not None:
                self._copy(at)
                self._blocks.append(self._cells.cell(self.row + 1, column, value, self._head_style).encode())

    def _leave_out(self, at: int) -> None:
        """Leave out the element that begins at `at`. (expat reports no end of an element without content.)"""
        self._copy(at)
        end = self._end_of_tag(at)
        self._left_out = end if self.data.endswith(b"/>", at, end) else 0

    def _copy(self, end: int) -> None:
        self._blocks.append(self.data[self._done : end])
        self._done = end

    def _end_of_tag(self, at: int) -> int:
        return self.data.index(b">", at) + 1


def _prefix(tag: bytes) -> str:
    """Return the prefix of the name of an element, such as `x:`."""
    found = re.match(rb"<((?:[\w.-]+:)?)", tag)
    return "" if found is None else found[1].decode()
