"""Sheets of workbooks as rows: `.xlsx`, `.xlsm`, `.xlsb`, `.xls` and `.ods`.

A sheet is read as a whole, because its parts are compressed XML and a cell may refer to any text of the workbook. The
first row with a value is the header, and the number of a row is its distance from the row below the header. For a
formula, the stored result is read; some programs write formulas without results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from promptmill.core import values
from promptmill.files.files import InputFiles
from promptmill.files.row import WHOLE, Column, Extent, InputRow, Stretch, Style, Window, numbered
from promptmill.files.sheet_reader import READER, Sheet

_AT_ONCE = 1024  # rows of a page


class SheetTable:
    """The rows of one sheet of each file, under one header. Columns with the same name stay separate."""

    def __init__(self, files: InputFiles) -> None:
        """Read the sheets. Raises `PromptmillError` (`invalid_input`)."""
        self._sheets = []
        known: dict[Column, None] = {}
        style = Style()
        for at, part in enumerate(files.parts):
            with files.stream(at, seekable=True) as stream:
                sheet = READER.read(stream, part.path.name, part.member, files.header_row)
            names = _named(sheet.header)
            own = {column: place for place, column in enumerate(numbered(names)) if column[0] not in files.without}
            self._sheets.append((sheet, own, part))
            known |= dict.fromkeys((*own, *numbered(part.columns)))
            style = _joined(style, sheet, [name if name not in files.without else "" for name in names])
        self.header_row = self._sheets[0][0].header_row + 1
        self._columns = list(known)
        self.header = [name for name, _ in known]
        self.style = style

    def header_at(self, row: int) -> Sequence[str]:
        """Return the columns that the first file would have with this row as its header; see `Headed`."""
        cells = self._sheets[0][0].rows[row - self.header_row - 1 : row - self.header_row]
        return (
            ["" if value is None else values.text_of(value) for value in values.loads(cells[0].encode())]
            if cells and cells[0]
            else []
        )

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`. A sheet is always read from the beginning."""
        del window
        before = 0
        for sheet, own, part in self._sheets:
            rows = sheet.rows
            taken = [(own.get(column), part.columns.get(column[0])) for column in self._columns]
            is_whole = [place for place, _ in taken] == [*range(len(own))]
            for first in range(0, len(rows), _AT_ONCE):
                input_rows = []
                for n, row in enumerate(rows[first : first + _AT_ONCE], before + first):
                    if row:
                        line = row.encode()
                        read = values.loads(line)
                        cells = [default if place is None else read[place] for place, default in taken]
                        if not is_whole or len(cells) != len(read):
                            line = values.dumps(cells)
                        input_rows.append(InputRow(n, line, {name: cells[place] for place, name in columns}))
                yield Stretch(input_rows, Extent(rows=len(rows[first : first + _AT_ONCE])))
            before += len(rows)


def _named(header: Sequence[str]) -> list[str]:
    """Return the names of the columns. A column without a name gets a name that no other column has.

    >>> _named(["id", "", "column_2"])
    ['id', 'column_2_', 'column_2']
    """
    names, used = [], set(header)  # a set, because a sheet may have 16,384 columns
    for at, name in enumerate(header, 1):
        new = name or f"column_{at}"
        while not name and new in used:
            new += "_"
        names.append(new)
    return names


def _joined(style: Style, sheet: Sheet, names: Sequence[str]) -> Style:
    """Return the joined style of the sheets so far and of `sheet`. `names`: the columns of `sheet`; `""` omits one."""

    def of(places: Iterable[int], earlier: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*earlier, *(names[at] for at in places if at < len(names) and names[at]))))

    return Style(
        sheet=sheet.name,
        header_row=sheet.header_row,
        uncomputed=of(sheet.uncomputed, style.uncomputed),
        above=(*style.above, *sheet.above),
        errors=of(sheet.errors, style.errors),
        merged=of(sheet.merged, style.merged),
        hidden=style.hidden + sheet.hidden,
        has_wide_header=style.has_wide_header or sheet.has_wide_header,
    )
