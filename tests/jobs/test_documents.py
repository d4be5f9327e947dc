"""Mails, web pages and Word documents: their text is sent, without MIME, base64 and tags."""

import base64
import os
import zipfile
from email.message import EmailMessage

import docx
import pytest

from promptmill.core.errors import PromptmillError
from promptmill.jobs.inputs import documents
from promptmill.jobs.inputs.documents import mail_text, page_text, word_text


def _mail(html_only=False):
    mail = EmailMessage()
    mail["From"], mail["To"] = "Jörg Müller <j@example.org>", "shop@example.org"
    mail["Subject"], mail["Date"] = "Größe falsch", "Mon, 02 Mar 2026 10:00:00 +0100"
    if html_only:
        mail.set_content("<p>Die Größe&nbsp;passt nicht.</p><style>p {}</style>", subtype="html", charset="iso-8859-1")
    else:
        mail.set_content("Die Größe passt nicht.\n", charset="utf-8", cte="base64")
        mail.add_alternative("<b>Die Größe</b>", subtype="html")
    mail.add_attachment(b"\x00\x01" * 500, maintype="image", subtype="png", filename="schuh.png")
    return mail.as_bytes()


@pytest.mark.parametrize("html_only", [False, True])
def test_a_mail_is_its_head_its_text_and_the_names_of_its_attachments(html_only):
    assert mail_text(_mail(html_only)).replace("\xa0", " ") == (
        "From: Jörg Müller <j@example.org>\nTo: shop@example.org\nSubject: Größe falsch\n"
        "Date: Mon, 02 Mar 2026 10:00:00 +0100\nAttachments: schuh.png\n\nDie Größe passt nicht."
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no head at all",
        b"Subject: =?x-unknown?q?a?=\nContent-Type: text/plain; charset=nonsense\n\n\xff\xfe",
        b"Content-Type: multipart/mixed; boundary=a\n\n--a\n",
        b"Date: never\nFrom: <<<\nTo: ,;\n\nText",
        b"Content-Transfer-Encoding: base64\n\n!!!!",
    ],
)
def test_a_strange_mail_is_some_text_and_no_error(data):
    assert isinstance(mail_text(data), str)


def test_the_mail_of_apples_program_has_its_length_before_it():
    assert mail_text(b"23\nSubject: Hello\n\nText\n").startswith("Subject: Hello\n\nText")


def test_a_web_page_is_what_a_reader_sees():
    page = (
        "<!doctype html><head><meta charset='windows-1252'><title>Prices &amp; sizes</title><style>p{}</style></head>"
        "<body><nav><a href='/x'>Home</a></nav><h1>Shoes</h1><p>From\n 10 € to<br>20&nbsp;€</p>"
        "<script>var p = '<p>no</p>'</script><ul><li>red<li>blue</ul>"
        "<table><tr><th>size<th>price<tr><td>40<td>10</table><pre>a\n  b</pre><img src=x alt='a shoe'></body>"
    )
    text = page_text(page.encode("cp1252")).replace("\xa0", " ")
    assert text.split("\n\n")[:3] == ["Prices & sizes", "Home", "Shoes"]
    assert "From 10 € to\n20 €" in text
    assert "- red\n- blue" in text
    assert "size\tprice\n40\t10" in text
    assert "a\nb" in text
    assert text.endswith("[a shoe]")
    assert "var p" not in text


@pytest.mark.parametrize("page", ["", "<", "<p", "<script>", "</p></p>", "<!--", "<head>never closed", "a <b c"])
def test_a_broken_page_is_some_text_and_no_error(page):
    assert isinstance(page_text(page.encode()), str)


def test_a_word_document_is_its_paragraphs_and_tables(tmp_path):
    document = docx.Document()
    document.add_heading("Contract")
    document.add_paragraph("Between A and B.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "fee", "10"
    document.add_paragraph("Signed.")
    document.save(tmp_path / "a.docx")
    assert word_text((tmp_path / "a.docx").read_bytes()) == "Contract\nBetween A and B.\nfee\t10\nSigned."


def test_no_word_document_and_one_that_unpacks_to_too_much_are_refused(tmp_path, monkeypatch):
    with pytest.raises(PromptmillError, match="is no Word document"):
        word_text(b"PK\x03\x04 not really")
    monkeypatch.setattr("promptmill.jobs.inputs.documents.LARGEST_FILE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", b"0" * (2 << 20))
    with pytest.raises(PromptmillError, match="unpacks to more than 1 MiB"):
        word_text((tmp_path / "bomb.docx").read_bytes())


def test_a_folder_of_documents_is_asked_about_their_texts(bench):
    bench.input = bench.path / "letters"
    bench.input.mkdir()
    (bench.input / "a.eml").write_bytes(_mail())
    (bench.input / "b.html").write_text("<p>Hello</p>")
    document = docx.Document()
    document.add_paragraph("Dear all")
    document.save(bench.input / "c.docx")
    done = bench.run("--prompt", "Sum up: {{content}}")
    assert "raw" not in done.stderr
    asked = [seen.json["messages"][-1]["content"] for seen in bench.upstream.seen]
    assert any(text.endswith("Die Größe passt nicht.") for text in asked)
    assert {"Sum up: Hello", "Sum up: Dear all"} <= {*asked}
    assert not any(base64.b64encode(b"\x00\x01" * 9).decode() in text for text in asked)


def test_a_single_mail_is_one_row(bench):
    bench.input = bench.path / "a.eml"
    bench.input.write_bytes(_mail())
    bench.run("--prompt", "Sum up: {{content}}")
    assert len(bench.upstream.seen) == 1


def test_the_text_of_a_mail_with_a_key_is_not_sent_for_a_call(tmp_path):
    from promptmill.jobs.inputs.whole_files import FileQuestion, WholeFiles
    from promptmill.jobs.store.stored import Question
    from promptmill.system.call_files import FileRule

    mail = EmailMessage()
    mail.set_content("password: hunter2Zq81xTy\n", cte="base64")
    (tmp_path / "a.eml").write_bytes(mail.as_bytes())
    question = Question(templates=("{{content}}",))
    files = WholeFiles([str(tmp_path / "a.eml")], FileRule((tmp_path.resolve(),)), FileQuestion(question))
    with pytest.raises(PromptmillError, match="may hold secrets"):
        list(files.lines())


def test_a_document_that_cannot_be_read_fails_alone_in_a_process_of_its_own():
    with pytest.raises(PromptmillError, match="is no Word document"):
        documents.text_of(".docx", b"junk")
    reader = documents._HELPER.pid
    assert reader not in {None, os.getpid()}
    documents._HELPER.kill()
    assert documents.text_of(".eml", _mail()).endswith("Die Größe passt nicht.")
    assert documents.text_of(".html", b"x" * 100) == "x" * 100
    with pytest.raises(PromptmillError, match="more than 1 million characters"):
        documents.text_of(".html", b"x" * (1 << 20) + b"y")


def test_a_mail_whose_parts_are_nested_too_deeply_does_not_end_the_process_that_reads_it():
    kind = b"Content-Type: multipart/mixed; boundary="
    mail = b"".join(b'%b"b%d"\r\n\r\n--b%d\r\n' % (kind, at, at) for at in range(1200))
    documents.text_of(".html", b"x")
    reader = documents._HELPER.pid
    with pytest.raises(PromptmillError, match="is damaged"):
        documents.text_of(".eml", mail)
    assert documents.text_of(".html", b"x") == "x"
    assert documents._HELPER.pid == reader
