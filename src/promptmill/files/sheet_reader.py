"""Reads sheets of workbooks with python-calamine in a separate process, which serves many workbooks.

**The attacker** is the author of a workbook. **The harm**: a file of a few kilobytes with a cell in the last corner of
the grid takes all memory, and damaged XML crashes the parser, which is written in Rust. In both cases, the process ends
and the workbook is reported as unreadable.

Messages to the process: `{"size": …, "file": …, "sheet": …}`, followed by the workbook's bytes; then `{"first": …}` for
the rows from this index on. Replies: the fields of `Sheet`, then `{"rows": …}`; or `{"problem": …}`.

python-calamine reports no number formats, errors, hidden rows or formulas without a value. For an `.xlsx` file, a
second pass over the sheet's XML finds these.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import datetime as dt
import io
import itertools
import operator
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import IO, Any, BinaryIO, TypeAlias
from xml.parsers import expat

from promptmill.core import values
from promptmill.core.bounds import MOST_COLUMNS, WORKBOOK_MEMORY
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.wording import did_you_mean, listed
from promptmill.files import xlsx
from promptmill.system import frames, subprocesses

_COMPUTING_S = 300.0  # seconds of processor time: a workbook with 512 MiB of XML takes a minute
_REPLY_S = 900.0  # the limit of wall time, for a busy machine
_AT_ONCE = 4 << 20  # characters of rows in one message
_MIDNIGHT = dt.time()
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_DTD = "its XML has a DTD, which no spreadsheet program writes"
_MOST_REPEATED = 10_000  # the most repeats of a row, cell or space that are read from an element of an .ods file
_MANIFEST = "META-INF/manifest.xml"
_PROTECTED = "{} is protected by a password; save a copy without one."
_FORMAT = re.compile(r"""\\(?P<letter>.)|"(?P<text>[^"]*)"|\[[$A-Z][^\[\]]*\]|_.|\*.|#+(?=0)|(?P<sign>.)""")
_INLINE_VALUE = re.compile(rb"""inlineStr["'][^<>]{0,200}>\s{0,20}<(?:\w{1,9}:)?v>""")
"""Finds a text in the XML element for numbers (`v`): some programs write texts there, and Excel reads them."""
_LAST_ROW = 1_048_575  # Excel's limit
_PART = re.compile(r"""(?:\\.|"[^"]*"|[^;"\\])+|;""")  # a part of a number format, or the `;` between two parts
_CONDITION = re.compile(r"\[(<=|>=|<>|<|>|=)(-?[0-9.]{1,20})\]")
_CONDITIONS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "=": operator.eq,
        "<>": operator.ne,
        "": lambda *_: True,
    }
)
_Section: TypeAlias = tuple[str, float, Sequence[str]]
_DURATION = re.compile(r"(-?)PT(\d+)H(\d\d?)M(\d\d?)(?:[.,]0*)?S")  # a duration of 24 hours or more in an .ods file
_PLACE = re.compile(rb'\br="([A-Z]{1,3})(\d{1,7})"')
_KIND = re.compile(rb'\bt="(\w{1,20})"')
_SAVED = "open it in Excel or LibreOffice, and save it as .xlsx"
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")
_OF_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<table", b"<meta", b"<div")
_AS_THEY_ARE = frozenset("-() +:!^&'~{}=")
_NOTED = (b"hidden=", b'="e"', b"<f", b":f")  # the XML that `_Look` searches for, in addition to cells with formats


@dataclass(slots=True)
class Sheet:
    """A sheet with its header."""

    name: str
    header_row: int
    """The index of the header's row."""
    header: list[str]
    """The names of the columns; `""` for a column without a name."""
    count: int
    """The number of rows below the header."""
    uncomputed: list[int]
    """The indices of columns that have formulas without a stored result."""
    errors: list[int]
    """The indices of columns that have error values, such as #N/A."""
    merged: list[int]
    """The indices of columns that have cells merged over several rows."""
    hidden: int
    """The number of non-empty rows that are hidden, for example by a filter."""
    has_wide_header: bool = False
    """Whether cells of the header are merged over several columns."""
    above: list[str] = field(default_factory=list)
    """The texts above the header row, if the user named that row."""
    rows: list[str] = field(default_factory=list)
    """The rows below the header, each as a JSON array; `""` for an empty row."""


