"""Workbooks as outputs, written by openpyxl: a new workbook, or a sheet or columns of an existing one.

labels.xlsx              a new workbook with the sheet `answers`
book.xlsx#Labels         the sheet `Labels`; other sheets of the book stay
the input itself         the answers become columns of its sheet, behind its own; its formats stay
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from promptmill.core.errors import input_error
from promptmill.jobs import members
from promptmill.jobs.export.answered import AnsweredRow
from promptmill.jobs.export.text import Form, cell
from promptmill.jobs.inputs.workbook import header_row
from promptmill.jobs.store.spec import JobSpec

_SHEET = "answers"
_MOST_ROWS = 1_048_575  # besides the header: Excel's limit
LONGEST_CELL = 32_767  # characters: Excel's limit
_CUT = "… [cut]"
_DATE = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?)?")
_PLAIN = frozenset({int, float, bool, type(None)})
_EXACT = 1 << 53  # Excel keeps every number as a fraction of 64 bits


class WorkbookWriter:
    """Writes the rows of a job into a workbook."""

    def __init__(self, form: Form) -> None:
        self._spec, self._form = form.spec, form
        self.cut = 0
        """The number of cells cut at Excel's limit."""
        self._has_formulas = False

    def write(self, out: IO[bytes], answered: Iterable[AnsweredRow], target: Path | None = None) -> None:
        """Write the workbook. Raises `PromptmillError`, `OSError`, and the errors of `answered`.

        `target` is the final path. If a workbook exists there, its other sheets and columns are copied.
        """
        import openpyxl

        file, name = (Path(), "") if target is None else members.split(target)
        if target == self._spec.output.path and self._spec.fills_input:
            book = openpyxl.load_workbook(file)
            self._fill_columns(book[_sheet_of(self._spec, book)], answered)
        elif name and file.exists():
            book = openpyxl.load_workbook(file)
            at = book.sheetnames.index(name) if name in book.sheetnames else len(book.sheetnames)
            if name in book.sheetnames:
                del book[name]
            self._fill(book.create_sheet(name, at), answered)
        else:
            book = openpyxl.Workbook(write_only=True)
            self._fill(book.create_sheet(name or _SHEET), answered)
        if not book.write_only:
            cells = (place for sheet in book.worksheets for row in sheet.iter_rows() for place in row)
            self._has_formulas = any(place.data_type == "f" for place in cells)
        book.save(out)

    def _fill(self, sheet: Any, answered: Iterable[AnsweredRow]) -> None:
        form = self._form
        sheet.append([self._cell(sheet, name) for name in form.header])
        for count, each in enumerate(answered):
            if count == _MOST_ROWS:
                raise input_error(f"A sheet holds {_MOST_ROWS:,} rows at most; name the output .csv or .parquet.")
            values = [*map(self._as_date, form.own_values(each.row)), *form.answers.in_order(each)]
            sheet.append([self._cell(sheet, value) for value in values])

    def _fill_columns(self, sheet: Any, answered: Iterable[AnsweredRow]) -> None:
        first = (header_row(sheet.iter_rows(values_only=True)) or 0) + 1
        heads = {place.value: place.column for place in sheet[first] if place.value is not None}
        columns = {}
        for name in self._form.answers.names.values():
            columns[name] = heads.get(name) or max([0, *heads.values()]) + 1
            heads[name] = columns[name]
            sheet.cell(first, columns[name], name)
        for each in answered:
            for column, value in zip(columns.values(), self._form.answers.in_order(each), strict=True):
                place = sheet.cell(first + 1 + each.row.n, column)
                place.value = self._plain(value)
                if isinstance(value, str):
                    place.data_type = "s"  # a text that begins with = is no formula

    def _as_date(self, value: Any) -> Any:
        """Return a text that was a date in the input workbook as a date, and any other value unchanged."""
        if self._spec.input.format == "xlsx" and isinstance(value, str) and _DATE.fullmatch(value):
            with contextlib.suppress(ValueError):  # not a date: 2026-02-31
                return dt.datetime.fromisoformat(value) if value[10:] else dt.date.fromisoformat(value)
        return value

    def _cell(self, sheet: Any, value: Any) -> Any:
        from openpyxl.cell import WriteOnlyCell

        plain = self._plain(value)
        if not isinstance(plain, str):
            return plain
        place = WriteOnlyCell(sheet, plain)
        place.data_type = "s"  # as above
        return place

    def _plain(self, value: Any) -> Any:
        """Return a value for a cell: lists and objects become JSON, a whole number that Excel would round becomes a
        text, and a text is cut at Excel's limit."""
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

        is_rounded = type(value) is int and abs(value) > _EXACT
        if (type(value) in _PLAIN and not is_rounded) or isinstance(value, dt.date):
            return value
        text = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", cell(value))
        if len(text) > LONGEST_CELL:
            self.cut += 1
            text = text[: LONGEST_CELL - len(_CUT)] + _CUT
        return text

    @property
    def warning(self) -> str:
        """Sentences about cut cells and about formulas, whose values openpyxl leaves out; `""` if there are none."""
        found = []
        if self.cut:
            cells = "1 cell was" if self.cut == 1 else f"{self.cut:,} cells were"
            found.append(
                f"{cells} cut at Excel's {LONGEST_CELL:,} characters; `promptmill jobs ID --export FILE.csv` has all."
            )
        if self._has_formulas:
            found.append("The workbook's formulas have no values until Excel or LibreOffice has opened and saved it.")
        return " ".join(found)


def _sheet_of(spec: JobSpec, book: Any) -> str:
    """Return the name of the sheet that the job read: the sheet it names, else the only sheet with values."""
    named = spec.input.parts[0].member
    names: Sequence[str] = book.sheetnames
    return named or next(name for name in names if book[name].max_row > 1 or book[name]["A1"].value is not None)
