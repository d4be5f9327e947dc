"""PDF files with values at known places, which do not come from the library that reads them.

`written` writes a file of one layout. The place of a value follows from the font's own widths and heights, from the
matrix under which it is drawn, and from the rotation and the visible part of the page.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from reportlab.pdfbase.pdfmetrics import getAscentDescent, registerFont, stringWidth
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

Edges: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom, in points from the top left corner of the page as it is displayed."""
Matrix: TypeAlias = tuple[float, float, float, float, float, float]
FONTS = "Helvetica", "Times-Roman", "Courier", "Helvetica-Bold", "Vera"
WIDTH, HEIGHT = 612, 792
WORDS = ["amount", "delivery", "office", "parcel", "screws", "party", "agreed", "monthly", "notice", "window"]


class Value(NamedTuple):
    """A value of a file: its words as the page has them, and the places of its lines."""

    quote: str
    page: int
    lines: Sequence[Edges]


class Sheet:
    """A page that is drawn, and its values."""

    def __init__(self, canvas: Canvas, turn: int, crop: Edges, *, is_upright: bool) -> None:
        """`turn`: degrees clockwise. `crop`: left, bottom, right, top of the visible part. `is_upright`: whether what
        is drawn is upright on the turned page, as in a landscape page of a scanner or an office program."""
        self.canvas, self.turn, self.crop = canvas, turn, crop
        self.values: list[Value] = []
        left, bottom, right, top = crop
        self.height = right - left if is_upright and turn % 180 else top - bottom
        upright: dict[int, Matrix] = {
            0: (1, 0, 0, 1, left, bottom),
            90: (0, 1, -1, 0, right, bottom),
            180: (-1, 0, 0, -1, right, top),
            270: (0, -1, 1, 0, left, top),
        }
        self._base = upright[turn if is_upright else 0]
        canvas.setPageRotation(turn)
        canvas.setPageSize((HEIGHT, WIDTH) if turn % 180 else (WIDTH, HEIGHT))  # reportlab swaps them for such pages
        if crop != (0, 0, WIDTH, HEIGHT):
            canvas.setCropBox(crop)

    def draw(
        self, text: str, matrix: Matrix, font: str, size: float, value: str = "", space: float = 0.0
    ) -> list[Edges]:
        """Draw a text at the origin of a matrix. Return the place of `value`, a part of the text."""
        canvas = self.canvas
        canvas.saveState()
        canvas.transform(*self._base)
        canvas.transform(*matrix)
        drawn = canvas.beginText(0, 0)
        drawn.setFont(font, size)
        drawn.setCharSpace(space)
        drawn.textOut(text)
        canvas.drawText(drawn)
        canvas.restoreState()
        if not value:
            return []
        before = text[: text.index(value)]
        left = stringWidth(before, font, size) + space * len(before)
        right = left + stringWidth(value, font, size) + space * (len(value) - 1)
        above, below = getAscentDescent(font, size)
        return [self.shown(matrix, left, below, right, above)]

    def shown(self, matrix: Matrix, left: float, bottom: float, right: float, top: float) -> Edges:
        """Return a rectangle of a matrix on the page as it is displayed."""
        corners = [(x, y) for x in (left, right) for y in (bottom, top)]
        for a, b, c, d, e, f in (matrix, self._base):
            corners = [(a * x + c * y + e, b * x + d * y + f) for x, y in corners]
        low_x, low_y, high_x, high_y = self.crop
        turned: dict[int, Callable[[float, float], tuple[float, float]]] = {
            0: lambda x, y: (x - low_x, high_y - y),
            90: lambda x, y: (y - low_y, x - low_x),
            180: lambda x, y: (high_x - x, y - low_y),
            270: lambda x, y: (high_y - y, high_x - x),
        }
        points = [turned[self.turn](*corner) for corner in corners]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return min(xs), min(ys), max(xs), max(ys)


def at(x: float, y: float, scale: float = 1.0) -> Matrix:
    """Return the matrix that moves to a point and scales."""
    return scale, 0, 0, scale, x, y


def _filler(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(count))


def _amount(chance: random.Random, number: int) -> str:
    kinds = (f"EUR {number:,}.{chance.randrange(100):02}", f"No. {number}-{chance.randrange(1000)}", f"{number} kg")
    return f"{chance.choice(kinds)}"


def plain(sheet: Sheet, chance: random.Random, numbers: Sequence[int]) -> None:
    """A value in each of some lines, in several fonts and sizes."""
    for row, number in enumerate(numbers):
        font, size, value = chance.choice(FONTS), chance.uniform(6, 20), _amount(chance, number)
        text = f"{_filler(chance, 2)} {value} {_filler(chance, 1)}"
        lines = sheet.draw(text, at(50, sheet.height - 60 - 60 * row), font, size, value)
        sheet.values.append(Value(value, 0, lines))


def matrices(sheet: Sheet, chance: random.Random, numbers: Sequence[int]) -> None:
    """Text that is scaled, turned by a quarter, or spaced out."""
    for row, number in enumerate(numbers):
        font, value, x, y = chance.choice(FONTS), _amount(chance, number), 150 + 60 * row, 300.0
        kind = chance.choice(["scaled", "left", "right", "down", "spaced"])
        matrix = {
            "scaled": (2.0, 0, 0, 1.2, 72.0, 100.0 + 30 * row),
            "left": (0, 1.0, -1.0, 0, x, y),
            "right": (0, -1.0, 1.0, 0, x, y + 200),
            "down": (-1.0, 0, 0, -1.0, 500.0, 400.0 + 30 * row),
            "spaced": at(72, 100 + 30 * row),
        }[kind]
        lines = sheet.draw(f"sum {value} due", matrix, font, 11, value, space=1.5 if kind == "spaced" else 0.0)
        sheet.values.append(Value(value, 0, lines))


