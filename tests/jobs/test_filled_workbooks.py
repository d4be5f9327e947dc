"""Workbooks that a job writes into: what stays, where answers go, and what is refused before the first request."""

from __future__ import annotations

import datetime as dt
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from promptmill.core.errors import PromptmillError
from promptmill.core.values import SheetDate
from promptmill.jobs.export.workbook_file import write_sheet
from promptmill.jobs.inputs.any_format import objects_in
from replies import answer
from workbook_files import parts_in, sheet_xml, text_cell, write_parts

_PROMPT = ("--prompt", "Say {{body}}")
_HEAD = f'<row r="1" spans="1:2">{text_cell("A1", "id")}{text_cell("B1", "body")}</row>'
_ROWS = f'{_HEAD}<row r="2">{text_cell("A2", "1")}{text_cell("B2", "tea")}</row>'
_LISTS = '<extLst><ext uri="x"><x14:dataValidations xmlns:x14="urn:x">Lists!$A$1</x14:dataValidations></ext></extLst>'


def filled(bench: Any, xml: str, **more: Any) -> Path:
    """Let a job answer the rows of a sheet into the sheet itself."""
    bench.input = bench.output = write_parts(bench.path / "in.xlsx", {"Sheet1": xml}, **more)
    bench.succeed(*_PROMPT)
    return bench.output


def cells(path: Path, sheet: str = "Sheet1") -> list[list[Any]]:
    return [list(row) for row in openpyxl.load_workbook(path)[sheet].iter_rows(values_only=True)]


def test_all_other_bytes_of_the_workbook_stay(bench):
    rich = (
        '<c r="B2" t="inlineStr"><is><r><rPr><b/></rPr><t>Bold</t></r><r><t xml:space="preserve"> tea</t></r></is></c>'
    )
    formula = '<c r="C2"><f>1+1</f><v>2</v></c>'
    xml = sheet_xml(f'{_HEAD}<row r="2">{text_cell("A2", "1")}{rich}{formula}</row>', _LISTS)
    extra = {"xl/drawings/drawing1.xml": "<shape/>", "xl/media/image1.png": b"\x89PNG"}
    before = write_parts(bench.path / "before.xlsx", {"Sheet1": xml}, parts=extra)
    after = parts_in(filled(bench, xml, parts=extra))
    changed = {name for name, data in parts_in(before).items() if after[name] != data}
    assert changed == {"xl/worksheets/part1.xml", "xl/workbook.xml"}
    sheet = after["xl/worksheets/part1.xml"].decode()
    assert all(piece in sheet for piece in (rich, _LISTS, formula))
    assert b'<calcPr calcId="191029" fullCalcOnLoad="1"/>' in after["xl/workbook.xml"]
    assert next(objects_in(bench.output))["answer"] == "echo: Say Bold tea"


def test_answers_go_into_the_sheet_that_was_read(bench):
    hidden = sheet_xml(f'<row r="1">{text_cell("A1", "code")}</row>')
    sheets = {"Lists": hidden, "Data": sheet_xml(_ROWS)}
    bench.input = bench.output = write_parts(bench.path / "in.xlsx", sheets, states={"Lists": "hidden"})
    bench.succeed(*_PROMPT)
    assert (cells(bench.output, "Lists"), cells(bench.output, "Data")[1][2]) == ([["code"]], "echo: Say tea")


@pytest.mark.thorough
def test_answers_stand_behind_every_cell_and_in_the_rows_that_were_read(bench):
    rows = (
        '<row r="3"><c r="B3" t="str"><f>TODAY()</f></c></row>'
        f"<row>{text_cell('A4', 'id')}{text_cell('B4', 'body')}</row>"
        f'<row r="6"><c t="inlineStr"><is><t>1</t></is></c><c t="inlineStr"><is><t>tea</t></is></c>'
        f'{text_cell("D6", "a note")}</row><row r="9">{text_cell("B9", "milk")}</row>'
    )
    found = cells(filled(bench, sheet_xml(rows, before='<dimension ref="A3:D9"></dimension>')))
    assert found[3][4] == "answer"
    assert [found[at][3:5] for at in (5, 8)] == [["a note", "echo: Say tea"], [None, "echo: Say milk"]]


def test_no_answer_is_hidden_by_merged_cells(bench):
    rows = f'<row r="2">{text_cell("A2", "body")}</row><row r="3">{text_cell("A3", "tea")}</row>'
    merged = '<mergeCells count="2"><mergeCell ref="A1:F1"/><mergeCell ref="B3:C3"/></mergeCells>'
    found = cells(filled(bench, sheet_xml(rows, merged)))
    assert (found[1][3], found[2][3]) == ("answer", "echo: Say tea")


def test_answers_stand_behind_merged_cells(bench):
    xml = sheet_xml(_ROWS, '<mergeCells count="2"><mergeCell ref="B1:D1"/><mergeCell ref="B2:D2"/></mergeCells>')
    assert [row[4] for row in cells(filled(bench, xml))] == ["answer", "echo: Say tea"]


@pytest.mark.thorough
def test_a_second_run_writes_into_the_same_columns_and_keeps_their_formats(bench):
    empty = '<row r="2">{}{}<c r="C2" s="1"/></row>'.format(text_cell("A2", "1"), text_cell("B2", "tea"))
    filled(bench, sheet_xml(_HEAD + empty), formats={1: "00"})
    assert b'<c r="C2" s="1" t="inlineStr">' in parts_in(bench.output)["xl/worksheets/part1.xml"]
    bench.upstream.reply = answer("again")
    bench.succeed(*_PROMPT, "--again", "all")
    assert [row[2] for row in cells(bench.output)] == ["answer", "again"]
    assert len(cells(bench.output)[0]) == 6


