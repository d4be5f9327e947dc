"""Numbers that a fraction of 64 bits does not hold: in prompts, settings and outputs."""

from __future__ import annotations

import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from promptmill.backends.rows import load
from promptmill.jobs.inputs.any_format import objects_in

_LARGE = 277447099861456945273576150847928801582
_ID = "1111111111111111111111111111111"


def test_whole_numbers_beyond_64_bits_are_sent_and_kept_as_they_are(bench):
    line = f'{{"id": {_ID}, "list": [-9223372036854775809, {{"a": 18446744073709551616}}], "f": 6.022e23}}'
    bench.input.write_text(line + "\n")
    bench.succeed("--prompt", "{{id}} {{list}} {{f}} {{id + 1}}")
    (row,) = bench.answers()
    assert row["answer"] == (
        f'echo: {_ID} [-9223372036854775809,{{"a":18446744073709551616}}] 6.022e+23 {int(_ID) + 1}'
    )
    assert bench.output.read_text().startswith(line[:-1])


@pytest.mark.parametrize("column", [None, "x"])
def test_a_prompt_may_be_a_whole_number_beyond_64_bits(bench, column):
    bench.input.write_text(f'{{"{column or "prompt"}": {_LARGE}}}\n')
    bench.succeed(*(() if column is None else ("--prompt-column", column)))
    assert bench.answers()[0]["answer"] == f"echo: {_LARGE}"


def test_a_line_of_a_thousand_brackets_is_read():
    assert len(load(b"[" * 900 + b"]" * 900, "")) == 1


def _duckdb(bench: Any, columns: str) -> Path:
    duckdb = pytest.importorskip("duckdb")
    path: Path = bench.path / "in.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE TABLE t AS SELECT {columns}")
    return path


def test_the_decimals_of_a_database_are_sent_with_all_digits(bench):
    bench.input = _duckdb(
        bench,
        "1.10::DECIMAL(18, 2) AS a, 12345678901234567.89::DECIMAL(38, 2) AS b, 0.0000001::DECIMAL(9, 7) AS c, "
        f"{_LARGE // 10**3}::HUGEINT AS d, [{{'x': 1.10::DECIMAL(9, 2)}}] AS e, INTERVAL '25 hours' AS f",
    )
    bench.succeed("--prompt", "{{a}} {{b}} {{c}} {{d}} {{e}} {{f}}")
    (row,) = bench.answers()
    assert row["answer"] == (f'echo: 1.10 12345678901234567.89 0.0000001 {_LARGE // 10**3} [{{"x":"1.10"}}] 25:00:00')
    assert (row["a"], row["b"]) == ("1.10", "12345678901234567.89")


def test_values_that_python_has_no_type_for_are_sent_as_duckdb_shows_them(bench):
    times = "INTERVAL '1 month 2 hours' AS a, 'infinity'::DATE AS b, '-infinity'::TIMESTAMP AS c"
    bench.input = _duckdb(bench, f"{times}, '2026-01-05 10:11:12.123456789'::TIMESTAMP_NS AS d, DATE '2026-01-05' AS e")
    bench.succeed("--prompt", "{{a}} {{b}} {{c}} {{d}} {{e}}")
    shown = "1 month 02:00:00 infinity -infinity 2026-01-05 10:11:12.123456789 2026-01-05"
    assert bench.answers()[0]["answer"] == f"echo: {shown}"


def test_infinity_of_a_database_is_kept(bench):
    bench.input, bench.output = _duckdb(bench, "1 AS id, 'inf'::DOUBLE AS a"), bench.path / "out.csv"
    bench.succeed("--prompt", "{{id}} {{a}}")
    (row,) = objects_in(bench.output)
    assert (row["answer"], row["a"]) == ("echo: 1 inf", "Infinity")


@pytest.mark.parametrize("name", ["out.parquet", "out.duckdb#answers", "out.xlsx"])
def test_the_decimals_of_a_database_stay_numbers_in_tables(bench, name):
    rows = "SELECT 1.10::DECIMAL(18, 2) AS a, 1.5::DECIMAL(9, 1) AS b UNION ALL SELECT -123.45, NULL"
    bench.input, bench.output = _duckdb(bench, f"* FROM ({rows})"), bench.path / name
    bench.succeed("--prompt", "{{a}}")
    if name.endswith(".parquet"):
        found = [{name: row[name] for name in "ab"} for row in parquet.read_table(bench.output).to_pylist()]
    else:
        found = [{name: row[name] for name in "ab"} for row in objects_in(bench.output)]
    exact = [{"a": Decimal("1.10"), "b": Decimal("1.5")}, {"a": Decimal("-123.45"), "b": None}]
    assert found == ([{"a": 1.1, "b": 1.5}, {"a": -123.45, "b": None}] if name.endswith(".xlsx") else exact)


def test_durations_and_long_decimals_of_parquet_are_texts_in_duckdb(bench):
    duckdb = pytest.importorskip("duckdb")
    bench.input, bench.output = bench.path / "in.parquet", bench.path / "out.duckdb#o"
    long = Decimal(f"{10**41 + 1}.5")
    columns = {
        "id": [1],
        "took": pa.array([176_400_000_000], pa.duration("us")),
        "long": pa.array([long], pa.decimal256(50, 1)),
    }
    parquet.write_table(pa.table(columns), bench.input)
    bench.succeed("--prompt", "{{id}}")
    with duckdb.connect(str(bench.path / "out.duckdb")) as connection:
        assert connection.execute("SELECT took, long FROM o").fetchall() == [("49:00:00", str(long))]


def test_a_decimal_is_a_setting_and_a_prompt(bench):
    bench.input = _duckdb(bench, "1.10::DECIMAL(9, 2) AS prompt, 0.5::DECIMAL(9, 2) AS temperature")
    bench.succeed()
    assert bench.answers()[0]["answer"] == "echo: 1.10"
    assert bench.upstream.seen[0].json["temperature"] == 0.5


def test_a_text_of_sqlite_that_is_not_utf8_fails_its_row_alone(bench):
    with sqlite3.connect(bench.path / "in.db") as connection:
        connection.execute("CREATE TABLE t (id, body, note)")
        connection.execute("INSERT INTO t VALUES (1, 'tea', 'é'), (2, cast(x'636166e9' AS text), 'b')")
        connection.execute("INSERT INTO t VALUES (3, 'milk', cast(x'636166e9' AS text))")
    bench.input = bench.path / "in.db"
    bench.fail("--prompt", "Say {{body}}", code=1)
    rows = bench.answers()
    assert [row["answer"] for row in rows] == ["echo: Say tea", "", "echo: Say milk"]
    assert "its body is not UTF-8 text" in rows[1]["error"]["message"]
    assert rows[2]["note"] == "caf\ufffd"