def columns(sheet: Sheet, chance: random.Random, numbers: Sequence[int]) -> None:
    """Two columns of lines, one after the other; a value goes on in the next line."""
    half = len(numbers) // 2
    for x, own in ((60, numbers[:half]), (330, numbers[half:])):
        y = sheet.height - 60
        for number in own:
            first, second = f"total {number}", f"{chance.choice(WORDS)} net"
            lines = [
                *sheet.draw(f"{_filler(chance, 2)} {first}", at(x, y), "Times-Roman", 11, first),
                *sheet.draw(f"{second} {_filler(chance, 2)}", at(x, y - 13), "Times-Roman", 11, second),
            ]
            sheet.draw(_filler(chance, 4), at(x, y - 26), "Times-Roman", 11)
            sheet.values.append(Value(f"{first} {second}", 0, lines))
            y -= 60


def hyphens(sheet: Sheet, chance: random.Random, numbers: Sequence[int]) -> None:
    """A word that is divided at the end of a line."""
    for row, number in enumerate(numbers):
        y, font = sheet.height - 60 - 80 * row, chance.choice(FONTS[:4])
        first, second = f"{number} inter-", "national calls"
        lines = [
            *sheet.draw(f"{_filler(chance, 3)} {first}", at(72, y), font, 12, first),
            *sheet.draw(f"{second} {_filler(chance, 2)}", at(72, y - 15), font, 12, second),
        ]
        sheet.values.append(Value(f"{number} international calls", 0, lines))


LAYOUTS: Sequence[Callable[[Sheet, random.Random, Sequence[int]], None]] = (plain, matrices, columns, hyphens)
CROPS: Sequence[Edges] = ((0, 0, WIDTH, HEIGHT), (30, 40, 590, 760))


def written(path: Path, seed: int, values: int = 5) -> list[Value]:
    """Write a file with a page without values, and a page with this number of values. Return these."""
    if seed % 5 == 4:
        return _with_ligatures(path, seed, values)
    registerFont(TTFont("Vera", "Vera.ttf"))
    chance = random.Random(seed)
    canvas = Canvas(str(path), (WIDTH, HEIGHT), pageCompression=chance.randrange(2))
    canvas.drawString(72, 720, _filler(chance, 6))
    canvas.showPage()
    draw = LAYOUTS[seed % 5]
    is_upright = chance.random() < 0.5
    sheet = Sheet(canvas, chance.choice([0, 90, 180, 270]), chance.choice(CROPS), is_upright=is_upright)
    draw(sheet, chance, [1000 * seed + 37 * each + 100 for each in range(values)])
    canvas.showPage()
    canvas.save()
    return [value._replace(page=2) for value in sheet.values]


def _with_ligatures(path: Path, seed: int, values: int) -> list[Value]:
    """Write a file whose font has ligatures: one glyph that a table maps to several letters. Its origin is not 0."""
    chance, shown, drawn = random.Random(seed), list[Value](), list[str]()
    size, x, left, bottom = chance.uniform(8, 14), 80.0, -20.0, 15.0
    ligature = 0.5 * size  # the width of the glyph fi in Helvetica
    above, below = getAscentDescent("Helvetica", size)
    for row in range(values):
        y = 700.0 - 40 * row
        before, words = f"{_filler(chance, 2)} ", f"of\001ce {1000 * seed + row}"
        drawn.append(f"BT /F1 {size} Tf 1 0 0 1 {x} {y} Tm ({before}{words} and more) Tj ET")
        start = x + stringWidth(before, "Helvetica", size)
        end = start + stringWidth(words.replace("\001", ""), "Helvetica", size) + ligature
        top = bottom + HEIGHT
        line = start - left, top - y - above, end - left, top - y - below
        shown.append(Value(words.replace("\001", "fi"), 1, [line]))
    table = "1 beginbfchar <01> <00660069> endbfchar"
    path.write_bytes(pdf_of_parts("\n".join(drawn), table, (left, bottom, left + WIDTH, bottom + HEIGHT)))
    return shown


def pdf_of_parts(content: str, table: str, box: Edges) -> bytes:
    """Return a PDF of one page: its content, the table from the glyphs of font F1 to characters, and its media box."""
    font = (
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 5 0 R/Encoding"
        "<</Type/Encoding/BaseEncoding/WinAnsiEncoding/Differences[1/fi]>>>>"
    )
    codes = "1 begincodespacerange <00> <FF> endcodespacerange"
    cmap = f"/CIDInit /ProcSet findresource begin begincmap /CMapType 2 def {codes} {table} endcmap end"
    edges = " ".join(map(str, box))
    streams = [f"<</Length {len(text)}>>stream\n{text}\nendstream" for text in (content, cmap)]
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        f"<</Type/Page/Parent 2 0 R/MediaBox[{edges}]/Contents 4 0 R/Resources<</Font<</F1 {font}>>>>>>",
        *streams,
    ]
    written, places = b"%PDF-1.7\n", list[int]()
    for number, body in enumerate(objects, 1):
        places.append(len(written))
        written += f"{number} 0 obj{body}endobj\n".encode("latin-1")
    lines = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{lines}"
    return written + f"{head}trailer<</Root 1 0 R/Size {len(objects) + 1}>>\nstartxref\n{len(written)}\n%%EOF".encode()


def overlap(one: Edges, other: Edges) -> float:
    """Return the shared area of two rectangles, as a part of the area that they cover together."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    area = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (one, other))
    return shared / (area - shared)
