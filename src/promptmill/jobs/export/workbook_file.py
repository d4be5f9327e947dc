"""Workbooks as outputs: a new workbook, or a sheet or columns of an existing one, whose other bytes stay unchanged.

labels.xlsx              a new workbook with the sheet `answers`
book.xlsx#Labels         the sheet `Labels`; the other sheets of the workbook stay
the input itself         the answers become columns of its sheet, after its own columns; all else stays

The parts of an existing workbook are copied, and only the XML of the changed parts is edited as text. A library that
reads and rewrites a workbook would lose the features it does not know: bold words in a cell, drop-down lists, slicers.
"""

from __future__ import annotations

import datetime as dt
import io
import itertools
import math
import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, TypeAlias
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from promptmill.core.bounds import MOST_COLUMNS
from promptmill.core.errors import input_error
from promptmill.core.values import SheetDate
from promptmill.jobs import members
from promptmill.jobs.export.answered import AnsweredRow
from promptmill.jobs.export.text import Form, cell
from promptmill.jobs.inputs import xlsx
from promptmill.jobs.store.plan import JobSpec

_SHEET = "answers"
_MOST_ROWS = 1_048_575  # rows below the header: Excel's limit
LONGEST_CELL = 32_767  # characters: Excel's limit
_LONGEST_NAME = 31  # characters of a sheet's name: Excel's limit
_NO_NAME = re.compile("[\\[\\]:*?/\\\\\0-\x1f\x7f\ud800-\udfff\ufffe\uffff]|^'|'$")
"""Finds what Excel permits in no name of a sheet, and what XML cannot hold."""
_CUT = "… [cut]"
_BLOCK = 1 << 20
_EXACT = 1 << 53  # the largest exact whole number: Excel stores each number as a float of 64 bits
_DIGITS = 15  # max digits of a decimal that Excel stores exactly
_NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPED = re.compile(r"_(?=x[0-9A-Fa-f]{4}_)")  # needs an escape, because Excel reads _x0041_ as an A
_FIRST_DAY, _FIRST_DAY_OF_1904 = dt.datetime(1899, 12, 30), dt.datetime(1904, 1, 1)  # noqa: DTZ001 (cells have no zone)
_EXACT_DAY = dt.datetime(1900, 3, 1)  # noqa: DTZ001 (Excel has a 29 February 1900)
_DAY = dt.timedelta(days=1)
_DATE_FORMATS = tuple(b'<%%bxf numFmtId="%d" applyNumberFormat="1"/>' % number for number in (14, 22, 21))
"""Excel's own formats of a date, a date with a time, and a time."""
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_BEGIN = b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_NEW = {
    "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/xl/styles.xml" ContentType="{_TYPE}.styles+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{_MAIN}"><bookViews><workbookView/></bookViews><sheets></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>',
    "xl/styles.xml": f'<styleSheet xmlns="{_MAIN}">'
    '<fonts count="1"><font><sz val="11"/><name val="Calibri"/></font></fonts>'
    '<fills count="2"><fill><patternFill patternType="none"/></fill>'
    '<fill><patternFill patternType="gray125"/></fill></fills><borders count="1"><border/></borders>'
    '<cellStyleXfs count="1"><xf/></cellStyleXfs><cellXfs count="1"><xf/></cellXfs>'
    '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>',
}
"""The files in a workbook that has no sheet yet."""
_MEASURED = 200  # first rows whose cells give the widths of the columns; they are in memory together
_WIDTHS = 8, 60  # characters: a number with its name, and a line that an eye can follow


def check_target(spec: JobSpec, target: Path, own: Sequence[str], added: Sequence[str]) -> None:
    """Raise `PromptmillError` (`invalid_input`) if no workbook at `target` can get a sheet with columns of the input
    (`own`) and of the job (`added`).

    The check writes the sheet without rows and discards the result.
    """
    file, name = members.split(target)
    if name:
        _check_name(name)
    fills_input = spec.fills_input and target == spec.output.path
    _check_width(0 if fills_input else len(own) + len(added))  # the columns of a sheet that is filled are counted below
    if not (name or fills_input) or not file.exists():
        return
    if fills_input and spec.is_grid:
        raise input_error(f"Several answers to each row do not fit into the sheet of {file.name}; name another output.")
    if fills_input and spec.output_shape is not None:
        raise input_error(f"A row for each item does not fit into the sheet of {file.name}; name another output.")
    with xlsx.opened(file, file.name) as packed:
        alike = [sheet.name for sheet in xlsx.parts_of(packed).sheets if sheet.name.casefold() == name.casefold()]
    if alike and alike != [name]:
        raise input_error(f"{file.name} has the sheet {alike[0]}, which Excel does not tell apart from {name}.")
    change = _Columns(spec, added, ()) if fills_input else _NewSheet(name, ())
    _write(io.BytesIO(), file, change)