class SheetReader:
    """Reads sheets in its child process, which the first call starts. Any thread may use it; other threads wait."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._helper = subprocesses.Helper(__name__, _REPLY_S)

    def read(self, content: IO[bytes], file: str, wanted: str, header_row: int | None = None) -> Sheet:
        """Return the sheet `wanted`, or the only sheet. `header_row`: the number (from 1) of the header's row, if the
        user named it. Raises `PromptmillError` (`invalid_input`)."""
        with self._turn:
            size = content.seek(0, os.SEEK_END)
            question = {"size": size, "file": file, "sheet": wanted, "header_row": header_row or 0}
            sheet = Sheet(**self._reply(question, file, content))
            while len(sheet.rows) < sheet.count:
                sheet.rows += self._reply({"first": len(sheet.rows)}, file)["rows"]
            return sheet

    def _reply(self, question: frames.Frame, file: str, content: IO[bytes] | None = None) -> frames.Frame:
        try:
            reply = self._helper.ask(frames.packed(question), content)
        except OSError:
            raise input_error(f"{file} cannot be read, as no process for it starts.") from None
        if reply is None:
            raise input_error(f"{file} cannot be read: it takes too much time or memory, or is damaged.")
        if "problem" in reply:
            raise input_error(reply["problem"])
        return reply

    def end(self) -> None:
        """End the process."""
        self._helper.end()


READER = SheetReader()
"""The sheet reader that this process uses."""
atexit.register(READER.end)


# ---- in the child process


class _Reading:
    """The rows that were read and have not been sent."""

    def __init__(self) -> None:
        self._rows: list[str] = []

    def reply(self, asked: frames.Frame, incoming: BinaryIO) -> frames.Frame:
        """Answer a message of the parent process; `incoming` holds the content of a new file."""
        if "first" in asked:
            return {"rows": self._page(asked["first"])}
        content = incoming.read(asked["size"])
        sheet = _read(content, asked["file"], asked["sheet"], asked["header_row"])
        self._rows, sheet.rows = sheet.rows, []
        return asdict(sheet)

    def _page(self, first: int) -> list[str]:
        size, at = 0, first
        while at < len(self._rows) and size < _AT_ONCE:
            size += len(self._rows[at]) + 1
            at += 1
        page = self._rows[first:at]
        if at == len(self._rows):
            self._rows = []
        return page


def _read(content: bytes, file: str, wanted: str, header_row: int) -> Sheet:
    """Return a sheet. `header_row`: the number of the header's row (from 1), or 0 for the first row with a value.

    Raises `PromptmillError` (`invalid_input`), and other errors of the reader.
    """
    import python_calamine

    _check(content, file)
    stream = io.BytesIO(content)
    try:
        workbook = python_calamine.CalamineWorkbook.from_filelike(stream)
    except python_calamine.PasswordError:
        raise input_error(_PROTECTED.format(file)) from None
    names = [sheet.name for sheet in workbook.sheets_metadata if sheet.typ is python_calamine.SheetTypeEnum.WorkSheet]
    if wanted and wanted not in names:
        raise input_error(
            f"{file} has no sheet {wanted[:60]!r}; {did_you_mean(wanted, names, f'it has {listed(names)}.')}"
        )
    full = [name for name in names if wanted in {"", name} and workbook.get_sheet_by_name(name).height]
    seen = {
        sheet.name for sheet in workbook.sheets_metadata if sheet.visible is python_calamine.SheetVisibleEnum.Visible
    }
    full = [name for name in full if wanted or name in seen] or full
    if not wanted and len(full) > 1:
        raise input_error(f"{file} has the sheets {listed(full)}; name one of them: '{file}#{full[0]}'.")
    empty = input_error(f"{f'The sheet {wanted[:60]} of {file}' if wanted else file} is empty.")
    if not full:
        raise empty
    grid = workbook.get_sheet_by_name(full[0])
    look = _look_at(stream, full[0]) if zipfile.is_zipfile(stream) else _Look()
    merged = [*(grid.merged_cell_ranges or ()), *look.merged]
    rows = _rows(grid, look)
    above = [cells for _, cells in itertools.islice(rows, header_row - 1 if header_row else 0)]
    first_row = next(
        ((row, cells) for row, cells in rows if header_row or any(value is not None for value in cells)), None
    )
    if first_row is None or not any(value is not None for value in first_row[1]):
        raise (
            input_error(f"Row {header_row} of {file} is empty; name the one with the columns.") if header_row else empty
        )
    first, header = first_row
    texts = [values.dumps(cells).decode() if any(value is not None for value in cells) else "" for _, cells in rows]
    below = range(first + 1, first + 1 + len(texts))
    return Sheet(
        full[0],
        first,
        ["" if value is None else values.text_of(value) for value in header],
        len(texts),
        sorted(look.uncomputed),
        sorted({column for row in below for column in look.errors.get(row, ())}),
        sorted({left for (top, left), (end, _) in merged if end > top and end in below}),
        sum(1 for row in look.hidden if row in below and texts[row - below.start]),
        any(top <= first <= end and right > left for (top, left), (end, right) in merged),
        [values.text_of(value) for cells in above for value in cells if value is not None],
        texts,
    )


def _rows(sheet: Any, look: _Look) -> Iterator[tuple[int, list[Any]]]:
    """Yield the index and the values of each row of a sheet. The empty columns that `iter_rows` omits are included."""
    _, left = sheet.start
    behind = range(sheet.total_height, min(max(look.texts, default=-1), _LAST_ROW) + 1)
    for row, cells in enumerate(itertools.chain(sheet.iter_rows(), ([] for _ in behind))):
        line = [None] * left + [_value(cell) for cell in cells]
        line += [None] * (1 + min(max(look.texts.get(row, ()), default=-1), MOST_COLUMNS) - len(line))
        for column, text in enumerate(line) if look.is_ods else ():
            if isinstance(text, str) and (found := _DURATION.fullmatch(text)):
                line[column] = f"{found[1]}{int(found[2]):02}:{int(found[3]):02}:{int(found[4]):02}"
        for column, text in (*look.errors.get(row, {}).items(), *look.texts.get(row, {}).items()):
            if column < len(line):
                line[column] = text
        for column in look.zeros.get(row, ()):
            if column < len(line):
                line[column] = None
        for column, mask in look.masked.get(row, {}).items():
            if column < len(line) and type(number := line[column]) is int:
                line[column] = _masked(number, mask)
        yield row, line


def _check(content: bytes, file: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a workbook that has a password or would fill the memory."""
    is_protected = _ENCRYPTED in content and content.startswith(b"\xd0\xcf\x11\xe0")
    stream = io.BytesIO(content)
    if zipfile.is_zipfile(stream):  # a ZIP archive, like all formats but .xls
        with zipfile.ZipFile(stream) as packed:
            xlsx.check_size(packed, file)
            with contextlib.suppress(KeyError):
                is_protected = b"encryption-data" in packed.read(_MANIFEST)  # an .ods file names its encryption there
    elif kind := _other_kind(content[:1000]):
        raise input_error(f"{file} is no workbook, but {kind}.")
    if is_protected:
        raise input_error(_PROTECTED.format(file))


