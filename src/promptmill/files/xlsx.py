"""The parts of an .xlsx file. It is a ZIP archive of XML files; one of them lists the sheets."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import ascii_letters
from typing import IO, NamedTuple
from xml.etree import ElementTree as ET
from xml.parsers import expat

from promptmill.core.bounds import LARGEST_WORKBOOK
from promptmill.core.errors import PromptmillError, input_error

LETTERS = 26
Element = ET.Element


class SheetEntry(NamedTuple):
    """A sheet of a workbook."""

    name: str
    part: str
    """The path of the sheet's XML in the archive."""


class Parts(NamedTuple):
    """The parts of a workbook."""

    book: str
    """The path of the XML that lists the sheets."""
    sheets: list[SheetEntry]
    styles: str
    """The path of the formats of cells; `""` if the workbook has none."""
    texts: str
    """The path of the texts that cells refer to; `""` if the workbook has none."""
    tree: Element
    """The XML at `book`."""


@contextmanager
def opened(stream: IO[bytes] | Path, file: str) -> Iterator[zipfile.ZipFile]:
    """Open a workbook. Convert every reading error in the `with` block to a `PromptmillError` (`invalid_input`)."""
    try:
        with zipfile.ZipFile(stream) as packed:
            check_size(packed, file)
            yield packed
    except (zipfile.BadZipFile, ET.ParseError, expat.ExpatError, ValueError, NotImplementedError, EOFError):
        raise unreadable(file) from None
    except (KeyError, StopIteration, RuntimeError):  # a part is missing, or is encrypted
        raise unreadable(file) from None


def unreadable(file: str) -> Exception:
    """Return the error for a damaged workbook."""
    return input_error(f"{file} cannot be read: it is damaged, or no workbook; open it in Excel and save it again.")


def check_size(packed: zipfile.ZipFile, file: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a compressed workbook that would fill the memory."""
    size = sum(part.file_size for part in packed.infolist())
    if size > LARGEST_WORKBOOK:
        most = f"{LARGEST_WORKBOOK >> 20} MiB"
        raise input_error(f"{file} unpacks to {size >> 20:,} MiB, more than {most}; save its sheet as CSV.")


def parts_of(packed: zipfile.ZipFile) -> Parts:
    """Return the parts of a workbook. Raises errors that `opened` converts."""
    (book,) = [target for kind, target in related(packed, "").values() if kind == "officeDocument"]
    others = related(packed, book)
    tree = tree_of(packed, book)
    sheets = [SheetEntry(one.attrib["name"], others[id_of(one)][1]) for one in children(tree, "sheets")]
    first = dict(reversed(others.values()))
    return Parts(book, sheets, first.get("styles", ""), first.get("sharedStrings", ""), tree)


def sheet_names(file: Path) -> Sequence[str]:
    """Return the names of the sheets of an .xlsx file. Raises `PromptmillError` (`invalid_input`)."""
    with opened(file, file.name) as packed:
        return [sheet.name for sheet in parts_of(packed).sheets]


def stamp(file: Path, sheet: str) -> tuple[int, int] | None:
    """Return the size and the checksum of a sheet and of the workbook's texts; None if `file` has no such sheet."""
    try:
        with opened(file, file.name) as packed:
            parts = parts_of(packed)
            named = [each.part for each in parts.sheets if each.name == sheet]
            if not named:
                return None
            members = [packed.getinfo(part) for part in (*named, parts.texts) if part]
    except PromptmillError:
        return None
    checksum = 0
    for member in members:
        checksum = checksum << 32 | member.CRC
    return sum(member.file_size for member in members), checksum


def tree_of(packed: zipfile.ZipFile, part: str) -> Element:
    """Return the XML of a part. Raises errors that `opened` converts."""
    *_, root = elements_of(packed, part)
    return root


def elements_of(packed: zipfile.ZipFile, part: str) -> Iterator[Element]:
    """Yield each element of a part once its end is read, so the root comes last. Raises the errors of `tree_of`."""
    with packed.open(part) as stream:
        for _, element in ET.iterparse(stream):  # noqa: S314 (expat limits the growth of entities)
            yield element


def rels_of(part: str) -> str:
    """Return the path of the relationships of a part.

    >>> rels_of("xl/workbook.xml"), rels_of("")
    ('xl/_rels/workbook.xml.rels', '_rels/.rels')
    """
    folder, name = posixpath.split(part)
    return posixpath.join(folder, "_rels", f"{name}.rels")


def related(packed: zipfile.ZipFile, part: str) -> dict[str, tuple[str, str]]:
    """Return the last word of the type, and the path, of each part that `part` refers to, by relationship id.

    Raises errors that `opened` converts.
    """
    folder = posixpath.dirname(part)
    return {
        one.attrib["Id"]: (
            posixpath.basename(one.attrib["Type"]),
            posixpath.normpath(posixpath.join("/", folder, one.attrib["Target"])).lstrip("/"),
        )
        for one in tree_of(packed, rels_of(part))
        if one.get("TargetMode") != "External"
    }


def id_of(sheet: Element) -> str:
    """Return the id of the relationship from the workbook to a sheet."""
    return sheet.attrib[id_name(sheet)]


def id_name(sheet: Element) -> str:
    """Return the name, with its namespace, of the attribute that `id_of` reads."""
    return next(name for name in sheet.attrib if name.endswith("}id"))


def local(name: str) -> str:
    """Return the name of an element without its namespace, which ElementTree and expat write before the name.

    >>> local("{urn:a}row"), local("x:row")
    ('row', 'row')
    """
    return name.rpartition("}")[2].rpartition(":")[2]


def children(tree: Element, name: str) -> list[Element]:
    """Return the children of the elements `name` of a tree, in any namespace."""
    return [child for one in tree.iter() if local(one.tag) == name for child in one]


def number_formats(packed: zipfile.ZipFile, part: str) -> tuple[dict[str, str], list[str]]:
    """Return the codes of a workbook's own number formats by their numbers, and the number of each cell style. `part`:
    the path of the styles, or `""`."""
    if not part:
        return {}, []
    tree = tree_of(packed, part)
    codes = {one.get("numFmtId", ""): one.get("formatCode", "") for one in children(tree, "numFmts")}
    return codes, [one.get("numFmtId", "") for one in children(tree, "cellXfs")]


def text_in(item: Element) -> str:
    """Return the text of a cell or of a shared text, without its phonetic guide."""
    pieces = []
    for one in item:
        match local(one.tag):
            case "t" | "v":
                pieces.append(one.text or "")
            case "r" | "is":
                pieces.append(text_in(one))
    return "".join(pieces)


def column_of(reference: str) -> int:
    """Return the index of the column in the reference of a cell.

    >>> column_of("A1"), column_of("AB17")
    (0, 27)
    """
    index = 0
    for letter in reference.rstrip("0123456789"):
        index = index * LETTERS + ord(letter.upper()) - ord("@")
    return index - 1


def row_of(reference: str) -> int:
    """Return the index of the row in the reference of a cell.

    >>> row_of("A1"), row_of("AB17")
    (0, 16)
    """
    return int(reference.lstrip(ascii_letters)) - 1


def letters_of(column: int) -> str:
    """Return the letters of the column with this index.

    >>> letters_of(0), letters_of(27)
    ('A', 'AB')
    """
    letters, rest = "", column + 1
    while rest:
        rest, last = divmod(rest - 1, LETTERS)
        letters = chr(ord("A") + last) + letters
    return letters
