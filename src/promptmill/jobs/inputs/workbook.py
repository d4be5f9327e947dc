"""Sheets of workbooks as rows: `.xlsx`, `.xlsm`, `.xlsb`, `.xls` and `.ods`, read by python-calamine.

A sheet is read as a whole, because its parts are compressed XML and a cell may refer to any text of the workbook. The
first row with a value is the header. A row's number is its distance from the first row below the header. For a formula,
the stored value is read. A program that writes a formula without computing it, such as openpyxl, stores none.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import io
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from promptmill.core import values
from promptmill.core.bounds import LARGEST_WORKBOOK
from promptmill.core.errors import input_error
from promptmill.core.wording import did_you_mean, listed
from promptmill.jobs.inputs.files import InputFiles
from promptmill.jobs.inputs.row import WHOLE, Extent, InputRow, Stretch, Style, Window

_AT_ONCE = 1024  # rows
_BLOCK = 1 << 20
_RELATIONS = "xl/_rels/workbook.xml.rels"
_SHEET, _RELATION = re.compile(rb"<sheet\s[^<>]*>"), re.compile(rb"<Relationship\s[^<>]*>")
_ATTRIBUTE = re.compile(rb'(?<![\w:])([\w:]+)="([^"]*)"')
# The column of a cell with a formula and without a value. The value of `t="str"` may be an empty text.
_WITHOUT_VALUE = re.compile(
    rb'<c r="([A-Z]{1,3})\d+"(?![^<>]*\bt="str")[^<>]*>'
    rb"<f(?:[^<>]*/>|(?:\s[^<>]*[^/])?>[^<]*</f>)(?:<v\s*/>|<v>\s*</v>)?</c>"
)
_MIDNIGHT = dt.time()


class SheetTable:
    """The rows of one sheet of each file, under one header; columns of the same name are one column."""

    def __init__(self, files: InputFiles, without: Collection[str] = ()) -> None:
        """Read the sheets. `without`: columns to omit. Raises `PromptmillError` (`invalid_input`)."""
        self._sheets = []
        self.header: list[str] = []
        uncomputed: dict[str, None] = {}
        for at, part in enumerate(files.parts):
            with files.stream(at, seekable=True) as stream:
                names, rows, empty = _sheet(io.BytesIO(stream.read()), part.path.name, part.member)
            uncomputed |= {name: None for place, name in enumerate(names) if place in empty and name not in without}
            own = [place for place, name in enumerate(names) if name not in without]
            self._sheets.append(([names[place] for place in own], own, rows, part))
            self.header += [
                name for name in (*(names[place] for place in own), *part.columns) if name not in self.header
            ]
        self.style = Style(uncomputed=tuple(uncomputed))

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`. A sheet is never read from the middle."""
        del window
        before = 0
        for names, own, rows, part in self._sheets:
            places = dict(zip(reversed(names), reversed(own), strict=True))
            taken = [(places.get(name), part.columns.get(name)) for name in self.header]
            for first in range(0, len(rows), _AT_ONCE):
                found = []
                for n, row in enumerate(rows[first : first + _AT_ONCE], before + first):
                    if any(value is not None for value in row):
                        cells = [default if place is None else row[place] for place, default in taken]
                        found.append(InputRow(n, values.dumps(cells), {name: cells[place] for place, name in columns}))
                yield Stretch(found, Extent(rows=len(rows[first : first + _AT_ONCE])))
            before += len(rows)


