"""Numbers, times and nested values of DuckDB: in prompts and outputs, with all their digits."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from promptmill.jobs.inputs.any_format import objects_in

duckdb = pytest.importorskip("duckdb")
_PROMPT = ("--prompt", "Say {{body}}")
_LARGE = 277447099861456945273576150847928801582


def _table(bench: Any, columns: str) -> Path:
    path: Path = bench.path / "in.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE TABLE t AS SELECT {columns}")
    return path


def test_the_decimals_of_a_database_are_sent_with_all_digits(bench):
    bench.input = _table(
        bench,
        "1.10::DECIMAL(18, 2) AS a, 12345678901234567.89::DECIMAL(38, 2) AS b, 0.0000001::DECIMAL(9, 7) AS c, "
        f"{_LARGE // 10**3}::HUGEINT AS d, [{{'x': 1.10::DECIMAL(9, 2)}}] AS e, INTERVAL '25 hours' AS f",
    )
    bench.succeed("--prompt", "{{a}} {{b}} {{c}} {{d}} {{e}} {{f}}")
    (row,) = bench.answers()
    assert row["answer"] == (f'echo: 1.10 12345678901234567.89 0.0000001 {_LARGE // 10**3} [{{"x":"1.10"}}] 25:00:00')
    assert (row["a"], row["b"]) == ("1.10", "12345678901234567.89")


@pytest.mark.thorough
def test_values_that_python_has_no_type_for_are_sent_as_duckdb_shows_them(bench):
    times = "INTERVAL '1 month 2 hours' AS a, 'infinity'::DATE AS b, '-infinity'::TIMESTAMP AS c"
    bench.input = _table(bench, f"{times}, '2026-01-05 10:11:12.123456789'::TIMESTAMP_NS AS d, DATE '2026-01-05' AS e")
    bench.succeed("--prompt", "{{a}} {{b}} {{c}} {{d}} {{e}}")
    shown = "1 month 02:00:00 infinity -infinity 2026-01-05 10:11:12.123456789 2026-01-05"
    assert bench.answers()[0]["answer"] == f"echo: {shown}"


@pytest.mark.thorough
def test_values_in_lists_and_structures_are_sent_as_duckdb_shows_them(bench):
    lists = "[DATE '2026-01-05', 'infinity'] AS a, {'DATE': INTERVAL 1 MONTH, 'x \"FLOAT': [0.1::FLOAT]} AS b"
    enums = "MAP {0.1::FLOAT: '-infinity'::TIMESTAMP} AS c, 'DATE'::ENUM('DATE', 'FLOAT') AS d, 0.1::FLOAT AS e"
    bench.input = _table(bench, f"{lists}, {enums}")
    bench.succeed("--prompt", "{{a}} {{b}} {{c}} {{d}} {{e}}")
    (row,) = bench.answers()
    assert row["answer"] == (
        'echo: ["2026-01-05","infinity"] {"DATE":"1 month","x \\"FLOAT":[0.1]} {"0.1":"-infinity"} DATE 0.1'
    )
    assert row["e"] == 0.1


def test_times_in_lists_keep_infinity_and_nanoseconds(bench, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    bench.input = _table(
        bench, "['infinity'::TIMESTAMPTZ, '2026-01-05 10:11:12+02'] AS a, ['10:00:00.123456789'::TIME_NS] AS b"
    )
    bench.succeed("--prompt", "{{a}} {{b}}")
    assert bench.answers()[0]["answer"] == ('echo: ["infinity","2026-01-05 08:11:12+00"] ["10:00:00.123456789"]')


def test_times_with_a_zone_may_be_infinite(bench, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    times = ["2026-01-05 10:11:12+02", "infinity", "-infinity"]
    bench.input = _table(
        bench, ", ".join(f"'{time}'::TIMESTAMPTZ AS {name}" for name, time in zip("abc", times, strict=True))
    )
    bench.succeed("--prompt", "{{a}} {{b}} {{c}}")
    assert bench.answers()[0]["answer"] == "echo: 2026-01-05 08:11:12+00:00 infinity -infinity"


@pytest.mark.thorough
def test_infinity_of_a_database_is_kept(bench):
    bench.input, bench.output = _table(bench, "1 AS id, 'inf'::DOUBLE AS a"), bench.path / "out.csv"
    bench.succeed("--prompt", "{{id}} {{a}}")
    (row,) = objects_in(bench.output)
    assert (row["answer"], row["a"]) == ("echo: 1 inf", "Infinity")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["out.parquet", "out.duckdb#answers", "out.xlsx"])
def test_the_decimals_of_a_database_stay_numbers_in_tables(bench, name):
    rows = "SELECT 1.10::DECIMAL(18, 2) AS a, 1.5::DECIMAL(9, 1) AS b UNION ALL SELECT -123.45, NULL"
    bench.input, bench.output = _table(bench, f"* FROM ({rows})"), bench.path / name
    bench.succeed("--prompt", "{{a}}")
    if name.endswith(".parquet"):
        found = [{name: row[name] for name in "ab"} for row in parquet.read_table(bench.output).to_pylist()]
    else:
        found = [{name: row[name] for name in "ab"} for row in objects_in(bench.output)]
    exact = [{"a": Decimal("1.10"), "b": Decimal("1.5")}, {"a": Decimal("-123.45"), "b": None}]
    assert found == ([{"a": 1.1, "b": 1.5}, {"a": -123.45, "b": None}] if name.endswith(".xlsx") else exact)


def test_durations_and_long_decimals_of_parquet_are_texts_in_duckdb(bench):
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
    bench.input = _table(bench, "1.10::DECIMAL(9, 2) AS prompt, 0.5::DECIMAL(9, 2) AS temperature")
    bench.succeed()
    assert bench.answers()[0]["answer"] == "echo: 1.10"
    assert bench.upstream.seen[0].json["temperature"] == 0.5


def _mails(bench: Any) -> Path:
    path: Path = bench.path / "in.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT 1 AS id, 'tea' AS body, DATE '2026-01-05' AS day, [1, 2] AS list,"
            " 2.50::DECIMAL(9, 2) AS amount, {'a': 1} AS inner, '\\x01'::BLOB AS raw, NULL AS nothing"
        )
    return path


@pytest.mark.thorough
def test_a_duckdb_file_is_read(bench):
    bench.input = _mails(bench)
    bench.succeed(*_PROMPT)
    row = bench.answers()[0]
    assert (row["day"], row["list"], row["answer"]) == ("2026-01-05", [1, 2], "echo: Say tea")


def test_a_job_of_a_duckdb_file_prints_nothing_at_its_end(bench):
    bench.input = _mails(bench)
    assert "leaked" not in bench.start(*_PROMPT).communicate()[1]


def test_values_keep_their_types_in_parquet(bench):
    bench.input, bench.output = _mails(bench), bench.path / "out.parquet"
    bench.succeed(*_PROMPT)
    row = parquet.read_table(bench.output).to_pylist()[0]
    assert [row[name] for name in ("id", "body", "list", "amount", "inner", "raw", "nothing")] == [
        1, "tea", [1, 2], 2.5, {"a": 1}, b"\1", None,
    ]  # fmt: skip
