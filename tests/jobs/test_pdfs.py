"""PDF files as rows: their text, or the images of their pages."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pypdfium2
import pytest
from PIL import Image

import promptmill
from pdf_files import PICTURE, VERA, pages_of, pdf_of_texts, scan
from promptmill.core.errors import PromptmillError
from promptmill.images import pdf
from promptmill.images.load import ImageRules, load_image


@pytest.fixture
def invoices(bench: Any) -> Path:
    folder = bench.path / "invoices"
    folder.mkdir()
    pdf_of_texts(folder / "a.pdf", ["Invoice 1", "Total 10"])
    pdf_of_texts(folder / "b.pdf", ["Invoice 2"])
    bench.input = folder
    return folder


@pytest.fixture(scope="module")
def reader() -> Iterator[pdf.PdfReader]:
    reader = pdf.PdfReader()
    yield reader
    reader.end()


def _asked(bench: Any) -> list[tuple[str, int]]:
    """Return the text and the number of images of each request."""
    asked = []
    for seen in bench.upstream.seen:
        content = seen.json["messages"][-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images = [part for part in parts if part["type"] == "image_url"]
        asked.append(("".join(part.get("text", "") for part in parts), len(images)))
    return sorted(asked)  # requests may overtake each other


def test_the_text_of_a_pdf_is_the_content_or_comes_behind_the_prompt(bench, invoices):
    said = bench.run("--prompt", "Extract the invoice.").stderr
    assert "PDFs: 3 pages sent as text;" in said
    assert _asked(bench) == [
        ("Extract the invoice.\n\nInvoice 1\n\f\nTotal 10", 0),
        ("Extract the invoice.\n\nInvoice 2", 0),
    ]
    assert [{*row} for row in bench.answers()] == [{"path", "answer", "error", "usage", "finish_reason"}] * 2
    assert bench.succeed("--prompt", "Extract the invoice.")["done"] == 2
    assert len(bench.upstream.seen) == 2  # the same command sends nothing again


def test_the_content_of_a_prompt_is_the_text_of_a_single_pdf(bench, invoices):
    bench.input = invoices / "b.pdf"
    bench.succeed("--prompt", "Sum up {{content}}!")
    assert _asked(bench) == [("Sum up Invoice 2!", 0)]


def test_pdfs_with_a_schema_need_no_prompt(bench, invoices):
    bench.run("--fields", "total:number")
    assert _asked(bench)[1] == ("Fill in the fields from this document.\n\nInvoice 2", 0)


@pytest.mark.thorough
def test_the_pages_of_a_pdf_are_the_images_of_its_row_if_the_user_says_so(bench, invoices):
    said = bench.run("--prompt", "Extract the invoice.", "--pdf", "images").stderr
    assert "sent as" not in said
    assert _asked(bench) == [("Extract the invoice.", 1), ("Extract the invoice.", 2)]


def test_a_scan_is_sent_as_images_beside_pdfs_with_text(bench, invoices):
    scan(invoices / "c.pdf", pages=3)
    said = " ".join(bench.run("--prompt", "Extract: {{content}}").stderr.split())
    sent = "PDFs: 3 pages sent as text, 3 pages sent as image (scan or drawing); --pdf (text or images) chooses"
    assert sent in said
    assert ("Extract: (in the images)", 3) in _asked(bench)


def test_a_scanned_page_between_pages_of_text_is_sent_as_image(bench):
    bench.input = pages_of(bench.path / "mixed.pdf", _letter, _scanned, _letter)
    said = " ".join(bench.run("--prompt", "Extract: {{content}}").stderr.split())
    assert "PDFs: 2 pages sent as text, 1 page sent as image (scan or drawing);" in said
    assert _asked(bench) == [("Extract: Dear Ann\n\f\n(page 2: in the images)\n\f\nDear Ann", 1)]


def test_a_scan_that_is_sent_as_text_alone_is_counted(bench):
    bench.input = pages_of(bench.path / "mixed.pdf", _letter, _scanned)
    said = " ".join(bench.run("--prompt", "Extract: {{content}}", "--pdf", "text").stderr.split())
    assert "PDFs: 1 page of a scan or drawing sent without the image; --pdf" in said
    assert _asked(bench) == [("Extract: Dear Ann\n\f\nScanned with an app", 0)]


def _letter(canvas: Any) -> None:
    canvas.drawString(72, 720, "Dear Ann")


def _scanned(canvas: Any) -> None:
    """Draw a scan in strips, within a form, below a line of text."""
    canvas.drawString(72, 20, "Scanned with an app")
    canvas.beginForm("scan")
    for at in range(40):
        canvas.drawImage(PICTURE, 0, at, width=40, height=1)
    canvas.endForm()
    canvas.saveState()
    canvas.translate(72, 100)
    canvas.scale(10, 14)
    canvas.doForm("scan")
    canvas.restoreState()


def _outlines(canvas: Any) -> None:
    canvas.drawString(72, 760, "ACME Ltd.")
    for at in range(300):
        canvas.circle(72 + at, 600, 5)


def _without_meaning(canvas: Any) -> None:
    canvas.drawString(72, 720, "!#$ %&' ()* +,- ./: ;<=")


def _contents(canvas: Any) -> None:
    for at in range(30):
        canvas.drawString(72, 720 - 14 * at, f"{at} Chapter {'.' * 60} {at}")


def _illustrated(canvas: Any) -> None:
    for at in range(40):
        canvas.drawString(72, 720 - 10 * at, f"Line {at} stands above a small picture.")
    canvas.drawImage(PICTURE, 72, 50, width=200, height=200)


@pytest.mark.parametrize(
    ("draw", "is_image", "has_pictures"),
    [
        (_letter, False, False),
        (_scanned, True, False),
        (_outlines, True, False),
        (_without_meaning, True, False),
        (_contents, False, False),
        (_illustrated, False, True),
    ],
)
def test_each_page_is_a_text_or_an_image(tmp_path, reader, draw, is_image, has_pictures):
    with pages_of(tmp_path / "a.pdf", draw).open("rb") as file:
        (page,) = reader.contents(file)
    assert (page.is_image, page.has_pictures) == (is_image, has_pictures)


def test_a_text_whose_font_has_no_characters_is_no_text(tmp_path, reader):
    path = pages_of(
        tmp_path / "a.pdf", lambda canvas: (canvas.setFont(VERA, 12), canvas.drawString(72, 720, "Straße"))[0]
    )
    path.write_bytes(path.read_bytes().replace(b"/ToUnicode", b"/NoUnicode"))
    with path.open("rb") as file:
        assert reader.contents(file) == [("", True, False, "")]


def test_a_word_at_the_end_of_a_line_keeps_its_hyphen(tmp_path, reader):
    def draw(canvas: Any) -> None:
        canvas.drawString(72, 720, "a well-")
        canvas.drawString(72, 708, "known name")

    with pages_of(tmp_path / "a.pdf", draw).open("rb") as file:
        assert reader.contents(file)[0].text == "a well-\nknown name"


def _filled_in(canvas: Any) -> None:
    canvas.drawString(72, 720, "Name:")
    form = canvas.acroForm
    form.textfield(name="name", tooltip="Full name", x=150, y=710, width=200, height=20, value="Ann Example")
    form.textfield(name="empty", x=150, y=680, width=200, height=20)
    form.checkbox(name="news", x=150, y=640, checked=True)
    form.radio(name="size", value="S", x=150, y=600, selected=False)
    form.radio(name="size", value="L", x=180, y=600, selected=True)
    form.choice(name="land", x=150, y=560, width=90, height=20, options=[("Spain", "ES"), ("Italy", "IT")], value="IT")


def test_what_was_filled_into_a_form_follows_the_text_of_its_page(tmp_path, reader):
    with pages_of(tmp_path / "a.pdf", _filled_in).open("rb") as file:
        (page,) = reader.contents(file)
    assert page.text.splitlines() == ["Name:", "Full name: Ann Example", "news: Yes", "size: L", "land: Italy"]


def test_what_was_filled_into_a_form_is_on_the_image_of_its_page(tmp_path, reader):
    def empty(canvas: Any) -> None:
        canvas.acroForm.textfield(x=150, y=710, width=200, height=20, value="")

    def filled(canvas: Any) -> None:
        canvas.acroForm.textfield(x=150, y=710, width=200, height=20, value="Ann")

    images = []
    for draw in (empty, filled):
        with pages_of(tmp_path / f"{draw.__name__}.pdf", draw).open("rb") as file:
            images.append(reader.page(file, 1))
    assert images[0] != images[1]


def test_a_form_that_only_other_programs_show_is_refused(tmp_path, reader):
    path = pages_of(tmp_path / "a.pdf", _filled_in)
    dynamic = b"/Catalog /NeedsRendering true /AcroForm << /XFA (form) /Fields [] >>"
    path.write_bytes(path.read_bytes().replace(b"/AcroForm", b"/Other").replace(b"/Catalog", dynamic))
    with path.open("rb") as file, pytest.raises(pdf.PdfError, match=r"only Adobe's programs show \(XFA\); print it"):
        reader.contents(file)


def test_a_scan_without_text_fails_as_its_own_row_under_text(bench, invoices):
    scan(invoices / "c.pdf")
    bench.run("--prompt", "Extract: {{content}}", "--pdf", "text")
    *texts, failed = bench.answers()
    assert [row["error"] for row in texts] == [None, None]
    assert "c.pdf has no text: it may be a scan" in str(failed["error"])
    assert "Send its pages as images." in str(failed["error"])


def test_a_pdf_that_cannot_be_read_fails_as_its_own_row(bench, invoices):
    (invoices / "c.pdf").write_bytes(b"%PDF-1.7\nnothing")
    (invoices / "d.pdf").write_bytes(b"")
    pdf_of_texts(invoices / "e.pdf", ["secret"], password="x")
    for form in ([], ["--pdf", "text"], ["--pdf", "images"]):
        bench.output = bench.path / f"out{len(form)}{form[-1:]}.jsonl"
        bench.run("--prompt", "Extract the invoice.", *form)
        errors = [str(row["error"]) for row in bench.answers()]
        assert errors[:2] == ["None", "None"]
        assert "c.pdf is damaged, or no PDF. Name a PDF" in errors[2]
        assert "d.pdf is empty" in errors[3]
        assert "e.pdf is encrypted; save a copy without a password" in errors[4]


def test_a_prompt_with_the_content_and_images_is_refused(bench, invoices):
    assert "the prompt has no {{content}}" in bench.fail("--prompt", "Extract: {{content}}", "--pdf", "images")


def test_a_column_of_images_names_pages_of_pdfs_next_to_the_input(bench, invoices):
    bench.input = invoices / "in.csv"
    bench.input.write_text("scan\na.pdf#page=2\na.pdf#page=3\na.pdf\n")
    bench.run("--prompt", "Describe.", "--image-column", "scan")
    assert _asked(bench) == [("Describe.", 1)]
    errors = [str(row["error"]) for row in bench.answers()]
    assert "a.pdf has no page 3, but 2" in errors[1]
    assert "Name one of its pages, such as a.pdf#page=1" in errors[2]


@pytest.mark.thorough
def test_a_pdf_of_libreoffice_has_its_text(bench):
    bench.input = Path(__file__).parent / "data" / "libre.pdf"
    bench.succeed("--prompt", "Sum up: {{content}}")
    assert '1 Grüße, "Ann" 2026-01-05 3 25.00%' in _asked(bench)[0][0]


def test_python_asks_about_pdfs_too(bench, invoices):
    options = {"model": "m", "base_url": bench.upstream.url, "api_key": "none", "progress": False}
    result = promptmill.bulk(str(invoices), prompt="Extract: {{content}}", pdf="text", **options)
    assert result.answers == ["echo: Extract: Invoice 1\n\f\nTotal 10", "echo: Extract: Invoice 2"]


def test_a_pdf_with_more_pages_than_a_request_carries_is_left_out(bench, invoices):
    scan(invoices / "long.pdf", pages=101)
    said = " ".join(bench.run("--prompt", "Describe.", "--pdf", "images").stderr.split())
    assert "has 101 pages" in said


def test_a_pdf_that_ends_the_reader_fails_and_the_next_one_is_read(tmp_path, monkeypatch):
    reader = pdf.PdfReader()
    bad, good = pdf_of_texts(tmp_path / "bad.pdf", ["x"]), pdf_of_texts(tmp_path / "good.pdf", ["hello"])
    try:
        with bad.open("rb") as file:
            assert reader.pages(file) == 1
            process = reader._helper._process
            assert process is not None
            process.kill()
            process.wait()
            reader._helper._process = cast("Any", _Dead(process))  # it ends during the question
            with pytest.raises(pdf.PdfError, match="too much time or memory"):
                reader.contents(file)
            with pytest.raises(pdf.PdfError, match="too much time or memory"):  # without another try
                reader.contents(file)
        with good.open("rb") as file:
            assert reader.contents(file)[0].text == "hello"
    finally:
        reader.end()


class _Dead:
    """A process that has ended without notice."""

    def __init__(self, process: Any) -> None:
        self.stdin, self.stdout, self.pid, self.wait = process.stdin, process.stdout, process.pid, process.wait
        self._polls = 0

    def poll(self) -> int | None:
        self._polls += 1
        return None if self._polls < 4 else -9


def test_a_missing_package_is_named_with_the_command_that_adds_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PromptmillError, match="PDF files need pypdfium2") as caught:
        pdf.check_installed()
    assert "files" in str(caught.value)


def test_a_page_is_an_image_that_models_read(tmp_path):
    path = pdf_of_texts(tmp_path / "a.pdf", ["x"])
    image = load_image(f"file://{path}#page=1", ImageRules())
    assert image.media_type == "image/jpeg"


def test_a_page_of_few_points_which_a_user_unit_may_enlarge_is_a_large_image(tmp_path, reader):
    path = tmp_path / "a.pdf"
    document = pypdfium2.PdfDocument.new()
    document.new_page(61, 79)
    document.save(path)
    with path.open("rb") as file:
        assert max(Image.open(io.BytesIO(reader.page(file, 1))).size) == 1000


@pytest.mark.thorough
def test_every_page_of_a_long_pdf_is_read(tmp_path):
    path, reader = pdf_of_texts(tmp_path / "a.pdf", [f"page {at}" for at in range(1, 53)]), pdf.PdfReader()
    try:
        with path.open("rb") as file:
            assert len({reader.page(file, page) for page in range(1, 53)}) == 52  # the document is opened again
    finally:
        reader.end()


def _with_stamp(path: Path, more: str = "") -> Path:
    """Write a page with a stamp: its words are in the stamp's own picture."""
    shown = "BT /F 12 Tf (VOID) Tj ET"
    parts = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Count 1/Kids[3 0 R]>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Annots[4 0 R]>>",
        f"<</Type/Annot/Subtype/Stamp/Rect[0 0 99 30]/Name/Draft{more}>>",
        f"<</Type/XObject/Subtype/Form/BBox[0 0 99 30]/Length {len(shown)}>>\nstream\n{shown}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body = "%PDF-1.7\n" + "".join(f"{at} 0 obj\n{part}\nendobj\n" for at, part in enumerate(parts, 1))
    path.write_text(f"{body}trailer<</Root 1 0 R/Size {len(parts) + 1}>>\n%%EOF")
    return path


