"""Finds the words of quotes on the pages of a PDF, in the child process of `images/pdf.py`.

    the page's text          pdfium's text                    pdfium's characters        boxes
    "inter-\\nnational"   ◀─  "inter" U+FFFE "national"   ◀─   a rectangle for each   ─▶  one for each line

promptmill sends pdfium's text with some characters replaced, so each character of the sent text has an origin in
pdfium's text. The characters of a ligature share a rectangle. Spaces and line ends have no rectangle.
"""

from __future__ import annotations

import ctypes
import functools
import io
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from promptmill.images import pdf

QuoteOnPage: TypeAlias = tuple[int, int, str]
"""The number of a page, the number of the quote's first character in the page's text, and the quote's words."""
_STRAIGHT = 0.98  # cosine of the largest angle (11 degrees) at which a text counts as running along an edge of the page
_TALLEST = 0.95  # height from h's top to p's foot, in multiples of the font size; fonts reserve up to 1.3
_SHADES = 8  # shades of grey: a page of small print, 1,000 pixels long, takes 37 KB, instead of 145 KB as a JPEG
_DECIMALS = 1  # decimals of a point: a tenth of a point is 0.04 mm


class Rectangle(NamedTuple):
    """A rectangle in points."""

    left: float
    top: float
    right: float
    bottom: float

    def around(self, other: Rectangle) -> Rectangle:
        """Return the smallest rectangle that contains both rectangles."""
        left, top = min(self.left, other.left), min(self.top, other.top)
        return Rectangle(left, top, max(self.right, other.right), max(self.bottom, other.bottom))


class _Letter(NamedTuple):
    """A character on a page as it is displayed."""

    box: Rectangle
    across: bool
    """Whether the character's text runs along the upper edge of the page, forwards or backwards."""
    down: bool
    """Whether the character's text runs along the left edge of the page, downwards or upwards."""

    def continues(self, line: Rectangle) -> bool:
        """Return whether the character is at a line's height. True for slanted text, which only line ends divide."""
        if self.across:
            return line.top < self.box.bottom and self.box.top < line.bottom
        return not self.down or (line.left < self.box.right and self.box.left < line.right)


def boxes(document: Any, question: Mapping[str, Any]) -> dict[str, Any]:
    """Return `boxes`: for each of the `quotes`, a rectangle per line; `[]` if the page does not have the quote there.

    `document`: a `pypdfium2.PdfDocument`. `quotes`: each a `QuoteOnPage`.
    """
    quotes: Sequence[QuoteOnPage] = question["quotes"]
    found: list[list[tuple[float, ...]]] = [[] for _ in quotes]
    opened: _PageText | None = None
    try:
        for at, (number, start, words) in sorted(enumerate(quotes), key=lambda each: each[1][0]):
            if not 1 <= number <= len(document):
                continue
            if opened is None or opened.number != number:
                if opened is not None:
                    opened.close()
                opened = _PageText(document, number)
            found[at] = [*map(tuple, opened.lines(start, words))]
    finally:
        if opened is not None:
            opened.close()
    return {"boxes": found}


def pictures(document: Any, question: Mapping[str, Any]) -> dict[str, Any]:
    """Return `pictures`, one for each of the `pages` (from 1) that the document has: the page's number, its width and
    height in points, a grey PNG in base64 whose longer side has `side` pixels, and the page's text."""
    import base64

    found = []
    for number in question["pages"]:
        if 1 <= number <= len(document):
            page = document[number - 1]
            width, height = page.get_size()
            image = page.render(scale=question["side"] / max(width, height, 1.0), grayscale=True).to_pil()
            layer = pdf.text_layer(page)
            text, _ = mapped(layer.get_text_range())
            layer.close()
            page.close()
            made = io.BytesIO()
            image.quantize(_SHADES).save(made, "PNG")
            png = base64.b64encode(made.getvalue()).decode()
            found.append((number, round(width, _DECIMALS), round(height, _DECIMALS), png, text))
    return {"pictures": found}