def _other_kind(start: bytes) -> str:
    """Return what a file with a workbook's suffix really is (banks and shops export such files); `""` if unknown."""
    text = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith(b"<"):
        is_page = any(tag in text for tag in _OF_PAGES)
        return f"{'a web page (HTML)' if is_page else 'XML, such as an XML Spreadsheet 2003'}; {_SAVED}"
    if text.startswith(b"%pdf"):
        return "a PDF; save its table as .xlsx"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "text in UTF-16; name it .tsv"
    if _CONTROL.search(start):
        return ""
    return ("text with tabs; name it .tsv" if b"\t" in start else "text; name it .csv") if start else "an empty file"


def _value(cell: Any) -> Any:
    """Return the value of a cell: a text, a number or a boolean; None for an empty cell; ISO text for a time."""
    match cell:
        case "":
            return None
        case float():
            return int(cell) if cell.is_integer() and int(cell) in values.INT64 else cell
        case dt.datetime():
            text = cell.date().isoformat() if cell.time() == _MIDNIGHT else cell.isoformat(" ")
            return values.SheetDate(text)
        case dt.date() | dt.time():
            return values.SheetDate(cell.isoformat())
        case dt.timedelta():
            return values.plain_text(cell)
    return cell


class _Look:
    """A pass over the XML of a sheet for facts that python-calamine does not report."""

    is_ods = False

    def __init__(
        self,
        masks: Mapping[str, Sequence[_Section]] | None = None,
        blocks: Iterable[bytes] = (),
        *,
        recalculates: bool = False,
    ) -> None:
        """`masks`: the number formats that show leading zeros, by cell style. `recalculates`: the workbook asks the
        program that opens it to compute all formulas."""
        self.errors: dict[int, dict[int, str]] = {}
        """Errors by row and column."""
        self.masked: dict[int, dict[int, Sequence[_Section]]] = {}
        """The formats with leading zeros, by row and column."""
        self.texts: dict[int, dict[int, str]] = {}
        """Texts with tabs and line breaks (of an .ods file), and texts in cells for numbers, by row and column."""
        self.merged: list[tuple[tuple[int, int], tuple[int, int]]] = []
        """For merged cells of an .ods file: the row and column of the first cell, and those of the last cell."""
        self.uncomputed: set[int] = set()
        self.zeros: dict[int, list[int]] = {}
        """The columns of formulas, by row, if all formulas of the sheet have the result 0, as XlsxWriter writes it."""
        self.hidden: list[int] = []
        self._masks, self._row, self._column = masks or {}, -1, -1
        self._may_be_zeros = recalculates
        self._kind, self._text, self._is_formula = "", "", False
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        self._parser, self._names = parser, dict[str, str]()
        for block in blocks:
            parser.Parse(block)
        if not self._may_be_zeros:
            self.zeros.clear()
        self.uncomputed.update(*self.zeros.values())

    def find_masked(self, data: bytes) -> bool:
        """Find the cells that have a format of `_masks`. Searching the XML as text takes a quarter of a parser's time.

        Return False if the XML does not have the form that Excel writes.
        """
        styles = b"|".join(re.escape(style.encode()) for style in self._masks)
        for cell in re.finditer(rb'<(?:\w{1,9}:)?c ([^<>]{0,200}?\bs="(%b)"[^<>]{0,200}?)/?>' % styles, data):
            place, kind = _PLACE.search(cell[1]), _KIND.search(cell[1])
            if place is None:
                return False
            if kind is None or kind[1] == b"n":
                row, column = int(place[2]) - 1, xlsx.column_of(place[1].decode())
                self.masked.setdefault(row, {})[column] = self._masks[cell[2].decode()]
        return b"='" not in data

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        if (word := self._names.get(name)) is None:
            word = self._names[name] = xlsx.local(name)
        if word == "c":
            reference = attributes.get("r")
            self._column = self._column + 1 if reference is None else xlsx.column_of(reference)
            self._kind, self._text, self._is_formula = attributes.get("t", ""), "", False
            if self._kind in {"", "n"} and (mask := self._masks.get(attributes.get("s", ""))):
                self.masked.setdefault(self._row, {})[self._column] = mask
        elif word == "f":
            self._is_formula = True
        elif word == "v" and (self._is_formula or self._kind in {"e", "inlineStr"}):
            self._parser.CharacterDataHandler = self._add
        elif word == "row":
            self._row, self._column = int(attributes.get("r", self._row + 2)) - 1, -1
            if attributes.get("hidden") in {"1", "true"}:
                self.hidden.append(self._row)

    def _add(self, text: str) -> None:
        self._text += text

    def _end(self, name: str) -> None:
        word = self._names[name]
        if word == "v":
            self._parser.CharacterDataHandler = None
        elif word == "c":
            text = self._text.strip()
            if self._kind == "e":
                self.errors.setdefault(self._row, {})[self._column] = text
            elif self._kind == "inlineStr" and self._text:
                self.texts.setdefault(self._row, {})[self._column] = self._text
            elif self._is_formula and not text and self._kind != "str":  # the result is missing; a `str` may be empty
                self.uncomputed.add(self._column)
            elif self._is_formula and self._may_be_zeros:
                self._may_be_zeros = text == "0" and self._kind in {"", "n"}
                self.zeros.setdefault(self._row, []).append(self._column)


