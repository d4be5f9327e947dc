"""Hides the texts of layers (optional content) that no viewer of a PDF shows, before the text of a page is read.

pdfium's text of a page has the texts of all layers, but its picture only has those that are on. So each layer of a page
is drawn alone on a small picture: a layer that leaves it white is off.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

_Drawn: TypeAlias = Any
"""A `FPDF_PAGEOBJECT`."""
_LAYER = "OC"  # the mark of optional content
_SIDE = 200  # pixels of the longer side: a letter of 10 points is two pixels high on A4; a picture takes 0.2 ms
_MOST_LAYERS = 200  # of a page, such as of a construction plan; the texts of further layers are read


def hide(page: Any) -> None:
    """Hide the texts of layers that are off, on this `pypdfium2.PdfPage` alone. Invisible texts of its other layers
    become black, which changes pictures of the page and not its text."""
    from pypdfium2 import raw

    drawn = [*_objects(page, raw.FPDFPage_CountObjects, raw.FPDFPage_GetObject)]
    layers: dict[str, list[_Drawn]] = {}
    for each, layer in drawn:
        if layer is not None and raw.FPDFPageObj_GetType(each) == raw.FPDF_PAGEOBJ_TEXT:
            layers.setdefault(layer, []).append(each)
    if not 0 < len(layers) <= _MOST_LAYERS:
        return
    everything = [each for each, _ in drawn]
    _show(everything, is_shown=False)
    off = [each for texts in layers.values() if not _is_on(page, texts) for each in texts]
    _show(everything, is_shown=True)
    _show(off, is_shown=False)


def _objects(
    holder: Any, count: Callable[[Any], int], get: Callable[[Any, int], _Drawn], above: str | None = None
) -> Iterator[tuple[_Drawn, str | None]]:
    """Yield the objects of a page or of a form on it, except forms, each with its layer; None: it is in no layer."""
    from pypdfium2 import raw

    for at in range(count(holder)):
        each = get(holder, at)
        layer = above if (own := _layer_of(each)) is None else own
        if raw.FPDFPageObj_GetType(each) == raw.FPDF_PAGEOBJ_FORM:
            yield from _objects(each, raw.FPDFFormObj_CountObjects, raw.FPDFFormObj_GetObject, layer)
        else:
            yield each, layer


def _layer_of(drawn: _Drawn) -> str | None:
    """Return the names of an object's layers."""
    from pypdfium2 import raw

    marks = [raw.FPDFPageObj_GetMark(drawn, at) for at in range(raw.FPDFPageObj_CountMarks(drawn))]
    own = [mark for mark in marks if _string(raw.FPDFPageObjMark_GetName, mark) == _LAYER]
    return "\n".join(_string(raw.FPDFPageObjMark_GetParamStringValue, mark, b"Name") for mark in own) if own else None


def _string(read: Callable[..., int], *arguments: object) -> str:
    """Return the string of a mark that a function of pdfium writes into a buffer; `""` for one that is very long."""
    buffer, size = (ctypes.c_ushort * 256)(), ctypes.c_ulong()
    if not read(*arguments, buffer, ctypes.sizeof(buffer), size):
        return ""
    return bytes(buffer)[: size.value].decode("utf-16-le", "replace").rstrip("\0")


def _is_on(page: Any, texts: Iterable[_Drawn]) -> bool:
    """Return whether these texts, alone and in black, leave a trace on the page."""
    from pypdfium2 import raw

    _show(texts, is_shown=True)
    for each in texts:  # a text may be invisible, such as one behind a scan
        raw.FPDFTextObj_SetTextRenderMode(each, raw.FPDF_TEXTRENDERMODE_FILL)
        raw.FPDFPageObj_SetFillColor(each, 0, 0, 0, 255)
    scale = _SIDE / max(*page.get_size(), 1.0)
    picture = page.render(scale=scale, grayscale=True, draw_annots=False, may_draw_forms=False).to_pil()
    _show(texts, is_shown=False)
    return bool(picture.getextrema()[0] < 255)


def _show(drawn: Iterable[_Drawn], *, is_shown: bool) -> None:
    from pypdfium2 import raw

    for each in drawn:
        raw.FPDFPageObj_SetIsActive(each, is_shown)
