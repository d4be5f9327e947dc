"""Mails, web pages and Word documents: their text is sent, without MIME, base64 and tags."""

import base64
import contextlib
import io
import os
import tracemalloc
import zipfile
from email.message import EmailMessage

import docx
import pytest
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml

from promptmill.core.errors import PromptmillError
from promptmill.files import documents, encodings
from promptmill.files.format_table import whole
from promptmill.files.mails import mail_text
from promptmill.files.web_pages import page_text
from promptmill.files.word import word_text
from sure import sure


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
    assert "a\n  b" in text
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
    monkeypatch.setattr("promptmill.files.word.LARGEST_FILE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", b"0" * (2 << 20))
    with pytest.raises(PromptmillError, match="unpacks to more than 1 MiB"):
        word_text((tmp_path / "bomb.docx").read_bytes())


def _in(charset, text, encoding, kind="plain"):
    head = f"Content-Type: text/{kind}; charset={charset}\nContent-Transfer-Encoding: 8bit\n\n"
    return head.encode() + text.encode(encoding)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Subject: x\n\nGröße 10 €".encode(), "Größe 10 €"),
        ("Subject: x\n\nGröße 10 €".encode("cp1252"), "Größe 10 €"),
        (_in("us-ascii", "Größe 10 €", "utf-8"), "Größe 10 €"),
        (_in("utf-8", "Größe 10 €", "cp1252"), "Größe 10 €"),
        (_in("iso-8859-1", "10 € “net”", "cp1252"), "10 € “net”"),
        (_in("gb2312", "朱镕基 €", "gb18030"), "朱镕基 €"),
        (_in("ks_c_5601-1987", "한국 똠", "cp949"), "한국 똠"),
        (_in("windows-874", "สวัสดี", "cp874"), "สวัสดี"),
        (_in("iso-2022-jp", "日本", "iso2022_jp"), "日本"),
        (_in("utf-16le", "中文", "utf-16-le"), "中文"),
        (_in("us-ascii", "<meta charset=windows-1251><p>Привет", "cp1251", "html"), "Привет"),
    ],
)
def test_a_mail_with_no_or_a_wrong_charset_is_read_as_mailers_read_it(data, text):
    assert mail_text(data).partition("\n\n")[2] == text


def _mixed(*parts, kind="mixed"):
    return b"\n".join(
        [
            f"Content-Type: multipart/{kind}; boundary=cut\n".encode(),
            *(b"--cut\n" + part for part in parts),
            b"--cut--\n",
        ]
    )


def test_a_mail_is_all_of_its_texts_in_their_order():
    plain, page = b"Content-Type: text/plain\n\n", b"Content-Type: text/html\n\n"
    picture = b"Content-Type: image/png\nContent-Disposition: inline; filename=b.png\n\nxx"
    listing = b"Content-Type: text/plain\nContent-Disposition: inline; filename=c.txt\n\nof a file"
    mail = _mixed(plain + b"Please see", picture, plain + b"and pay 42", listing)
    assert mail_text(mail) == "Attachments: b.png, c.txt\n\nPlease see\n\nand pay 42"
    assert mail_text(_mixed(page + b"<p>The order", plain + b"A list's footer")) == "\n\nThe order\n\nA list's footer"
    assert mail_text(_mixed(plain + b" \n", page + b"<p>The text", kind="alternative")) == "\n\nThe text"
    assert mail_text(_mixed(page + b"<p>Hello", plain + b"Hello", kind="alternative")) == "\n\nHello"
    assert mail_text(_mixed(picture, page + b"<p>Hello", kind="related; start=x")) == ("Attachments: b.png\n\nHello")
    shown = _mixed(page + b"<p>Hello", picture, kind="related").replace(b"cut", b"inner")
    assert mail_text(shown) == "Attachments: b.png\n\nHello"
    both = _mixed(plain + b"Hello", shown, kind="alternative")
    assert mail_text(both) == "\n\nHello", "a picture of a page that is not read"
    assert mail_text(b"21\nSubject: a\n\nText 1\n\n\n<?xml version='1.0'?><plist/>") == "Subject: a\n\nText 1"
    assert mail_text("\ufeffSubject: =?iso-8859-1?Q?10_=80?=\n\n1".encode()) == "Subject: 10 €\n\n1"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("\ufeff<p>Größe</p>".encode("utf-16-le"), "Größe"),
        ("<meta charset=iso-8859-1><p>10 €".encode("cp1252"), "10 €"),
        ("<meta charset=shift_jis><p>①㈱".encode("cp932"), "①㈱"),
        ('<?xml version="1.0" encoding="iso-8859-2"?><p>ąž</p>'.encode("iso-8859-2"), "ąž"),
        ("<meta charset=utf-8><p>Größe, Füße".encode() + b"\xff", "Größe, Füße�"),
        (b"<meta charset=utf-16><p>a", "a"),
        (b"<meta charset=utf-7><p>1+ANw-", "1+ANw-"),
    ],
)
def test_a_page_is_read_in_the_encoding_that_browsers_take(data, text):
    assert page_text(data) == text


