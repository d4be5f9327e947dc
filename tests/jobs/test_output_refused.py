"""Outputs that cannot hold the columns, or cannot have their name: refused before the first request, or writable."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import openpyxl
import pytest

from replies import answer

_DATABASES = pytest.mark.parametrize(
    "name", ["out.db#t", pytest.param("out.duckdb#t", marks=pytest.mark.features("duckdb"))]
)


@pytest.fixture
def tabled(bench):
    """Write a table of one row, and choose the output."""

    def written(names: list[str], output: str) -> None:
        bench.input = bench.path / "in.csv"
        bench.input.write_text(",".join([*names, "text"]) + "\n" + "v," * len(names) + "tea\n")
        bench.output = bench.path / output

    return written


def _refused(bench: Any, *arguments: str) -> str:
    said: str = bench.fail("--prompt", "{{text}}", *arguments)
    assert bench.upstream.seen == []
    assert "Traceback" not in said
    return said


def _opened(path: Path) -> Any:
    file = path.with_name(path.name.partition("#")[0])
    return closing(sqlite3.connect(file) if file.suffix == ".db" else duckdb.connect(str(file)))


def _columns(path: Path) -> list[str]:
    with _opened(path) as connection:
        return [name for name, *_ in connection.execute("SELECT * FROM t").description]


@_DATABASES
def test_a_table_with_more_columns_than_a_database_holds_is_refused(bench, tabled, name):
    tabled([f"c{at}" for at in range(1994)], name)
    said = " ".join(_refused(bench).split())
    assert "holds 2,000 columns, and this output may have 2,011" in said
    assert "name the output .csv, .jsonl or .parquet, or leave columns of the job out with --columns" in said
    assert "holds 2,000 columns" in _refused(bench, "--dry-run")


@pytest.mark.thorough
@_DATABASES
def test_a_table_that_fits_without_some_columns_of_the_job_is_written(bench, tabled, name):
    tabled([f"c{at}" for at in range(1994)], name)
    bench.succeed("--prompt", "{{text}}", "--columns", "answer,error")
    assert _columns(bench.output)[-3:] == ["text", "answer", "error"]


@pytest.mark.thorough
@_DATABASES
def test_fields_of_rows_of_json_count_as_columns(bench, name):
    bench.write([{"text": "tea"}, {"text": "milk", **{f"c{at}": at for at in range(2000)}}])
    bench.output = bench.path / name
    assert "holds 2,000 columns" in _refused(bench)


@pytest.mark.thorough
@_DATABASES
@pytest.mark.parametrize(
    ("own", "ours"), [("Answer", "answer_1"), ("ERROR", "error_1"), ("Finish_Reason", "finish_reason_1")]
)
def test_a_column_of_the_job_is_renamed_where_the_input_has_its_name_in_capitals(bench, tabled, name, own, ours):
    tabled([own], name)
    notes = bench.succeed("--prompt", "{{text}}")["warnings"]
    assert {own, ours} < {*_columns(bench.output)}
    assert f"The input has columns `{own}` of its own; those of the job are called `{ours}`." in notes


@pytest.mark.thorough
@_DATABASES
def test_a_late_field_in_capitals_renames_the_column_of_the_job(bench, name):
    bench.write([*[{"text": "tea"}] * 3, {"text": "milk", "ANSWER": 1}])
    bench.output = bench.path / name
    bench.succeed("--prompt", "{{text}}")
    assert _columns(bench.output)[:3] == ["text", "ANSWER", "answer_1"]


@pytest.mark.thorough
@_DATABASES
def test_fields_of_answers_that_differ_in_capitals_get_a_number(bench, upstream, tabled, name):
    upstream.reply = answer(json.dumps({"Total": "1", "total": "2"}))
    tabled(["TOTAL"], name)
    bench.succeed("--prompt", "{{text}}", "--fields", "Total,total")
    assert _columns(bench.output)[:4] == ["TOTAL", "text", "Total_1", "total_2"]


@_DATABASES
def test_columns_of_the_input_that_differ_in_capitals_alone_are_refused_with_both_names(bench, tabled, name):
    tabled(["Id", "ID"], name)
    assert "The columns `Id` and `ID` differ only in capitals" in " ".join(_refused(bench).split())


@pytest.mark.thorough
@_DATABASES
def test_letters_beyond_ascii_differ_in_capitals_as_in_the_databases(bench, tabled, name):
    tabled(["Ä", "ä"], name)
    bench.succeed("--prompt", "{{text}}")
    assert _columns(bench.output)[:2] == ["Ä", "ä"]


def test_outputs_without_sql_keep_the_names_of_the_job(bench, tabled):
    tabled(["Answer"], "out.csv")
    bench.succeed("--prompt", "{{text}}")
    assert bench.output.read_text().startswith("Answer,text,answer,error")


@_DATABASES
def test_an_export_to_a_database_renames_its_columns_likewise(bench, tabled, name):
    tabled(["Answer"], "out.jsonl")
    bench.succeed("--prompt", "{{text}}")
    other = bench.path / name
    assert bench.jobs(str(bench.output), "--export", str(other)).returncode == 0
    assert _columns(other)[:3] == ["Answer", "text", "answer_1"]


def test_names_that_sqlite_keeps_for_itself_or_cannot_have_are_refused(bench, tabled):
    tabled(["id"], "out.db#SQLITE_answers")
    assert "keeps the names with sqlite_ for itself" in " ".join(_refused(bench).split())
    bench.write([{"text": "tea", "a\0b": 1}])
    bench.output = bench.path / "out.db#t"
    assert "The column 'a\\x00b' has a NUL in its name" in " ".join(_refused(bench).split())


@_DATABASES
def test_a_view_with_the_name_of_the_table_is_refused(bench, tabled, name):
    tabled(["id"], name)
    with _opened(bench.output) as connection:
        connection.execute("CREATE VIEW T AS SELECT 1 AS a")
    assert "has the view t, which is no table" in " ".join(_refused(bench, "--overwrite").split())


def test_a_file_that_is_no_database_is_refused(bench, tabled):
    tabled(["id"], "out.db#t")
    (bench.path / "out.db").write_text("no database, but a text of some length" * 50)
    assert "out.db cannot be written: file is not a database" in " ".join(_refused(bench).split())


@pytest.mark.parametrize(
    ("sheet", "why"),
    [
        ("a\x07b", "it has '\\x07'"),
        ("a\tb", "it has '\\t'"),
        ("\x1f", "it has '\\x1f'"),
        ("'a", "begins or ends with an apostrophe"),
        ("a'", "begins or ends with an apostrophe"),
        ("HISTORY", "Excel keeps it for itself"),
        (16 * "\N{GRINNING FACE}", "it has 32 characters, as Excel counts them"),
    ],
)
def test_a_name_that_no_sheet_can_have_is_refused_and_the_workbook_stays(bench, tabled, sheet, why):
    tabled(["id"], f"book.xlsx#{sheet}")
    book = openpyxl.Workbook()
    book.save(bench.path / "book.xlsx")
    before = (bench.path / "book.xlsx").read_bytes()
    assert why in " ".join(_refused(bench).split())
    assert (bench.path / "book.xlsx").read_bytes() == before


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["R & D", "a<b", "it's", 15 * "\N{GRINNING FACE}"])
def test_a_name_with_any_other_signs_is_that_of_the_sheet(bench, tabled, name):
    tabled(["id"], f"book.xlsx#{name}")
    bench.succeed("--prompt", "{{text}}")
    assert openpyxl.load_workbook(bench.path / "book.xlsx").sheetnames == [name]


def test_a_table_that_is_too_wide_for_a_sheet_with_the_columns_of_the_job_is_refused(bench, tabled):
    tabled([f"c{at}" for at in range(16_375)], "out.xlsx")
    assert "A sheet holds 16,384 columns at most" in " ".join(_refused(bench).split())


@pytest.mark.parametrize("name", ["out.csv", "out.parquet", "out.xlsx"])
def test_rows_with_too_many_different_fields_for_a_table_are_refused(bench, name):
    bench.write([{"text": "tea", **{f"c{at}": 1 for at in range(10_001)}}])
    bench.output = bench.path / name
    assert "more than 10,000 different fields" in " ".join(_refused(bench).split())


def test_a_workbook_with_macros_is_no_output(bench, tabled):
    tabled(["id"], "in.xlsm")
    bench.input = bench.output
    openpyxl.Workbook().save(bench.input)
    assert ".xlsm is no format of an output" in " ".join(_refused(bench).split())


@_DATABASES
def test_shards_of_a_table_are_joined_into_the_database(bench, name):
    bench.write([{"text": f"tea {at}", "Answer": at} for at in range(5)])
    bench.output = bench.path / name
    for shard in ("1/2", "2/2"):
        bench.succeed("--prompt", "{{text}}", "--shard", shard)
    for said in ("note: The input has columns `Answer`", "was there already"):
        done = bench.jobs(str(bench.output), "--join")
        assert (done.returncode, said in done.stdout + done.stderr) == (0, True), done.stderr
    with _opened(bench.output) as connection:
        found = connection.execute("SELECT Answer, answer_1 FROM t ORDER BY 1").fetchall()
    assert found == [(at, f"echo: tea {at}") for at in range(5)]


def test_shards_of_a_sheet_are_joined_into_the_workbook(bench):
    bench.write([{"text": f"tea {at}"} for at in range(3)])
    bench.output = bench.path / "book.xlsx#Labels"
    openpyxl.Workbook().save(bench.path / "book.xlsx")
    for shard in ("1/2", "2/2"):
        bench.succeed("--prompt", "{{text}}", "--shard", shard)
    assert bench.jobs(str(bench.output), "--join").returncode == 0
    book = openpyxl.load_workbook(bench.path / "book.xlsx")
    assert book.sheetnames == ["Sheet", "Labels"]
    assert [row[1] for row in book["Labels"].values] == ["answer", *(f"echo: tea {at}" for at in range(3))]


def test_cells_that_are_cut_are_counted_for_every_way_to_a_workbook(bench, upstream):
    upstream.reply = answer("y" * 40_000)
    bench.write([{"text": "tea", "Note": "z" * 40_000}])
    bench.succeed("--prompt", "{{text}}")
    exported = bench.jobs(str(bench.output), "--export", str(bench.path / "other.xlsx"))
    assert "note: 2 cells were cut at Excel's 32,767 characters" in exported.stderr
    as_json = bench.jobs(str(bench.output), "--export", str(bench.path / "third.xlsx"), "--json")
    assert "2 cells were cut" in json.loads(as_json.stdout)["warnings"][0]
    bench.output = bench.path / "joined.xlsx"
    bench.succeed("--prompt", "{{text}}", "--shard", "1/1")
    assert "note: 2 cells were cut" in bench.jobs(str(bench.output), "--join").stderr


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("text", "is_formula"),
    [
        *((text, True) for text in ("=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-SUM(A1)", '{"s":"=1+1"}')),
        *((text, False) for text in ("-5", "+49 170 1", "- item", "a = b", '{"s":"a=b"}', "")),
    ],
)
def test_answers_that_a_spreadsheet_runs_are_counted_where_they_become_cells_of_csv(bench, upstream, text, is_formula):
    upstream.reply = answer(text)
    bench.write([{"text": "tea"}])
    bench.output = bench.path / "out.csv"
    notes = " ".join(bench.succeed("--prompt", "{{text}}")["warnings"])
    assert ("1 answer begins with `=`" in notes) is is_formula
    exported = [bench.jobs(str(bench.output), "--export", str(bench.path / name)) for name in ("b.tsv", "c.xlsx")]
    assert ["begins with `=`" in done.stderr for done in exported] == [is_formula, False]


def test_a_batch_file_that_is_exported_has_the_note_about_its_ids(bench):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    bench.write([{**line, "body": {"model": "test-model", "messages": [{"role": "user", "content": "tea"}]}}] * 2)
    bench.succeed()
    exported = bench.jobs(str(bench.output), "--export", str(bench.path / "other.csv"))
    assert "repeat the `custom_id` of an earlier one" in " ".join(exported.stderr.split())
