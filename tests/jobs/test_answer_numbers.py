"""Fields of answers whose numbers need more than 64 bits, in every output with types."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyarrow import parquet

from replies import answer

_LARGE = 8949020000012345678901
_ODD = (1 << 53) + 1
_SCHEMA = {
    "type": "object",
    "properties": {
        "i": {"type": "integer"},
        "f": {"type": ["number", "null"]},
        "l": {"type": "array", "items": {"type": "integer"}},
        "n": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "null"}]}},
    },
}
_SMALL: dict[str, Any] = {"i": 5, "f": 0.5, "l": [1, 2], "n": [0.5]}


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.name.endswith("#t"):
        with duckdb.connect(str(path.with_name("out.duckdb"))) as connection:
            found = connection.execute("SELECT * FROM t")
            names = [name for name, *_ in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    table = parquet.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.fixture
def answered(bench, upstream):
    def run(answers: list[Any], name: str, *arguments: str) -> list[dict[str, Any]]:
        async def reply(exchange: Any) -> None:
            found = answers[int(exchange.seen.prompt)]
            await answer(found if isinstance(found, str) else json.dumps(found))(exchange)

        upstream.reply = reply
        bench.write([{"text": str(at)} for at in range(len(answers))])
        bench.output = bench.path / name
        bench.succeed("--prompt", "{{text}}", *arguments)
        return _rows(bench.output)

    return run


_TYPED = pytest.mark.parametrize(
    "name", ["out.parquet", "out.arrow", pytest.param("out.duckdb#t", marks=pytest.mark.features("duckdb"))]
)


@_TYPED
@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("i", _LARGE, (str(_LARGE), "5")),
        ("i", -(1 << 63) - 1, (str(-(1 << 63) - 1), "5")),
        ("i", (1 << 63) - 1, ((1 << 63) - 1, 5)),
        ("f", _ODD, (str(_ODD), "0.5")),
        ("f", 10**400, (str(10**400), "0.5")),
        ("f", 2 * 10**19, (2e19, 0.5)),
        ("l", [1, _LARGE], (f"[1,{_LARGE}]", "[1,2]")),
        ("n", [0.5, _ODD], (f"[0.5,{_ODD}]", "[0.5]")),
    ],
)
def test_a_number_that_the_type_of_its_column_cannot_hold_makes_it_a_column_of_texts(
    answered, name, field, value, kept
):
    rows = answered([_SMALL | {field: value}, _SMALL], name, "--schema", json.dumps(_SCHEMA))
    assert tuple(row[field] for row in rows) == kept
    assert [row["error"] for row in rows] == [None, None]
    others = [each for each in _SMALL if each != field]
    assert [{each: row[each] for each in others} for row in rows] == 2 * [{each: _SMALL[each] for each in others}]


@pytest.mark.thorough
def test_a_number_of_a_later_row_decides_the_type_of_the_whole_column(answered):
    rows = answered([*[_SMALL] * 40, _SMALL | {"i": _LARGE}], "out.parquet", "--schema", json.dumps(_SCHEMA))
    assert [row["i"] for row in rows] == [*["5"] * 40, str(_LARGE)]


@pytest.mark.thorough
def test_an_exponent_that_makes_a_whole_number_of_many_digits_is_kept(answered):
    rows = answered(['{"i": 1e22}', '{"i": 3}'], "out.parquet", "--fields", "i:integer")
    assert [Decimal(row["i"]) for row in rows] == [10**22, 3]


@pytest.mark.thorough
@_TYPED
@pytest.mark.features("items")
def test_numbers_of_items_and_of_objects_in_them_are_kept(answered, name):
    items = [{"k": _LARGE, "f": _ODD}, {"k": 1, "f": 0.5}]
    rows = answered(
        [{"items": items, "o": _LARGE}],
        name,
        "--fields",
        "items:rows(k:integer,f:number),o:integer",
        "--rows-from",
        "items",
    )
    assert [(row["k"], row["f"]) for row in rows] == [(str(_LARGE), str(_ODD)), ("1", "0.5")]
    assert {row["o"] for row in rows} == {str(_LARGE)}


@pytest.mark.thorough
def test_an_exported_output_and_joined_shards_have_the_numbers_too(answered, bench):
    answers = [_SMALL | {"i": _LARGE}, _SMALL]
    rows = answered(answers, "out.parquet", "--schema", json.dumps(_SCHEMA))
    assert bench.jobs(str(bench.output), "--export", str(bench.path / "other.parquet")).returncode == 0
    assert _rows(bench.path / "other.parquet") == rows
    bench.output = bench.path / "joined.parquet"
    for shard in ("1/2", "2/2"):
        bench.succeed("--prompt", "{{text}}", "--schema", json.dumps(_SCHEMA), "--shard", shard)
    assert bench.jobs(str(bench.output), "--join").returncode == 0
    assert _rows(bench.output) == rows