def test_numbers_of_a_page_keep_their_place_and_meaning():
    assert page_text(b"<table><tr><th><th>a<th>b<tr><td>x<td><td>5</table>") == "\ta\tb\nx\t\t5"
    spans = "<tr><td colspan=2>ab<td>c<tr><td rowspan=2>r<td>1<td>2<tr><td>3<td>4<tr><td>5<td>6"
    assert page_text(f"<table>{spans}</table>".encode()) == "ab\t\tc\nr\t1\t2\n\t3\t4\n5\t6"
    assert page_text(b"<table><tr><td>\n<p>a</p>\n<td><p>b</p></td><tr><td><p>c<td>d</table>") == "a\tb\n\nc\td"
    assert page_text(b"<table><tr><td>a<td><table><tr><td>i</table><td>c</table>").endswith("c")
    assert page_text(b"10<sup>2</sup> m, 19<sup><b>99</b></sup>, the 1<sup>st</sup> 5") == "10² m, 19⁹⁹, the 1st 5"
    assert page_text(b"<p>10<sup>2<p>12</p><table><tr><td>5<sup>3<td>7</table>") == "10²\n\n12\n\n5³\t7"
    items = page_text(b"<ol start=3><li>a<li value=7>b<ul><li>c</ul><li>d</ol>")
    assert " ".join(items.split()) == "3. a 7. b - c 8. d"
    assert page_text(b"Donau&shy;dampf") == "Donaudampf"


def _word(*bodies, **parts):
    """Return a Word document with this XML in its body, and parts such as footnotes."""
    main = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = docx.Document()
    for body in bodies:
        name, rest = body[1:].split(">", 1)
        document.element.body.insert(len(document.element.body) - 1, parse_xml(f"<{name} {main}>{rest}"))
    for one in [one for one in document.part.rels.values() if one.reltype.endswith(tuple(parts or ["-"]))]:
        del document.part.rels[one.rId]
    for name, body in parts.items():
        kind = f"application/vnd.openxmlformats-officedocument.wordprocessingml.{name}+xml"
        part = Part(PackURI(f"/word/{name}.xml"), kind, f"<w:{name} {main}>{body}</w:{name}>".encode())
        document.part.relate_to(part, f"http://schemas.openxmlformats.org/officeDocument/2006/relationships/{name}")
    document.save(data := io.BytesIO())
    return data.getvalue()


def _run(text, properties=""):
    return f"<w:r>{properties and f'<w:rPr>{properties}</w:rPr>'}<w:t xml:space='preserve'>{text}</w:t></w:r>"


def test_a_word_document_is_what_word_shows():
    deleted = "<w:del><w:r><w:delText>10</w:delText></w:r></w:del>"
    changed = f"<w:p>{_run('fee ')}{deleted}<w:ins>{_run('20')}</w:ins><w:smartTag>{_run(' EUR')}</w:smartTag></w:p>"
    form = f"<w:p>{_run('Name: ')}<w:sdt><w:sdtPr/><w:sdtContent>{_run('Ann')}</w:sdtContent></w:sdt></w:p>"
    field = f"<w:p><w:fldSimple w:instr='DATE'>{_run('2 March')}</w:fldSimple><w:r><w:sym w:char='F0FE'/></w:r></w:p>"
    above = _run("2", "<w:vertAlign w:val='superscript'/>")
    raised = f"<w:p>{_run('10')}{above}{_run('no', '<w:vanish/>')}</w:p>"
    noted = f"<w:p>{_run('Block')}<w:r><w:footnoteReference w:id='1'/></w:r></w:p>"
    block = f"<w:sdt><w:sdtContent>{noted}</w:sdtContent></w:sdt>"
    note = f"<w:footnote w:id='0' w:type='separator'/><w:footnote w:id='1'><w:p>{_run('but not B')}</w:p></w:footnote>"
    text = word_text(_word(changed, form, field, raised, block, footnotes=note))
    assert text.split("\n") == [
        *("fee 20 EUR", "Name: Ann", "2 March☑", "10²", "Block[footnote 1]", "[footnote 1] but not B"),
    ]


def test_cells_of_a_word_document_are_in_their_columns_and_its_letterhead_is_read():
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "Invoice 7"
    document.sections[0].footer.paragraphs[0].text = "IBAN DE1"
    table = document.add_table(3, 3)
    for at, cell in enumerate(each for row in table.rows for each in row.cells):
        cell.text = f"c{at}"
    table.cell(0, 1).text = table.cell(2, 0).text = ""
    table.cell(0, 0).merge(table.cell(0, 1))
    table.cell(1, 0).merge(table.cell(2, 0))
    table.cell(2, 2).add_table(1, 2).cell(0, 1).text = "inner"
    document.save(data := io.BytesIO())
    assert word_text(data.getvalue()) == "Invoice 7\nc0\t\tc2\nc3\tc4\tc5\n\tc7\tc8\n\tinner\nIBAN DE1"


