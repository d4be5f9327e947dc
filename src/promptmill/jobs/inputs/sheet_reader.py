"""Reads sheets of workbooks with python-calamine in a separate process, which serves many workbooks.

**The attacker** is the author of a workbook. **The harm**: a file of a few kilobytes with a cell in the last corner of
the grid takes all memory, and damaged XML crashes the parser, which is written in Rust. Then the process is ended and
the workbook is reported as unreadable.

Messages to the process: `{"size": …, "file": …, "sheet": …}` followed by the `size` bytes of a workbook; then
`{"first": …}` for the rows from this index on. Replies: the fields of `Sheet`, then `{"rows": …}`; or `{"problem": …}`.

python-calamine reports no number formats, errors, hidden rows or formulas without a value. For an `.xlsx` file, a
second pass over the sheet's XML finds these.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime as dt
import io
import itertools
import os
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any, BinaryIO
from xml.parsers import expat

from promptmill.core import values
from promptmill.core.bounds import WORKBOOK_MEMORY
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.wording import did_you_mean, listed
from promptmill.jobs.inputs import xlsx
from promptmill.system import frames, subprocesses

_COMPUTING_S = 300.0  # of processor time: a workbook with 512 MiB of XML takes a minute
_REPLY_S = 900.0  # the limit of wall time, for a busy machine
_AT_ONCE = 4 << 20  # characters of rows in one message
_MIDNIGHT = dt.time()
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_MANIFEST = "META-INF/manifest.xml"
_PROTECTED = "{} is protected by a password; save a copy without one."
_FORMAT = re.compile(r"""\\(?P<letter>.)|"(?P<text>[^"]*)"|\[[$A-Z][^\[\]]*\]|_.|#+(?=0)|(?P<sign>.)""")
_DURATION = re.compile(r"(-?)PT(\d+)H(\d\d?)M(\d\d?)(?:[.,]0*)?S")  # of an .ods file, from 24 hours on
_AS_THEY_ARE = frozenset("-() ")
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
    above: list[str] = field(default_factory=list)
    """The texts above the header row that the user named."""
    rows: list[str] = field(default_factory=list)
    """The rows below the header, each as a JSON array; `""` for an empty row."""