@pytest.mark.parametrize(
    ("more", "text"),
    [("/AP<</N 5 0 R>>", "Stamp: VOID"), ("/Contents(PAID)", "Stamp: PAID"), ("", "Stamp: Draft"), ("/F 2", "")],
)
def test_the_words_of_a_stamp_belong_to_the_text_of_a_page(tmp_path, reader, more, text):
    with _with_stamp(tmp_path / "a.pdf", more).open("rb") as file:
        assert reader.contents(file)[0].text == text


def test_the_files_attached_to_a_pdf_are_named(bench):
    from pypdfium2 import PdfDocument

    pdf_of_texts(bench.path / "in.pdf", ["Invoice", "Page 2"])
    document = PdfDocument(bench.path / "in.pdf")
    document.new_attachment("invoice.xml").set_data(b"<a/>")
    document.save(bench.path / "a.pdf")
    bench.input = bench.path / "a.pdf"
    bench.run("--prompt", "Sum up {{content}}")
    ((text, images),) = _asked(bench)
    assert text == "Sum up Attachments (not sent): invoice.xml\n\nInvoice\n\f\nPage 2"
    assert not images


def test_signs_without_a_meaning_are_no_dot_leaders():
    class Layer:
        def count_chars(self) -> int:
            return 0

    assert not pdf._is_text(Layer(), "\ufffd" * 40)
    assert not pdf._is_text(Layer(), "\ue001" * 40)