def test_a_word_document_with_wrong_numbers_in_its_xml_is_read():
    spans = ("<w:gridSpan w:val='2.0'/>", "<w:gridSpan/>", "<w:gridSpan w:val='0'/>", "<w:gridSpan w:val='9999999'/>")
    cells = "".join(f"<w:tc><w:tcPr>{span}</w:tcPr><w:p>{_run('a')}</w:p></w:tc>" for span in spans)
    assert word_text(_word(f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>")) == "a\ta\ta\ta"
    level = "<w:lvl><w:start w:val='x'/><w:numFmt w:val='decimal'/><w:lvlText w:val='%1.'/></w:lvl>"
    change = "<w:lvlOverride><w:startOverride w:val='y'/></w:lvlOverride>"
    kind = f"<w:abstractNum w:abstractNumId='5'>{level}</w:abstractNum>"
    lists = f"{kind}<w:num w:numId='7'><w:abstractNumId w:val='5'/>{change}</w:num><w:num w:numId='8'/>"
    assert word_text(_word(_list(7, "a", "z"), _list(7, "b"), _list(8, "c"), numbering=lists)) == "1. a\n2. b\nc"


def test_white_space_around_a_word_document_is_left_out():
    hidden = _run("no", "<w:vanish w:val='off'/>")
    assert word_text(_word(f"<w:p>{_run('  a')}</w:p>", f"<w:p>{hidden}{_run(' b  ')}</w:p>")) == "a\nno b"


def _list(name, text, at=None):
    """Return a paragraph of a list."""
    level = "" if at is None else f"<w:ilvl w:val='{at}'/>"
    return f"<w:p><w:pPr><w:numPr>{level}<w:numId w:val='{name}'/></w:numPr></w:pPr>{_run(text)}</w:p>"


def test_the_numbers_of_lists_are_those_that_word_computes():
    levels = "".join(
        f"<w:lvl w:ilvl='{at}'><w:start w:val='{start}'/><w:numFmt w:val='{form}'/><w:lvlText w:val='{text}'/></w:lvl>"
        for at, (start, form, text) in enumerate(
            [(3, "decimal", "§ %1"), (1, "lowerLetter", "%1.%2)"), (9, "upperRoman", "(%3)"), (1, "bullet", "o")]
        )
    )
    begun = "<w:num w:numId='8'><w:abstractNumId w:val='5'/><w:lvlOverride w:ilvl='0'><w:startOverride w:val='1'/>"
    lists = (
        f"<w:abstractNum w:abstractNumId='5'>{levels}</w:abstractNum><w:num w:numId='7'><w:abstractNumId w:val='5'/>"
    )
    lists += f"</w:num>{begun}</w:lvlOverride></w:num>"
    items = [_list(7, "a", 0), _list(7, "b", 1), _list(7, "c", 1), _list(7, "d", 2), _list(7, "e", 3), _list(7, "f", 0)]
    items += [_list(7, "g", 1), _list(8, "h"), _list(7, "i"), _list(0, "j"), _list(99, "k")]
    expected = ["§ 3 a", "3.a) b", "3.b) c", "(IX) d", "- e", "§ 4 f", "4.a) g", "§ 1 h", "§ 2 i", "j", "k"]
    assert word_text(_word(*items, numbering=lists)).split("\n") == expected
    document = docx.Document()
    for style in ("List Number", "List Number", "List Bullet", "Normal", "List Number"):
        document.add_paragraph(style, style=style)
    document.save(data := io.BytesIO())
    numbered = ["1. List Number", "2. List Number", "- List Bullet", "Normal", "3. List Number"]
    assert word_text(data.getvalue()).split("\n") == numbered


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
    from promptmill.jobs.store.description import JobPrompts
    from promptmill.system.call_files import FileRule

    mail = EmailMessage()
    mail.set_content("password: hunter2Zq81xTy\n", cte="base64")
    (tmp_path / "a.eml").write_bytes(mail.as_bytes())
    question = JobPrompts(templates=("{{content}}",))
    files = WholeFiles([str(tmp_path / "a.eml")], FileRule((tmp_path.resolve(),)), FileQuestion(question))
    with pytest.raises(PromptmillError, match="may hold secrets"):
        list(files.lines())


def test_a_document_that_cannot_be_read_fails_alone_in_a_process_of_its_own():
    with pytest.raises(PromptmillError, match="is no Word document"):
        documents.text_of(sure(whole("a.docx")), b"junk")
    reader = documents._HELPER.pid
    assert reader not in {None, os.getpid()}
    documents._HELPER.kill()
    assert documents.text_of(sure(whole("a.eml")), _mail()).endswith("Die Größe passt nicht.")
    assert documents.text_of(sure(whole("a.html")), b"x" * 100) == "x" * 100
    with pytest.raises(PromptmillError, match="more than 1 million characters"):
        documents.text_of(sure(whole("a.html")), b"x" * (1 << 20) + b"y")


def test_a_mail_whose_parts_are_nested_too_deeply_does_not_end_the_process_that_reads_it():
    kind = b"Content-Type: multipart/mixed; boundary="
    mail = b"".join(b'%b"b%d"\r\n\r\n--b%d\r\n' % (kind, at, at) for at in range(1200))
    documents.text_of(sure(whole("a.html")), b"x")
    reader = documents._HELPER.pid
    with pytest.raises(PromptmillError, match="is damaged"):
        documents.text_of(sure(whole("a.eml")), mail)
    assert documents.text_of(sure(whole("a.html")), b"x") == "x"
    assert documents._HELPER.pid == reader


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<!doctype html><html><head><title>T</title><p>One<p>Two", "T\n\nOne\n\nTwo"),
        ("<head><meta charset=utf-8>One <b>two</b>", "One two"),
        ("<body><svg><title>x</title><p>One</p>two", "One\n\ntwo"),
        ("<?xml version='1.0'?><html><head><title/><script src='x'/></head><body><p/>One</body></html>", "One"),
        ("<p>x</p><pre>\nif a:\n\n\n\n    b  c\n</pre><p>y", "x\n\nif a:\n\n\n\n    b  c\n\ny"),
        ("<noscript>a</noscript><head><NoScript ><p>b</noscript></head><p>One", "One"),
        ("<ol><li><p>One</p><li><div>two</div></ol><ul><li>a<ul><li>b</ul></ul>", "1. One\n\n2. two\n\n- a\n\n- b"),
        ("<pre>\tone</pre><table><tr><td>a<td>b", "\tone\n\na\tb"),
        ("Name: <input value=Ann> <input type=hidden value=x><input type=password value=y>", "Name: Ann"),
        ("<input type=checkbox checked>a<br><input type=radio>b", "☑ a\n☐ b"),
        ("<select><option>a<option selected>b<option>c</select>", "b"),
        ("<select><option>a<option>b</select> <select multiple><option>c<option selected>d</select>", "a\n☐ c\n☑ d"),
        ("Text: <textarea>a\n  b</textarea>", "Text: a\n  b"),
        ("<p hidden>a<p>b<div style='Display : none'><div>c</div>d</div>e<dialog>f</dialog><br hidden>", "b\n\ne"),
        ("<ol type=a start=27><li>x<li>y</ol><ol reversed><li>p<li>q</ol>", "aa. x\nbb. y\n\n2. p\n1. q"),
        ("5<sup>2,3</sup> a<sup>[1]</sup> 1<sup>st</sup>", "5²,³ a[1] 1st"),
        ("<table><tr><td rowspan=0>a<td>b<tr><td>c<tbody><tr><td>d", "a\tb\n\tc\nd"),
        ("<math><mi>x</mi><annotation>TeX</annotation></math><iframe>no</iframe><q>yes</q>", 'x"yes"'),
    ],
)
def test_a_page_is_read_as_browsers_show_it(page, text):
    assert page_text(page.encode()) == text


