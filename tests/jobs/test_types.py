"""The table of types in docs/bulk-details.md, checked by jobs and by other readers of each format."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import openpyxl
import pytest
from pyarrow import parquet

_PAGE = Path(__file__).parents[2] / "docs" / "bulk-details.md"
_ROW = re.compile(r"\| `(.+?)` \| (?:`(.+?)`|empty) \| `(.+?)` \| `(.+?)` \| `(.+?)` \|")


def _table() -> list[tuple[str, ...]]:
    text = _PAGE.read_text()
    begin = text.index("| JSON | CSV, TSV |")
    return [
        (*row.groups(""),) for row in map(_ROW.fullmatch, text[begin : text.index("\n\n", begin)].split("\n")) if row
    ]


def _of_csv(path: Path) -> list[Any]:
    with path.open(newline="") as file:
        return next(iter([*csv.reader(file)][1:]))


def _of_parquet(path: Path) -> list[Any]:
    return list(parquet.read_table(path).to_pylist()[0].values())


def _of_workbook(path: Path) -> list[Any]:
    return list([*openpyxl.load_workbook(path)["answers"].values][1])


def _of_duckdb(path: Path) -> list[Any]:
    with duckdb.connect(str(path.with_name("out.duckdb"))) as connection:
        return list(connection.execute("SELECT * FROM t").fetchone() or ())


def _of_sqlite(path: Path) -> list[Any]:
    with sqlite3.connect(path.with_name("out.db")) as connection:
        return list(connection.execute("SELECT * FROM t").fetchone())


@pytest.mark.parametrize(
    ("name", "column", "read"),
    [
        ("out.csv", 1, _of_csv),
        ("out.parquet", 2, _of_parquet),
        pytest.param("out.duckdb#t", 2, _of_duckdb, marks=pytest.mark.features("duckdb")),
        ("out.xlsx", 3, _of_workbook),
        ("out.db#t", 4, _of_sqlite),
    ],
)
def test_each_format_holds_the_values_that_the_docs_state(bench, name, column, read):
    table = _table()
    assert len(table) == 8
    bench.write([{f"v{at}": json.loads(row[0]) for at, row in enumerate(table)}])
    bench.output = bench.path / name
    bench.succeed("--prompt", "{{v0}}")
    found = read(bench.output)[: len(table)]
    assert [str(value) if column == 1 else repr(value) for value in found] == [row[column] for row in table]