class SheetReader:
    """Reads sheets in its child process, which the first call starts. Any thread may use it, one at a time."""

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
    """Return a sheet. `header_row`: the number of the header's row, from 1; 0: the first row with a value.

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
    rows = _rows(grid, look, is_ods=file.lower().endswith(".ods"))
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
        sorted({left for (top, left), (end, _) in grid.merged_cell_ranges or () if end > top and end in below}),
        sum(1 for row in look.hidden if row in below and texts[row - below.start]),
        [values.text_of(value) for cells in above for value in cells if value is not None],
        texts,
    )


def _rows(sheet: Any, look: _Look, *, is_ods: bool) -> Iterator[tuple[int, list[Any]]]:
    """Yield the index and the values of each row of a sheet. (`iter_rows` omits empty columns at the left.)"""
    _, left = sheet.start
    for row, cells in enumerate(sheet.iter_rows()):
        line = [None] * left + [_value(cell) for cell in cells]
        for column, text in enumerate(line) if is_ods else ():
            if isinstance(text, str) and (found := _DURATION.fullmatch(text)):
                line[column] = f"{found[1]}{int(found[2]):02}:{int(found[3]):02}:{int(found[4]):02}"
        for column, text in look.errors.get(row, {}).items():
            if column < len(line):
                line[column] = text
        for column in look.zeros.get(row, ()):
            if column < len(line):
                line[column] = None
        for column, mask in look.masked.get(row, {}).items():
            if column < len(line) and type(number := line[column]) is int and number >= 0:
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
                is_protected = b"encryption-data" in packed.read(_MANIFEST)  # in the manifest of .ods
    if is_protected:
        raise input_error(_PROTECTED.format(file))


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

    def __init__(
        self,
        masks: Mapping[str, Sequence[str]] | None = None,
        blocks: Iterable[bytes] = (),
        *,
        recalculates: bool = False,
    ) -> None:
        """`masks`: by cell style, the number formats that show leading zeros. `recalculates`: the workbook asks the
        program that opens it to compute all formulas."""
        self.errors: dict[int, dict[int, str]] = {}
        """Errors by row and column."""
        self.masked: dict[int, dict[int, Sequence[str]]] = {}
        """The formats with leading zeros, by row and column."""
        self.uncomputed: set[int] = set()
        self.zeros: dict[int, list[int]] = {}
        """The columns of formulas by row, if XlsxWriter has given all of the sheet the result 0."""
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
        elif word == "v" and (self._is_formula or self._kind == "e"):
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
            elif self._is_formula and not text and self._kind != "str":  # no value; the text of `str` may be empty
                self.uncomputed.add(self._column)
            elif self._is_formula and self._may_be_zeros:
                self._may_be_zeros = text == "0" and self._kind in {"", "n"}
                self.zeros.setdefault(self._row, []).append(self._column)


def _look_at(stream: IO[bytes], name: str) -> _Look:
    with zipfile.ZipFile(stream) as packed:
        if "[Content_Types].xml" not in packed.namelist():  # the archive of an .ods
            return _Look()
        parts = xlsx.parts_of(packed)
        part = next((sheet.part for sheet in parts.sheets if sheet.name == name), "")
        if not part.endswith(".xml"):  # a part of an .xlsb
            return _Look()
        data, masks = packed.read(part), _masks(packed, parts.styles)
        asked = [one.get("fullCalcOnLoad") for one in parts.tree if xlsx.local(one.tag) == "calcPr"]
    if b"<!DOCTYPE" in data:  # refused, because the parser reads entities of a DOCTYPE as nothing
        raise ValueError("its XML has a DTD, which no spreadsheet program writes")
    blocks = [data] if masks or any(mark in data for mark in _NOTED) else []
    return _Look(masks, blocks, recalculates=bool({"1", "true"} & {*asked}))


def _masks(packed: zipfile.ZipFile, part: str) -> dict[str, list[str]]:
    """Return the number formats that show leading zeros, such as 00000, by cell style."""
    if not part:
        return {}
    tree = xlsx.tree_of(packed, part)
    codes = {one.get("numFmtId"): one.get("formatCode", "") for one in xlsx.children(tree, "numFmts")}
    masks = {number: mask for number, code in codes.items() if (mask := _mask(code))}
    styles = enumerate(xlsx.children(tree, "cellXfs"))
    return {str(at): masks[number] for at, one in styles if (number := one.get("numFmtId")) in masks}


def _mask(code: str) -> list[str]:
    """Return the signs of a format of whole numbers with leading zeros, each `0` a digit; `[]` for any other format.

    >>> _mask("00000"), _mask('000\\\\-00'), _mask("0.00")
    (['0', '0', '0', '0', '0'], ['0', '0', '0', '\\\\-', '0', '0'], [])
    """
    signs: list[str] = []
    for match in _FORMAT.finditer(code.partition(";")[0]):
        if match["sign"] == "0":
            signs.append("0")
        elif match["sign"] is not None and match["sign"] not in _AS_THEY_ARE:
            return []
        else:
            signs += [f"\\{letter}" for letter in match["letter"] or match["text"] or match["sign"] or ""]
    return signs if signs.count("0") > 1 else []


def _masked(number: int, mask: Sequence[str]) -> str:
    """Return a number in the form that its format shows.

    >>> _masked(501, _mask("00000")), _masked(123456789, _mask("000-00-0000"))
    ('00501', '123-45-6789')
    """
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
    os.dup2(null, 2)  # hides the reason of a crash, which the parser prints and the parent reports
    modules = ("python_calamine",)
    subprocesses.serve_parent(_Reading().reply, _problem, modules, memory=WORKBOOK_MEMORY, computing_s=_COMPUTING_S)


if __name__ == "__main__":
    main()