@pytest.mark.parametrize(
    ("charset", "codec", "text"),
    [
        ("iso-2022-jp", None, "日①髙ｱ"),
        ("x-euc-jp", None, "日①髙ｱ"),
        ("x-sjis", "cp932", "①髙"),
        ("ks_c_5601-1987", "cp949", "안녕 똠"),
        ("x-gbk", "gbk", "价格 镕"),
        ("tis-620", "cp874", "ราคา…"),
        ("x-cp1251", "cp1251", "цена"),
        ("big5", "cp950", "價格€"),
        ("big5", "big5hkscs", "咗"),
    ],
)
def test_a_text_is_read_in_the_larger_encoding_that_its_charset_means(charset, codec, text):
    known = {"iso-2022-jp": b"\x1b$BF|-!|b\x1b(I1\x1b(B", "x-euc-jp": b"\xc6\xfc\xad\xa1\xfc\xe2\x8e\xb1"}
    assert encodings.text_of(text.encode(codec) if codec else known[charset], charset) == text


_PLAIN = b"Content-Type: text/plain\n\n"
_PACKED = b"\nContent-Transfer-Encoding: base64\n\n" + base64.b64encode(b"Subject: Inner\n\nThe text")
_FORWARDED = b"Content-Type: message/rfc822\n\nSubject: Inner\n\nThe text"


@pytest.mark.parametrize(
    ("mail", "text"),
    [
        (b"\r\nSubject: a\n\nb", "Subject: a\n\nb"),
        ("\ufeffSubject: a\n\nb".encode("utf-16-le"), "Subject: a\n\nb"),
        (
            "Subject: Größe €\nFrom: =?utf-8?q?J=C3?= =?utf-8?q?=B6rg?=\n\nb".encode(),
            "From: Jörg\nSubject: Größe €\n\nb",
        ),
        (b"Subject: Gr\xf6\xdfe\n\na\r\nb", "Subject: Größe\n\na\nb"),
        (_FORWARDED.replace(b"\n\nSubject: Inner\n\nThe text", _PACKED), "\n\nSubject: Inner\n\nThe text"),
        (_FORWARDED, "\n\nSubject: Inner\n\nThe text"),
        (_PLAIN.replace(b"\n\n", b"\nContent-Disposition: attachment; filename=b.txt\n\nc"), "\n\nc"),
        (b"Content-Type: text/calendar\n\nBEGIN:VCALENDAR", "\n\nBEGIN:VCALENDAR"),
        (b"Content-Type: image/png; name*=utf-8''%C3%B6.png\n\nx", "Attachments: ö.png\n\n(no text)"),
        (b"Content-Type: multipart/mixed\n\nWithout parts", "\n\nWithout parts"),
    ],
)
def test_a_mail_is_read_as_mailers_show_it(mail, text):
    assert mail_text(mail) == text


def test_mails_within_a_mail_are_texts_or_attachments_and_signs_that_nobody_sees_are_no_text():
    attached = _FORWARDED.replace(b"\n\nS", b"\nContent-Disposition: attachment; filename=f.eml\n\nS", 1)
    assert mail_text(_mixed(_PLAIN + b"See", _FORWARDED)) == "\n\nSee\n\nSubject: Inner\n\nThe text"
    assert mail_text(_mixed(_PLAIN + b"See", attached)) == "Attachments: f.eml\n\nSee"
    assert mail_text(_mixed(b"\nSubject: a\n\nOne", kind="digest")).endswith("Subject: a\n\nOne")
    for blank in ("\u200b", "\xa0", "\u034f \u2800"):
        plain = b"Content-Type: text/plain; charset=utf-8\n\n" + blank.encode()
        page = b"Content-Type: text/html\n\n<p>The text"
        assert mail_text(_mixed(plain, page, kind="alternative")) == "\n\nThe text"