def _sheet(stream: io.BytesIO, file: str, wanted: str) -> tuple[list[str], list[list[Any]], Collection[int]]:
    """Return the columns, the rows, and the indices of the columns with formulas that were not computed."""
    import python_calamine

    workbook = _opened(stream, file)
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
    try:
        grid = workbook.get_sheet_by_name(full[0]).to_python(skip_empty_area=False)
    except python_calamine.CalamineError as error:
        raise input_error(f"The sheet {full[0][:60]} of {file} cannot be read: {str(error)[:200]}.") from None
    rows = [[_value(cell) for cell in row] for row in grid]
    if (first := header_row(rows)) is None:
        raise empty
    header = ["" if value is None else str(value) for value in rows[first]]
    uncomputed = _uncomputed(stream, workbook.sheet_names.index(full[0]))
    return [name or f"column_{at}" for at, name in enumerate(header, 1)], rows[first + 1 :], uncomputed


def _uncomputed(stream: io.BytesIO, place: int) -> set[int]:
    """Return the indices of the columns of an `.xlsx` sheet with formulas without a stored value.

    `place`: the index of the sheet. A workbook with other names of its parts has none.
    """
    letters: set[bytes] = set()
    with contextlib.suppress(zipfile.BadZipFile, KeyError, IndexError), zipfile.ZipFile(stream) as packed:
        sheet = dict(_ATTRIBUTE.findall(_SHEET.findall(packed.read("xl/workbook.xml"))[place]))
        relations = [dict(_ATTRIBUTE.findall(text)) for text in _RELATION.findall(packed.read(_RELATIONS))]
        targets = {relation[b"Id"]: relation[b"Target"].decode() for relation in relations}
        path = targets[next(value for name, value in sheet.items() if name.endswith(b":id"))]
        with packed.open(path.removeprefix("/") if path.startswith("/") else f"xl/{path}") as part:
            rest = b""
            while block := part.read(_BLOCK):
                whole, end, rest = (rest + block).rpartition(b"</c>")
                if b"<f" in whole:
                    letters |= {*_WITHOUT_VALUE.findall(whole + end)}
    # A is 1, Z is 26, AA is 27
    return {functools.reduce(lambda index, letter: 26 * index + letter - ord("@"), name, 0) - 1 for name in letters}


def sheet_names(path: Path) -> Sequence[str]:
    """Return the names of the sheets of a workbook. Raises `PromptmillError` (`invalid_input`)."""
    names: Sequence[str] = _opened(io.BytesIO(path.read_bytes()), path.name).sheet_names
    return names


def _opened(stream: io.BytesIO, file: str) -> Any:
    import python_calamine

    _check_size(stream, file)
    try:
        return python_calamine.CalamineWorkbook.from_filelike(stream)
    except python_calamine.PasswordError:
        raise input_error(f"{file} is protected by a password; save a copy without one.") from None
    except (python_calamine.CalamineError, zipfile.BadZipFile) as error:
        raise input_error(f"{file} is no workbook that can be read: {str(error)[:200]}.") from None


def header_row(rows: Iterable[Sequence[Any]]) -> int | None:
    """Return the index of the first row with a value, which an empty text is not; None if there is none."""
    return next((at for at, row in enumerate(rows) if any(value not in (None, "") for value in row)), None)


def _check_size(stream: io.BytesIO, file: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a compressed workbook that would fill the memory."""
    size = 0
    if zipfile.is_zipfile(stream):  # all but .xls
        with zipfile.ZipFile(stream) as packed:
            size = sum(part.file_size for part in packed.infolist())
    if size > LARGEST_WORKBOOK:
        most = f"{LARGEST_WORKBOOK >> 20} MiB"
        raise input_error(f"{file} unpacks to {size >> 20:,} MiB, more than {most}; save its sheet as CSV.")
    stream.seek(0)


def _value(cell: Any) -> Any:
    """Return the value of a cell: a text, a number or a boolean; None for an empty cell; ISO text for a time."""
    match cell:
        case "":
            return None
        case float():
            return int(cell) if cell.is_integer() else cell
        case dt.datetime():
            return cell.date().isoformat() if cell.time() == _MIDNIGHT else cell.isoformat(" ")
        case dt.date() | dt.time():
            return cell.isoformat()
        case dt.timedelta():
            return str(cell)
    return cell
