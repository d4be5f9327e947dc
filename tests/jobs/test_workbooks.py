"""Workbooks and databases as inputs and outputs."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import json
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest
from openpyxl.styles import Font
from pyarrow import parquet

import promptmill
from fakes import KEY
from half_done import answers
from job_specs import spec_of
from promptmill.core.errors import Code, PromptmillError
from promptmill.files import table_paths
from promptmill.files.files import find, opened
from promptmill.files.path_formats import format_of_output
from promptmill.files.workbook import SheetTable
from promptmill.jobs.export import output
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.store.spec import InputSpec
from replies import answer, choose
from workbook_files import sheet_xml, text_cell, write_parts

_DATA = Path(__file__).parent / "data"
_PROMPT = ("--prompt", "Say {{body}}")


def _workbook(path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Mails"
    sheet.append(["id", "body", "day", "formula"])
    sheet.append([1, "tea", dt.date(2026, 1, 5), "=1+1"])
    sheet.append([])
    sheet.append([2.5, "milk", dt.datetime.fromisoformat("2026-02-03 04:05"), None])
    sheet["A1"].font = Font(bold=True)
    notes = book.create_sheet("Notes")
    notes.append(["kept"])
    notes.append([7])
    book.save(path)


def _cells(path: Path, sheet: str) -> list[tuple[Any, ...]]:
    return list(openpyxl.load_workbook(path)[sheet].iter_rows(values_only=True))


@pytest.fixture
def book(bench: Any) -> Path:
    bench.input = bench.path / "book.xlsx"
    _workbook(bench.input)
    return bench.input


def _database(bench: Any, rows: int = 3) -> Path:
    path: Path = bench.path / "mails.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE inbox (id INTEGER, body TEXT, size REAL)")
        connection.execute("CREATE TABLE other (x)")
        connection.executemany("INSERT INTO inbox VALUES (?, ?, ?)", [(at, f"t{at}", at / 2) for at in range(rows)])
    connection.close()
    return path


@pytest.mark.thorough
def test_a_hidden_sheet_is_read_only_by_its_name(bench, book):
    workbook = openpyxl.load_workbook(book)
    workbook["Notes"].sheet_state = "hidden"
    workbook.save(book)
    bench.succeed(*_PROMPT)
    assert [row["body"] for row in bench.answers()] == ["tea", "milk"]
    bench.input, bench.output = Path(f"{book}#Notes"), bench.path / "notes.jsonl"
    bench.succeed("--prompt", "Say {{kept}}")


def test_a_number_that_excel_would_round_is_a_text(bench):
    bench.write([{"id": 1234567890123456789, "n": 9007199254740992, "body": "tea"}])
    bench.output = bench.path / "out.xlsx"
    bench.succeed(*_PROMPT)
    (row,) = _cells(bench.output, "answers")[1:]
    assert row[:2] == ("1234567890123456789", 9007199254740992)


def test_a_job_is_found_by_the_workbook_that_holds_its_answers(bench, book):
    bench.input = Path(f"{book}#Mails")
    for sheet in ("Topics", "Labels"):
        bench.output = bench.path / f"out.xlsx#{sheet}"
        bench.succeed(*_PROMPT)
        if sheet == "Topics":
            assert "book.xlsx#Mails \N{RIGHTWARDS ARROW} out.xlsx#Topics: 2 answered" in bench.jobs("out.xlsx").stdout
    assert "did you mean out.xlsx#Labels or out.xlsx#Topics?" in bench.jobs("out.xlsx").stderr


@pytest.mark.thorough
def test_formulas_that_no_program_has_computed_are_noted(bench, book):
    formulas = "The workbook has formulas without a value in `formula`, which are read as empty cells"
    bench.input = Path(f"{book}#Mails")
    said = bench.run(*_PROMPT)
    assert formulas in said.stdout
    assert formulas in bench.run(*_PROMPT, "--dry-run").stdout
    assert formulas in bench.status()["warnings"][0]


@pytest.mark.thorough
def test_formulas_without_a_value_are_a_warning_in_python(bench, book):
    with pytest.warns(UserWarning, match="formulas without a value in `formula`"):
        promptmill.bulk(f"{book}#Mails", prompt="Say {{body}}", model="m", base_url=bench.upstream.url, api_key=KEY)


def test_formulas_with_a_value_have_no_note(bench):
    for name in ("libre.xlsx", "libre.ods", "libre.xls", "excel.xlsx"):
        assert not SheetTable(opened(find([_DATA / name], bench.output))).style.uncomputed


def _formula(reference: str, result: str) -> str:
    return f'<c r="{reference}"><f>LEN(A2)</f><v>{result}</v></c>'


@pytest.mark.parametrize(("results", "read"), [((0, 0), (None, None)), ((0, 4), (0, 4))])
@pytest.mark.parametrize("recalculates", [True, False])
def test_the_zeros_that_xlsxwriter_gives_to_all_formulas_are_no_values(bench, results, read, recalculates):
    head = f'<row r="1">{text_cell("A1", "body")}{text_cell("B1", "size")}</row>'
    rows = [
        f'<row r="{at}">{text_cell(f"A{at}", "tea")}{_formula(f"B{at}", result)}</row>'
        for at, result in enumerate(results, 2)
    ]
    book = '<calcPr calcId="124519" fullCalcOnLoad="1"/>' if recalculates else ""
    file = write_parts(bench.path / "a.xlsx", {"Data": sheet_xml(head + "".join(rows))}, book=book)
    table = SheetTable(opened(find([file], bench.output)))
    assert bool(table.style.uncomputed) == (recalculates and read == (None, None))
    assert [row["size"] for row in objects_in(file)] == list(read if recalculates else results)


@pytest.mark.parametrize("suffix", ["xlsx", "ods", "xls"])
def test_a_sheet_that_another_program_wrote_is_read_as_it_shows_it(suffix):
    rows = list(objects_in(_DATA / f"libre.{suffix}"))  # LibreOffice 7.4
    assert rows[0] == {
        "id": 1, "mail body": 'Grüße, "Ann"', "day": "2026-01-05", "amount": 3, "share": 0.25, "empty": None,
    }  # fmt: skip
    assert [row["amount"] for row in rows] == [3, 2.5, 1_000_000]
    assert rows[1]["mail body"] == "two\nlines"


def test_a_duration_of_more_than_a_day_in_an_ods_is_read_as_one_of_excel(tmp_path):
    with zipfile.ZipFile(_DATA / "libre.ods") as before, zipfile.ZipFile(tmp_path / "in.ods", "w") as after:
        for name in before.namelist():
            data = before.read(name)
            time = b'office:value-type="time" office:time-value="PT30H05M09S"'
            after.writestr(name, data.replace(b'office:value-type="float" office:value="2.5"', time))
    assert [row["amount"] for row in objects_in(tmp_path / "in.ods")] == [3, "30:05:09", 1_000_000]


def test_a_sheet_of_pandas_is_read(tmp_path):
    times = pd.to_datetime(["2026-01-05 00:00", "2026-01-06 07:08"])
    frame = pd.DataFrame({"a": [1, None], "when": times, "ok": [True, False]})
    frame.to_excel(tmp_path / "in.xlsx", index=False)
    assert list(objects_in(tmp_path / "in.xlsx")) == [
        {"a": 1, "when": "2026-01-05", "ok": True},
        {"a": None, "when": "2026-01-06 07:08:00", "ok": False},
    ]


def test_a_workbook_that_no_package_here_reads_names_the_package(book, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PromptmillError, match=r"\.xlsx files need python-calamine") as raised:
        opened(find([book], book))
    assert raised.value.code is Code.MISSING_DEPENDENCY


@pytest.mark.thorough
def test_a_sheet_is_answered_into_a_table(bench, book):
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), bench.path / "out.csv"
    bench.succeed(*_PROMPT)
    with bench.output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["day"], row["answer"]) for row in rows] == [
        ("1", "2026-01-05", "echo: Say tea"),
        ("2.5", "2026-02-03 04:05:00", "echo: Say milk"),
    ]


def test_a_workbook_with_several_sheets_and_a_sheet_that_is_not_there_are_told(bench, book):
    assert "book.xlsx has the sheets Mails, Notes; name one of them: 'book.xlsx#Mails'" in bench.fail(*_PROMPT)
    bench.input = book.with_name("book.xlsx#Mail")
    assert "has no sheet 'Mail'; did you mean Mails?" in bench.fail(*_PROMPT)
    assert not bench.upstream.seen


@pytest.mark.thorough
def test_answers_become_columns_of_the_sheet_itself_and_all_else_stays(bench, book):
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), book
    bench.succeed(*_PROMPT)
    rows = _cells(book, "Mails")
    assert rows[0][:6] == ("id", "body", "day", "formula", "answer", "error")
    assert [row[4] for row in rows[1:]] == ["echo: Say tea", None, "echo: Say milk"]
    assert (rows[1][3], openpyxl.load_workbook(book)["Mails"]["A1"].font.bold) == ("=1+1", True)
    assert _cells(book, "Notes") == [("kept",), (7,)]
    assert bench.succeed(*_PROMPT)["done"] == 2
    assert len(bench.upstream.seen) == 2  # the answers in it are no new input


@pytest.mark.thorough
def test_rows_that_are_added_to_an_answered_sheet_are_answered_into_the_same_columns(bench, book):
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), book
    bench.succeed(*_PROMPT)
    changed = openpyxl.load_workbook(book)
    changed["Mails"].append([3, "wine"])
    changed.save(book)
    bench.succeed(*_PROMPT)
    rows = _cells(book, "Mails")
    assert rows[0].count("answer") == 1
    assert [row[4] for row in rows[1:]] == ["echo: Say tea", None, "echo: Say milk", "echo: Say wine"]
    assert len(bench.upstream.seen) == 3


@pytest.mark.parametrize(("sheet", "how"), [("Mails", []), ("Topics", ["--overwrite"])])
def test_a_correction_in_the_workbook_of_the_answers_follows_the_remedy(bench, book, sheet, how):
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), book.with_name(f"book.xlsx#{sheet}")
    changed = openpyxl.load_workbook(book)
    changed["Mails"].append([3, None])
    changed.save(book)
    said = bench.fail(*_PROMPT, code=1)
    assert " ".join(["run the same command", *(f"with {each}" for each in how)]) + ": it sends" in " ".join(
        said.split()
    )
    changed = openpyxl.load_workbook(book)
    changed["Mails"].cell(changed["Mails"].max_row, 2, "wine")
    changed.save(book)
    if how:
        assert "has changed since the job wrote its answers into it" in bench.fail(*_PROMPT)
    bench.succeed(*_PROMPT, *how)
    assert _cells(book, sheet)[-1][4] == "echo: Say wine"
    assert len(bench.upstream.seen) == 3


@pytest.mark.thorough
def test_a_sheet_is_added_to_a_workbook_and_no_sheet_is_lost(bench, book):
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), book.with_name("book.xlsx#Labels")
    bench.succeed(*_PROMPT)
    assert openpyxl.load_workbook(book).sheetnames == ["Mails", "Notes", "Labels"]
    assert [row[4] for row in _cells(book, "Labels")] == ["answer", "echo: Say tea", "echo: Say milk"]
    bench.output = book.with_name("book.xlsx#Notes")
    assert "exists and is not this job's own output; name another sheet" in bench.fail(*_PROMPT)


@pytest.mark.thorough
@pytest.mark.parametrize("sheet", ["Mails", "Labels"])
def test_a_job_goes_on_in_its_sheet_after_another_job_has_written_a_sheet(bench, book, sheet):
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), book.with_name(f"book.xlsx#{sheet}")
    bench.succeed(*_PROMPT, "--limit", "1")
    bench.output = book.with_name("book.xlsx#Others")
    bench.succeed(*_PROMPT)
    bench.output = book.with_name(f"book.xlsx#{sheet}")
    bench.succeed(*_PROMPT)
    found = [row[4] for row in _cells(book, sheet) if row[4] is not None]  # a row of `Mails` is empty
    assert found == ["answer", "echo: Say tea", "echo: Say milk"]
    assert len(_cells(book, "Others")) == 3
    assert len(bench.upstream.seen) == 4


@pytest.mark.thorough
def test_a_new_workbook_has_numbers_dates_and_texts_that_are_no_formulas(bench, book):
    bench.upstream.reply = answer("=1+1")
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), bench.path / "out.xlsx"
    bench.succeed(*_PROMPT)
    sheet = openpyxl.load_workbook(bench.output)["answers"]
    assert (sheet["A2"].value, sheet["C2"].value, sheet["E2"].value) == (
        1,
        dt.datetime.fromisoformat("2026-01-05"),
        "=1+1",
    )
    assert sheet["E2"].data_type == "s"
    assert [row["answer"] for row in objects_in(bench.output)] == ["=1+1"] * 2


def test_a_time_stays_a_time_in_a_new_workbook(bench):
    path = bench.path / "times.xlsx"
    workbook = openpyxl.Workbook()
    for row in (["body", "at"], ["tea", dt.time(8, 1)], ["milk", "08:01:00"]):
        workbook.active.append(row)
    workbook.save(path)
    bench.input, bench.output = path, bench.path / "out.xlsx"
    bench.succeed("--prompt", "Say {{body}} {{at}}")
    assert [row[1] for row in _cells(bench.output, "answers")] == ["at", dt.time(8, 1), "08:01:00"]
    assert [row[2] for row in _cells(bench.output, "answers")[1:]] == [
        "echo: Say tea 08:01:00",
        "echo: Say milk 08:01:00",
    ]


def test_a_text_that_is_longer_than_a_cell_is_cut_with_a_note(bench, book):
    bench.upstream.reply = answer("x" * 40_000)
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), bench.path / "out.xlsx"
    said = bench.run(*_PROMPT).stdout
    assert "2 cells were cut at Excel's 32,767 characters" in " ".join(said.split())


def test_a_table_of_a_database_is_answered_into_another_one(bench):
    database = _database(bench)
    bench.input, bench.output = database.with_name("mails.db#inbox"), database.with_name("mails.db#labels")
    bench.succeed(*_PROMPT)
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT id, size, answer, error FROM labels ORDER BY id").fetchall()
        assert rows == [(at, at / 2, f"echo: Say t{at}", None) for at in range(3)]
        assert connection.execute("SELECT count(*) FROM inbox").fetchone() == (3,)
        connection.execute("INSERT INTO inbox VALUES (3, 't3', 0)")
    bench.succeed(*_PROMPT)
    assert len(bench.upstream.seen) == 4
    bench.output = database.with_name("mails.db#other")
    assert "exists and is not this job's own output" in bench.fail(*_PROMPT)


def test_a_table_that_another_program_made_meanwhile_is_not_replaced(bench):
    database = _database(bench)
    bench.input, bench.output = database.with_name("mails.db#inbox"), database.with_name("mails.db#labels")

    def make(_: Any) -> Any:
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS Labels (precious)")
        return answer("x")

    bench.upstream.reply = choose(make)
    said = " ".join(bench.fail(*_PROMPT).split())
    assert f"Another program made {bench.path / 'mails.db'}#labels during the job; move it away" in said
    with sqlite3.connect(database) as connection:
        assert [name for _, name, *_ in connection.execute("PRAGMA table_info(labels)")] == ["precious"]


@pytest.mark.parametrize("name", ["book.xlsx#Labels", "book.xlsx"])
def test_a_workbook_that_is_saved_while_a_part_of_it_is_written_is_not_replaced(tmp_path, book, name):
    partial, target = tmp_path / "partial", book.with_name(name)
    partial.write_bytes(b"a copy of the book, and the sheet")
    copied = table_paths.stamp_in(book, "")
    book.write_bytes(b"saved by a user")
    with pytest.raises(PromptmillError, match=r"Another program changed \S+ during the job; repeat the command"):
        output.publish(partial, target, may_replace=True, copied=copied)
    assert book.read_bytes() == b"saved by a user"


@pytest.mark.parametrize(
    ("source", "output", "keeps"),
    [
        ("book.xlsx#Mails", "book.xlsx#Mails", True),
        ("book.xlsx#Mails", "book.xlsx", True),
        ("in.csv", "book.xlsx#Labels", True),
        ("in.csv", "book.xlsx", False),
        ("in.csv", "out.csv", False),
    ],
)
def test_an_output_that_is_a_part_of_a_workbook_keeps_the_others(source, output, keeps):
    (part,) = find([Path("/data", source)], Path("/data/out"))
    given = InputSpec(path=part.path, files=(part,), format="csv" if source.endswith(".csv") else "xlsx")
    kind = "csv" if output.endswith(".csv") else "xlsx"
    spec = spec_of("xlsx").model_copy(update={"input": given})
    assert spec.with_output(path=Path("/data", output), format=kind).keeps_sheets is keeps


def test_a_sheet_that_another_program_made_meanwhile_is_not_replaced(tmp_path, book):
    partial, target = tmp_path / "partial", book.with_name("book.xlsx#Notes")
    partial.write_bytes(b"a copy of the book, and the sheet")
    before = book.read_bytes()
    with pytest.raises(PromptmillError, match=r"Another program made .*Notes"):
        output.publish(partial, target, may_replace=False, copied=table_paths.stamp_in(book, ""))
    assert book.read_bytes() == before


def test_a_query_is_an_input_and_a_killed_job_goes_on_with_it(bench):
    bench.input, bench.output = _database(bench, 40), bench.path / "out.csv"
    query = ("--sql", "SELECT id, body FROM inbox WHERE id < 30 ORDER BY id DESC", *_PROMPT)
    bench.half_done(answers(0, 2), *query)
    bench.succeed(*query)
    assert len(bench.upstream.seen) == 28
    bench.succeed("--sql", "SELECT id, body FROM inbox WHERE id < 31", *_PROMPT)
    assert len(bench.upstream.seen) == 29


@pytest.mark.thorough
def test_rows_that_are_in_the_log_of_a_database_alone_are_new(bench):
    bench.input, bench.output = _database(bench).with_name("mails.db#inbox"), bench.path / "out.csv"
    with contextlib.closing(sqlite3.connect(bench.path / "mails.db")) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("PRAGMA wal_autocheckpoint = 0")
        bench.succeed(*_PROMPT)
        with other:
            other.execute("INSERT INTO inbox VALUES (3, 't3', 1.5)")
        bench.succeed(*_PROMPT)
        assert len(bench.upstream.seen) == 4
        assert "is finished already" in bench.run(*_PROMPT).stderr


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mails.db", [], "mails.db has the tables inbox, other; name one of them: 'mails.db#inbox'"),
        ("mails.db#inbx", [], "mails.db has no table 'inbx'; did you mean inbox?"),
        ("mails.db", ["--sql", "SELECT nosuch FROM inbox"], "mails.db cannot be read: no such column: nosuch"),
        ("mails.db#inbox", ["--sql", "SELECT id FROM inbox"], "--sql needs the name of a database without a table"),
        ("mails.db", ["--sql", "create temp table q as select 1"], "--sql is one query, such as: select id, body"),
        ("mails.db", ["--sql", "-- nothing"], "--sql is one query"),
        ("mails.db", ["--sql", "select 1; select 2"], "--sql is one query"),
        ("mails.db", ["--sql", "DELETE FROM inbox"], "mails.db cannot be read: attempt to write a readonly database"),
    ],
)
def test_a_wrong_table_or_query_is_told_before_anything_is_sent(bench, name, options, said):
    bench.input = _database(bench).with_name(name)
    assert said in bench.fail(*_PROMPT, *options)
    assert not bench.upstream.seen


@pytest.mark.thorough
def test_values_of_databases_and_sheets_keep_their_types_in_parquet(bench, book):
    database = _database(bench)
    bench.input, bench.output = database.with_name("mails.db#inbox"), bench.path / "sqlite.parquet"
    bench.succeed(*_PROMPT)
    assert parquet.read_table(bench.output).column("size").to_pylist() == [0, 0.5, 1]
    bench.input, bench.output = book.with_name("book.xlsx#Mails"), bench.path / "book.parquet"
    bench.succeed(*_PROMPT)
    assert parquet.read_table(bench.output).column("id").to_pylist() == [1, 2.5]


def test_a_sheet_of_one_row_is_a_header_without_rows(tmp_path):
    path = tmp_path / "in.xlsx"
    pd.DataFrame(columns=["id", "body"]).to_excel(path, index=False)
    assert SheetTable(opened(find([path], path))).header == ["id", "body"]


def test_a_sheet_of_empty_texts_is_empty(bench):
    book, bench.input = openpyxl.Workbook(), bench.path / "in.xlsx"
    book.active.append(["x", "x"])
    book.save(bench.path / "x.xlsx")
    with zipfile.ZipFile(bench.path / "x.xlsx") as old, zipfile.ZipFile(bench.input, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"<t>x</t>", b"<t></t>"))
    assert "in.xlsx is empty." in bench.fail(*_PROMPT)
    bench.input = bench.path / "in.xlsx#Sheet"
    assert "The sheet Sheet of in.xlsx is empty." in bench.fail(*_PROMPT)


def test_a_database_without_a_table_is_no_output(tmp_path):
    with pytest.raises(PromptmillError, match="is a database; name a table in it"):
        format_of_output(tmp_path / "out.db", "csv")


def test_a_name_with_a_mark_that_is_a_file_is_that_file(tmp_path):
    (tmp_path / "a.xlsx#b").touch()
    assert table_paths.split(tmp_path / "a.xlsx#b") == (tmp_path / "a.xlsx#b", "")
    assert table_paths.split(tmp_path / "a.xlsx#c") == (tmp_path / "a.xlsx", "c")
    assert table_paths.split(tmp_path / "notes#1.csv") == (tmp_path / "notes#1.csv", "")


@pytest.mark.thorough
def test_a_sheet_of_answers_has_widths_a_frozen_header_and_a_filter(bench):
    bench.upstream.reply = answer("good " * 40)
    bench.write(["id,body,note", *(f"{at},tea with milk and {at} lumps,a" for at in range(300))], "in.csv")
    bench.output = bench.path / "out.xlsx"
    bench.succeed(*_PROMPT)
    sheet = openpyxl.load_workbook(bench.output)["answers"]
    assert sheet.freeze_panes == "A2"
    assert sheet.auto_filter.ref == f"A1:{sheet.cell(1, sheet.max_column).coordinate[:-1]}301"
    widths = [sheet.column_dimensions[letter].width for letter in "ABCD"]
    assert widths == [8, len("tea with milk and 198 lumps") + 2, 8, 60]
    assert _cells(bench.output, "answers")[300][:2] == ("299", "tea with milk and 299 lumps")


@pytest.mark.thorough
def test_a_message_about_a_workbook_names_the_row_of_its_sheet_and_calls_its_cell_empty(bench):
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (["Mails of May"], [], ["id", "body"], *([at, None if at == 7 else "tea"] for at in range(10))):
        book.active.append(row)
    bench.input, bench.output = bench.path / "book.xlsx", bench.path / "out.csv"
    book.save(bench.input)
    named = ("--header-row", "3", "--prompt-column", "body")
    problems = json.loads(bench.run(*named, "--dry-run", "--json").stdout)["problems"]
    bench.fail(*named, code=1)
    (wrong,) = [row["error"] for row in csv.DictReader(bench.output.open()) if row["error"]]
    assert wrong.startswith("empty_prompt: row 11 of the sheet: its body is empty.")
    assert [problem.partition(":")[0] for problem in problems] == ["row 11 of the sheet"]
    assert book.active["A11"].value == 7