@pytest.mark.parametrize(
    "mail",
    [
        b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\n\nMIAG",
        b"Content-Type: application/pkcs7-mime; smime-type=signed-data\n\nMIAG",
        b"Content-Type: multipart/encrypted; boundary=cut\n\n--cut\n\nVersion: 1\n--cut--",
        b"Subject: a\n\n-----BEGIN PGP MESSAGE-----\nxx",
    ],
)
def test_a_mail_that_only_its_program_reads_is_an_error(mail):
    with pytest.raises(PromptmillError, match=r"is encrypted|is signed"):
        mail_text(mail)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("read", "data"),
    [
        (mail_text, b"To: " + b"a@b.c, " * 50_000 + b"\n\nx"),
        (mail_text, b"From: " + b'"' * 400_000 + b"\n\nx"),
        (mail_text, b"Subject: " + b"=?utf-8?q?a?= " * 30_000 + b"\n\nx"),
        (mail_text, b"Content-Type: text/plain" + b"; a=" * 10_000 + b"\n\nx"),
        (page_text, b"<table><tr>" + b"<td colspan=1000 rowspan=1000>" * 10_000),
        (page_text, b"<table><tr>" + b"<td colspan=1000>a" * 10_000),
        (page_text, b"<select>" + b"<option>" * 3_000),
    ],
)
def test_a_hostile_document_takes_little_memory(read, data):
    tracemalloc.start()
    try:
        with contextlib.suppress(PromptmillError):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000  # 40 MB and more, or minutes, without the bounds
    finally:
        tracemalloc.stop()


def test_the_cells_of_a_word_document_take_no_more_columns_than_word_has():
    row = "<w:tc><w:tcPr><w:gridSpan w:val='100000000'/></w:tcPr><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc>" * 3
    assert len(word_text(_word(f"<w:tbl><w:tr>{row}</w:tr></w:tbl>"))) < 200


def test_the_fields_of_an_old_form_show_their_state():
    boxes = "<w:checkBox><w:default w:val='1'/><w:checked/></w:checkBox><w:checkBox><w:default w:val='0'/></w:checkBox>"
    names = "<w:listEntry w:val='red'/><w:listEntry w:val='blue'/></w:ddList>"
    field = f"<w:ffData>{boxes}<w:ddList><w:result w:val='1'/>{names}<w:ddList>{names}</w:ffData>"
    paragraph = f"<w:p><w:r><w:fldChar w:fldCharType='begin'>{field}</w:fldChar></w:r></w:p>"
    assert word_text(_word(paragraph)) == "☑☐bluered"


_M = "xmlns:m='http://schemas.openxmlformats.org/officeDocument/2006/math'"


def _e(text):
    return f"<m:r><m:t>{text}</m:t></m:r>"


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        (f"<m:f><m:num>{_e('a+b')}</m:num><m:den>{_e('2')}</m:den></m:f>", "(a+b)/2"),
        (f"<m:sSup><m:e>{_e('x')}</m:e><m:sup>{_e('2')}</m:sup></m:sSup>", "x²"),
        (f"<m:sSubSup><m:e>{_e('x')}</m:e><m:sub>{_e('i')}</m:sub><m:sup>{_e('n')}</m:sup></m:sSubSup>", "x_i^n"),
        (f"<m:d><m:e>{_e('a+b')}</m:e></m:d>{_e('c')}", "(a+b)c"),
        (f"<m:rad><m:deg>{_e('3')}</m:deg><m:e>{_e('x')}</m:e></m:rad>", "³√(x)"),
        (
            f"<m:nary><m:naryPr><m:chr m:val='∑'/></m:naryPr><m:sub>{_e('i')}</m:sub><m:e>{_e('i')}</m:e></m:nary>",
            "∑_i i",
        ),
        ("<w:sym w:font='Symbol' w:char='F0B1'/><w:sym w:font='Segoe UI' w:char='2713'/>", "±✓"),
        (
            "<w:ruby><w:rt><w:r><w:t>b</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>a</w:t></w:r></w:rubyBase></w:ruby>",
            "a(b)",
        ),
    ],
)
def test_formulas_and_signs_keep_their_meaning_in_a_line(piece, text):
    wrapped = f"<m:oMath {_M}>{piece}</m:oMath>" if "m:" in piece else f"<w:r>{piece}</w:r>"
    assert word_text(_word(f"<w:p>{wrapped}</w:p>")) == text


def test_a_row_that_begins_later_and_a_paragraph_without_its_mark():
    cell = "<w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc>"
    later = f"<w:tr><w:trPr><w:gridBefore w:val='1'/></w:trPr>{cell.format('c')}</w:tr>"
    table = f"<w:tbl><w:tr>{cell.format('a')}{cell.format('b')}</w:tr>{later}</w:tbl>"
    first = "<w:p><w:pPr><w:rPr><w:del/></w:rPr></w:pPr><w:r><w:t>d</w:t></w:r></w:p>"
    assert word_text(_word(table, first, "<w:p><w:r><w:t>e</w:t></w:r></w:p>")) == "a\tb\n\tc\nde"


_NAMESPACES = (
    'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" xmlns:v="urn:schemas-microsoft-com:vml"'
)


