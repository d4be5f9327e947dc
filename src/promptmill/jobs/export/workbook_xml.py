"""The XML of workbooks: values in the form that Excel can hold, cells, and edits of a part as text."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, TypeAlias
from xml.sax.saxutils import escape

from promptmill.core.values import SheetDate
from promptmill.files import xlsx
from promptmill.jobs.export.text import cell

LONGEST_CELL = 32_767
"""The most characters that a cell may have in Excel."""
MEASURED = 200
"""The cells of this many first rows determine the widths of the columns. All of these rows are held in memory."""
_WIDTHS = 8, 60  # the min width fits a number and its header; a line of the max width is still readable
_EXACT = 1 << 53  # up to this, whole numbers are exact: Excel stores each number as a float of 64 bits
_DIGITS = 15  # max digits of a decimal that Excel stores exactly
_NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPED = re.compile(r"_(?=x[0-9A-Fa-f]{4}_)")  # needs an escape, because Excel reads _x0041_ as an A
_FIRST_DAY, _FIRST_DAY_OF_1904 = dt.datetime(1899, 12, 30), dt.datetime(1904, 1, 1)  # noqa: DTZ001 (cells have no zone)
_EXACT_DAY = dt.datetime(1900, 3, 1)  # noqa: DTZ001 (before this date, Excel counts a 29 February 1900)
_DAY = dt.timedelta(days=1)
_PLACES = 10  # decimal places of a number of days: LibreOffice writes 15 digits
_DATE, _TIME, _DATE_WITH_TIME = 14, 21, 22  # numbers of Excel's own formats
_OF_DATES = frozenset(map(str, (*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59))))
_XF = re.compile(rb"(?=<(?:[\w.-]+:)?xf\b)")  # the beginning of a style
_NUMBER_FORMAT = re.compile(rb"""\s(?:numFmtId|applyNumberFormat)=(?:"[^"]*"|'[^']*')""")
_LITERAL = re.compile(r'"[^"]*"|\\.|_.|\[[$A-Z][^\[\]]*\]', re.IGNORECASE)  # the texts in the code of a number format
Changed: TypeAlias = dict[str, Iterable[bytes] | None]
"""The new content of each changed part, in blocks, by the part's path; None if the part is removed."""


def sheet_value(value: Any) -> Any:
    """Return a value in a form that a cell can hold: None, a boolean, a number, a date or a text.

    Lists and objects become JSON; a number that Excel would round becomes a text; a date from a workbook stays a date.
    """
    match value:
        case None | bool():
            return value
        case SheetDate():
            with suppress(ValueError):
                kind = dt.time if value[2] == ":" else dt.datetime if value[10:] else dt.date
                return _without_zone(kind.fromisoformat(value), value)
        case int() if abs(value) <= _EXACT:
            return value
        case float() if math.isfinite(value):
            return value
        case Decimal() if len(value.as_tuple().digits) <= _DIGITS:
            return value
        case dt.date() | dt.time():
            return _without_zone(value, str(value))
    return clean_text(cell(value))


def _without_zone(value: dt.date | dt.time, text: str) -> dt.date | dt.time | str:
    """Return a date or time without a time zone, or the `text` of one with a time zone, which no cell can hold."""
    return text if isinstance(value, dt.datetime | dt.time) and value.tzinfo is not None else value


def clean_text(text: str) -> str:
    """Return a text with a replacement character for each character that XML, and therefore a workbook, cannot hold.

    >>> clean_text("a\\x00b\\ufffe")
    'a�b�'
    """
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def cut_text(text: str, end: str = "") -> str:
    """Return a text, shortened to the longest text that Excel permits, with `end` at its end."""
    most = LONGEST_CELL - len(end)
    return text.encode("utf-16-le")[: 2 * most].decode("utf-16-le", "ignore") + end


def shortened(value: Any) -> Any:
    """Return a value from `sheet_value`. If it is a text, it is cut to the longest text that Excel permits."""
    return cut_text(value) if isinstance(value, str) and length_of(value) > LONGEST_CELL else value


def length_of(text: str) -> int:
    """Return the length of a text as Excel counts it: a character beyond U+FFFF counts as two."""
    return len(text) if len(text) <= LONGEST_CELL // 2 or text.isascii() else len(text.encode("utf-16-le")) // 2


