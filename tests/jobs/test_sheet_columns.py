"""Several questions into one sheet: each has its own columns, its own job, and none pays for another."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from fastmcp.exceptions import ToolError
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.worksheet.table import Table
from openpyxl.worksheet.worksheet import Worksheet

import promptmill
from bulk_calls import ran
from fakes import KEY
from promptmill.cli import foreground
from promptmill.core.errors import PromptmillError
from promptmill.files import table_paths
from promptmill.jobs.store.index import JobFolders
from replies import answer, by_prompt, status
from workbook_files import parts_in, sheet_xml, text_cell, write_parts

_TONE = ("--prompt", "Tone of {{text}}")
_TOPIC = ("--prompt", "Topic of {{text}}", "--answer-column", "Topic")
_HEAD = f'<row r="1">{text_cell("A1", "id")}<c r="B1" s="1" t="inlineStr"><is><t>text</t></is></c></row>'
_ROWS = f'{_HEAD}<row r="2">{text_cell("A2", "1")}{text_cell("B2", "tea")}</row>'


def _save(path: Path, change: Callable[[Worksheet], object]) -> None:
    """Change the sheet as a user does, who saves the workbook."""
    book = openpyxl.load_workbook(path) if path.exists() else openpyxl.Workbook()
    sheet = book.worksheets[0]
    change(sheet)
    book.save(path)


def _begin(sheet: Worksheet) -> None:
    sheet.title = "Reviews"
    for row in (["id", "text"], [1, "tea"], [2, "milk"]):
        sheet.append(row)


@pytest.fixture
def sheet(bench: Any) -> Path:
    """The workbook that the bench reads and fills."""
    path: Path = bench.path / "book.xlsx"
    _save(path, _begin)
    bench.input = bench.output = path.with_name("book.xlsx#Reviews")
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    head, *rows = openpyxl.load_workbook(path).worksheets[0].iter_rows(values_only=True)
    return [dict(zip(map(str, head), row, strict=True)) for row in rows]


def _column(path: Path, name: str) -> list[Any]:
    return [row[name] for row in _rows(path)]


@pytest.mark.thorough
def test_another_question_gets_its_own_columns_and_pays_for_its_own_answers(bench, sheet):
    bench.succeed(*_TONE)
    found = bench.succeed(*_TOPIC)
    assert [*_rows(sheet)[0]] == [
        *("id", "text", "answer", "error", "usage", "finish_reason"),
        *("Topic", "Topic_error", "Topic_usage", "Topic_finish_reason"),
    ]
    assert _column(sheet, "answer") == ["echo: Tone of tea", "echo: Tone of milk"]
    assert _column(sheet, "Topic") == ["echo: Topic of tea", "echo: Topic of milk"]
    assert found["output_file"].endswith("book.xlsx#Reviews[Topic]")
    assert not any("of its own" in note for note in found["warnings"])
    for question in (_TONE, _TOPIC):
        bench.succeed(*question)
    assert len(bench.upstream.seen) == 4


def test_the_failed_rows_of_the_first_question_are_sent_again_after_the_second(bench, sheet):
    bench.upstream.reply = by_prompt({"Tone of milk": status(400)}, answer())
    bench.fail(*_TONE, code=1)
    bench.succeed(*_TOPIC)
    bench.upstream.reply = answer("fine")
    bench.succeed(*_TONE, "--again", "failed")
    assert _column(sheet, "answer") == ["echo: Tone of tea", "fine"]
    assert _column(sheet, "Topic") == ["echo: Topic of tea", "echo: Topic of milk"]
    assert len(bench.upstream.seen) == 5


def test_another_question_without_a_column_is_refused_and_says_how_to_add_one(bench, sheet):
    bench.succeed(*_TONE)
    said = " ".join(bench.fail("--prompt", "Topic of {{text}}", "--choices", "food,drink").split())
    assert (
        "book.xlsx#Reviews has the answers to another question in the column `answer`. Add --answer-column NAME for a "
        "new column beside it, or --again all, which asks all rows again and replaces the answers." in said
    )
    assert "sampling" not in said
    assert "has the answers to another question" in bench.fail("--prompt", "Topic of {{text}}")
    assert len(bench.upstream.seen) == 2


@pytest.mark.parametrize("column", ["Größe 50 % [a/b]", "c:\\d|e*?", '"<#>"', "主题"])
def test_any_name_of_a_column_is_the_name_of_a_file(column):
    path = table_paths.with_column(Path("book.xlsx#Reviews"), column)
    assert not {*path.name.removeprefix("book.xlsx#Reviews[").removesuffix("]")} & {*'/\\:*?"<>|#[]'}
    assert (table_paths.column_of(path), table_paths.split(path)) == (column, (Path("book.xlsx"), "Reviews"))


def test_an_output_that_names_a_column_needs_the_option(bench, sheet):
    bench.output = sheet.with_name("book.xlsx#Reviews[Topic]")
    said = bench.fail(*_TONE)
    assert "names the column 'Topic'; name its sheet, and the column by --answer-column Topic." in said
    assert not bench.upstream.seen


@pytest.mark.thorough
def test_other_settings_of_the_same_question_name_a_new_column_too(bench, sheet):
    bench.succeed(*_TONE)
    assert "--answer-column NAME writes a new column." in bench.fail(*_TONE, "--temperature", "1")


@pytest.mark.parametrize(("choice", "column"), [("c", "answer_2"), ("a", "answer")])
def test_a_user_at_a_terminal_chooses_a_new_column(bench, sheet, monkeypatch, choice, column):
    bench.succeed(*_TONE)
    monkeypatch.setattr(foreground, "is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: choice)
    assert "c  write a new column beside it: answer_2" in bench.fail("--prompt", "Topic of {{text}}", code=0)
    assert _column(sheet, column) == ["echo: Topic of tea", "echo: Topic of milk"]


def test_the_same_question_into_another_column_takes_the_answers_that_are_paid(bench, sheet):
    bench.succeed(*_TONE)
    bench.succeed(*_TONE, "--answer-column", "Tone")
    assert _column(sheet, "Tone") == _column(sheet, "answer")
    bench.succeed(*_TONE, "--answer-column", "Mood")
    assert len(bench.upstream.seen) == 2
    bench.succeed(*_TONE, "--answer-column", "Heat", "--temperature", "1")
    assert len(bench.upstream.seen) == 4


@pytest.mark.thorough
def test_rows_that_a_user_moves_adds_and_edits_between_two_questions_keep_their_answers(bench, sheet):
    bench.succeed(*_TONE)

    def change(found: Worksheet) -> None:
        found.move_range("A2:F2", rows=3)
        found["A2"], found["B2"], found["H3"] = 3, "wine", "my note"

    _save(sheet, change)
    bench.succeed(*_TOPIC)
    bench.succeed(*_TONE)
    by_text = {row["text"]: row for row in _rows(sheet) if row["text"]}
    assert {text: row["answer"] for text, row in by_text.items()} == {
        text: f"echo: Tone of {text}" for text in ("tea", "milk", "wine")
    }
    assert {row["Topic"] for row in by_text.values()} == {f"echo: Topic of {text}" for text in by_text}
    assert openpyxl.load_workbook(sheet).worksheets[0]["H3"].value == "my note"
    assert len(bench.upstream.seen) == 6


def test_an_answer_that_a_user_edited_is_not_replaced(bench, sheet):
    bench.succeed(*_TONE)
    _save(sheet, lambda found: found.cell(2, 3, "mine"))
    assert "has changed since the job wrote its answers into it; --overwrite" in bench.fail(*_TONE)
    bench.succeed(*_TOPIC)
    assert _column(sheet, "answer") == ["mine", "echo: Tone of milk"]
    bench.succeed(*_TONE, "--overwrite")
    assert _column(sheet, "answer") == ["echo: Tone of tea", "echo: Tone of milk"]
    assert len(bench.upstream.seen) == 4


@pytest.mark.parametrize("question", [_TONE, _TOPIC, (*_TONE, "--fields", "day:date!,at:time!,n:number!,s!")])
def test_a_row_that_a_user_deletes_is_gone_and_the_others_keep_their_answers(bench, sheet, question):
    _save(sheet, lambda found: [found.append(row) for row in ([3, "wine"], [4, "tea"], [5, None])])
    values = {"day": "2026-03-04", "at": "2026-03-04T10:31:07.123", "n": 0.1, "s": "_x0041_ \n=1"}
    bench.upstream.reply = answer(json.dumps(values)) if "--fields" in question else answer()
    bench.succeed(*question, "--skip-empty")
    before = _rows(sheet)
    _save(sheet, lambda found: found.delete_rows(3))
    assert bench.run(*question, "--skip-empty", "--dry-run").returncode == 0
    bench.succeed(*question, "--skip-empty")
    assert _rows(sheet) == [row for row in before if row["text"] != "milk"]
    assert len(bench.upstream.seen) == 4
    _save(sheet, lambda found: (found.delete_rows(2), found.append([6, "beer"])))
    bench.succeed(*question, "--skip-empty")
    assert [row["text"] for row in _rows(sheet)] == ["wine", "tea", None, "beer"]
    assert len(bench.upstream.seen) == 5


@pytest.mark.thorough
@pytest.mark.parametrize("column", ["A", "C"])
def test_a_row_is_not_deleted_beside_an_edited_one(bench, sheet, column):
    """Nobody knows whose answer stands beside an edited row, or what an edited answer was."""
    _save(sheet, lambda found: found.append([3, "wine"]))
    bench.upstream.reply = by_prompt({"Tone of tea": answer("good")}, otherwise=answer("bad"))
    bench.succeed(*_TONE)

    def change(found: Worksheet) -> None:
        found.delete_rows(2)
        found[f"{column}2"] = "good"

    _save(sheet, change)
    assert "has changed since the job wrote its answers into it" in bench.fail(*_TONE)
    bench.succeed(*_TONE, "--overwrite")
    assert _column(sheet, "answer") == ["bad", "bad"]
    assert len(bench.upstream.seen) == 3


def test_an_answer_that_is_edited_after_a_deleted_row_was_seen_is_kept(bench, sheet):
    """The stamp of the answers is that of the sheet without the row, not of any sheet."""
    _save(sheet, lambda found: found.append([3, "wine"]))
    bench.succeed(*_TONE)
    _save(sheet, lambda found: (found.delete_rows(2), found.append([4, "beer"])))

    def save(request: Any) -> Any:
        _save(sheet, lambda found: found.cell(2, 3, "mine"))
        return answer()(request)

    bench.upstream.reply = save
    assert "has changed since the job wrote its answers into it" in bench.fail(*_TONE)
    assert _column(sheet, "answer")[:2] == ["mine", "echo: Tone of wine"]


def test_a_user_may_save_the_workbook_during_the_run(bench, sheet):
    """The sheet is read again before the answers are written, because its rows may have other places."""
    saved: list[str] = []

    def save(request: Any) -> Any:
        if not saved:
            saved.append("")
            _save(sheet, lambda found: (found.insert_rows(2), found.cell(2, 2, "wine"), found.cell(3, 1, "mine")))
        return answer()(request)

    bench.upstream.reply = save
    bench.succeed(*_TONE)
    assert [(row["id"], row["answer"]) for row in _rows(sheet)] == [
        (None, "echo: Tone of wine"),
        ("mine", "echo: Tone of tea"),
        (2, "echo: Tone of milk"),
    ]
    assert len(bench.upstream.seen) == 3


def test_jobs_that_run_at_the_same_time_lose_no_columns(bench, sheet):
    questions = [("--prompt", f"{name} of {{{{text}}}}", "--answer-column", name) for name in ("Tone", "Topic", "Mood")]
    processes = [bench.start(*question) for question in questions]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for name in ("Tone", "Topic", "Mood"):
        assert _column(sheet, name) == [f"echo: {name} of tea", f"echo: {name} of milk"]
    assert not list(sheet.parent.glob(".promptmill/*.lock"))


def test_the_jobs_of_a_sheet_are_found_beside_it(bench, sheet, monkeypatch):
    monkeypatch.delenv("PROMPTMILL_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(bench.path / "state"))
    for question in (_TOPIC, (*_TONE, "--answer-column", "Tone"), (*_TOPIC[:2], "--answer-column", "Theme")):
        bench.succeed(*question)
    assert len(bench.upstream.seen) == 4
    assert "did you mean" in bench.jobs("book.xlsx#Reviews").stderr
    assert bench.jobs("book.xlsx#Reviews[Tone]").returncode == 0
    others = JobFolders.from_environ().of_sheet(sheet.with_name("book.xlsx#Reviews[Tone]"))
    assert [folder.path.name for folder in others if folder.spec] == [
        "book.xlsx#Reviews[Theme].job",
        "book.xlsx#Reviews[Topic].job",
    ]


@pytest.mark.thorough
def test_a_question_may_use_the_answers_of_another(bench, sheet):
    bench.succeed(*_TONE)
    bench.succeed("--prompt", "Again: {{answer}}", "--answer-column", "again/2")
    assert _column(sheet, "again/2") == ["echo: Again: echo: Tone of tea", "echo: Again: echo: Tone of milk"]
    assert bench.jobs("book.xlsx#Reviews[again%2F2]").returncode == 0


@pytest.mark.thorough
def test_the_whole_row_has_no_answers_of_other_questions_unless_it_names_them(bench, sheet):
    mood = "--prompt", "Mood? {{row}}", "--answer-column", "Mood"
    bench.succeed(*mood)
    bench.succeed("--prompt", "Topic? {{row}}", "--answer-column", "Topic")
    bench.succeed(*mood)
    assert len(bench.upstream.seen) == 4
    assert not any("Mood? {" in seen.prompt for seen in bench.upstream.seen[2:])
    bench.succeed("--prompt", "Again: {{row}} {{Mood}}", "--answer-column", "Again")
    assert all(seen.prompt.count("Mood? {") > 0 for seen in bench.upstream.seen[4:])


@pytest.mark.features("compare")
def test_the_answers_of_two_columns_are_compared(bench, sheet, monkeypatch):
    monkeypatch.chdir(bench.path)
    for question in (_TONE, (*_TONE, "--temperature", "1", "--answer-column", "Tone")):
        bench.succeed(*question)
    files = [str(bench.path / name) for name in ("book.xlsx#Reviews", "book.xlsx#Reviews[Tone]")]
    result = bench.here(["promptmill", "compare", *files])
    assert "A and B agree in 100.0 % of 2 rows" in result.stdout, result.stderr
    assert "B book.xlsx#Reviews[Tone]" in result.stdout


@pytest.mark.thorough
def test_a_workbook_that_is_named_without_its_sheet_gets_columns_too(bench, sheet):
    bench.input = bench.output = sheet
    bench.succeed(*_TONE)
    found = bench.succeed(*_TOPIC)
    assert found["output_file"].endswith("book.xlsx#[Topic]")
    assert _column(sheet, "Topic") == ["echo: Topic of tea", "echo: Topic of milk"]


@pytest.mark.thorough
async def test_a_tool_adds_a_column_too(bench, sheet, tools):
    async with tools() as call:
        for column in ("answer", "Topic"):
            options = {"input_file": "book.xlsx#Reviews", "output_file": "book.xlsx#Reviews", "answer_column": column}
            await ran(call, prompt=f"{column} of {{{{text}}}}", **options)
    assert _column(sheet, "answer") == ["echo: answer of tea", "echo: answer of milk"]
    assert _column(sheet, "Topic") == ["echo: Topic of tea", "echo: Topic of milk"]


@pytest.mark.thorough
async def test_a_tool_replaces_its_own_columns_without_a_question(bench, sheet, tools):
    options = {"input_file": "book.xlsx#Reviews", "output_file": "book.xlsx#Reviews", "answer_column": "Topic"}
    async with tools() as call:
        await ran(call, prompt="Topic of {{text}}", **options)
        await ran(call, prompt="Topic of {{text}}", **options, overwrite=True)
        _save(sheet, lambda found: found.cell(1, 20, "note"))
        await ran(call, prompt="Topic of {{text}}", **options, overwrite=True)
        _save(sheet, lambda found: found.cell(2, 3, "by hand"))
        with pytest.raises(ToolError, match="cannot ask its user about `overwrite`"):
            await ran(call, prompt="Topic of {{text}}", **options, overwrite=True)


# ---- what Excel shows


def _style(found: Worksheet) -> None:
    for cell in found[1]:
        cell.font, cell.fill = Font(bold=True), PatternFill("solid", fgColor="112233")
        cell.border, cell.alignment = Border(bottom=Side("thin")), Alignment(wrap_text=True, vertical="center")


@pytest.mark.thorough
def test_a_new_header_looks_like_its_neighbours_and_its_column_has_a_width(bench, sheet):
    _save(sheet, _style)
    for question in (_TONE, _TOPIC):
        bench.succeed(*question)
    found = openpyxl.load_workbook(sheet).worksheets[0]
    assert len({cell.style_id for cell in found[1]}) == 1
    assert found["J1"].font.b
    assert found.column_dimensions["G"].width == len("echo: Topic of milk") + 2
    assert found["G2"].font.b is False


def test_new_columns_are_in_the_table_of_the_sheet(bench, sheet):
    def add(found: Worksheet) -> None:
        found.append(["&<", "x"])
        found.add_table(Table(displayName="Reviews", ref="A1:B4"))

    _save(sheet, add)
    bench.succeed(*_TONE)
    bench.succeed("--prompt", "T of {{text}}", "--answer-column", 'TEXT & "so"')
    (table,) = openpyxl.load_workbook(sheet).worksheets[0].tables.values()
    assert (table.ref, table.autoFilter.ref) == ("A1:J4", "A1:J4")
    heads = [cell.value for cell in openpyxl.load_workbook(sheet).worksheets[0][1]]
    assert [column.name for column in table.tableColumns] == heads
    assert [column.id for column in table.tableColumns] == list(range(1, 11))


@pytest.mark.thorough
def test_a_name_that_differs_from_a_column_in_capitals_alone_gets_a_number(bench, sheet):
    bench.succeed("--prompt", "T of {{text}}", "--answer-column", "TEXT")
    assert "TEXT_1" in _rows(sheet)[0]


def test_a_column_whose_name_differs_from_anothers_in_capitals_alone_is_refused(bench, sheet):
    """macOS and Windows would take their folders for one, and pay for the answers of one in place of the other's."""
    bench.succeed(*_TOPIC)
    said = bench.fail(*_TONE, "--answer-column", "TOPIC")
    assert "book.xlsx#Reviews[Topic] is a job, and macOS and Windows do not tell its name" in said
    assert "--answer-column Topic continues it, or name another column." in said
    known = sheet.parent / ".promptmill"
    shutil.copytree(known / "book.xlsx#Reviews[Topic].job", known / "book.xlsx#Reviews[TOPIC].job")
    bench.succeed(*_TOPIC)
    assert len(bench.upstream.seen) == 2