def _math(text, name="e"):
    return f"<m:{name}><m:r><m:t>{text}</m:t></m:r></m:{name}>"


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (f"<m:limLow>{_math('lim')}{_math('x→0', 'lim')}</m:limLow>{_math('f')}", "lim_(x→0)f"),
        (
            f"<m:d><m:e><m:m><m:mr>{_math('1')}{_math('2')}</m:mr><m:mr>{_math('3')}{_math('4')}</m:mr></m:m></m:e></m:d>",
            "(1 2; 3 4)",
        ),
        (f"<m:eqArr>{_math('x=1')}{_math('y=2')}</m:eqArr>", "x=1; y=2"),
        (f"<m:bar><m:barPr><m:pos m:val='top'/></m:barPr>{_math('x')}</m:bar>", "x\u0305"),
        (f"<m:acc>{_math('a+b')}</m:acc>", "(a+b)\u0302"),
        (f"<m:func>{_math('sin', 'fName')}{_math('x')}</m:func>", "sin x"),
        (f"<m:f><m:fPr><m:type m:val='noBar'/></m:fPr>{_math('n', 'num')}{_math('k', 'den')}</m:f>", "n¦k"),
        (f"<m:phant><m:phantPr><m:show m:val='0'/></m:phantPr>{_math('x')}</m:phant>{_math('y')}", "y"),
    ],
)
def test_a_formula_keeps_its_structure_in_a_line(formula, text):
    assert word_text(_word(f"<w:p><m:oMath {_NAMESPACES}>{formula}</m:oMath></w:p>")) == text


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        ("<w:r><w:sym w:font='Wingdings 2' w:char='F052'/><w:sym w:font='Wingdings 2' w:char='F0A3'/></w:r>", "☑☐"),
        ("<w:r><w:sym w:font='Wingdings' w:char='00FE'/><w:sym w:font='Symbol' w:char='0062'/></w:r>", "☑β"),
        ("<w:r><w:sym w:font='Wingdings' w:char='F0E0'/><w:sym w:font='Odd' w:char='F001'/></w:r>", "→\ufffd"),
        (_run("þ J", "<w:rFonts w:ascii='Wingdings'/>"), "☑ ☺"),
        (_run("\uf0fe"), "☑"),
        (_run("10") + _run("6", "<w:position w:val='8'/>"), "10⁶"),
        (_run("10") + _run("n+1", "<w:vertAlign w:val='superscript'/>"), "10^(n+1)"),
        (_run("log") + _run("2", "<w:vertAlign w:val='subscript'/>") + _run("8"), "log₂8"),
        (_run("x = ") + r"<w:r><w:instrText> EQ \f(1;2) </w:instrText></w:r>", r"x = \f(1;2)"),
        (_run("a") + r'<w:r><w:instrText> SYMBOL 254 \f "Wingdings" </w:instrText></w:r>', "a☑"),
        (f"<w:r><w:pict><v:textpath {_NAMESPACES} string='SALE'/></w:pict></w:r>", "SALE"),
    ],
)
def test_signs_of_fonts_fields_and_raised_digits_keep_their_meaning(piece, text):
    assert word_text(_word(f"<w:p>{piece}</w:p>")) == text


def _numbered(form, text="%1.", more=""):
    level = f"<w:lvl w:ilvl='0'><w:start w:val='1'/>{form}{more}<w:lvlText w:val='{text}'/></w:lvl>"
    below = "<w:numFmt w:val='decimal'/><w:isLgl/><w:lvlRestart w:val='0'/><w:lvlText w:val='%1.%2'/>"
    below = f"<w:lvl w:ilvl='1'>{below}</w:lvl>"
    kind = f"<w:abstractNum w:abstractNumId='5'>{level}{below}</w:abstractNum>"
    return f"{kind}<w:num w:numId='7'><w:abstractNumId w:val='5'/></w:num>"


@pytest.mark.parametrize(
    ("form", "numbers"),
    [
        ("decimalZero", "01 02 03"),
        ("ordinal", "1st 2nd 3rd"),
        ("ordinalText", "First Second Third"),
        ("cardinalText", "One Two Three"),
        ("russianLower", "\u0430 \u0431 \u0432"),
        ("hebrew1", "א ב ג"),
        ("chineseCounting", "一 二 三"),
        ("aiueo", "ｱ ｲ ｳ"),
        ("ganada", "가 나 다"),
        ("decimalEnclosedCircle", "① ② ③"),
        ("decimalFullWidth", "\uff11 \uff12 \uff13"),
        ("unknown", "1 2 3"),
    ],
)
def test_the_numbers_of_a_list_have_the_form_that_word_shows(form, numbers):
    lists = _numbered(f"<w:numFmt w:val='{form}'/>")
    text = word_text(_word(_list(7, "a"), _list(7, "b"), _list(7, "c"), numbering=lists))
    assert text.split("\n") == [f"{number}. {name}" for number, name in zip(numbers.split(), "abc", strict=True)]


def test_numbers_of_a_list_follow_its_legal_form_its_restarts_and_its_deleted_items():
    gone = "<w:p><w:pPr><w:numPr><w:numId w:val='7'/></w:numPr><w:rPr><w:{}/></w:rPr></w:pPr></w:p>"
    items = [
        _list(7, "a"),
        _list(7, "b", 1),
        gone.format("del"),
        gone.format("vanish"),
        _list(7, "c"),
        _list(7, "d", 1),
    ]
    text = word_text(_word(*items, numbering=_numbered("<w:numFmt w:val='upperRoman'/>")))
    assert text.split("\n") == ["I. a", "1.1 b", "II. c", "2.2 d"]
    form = "<mc:Choice Requires='w14'><w:numFmt w:val='custom' w:format='001, 002, …'/></mc:Choice>"
    form = f"<mc:AlternateContent {_NAMESPACES}>{form}</mc:AlternateContent>"
    lists = _numbered(form, "§%1", "<w:suff w:val='nothing'/>")
    note = "<w:footnote w:id='1'>" + _list(7, "n") + "</w:footnote>"
    assert word_text(_word(_list(7, "a"), numbering=lists, footnotes=note)) == "§001a\n[footnote 1] §001n"


