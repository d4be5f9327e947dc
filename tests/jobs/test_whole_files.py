"""Folders of texts and images: each file is a row."""

from __future__ import annotations

import asyncio
import mailbox
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

import promptmill
from pdf_files import pages_of, pdf_of_texts
from processtable import gone
from promptmill.core.errors import PromptmillError
from promptmill.files import documents
from promptmill.files.format_table import whole
from promptmill.images import pdf
from promptmill.jobs.inputs import whole_files
from promptmill.jobs.inputs.whole_files import FileQuestion, OwnFiles, WholeFiles
from promptmill.jobs.store.description import JobPrompts
from promptmill.system.call_files import FileRule
from promptmill.system.subprocesses import Helper
from sure import sure
from waiting import until


@pytest.fixture
def mails(bench: Any) -> Path:
    folder = bench.path / "mails"
    (folder / "new").mkdir(parents=True)
    (folder / "a.txt").write_text("Dear Ann,\nhello")
    (folder / "new" / "b.md").write_text("Dear Bob,\nhello")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "zeros.bin").write_bytes(b"\0\0")
    return folder


@pytest.fixture
def pictures(bench: Any) -> Path:
    folder = bench.path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def _asked(bench: Any) -> list[str]:
    return [seen.prompt for seen in bench.upstream.seen]


def _images(bench: Any) -> int:
    parts = [part for seen in bench.upstream.seen for part in seen.json["messages"][-1]["content"]]
    return sum(part["type"] == "image_url" for part in parts)


@pytest.mark.thorough
def test_a_prompt_asks_about_each_text_of_a_folder(bench, mails):
    bench.input = mails
    bench.succeed("--prompt", "Extract: {{content}}")
    assert sorted(_asked(bench)) == ["Extract: Dear Ann,\nhello", "Extract: Dear Bob,\nhello"]
    assert [{*row} for row in bench.answers()] == [{"path", "answer", "error", "usage", "finish_reason"}] * 2
    assert [Path(row["path"]).name for row in bench.answers()] == ["a.txt", "b.md"]
    assert bench.succeed("--prompt", "Extract: {{content}}")["done"] == 2
    assert len(bench.upstream.seen) == 2  # the same command sends nothing again


def test_a_file_that_is_read_as_a_whole_is_not_the_output(bench):
    table = bench.path / "t.csv"
    table.write_text("a,b\n1,2\n")
    bench.input = bench.output = table
    assert "the same file" in bench.fail("--prompt", "Sum up: {{content}}", "--each", "file", "--overwrite")
    assert table.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("name", "said"), [("out.md", ".md is no format of an output."), ("out", "The output out has no suffix.")]
)
def test_the_format_of_the_output_is_checked_before_the_files(bench, mails, name, said):
    bench.input, bench.output = mails, bench.path / name
    (mails / "a.txt").write_bytes(b"\0")
    found = bench.fail("--prompt", "Extract: {{content}}")
    assert f"error: {said} An output ends with .jsonl, .json, .csv" in found
    assert f"; name it out.csv, not {name}." in found
    assert "left out" not in found


def test_texts_with_a_schema_need_no_prompt(bench, mails):
    bench.input = mails
    bench.run("--fields", "name")
    asked = {f"Fill in the fields from this document.\n\nDear {name},\nhello" for name in ("Ann", "Bob")}
    assert asked <= {*_asked(bench)}  # further requests are about answers that are no JSON


def test_the_example_of_a_missing_prompt_can_be_copied_into_a_shell(bench, mails):
    bench.input = mails
    assert "such as --prompt 'Summarize this file. {{content}}'." in bench.fail()


@pytest.mark.thorough
def test_texts_of_windows_are_read_next_to_utf8_with_the_encoding_that_a_note_names(bench, mails):
    bench.input = mails
    (mails / "a.txt").write_text("Grüße: 5 €", encoding="cp1252")
    (mails / "new" / "b.md").write_text("Grüße: 6 €", encoding="utf-8")
    said = bench.start("--prompt", "Extract: {{content}}").communicate()[1]
    assert "is not UTF-8 text (--encoding cp1252 reads it): mails/a.txt" in said
    bench.succeed("--prompt", "Extract: {{content}}", "--encoding", "cp1252")
    assert _asked(bench) == ["Extract: Grüße: 6 €", "Extract: Grüße: 5 €"]


def test_each_line_of_the_texts_is_a_row_if_the_user_says_so(bench, mails):
    bench.input = mails
    bench.succeed("--prompt", "Extract: {{text}}", "--each", "line")
    assert sorted(_asked(bench)) == ["Extract: Dear Ann,", "Extract: hello"]


def test_each_file_of_any_kind_is_a_row_if_the_user_says_so(bench):
    bench.input = bench.write(['{"a": 1}'], "in.json")
    bench.succeed("--prompt", "Sum up: {{content}}", "--each", "file")
    assert _asked(bench) == ['Sum up: {"a": 1}\n']


