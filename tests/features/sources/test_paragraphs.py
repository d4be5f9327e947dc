"""Places in Word documents and web pages: the heading, and the paragraph under it."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from placed_paragraphs import MAKERS
from promptmill.features.sources import marked_text
from promptmill.features.sources.paragraphs import Paragraphs, paragraphs_of
from promptmill.files.web_pages import page_text
from promptmill.files.word import word_text
from promptmill.system.call_files import FileRule
from replies import answer, choose

CLAUSES = {
    "lease": "<w:pStyle w:val='berschrift1'/>",
    "rent": "<w:outlineLvl w:val='1'/>",
    "own": "<w:pStyle w:val='Own'/>",
    "plain": "<w:pStyle w:val='TOC'/>",
    "title": "<w:pStyle w:val='Titel'/>",
    "deleted": "<w:pStyle w:val='berschrift1'/><w:rPr><w:del/></w:rPr>",
    "joined": "<w:pStyle w:val='berschrift1'/><w:rPr><w:vanish/></w:rPr>",
}
"""Properties of paragraphs, by the name of a form."""


def _styled(number: int, style: str, name: str, properties: str, base: str = "Standard") -> str:
    return (
        f"<w:style w:type='paragraph' w:customStyle='{number}' w:styleId='{style}'><w:name w:val='{name}'/>"
        f"<w:basedOn w:val='{base}'/><w:pPr>{properties}</w:pPr></w:style>"
    )


def paragraph(text: str, form: str = "", more: str = "") -> str:
    """Return a paragraph of a Word document, see `CLAUSES`."""
    return f"<w:p><w:pPr>{CLAUSES.get(form, '')}</w:pPr><w:r><w:t>{text}</w:t>{more}</w:r></w:p>"


def word_file(body: str, header: str = "") -> bytes:
    """Return a Word document with German styles."""
    document = docx.Document()
    styles = (
        _styled(0, "berschrift1", "heading 1", "")
        + _styled(1, "Own", "Klausel", "", "berschrift1")
        + _styled(0, "TOC", "TOC Heading", "<w:outlineLvl w:val='9'/>", "berschrift1")
        + _styled(0, "Titel", "Title", "")
        + _styled(1, "Untertitel", "Subtitle", "", "Titel")
        + _styled(1, "Loop", "Loop", "", "Loop")
    )
    for element in parse_xml(f"<w:styles {nsdecls('w')}>{styles}</w:styles>"):
        document.styles.element.append(element)
    for at, element in enumerate(parse_xml(f"<w:body {nsdecls('w')}>{body}</w:body>")):
        document.element.body.insert(at, element)
    if header:
        document.sections[0].header.paragraphs[0].text = header
    written = io.BytesIO()
    document.save(written)
    return written.getvalue()


def places(text: str, marked: str) -> list[tuple[str, int]]:
    """Return the heading and the paragraph of each line of a text that is not empty."""
    known = Paragraphs(text, marked)
    return [known.at(match.start()) for match in re.finditer(r"\S.*", text)]


def of_word(body: str, header: str = "") -> list[tuple[str, int]]:
    data = word_file(body, header)
    return places(word_text(data), marked_text.word(data))


def of_page(page: str) -> list[tuple[str, int]]:
    data = page.encode()
    return places(page_text(data), marked_text.page(data))


def test_the_headings_of_a_word_document_are_its_styles_in_any_language():
    body = paragraph("Lease", "title") + paragraph("By A.") + paragraph("1 Rent", "lease") + paragraph("Due.")
    body += paragraph("1.1 Fee", "rent") + paragraph("One") + paragraph("Two") + paragraph("2 End", "own")
    body += paragraph("Contents", "plain") + "<w:p><w:pPr><w:pStyle w:val='Untertitel'/></w:pPr><w:t>Sub</w:t></w:p>"
    body += "<w:p><w:pPr><w:pStyle w:val='Loop'/></w:pPr><w:t>x</w:t></w:p><w:p><w:t>y</w:t></w:p>"
    assert of_word(body) == [
        ("Lease", 0),
        ("Lease", 1),
        ("1 Rent", 0),
        ("1 Rent", 1),
        ("1 Rent > 1.1 Fee", 0),
        ("1 Rent > 1.1 Fee", 1),
        ("1 Rent > 1.1 Fee", 2),
        *(("2 End", at) for at in range(5)),
    ]


def test_lines_of_a_word_document_are_counted_as_a_reader_does():
    line_end, cell = "<w:br/><w:t>second</w:t>", "<w:tc>{}</w:tc>".format
    table = f"<w:tbl><w:tr>{cell(paragraph('Fee', 'rent'))}{cell(paragraph('80'))}</w:tr></w:tbl>"
    box = f"<w:pict><w:txbxContent>{paragraph('Note', 'lease')}{paragraph('boxed')}</w:txbxContent></w:pict>"
    body = paragraph("before", "", line_end) + paragraph("Rent", "lease", line_end) + paragraph("one", "", line_end)
    body += (
        table + paragraph("Box", "rent", box) + paragraph("", "lease") + paragraph("last", "deleted") + paragraph("x")
    )
    assert of_word(body, "Page header") == [
        ("", 1),
        ("", 2),
        ("", 2),
        ("Rent second", 0),
        ("Rent second", 0),
        ("Rent second", 1),
        ("Rent second", 1),
        ("Rent second", 2),
        ("Rent second > Box", 0),
        ("Rent second > Box", 1),
        ("Rent second > Box", 2),
        ("Rent second > Box", 3),
    ]


def test_a_heading_in_the_line_of_its_text_ends_where_the_text_begins():
    assert of_word(paragraph("Rent.", "joined") + paragraph(" Due monthly.") + paragraph("next")) == [
        ("Rent.", 0),
        ("Rent.", 1),
    ]


def test_a_footnote_is_below_no_heading():
    marked = f"\ufdda\ufdd1\ufdd0Rent\ufddb\none\n[footnote 1] {marked_text.NONE}of the rent"
    assert places(marked_text.MARKS.sub("", marked), marked) == [("Rent", 0), ("Rent", 1), ("", 3)]


def test_an_embedded_file_has_no_headings():
    chunk = f"<w:altChunk/>{paragraph('Rent', 'lease')}"
    assert marked_text.MARKS.search(marked_text.word(word_file(chunk))) is None


def test_the_headings_of_a_web_page_are_its_elements():
    page = (
        "<title>Shop</title><p>menu<h1>Terms</h1><p>a<br>b<br><br>c<h2><span hidden>x</span>Price <b>in</b> m<sup>2"
        "</sup></h2><ul><li><p>one</ul><div role=heading aria-level=3>Deep<br>er</div>d<h1><img alt=Logo></h1>e"
    )
    assert of_page(page) == [
        ("Shop", 0),
        ("Shop", 1),
        ("Terms", 0),
        ("Terms", 1),
        ("Terms", 1),
        ("Terms", 2),
        ("Terms > Price in m\xb2", 0),
        ("Terms > Price in m\xb2", 1),
        ("Terms > Price in m\xb2 > Deep er", 0),
        ("Terms > Price in m\xb2 > Deep er", 0),
        ("Terms > Price in m\xb2 > Deep er", 1),
        ("[Logo]", 0),
        ("[Logo]", 1),
    ]


@pytest.mark.parametrize(
    "page",
    [
        "<ul><li><h3><a><div>T</div></a></h3><p>x</ul>",
        "<table><tr><td>a<br></td><td>b<tr><td><h3>L</h3><td>v</table>",
        "<pre>a\n  <h2> b</h2>\nc</pre><h2><s>49</s> 39</h2>",
        "<h2>a<ruby>b<rt>c</rt></ruby></h2><h2></h2><textarea><h2>z</h2></textarea>",
    ],
)
def test_marks_change_no_letter_of_a_page(page):
    marked = marked_text.page(page.encode())
    assert "".join(marked_text.MARKS.sub("", marked).split()) == "".join(page_text(page.encode()).split())


def test_long_headings_are_shown_without_those_that_contain_them():
    data = f"<h1>{'a' * 40}</h1><h2>{'b' * 20}</h2>x<h2>{'c' * 90}</h2>y".encode()
    found = places(page_text(data), marked_text.page(data))
    assert [found[2], found[4]] == [("b" * 20, 1), ("c" * 59 + "…", 1)]


def test_a_piece_is_named_by_its_first_and_last_paragraph():
    data = b"<h1>Lease</h1><p>A and B</p><h1>Payment</h1><p>due<p>paid<h1>Notices</h1><p>in writing"
    text = page_text(data)
    known = Paragraphs(text, marked_text.page(data))
    start, end = text.index("Payment"), text.index("\n\nNotices")
    assert known.words(start, end) == "\u201cPayment\u201d, paragraphs 1 to 2"
    assert known.words(start, start + 10) == "\u201cPayment\u201d, paragraph 1"
    assert known.words(0, len(text)) == "\u201cLease\u201d, to \u201cNotices\u201d, paragraph 1"
    assert Paragraphs("One line.").words(0, 3) == "paragraph 1"
    assert Paragraphs("").words(0, 0) == "paragraph 1"


def test_the_marks_of_another_text_are_ignored():
    assert places("one\ntwo", "\ufdda\ufdd1\ufdd0one\nthree") == [("", 1), ("", 2)]


def right(kind: str, seeds: range) -> list[bool]:
    """Return for each word of these made files whether its place is right."""
    found = []
    for seed in seeds:
        data, known = MAKERS[kind](seed)
        text, marked = (word_text, page_text)[kind == "page"](data), getattr(marked_text, kind)(data)
        paragraphs = Paragraphs(text, marked)
        found += [paragraphs.at(text.index(word)) == place for word, place in known.items()]
    return found


@pytest.mark.parametrize("kind", ["word", "page"])
def test_places_are_where_the_words_were_written(kind):
    assert all(right(kind, range(5)))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["word", "page"])
def test_99_percent_of_the_words_in_200_files_have_their_place(kind):
    found = right(kind, range(200))
    assert sum(found) >= 0.99 * len(found) > 1000


@pytest.mark.parametrize("file", ["", "a.txt", "a.pdf", "a.csv"])
def test_other_files_have_no_paragraphs(file):
    assert paragraphs_of("one", file, FileRule()) is None


def test_a_file_that_is_gone_or_refused_has_no_headings(tmp_path):
    (tmp_path / "a.html").write_text("<h1>Rent</h1>Due.")
    for rule, heading in ((FileRule(), "Rent"), (FileRule((tmp_path / "other",)), "")):
        known = paragraphs_of("Rent\n\nDue.", str(tmp_path / "a.html"), rule)
        assert known is not None
        assert known.at(7)[0] == heading
    for name in ("b.html", "c.eml"):
        known = paragraphs_of("Rent\n\nDue.", str(tmp_path / name), FileRule())
        assert known is not None
        assert known.at(7) == ("", 2)


@pytest.fixture
def contract(bench, upstream):
    """Runs a job about a Word document, and returns the source of its value."""
    document = docx.Document()
    document.add_heading("Lease", 1)
    for at in range(40):
        document.add_paragraph(f"This is the paragraph number {at + 1}, and it says nothing of any weight.")
    document.add_heading("Payment", 1)
    document.add_paragraph("The rent is due monthly.")
    document.add_paragraph("The deposit is 900 euros.")
    (bench.path / "files").mkdir()
    document.save(str(bench.path / "files" / "lease.docx"))
    bench.input, bench.output = bench.path / "files", bench.path / "out.csv"

    def read(*options: str) -> Any:
        def reply(seen: Any) -> Any:
            has = "900 euros" in seen.prompt
            value: Any = "900" if has else None
            if "--quote" in options:
                value = {"quote": "deposit is 900 euros" if has else "", "value": value}
            return answer(json.dumps({"deposit": value}))

        upstream.reply = choose(reply)
        bench.succeed("--fields", "deposit?", *options)
        with bench.output.open(encoding="utf-8-sig", newline="") as file:
            (row,) = csv.DictReader(file)
        return json.loads(row["sources"])["deposit"]

    return read


def test_a_quote_in_a_word_document_has_its_heading_and_paragraph(contract):
    source = contract("--quote")
    assert (source["quote"], source["heading"], source["paragraph"]) == ("deposit is 900 euros", "Payment", 2)


@pytest.mark.features("documents")
def test_a_value_of_a_long_word_document_has_its_heading_and_paragraph(contract):
    assert contract("--split", "400") == "\u201cPayment\u201d, paragraph 2"


@pytest.mark.thorough
@pytest.mark.features("documents")
def test_a_quote_of_a_piece_has_the_heading_and_paragraph_of_the_document(contract):
    source = contract("--split", "400", "--quote")
    assert (source["heading"], source["paragraph"]) == ("Payment", 2)
