"""Files that other programs wrote, as inputs; `data/README.md` has the origin of those in `data`."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import polars as pl
import pytest

_DATA = Path(__file__).parent / "data"
_BODIES = ['Grüße, "Ann": 5 €', "two\nlines", "007", "tea"]
_SIZES = [1, 2, 3, 1_000_000]


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", ["xlsx", "xls"])
def test_a_workbook_of_excel_is_read_as_excel_shows_it(bench, suffix):
    bench.input = _DATA / f"excel.{suffix}"
    bench.succeed("--prompt", "Say {{text}}")
    found = [(row["number"], row["text"], row["boolean"], row["date"], row["datetime"]) for row in bench.answers()]
    assert found == [
        (1, "a", True, "2015-11-04", "2015-11-04 12:22:00"),
        (2, "👍", False, "2015-11-05", "2015-11-04 12:45:00"),
        (None, "b", None, None, None),
    ]


def test_answers_go_into_the_workbook_of_excel_itself(bench):
    bench.input = bench.output = bench.path / "excel.xlsx"
    shutil.copy(_DATA / "excel.xlsx", bench.input)
    before = openpyxl.load_workbook(bench.input).worksheets
    bench.succeed("--prompt", "Say {{text}}")
    after = openpyxl.load_workbook(bench.input).worksheets
    assert [sheet.title for sheet in after] == [sheet.title for sheet in before]
    for row, old in zip(after[0].iter_rows(), before[0].iter_rows(), strict=True):
        for cell, was in zip(row, old, strict=False):
            assert (cell.value, cell.number_format, cell.font.sz) == (was.value, was.number_format, was.font.sz)
    assert [row[5].value for row in after[0].iter_rows()] == ["answer", "echo: Say a", "echo: Say 👍", "echo: Say b"]


def test_a_csv_of_libreoffice_in_a_windows_encoding_is_read(bench):
    bench.input = _DATA / "libre.csv"
    assert "--encoding cp1252" in bench.fail("--prompt", "Say {{mail body}}")
    bench.succeed("--prompt", "Say {{mail body}}", "--encoding", "cp1252")
    assert [row["mail body"] for row in bench.answers()][:2] == ['Grüße, "Ann"', "two\nlines"]


def _duckdb(path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    frame = pl.DataFrame({"body": _BODIES, "size": _SIZES})
    with duckdb.connect(str(path) if path.suffix == ".duckdb" else ":memory:") as connection:
        connection.register("frame", frame.to_arrow())
        connection.execute("CREATE TABLE mails AS SELECT * FROM frame")
        if path.suffix != ".duckdb":
            connection.execute(f"COPY mails TO '{path}'")


def _sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        pd.DataFrame({"body": _BODIES, "size": _SIZES}).to_sql("mails", connection, index=False)
    connection.close()


def _pandas(path: Path) -> None:
    frame = pd.DataFrame({"body": _BODIES, "size": _SIZES})
    write: dict[str, Callable[[], Any]] = {
        ".csv": lambda: frame.to_csv(path, index=False, sep=";", encoding="utf-8-sig", lineterminator="\r\n"),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".json": lambda: frame.to_json(path, orient="records", indent=2),
        ".parquet": lambda: frame.to_parquet(path, index=False),
        ".xlsx": lambda: frame.to_excel(path, index=False),
    }
    write[path.suffix]()


def _polars(path: Path) -> None:
    frame = pl.DataFrame({"body": _BODIES, "size": _SIZES})
    write: dict[str, Callable[[], Any]] = {
        ".csv": lambda: frame.write_csv(path),
        ".tsv": lambda: frame.write_csv(path, separator="\t"),
        ".jsonl": lambda: frame.write_ndjson(path),
        ".parquet": lambda: frame.write_parquet(path, row_group_size=2),
    }
    write[path.suffix]()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("write", "suffixes"),
    [
        pytest.param(_duckdb, ["duckdb", "parquet", "csv", "json"], marks=pytest.mark.features("duckdb")),
        (_sqlite, ["db"]),
        (_pandas, ["csv", "jsonl", "json", "parquet", "xlsx"]),
        (_polars, ["csv", "tsv", "jsonl", "parquet"]),
    ],
)
def test_a_file_of_another_program_has_the_values_that_it_wrote(bench, write, suffixes):
    for suffix in suffixes:
        bench.input, bench.output = bench.path / f"in.{suffix}", bench.path / f"{suffix}.out.jsonl"
        write(bench.input)
        bench.succeed("--prompt", "Say {{body}}")
        rows = bench.answers()
        assert [row["body"] for row in rows] == _BODIES, suffix
        assert [int(row["size"]) for row in rows] == _SIZES, suffix
        assert [row["answer"] for row in rows] == [f"echo: Say {body}" for body in _BODIES], suffix