class _OdsLook(_Look):
    """The pass over the XML of a sheet of an .ods file."""

    is_ods = True

    def __init__(self, name: str, data: bytes) -> None:
        self._name, self._is_in, self._notes = name, False, 0
        self._repeats = self._rows_repeated = 1
        self._words: list[str] | None = None
        self._has_signs = False
        super().__init__(blocks=[data])

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        match name:
            case "table:table":
                self._is_in, self._row, self._rows_repeated = attributes.get("table:name") == self._name, 0, 0
            case "table:table-row" if self._is_in:
                self._row += self._rows_repeated
                self._rows_repeated, self._column, self._repeats = (
                    _count(attributes, "table:number-rows-repeated"),
                    0,
                    0,
                )
                if attributes.get("table:visibility", "visible") != "visible":
                    self.hidden += range(self._row, self._row + min(self._rows_repeated, _MOST_REPEATED))
            case "table:table-cell" | "table:covered-table-cell" if self._is_in:
                self._column += self._repeats
                self._repeats = _count(attributes, "table:number-columns-repeated")
                last_row = self._row + _count(attributes, "table:number-rows-spanned") - 1
                last_column = self._column + _count(attributes, "table:number-columns-spanned") - 1
                if (last_row, last_column) != (self._row, self._column):
                    self.merged.append(((self._row, self._column), (last_row, last_column)))
                self._kind = attributes.get("calcext:value-type") or attributes.get("office:value-type", "")
                self._words, self._has_signs = [], False
            case "office:annotation":
                self._notes += 1
            case "text:p" if self._words:
                self._words.append("\n")
            case "text:tab" | "text:line-break" if self._words is not None and not self._notes:
                self._words.append("\t" if name == "text:tab" else "\n")
                self._has_signs = True
            case "text:s" if self._words is not None and not self._notes:
                self._words.append(" " * min(_count(attributes, "text:c"), _MOST_REPEATED))
        self._parser.CharacterDataHandler = self._add if self._words is not None and not self._notes else None

    def _add(self, text: str) -> None:
        if self._words is not None:
            self._words.append(text)

    def _end(self, name: str) -> None:
        if name == "office:annotation":
            self._notes -= 1
        if name not in {"table:table-cell", "table:covered-table-cell"} or self._words is None:
            return
        text, self._words = "".join(self._words), None
        is_error = self._kind == "error" or (self._kind == "float" and text.startswith(("#", "Err:")))
        if is_error or (self._has_signs and self._kind in {"string", ""}):
            places = self.errors if is_error else self.texts
            for row in range(self._row, self._row + min(self._rows_repeated, _MOST_REPEATED)):
                columns = range(self._column, self._column + min(self._repeats, _MOST_REPEATED))
                places.setdefault(row, {}).update(dict.fromkeys(columns, text))