def test_a_folder_with_tables_has_their_rows(bench, mails):
    (mails / "rows.csv").write_text("prompt\nhi\n")
    (mails / "a.txt").unlink()
    bench.input = mails
    bench.succeed()
    assert _asked(bench) == ["hi"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_the_output_in_the_folder_of_texts_is_left_out_with_a_note(bench, mails, name):
    bench.input, bench.output = mails, mails / name
    note = f"1 file left out, as it is the output: mails/{name}"
    assert note not in bench.run("--prompt", "Extract: {{content}}").stderr
    assert note in bench.run("--prompt", "Extract: {{content}}").stderr
    assert sorted(_asked(bench)) == ["Extract: Dear Ann,\nhello", "Extract: Dear Bob,\nhello"]


def test_a_pattern_that_matches_only_the_output_says_so(bench):
    bench.output = bench.path / "a.csv"
    bench.output.write_text("text\nhi\n")
    bench.input = bench.path / "*.csv"
    said = bench.fail("--prompt", "{{content}}", "--each", "file", "--overwrite")
    assert "No file to send; 1 file left out, as it is the output: a.csv." in said
    assert "Only the output a.csv is at" in bench.fail("--prompt", "{{text}}", "--overwrite")


def test_a_prompt_without_the_content_asks_about_each_image_of_a_folder(bench, pictures):
    (pictures / "note.txt").write_text("no image")
    bench.input, bench.output = pictures, bench.path / "captions.csv"
    said = bench.run("--prompt", "Describe the picture.").stderr
    assert "1 file left out, as it is no image" in said
    assert _images(bench) == 2
    header, *rows = bench.output.read_text().splitlines()
    assert header.startswith("path,answer")
    assert [row.split(",")[0].endswith(name) for row, name in zip(rows, ("a.png", "b.jpg"), strict=True)] == [True] * 2


def test_python_asks_about_each_file_of_a_folder_too(bench, mails):
    options = {"model": "m", "base_url": bench.upstream.url, "api_key": "none", "progress": False}
    with pytest.warns(UserWarning, match="zeros.bin"):
        found = promptmill.bulk(str(mails), prompt="Extract: {{content}}", **options)
    assert found.answers == ["echo: Extract: Dear Ann,\nhello", "echo: Extract: Dear Bob,\nhello"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_constant_prompt_for_a_column_of_images_is_told_the_option(bench, form):
    bench.input = bench.path / f"in.{form}"
    bench.input.write_text("id,scan\n1,a.png\n" if form == "csv" else '{"id": 1, "scan": "a.png"}\n')
    said = bench.fail("--prompt", "Describe the picture.")
    assert "to ask about the images in scan: --image-column scan" in said


def test_a_relative_path_of_an_image_is_looked_for_next_to_the_input_first(bench, pictures):
    bench.input = pictures / "in.csv"
    bench.input.write_text("path\na.png\npictures/b.jpg\n")  # the second one is in the working directory
    bench.succeed("--prompt", "Describe the picture.", "--image-column", "path")
    assert _images(bench) == 2


def test_a_binary_file_is_no_text_in_another_encoding(bench):
    bench.input = bench.path / "files"
    bench.input.mkdir()
    (bench.input / "a.txt").write_text("tea")
    (bench.input / "b.doc").write_bytes(b"PK\x03\x04\x00\xff\xd0")
    (bench.input / "c.txt").write_text("tea", "utf-16")
    said = " ".join(bench.run("--prompt", "Extract: {{content}}").stderr.split())
    assert "1 file left out, as it is not text: files/b.doc" in said
    assert "c.txt" not in said, "its mark leaves no doubt"


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_one_text_file_is_a_row_for_a_prompt_about_its_content(bench, name):
    bench.input = bench.path / name
    bench.input.write_text("one\ntwo\n")
    bench.succeed("--prompt", "Sum up: {{content}}")
    assert [seen.prompt for seen in bench.upstream.seen] == ["Sum up: one\ntwo\n"]


def test_each_mail_of_a_mailbox_is_a_row(bench):
    bench.input = bench.path / "in.mbox"
    box = mailbox.mbox(bench.input)
    for text in ["Subject: A\n\none\n\nFrom here on\n", "Subject: B\n\ntwo\n", "Subject: =?utf-8?q?C=C3=A9?=\n\n\n"]:
        box.add(text)
    box.flush()
    bench.succeed("--prompt", "{{content}}")
    sent = ["Subject: A\n\none\n\nFrom here on", "Subject: B\n\ntwo", "Subject: Cé\n\n(no text)"]
    assert sorted(seen.prompt.strip() for seen in bench.upstream.seen) == sent
    assert [row["path"] for row in bench.answers()] == ["in.mbox#1", "in.mbox#2", "in.mbox#3"]


def test_a_mail_of_a_mailbox_that_cannot_be_read_is_left_out_alone(bench):
    bench.input = bench.path / "in.mbox"
    begin = "From a@example.org Mon Jan  1 10:00:00 2024\n"
    secret = "Subject: A\nContent-Type: application/pkcs7-mime; smime-type=enveloped-data\n\nx\n\n"
    bench.input.write_text(f"{begin}{secret}{begin}Subject: B\n\ntwo\n")
    said = " ".join(bench.run("--prompt", "{{content}}").stderr.split())
    assert "1 file left out, as it is encrypted; decrypt it in its mail program and save the text: in.mbox#1" in said
    assert [seen.prompt.strip() for seen in bench.upstream.seen] == ["Subject: B\n\ntwo"]


RAW = {
    "saved": "Received: from there\nMIME-Version: 1.0\n\nHello",
    "a.mail": "MIME-Version: 1.0\nSubject: Hello\n\nHello",
    "page.txt": "\n<!DOCTYPE html><title>Hello</title>",
    "c.rtf": "{\\rtf1 Hello}",
    "plain.txt": "A MIME-Version: 1.0, and <html>.",
}


def test_a_warning_of_mails_and_web_pages_comes_before_anything_is_sent(bench):
    bench.input = bench.path / "mails"
    bench.input.mkdir()
    for name, text in RAW.items():
        (bench.input / name).write_text(text)
    said = " ".join(bench.run("--prompt", "Extract: {{content}}", "--dry-run").stderr.split())
    warning = "Warning: 2 mails and 1 RTF file and 1 web page are sent raw, with MIME, base64 and tags"
    assert warning in said
    assert not bench.upstream.seen
    assert warning in " ".join(bench.run("--prompt", "Extract: {{content}}").stderr.split())
    assert len(bench.upstream.seen) == len(RAW)


def _slow_mail(path: Path) -> None:
    part = b"--B\nContent-Type: text/html\n\nx\n"
    path.write_bytes(b"Content-Type: multipart/mixed; boundary=B\n\n" + part * 200_000)


def _slow_pdf(path: Path) -> None:
    pages_of(path, lambda canvas: canvas._code.append("0 0 m 9 9 l S\n" * 1_000_000))


@pytest.fixture
def reading(bench: Any) -> Callable[..., Awaitable[psutil.Process]]:
    """Wait until the process of a helper, which has started, works at a call; return the process."""

    async def found(helper: Helper, calling: asyncio.Future[Any]) -> psutil.Process:
        process = psutil.Process(sure(helper.pid))
        before = process.cpu_times().user
        await until(lambda: calling.done() or process.cpu_times().user > before + 0.2)
        assert not calling.done()
        return process

    return found


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize(
    ("kind", "protocol"),
    [("mail", "auto"), ("mail", "legacy"), ("PDF", "auto"), ("page of a PDF", "auto")],
    indirect=["protocol"],
)
async def test_a_cancelled_call_ends_the_process_that_reads_its_file(bench, tools, reading, kind):
    """Each file takes seconds to read."""
    path = bench.path / ("a.eml" if kind == "mail" else "a.pdf")
    (_slow_mail if kind == "mail" else _slow_pdf)(path)
    documents.text_of(sure(whole("a.html")), b"x")
    with pdf_of_texts(bench.path / "small.pdf", ["x"]).open("rb") as file:
        pdf.READER.pages(file)
    helper, lost = documents._HELPER if kind == "mail" else pdf.READER._helper, len(pdf.READER._lost)
    asked: dict[str, Any] = {"files": [path.name], "prompt": "{{content}}"}
    if kind == "page of a PDF":
        asked = {"prompt_ls": ["x"], "multimodal_path": [[pdf.page_of(str(path), 1)]]}
    async with tools() as call:
        calling = asyncio.ensure_future(call("bulk_generate" if "files" in asked else "multimodal_generate", **asked))
        reader = await reading(helper, calling)
        calling.cancel()
        await asyncio.wait({calling})
        assert calling.cancelled()
        await until(lambda: gone([reader]))
        assert len(pdf.READER._lost) == lost, "the next call reads the file again"


def test_the_documents_of_a_call_have_one_bound_of_processor_time(tmp_path, monkeypatch):
    (tmp_path / "a.html").write_text("<p>a")
    (tmp_path / "b.html").write_text("<p>b")
    asked = FileQuestion(JobPrompts(templates=("{{content}}",)))
    monkeypatch.setattr(whole_files, "LONGEST_READING_S", -1)
    files = WholeFiles([str(tmp_path / "*.html")], FileRule((tmp_path.resolve(),)), asked)
    with pytest.raises(PromptmillError, match="name fewer files"):
        list(files.lines())
    assert len([*OwnFiles([tmp_path], tmp_path / "out", asked).lines()]) == 2
