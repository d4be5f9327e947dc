"""Numbers that a fraction of 64 bits does not hold: in prompts, settings and outputs."""

from __future__ import annotations

import sqlite3

import orjson
import pytest

from promptmill.files.json_values import load

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


@pytest.mark.thorough
@pytest.mark.parametrize("more", ["", f', "id": {_ID}'])
def test_a_number_beyond_every_float_is_sent_as_its_text(bench, more):
    bench.input.write_text(f'{{"x": 1E400, "list": [-1e999, 2]{more}}}\n')
    bench.succeed("--prompt", "{{x}} {{list}}")
    assert bench.answers()[0]["answer"] == 'echo: 1E400 ["-1e999",2]'


@pytest.mark.parametrize("column", [None, "x"])
def test_a_prompt_may_be_a_whole_number_beyond_64_bits(bench, column):
    bench.input.write_text(f'{{"{column or "prompt"}": {_LARGE}}}\n')
    bench.succeed(*(() if column is None else ("--prompt-column", column)))
    assert bench.answers()[0]["answer"] == f"echo: {_LARGE}"


def test_a_line_of_a_thousand_brackets_is_read():
    assert len(load(b"[" * 900 + b"]" * 900, "")) == 1


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


def test_fractions_with_more_digits_than_a_float_are_sent_and_kept_as_they_are(bench):
    line = '{"a": 12345678901234567.89, "b": [0.12345678901234567890123], "c": 1.2345678901234568e-05, "d": 1e23}'
    bench.input.write_text(line + "\n")
    bench.succeed("--prompt", "{{a}} {{b}} {{c}} {{d}} {{a > 5}}")
    (row,) = bench.answers()
    assert row["answer"] == "echo: 12345678901234567.89 [0.12345678901234567890123] 1.2345678901234568e-05 1e+23 true"
    assert bench.output.read_text().startswith(line[:-1])


def test_an_output_has_no_number_and_no_mark_that_only_python_reads(bench):
    marked = b'\xef\xbb\xbf{"id": 1, "x": NaN, "l": [Infinity]}\n'
    bench.input.write_bytes(marked + marked + b'\xef\xbb\xbf{"id": 2, "x": "NaN"}\n')
    bench.succeed("--prompt", "Say {{id}}")
    rows = [orjson.loads(line) for line in bench.output.read_bytes().splitlines()]
    assert [(row["x"], row.get("l")) for row in rows] == [(None, ["Infinity"]), (None, ["Infinity"]), ("NaN", None)]


def test_bytes_that_are_text_are_sent_as_text(bench):
    with sqlite3.connect(bench.path / "in.db") as connection:
        connection.execute("CREATE TABLE t (body)")
        connection.executemany("INSERT INTO t VALUES (?)", [("Größe\n".encode(),), (b"\xff\x00",), (b"a\x00b",)])
    bench.input = bench.path / "in.db"
    bench.succeed("--prompt", "Say {{body}}")
    assert [row["answer"] for row in bench.answers()] == ["echo: Say Größe\n", "echo: Say /wA=", "echo: Say YQBi"]