def test_cells_that_are_hidden_deleted_or_covered_by_old_forms_of_merging():
    def cell(text, properties=""):
        return f"<w:tc><w:tcPr>{properties}</w:tcPr><w:p>{_run(text)}</w:p></w:tc>"

    rows = [
        cell("a", "<w:vMerge/>") + cell("5", "<w:hMerge w:val='restart'/>") + cell("5", "<w:hMerge/>") + cell("x"),
        f"<w:trPr><w:hidden/></w:trPr>{cell('no')}",
        cell("b") + cell("gone", "<w:cellDel/>") + cell("c"),
    ]
    text = word_text(_word("<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in rows) + "</w:tbl>"))
    assert text == "a\t5\t\tx\nb\tc"


def test_a_page_within_a_word_document_is_its_text():
    document = docx.Document(io.BytesIO(_word(f"<w:p>{_run('before')}</w:p>")))
    for name, kind, data in [
        ("a.html", "text/html", b"<p>10<sup>2</sup>"),
        (
            "a.docx",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            _word("<w:p>" + _run("in") + "</w:p>"),
        ),
        ("a.rtf", "application/rtf", b"{}"),
    ]:
        part = Part(PackURI(f"/word/{name}"), kind, data)
        relation = document.part.relate_to(
            part, "http://schemas.openxmlformats.org/officeDocument/2006/relationships/aFChunk"
        )
        chunk = document.element.body.makeelement(document.element.body.tag.replace("body", "altChunk"))
        chunk.set("{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id", relation)
        document.element.body.insert(len(document.element.body) - 1, chunk)
    document.save(data := io.BytesIO())
    assert word_text(data.getvalue()) == "before\n10²\nin\n(a part that is not read: application/rtf)"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<math><mfrac><mn>1</mn><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow></mfrac></math>", "1/(a+b)"),
        ("<math><msup><mi>x</mi><mn>2</mn></msup><msub><mi>y</mi><mi>i</mi></msub></math>", "x²y_i"),
        ("<math><msqrt><mn>2</mn></msqrt><mroot><mi>x</mi><mn>3</mn></mroot></math>", "√(2)³√(x)"),
        ("<math><mtable><mtr><mtd>1</mtd><mtd>2</mtd></mtr><mtr><mtd>3</mtd></mtr></mtable></math>", "1 2; 3"),
        ("<math><semantics><mi>a</mi><annotation>\\alpha</annotation></semantics></math>", "a"),
        ("<span><math><mi>a</mi></math></span><span class=katex-html aria-hidden=true>a</span>", "a"),
        ("10<span style='vertical-align: super'>6</span> log<sub>2</sub>8 2<sup>n+1</sup>", "10⁶ log₂8 2^(n+1)"),
        ("<ruby>漢<rt>kan</ruby> <ruby>漢<rp>(<rt>kan<rp>)</ruby>", "漢(kan) 漢(kan)"),
        ("<div style='white-space: pre-wrap'>a\n  b</div>", "a\n  b"),
        ("<div role=checkbox aria-checked=true>yes</div><div role=radio aria-checked=false>no</div>", "☑ yes\n\n☐ no"),
        ("<select><option label=Tea value=1></select> <input type=image alt=Go>", "Tea Go"),
        (
            "<p style='font-size:0px'>a</p><p style='display:/**/none'>b</p><p style='mso-hide:all'>d</p>e",
            "e",
        ),
        ("<p popover>a</p>b", "b"),
        ("<p style='font-size: 0.9em; opacity: 0.5'>a</p>", "a"),
        ("<div><template shadowrootmode=open><p>a</p></template></div>b", "a\n\nb"),
        (
            "<ol style='list-style-type: lower-alpha' start=2><li>x</ol><ul style='list-style: decimal'><li>y",
            "b. x\n\n1. y",
        ),
        ("<ol style='list-style: none'><li>1.1 x</ol>", "- 1.1 x"),
    ],
)
def test_a_page_keeps_its_formulas_boxes_and_styles(page, text):
    assert page_text(page.encode()) == text


@pytest.mark.parametrize(
    ("within", "text"),
    [
        ("<table><tr><td style='font-size:0px'><div style='font-size:13px'>a</div>b</table>", "a"),  # as MJML writes
        ("<p style='font: bold 700 14px/1.5 Arial'>a</p><p style='font-size: small'>b</p>", "a\n\nb"),
        ("<p class=text>a</p><p><b>b</b></p><p style='font-size: 2em'>c</p>", "a"),
        ("<p style='font: 0/0 a'>a</p><img alt=b>", "[b]"),
    ],
)
def test_a_part_of_a_page_within_one_of_size_0_may_have_its_own_size(within, text):
    assert page_text(f"<div style='font-size: 0'>no{within}</div>".encode()) == text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<s>49</s>39 <del>5</del><strike> </strike>", "~~49~~39 ~~5~~"),
        ("<span style='text-decoration: line-through'>4</span><s>9</s><s><s>5</s></s>", "~~495~~"),
        ("<table><tr><td style='text-decoration:line-through'>1<td><s>2</s>", "~~1~~\t~~2~~"),
    ],
)
def test_a_text_of_a_page_that_is_struck_out_has_marks(page, text):
    assert page_text(page.encode()) == text


