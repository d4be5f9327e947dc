"""Every format of an input becomes every format of an output, with the values that it had."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import pytest

from replies import answer, by_prompt, raw, status
from tables import read_rows, write_rows

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

BATCH: list[dict[str, Any]] = [
    {"custom_id": "a,1", "body": {"model": "m", "messages": [{"role": "user", "content": "one"}]}},
    {"custom_id": "b", "body": {"model": "m", "messages": [{"role": "user", "content": "two"}]}},
]
ROWS = [{"k": "x", "prompt": "one"}, {"k": "y", "prompt": "two"}]


def written(path: Path) -> None:
    """Write two rows in the format of `path`."""
    if path.suffix == ".txt":
        path.write_text("one\ntwo\n")
    else:
        write_rows(path, BATCH if path.stem == "batch" else ROWS)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("source", "target"),
    [
        *((f"in.{kind}", "out.jsonl") for kind in ("json", "csv", "tsv", "txt", "parquet")),
        *(("in.jsonl", f"out.{kind}") for kind in ("jsonl", "json", "csv", "tsv", "parquet", "arrow")),
        *(("batch.jsonl", f"out.{kind}") for kind in ("jsonl", "json", "csv", "parquet")),
        *(("in.csv", "out.parquet"), ("in.parquet", "out.csv"), ("in.parquet", "out.arrow")),
    ],
)
def test_any_format_becomes_any_other(bench, source, target):
    bench.input, bench.output = bench.path / source, bench.path / target
    written(bench.input)
    bench.succeed()
    rows = read_rows(bench.output)
    if source == "batch.jsonl" and target.startswith("out.json"):
        said = [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows]
    else:
        said = [row["answer"] for row in rows]
    assert said == ["echo: one", "echo: two"]
    if source == "batch.jsonl":
        assert [row["custom_id"] for row in rows] == ["a,1", "b"]
    else:
        assert [row["prompt"] for row in rows] == ["one", "two"]
    if source not in {"batch.jsonl", "in.txt"}:
        assert [row["k"] for row in rows] == ["x", "y"]


def test_texts_of_a_csv_come_through_parquet_and_back(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.parquet"
    texts = ['a, "b"', "line\nfeed", "carriage\rreturn", "007", "", "1e400", "ü💡"]
    with bench.input.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "text", "text"], *([f"p{at}", one, at] for at, one in enumerate(texts))])
    bench.succeed()
    table = parquet.read_table(bench.output)
    assert table.schema.names[:3] == ["prompt", "text", "text_2"]
    assert {table.schema.field(at).type for at in range(3)} == {pa.string()}
    assert table.column("text").to_pylist() == texts
    first = bench.output.rename(bench.path / "again.parquet")
    bench.input, bench.output = first, bench.path / "back.csv"
    bench.succeed()
    rows = read_rows(bench.output)
    assert [row["text"] for row in rows] == texts
    assert [row["answer_1"] for row in rows] == [f"echo: p{at}" for at in range(len(texts))]


def test_cells_that_the_header_does_not_name_are_a_column_of_parquet(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.parquet"
    bench.input.write_text("prompt,k\na,1\nb,2,more\n")
    bench.fail(code=1)
    rows = parquet.read_table(bench.output).to_pylist()
    assert [row["surplus_cells"] for row in rows] == [None, ["more"]]
    assert rows[1]["error"]["code"] == "invalid_input"


def test_values_of_json_have_their_types_in_parquet(bench):
    bench.output = bench.path / "out.parquet"
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "count": 1, "x": 1, "flag": True, "tags": ["p"], "deep": {"a": 1, "b": None}, "none": None},
        {"prompt": "b", "count": 2**62, "x": 2.5, "flag": None, "tags": [], "deep": {"a": 2, "c": {"d": ["e"]}}},
        {"prompt": "c", "late": "c\rd", "deep": None, "empty": {}, "lists": [[1], [2.5]]},
    ]
    bench.write(rows)
    bench.succeed()
    table = parquet.read_table(bench.output)
    types = {field.name: str(field.type) for field in table.schema}
    assert [types[name] for name in ("count", "x", "flag", "none", "late", "empty")] == [
        *("int64", "double", "bool", "string", "string", "string")
    ]
    assert types["tags"] == "list<element: string>"
    assert types["deep"] == "struct<a: int64, b: string, c: struct<d: list<element: string>>>"
    found = table.to_pylist()
    assert [row["count"] for row in found] == [1, 2**62, None]
    assert [row["x"] for row in found] == [1.0, 2.5, None]
    assert [row["tags"] for row in found] == [["p"], [], None]
    assert [row["deep"] for row in found] == [
        {"a": 1, "b": None, "c": None},
        {"a": 2, "b": None, "c": {"d": ["e"]}},
        None,
    ]
    assert (found[2]["late"], found[2]["empty"], found[2]["lists"]) == ("c\rd", "{}", [[1.0], [2.5]])
    assert [row["answer"] for row in found] == ["echo: a", "echo: b", "echo: c"]
    assert found[0]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}


@pytest.mark.thorough
def test_an_answers_whole_number_of_any_length_is_kept(bench):
    number = 10**23 + 1
    (bench.path / "s.json").write_text('{"type": "object", "properties": {"id": {"type": "integer"}}}')
    bench.upstream.reply = answer(f'```json\n{{"id": {number}}}\n```')
    bench.write([{"prompt": "a"}])
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        bench.output = bench.path / name
        bench.succeed("--schema", str(bench.path / "s.json"))
    assert json.loads((bench.path / "out.jsonl").read_text())["answer"] == {"id": number}
    assert str(number) in (bench.path / "out.csv").read_text()
    (row,) = parquet.read_table(bench.output).to_pylist()
    assert (row["id"], row["error"]) == (str(number), None)


def test_a_field_of_several_types_is_a_column_of_json_texts_in_parquet(bench):
    bench.output = bench.path / "out.parquet"
    exact = 2**53 + 1
    bench.write(
        [
            {
                "prompt": "a",
                "id": 1,
                "big": 10**30,
                "mix": [1, "a"],
                "exact": exact,
                "keys": {str(at): 1 for at in range(200)},
            },
            {"prompt": "b", "id": "A7", "big": 2, "mix": {"b": 1}, "exact": 0.5, "keys": {"x": 1}},
            {"prompt": "c", "id": True, "big": None, "mix": "text", "exact": 1, "keys": None},
            '{"prompt": "d", "id": "half \\ud800", "big": NaN}',
            "not JSON",
        ]
    )
    bench.fail(code=1)
    table = parquet.read_table(bench.output)
    assert {table.schema.field(name).type for name in ("id", "big", "mix", "exact", "keys")} == {pa.string()}
    found = table.to_pylist()
    assert [row["id"] for row in found] == ["1", "A7", "true", "half \ufffd", None]
    assert [row["big"] for row in found[:3]] == [str(10**30), "2", None]
    assert [row["mix"] for row in found[:3]] == ['[1,"a"]', '{"b":1}', "text"]
    assert [row["exact"] for row in found[:3]] == [str(exact), "0.5", "1"]
    assert json.loads(found[0]["keys"])["7"] == 1
    assert found[4]["error"]["code"] == "invalid_input"


def test_values_of_parquet_are_cells(bench):
    bench.input, bench.output = bench.path / "in.parquet", bench.path / "out.csv"
    day = dt.date(2024, 2, 29)
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "blob": pa.array([b"\xff\x00", None]),
            "day": pa.array([day, None]),
            "at": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
            "took": pa.array([1_000_000_001, None], pa.duration("ns")),
            "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(9, 2)),
            "x": [float("nan"), 1.5],
            "flag": [True, False],
            "deep": [{"a": [1, None], "b": b"\xff"}, None],
            "big": pa.array([2**64 - 1, 0], pa.uint64()),
            "text": ['say "hi",\nyou', "1\r2"],
        }
    )
    parquet.write_table(table, bench.input)
    bench.succeed()
    first, second = read_rows(bench.output)
    assert {name: first[name] for name in table.schema.names} == {
        "prompt": "a",
        "blob": "/wA=",
        "day": "2024-02-29",
        "at": first["at"],
        "took": first["took"],
        "price": "1.50",
        "x": "NaN",
        "flag": "true",
        "deep": '{"a":[1,null],"b":"/w=="}',
        "big": str(2**64 - 1),
        "text": 'say "hi",\nyou',
    }
    assert first["at"].startswith("2023-11-14 22:13:20.123456")
    assert "1" in first["took"]
    assert {name: second[name] for name in table.schema.names if second[name]} == {
        "prompt": "b",
        "x": "1.5",
        "flag": "false",
        "big": "0",
        "text": "1\r2",
    }


def test_many_rows_are_written_in_groups_with_the_types_of_all(bench):
    bench.output = bench.path / "out.parquet"
    count, filler = 500, "x" * 15_000
    bench.write(
        [{"prompt": f"p{at}", "filler": filler, "late": at if at == count - 1 else None} for at in range(count)]
    )
    bench.succeed()
    file = parquet.ParquetFile(bench.output)
    assert file.num_row_groups > 1
    assert file.schema_arrow.field("late").type == pa.int64()
    assert file.read(["answer"]).column(0).to_pylist() == [f"echo: p{at}" for at in range(count)]


def test_a_batch_file_becomes_a_table_of_its_answers(bench):
    bench.input, bench.output = bench.path / "batch.jsonl", bench.path / "out.csv"
    embedding = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 1}}
    rows = [
        *BATCH,
        {"custom_id": "e", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}},
        {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "c"}]}},
        {"custom_id": 7, "body": {}},
    ]
    bench.write(rows)
    bench.upstream.reply = by_prompt({"two": status(400, "no")})
    bench.upstream.other_posts = raw(json.dumps(embedding).encode())
    found = bench.run("--json")
    assert found.returncode == 1
    assert "repeat the `custom_id`" in " ".join(json.loads(found.stdout)["warnings"])
    table = read_rows(bench.output)
    assert [row["custom_id"] for row in table] == ["a,1", "b", "e", "b", "7"]
    assert [row["answer"] for row in table][:2] == ["echo: one", ""]
    assert json.loads(table[2]["answer"])["data"][0]["embedding"] == [0.5]
    assert [row["answer"] for row in table][3:] == ["echo: c", ""]
    assert table[1]["error"].startswith("bad_request")
    assert list(table[0]) == ["custom_id", "answer", "error", "usage", "finish_reason"]