def test_new_columns_are_in_the_filter_of_the_sheet(bench, sheet):
    def add(found: Worksheet) -> None:
        found.auto_filter.ref = "A1:B3"
        found.auto_filter.add_filter_column(1, ["tea"])

    _save(sheet, add)
    for question in (_TONE, _TOPIC):
        bench.succeed(*question)
    assert openpyxl.load_workbook(sheet).worksheets[0].auto_filter.ref == "A1:J3"
    assert b"'Reviews'!$A$1:$J$3</" in parts_in(sheet)["xl/workbook.xml"]
    assert b'<filter val="tea"' in parts_in(sheet)["xl/worksheets/sheet1.xml"]


@pytest.mark.parametrize(
    ("ref", "kind"), [("A1:A2", ""), ("A2:B2", ""), ("A1:B2", 'tableType="queryTable"')], ids=["apart", "low", "query"]
)
def test_a_table_that_does_not_end_at_the_new_columns_stays_as_it_is(bench, ref, kind):
    table = (
        f'<table xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" id="1" displayName="T" ref="{ref}" '
        f'{kind}><tableColumns count="1"><tableColumn id="1" name="id"/></tableColumns></table>'
    )
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="t" '
        'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/table" Target="../tables/t.xml"/>'
        "</Relationships>"
    )
    parts = {"xl/tables/t.xml": table, "xl/worksheets/_rels/part1.xml.rels": relations}
    bench.input = bench.output = write_parts(bench.path / "in.xlsx", {"Sheet1": sheet_xml(_ROWS)}, parts=parts)
    bench.succeed(*_TONE)
    assert parts_in(bench.output)["xl/tables/t.xml"].decode() == table


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ["3 3", "4 4", "5 5", "6 6"]),
        ('<cols><col min="1" max="1" width="9"/></cols>', ["1 1", "3 3", "4 4", "5 5", "6 6"]),
        (
            '<cols><col min="2" max="16384" width="9" hidden="1" style="7"/></cols>',
            ["2 2 hidden", "3 3", "4 4", "5 5", "6 6", "7 16384 hidden"],
        ),
    ],
    ids=["no widths", "another width", "all other columns hidden"],
)
def test_a_new_column_is_shown_whatever_the_widths_of_the_sheet_are(bench, before, after):
    xml = sheet_xml(_ROWS, before=f'<sheetFormatPr defaultRowHeight="15"/>{before}')
    bench.input = bench.output = write_parts(bench.path / "in.xlsx", {"Sheet1": xml}, formats={1: "0"})
    bench.succeed(*_TONE)
    filled = parts_in(bench.output)["xl/worksheets/part1.xml"].decode()
    widths = re.findall(r"<col [^<>]*/>", filled)
    places = [re.search(r'min="(\d+)" max="(\d+)"', each) for each in widths]
    shown = [f"{at[1]} {at[2]}{' hidden' * ('hidden' in each)}" for at, each in zip(places, widths, strict=True) if at]
    assert shown == after
    assert filled.index("</cols>") == filled.index("<sheetData>") - len("</cols>")
    assert '<c r="C1" s="1" t="inlineStr">' in filled
    bench.succeed(*_TONE, "--again", "all")
    assert re.findall(r"<col [^<>]*/>", parts_in(bench.output)["xl/worksheets/part1.xml"].decode()) == widths


