"""The boxes of quotes on the pages of PDFs."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

from pdf_files import pages_of, pdf_of_texts
from placed_values import Sheet, Value, overlap, pdf_of_parts, written
from promptmill.core.request import FilePart
from promptmill.features.sources import page_turns
from promptmill.features.sources.boxes import PdfText, with_boxes
from promptmill.features.sources.page_pictures import page_pictures
from promptmill.features.sources.pdf_text import pdf_text
from promptmill.features.sources.searched_text import Text
from promptmill.images.load import ImageRules
from promptmill.system.call_files import FileRule
from replies import answer, choose

ASKED = ("--prompt", "Read the invoice.", "--fields", "total", "--quote")


def quoted(path: Path, quotes: list[str], known: str = "") -> list[dict[str, Any]]:
    """Return the sources of quotes in a PDF. `known`: its text, if the file was another when the text was read."""
    part, rules = FilePart(str(path), "pdf"), ImageRules()
    text = known or pdf_text(part, rules)
    spans = [Text(text).find(quote) for quote in quotes]
    assert all(spans), text
    sources = [{"quote": text[slice(*span)], "start": span.start, "end": span.end} for span in spans if span]
    return list(with_boxes(sources, PdfText(text), part, rules))


def nearness(source: dict[str, Any], value: Value) -> float:
    """Return the least overlap of the lines of a value with the boxes of its quote; 0 for another number of lines."""
    boxes = source.get("box", [])
    if [box["page"] for box in boxes] != [value.page] * len(value.lines):
        return 0.0
    edges = [(box["left"], box["top"], box["right"], box["bottom"]) for box in boxes]
    return min(overlap(own, line) for own, line in zip(edges, value.lines, strict=True))


def near(folder: Path, seeds: range) -> list[float]:
    """Return the nearness of each value of these files."""
    found = []
    for seed in seeds:
        values = written(folder / f"{seed}.pdf", seed)
        sources = quoted(folder / f"{seed}.pdf", [value.quote for value in values])
        found += map(nearness, sources, values)
    return found


def test_boxes_are_where_the_values_are_drawn(tmp_path):
    assert min(near(tmp_path, range(10))) >= 0.8


@pytest.mark.thorough
def test_99_percent_of_1000_values_have_their_place(tmp_path):
    found = near(tmp_path, range(200))
    assert (len(found), sum(each >= 0.8 for each in found) >= 990) == (1000, True)


@pytest.mark.parametrize(("turn", "direction"), [(0, 270), (90, 0), (90, 90), (180, 270), (270, 180)])
def test_a_quote_over_lines_that_stand_on_their_side_has_a_box_on_each(tmp_path, turn, direction):
    x, y = {0: (1.0, 0.0), 90: (0.0, 1.0), 180: (-1.0, 0.0), 270: (0.0, -1.0)}[direction]
    canvas = Canvas(str(tmp_path / "a.pdf"))
    sheet = Sheet(canvas, turn, (30, 40, 590, 760), is_upright=False)
    lines = []
    for at_line, (text, words) in enumerate([("sum 77", "77"), ("euros net", "euros net"), ("due now", "due")]):
        matrix = x, y, -y, x, 300 + 14 * at_line * y, 400 - 14 * at_line * x
        lines += sheet.draw(text, matrix, "Helvetica", 11, words)
    sheet.draw("a slanted mark", (0.7, 0.7, -0.7, 0.7, 100, 100), "Helvetica", 11)
    canvas.save()
    value = Value("77 euros net due", 1, lines)
    (source,) = quoted(tmp_path / "a.pdf", [value.quote])
    assert nearness(source, value) >= 0.8


@pytest.mark.parametrize(("angle", "rotation"), [(0, 0), (-90, 270), (-45, 0)])
def test_a_page_is_turned_if_its_form_reads_downwards(tmp_path, angle, rotation):
    canvas = Canvas(str(tmp_path / "a.pdf"))
    canvas.beginForm("side")
    canvas.drawString(0, 300, "first")
    canvas.endForm()
    canvas.rotate(angle)
    canvas.doForm("side")
    canvas.save()
    page = pypdfium2.PdfDocument(tmp_path / "a.pdf")[0]
    page_turns.turn(page)
    assert page.get_rotation() == rotation


def test_a_quote_over_two_pages_has_a_box_on_each(tmp_path):
    path = pdf_of_texts(tmp_path / "a.pdf", ["The sum is", "EUR 12 net."])
    (source,) = quoted(path, ["sum is EUR 12"])
    assert [box["page"] for box in source["box"]] == [1, 2]


def test_signs_beyond_16_bits_do_not_move_the_boxes_after_them(tmp_path):
    table = "2 beginbfchar <01> <D83DDE00> <02> <00660069> endbfchar"
    text = (
        "BT /F1 12 Tf 1 0 0 1 100 700 Tm (\001\001\001 Total 80) Tj ET BT /F1 12 Tf 1 0 0 1 100 600 Tm (Total 80) Tj ET"
    )
    (tmp_path / "a.pdf").write_bytes(pdf_of_parts(text, table, (0, 0, 612, 792)))
    first, second = (source["box"][0] for source in quoted(tmp_path / "a.pdf", ["Total 80"] * 2))
    assert first == second, "the first place"
    assert first["left"] == pytest.approx(121.3, abs=0.1)
    assert first["right"] - first["left"] == pytest.approx(stringWidth("Total 80", "Helvetica", 12), abs=0.2)


def test_a_changed_file_gives_no_boxes(tmp_path):
    path = pdf_of_texts(tmp_path / "a.pdf", ["Total: 80, as agreed."])
    known = pdf_text(FilePart(str(path), "pdf"), ImageRules())
    pdf_of_texts(path, ["As agreed, total: 80."])
    assert quoted(path, ["Total: 80"], known) == [{"quote": "Total: 80", "start": 0, "end": 9}]


@pytest.fixture
def table(bench, upstream):
    """Runs a job about PDFs whose model quotes `Total: 80`, and returns the sources of its rows."""

    def ran(*options: str, quote: str = "Total: 80", cells: str = "out.csv") -> list[Any]:
        upstream.reply = choose(lambda seen: answer(json.dumps({"total": {"quote": quote, "value": "80"}})))
        bench.input, bench.output = bench.path / "pdfs", bench.path / cells
        bench.succeed(*ASKED, *options)
        with bench.output.open(encoding="utf-8-sig", newline="") as file:
            return [json.loads(row["sources"])["total"] for row in csv.DictReader(file)]

    (bench.path / "pdfs").mkdir()
    return ran


def test_each_source_of_a_pdf_has_its_box(bench, table):
    for name in "ab":
        pdf_of_texts(bench.path / "pdfs" / f"{name}.pdf", ["Total: 80, as agreed.", "Page two."])
    for source in table():
        (box,) = source["box"]
        assert source | {"box": 0} == {
            "quote": "Total: 80", "start": 0, "end": 9, "column": "content", "page": 1, "box": 0
        }  # fmt: skip
        assert box["left"] == 72
        assert 115 < box["right"] < 125
        assert 110 < box["top"] < box["bottom"] < 126, "720 of 842 points above the foot of the page"
    assert (
        table("--pdf", "file", "--set", "backend_configs.openai.files=['pdf']", cells="file.csv")[0]["box"]
        == table(cells="text.csv")[0]["box"]
    )


def test_an_attached_file_and_a_form_field_do_not_move_the_boxes(bench, table):
    def draw(canvas: Any) -> None:
        canvas.drawString(72, 720, "Total: 80")
        canvas.acroForm.textfield(name="buyer", value="Ann Berg", x=72, y=500)

    pages_of(bench.path / "pdfs" / "a.pdf", draw)
    _attach(bench.path / "pdfs" / "a.pdf")
    (source,) = table()
    assert (source["start"] > 9, source["box"][0]["left"]) == (True, 72)
    (source,) = table(quote="Ann Berg", cells="field.csv")
    assert [(box["page"], box["left"]) for box in source["box"]] == [(1, 72)]


def _filled_in(canvas: Any) -> None:
    canvas.drawString(72, 520, "Sum: 80")
    form = canvas.acroForm
    form.textfield(name="buyer", value="Ann Berg", x=150, y=500, width=200, height=20)
    for at, (value, is_chosen) in enumerate([("S", False), ("L", True), ("M", False)]):
        form.radio(name="size", value=value, x=150 + 30 * at, y=400, size=20, selected=is_chosen)


@pytest.mark.parametrize("turn", [0, 90])
def test_the_value_of_a_field_has_the_box_of_the_field(tmp_path, turn):
    def draw(canvas: Any) -> None:
        canvas.setPageRotation(turn)
        _filled_in(canvas)

    path = pages_of(tmp_path / "a.pdf", draw)
    field, size, both = quoted(path, ["Ann Berg", "size: L", "80 buyer: Ann"])
    edges = [(box["left"], 842 - box["bottom"]) if not turn else (box["top"], box["left"]) for box in field["box"]]
    assert edges == [(pytest.approx(150, abs=2), pytest.approx(500, abs=2))]
    (chosen,) = size["box"]
    assert (chosen["top"] if turn else chosen["left"]) == pytest.approx(180, abs=2), "of the chosen button"
    assert len(both["box"]) == 2, "of the text on the page, and of the field"


def test_a_stamp_and_a_typed_text_have_boxes(tmp_path):
    typed, stamp = (
        "/Subtype/FreeText/Rect[10 50 60 80]/Contents(as agreed)",
        "/Subtype/Stamp/Rect[0 0 99 30]/Name/Draft",
    )
    parts = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Count 1/Kids[3 0 R]>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Annots[4 0 R 5 0 R]>>",
        f"<</Type/Annot{stamp}>>",
        f"<</Type/Annot{typed}>>",
    ]
    body = "".join(f"{at} 0 obj\n{part}\nendobj\n" for at, part in enumerate(parts, 1))
    (tmp_path / "a.pdf").write_text(f"%PDF-1.7\n{body}trailer<</Root 1 0 R/Size {len(parts) + 1}>>\n%%EOF")
    (drafted,), (agreed,) = (source["box"] for source in quoted(tmp_path / "a.pdf", ["Draft", "agreed"]))
    assert drafted == {"page": 1, "left": 0, "top": 170, "right": 99, "bottom": 200}
    assert agreed == {"page": 1, "left": 10, "top": 120, "right": 60, "bottom": 150}


def _attach(path: Path) -> None:
    import pypdfium2

    document = pypdfium2.PdfDocument(path.read_bytes())
    document.new_attachment("invoice.xml").set_data(b"<invoice/>")
    document.save(str(path))


@pytest.mark.features("documents")
def test_pieces_of_a_document_have_boxes_on_its_pages(bench, table):
    texts = [f"Page {at}. {'Nothing else here. ' * 5}" for at in range(1, 60)]
    pdf_of_texts(bench.path / "pdfs" / "a.pdf", [*texts, "Total: 80, as agreed."])
    (source,) = table("--split", "600")
    assert source["page"] == 60
    assert [box["page"] for box in source["box"]] == [60]


@pytest.mark.thorough
def test_a_cached_answer_has_the_boxes_of_its_own_file(bench, table):
    def draw(x: int, canvas: Any) -> None:
        canvas.drawString(x, 720, "Total: 80")

    for name, x in (("a", 72), ("b", 200)):
        pages_of(bench.path / "pdfs" / f"{name}.pdf", partial(draw, x))
    cached = ("--temperature", "0", "--set", f"cache={bench.path / 'cache'}")
    assert [source["box"][0]["left"] for source in table(*cached)] == [72, 200]
    assert [source["box"][0]["left"] for source in table(*cached, "--again", "all")] == [72, 200]


def test_an_agent_sees_no_page_that_may_hold_a_key(tmp_path):
    path = pdf_of_texts(tmp_path / "a.pdf", ["Total: 80", "sk-proj-0123456789abcdefghij Total: 81"])
    sources, guarded = quoted(path, ["Total: 80", "Total: 81"]), ImageRules(FileRule(is_guarded=True))
    assert [picture["page"] for picture in page_pictures(sources, str(path), ImageRules())] == [1, 2]
    assert [picture["page"] for picture in page_pictures(sources, str(path), guarded)] == [1]
    assert page_pictures(sources, str(tmp_path / "gone.pdf"), guarded) == []


def test_a_pdf_that_is_gone_when_its_answer_arrives_gives_a_note(bench, table, upstream):
    path = pdf_of_texts(bench.path / "pdfs" / "a.pdf", ["Total: 80, as agreed."])

    def reply(seen: Any) -> Any:
        path.unlink(missing_ok=True)
        return answer(json.dumps({"total": {"quote": "Total: 80", "value": "80"}}))

    upstream.reply = choose(reply)
    bench.input, bench.output = bench.path / "pdfs", bench.path / "out.csv"
    found = bench.succeed(*ASKED)
    with bench.output.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert json.loads(row["sources"])["total"] == {"quote": "Total: 80", "start": 0, "end": 9, "column": "content"}
    assert "Some quotes have no `box`" in str(found["warnings"])