def _count(attributes: Mapping[str, str], name: str) -> int:
    return max(1, int(attributes.get(name, "1")))


def _look_at(stream: IO[bytes], name: str) -> _Look:
    with zipfile.ZipFile(stream) as packed:
        if "[Content_Types].xml" not in packed.namelist():  # the archive of an .ods
            data = packed.read("content.xml")
            if b"<!DOCTYPE" in data:
                raise ValueError(_DTD)
            return _OdsLook(name, data)
        parts = xlsx.parts_of(packed)
        part = next((sheet.part for sheet in parts.sheets if sheet.name == name), "")
        if not part.endswith(".xml"):  # a part of an .xlsb
            return _Look()
        data, masks = packed.read(part), _masks(packed, parts.styles)
        asked = [one.get("fullCalcOnLoad") for one in parts.tree if xlsx.local(one.tag) == "calcPr"]
    if b"<!DOCTYPE" in data:  # refused, because the parser drops the entities that a DOCTYPE defines
        raise ValueError(_DTD)
    if any(mark in data for mark in _NOTED) or _INLINE_VALUE.search(data):
        return _Look(masks, [data], recalculates=bool({"1", "true"} & {*asked}))
    look = _Look(masks)
    return look if not masks or look.find_masked(data) else _Look(masks, [data])