@pytest.mark.thorough
def test_a_prefix_of_the_sheets_elements_is_that_of_the_answers(bench):
    xml = (
        '<x:worksheet xmlns:x="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><x:sheetData><x:row r="1">'
        '<x:c r="A1" t="str"><x:v>body</x:v></x:c></x:row><x:row r="2"><x:c r="A2" t="str"><x:v>tea</x:v></x:c>'
        "</x:row></x:sheetData></x:worksheet>"
    )
    assert [row[1] for row in cells(filled(bench, xml))] == ["answer", "echo: Say tea"]


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (sheet_xml(_ROWS + '<row r="3"><c r="XFD3"><v>1</v></c></row>'), "no columns left"),
        ('<?xml version="1.0" encoding="ISO-8859-1"?>' + sheet_xml(_ROWS), "cannot be read"),
        (sheet_xml(f'{_HEAD}<row r="4">{text_cell("B4", "milk")}</row><row r="3"/>'), "cannot be read"),
    ],
    ids=["no column is free", "Latin-1", "rows in another order"],
)
def test_a_sheet_that_cannot_be_filled_is_refused_before_the_first_request(bench, xml, said):
    bench.input = bench.output = write_parts(bench.path / "in.xlsx", {"Sheet1": xml})
    assert said in bench.fail(*_PROMPT)
    assert not bench.upstream.seen


def test_a_damaged_workbook_gets_no_sheet_and_no_request_is_made(bench):
    bench.write([{"body": "tea"}])
    (bench.path / "book.xlsx").write_bytes(b"PK\3\4 cut off")
    bench.output = bench.path / "book.xlsx#Labels"
    assert "book.xlsx cannot be read" in bench.fail(*_PROMPT)
    assert not bench.upstream.seen


@pytest.mark.parametrize(
    ("name", "said"),
    [("a:b", "is no name for a sheet"), ("x" * 32, "is no name for a sheet"), ("sheet1", "does not tell apart")],
)
def test_a_name_that_excel_refuses_is_refused_before_the_first_request(bench, name, said):
    bench.write([{"body": "tea"}])
    write_parts(bench.path / "book.xlsx", {"Sheet1": sheet_xml(_ROWS)})
    bench.output = bench.path / f"book.xlsx#{name}"
    assert said in " ".join(bench.fail(*_PROMPT).split())
    assert not bench.upstream.seen


def test_several_answers_to_a_row_do_not_go_into_its_sheet(bench):
    bench.input = bench.output = write_parts(bench.path / "in.xlsx", {"Sheet1": sheet_xml(_ROWS)})
    assert "Several answers to each row" in bench.fail("--prompt", "a=Say {{body}}", "--prompt", "b=Sing {{body}}")
    assert not bench.upstream.seen


def test_a_new_sheet_has_the_dates_of_the_workbooks_own_calendar(bench):
    xml = sheet_xml(f'{_HEAD}<row r="2"><c r="A2" s="1"><v>44565</v></c>{text_cell("B2", "2024-01-05")}</row>')
    path = write_parts(
        bench.path / "in.xlsx", {"Mails": xml}, formats={1: "yyyy-mm-dd"}, book='<workbookPr date1904="1"/>'
    )
    bench.input, bench.output = Path(f"{path}#Mails"), Path(f"{path}#Labels")
    bench.succeed(*_PROMPT)
    first = cells(path, "Labels")[1]
    assert first[:2] == [dt.datetime.fromisoformat("2026-01-05"), "2024-01-05"]
    bench.upstream.reply = answer("again")
    bench.succeed(*_PROMPT, "--again", "all")
    assert [row[2] for row in cells(path, "Labels")] == ["answer", "again"]
    assert parts_in(path)["xl/styles.xml"].count(b'numFmtId="14"') == 1


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("a\0b\ufffe\uffff\ud800", "a\ufffdb\ufffd\ufffd\ufffd"),
        ("_x0041_ & <b>\r\n ", "_x0041_ & <b>\r\n "),
        ("=1+1", "=1+1"),
        (2**60, str(2**60)),
        (Decimal("1.10"), 1.1),
        (Decimal("1234567890123456.78"), "1234567890123456.78"),
        (float("nan"), "NaN"),
        (SheetDate("2026-02-31"), "2026-02-31"),
        (dt.date(1899, 1, 1), "1899-01-01"),
        (dt.time(0), "00:00:00"),
        (dt.time(8, 1, 59), "08:01:59"),
        (dt.datetime(2026, 1, 5, 7, 8, tzinfo=dt.UTC), "2026-01-05 07:08:00+00:00"),
        ("\U0001f600" * 20_000, "\U0001f600" * 16_383),
    ],
    ids=range(13),
)
def test_any_value_is_written_so_that_it_is_read_again(tmp_path, value, read):
    with (tmp_path / "out.xlsx").open("wb") as out:
        write_sheet(out, "answers", [["value"], [value]])
    assert [row["value"] for row in objects_in(tmp_path / "out.xlsx")] == [read]


def test_a_file_that_is_no_workbook_raises_no_other_error(tmp_path):
    from promptmill.files import xlsx

    with pytest.raises(PromptmillError, match="cannot be read"), xlsx.opened(io.BytesIO(b"no ZIP"), "in.xlsx"):
        pass