class Dates:
    """The dates of a workbook. A cell with a date has the number of days since a first day, and a format for dates."""

    def __init__(self, packed: zipfile.ZipFile, parts: xlsx.Parts) -> None:
        self._part, self._data = parts.styles, packed.read(parts.styles) if parts.styles else b""
        is_1904 = any(one.get("date1904") in {"1", "true"} for one in parts.tree.iter())
        self._first = _FIRST_DAY_OF_1904 if is_1904 else _FIRST_DAY
        opening = re.search(rb"<((?:[\w.-]+:)?)cellXfs(?:\s[^<>]*)?>", self._data)
        end = -1 if opening is None else self._data.find(b"</%bcellXfs" % opening[1], opening.end())
        self._place = (0, 0) if opening is None or end < 0 else (opening.start(), end)
        self._prefix = b"" if opening is None else opening[1]
        inner = b"" if opening is None or end < 0 else self._data[opening.end() : end]
        self._formats = _XF.split(inner)[1:]
        self._known = len(self._formats)
        self._of_dates = _styles_of_dates(packed, parts.styles)
        self._numbers: dict[tuple[int, str], str] = {}

    def cell(self, value: dt.date | dt.time, style: str) -> tuple[str, Any]:
        """Return the new style and the number of days for a cell with the style `style` (`""`: the usual style). In
        place of the number, return a text if Excel has no number for the date, or if the workbook has no formats."""
        match value:
            case dt.time():
                form, time, least = _TIME, dt.datetime.combine(self._first, value), self._first
            case dt.datetime():
                form, time, least = _DATE_WITH_TIME, value, max(self._first, _EXACT_DAY)
            case _:
                form, time, least = _DATE, dt.datetime.combine(value, dt.time()), max(self._first, _EXACT_DAY)
        if time < least or int(style or 0) >= len(self._formats):
            return style, value.isoformat()
        days = round((time - self._first) / _DAY, _PLACES)
        return self._style(form, style), int(days) if days.is_integer() else days

    def _style(self, form: int, style: str) -> str:
        """Return the number of a style like `style` with the number format `form`; `style` itself if it shows dates."""
        if style in self._of_dates:
            return style
        if (form, style) not in self._numbers:
            bare = _NUMBER_FORMAT.sub(b"", self._formats[int(style or 0)])
            own = re.sub(rb"xf\b", b'xf numFmtId="%d" applyNumberFormat="1"' % form, bare, count=1)
            if own not in self._formats:
                self._formats.append(own)
            self._numbers[form, style] = str(self._formats.index(own))
        return self._numbers[form, style]

    def changed(self) -> Changed:
        """Return the part with the styles. It must be written after all cells, because cells add styles."""
        return {self._part: self._styles()} if self._part else {}

    def _styles(self) -> Iterator[bytes]:
        start, end = self._place
        if len(self._formats) == self._known:
            yield self._data
        else:
            begin = b'<%bcellXfs count="%d">' % (self._prefix, len(self._formats))
            yield b"%b%b%b%b" % (self._data[:start], begin, b"".join(self._formats), self._data[end:])


def _styles_of_dates(packed: zipfile.ZipFile, part: str) -> frozenset[str]:
    """Return the numbers of the styles that show dates: their format is a date format of Excel, or has date letters."""
    codes, styles = xlsx.number_formats(packed, part)
    own = {number for number, code in codes.items() if re.search("[dmyhs]", _LITERAL.sub("", code), re.IGNORECASE)}
    return frozenset(str(at) for at, number in enumerate(styles) if number in own or number in _OF_DATES)


class Cells:
    """Writes cells as XML."""

    def __init__(self, dates: Dates, prefix: str = "") -> None:
        """`prefix`: the prefix of element names."""
        self._dates, self._prefix = dates, prefix

    def row(self, number: int, values: Sequence[Any]) -> str:
        """Return the XML of a row. `number`: the row's number, from 1."""
        cells = "".join(
            self.cell(number, column, value) for column, value in enumerate(values) if value not in (None, "")
        )
        return f'<{self._prefix}row r="{number}">{cells}</{self._prefix}row>'

    def cell(self, row: int, column: int, value: Any, style: str = "") -> str:
        """Return the XML of a cell. `row`: the row's number, from 1. `style`: the number of the cell's format."""
        p, kind = self._prefix, ""
        if isinstance(value, dt.date | dt.time):
            style, value = self._dates.cell(value, style)
        match value:
            case None | "":
                inner = ""
            case bool():
                kind, inner = ' t="b"', f"<{p}v>{int(value)}</{p}v>"
            case str():
                kind, inner = ' t="inlineStr"', f'<{p}is><{p}t xml:space="preserve">{escaped(value)}</{p}t></{p}is>'
            case Decimal():
                inner = f"<{p}v>{value:f}</{p}v>"
            case _:
                inner = f"<{p}v>{value!r}</{p}v>"
        of_style = f' s="{style}"' if style else ""
        return f'<{p}c r="{xlsx.letters_of(column)}{row}"{of_style}{kind}>{inner}</{p}c>'


def escaped(text: str) -> str:
    """Return a text, escaped for the content of an XML element of a workbook."""
    return escape(literal(text), {"\r": "&#13;"})


def literal(text: str) -> str:
    """Return a text, changed so that Excel finds no escape in it.

    >>> literal("_x0041_")
    '_x005F_x0041_'
    """
    return _ESCAPED.sub("_x005F_", text)


def widths_of(rows: Sequence[Sequence[Any]]) -> list[int]:
    """Return the width of each column in characters. The width depends on the column's longest line, within bounds.

    >>> widths_of([["id", "mail"], [1, "My parcel has not arrived."]])
    [8, 28]
    """
    least, most = _WIDTHS
    return [
        max(least, min(most, 2 + max(len(line) for cell in cells for line in str(cell or "").split("\n"))))
        for cells in itertools.zip_longest(*rows)
    ]


def with_last(data: bytes, parent: str, child: str) -> bytes:
    """Return XML in which the element `parent` has `child` as its new last child. Raises `ValueError`."""
    closing = re.search(rb"</((?:[\w.-]+:)?)%b\s*>" % parent.encode(), data)
    if closing is None:
        raise ValueError
    return b"%b<%b%b%b" % (data[: closing.start()], closing[1], child.encode(), data[closing.start() :])


def recalculated(data: bytes) -> bytes:
    """Return a workbook's XML, changed so that Excel recalculates all formulas, which may use the answers."""
    opening = re.search(rb"<(?:[\w.-]+:)?calcPr(?:\s[^<>/]*)?", data)
    if opening is None or b"fullCalcOnLoad" in opening[0]:
        return data
    return b'%b fullCalcOnLoad="1"%b' % (data[: opening.end()], data[opening.end() :])
