"""Texts of CSV and JSON files in queries of DuckDB, which would otherwise get the types of their first rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

pytest.importorskip("duckdb")
_LATE = 20_480
"""The number of rows from which DuckDB guesses types."""


@pytest.fixture
def asked(bench: Any) -> Callable[..., tuple[list[Any], str]]:
    """Runs a query with a prompt; returns the answers without `echo: `, and what was printed."""

    def asked(sql: str, prompt: str, *inputs: str) -> tuple[list[Any], str]:
        command = bench.command("--sql", sql, "--prompt", prompt)
        at = command.index(str(bench.input))
        command[at : at + 2] = [*inputs, str(bench.output)]
        done = bench.here(command)
        assert done.returncode == 0, done.stderr
        return [row["answer"].removeprefix("echo: ") for row in bench.answers()], done.stderr

    return asked


@pytest.mark.parametrize(("usual", "late"), [("7", "12.5"), ("7", "1e2"), ("2024-01-05", "2024-01-05 13:45:00")])
def test_a_value_after_the_first_rows_of_a_csv_file_decides_the_type(bench, asked, usual, late):
    lines = [f"{i},{usual}" for i in range(_LATE)]
    (bench.path / "t.csv").write_text("\n".join(["id,v", *lines, f"{_LATE},{late}"]))
    assert asked(f"select v from 't.csv' where id >= {_LATE}", "{{v}}")[0] == [late]


def test_a_value_after_the_first_rows_of_a_json_file_decides_the_type(bench, asked):
    lines = [f'{{"id": {i}, "v": 7}}' for i in range(_LATE)]
    (bench.path / "t.jsonl").write_text("\n".join([*lines, f'{{"id": {_LATE}, "v": 1.5}}']))
    assert asked(f"select v from t where id >= {_LATE}", "{{v}}", str(bench.path / "t.jsonl"))[0] == ["1.5"]


@pytest.mark.parametrize("source", ["'t.csv'", "read_csv('t.csv')", "read_csv_auto('t.csv') t (id, text)", "t.csv"])
def test_rows_that_begin_with_a_hash_are_rows(bench, asked, source):
    (bench.path / "t.csv").write_text("id,text\n#1001,first\n#1002,second\n3,third\n")
    assert asked(f"select text from {source}", "{{text}}")[0] == ["first", "second", "third"]


def test_a_row_of_an_input_that_begins_with_a_hash_is_a_row(bench, asked):
    (bench.path / "t.csv").write_text("id,text\n1,a\n#3,c\n")
    assert asked("select text from t", "{{text}}", str(bench.path / "t.csv"))[0] == ["a", "c"]


@pytest.mark.parametrize(
    "cell",
    [
        "1.10",
        "2.50",
        "01/02/24",
        "True",
        "1e5",
        "2024-01-05T10:00:00+02:00",
        "10:00",
        "12345678901234567890123",
        " 7",
        "5",
    ],
)
def test_a_column_has_the_texts_of_its_csv_file(bench, asked, cell):
    (bench.path / "t.csv").write_text(f"id,v\n1,{cell}\n2,{cell}\n")
    assert asked("select v as w from 't.csv' where id > 1", "[{{w}}]")[0] == [f"[{cell}]"]


def test_the_rows_of_a_query_keep_their_order_beside_the_texts(bench, asked):
    (bench.path / "t.csv").write_text("id,v\n" + "".join(f"{i},{i}.50\n" for i in range(30)))
    answers, _ = asked("select * from 't.csv' order by v desc limit 3", "{{v}}")
    assert answers == ["29.50", "28.50", "27.50"]


def test_a_column_that_the_query_computes_keeps_its_value(bench, asked):
    (bench.path / "t.csv").write_text("id,v\n1,2.50\n2,5.00\n")
    answers, said = asked("select v * 2 as v from 't.csv'", "{{v}}")
    assert (answers, "note:" in said) == (["5.0", "10.0"], False)


def test_a_date_whose_order_duckdb_guesses_is_noted(bench, asked):
    (bench.path / "t.csv").write_text("id,day\n1,01/02/24\n")
    _, said = asked("select id from 't.csv' where day > '2000-01-01'", "{{id}}")
    assert "note: DuckDB reads day of t.csv as DATE: 01/02/24 is 2001-02-24. The option types = {'day'" in said


def test_a_number_that_the_query_writes_into_a_text_is_noted(bench, asked):
    (bench.path / "t.csv").write_text("id,v\n1,1.10\n")
    answers, said = asked("select 'v' || v as name from 't.csv'", "{{name}}")
    assert answers == ["v1.1"]
    assert "DuckDB reads v of t.csv as DOUBLE: 1.10 is 1.1" in said


def test_two_texts_of_one_number_are_noted(bench, asked):
    (bench.path / "t.csv").write_text("id,v\n1,1.1\n2,1.10\n")
    assert "DuckDB reads v of t.csv as DOUBLE: 1.10 is 1.1" in asked("select * from 't.csv'", "{{v}}")[1]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"Infinity"', "Infinity"),
        ("12345678901234567890123", "12345678901234567890123"),
        ('"2024-01-05T10:00:00+02:00"', "2024-01-05T10:00:00+02:00"),
        ('"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"', "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
    ],
)
def test_a_column_has_the_values_of_its_json_file(bench, asked, cell, text):
    (bench.path / "t.jsonl").write_text(f'{{"id": 1, "v": {cell}}}\n' * 2)
    assert asked("select v from 't.jsonl' limit 1", "{{v}}")[0] == [text]


def test_a_text_beside_a_list_in_a_json_file_has_no_quotes(bench, asked):
    (bench.path / "t.jsonl").write_text('{"v": "abc"}\n{"v": [1, "a"]}\n')
    assert asked("select v from 't.jsonl'", "{{v}}")[0] == ["abc", '[1,"a"]']


def test_a_long_number_inside_an_object_is_noted(bench, asked):
    (bench.path / "t.jsonl").write_text('{"v": {"n": 12345678901234567890123}}\n')
    assert '{"n":12345678901234567890123} is {"n":1.2345678901234568e22}' in asked("from 't.jsonl'", "{{v}}")[1]


@pytest.mark.parametrize(("second", "want"), [(pa.array([2.5]), "2.5"), (pa.array(["007"]), "007")])
def test_parts_of_two_types_are_read_in_the_wider_type_and_noted(bench, asked, second, want):
    (bench.path / "d").mkdir()
    for at, values in enumerate([pa.array([7]), second]):
        parquet.write_table(pa.table({"id": [at], "v": values}), bench.path / "d" / f"{at}.parquet")
    answers, said = asked("select v from 'd/*.parquet' where id = 1", "{{v}}")
    assert answers == [want]
    assert "note: The files of d/*.parquet have v in several types" in said


def test_a_column_that_only_a_later_csv_file_has_is_read(bench, asked):
    for at, text in enumerate(["id,v\n1,a\n", "v,id,w\nb,2,c\n"]):
        (bench.path / f"p{at}.csv").write_text(text)
    assert asked("select *, parse_filename(filename) as file from 'p*.csv' order by id", "{{v}}{{w}} {{file}}")[0] == [
        "a p0.csv",
        "bc p1.csv",
    ]


def test_a_title_above_a_csv_file_is_noted(bench, asked):
    (bench.path / "t.csv").write_text("Report 2024\nid,text\n1,a\n2,b\n")
    answers, said = asked("select text from 't.csv'", "{{text}}")
    assert answers == ["a", "b"]
    assert "DuckDB reads t.csv from line 2 on" in said


def test_the_types_that_a_query_names_stay(bench, asked):
    (bench.path / "t.csv").write_text("id,v\n1,2.50\n")
    sql = "from read_csv('t.csv', columns = {'id': 'BIGINT', 'v': 'DOUBLE'})"
    assert asked(sql, "{{v}}")[0] == ["2.5"]