def _masks(packed: zipfile.ZipFile, part: str) -> dict[str, Sequence[_Section]]:
    """Return the number formats that show leading zeros, such as 00000, by cell style."""
    codes, styles = xlsx.number_formats(packed, part)
    sections = {number: _sections(code) for number, code in codes.items()}
    masks = {number: parts for number, parts in sections.items() if any(mask for *_, mask in parts)}
    return {str(at): masks[number] for at, number in enumerate(styles) if number in masks}


def _sections(code: str) -> list[_Section]:
    """Return the parts of a number format, each with its condition and its signs.

    Without conditions, the parts are for positive numbers, negative numbers, and zero.

    >>> [(sign, limit) for sign, limit, _ in _sections("[<=999]000;[<=9999]000\\\\-00;000\\\\-0000")]
    [('<=', 999.0), ('<=', 9999.0), ('', 0.0)]
    """
    parts = [match[0] for match in _PART.finditer(code) if match[0] != ";"]
    conditions = [_CONDITION.search(part) for part in parts]
    if any(conditions):
        limits = [(match[1], float(match[2])) if match else ("", 0.0) for match in conditions]
    else:
        limits = [[("", 0.0)], [(">=", 0.0), ("", 0.0)]][len(parts) > 1]
        limits = limits if len(parts) < 3 else [(">", 0.0), ("<", 0.0), ("", 0.0)]
    return [(*limit, _mask(part)) for limit, part in zip(limits, parts, strict=False)]


def _mask(part: str) -> list[str]:
    """Return the signs of a format that shows whole numbers with leading zeros (`0`: any digit); `[]` for any other.

    >>> _mask("00000"), _mask('0#" "##'), _mask('"0"0'), _mask("0.00")
    (['0', '0', '0', '0', '0'], ['0', '0', '\\\\ ', '0', '0'], ['\\\\0', '0'], [])
    """
    signs: list[str] = []
    for match in _FORMAT.finditer(_CONDITION.sub("", part)):
        sign = match["sign"]
        if sign == "0" or (sign in {"#", "?"} and "0" in signs):  # Excel shows all digits behind a `0`
            signs.append("0")
        elif sign is not None and sign not in _AS_THEY_ARE:
            return []
        else:
            signs += [f"\\{letter}" for letter in match["letter"] or match["text"] or sign or ""]
    return signs if signs.count("0") > 1 or ("0" in signs and "\\0" in signs) else []


def _masked(number: int, sections: Sequence[_Section]) -> int | str:
    """Return a number as its format shows it, if the format has leading zeros.

    >>> _masked(501, _sections("00000")), _masked(123456789, _sections("000-00-0000")), _masked(-5, _sections("00"))
    ('00501', '123-45-6789', -5)
    >>> _masked(600001, _sections("[<=999]000;[<=9999]000\\\\-00;000\\\\-0000"))
    '060-0001'
    """
    mask = next((mask for sign, limit, mask in sections if _CONDITIONS[sign](number, limit)), ())
    if number < 0 or not mask:
        return number
    digits = str(number).zfill(mask.count("0"))
    rest = len(digits) - mask.count("0")
    text, at = "", 0
    for sign in mask:
        if sign == "0":
            size = 1 if at else 1 + rest
            text, at = text + digits[at : at + size], at + size
        else:
            text += sign[1]
    return text


def _problem(asked: frames.Frame, error: Exception) -> frames.Frame:
    if isinstance(error, PromptmillError):
        return {"problem": error.message}
    if isinstance(error, MemoryError):
        return {"problem": f"{asked['file']} takes too much memory to read; save its sheet as CSV."}
    return {"problem": f"{asked['file']} cannot be read: {str(error)[:200] or type(error).__name__}."}


def main() -> None:
    """Serve the parent process."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)  # hides what the parser prints at a crash; the parent process reports the crash
    modules = ("python_calamine",)
    subprocesses.serve_parent(_Reading().reply, _problem, modules, memory=WORKBOOK_MEMORY, computing_s=_COMPUTING_S)


if __name__ == "__main__":
    main()