class _PageText:
    """A page, its text, and the origins of the text's characters in pdfium's text."""

    def __init__(self, document: Any, number: int) -> None:
        self.number = number
        self._page = document[number - 1]
        self._layer = pdf.text_layer(self._page)
        self._raw = self._layer.get_text_range()
        self._text, self._origins = mapped(self._raw)
        self._heights: dict[int, float] = {}

    def close(self) -> None:
        """Close the page."""
        self._layer.close()
        self._page.close()

    @functools.cached_property
    def _is_wide(self) -> bool:
        """Whether a character of the page counts as two in pdfium."""
        return max(self._raw, default="") > "\uffff"

    @functools.cached_property
    def _shown(self) -> _Shown:
        return _Shown.of(self._page)

    def lines(self, start: int, words: str) -> Iterator[Rectangle]:
        """Yield the rectangle of each line of `words`, which begin at the character `start` of the page's text.

        For a line of a form field, a stamp or a text typed onto the page, yield the rectangle of the annotation.

        Yield nothing if the page lacks them, because the file has changed.
        """
        end = start + len(words)
        if self._text.startswith(words, start):
            yield from self._in_layer(start, end)
            return
        for text in (self._text, ""):  # a text layer without a meaning is not sent
            if not "\n".join(filter(None, [text, *self._annotations])).startswith(words, start):
                continue
            yield from self._in_layer(start, min(end, len(text)))
            at = len(text) + 1 if text else 0
            for line, place in self._annotations.items():
                if at < end and start < at + len(line):
                    yield from self._shown.rounded(
                        self._shown.on_page(place.left, place.bottom, place.right, place.top)
                    )
                at += len(line) + 1
            return

    @functools.cached_property
    def _annotations(self) -> Mapping[str, Any]:
        lines, _ = pdf.annotated(self._page)
        return lines

    def _in_layer(self, start: int, end: int) -> Iterator[Rectangle]:
        """Yield the rectangle of each line of the characters `start` to `end - 1` of the text layer."""
        line: Rectangle | None = None
        last = -1
        for origin in self._origins[start:end]:
            if origin == last:  # the line end that follows a hyphen
                continue
            last, sign = origin, self._raw[origin]
            letter = None if sign.isspace() else self._letter(origin)
            if line is not None and (sign in "\r\n" or (letter is not None and not letter.continues(line))):
                yield from self._shown.rounded(line)
                line = None
            if letter is not None:
                line = letter.box if line is None else line.around(letter.box)
        if line is not None:
            yield from self._shown.rounded(line)

    def _letter(self, origin: int) -> _Letter | None:
        """Return a character of pdfium's text; None for a character without extent."""
        from pypdfium2 import raw

        if self._is_wide:
            origin = len(self._raw[:origin].encode("utf-16-le")) // 2
        at, found = raw.FPDFText_GetCharIndexFromTextIndex(self._layer, origin), raw.FS_RECTF()
        if at < 0 or not raw.FPDFText_GetLooseCharBox(self._layer, at, found) or found.right <= found.left:
            return None
        left, bottom, right, top = found.left, found.bottom, found.right, found.top
        angle = raw.FPDFText_GetCharAngle(self._layer, at)
        across, down = abs(math.cos(angle)) > _STRAIGHT, abs(math.sin(angle)) > _STRAIGHT
        height = self._height(at) / _TALLEST if across or down else 1.0
        if height > 1:
            x, y = self._origin_of(at)
            if across:
                bottom, top = y + (bottom - y) / height, y + (top - y) / height
            else:
                left, right = x + (left - x) / height, x + (right - x) / height
        if self._shown.is_turned:
            across, down = down, across
        return _Letter(self._shown.on_page(left, bottom, right, top), across, down)

    def _origin_of(self, at: int) -> tuple[float, float]:
        from pypdfium2 import raw

        x, y = ctypes.c_double(), ctypes.c_double()
        raw.FPDFText_GetCharOrigin(self._layer, at, x, y)
        return x.value, y.value

    def _height(self, at: int) -> float:
        """Return the height of a line in the font of a character, as a multiple of the font size."""
        from pypdfium2 import raw

        if not (drawn := raw.FPDFText_GetTextObject(self._layer, at)) or not (font := raw.FPDFTextObj_GetFont(drawn)):
            return 1.0
        key = ctypes.cast(font, ctypes.c_void_p).value or 0
        if key not in self._heights:
            above, below = ctypes.c_float(), ctypes.c_float()
            raw.FPDFFont_GetAscent(font, 1000.0, above)
            raw.FPDFFont_GetDescent(font, 1000.0, below)
            self._heights[key] = (above.value - below.value) / 1000
        return self._heights[key]


class _Shown(NamedTuple):
    """The visible rectangle of a page and its rotation."""

    left: float
    bottom: float
    right: float
    top: float
    turns: int
    """The number of quarter turns clockwise."""

    @classmethod
    def of(cls, page: Any) -> _Shown:
        left, bottom, right, top = page.get_bbox()
        return cls(left, bottom, right, top, page.get_rotation() // 90 % 4)

    @property
    def is_turned(self) -> bool:
        """Whether the page is displayed on its side."""
        return self.turns % 2 == 1

    @property
    def size(self) -> tuple[float, float]:
        """The width and height of the displayed page."""
        width, height = self.right - self.left, self.top - self.bottom
        return (height, width) if self.is_turned else (width, height)

    def on_page(self, left: float, bottom: float, right: float, top: float) -> Rectangle:
        """Convert a rectangle from the page's own coordinates to points from the displayed page's top left corner."""
        match self.turns:
            case 0:
                return Rectangle(left - self.left, self.top - top, right - self.left, self.top - bottom)
            case 1:
                return Rectangle(bottom - self.bottom, left - self.left, top - self.bottom, right - self.left)
            case 2:
                return Rectangle(self.right - right, bottom - self.bottom, self.right - left, top - self.bottom)
            case _:
                return Rectangle(self.top - top, self.right - right, self.top - bottom, self.right - left)

    def rounded(self, box: Rectangle) -> Iterator[Rectangle]:
        """Yield the visible part of a rectangle, if there is one."""
        width, height = self.size
        left, top = max(0.0, box.left), max(0.0, box.top)
        right, bottom = min(width, box.right), min(height, box.bottom)
        if left < right and top < bottom:
            yield Rectangle(*(round(each, _DECIMALS) for each in (left, top, right, bottom)))


def mapped(raw: str) -> tuple[str, Sequence[int]]:
    """Return the page's text, made from pdfium's text `raw`, and the position in `raw` of each character's origin.

    >>> text, origins = mapped(" a\\r\\nb")
    >>> text, [*origins]
    ('a\\nb', [1, 2, 4])
    """
    texts, origins, end = list[str](), array("I"), 0
    for match in pdf.REPLACED.finditer(raw):
        replacement = pdf.REPLACEMENTS[match[0]]
        texts += raw[end : match.start()], replacement
        origins.extend(range(end, match.start()))
        origins.extend([match.start()] * len(replacement))
        end = match.end()
    texts.append(raw[end:])
    origins.extend(range(end, len(raw)))
    text = "".join(texts)
    start = len(text) - len(text.lstrip())
    return text.strip(), origins[start:]
