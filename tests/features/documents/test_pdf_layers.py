"""Layers of PDFs: those that are off are no text of the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pypdfium2
import pytest

from promptmill.core.request import FilePart
from promptmill.features.documents import pdf_layers
from promptmill.features.sources.boxes import PdfText, with_boxes
from promptmill.features.sources.pdf_text import pdf_text
from promptmill.images.load import ImageRules


def text(height: int, words: str, style: str = "") -> str:
    return f"BT {style} /F1 12 Tf 1 0 0 1 72 {height} Tm ({words}) Tj ET "


def in_layer(name: str, content: str) -> str:
    return f"/OC /{name} BDC {content} EMC "


def layered(
    content: str,
    forms: Mapping[str, str] | None = None,
    layers: Sequence[str] = ("On", "Off"),
    of: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Return a PDF of one page with layers, of which `Off` is off. `forms`: contents that `/NAME Do` draws. `of`: the
    layers that forms name themselves."""
    forms, place = forms or {}, 6 + len(layers)
    numbers = {name: f"{at} 0 R" for at, name in enumerate(layers, 6)}
    named = " ".join(f"/{name} {number}" for name, number in numbers.items())
    drawn = " ".join(f"/{name} {at} 0 R" for at, name in enumerate(forms, place))
    resources = f"/Resources<</Font<</F1 5 0 R>>/Properties<<{named}>>/XObject<<{drawn}>>>>"
    every = " ".join(numbers.values())
    form = "<</Type/XObject/Subtype/Form/BBox[0 0 595 842]"
    named_by = {name: f"/OC {numbers[layer]}" for name, layer in of.items()}
    objects = [
        f"<</Type/Catalog/Pages 2 0 R/OCProperties<</OCGs[{every}]/D<</OFF[{numbers['Off']}]>>>>>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R{resources}>>",
        f"<</Length {len(content)}>>stream\n{content}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *[f"<</Type/OCG/Name({name})>>" for name in layers],
        *[
            f"{form}{resources}{named_by.get(name, '')}/Length {len(each)}>>stream\n{each}\nendstream"
            for name, each in forms.items()
        ],
    ]
    body = "".join(f"{number} 0 obj{each}\nendobj\n" for number, each in enumerate(objects, 1))
    return f"%PDF-1.7\n{body}trailer<</Root 1 0 R/Size {len(objects) + 1}>>\n%%EOF".encode("latin-1")


@pytest.mark.parametrize(
    ("content", "forms", "shown"),
    [
        (text(700, "plain") + in_layer("On", text(680, "on")) + in_layer("Off", text(660, "off")), {}, "plain on"),
        (in_layer("Off", "/X Do") + "/Y Do ", {"X": text(600, "x"), "Y": text(580, "y")}, "y"),
        ("/X Do ", {"X": text(600, "x") + in_layer("Off", text(580, "off")) + in_layer("On", text(560, "on"))}, "x on"),
        (in_layer("On", text(680, "scan", "3 Tr")) + in_layer("Off", text(660, "off", "3 Tr")), {}, "scan"),
        (in_layer("On", text(680, "white", "1 1 1 rg")), {}, "white"),
        (in_layer("On", text(700, "a") + in_layer("Off", text(680, "b"))), {}, "a"),
        (f"/P <</MCID 0>> BDC {text(700, 'tagged')} EMC ", {}, "tagged"),
    ],
    ids=["layers", "form in a layer", "layers in a form", "invisible", "white", "nested", "tagged"],
)
def test_texts_of_layers_that_are_off_are_hidden(content, forms, shown):
    page = pypdfium2.PdfDocument(layered(content, forms))[0]
    pdf_layers.hide(page)
    assert page.get_textpage().get_text_range().split() == shown.split()


@pytest.mark.parametrize(
    ("content", "forms", "of", "shown"),
    [
        ("/X Do /Y Do ", {"X": text(600, "x"), "Y": text(580, "y")}, {"X": "Off", "Y": "On"}, "y"),
        ("/X Do ", {"X": text(600, "x") + "/Y Do ", "Y": text(580, "y")}, {"X": "Off"}, ""),
        ("/X Do ", {"X": text(600, "x") + "/Y Do ", "Y": text(580, "y")}, {"Y": "Off"}, "x"),
        (in_layer("On", "/X Do /Y Do"), {"X": text(600, "x"), "Y": text(580, "y", "3 Tr")}, {"X": "Off"}, "y"),
        (in_layer("Off", "/X Do") + in_layer("On", text(500, "z")), {"X": in_layer("On", text(600, "x"))}, {}, "z"),
        ("/X Do ", {"X": text(600, "x") + text(-50, "far")}, {}, "x far"),
    ],
    ids=["form", "form in a form that is off", "form that is off", "in a layer that is on", "layers", "no layers"],
)
def test_texts_of_forms_whose_own_layer_is_off_are_hidden(content, forms, of, shown):
    document = pypdfium2.PdfDocument(layered(content + text(700, "plain"), forms, of=of))
    pdf_layers.hide(page := document[0])
    assert sorted(page.get_textpage().get_text_range().split()) == sorted(f"{shown} plain".split())


def test_each_of_many_layers_is_looked_at():
    names = ["Off", *(f"Layer{number}" for number in range(99))]
    content = "".join(in_layer(name, text(800 - 7 * at, name)) for at, name in enumerate(names))
    page = pypdfium2.PdfDocument(layered(content, layers=names))[0]
    pdf_layers.hide(page)
    assert page.get_textpage().get_text_range().split() == names[1:]


def test_a_quote_behind_a_hidden_text_has_its_box(tmp_path: Path):
    path = tmp_path / "a.pdf"
    content = in_layer("Off", text(720, "Total: 99")) + text(700, "Total: 80") + "/X Do "
    path.write_bytes(layered(content, {"X": text(740, "Total: 70")}, of={"X": "Off"}))
    part, rules = FilePart(str(path), "pdf"), ImageRules()
    known = pdf_text(part, rules)
    assert known == "Total: 80"
    (source,) = with_boxes([{"quote": known, "start": 0, "end": 9}], PdfText(known), part, rules)
    assert [(box["page"], box["left"]) for box in source["box"]] == [(1, 72)]
