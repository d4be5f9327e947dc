"""Turns a page of a PDF before its text is read, if most of it reads from the top to the bottom of the displayed page.

pdfium sorts lines that stand beside each other from left to right. Lines that read downwards follow each other from
right to left, so their order would be reversed: the text would be no text, and no quote over two lines would be found.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

_SAMPLED = 200  # texts of a page, or of a form on it, that are looked at: 0.5 ms
_STRAIGHT = 0.98  # cosine of the largest angle (11 degrees) at which a text counts as running along an edge of the page
_DOWNWARDS = 3  # quarter turns against the clock from a text that reads from left to right


def turn(page: Any) -> None:
    """Turn this `pypdfium2.PdfPage` so that most of its texts are upright, if most of them read downwards."""
    from pypdfium2 import raw

    directions = Counter(_directions(page, raw.FPDFPage_CountObjects, raw.FPDFPage_GetObject, (1.0, 0.0, 0.0, 1.0)))
    for quarter, count in directions.most_common(1):
        if quarter is None or 2 * count <= directions.total():
            return
        if (quarter - page.get_rotation() // 90) % 4 == _DOWNWARDS:
            page.set_rotation(quarter * 90)


def _directions(
    holder: Any,
    count: Callable[[Any], int],
    get: Callable[[Any, int], Any],
    above: tuple[float, float, float, float],
) -> Iterator[int | None]:
    """Yield the directions of texts on a page, or in a form on it, in quarter turns against the clock; None for slanted
    text. `above`: the first four numbers of the form's matrix."""
    from pypdfium2 import raw

    size = count(holder)
    for at in range(0, size, 1 + size // _SAMPLED):
        each = get(holder, at)
        kind, own = raw.FPDFPageObj_GetType(each), raw.FS_MATRIX()
        if kind not in {raw.FPDF_PAGEOBJ_TEXT, raw.FPDF_PAGEOBJ_FORM}:
            continue
        raw.FPDFPageObj_GetMatrix(each, ctypes.byref(own))
        a, b, c, d = above
        x, y = own.a * a + own.b * c, own.a * b + own.b * d
        if kind == raw.FPDF_PAGEOBJ_FORM:
            matrix = x, y, own.c * a + own.d * c, own.c * b + own.d * d
            yield from _directions(each, raw.FPDFFormObj_CountObjects, raw.FPDFFormObj_GetObject, matrix)
        elif length := math.hypot(x, y):
            quarters = math.atan2(y, x) / (math.pi / 2)
            is_straight = max(abs(x), abs(y)) > _STRAIGHT * length
            yield round(quarters) % 4 if is_straight else None
