"""Sheets as rows: what a cell shows, which columns there are, and workbooks that cannot be read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import openpyxl
import pytest

from job_specs import spec_of
from promptmill.core.errors import PromptmillError
from promptmill.core.values import SheetDate
from promptmill.files.files import find, opened
from promptmill.files.workbook import SheetTable
from promptmill.jobs.columns.remarks import notes
from promptmill.jobs.inputs.any_format import format_of_input, input_of, objects_in
from workbook_files import sheet_xml, text_cell, write_parts

_ID = f'<row r="1">{text_cell("A1", "id")}{text_cell("B1", "value")}</row>'


def table(*paths: Path) -> SheetTable:
    return SheetTable(opened(find(paths, Path("/nowhere"))))


def book(path: Path, *rows: list[Any]) -> Path:
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.worksheets[0].append(row)
    workbook.save(path)
    return path


def cell_with(tmp_path: Path, cell: str, formats: dict[int, str] | None = None) -> Any:
    """Return the value of the only cell below the header."""
    rows = f'<row r="1">{text_cell("A1", "value")}</row><row r="2">{cell}</row>'
    (row,) = objects_in(write_parts(tmp_path / "in.xlsx", {"Sheet1": sheet_xml(rows)}, formats=formats))
    return row["value"]


def test_two_columns_of_one_name_keep_their_values(tmp_path):
    path = book(tmp_path / "in.xlsx", ["id", "text", "text"], [1, "old", "new"])
    assert list(objects_in(path)) == [{"id": 1, "text": "old", "text_2": "new"}]


def test_two_columns_of_one_name_keep_their_values_in_several_workbooks(tmp_path):
    first = book(tmp_path / "a.xlsx", ["id", "text", "text"], [1, "old", "new"])
    second = book(tmp_path / "b.xlsx", ["text", "id", "text"], ["older", 2, "newer"])
    (one,), (other,) = (stretch.rows for stretch in table(first, second).stretches([(1, "text"), (2, "text_2")]))
    assert (one.fields, other.fields) == (
        {"text": "old", "text_2": "new"},
        {"text": "older", "text_2": "newer"},
    )


def test_two_columns_of_one_name_keep_their_values_in_several_csv_files(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,old\n")
    (tmp_path / "b.csv").write_text("text,id,text\nolder,2,newer\n")
    (tmp_path / "in").mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).rename(tmp_path / "in" / name)
    rows = list(objects_in(tmp_path / "in"))
    assert [(row["id"], row["text"], row["text_2"]) for row in rows] == [("1", "old", ""), ("2", "older", "newer")]


def test_a_column_without_a_name_takes_the_name_of_no_other_column(tmp_path):
    path = book(tmp_path / "in.xlsx", ["id", None, "column_2"], [1, "a", "b"])
    assert list(objects_in(path)) == [{"id": 1, "column_2_": "a", "column_2": "b"}]


@pytest.mark.parametrize(
    ("code", "number", "shown"),
    [
        ("00000", "501", "00501"),
        ("000\\-00\\-0000", "12345678", "012-34-5678"),
        ("&quot;No. &quot;000", "7", "No. 007"),
        ("00000", "1234567", "1234567"),
        ("[Red]00000_)", "501", "00501"),
        ("#000", "7", "007"),
        ("0.0%", "0.475", 0.475),
        ("#,##0", "1500", 1500),
        ("00000", "1.5", 1.5),
        ("[h]:mm:ss", "10.5", "252:00:00"),
        ("yyyy-mm-dd", "46027", "2026-01-05"),
    ],
)
def test_a_number_is_read_as_its_format_shows_it_if_that_has_zeros_in_front(tmp_path, code, number, shown):
    for kind in ("", ' t="n"'):
        found = cell_with(tmp_path, f'<c r="A2" s="1"{kind}><v>{number}</v></c>', {1: code})
        assert (found, isinstance(found, str)) == (shown, isinstance(shown, str))


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('<c r="A2" t="e"><f>NA()</f><v>#N/A</v></c>', "#N/A"),
        ('<c r="A2"><v>6.022E+23</v></c>', 6.022e23),
        ('<c r="A2"><v>1234567890123456</v></c>', 1234567890123456),
        ('<c t="e"><v>#DIV/0!</v></c>', "#DIV/0!"),
    ],
)
def test_errors_and_large_numbers_are_read_as_they_are(tmp_path, cell, value):
    assert cell_with(tmp_path, cell) == value


def test_a_text_in_the_element_of_a_number_is_read_wherever_it_is(tmp_path):
    def odd(reference: str, text: str) -> str:
        return f'<c r="{reference}" t="inlineStr"><v>{text}</v></c>'

    head = f'<row r="3">{text_cell("B3", "text")}{odd("C3", "note")}</row>'
    rows = f'<row r="4">{odd("B4", "green tea")}{odd("C4", "a &amp; b")}</row><row r="7">{odd("C7", " milk ")}</row>'
    path = write_parts(tmp_path / "in.xlsx", {"Sheet1": sheet_xml(head + rows)})
    found = [(row.get("text"), row.get("note")) for row in objects_in(path)]
    assert [row for row in found if row != (None, None)] == [("green tea", "a & b"), (None, " milk ")]


def test_a_sheet_may_begin_at_any_cell(tmp_path):
    path = book(tmp_path / "in.xlsx", [], [], [None, None, "id", "text"], [], [None, None, 1, "tea"])
    (row,) = (row for stretch in table(path).stretches([(2, "id"), (3, "text")]) for row in stretch.rows)
    assert (row.n, row.fields) == (1, {"id": 1, "text": "tea"})


def test_a_date_is_told_from_a_text_that_looks_like_one(tmp_path):
    path = book(tmp_path / "in.xlsx", ["value"], ["2026-01-05"])
    assert type(next(objects_in(path))["value"]) is str
    assert type(cell_with(tmp_path, '<c r="A2" s="1"><v>46027</v></c>', {1: "yyyy-mm-dd"})) is SheetDate


def test_hidden_rows_merged_cells_and_errors_are_noted(tmp_path):
    rows = (
        f'{_ID}<row r="2">{text_cell("A2", "a")}</row><row r="3" hidden="1">{text_cell("B3", "b")}</row>'
        '<row r="4" hidden="true"><c r="A4" t="e"><v>#REF!</v></c></row><row r="5" hidden="1"/>'
    )
    xml = sheet_xml(rows, '<mergeCells count="2"><mergeCell ref="A2:A3"/><mergeCell ref="A1:B1"/></mergeCells>')
    style = table(write_parts(tmp_path / "in.xlsx", {"Sheet1": xml})).style
    assert (style.hidden, style.merged, style.errors) == (2, ("id",), ("id",))
    said = " ".join(notes(spec_of("xlsx").with_input(style=style)))
    assert "2 rows of the sheet are hidden" in said
    assert "Cells of `id` are merged over several rows" in said
    assert "Cells of `id` have errors" in said


def test_names_of_elements_may_have_prefixes(tmp_path):
    xml = (
        '<x:worksheet xmlns:x="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><x:sheetData><x:row r="1">'
        '<x:c r="A1" t="str"><x:v>value</x:v></x:c></x:row><x:row r="2" hidden="1"><x:c r="A2" s="1"><x:v>7</x:v></x:c>'
        "</x:row></x:sheetData></x:worksheet>"
    )
    path = write_parts(tmp_path / "in.xlsx", {"Sheet1": xml}, formats={1: "000"})
    assert (list(objects_in(path)), table(path).style.hidden) == ([{"value": "007"}], 1)


def test_an_encrypted_workbook_names_the_password(tmp_path):
    path = tmp_path / "in.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0" + b"\0" * 600 + "EncryptedPackage".encode("utf-16-le"))
    with pytest.raises(PromptmillError, match="protected by a password"):
        table(path)


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE worksheet [<!ENTITY a "b">]>' + sheet_xml(f'{_ID}<row r="2"><c r="A2"><v>&a;</v></c></row>'),
        sheet_xml(f'{_ID}<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'),
        sheet_xml(_ID)[:-40],
        sheet_xml('<row r="a"><c r="A1" s="1"><f>1</f></c></row>'),
        "no XML",
    ],
    ids=["a DTD", "a cell in the last corner", "cut off", "no number", "no XML"],
)
def test_a_damaged_sheet_cannot_be_read_and_is_no_bug(tmp_path, xml):
    path = write_parts(tmp_path / "in.xlsx", {"Sheet1": xml})
    with pytest.raises(PromptmillError, match=r"in\.xlsx (cannot be read|is empty|takes too much)"):
        table(path)
    assert next(objects_in(book(tmp_path / "next.xlsx", ["a"], [1]))) == {"a": 1}  # a process reads the next one


def test_a_file_that_is_no_workbook_cannot_be_read(tmp_path):
    (tmp_path / "in.xlsx").write_bytes(b"PK\3\4 cut off")
    with zipfile.ZipFile(tmp_path / "other.xlsx", "w") as other:
        other.writestr("a.txt", "no workbook")
    for name in ("in.xlsx", "other.xlsx"):
        with pytest.raises(PromptmillError, match="cannot be read"):
            table(tmp_path / name)


@pytest.mark.parametrize(
    ("code", "number", "shown"),
    [
        ('0#" "##" "##" "##" "##', 612345678, "06 12 34 56 78"),
        ("0#########", 612345678, "0612345678"),
        ("[<=999]000;[<=9999]000\\-00;000\\-0000", 600001, "060-0001"),
        ("[<=999]000;[<=9999]000\\-00;000\\-0000", 6001, "060-01"),
        ("[<=999]000;[<=9999]000\\-00;000\\-0000", 60, "060"),
        ("00000;-00000;0", 0, 0),
        ("00000;(00000)", 7, "00007"),
        ("00000;(00000)", -7, -7),
        ("00:00", 830, "08:30"),
        ("[Red]00000", 501, "00501"),
        ("0.00", 5, 5),
        ("#,##0", 1234, 1234),
        ("00/00", 5, 5),
        ('"No; "000', 7, "No; 007"),
    ],
)
def test_leading_zeros_are_those_that_the_format_shows(tmp_path, code, number, shown):
    assert cell_with(tmp_path, f'<c r="A2" s="1"><v>{number}</v></c>', {1: escape(code, {'"': "&quot;"})}) == shown


_ODS = (
    'xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0" '
    'xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0" '
    'xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0" '
    'xmlns:calcext="urn:org:documentfoundation:names:experimental:calc:xmlns:calcext:1.0"'
)


def _ods(path: Path, rows: str) -> Path:
    manifest = "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        packed.writestr("META-INF/manifest.xml", f'<m:manifest xmlns:m="{manifest}"/>')
        table = f'<table:table table:name="S">{rows}</table:table>'
        body = f"<office:body><office:spreadsheet>{table}</office:spreadsheet></office:body>"
        packed.writestr(
            "content.xml", f'<office:document-content {_ODS} office:version="1.2">{body}</office:document-content>'
        )
    return path


def _ods_cell(text: str, more: str = "") -> str:
    return f'<table:table-cell office:value-type="string"{more}><text:p>{text}</text:p></table:table-cell>'


def test_a_sheet_of_libre_office_says_as_much_as_one_of_excel(tmp_path):
    error = 'table:formula="of:=1/0" office:value-type="float" office:value="0"'
    note = "<office:annotation><text:p>of<text:tab/>Ann</text:p></office:annotation>"
    signs = "a<text:tab/>b<text:line-break/>c<text:s text:c='2'/>d</text:p><text:p>e"
    rows = [
        _ods_cell("id") + _ods_cell("value"),
        _ods_cell("1") + _ods_cell(signs, ' table:number-columns-repeated="2"'),
        _ods_cell("2") + f"<table:table-cell {error}><text:p>#DIV/0!</text:p></table:table-cell>",
        _ods_cell("3", ' table:number-rows-spanned="2"') + _ods_cell("x").replace("<text:p>", f"{note}<text:p>", 1),
        "<table:covered-table-cell/>" + _ods_cell("y"),
        _ods_cell("4") + _ods_cell("z"),
    ]
    lines = [f"<table:table-row>{row}</table:table-row>" for row in rows]
    lines[-1] = lines[-1].replace("row>", 'row table:visibility="filter">', 1)
    sheet = table(path := _ods(tmp_path / "a.ods", "".join(lines)))
    values = [row["value"] for row in objects_in(path)]
    assert values == ["a\tb\nc  d\ne", "#DIV/0!", "x", "y", "z"]
    assert (sheet.style.errors, sheet.style.merged, sheet.style.hidden) == (("value",), ("id",), 1)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.xls", b"<html><table><tr><td>id", "a web page"),
        ("a.xls", b"\xef\xbb\xbf<?xml version='1.0'?><Workbook/>", "XML Spreadsheet 2003"),
        ("a.xls", b"id\ttext\n1\ta\n", "name it .tsv"),
        ("a.xlsx", b"id,text\n1,a\n", "name it .csv"),
        ("a.xlsx", b"", "an empty file"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "give it the suffix .xls"),
    ],
)
def test_a_file_with_the_suffix_of_another_format_is_named_by_its_content(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PromptmillError, match=words):
        list(objects_in(tmp_path / name))


def test_a_header_over_several_columns_and_one_within_a_file_are_noted(tmp_path):
    workbook = openpyxl.Workbook()
    for row in (["Customer", None], ["Name", "City"], ["Ann", "Bonn"]):
        workbook.worksheets[0].append(row)
    workbook.worksheets[0].merge_cells("A1:B1")
    workbook.save(tmp_path / "a.xlsx")
    (tmp_path / "b.csv").write_text("id,text\n1,a\n\ufeffid,text\n2,b\n")
    (tmp_path / "c.tsv").write_text('id\ttext\n1\t"a\n2\tb"\n3\tc\n')
    for name, words in (
        ("a.xlsx", "header in row 1 are merged"),
        ("b.csv", "Line 3 repeats the header, as in joined files: it is no row"),
        ("c.tsv", "ends in line 3 contains tabs"),
    ):
        source = input_of(files := opened(find([tmp_path / name], Path("/nowhere"))), format_of_input(files))
        list(source.stretches([]))
        (note,) = notes(spec_of("csv").with_input(style=source.style))
        assert words in note


def test_a_header_within_a_file_is_no_row_unless_the_file_has_one_column(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,a\nid,text\n\ufeffId, Text\nid,x\n2,b\n")
    (tmp_path / "b.csv").write_text("word\ntea\nword\n")
    assert [tuple(row.values()) for row in objects_in(tmp_path / "a.csv")] == [("1", "a"), ("id", "x"), ("2", "b")]
    assert list(objects_in(tmp_path / "b.csv")) == [{"word": "tea"}, {"word": "word"}]
    (tmp_path / "c.csv").write_text("id,text\n1,a\ntext,id\nb,2\n")
    with pytest.raises(PromptmillError, match="Line 3 repeats the header in another order"):
        list(objects_in(tmp_path / "c.csv"))


def test_a_workbook_with_a_number_sign_in_its_name_has_sheets(tmp_path):
    workbook = openpyxl.Workbook()
    for name in ("One", "A#B"):
        workbook.create_sheet(name).append(["text"])
        workbook[name].append([name])
    workbook.save(tmp_path / "Order #12.xlsx")
    for name in ("One", "A#B"):
        assert list(objects_in(tmp_path / f"Order #12.xlsx#{name}")) == [{"text": name}]
