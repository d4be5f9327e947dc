"""Dates and times in fields of answers, in every output with types."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sqlite3
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from pyarrow import parquet

import promptmill
from fakes import KEY
from promptmill.answers.text_formats import date_of
from promptmill.jobs.columns.schema_columns import SchemaColumns
from replies import answer, by_prompt
from tables import read_rows
from workbook_files import parts_in, sheet_xml, text_cell, write_parts

_FIELDS = "due:date,at:time"
_SCHEMA = {
    "type": "object",
    "properties": {"d": {"type": "string", "format": "date"}, "t": {"type": "string", "format": "time"}},
}
_ANSWERS = {
    "tea": {"due": "2026-03-04", "at": "2026-03-04T10:30"},
    "milk": {"due": None, "at": None},
    "silk": {"due": "1850-01-02", "at": "2026-03-05T09:15:30.5"},
}
_DUE, _AT = dt.date(2026, 3, 4), dt.datetime.fromisoformat("2026-03-04T10:30")
_LATER = dt.datetime.fromisoformat("2026-03-05T09:15:30.5")


@pytest.fixture
def dated(bench):
    """A bench whose endpoint answers three rows with dates, of which the second has none."""
    bench.upstream.reply = by_prompt({name: answer(json.dumps(value)) for name, value in _ANSWERS.items()})
    bench.write([{"body": name} for name in _ANSWERS])

    def run(name: str, *more: str) -> Path:
        bench.output = bench.path / name
        bench.succeed("--prompt", "{{body}}", "--fields", _FIELDS, *more)
        return bench.output

    bench.into = run
    return bench


def cells(path: Path) -> list[list[Any]]:
    rows = openpyxl.load_workbook(path).active.iter_rows(min_row=2)
    return [[(cell.value, cell.is_date) for cell in row][1:3] for row in rows]


@pytest.mark.thorough
def test_text_outputs_have_the_texts_of_the_answers(dated):
    assert [row["due"] for row in read_rows(dated.into("out.csv"))] == ["2026-03-04", "", "1850-01-02"]
    lines = dated.into("out.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == [*_ANSWERS.values()]


def test_a_workbook_has_dates_and_those_before_excels_first_day_as_texts(dated):
    midnight = dt.datetime.fromisoformat("2026-03-04")
    assert cells(dated.into("out.xlsx")) == [
        [(midnight, True), (_AT, True)],
        [(None, False), (None, False)],
        [("1850-01-02", False), (_LATER, True)],
    ]


def _sheet(style: str = "") -> str:
    rows = [f'<row r="1">{text_cell("A1", "body")}</row>']
    rows += [
        f'<row r="{at}">{text_cell(f"A{at}", name)}{f"""<c r="B{at}" s="{style}"/>""" if style else ""}</row>'
        for at, name in enumerate(_ANSWERS, 2)
    ]
    return sheet_xml("".join(rows))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("", "mm-dd-yy"),
        ("0.00", "mm-dd-yy"),
        ("dd\\.mm\\.yyyy", "dd\\.mm\\.yyyy"),
        ("&quot;day&quot; 0", "mm-dd-yy"),
        ("[>9]0;[Red]0", "mm-dd-yy"),
    ],
)
def test_a_filled_sheet_has_dates_in_the_format_of_their_cells_if_this_is_one_of_dates(dated, code, shown):
    formats = {1: code} if code else {}
    dated.input = write_parts(dated.path / "in.xlsx", {"Sheet1": _sheet("1" if code else "")}, formats=formats)
    path = dated.into("in.xlsx")
    first, second, third = openpyxl.load_workbook(path).active.iter_rows(min_row=2)
    assert (first[1].value, first[1].number_format) == (dt.datetime.fromisoformat("2026-03-04"), shown)
    assert (second[1].value, third[1].value) == (None, "1850-01-02")
    styles = parts_in(path)["xl/styles.xml"]
    dated.into("in.xlsx", "--again", "all")
    assert cells(path)[0] == [(dt.datetime.fromisoformat("2026-03-04"), True), (_AT, True)]
    assert parts_in(path)["xl/styles.xml"] == styles


@pytest.mark.thorough
def test_columns_of_parquet_are_of_dates(dated):
    found = parquet.read_table(dated.into("out.parquet"))
    assert [found.schema.field(name).type for name in ("due", "at")] == [pa.date32(), pa.timestamp("us")]
    assert found["due"].to_pylist() == [_DUE, None, dt.date(1850, 1, 2)]
    assert found["at"].to_pylist() == [_AT, None, _LATER]


@pytest.mark.parametrize(
    ("times", "kind"),
    [
        (["2026-03-04T10:30Z", "2026-03-04t11:30:00z"], pa.timestamp("us", "UTC")),
        (["2026-03-04T10:30Z", "2026-03-04T11:30"], pa.string()),
        (["2026-03-04T10:30+02:00", "2026-03-04T11:30+02:00"], pa.string()),
        (["2026-03-04T10:30:00.1234567", "2026-03-04T11:30"], pa.string()),
        (["yesterday", "2026-03-04T11:30"], pa.string()),
    ],
)
def test_a_column_whose_times_no_type_holds_is_one_of_texts(times, kind):
    schema = {"type": "object", "properties": {"at": {"type": ["string", "null"], "format": "date-time"}}}
    columns = SchemaColumns(schema, by_field=True)
    for text in times:
        columns.widen({"answer.at": columns.typed("answer.at", text)})
    columns.widen({"answer.at": None})
    values = [columns.arrow_value("answer.at", columns.typed("answer.at", text)) for text in times]
    assert columns.arrow_type("answer.at") == kind
    assert None not in pa.array(values, kind).to_pylist()
    assert kind != pa.string() or values == times


def test_a_time_of_day_has_its_own_type_and_a_list_of_dates_has_texts():
    columns = SchemaColumns(_SCHEMA, by_field=True)
    assert [columns.arrow_type(f"answer.{name}") for name in "dt"] == [pa.date32(), pa.time64("us")]
    assert columns.arrow_value("answer.t", "10:30") == dt.time(10, 30)
    columns.widen({"answer.d": "2026-03-04", "answer.t": "10:30Z"})
    assert [columns.arrow_type(f"answer.{name}") for name in "dt"] == [pa.date32(), pa.string()]
    listed = {"properties": {"l": {"type": "array", "items": {"type": "string", "format": "date"}}}}
    assert SchemaColumns(listed, by_field=True).arrow_type("answer.l") == pa.list_(pa.string())


def test_a_date_is_read_if_python_holds_all_of_it():
    assert date_of("2026-03-04 10:30:00.1234560", "date-time") == dt.datetime(2026, 3, 4, 10, 30, 0, 123456)  # noqa: DTZ001
    assert date_of("2026-03-04 10:30:00.1234567", "date-time") is None
    assert date_of("0001-01-01", "date") == dt.date(1, 1, 1)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "datasets"])
def test_a_table_of_python_has_dates(dated, library, monkeypatch, tmp_path):
    pytest.importorskip(library)
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    data = {"body": [*_ANSWERS]}
    if library == "pandas":
        import pandas as pd

        rows: Any = pd.DataFrame(data)
    elif library == "polars":
        import polars as pl

        rows = pl.DataFrame(data)
    elif library == "datasets":
        from datasets import Dataset

        rows = Dataset.from_dict(data)
    else:
        rows = pa.table(data)
    to = {"model": "m", "base_url": dated.upstream.url, "api_key": KEY, "progress": False}
    table = promptmill.bulk(rows, prompt="{{body}}", fields=_FIELDS, **to).table()
    if library == "pandas":
        assert [table[name].dt.year.tolist()[0] for name in ("due", "at")] == [2026, 2026]
        assert table["due"].min() == dt.datetime.fromisoformat("1850-01-02")
        assert table["due"].isna().tolist() == [False, True, False]
    else:
        found = table.to_arrow() if library == "polars" else table.data if library == "datasets" else table
        assert found["due"].to_pylist() == [_DUE, None, dt.date(1850, 1, 2)]
        assert found["at"].to_pylist() == [_AT, None, _LATER]


@pytest.mark.thorough
@pytest.mark.features("duckdb")
def test_a_database_with_dates_has_them(dated):
    import duckdb

    dated.into("out.duckdb#t")
    with duckdb.connect(str(dated.path / "out.duckdb")) as connection:
        assert connection.execute('SELECT due, "at" FROM t').fetchall()[0] == (_DUE, _AT)
    dated.into("out.db#t")
    with contextlib.closing(sqlite3.connect(dated.path / "out.db")) as connection:
        assert connection.execute("SELECT due, at FROM t").fetchall()[0] == ("2026-03-04", "2026-03-04T10:30")
