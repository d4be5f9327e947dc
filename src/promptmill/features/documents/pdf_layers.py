"""Hides the texts of layers (optional content) that no viewer of a PDF shows, before the text of a page is read.

pdfium's text of a page has the texts of all layers, but its picture only has those that are on. So each layer of a page
is drawn alone on a small picture: a layer that leaves it white is off. A form (XObject) may name a layer itself, which
pdfium does not report. So if a file has such a form, each form counts as a layer of its own.
"""

from __future__ import annotations

import ctypes
import functools
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

_Drawn: TypeAlias = Any
"""A `FPDF_PAGEOBJECT`."""
_LAYER = "OC"  # the mark of optional content
_SIDE = 200  # pixels of the longer side: a letter of 10 points is two pixels high on A4; a picture takes 0.2 ms
_MOST_LAYERS = 200  # of a page, such as of a construction plan; the texts of further layers are read
_NAMING = re.compile(rb"/OC\s{0,9}(?=[\d<])")  # in the dictionary of a form, which is never compressed
_FORM = re.compile(rb"/Subtype\s{0,9}/Form\b")
_LONGEST_DICTIONARY = 4000  # bytes on each side that are searched for the rest of a form's dictionary


class _Object(NamedTuple):
    """A text, a picture or a path on a page."""

    drawn: _Drawn
    layer: str
    """The names of its layers; `""`: it is in no layer."""
    form: str
    """The form that contains it; `""`: it is in no form."""


def hide(page: Any) -> None:
    """Hide the texts of layers that are off, on this `pypdfium2.PdfPage` alone. Invisible texts of its other layers
    become black, which changes pictures of the page and not its text."""
    from pypdfium2 import raw

    objects = [*_objects(page, raw.FPDFPage_CountObjects, raw.FPDFPage_GetObject)]
    texts = [each for each in objects if raw.FPDFPageObj_GetType(each.drawn) == raw.FPDF_PAGEOBJ_TEXT]
    layers = _grouped((each.layer, each.drawn) for each in texts)
    if any(each.form for each in texts) and _has_form_of_layer(weakref.ref(page.pdf)):
        with_forms = _grouped((f"{each.layer} {each.form}".strip(), each.drawn) for each in texts)
        layers = with_forms if len(with_forms) <= _MOST_LAYERS else layers
    if not 0 < len(layers) <= _MOST_LAYERS:
        return
    everything = [each.drawn for each in objects]
    _show(everything, is_shown=False)
    off = [each for group in layers.values() if not _is_on(page, group) for each in group]
    _show(everything, is_shown=True)
    _show(off, is_shown=False)


def _grouped(texts: Iterable[tuple[str, _Drawn]]) -> dict[str, list[_Drawn]]:
    """Return the texts of each layer."""
    layers: dict[str, list[_Drawn]] = {}
    for layer, drawn in texts:
        if layer:
            layers.setdefault(layer, []).append(drawn)
    return layers


@functools.lru_cache(maxsize=1)
def _has_form_of_layer(document: Callable[[], Any]) -> bool:
    """Return whether a form names a layer itself. `document`: returns the document; the cache must not keep it open."""
    content = document()._input  # a private attribute, because pypdfium2 has no other way to the bytes
    for found in _NAMING.finditer(content):
        begin = max(0, found.start() - _LONGEST_DICTIONARY)
        around = bytes(content[begin : found.end() + _LONGEST_DICTIONARY])
        at = found.start() - begin
        end = around.find(b"stream", at)
        if _FORM.search(around, around.rfind(b" obj", 0, at) + 1, len(around) if end < 0 else end):
            return True
    return False


def _objects(
    holder: Any, count: Callable[[Any], int], get: Callable[[Any, int], _Drawn], above: str = "", form: str = ""
) -> Iterator[_Object]:
    """Yield the objects of a page, or of a form on it, except forms. `above`: the names of the form's layers."""
    from pypdfium2 import raw

    for at in range(count(holder)):
        each = get(holder, at)
        layer = f"{above}\n{_layer_of(each)}".strip()
        if raw.FPDFPageObj_GetType(each) == raw.FPDF_PAGEOBJ_FORM:
            inner = f"{form}/{at}"
            yield from _objects(each, raw.FPDFFormObj_CountObjects, raw.FPDFFormObj_GetObject, layer, inner)
        else:
            yield _Object(each, layer, form)


def _layer_of(drawn: _Drawn) -> str:
    """Return the names of an object's layers; `""` if it is in none."""
    from pypdfium2 import raw

    marks = [raw.FPDFPageObj_GetMark(drawn, at) for at in range(raw.FPDFPageObj_CountMarks(drawn))]
    own = [mark for mark in marks if _string(raw.FPDFPageObjMark_GetName, mark) == _LAYER]
    names = (_string(raw.FPDFPageObjMark_GetParamStringValue, mark, b"Name") for mark in own)
    return "\n".join(f"layer {name}" for name in names)  # a group of layers has no name


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