def test_a_text_of_word_that_is_struck_out_has_marks():
    strike = "<w:strike/>"
    above = _run("1", "<w:dstrike/><w:vertAlign w:val='superscript'/>")
    paragraph = _run("4", strike) + _run("9", strike) + above + _run("39", "<w:strike w:val='0'/>")
    assert word_text(_word(f"<w:p>{paragraph}</w:p>")) == "~~49¹~~39"


def test_a_text_of_word_looks_as_its_styles_say(tmp_path):
    document = docx.Document()
    for name, kind, look in (("H", 2, "hidden"), ("S", 2, "strike"), ("U", 2, "superscript"), ("P", 1, "hidden")):
        setattr(document.styles.add_style(name, kind).font, look, True)
    document.styles.add_style("T", 2).base_style = document.styles["S"]
    paragraph = document.add_paragraph("a")
    for text, style in (("no", "H"), ("4", "S"), ("9", "T"), ("39", None), ("2", "U")):
        paragraph.add_run(text, style)
    document.add_paragraph("no", "P").add_run("b").font.hidden = False
    document.save(tmp_path / "a.docx")
    assert word_text((tmp_path / "a.docx").read_bytes()) == "a~~49~~39²\nb"


def test_the_code_of_a_field_in_word_is_no_text():
    begin, middle, end = (f"<w:r><w:fldChar w:fldCharType='{kind}'/></w:r>" for kind in ("begin", "separate", "end"))
    field = f"{begin}{begin}{middle}{_run('m')}{end}{middle}{_run('Mr')}{end}"
    unfinished = f"{begin}{_run(' Lee')}{end}{begin}{_run('!')}"
    assert word_text(_word(f"<w:p>{field}{unfinished}</w:p>")) == "Mr Lee!"


@pytest.mark.parametrize(
    "head",
    [
        b"<!-- <meta charset=koi8-r> --><meta charset=iso-8859-2>",
        b"<script>'<meta charset=koi8-r>'</script><meta\n charset\n=\n'iso-8859-2'>",
        b"<!--" + b"x" * 5000 + b"--><meta charset=iso-8859-2>",
    ],
)
def test_the_charset_of_a_page_stands_in_no_comment_and_may_stand_late(head):
    assert page_text(head + b"<p>\xb1") == "ą"


def _page_part(page):
    return b"Content-Type: text/html\n\n" + page + b"\n"


@pytest.mark.parametrize(
    ("mail", "text"),
    [
        (b"Content-Transfer-Encoding: base64;\n\naGk=\n", "hi"),
        (b"Content-Transfer-Encoding: base64 (all)\n\naGk=\naG8=\n\n--\na list\n", "hiho\n\n--\na list"),
        (b"Content-Type: text/plain; charset*=us-ascii'en'iso-8859-2\n\n\xb1", "ą"),
        (b"Content-Type: text/plain; charset=cp-850\n\nGr\x94\xe1e", "Größe"),
        (b"Subject: x\n\n\x1b$B@A5a\x1b(B", "請求"),
        (b"Subject: x\n\n" + "Привет, как дела?".encode("cp1251"), "Привет, как дела?"),
        (b"Subject: x\n\n" + "請求書を送付します。".encode("cp932"), "請求書を送付します。"),
        (b">From a@b Mon\nSubject: x\nContent-Transfer-Encoding: base64\n\naGk=", "hi"),
        (b"Subject : x\nContent-Transfer-Encoding : base64\n\naGk=", "hi"),
        (b"\0Subject: x\r\r\nContent-Transfer-Encoding: base64\r\r\n\r\r\naGk=", "hi"),
        (b"Subject: x\r\rhi\rho", "hi\nho"),
        ("Subject: x\n\nhi".encode("utf-16-be"), "hi"),
        (
            b"Content-Type: text/plain; format=flowed; delsp=yes\n\nsee a.de/b \nc\n> d \n> e\n-- \nAnn",
            "see a.de/bc\n> d \n> e\n-- \nAnn",
        ),
        (_mixed(b"\nUse an HTML mail program.\n", _page_part(b"<p>5 EUR"), kind="alternative"), "5 EUR"),
        (
            _mixed(b"\nSee below\n", _page_part(b"<p>See below: " + b"5 EUR " * 9), kind="alternative"),
            "See below: " + "5 EUR " * 8 + "5 EUR",
        ),
    ],
)
def test_a_mail_of_another_program_is_decoded_and_the_form_with_its_text_is_taken(mail, text):
    assert mail_text(mail).partition("\n\n")[2] == text


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"Content-Type: application/ms-tnef; name=winmail.dat", "only Outlook reads"),
        (b"Content-Type: message/partial; id=a; number=2", "one piece"),
        (b"Content-Type: application/octet-stream; name=smime.p7m", "is encrypted"),
    ],
)
def test_a_mail_whose_text_is_in_a_form_of_one_program_is_an_error(head, reason):
    with pytest.raises(PromptmillError, match=reason):
        mail_text(b"Subject: x\n" + head + b"\n\nabc\n")
