"""Workbooks as outputs: a new workbook, or a sheet or columns in an existing workbook, whose other parts stay.

labels.xlsx              a new workbook with the sheet `answers`
book.xlsx#Labels         the sheet `Labels`; the other sheets of the workbook stay
the input itself         the answers become columns of its sheet, after its own columns; all else stays

The parts of an existing workbook are copied, and only the XML of the changed parts is edited as text. A library that
reads and rewrites a workbook loses the features that it does not know: bold words in a cell, drop-down lists, slicers.
"""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import quoteattr

from promptmill.core.bounds import MOST_COLUMNS
from promptmill.core.errors import input_error
from promptmill.files import table_paths, xlsx
from promptmill.jobs.export.answered import AnsweredRow
from promptmill.jobs.export.filled_sheet import FilledSheet
from promptmill.jobs.export.text import OutputForm
from promptmill.jobs.export.workbook_xml import (
    LONGEST_CELL,
    MEASURED,
    Cells,
    Changed,
    Dates,
    cut_text,
    length_of,
    recalculated,
    sheet_value,
    shortened,
    widths_of,
    with_last,
)
from promptmill.jobs.store.plan import JobSpec

_SHEET = "answers"
_MOST_ROWS = 1_048_575  # rows below the header: Excel's limit
_LONGEST_NAME = 31  # characters of a sheet's name: Excel's limit
_NO_NAME = re.compile("[\\[\\]:*?/\\\\\0-\x1f\x7f\ud800-\udfff\ufffe\uffff]|^'|'$")
"""Finds characters that Excel does not permit in the name of a sheet, or that XML cannot hold."""
_CUT = "… [cut]"
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
"""The files of a workbook that has no sheet yet, with their content."""


def check_target(spec: JobSpec, target: Path, own: Sequence[str], added: Sequence[str]) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a sheet with columns of the input (`own`) and of the job (`added`)
    cannot be written into a workbook at `target`.

    The check writes the workbook, with a sheet without rows, and discards it.
    """
    file, name = table_paths.split(target)
    if name:
        _check_name(name)
    fills_input = spec.fills_input and target == spec.output.path
    _check_width(0 if fills_input else len(own) + len(added))  # if the job fills a sheet, the columns are counted below
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
    change = FilledSheet(spec, added, ()) if fills_input else _NewSheet(name, ())
    _write(io.BytesIO(), file, change)


def _check_name(name: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that Excel does not permit for a sheet."""
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
    """Raise `PromptmillError` (`invalid_input`) if a sheet cannot hold this many rows."""
    if rows > _MOST_ROWS:
        raise input_error(f"A sheet holds {_MOST_ROWS:,} rows at most; name the output .csv or .parquet.")


def write_workbook(
    out: IO[bytes], form: OutputForm, answered: Iterable[AnsweredRow], target: Path | None = None
) -> str:
    """Write the rows of a job into a workbook; return a warning or `""`. Raises as `WorkbookWriter.write` does."""
    writer = WorkbookWriter(form)
    writer.write(out, answered, target)
    return writer.warning


class WorkbookWriter:
    """Writes the rows of a job into a workbook."""

    def __init__(self, form: OutputForm) -> None:
        self._spec, self._form = form.spec, form
        self.cut = 0
        """The number of cells that were shortened to Excel's limit."""

    def write(self, out: IO[bytes], answered: Iterable[AnsweredRow], target: Path | None = None) -> None:
        """Write the workbook. Raises `PromptmillError`, `OSError`, and the errors of `answered`.

        `target`: the workbook's path. If a workbook exists there, its other sheets and columns are copied.
        """
        file, name = (Path(), "") if target is None else table_paths.split(target)
        if target == self._spec.output.path and self._spec.fills_input:
            answers = self._form.answers
            numbered = ((each.row.n, self._cells(answers.in_order(each))) for each in answered)
            _write(out, file, FilledSheet(self._spec, list(answers.names.values()), numbered))
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
            if isinstance(value, str) and length_of(value) > LONGEST_CELL:
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
    """Return XML for a view of a sheet in which the header and the first `columns` columns stay visible."""
    pane, split = ("bottomRight", f'xSplit="{columns}" ') if columns else ("bottomLeft", "")
    return (
        f'<sheetViews><sheetView workbookViewId="0"><pane {split}ySplit="1" topLeftCell="{xlsx.letters_of(columns)}2" '
        f'activePane="{pane}" state="frozen"/></sheetView></sheetViews>'
    )


_FROZEN = frozen()


def write_sheet(out: IO[bytes], name: str, rows: Iterable[Sequence[Any]], view: str = _FROZEN, rules: str = "") -> None:
    """Write a new workbook with one sheet. `view`: XML before the columns. `rules`: XML after the filter."""
    _write(out, None, _NewSheet(name, ([shortened(sheet_value(value)) for value in row] for row in rows), view, rules))


# ---- files


class _NewSheet:
    """A sheet that is written as a whole: a new sheet, or one that replaces the sheet of the same name."""

    def __init__(self, name: str, rows: Iterable[Sequence[Any]], view: str = _FROZEN, rules: str = "") -> None:
        self._name, self._rows, self._view, self._rules = name, rows, view, rules

    def changed(self, packed: zipfile.ZipFile) -> Changed:
        """Return the parts of the workbook that change or are new."""
        parts = xlsx.parts_of(packed)
        texts: dict[str, bytes] = {}
        part = next((sheet.part for sheet in parts.sheets if sheet.name == self._name), "")
        removed = [xlsx.rels_of(part)] if part else []  # removes the sheet's pictures and tables
        if not part:
            part, texts = _with_sheet(packed, parts, self._name)
        texts[parts.book] = recalculated(texts.get(parts.book) or packed.read(parts.book))
        dates = Dates(packed, parts)
        changed: Changed = {name: [text] for name, text in texts.items()}
        sheet = self._xml(Cells(dates), parts.tree.tag)
        return changed | dict.fromkeys(removed) | {part: sheet} | dates.changed()

    def _xml(self, cells: Cells, book: str) -> Iterator[bytes]:
        space = book.partition("}")[0].lstrip("{")
        rows = iter(self._rows)
        first, number = list(itertools.islice(rows, MEASURED)), 0
        yield _BEGIN + f'<worksheet xmlns="{space}">{self._view}{_widths(first)}<sheetData>'.encode()
        for number, row in enumerate(itertools.chain(first, rows), 1):
            yield cells.row(number, row).encode()
        last = xlsx.letters_of(len(first[0]) - 1) if first and first[0] else ""
        filter_ = f'<autoFilter ref="A1:{last}{number}"/>' if last else ""
        yield f"</sheetData>{filter_}{self._rules}</worksheet>".encode()


def _widths(rows: Sequence[Sequence[Any]]) -> str:
    """Return XML with the widths of the columns, which fit the cells of `rows`."""
    wide = "".join(
        f'<col min="{at}" max="{at}" width="{width}" customWidth="1"/>' for at, width in enumerate(widths_of(rows), 1)
    )
    return f"<cols>{wide}</cols>" if wide else ""


def _write(out: IO[bytes], source: Path | None, change: _NewSheet | FilledSheet) -> None:
    """Copy the workbook `source` (None: a new workbook) with a change. Raises `PromptmillError`, `OSError`."""
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
    """Return the path of the part for a new sheet, and the changed parts of the workbook that list this sheet."""
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
        parts.book: with_last(book, "sheets", sheet),
        xlsx.rels_of(parts.book): with_last(rels, "Relationships", related),
        "[Content_Types].xml": with_last(types, "Types", override),
    }