@pytest.mark.thorough
def test_python_adds_a_column_too(bench, sheet):
    options = {"model": "m", "base_url": bench.upstream.url, "api_key": KEY, "progress": False}
    for column in ("answer", "Topic"):
        name = str(bench.input)
        promptmill.bulk(name, name, prompt=f"{column} of {{{{text}}}}", answer_column=column, **options)
    assert _column(sheet, "Topic") == ["echo: Topic of tea", "echo: Topic of milk"]
    with pytest.raises(PromptmillError, match="another question in the column `answer`"):
        promptmill.bulk(name, name, prompt="Mood of {{text}}", **options)


@pytest.mark.features("review")
def test_a_label_of_one_column_is_taken_beside_another(bench, sheet):
    bench.upstream.reply = answer("good")
    bench.succeed(*_TONE, "--choices", "good,bad")
    bench.succeed(*_TOPIC)
    command = [sys.executable, "-m", "promptmill", "review", str(bench.output), "--sample", "2", "-o", "review.xlsx"]
    assert not bench.here(command, bench.path).returncode
    _save(bench.path / "review.xlsx", lambda rows: _label(rows, "bad"))
    taken = bench.here([*command[:-4], "--take", "review.xlsx"], bench.path)
    assert "2 labels taken" in taken.stdout, taken.stderr
    assert _column(sheet, "answer") == ["bad", "bad"]
    assert _column(sheet, "Topic") == ["good", "good"]


def _label(rows: Worksheet, label: str) -> None:
    column = [cell.value for cell in rows[1]].index("label") + 1
    for at in range(2, rows.max_row + 1):
        rows.cell(at, column, label)