def _check_name(name: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that Excel permits for no sheet."""
    wrong = ""
    if (length := len(name.encode("utf-16-le", "surrogatepass")) // 2) > _LONGEST_NAME:
        wrong = f"it has {length} characters, as Excel counts them, and {_LONGEST_NAME} are the most"
    elif (found := _NO_NAME.search(name)) is not None:
        wrong = f"it has {found[0]!r}" if found[0] != "'" else "it begins or ends with an apostrophe"
    elif name.lower() == "history":
        wrong = "Excel keeps it for itself"
    if wrong:
        raise input_error(f"{name[:60]!r} is no name for a sheet: {wrong}; name another sheet.")


def _check_width(columns: int) -> None:
    if columns > MOST_COLUMNS:
        raise input_error(
            f"A sheet holds {MOST_COLUMNS:,} columns at most, and this output may have {columns:,}; name the output "
            ".csv or .parquet."
        )


def check_fits(rows: int) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a sheet cannot hold so many rows."""
    if rows > _MOST_ROWS:
        raise input_error(f"A sheet holds {_MOST_ROWS:,} rows at most; name the output .csv or .parquet.")


def write_workbook(out: IO[bytes], form: Form, answered: Iterable[AnsweredRow], target: Path | None = None) -> str:
    """Write the rows of a job into a workbook; return a warning or `""`. Raises as `WorkbookWriter.write` does."""
    writer = WorkbookWriter(form)
    writer.write(out, answered, target)
    return writer.warning


class WorkbookWriter:
    """Writes the rows of a job into a workbook."""

    def __init__(self, form: Form) -> None:
        self._spec, self._form = form.spec, form
        self.cut = 0
        """The number of cells that were shortened to Excel's limit."""

    def write(self, out: IO[bytes], answered: Iterable[AnsweredRow], target: Path | None = None) -> None:
        """Write the workbook. Raises `PromptmillError`, `OSError`, and the errors of `answered`.

        `target` is the final path. If a workbook exists there, its other sheets and columns are copied.
        """
        file, name = (Path(), "") if target is None else members.split(target)
        if target == self._spec.output.path and self._spec.fills_input:
            answers = self._form.answers
            numbered = ((each.row.n, self._cells(answers.in_order(each))) for each in answered)
            _write(out, file, _Columns(self._spec, list(answers.names.values()), numbered))
        else:
            source = file if name and file.exists() else None
            _write(out, source, _NewSheet(name or _SHEET, self._rows(answered)))

    def _rows(self, answered: Iterable[AnsweredRow]) -> Iterator[Sequence[Any]]:
        form = self._form
        _check_width(len(form.header))
        yield self._cells(form.header)
        for count, each in enumerate(answered):
            check_fits(count + 1)
            yield self._cells([*form.own_values(each.row), *form.answers.in_order(each)])

    def _cells(self, row: Iterable[Any]) -> list[Any]:
        cells = list(map(sheet_value, row))
        for at, value in enumerate(cells):
            if isinstance(value, str) and _length(value) > LONGEST_CELL:
                self.cut += 1
                cells[at] = cut_text(value, _CUT)
        return cells

    @property
    def warning(self) -> str:
        """A sentence about shortened cells; `""` if there are none."""
        if not self.cut:
            return ""
        cells = "1 cell was" if self.cut == 1 else f"{self.cut:,} cells were"
        return f"{cells} cut at Excel's {LONGEST_CELL:,} characters; an export as CSV or JSON Lines has all."


def frozen(columns: int = 0) -> str:
    """Return the view of a sheet that keeps the header and the first columns in sight, as XML."""
    pane, split = ("bottomRight", f'xSplit="{columns}" ') if columns else ("bottomLeft", "")
    return (
        f'<sheetViews><sheetView workbookViewId="0"><pane {split}ySplit="1" topLeftCell="{xlsx.letters_of(columns)}2" '
        f'activePane="{pane}" state="frozen"/></sheetView></sheetViews>'
    )


_FROZEN = frozen()


def write_sheet(out: IO[bytes], name: str, rows: Iterable[Sequence[Any]], view: str = _FROZEN, rules: str = "") -> None:
    """Write a new workbook with one sheet. `view`, `rules`: XML above the columns and after the filter."""
    _write(out, None, _NewSheet(name, ([_shortened(sheet_value(value)) for value in row] for row in rows), view, rules))


# ---- values


def sheet_value(value: Any) -> Any:
    """Return a value as a cell can hold it: None, a boolean, a number, a date or a text.

    Lists and objects become JSON; a number that Excel would round becomes a text; a date from a workbook stays a date.
    """
    match value:
        case None | bool():
            return value
        case SheetDate():
            with suppress(ValueError):
                kind = dt.time if value[2] == ":" else dt.datetime if value[10:] else dt.date
                return kind.fromisoformat(value)
        case int() if abs(value) <= _EXACT:
            return value
        case float() if math.isfinite(value):
            return value
        case Decimal() if len(value.as_tuple().digits) <= _DIGITS:
            return value
        case dt.datetime() | dt.time() if value.tzinfo is not None:  # a date in a cell has no time zone
            return str(value)
        case dt.date() | dt.time():
            return value
    return clean_text(cell(value))


def clean_text(text: str) -> str:
    """Return a text with a replacement character for each character that XML, and therefore a workbook, cannot hold.

    >>> clean_text("a\\x00b\\ufffe")
    'a�b�'
    """
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def cut_text(text: str, end: str = "") -> str:
    """Return a text of at most Excel's length; a shortened text ends with `end`."""
    most = LONGEST_CELL - len(end)
    return text.encode("utf-16-le")[: 2 * most].decode("utf-16-le", "ignore") + end


def _shortened(value: Any) -> Any:
    return cut_text(value) if isinstance(value, str) and _length(value) > LONGEST_CELL else value


def _length(text: str) -> int:
    """Return the length of a text as Excel counts it: a character beyond U+FFFF counts as two."""
    return len(text) if len(text) <= LONGEST_CELL // 2 or text.isascii() else len(text.encode("utf-16-le")) // 2


class _Cells:
    """Writes cells as XML."""

    def __init__(self, prefix: str = "", dates: Sequence[int] = (), first_day: dt.datetime = _FIRST_DAY) -> None:
        """`prefix`: the prefix of element names. `dates`: the style numbers of `_DATE_FORMATS`; without them, dates
        become texts."""
        self._prefix, self._dates, self._first_day = prefix, dates, first_day

    def row(self, number: int, values: Sequence[Any]) -> str:
        """Return a row. `number`: from 1."""
        cells = "".join(
            self.cell(number, column, value) for column, value in enumerate(values) if value not in (None, "")
        )
        return f'<{self._prefix}row r="{number}">{cells}</{self._prefix}row>'

    def cell(self, row: int, column: int, value: Any, style: str = "") -> str:
        """Return a cell. `row`: from 1. `style`: the number of the cell's format."""
        p, kind = self._prefix, ""
        if isinstance(value, dt.date | dt.time):
            style, value = self._date(value)
        match value:
            case None | "":
                inner = ""
            case bool():
                kind, inner = ' t="b"', f"<{p}v>{int(value)}</{p}v>"
            case str():
                kind, inner = ' t="inlineStr"', f'<{p}is><{p}t xml:space="preserve">{_escaped(value)}</{p}t></{p}is>'
            case Decimal():
                inner = f"<{p}v>{value:f}</{p}v>"
            case _:
                inner = f"<{p}v>{value!r}</{p}v>"
        of_style = f' s="{style}"' if style else ""
        return f'<{p}c r="{xlsx.letters_of(column)}{row}"{of_style}{kind}>{inner}</{p}c>'

    def _date(self, value: dt.date | dt.time) -> tuple[str, Any]:
        """Return a date as its style and Excel's number of days; as a text if Excel has no number for the date."""
        first = self._first_day
        match value:
            case dt.time():
                form, time, least = 2, dt.datetime.combine(first, value), first
            case dt.datetime():
                form, time, least = 1, value, max(first, _EXACT_DAY)
            case _:
                form, time, least = 0, dt.datetime.combine(value, dt.time()), max(first, _EXACT_DAY)
        if not self._dates or time < least:
            return "", str(value)
        days = (time - first) / _DAY
        return str(self._dates[form]), int(days) if days.is_integer() else days


def _escaped(text: str) -> str:
    return escape(_ESCAPED.sub("_x005F_", text), {"\r": "&#13;"})


# ---- files

_Changed: TypeAlias = dict[str, Iterable[bytes] | None]
"""The content of each part that changes, in blocks; None for a part that is removed."""


class _NewSheet:
    """A sheet that is written completely."""

    def __init__(self, name: str, rows: Iterable[Sequence[Any]], view: str = _FROZEN, rules: str = "") -> None:
        self._name, self._rows, self._view, self._rules = name, rows, view, rules

    def changed(self, packed: zipfile.ZipFile) -> _Changed:
        """Return the parts that change or are new."""
        parts = xlsx.parts_of(packed)
        texts: dict[str, bytes] = {}
        part = next((sheet.part for sheet in parts.sheets if sheet.name == self._name), "")
        removed = [xlsx.rels_of(part)] if part else []  # with its pictures and tables
        if not part:
            part, texts = _with_sheet(packed, parts, self._name)
        dates: list[int] = []
        if parts.styles:
            styles, dates = _with_dates(packed.read(parts.styles))
            texts[parts.styles] = styles
        texts[parts.book] = _recalculated(texts.get(parts.book) or packed.read(parts.book))
        is_1904 = any(one.get("date1904") in {"1", "true"} for one in parts.tree.iter())
        cells = _Cells(dates=dates, first_day=_FIRST_DAY_OF_1904 if is_1904 else _FIRST_DAY)
        changed: _Changed = {name: [text] for name, text in texts.items()}
        return changed | dict.fromkeys(removed) | {part: self._xml(cells, parts.tree.tag)}

    def _xml(self, cells: _Cells, book: str) -> Iterator[bytes]:
        space = book.partition("}")[0].lstrip("{")
        rows = iter(self._rows)
        first, number = list(itertools.islice(rows, _MEASURED)), 0
        yield _BEGIN + f'<worksheet xmlns="{space}">{self._view}{_widths(first)}<sheetData>'.encode()
        for number, row in enumerate(itertools.chain(first, rows), 1):
            yield cells.row(number, row).encode()
        last = xlsx.letters_of(len(first[0]) - 1) if first and first[0] else ""
        filter_ = f'<autoFilter ref="A1:{last}{number}"/>' if last else ""
        yield f"</sheetData>{filter_}{self._rules}</worksheet>".encode()


def _widths(rows: Sequence[Sequence[Any]]) -> str:
    """Return the widths of the columns, as wide as the longest line of a cell within bounds, as XML."""
    least, most = _WIDTHS
    columns = [
        max(least, min(most, 2 + max(len(line) for cell in cells for line in str(cell or "").split("\n"))))
        for cells in itertools.zip_longest(*rows)
    ]
    wide = "".join(
        f'<col min="{at}" max="{at}" width="{width}" customWidth="1"/>' for at, width in enumerate(columns, 1)
    )
    return f"<cols>{wide}</cols>" if wide else ""


class _Columns:
    """Columns of answers that are added to the sheet that the job read."""

    def __init__(self, spec: JobSpec, names: Sequence[str], rows: Iterable[tuple[int, Sequence[Any]]]) -> None:
        """`rows`: the numbers of rows, ascending, with their answers in the order of `names`."""
        self._file, style = spec.output.path.name, spec.input.style
        self._sheet, self._header = style.sheet, style.header_row
        self._names, self._rows = names, rows

    def changed(self, packed: zipfile.ZipFile) -> _Changed:
        """Return the parts that change. Raises errors that `xlsx.opened` converts."""
        parts = xlsx.parts_of(packed)
        part = next(sheet.part for sheet in parts.sheets if sheet.name == self._sheet)
        data = packed.read(part)
        heads, width = _heads(packed, parts, data, self._header)
        columns = []
        for name in self._names:
            if name not in heads:
                heads[name], width = width, width + 1
            columns.append(heads[name])
        if max(columns) >= MOST_COLUMNS:
            raise input_error(f"{self._file} has no columns left behind its own; name another file for the output.")

        def rows() -> Iterator[tuple[int, dict[int, Any]]]:
            yield self._header, dict(zip(columns, self._names, strict=True))
            for n, answers in self._rows:
                yield self._header + 1 + n, dict(zip(columns, answers, strict=True))

        filled = _Filling(data, rows()).blocks()
        return {part: filled, parts.book: [_recalculated(packed.read(parts.book))]}


def _write(out: IO[bytes], source: Path | None, change: _NewSheet | _Columns) -> None:
    """Copy a workbook with a change; without a `source`, write a new workbook. Raises `PromptmillError`, `OSError`."""
    file = io.BytesIO(_empty()) if source is None else source
    with xlsx.opened(file, "" if source is None else source.name) as packed:
        changed = change.changed(packed)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
            for info in packed.infolist():
                if info.filename not in changed:
                    new.writestr(info, packed.read(info))
            for name, blocks in changed.items():
                if blocks is not None:
                    with new.open(name, "w") as part:
                        part.writelines(blocks)


def _empty() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for name, text in _NEW.items():
            new.writestr(name, _BEGIN + text.encode())
    return out.getvalue()


def _with_sheet(packed: zipfile.ZipFile, parts: xlsx.Parts, name: str) -> tuple[str, dict[str, bytes]]:
    """Return the path of a new sheet, and the changed parts that list the sheet."""
    folder = parts.book.rpartition("/")[0]
    known = {*packed.namelist()}
    candidates = (f"{folder}/worksheets/sheet{number}.xml" for number in range(1, len(known) + 2))
    part = next(candidate for candidate in candidates if candidate not in known)
    book, rels, types = (packed.read(path) for path in (parts.book, xlsx.rels_of(parts.book), "[Content_Types].xml"))
    listed = xlsx.children(parts.tree, "sheets")
    number = max((int(one.get("sheetId", 0)) for one in listed), default=0) + 1
    office = xlsx.id_name(listed[0])[1:].partition("}")[0] if listed else _OFFICE
    key = f"promptmill{number}"
    sheet = f'sheet xmlns:r="{office}" name={quoteattr(name)} sheetId="{number}" r:id="{key}"/>'
    related = f'Relationship Id="{key}" Type="{office}/worksheet" Target="/{part}"/>'
    override = f'Override PartName="/{part}" ContentType="{_TYPE}.worksheet+xml"/>'
    return part, {
        parts.book: _with_last(book, "sheets", sheet),
        xlsx.rels_of(parts.book): _with_last(rels, "Relationships", related),
        "[Content_Types].xml": _with_last(types, "Types", override),
    }


def _with_last(data: bytes, parent: str, child: str) -> bytes:
    """Return XML in which the element `parent` has `child` as its new last child. Raises `ValueError`."""
    closing = re.search(rb"</((?:[\w.-]+:)?)%b\s*>" % parent.encode(), data)
    if closing is None:
        raise ValueError
    return b"%b<%b%b%b" % (data[: closing.start()], closing[1], child.encode(), data[closing.start() :])


def _with_dates(data: bytes) -> tuple[bytes, list[int]]:
    """Add `_DATE_FORMATS` to the styles; return their indexes, `[]` if the styles have no list of cell formats."""
    opening = re.search(rb"<((?:[\w.-]+:)?)cellXfs(?:\s[^<>]*)?>", data)
    end = -1 if opening is None else data.find(b"</%bcellXfs" % opening[1], opening.end())
    if opening is None or end < 0:
        return data, []
    prefix, inner = opening[1], data[opening.end() : end]
    numbers = []
    for form in _DATE_FORMATS:
        style = form % prefix
        if style not in inner:
            inner += style
        numbers.append(len(re.findall(rb"<(?:[\w.-]+:)?xf\b", inner[: inner.index(style)])))
    count = len(re.findall(rb"<(?:[\w.-]+:)?xf\b", inner))
    return b'%b<%bcellXfs count="%d">%b%b' % (data[: opening.start()], prefix, count, inner, data[end:]), numbers


def _recalculated(data: bytes) -> bytes:
    """Return the XML of a workbook that recalculates when Excel opens it, because formulas may use the answers."""
    opening = re.search(rb"<(?:[\w.-]+:)?calcPr(?:\s[^<>/]*)?", data)
    if opening is None or b"fullCalcOnLoad" in opening[0]:
        return data
    return b'%b fullCalcOnLoad="1"%b' % (data[: opening.end()], data[opening.end() :])


# ---- the XML of a sheet


def _heads(packed: zipfile.ZipFile, parts: xlsx.Parts, data: bytes, header: int) -> tuple[dict[str, int], int]:
    """Return the columns by their texts in the header, and the index of the first column without values."""
    cells = _Filled(data, header)
    wanted = {int(text) for kind, text in cells.head.values() if kind == "s"}
    texts = _shared(packed, parts.texts, wanted) if wanted else {}
    heads = {column: texts[int(text)] if kind == "s" else text for column, (kind, text) in cells.head.items()}
    return {text: column for column, text in reversed(heads.items()) if text}, cells.width


def _shared(packed: zipfile.ZipFile, part: str, wanted: set[int]) -> dict[int, str]:
    """Return the shared texts with the numbers `wanted`."""
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
    """Walks over the cells in a sheet's XML, not over the grid, which may have seventeen billion positions."""

    def __init__(self, data: bytes) -> None:
        self.data, self.row, self.column = data, -1, -1
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declared
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        self.parser, self._names = parser, dict[str, str]()

    def walk(self) -> Iterator[None]:
        """Call the handlers for the whole sheet, a block at a time."""
        for at in range(0, len(self.data), _BLOCK):
            self.parser.Parse(self.data[at : at + _BLOCK])
            yield
        self.parser.Parse(b"", True)

    @staticmethod
    def _declared(_: str, encoding: str | None, __: int) -> None:
        if encoding is not None and encoding.lower() not in {"utf-8", "us-ascii"}:
            raise ValueError  # another declaration, which no known program writes

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
    """Finds cells that have a value or are merged: the texts of the header, and the last used column."""

    def __init__(self, data: bytes, header: int) -> None:
        super().__init__(data)
        self.head: dict[int, tuple[str, str]] = {}
        """The type and the text of each cell of the header, by its column."""
        self.width = 0
        self._header, self._kind = header, ""
        deque(self.walk(), maxlen=0)

    def start(self, word: str, attributes: Mapping[str, str]) -> None:
        if word == "c":
            self._kind = attributes.get("t", "")
        elif word in {"v", "f", "is"}:
            self.width = max(self.width, self.column + 1)
            if self.row == self._header and word != "f":
                self.parser.CharacterDataHandler = self._add
        elif word == "mergeCell":  # of merged cells, only the first is shown
            last = attributes["ref"].rpartition(":")[2]
            if xlsx.row_of(last) >= self._header and (end := xlsx.column_of(last) + 1) < MOST_COLUMNS:
                self.width = max(self.width, end)

    def _add(self, text: str) -> None:
        _, known = self.head.get(self.column, ("", ""))
        self.head[self.column] = self._kind, known + text

    def end(self, word: str) -> None:
        if word in {"v", "is"}:
            self.parser.CharacterDataHandler = None


class _Filling(_Walk):
    """Replaces the values of some cells in a sheet's XML. All other bytes stay."""

    def __init__(self, data: bytes, rows: Iterator[tuple[int, dict[int, Any]]]) -> None:
        """`rows`: the indices of rows, ascending, each with its new values by column."""
        super().__init__(data)
        self._rows, self._next = rows, next(rows, None)
        self._pending: list[tuple[int, Any]] = []
        self._replaced: tuple[Any, str] | None = None
        self._done = self._left_out = 0
        self._blocks: list[bytes] = []
        self._cells = _Cells()

    def blocks(self) -> Iterator[bytes]:
        """Yield the XML."""
        for _ in self.walk():
            yield from self._blocks
            self._blocks.clear()
        if self._next is not None:
            raise ValueError  # the sheet has no such row
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
                prefix = re.match(rb"<((?:[\w.-]+:)?)", tag)
                self._cells = _Cells("" if prefix is None else prefix[1].decode())
                self._copy(at)
                self._blocks.append(re.sub(rb'\sspans="[^"]*"', b"", tag))  # `spans` lists the columns, which change
                self._done = at + len(tag)
        elif word == "c" and self._pending:
            self._put(at, self.column)
            if self._pending and self._pending[-1][0] == self.column:
                self._replaced = self._pending.pop()[1], attributes.get("s", "")
                self._leave_out(at)
        elif word == "dimension":  # dropped: it is optional, and would be wrong now
            self._leave_out(at)

    def end(self, word: str) -> None:
        at = self.parser.CurrentByteIndex
        if word == "c" and self._replaced is not None:
            value, style = self._replaced
            self._blocks.append(self._cells.cell(self.row + 1, self.column, value, style).encode())
            self._done, self._replaced = self._left_out or self._end_of_tag(at), None
        elif word == "row" and self._pending:
            self._put(at, MOST_COLUMNS)
        elif word == "dimension":
            self._done = self._left_out or self._end_of_tag(at)

    def _put(self, at: int, before: int) -> None:
        """Write the pending cells whose columns are left of `before`, at the byte offset `at`."""
        while self._pending and self._pending[-1][0] < before:
            column, value = self._pending.pop()
            if value is not None:
                self._copy(at)
                self._blocks.append(self._cells.cell(self.row + 1, column, value).encode())

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
