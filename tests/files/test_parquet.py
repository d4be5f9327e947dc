"""Parquet in and out: any type of column, files under one schema, a few rows at a time."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import json
import math
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from promptmill.core.errors import PromptmillError
from promptmill.core.values import text_of
from promptmill.files import files as input_files
from promptmill.files.files import InputFile, InputFiles
from promptmill.files.parquet import ParquetTable
from promptmill.jobs.inputs.any_format import objects_in, objects_of
from promptmill.jobs.rows import row_lines

NANOSECOND = 1_700_000_000_123_456_789
NESTED = pa.struct([("at", pa.timestamp("ns")), ("took", pa.list_(pa.duration("ns"))), ("x", pa.float64())])
_PRICE, _FINE = decimal.Decimal("1.50"), decimal.Decimal("1.12345")
_TWO = pa.list_(pa.float32(), 2)
_HALVES = pa.struct([("h", pa.float16()), ("d", pa.float64())])
COLUMNS: dict[str, Any] = {
    "texts": pa.array(["a", None, ""]),
    "large texts": pa.array(["a", None, ""], pa.large_string()),
    "categories": pa.array(["a", None, "b"]).dictionary_encode(),
    "bytes": pa.array([b"\xff", None, b""]),
    "small numbers": pa.array([-1, None, 127], pa.int8()),
    "large numbers": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "fractions": pa.array([math.nan, None, -math.inf]),
    "short fractions": pa.array([19.99, None, math.inf], pa.float32()),
    "half fractions": pa.array([0.1, None, -math.inf], pa.float16()),
    "objects of halves": pa.array([{"h": 0.1, "d": 1 / 3}, None, {"h": None}], _HALVES),
    "maps of halves": pa.array([[("a", 0.1)], None, []], pa.map_(pa.string(), pa.float16())),
    "maps of short fractions": pa.array([[("a", 0.1)], None, []], pa.map_(pa.string(), pa.float32())),
    "late days": pa.array([2932897, None, -800_000], pa.date32()),
    "late times": pa.array([253402300800_000_001, None, -(2**56)], pa.timestamp("us")),
    "endless days": pa.array([2**31 - 1, None, -(2**31) + 1], pa.date32()),
    "endless times of a zone": pa.array([2**63 - 1, None, 0], pa.timestamp("us", "Asia/Tokyo")),
    "lists of endless times": pa.array([[2**63 - 1], None, []], pa.list_(pa.timestamp("ms"))),
    "ends of days": pa.array([86_400, None, 0], pa.int32()).cast(pa.time32("s")),
    "ends of days in nanoseconds": pa.array([86_400 * 10**9, None, 1], pa.int64()).cast(pa.time64("ns")),
    "objects with ends of days": pa.StructArray.from_arrays(
        [pa.array([86_400 * 10**6, None, 1], pa.int64()).cast(pa.time64("us"))], ["at"]
    ),
    "times of an unknown zone": pa.array([NANOSECOND // 1000, None, 0], pa.timestamp("us", "Nowhere/Here")),
    "endless durations": pa.array([10**18, None, 1], pa.duration("s")),
    "large halves": pa.array([65504, None, 2049], pa.float16()),
    "late times of a zone": pa.array([253402300799, None, 0], pa.timestamp("s", "Asia/Tokyo")),
    "lists of late times": pa.array([[2**48, 0, None], None, []], pa.list_(pa.timestamp("ms", "UTC"))),
    "objects with late times": pa.array([{"at": 2**48}, None, {"at": 0}], pa.struct([("at", pa.timestamp("ms"))])),
    "decimals": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal(-2)], pa.decimal128(9, 2)),
    "booleans": pa.array([True, None, False]),
    "days": pa.array([dt.date(2024, 2, 29), None, dt.date(1, 1, 1)]),
    "times": pa.array([NANOSECOND, None, 0], pa.timestamp("ns")),
    "times of a zone": pa.array([NANOSECOND, None, -1], pa.timestamp("ns", "Europe/Berlin")),
    "short times": pa.array([NANOSECOND // 1000, None, 0], pa.timestamp("us", "Europe/Berlin")),
    "times of day": pa.array([1_700_000_000_123, None, 0], pa.time64("ns")),
    "durations": pa.array([1_000_000_001, None, -1], pa.duration("ns")),
    "short durations": pa.array([1_000_001, None, -1], pa.duration("us")),
    "lists": pa.array([[1.5, math.nan], None, []]),
    "lists of times": pa.array([[NANOSECOND, None], None, [0]], pa.large_list(pa.timestamp("ns", "UTC"))),
    "lists of times of day": pa.array([[1], None, []], pa.list_(pa.time64("ns"))),
    "lists of two": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)),
    "vectors": pa.array([[0.1, math.inf], None, [0, None]], _TWO),
    "objects": pa.array([{"at": NANOSECOND, "took": [1, None], "x": math.nan}, None, {"at": None}], NESTED),
    "maps": pa.array([[("a", math.nan)], None, []], pa.map_(pa.string(), pa.float64())),
    "nothing": pa.nulls(3),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_any_type_is_the_same_in_the_output(ingested, tmp_path, name):
    parquet.write_table(pa.table({"prompt": ["a", "b", "c"], "column": COLUMNS[name]}), tmp_path / "in.parquet")
    (tmp_path / "out.parquet").write_bytes(ingested("in.parquet").write("out.parquet"))
    before, after = (parquet.read_table(tmp_path / f"{file}.parquet").column("column") for file in ("in", "out"))
    assert (after.type, str(after.combine_chunks())) == (before.type, str(before.combine_chunks()))


@pytest.mark.parametrize(
    ("kind", "units", "texts"),
    [
        (pa.date32(), [2**31 - 1, -(2**31) + 1, 3_000_000], ["infinity", "-infinity", "10183-09-21"]),
        (pa.timestamp("us"), [2**63 - 1, 10**18], ["infinity", "33658-09-27 01:46:40"]),
        (pa.timestamp("us", "Asia/Tokyo"), [2**63 - 1, -(10**17)], ["infinity", "-1199-02-15 14:13:20Z"]),
        (pa.time64("us"), [86_400_000_000, 1], ["24:00:00", "00:00:00.000001"]),
        (pa.time64("ns"), [86_400_000_000_000, 1], ["24:00:00", "00:00:00.000000001"]),
    ],
)
def test_times_that_python_has_not_are_texts(tmp_path, kind, units, texts):
    numbers = pa.array(units, pa.int32() if kind.bit_width == 32 else pa.int64())
    parquet.write_table(pa.table({"at": numbers.cast(kind)}), tmp_path / "in.parquet")
    assert [text_of(row["at"]) for row in objects_in(tmp_path / "in.parquet")] == texts


_DAYS = pa.array(["9999-12-31", None, "0001-01-01"]).cast(pa.timestamp("us"))


@pytest.mark.parametrize(
    "column",
    [
        _DAYS,
        pa.FixedSizeListArray.from_arrays(_DAYS, 1).cast(pa.list_(pa.timestamp("us"))),
        pa.StructArray.from_arrays([_DAYS], ["at"]),
    ],
)
def test_times_of_96_bits_keep_their_years(ingested, tmp_path, column):
    table = pa.table({"prompt": ["a", "b", "c"], "at": column})
    parquet.write_table(table, tmp_path / "in.parquet", use_deprecated_int96_timestamps=True)
    (tmp_path / "out.parquet").write_bytes(ingested("in.parquet").write("out.parquet"))
    assert parquet.read_table(tmp_path / "out.parquet").column("at").combine_chunks() == column


def test_files_with_times_of_96_bits_have_one_unit(tmp_path):
    (tmp_path / "in").mkdir()
    for at, day in enumerate(["2024-01-05", "9999-12-31"]):
        table = pa.table({"at": pa.array([day]).cast(pa.timestamp("us"))})
        parquet.write_table(table, tmp_path / "in" / f"{at}.parquet", use_deprecated_int96_timestamps=True)
    parts = [InputFile(path) for path in sorted((tmp_path / "in").iterdir())]
    assert [str(row["at"]) for row in objects_of(ParquetTable(InputFiles(parts)))] == [
        "2024-01-05 00:00:00",
        "9999-12-31 00:00:00",
    ]


def test_times_of_96_bits_keep_nanoseconds(tmp_path):
    table = pa.table({"at": pa.array([NANOSECOND], pa.timestamp("ns"))})
    parquet.write_table(table, tmp_path / "in.parquet", use_deprecated_int96_timestamps=True)
    (row,) = objects_in(tmp_path / "in.parquet")
    assert text_of(row["at"]) == "2023-11-14 22:13:20.123456789"


def test_halves_that_are_whole_numbers_keep_their_digits(tmp_path):
    parquet.write_table(pa.table({"x": pa.array([65504, 10008, 0.1], pa.float16())}), tmp_path / "in.parquet")
    assert [text_of(row["x"]) for row in objects_in(tmp_path / "in.parquet")] == ["65504", "10008", "0.1"]


def test_a_fraction_of_32_bits_is_sent_as_other_programs_show_it(tmp_path):
    parquet.write_table(pa.table({"price": pa.array([19.99, 0.1, math.nan], pa.float32())}), tmp_path / "in.parquet")
    assert [text_of(row["price"]) for row in objects_in(tmp_path / "in.parquet")] == ["19.99", "0.1", ""]
    inner = pa.array(
        [[{"x": 19.99, "of": [0.1, None]}], None], pa.list_(pa.struct([("x", pa.float32()), ("of", _TWO)]))
    )
    parquet.write_table(pa.table({"vector": inner}), tmp_path / "in.parquet")
    assert [row["vector"] for row in objects_in(tmp_path / "in.parquet")] == [[{"x": 19.99, "of": [0.1, None]}], None]


_WITHOUT_PANDAS = """
import json, sys
from pathlib import Path

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from promptmill.jobs.inputs.any_format import objects_in
print(json.dumps([row["at"] for row in objects_in(Path(sys.argv[1]))]))
"""


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_infinity_is_a_text_in_json(ingested, tmp_path, suffix):
    table = pa.table({"prompt": ["a", "b", "c", "d"], "x": [math.inf, -math.inf, math.nan, 1.5]})
    parquet.write_table(table, tmp_path / "in.parquet")
    (tmp_path / f"out.{suffix}").write_bytes(ingested("in.parquet").write(f"out.{suffix}"))
    assert [row["x"] for row in objects_in(tmp_path / f"out.{suffix}")] == ["Infinity", "-Infinity", None, 1.5]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_infinity_in_a_list_is_a_text(ingested, tmp_path, suffix):
    table = pa.table({"prompt": ["a"], "x": [[math.inf, 1.5]], "y": [{"z": [-math.inf]}]})
    parquet.write_table(table, tmp_path / "in.parquet")
    (tmp_path / f"out.{suffix}").write_bytes(ingested("in.parquet").write(f"out.{suffix}"))
    (row,) = objects_in(tmp_path / f"out.{suffix}")
    x, y = (json.loads(row[name]) if suffix == "csv" else row[name] for name in "xy")
    assert (x, y) == (["Infinity", 1.5], {"z": ["-Infinity"]})


@pytest.mark.thorough
def test_times_in_nanoseconds_are_texts_with_and_without_pandas(ingested, tmp_path):
    at = pa.array([NANOSECOND, NANOSECOND // 1000 * 1000, 1_700_000_000_000_000_000, None], pa.timestamp("ns"))
    parquet.write_table(pa.table({"text": ["a", "b", "c", "d"], "at": at}), tmp_path / "in.parquet")
    expected = ["2023-11-14 22:13:20.123456789", "2023-11-14 22:13:20.123456", "2023-11-14 22:13:20"]
    command = [sys.executable, "-c", _WITHOUT_PANDAS, str(tmp_path / "in.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [*expected, None]
    job = ingested("in.parquet", templates=("{{text}} at {{at}}",))
    prompts = [f"{text} at {time}" for text, time in zip("abc", expected, strict=True)]
    assert [row.get("prompt") or row[row_lines.EMPTY] for row in job.asked] == [*prompts, "d at "]


def test_durations_in_nanoseconds_are_texts_unless_they_have_parts_of_a_microsecond(tmp_path):
    took = pa.array([176_400_000_000_000, None], pa.duration("ns"))
    parquet.write_table(
        pa.table({"took": took, "odd": took.cast(pa.int64()).fill_null(1).cast(took.type)}), tmp_path / "a.parquet"
    )
    found = [[text_of(value) for value in row.values()] for row in objects_in(tmp_path / "a.parquet")]
    assert found == [["49:00:00", "176400000000000"], ["", "1"]]


def test_a_parquet_file_keeps_its_metadata(ingested, tmp_path):
    """Such as those of Hugging Face's `datasets`."""
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    kinds = [
        pa.field("label", pa.int64(), metadata={"unit": "class"}),
        ("prompt", pa.int32()),
        ("messages", pa.string()),
    ]
    messages = [None, json.dumps([{"role": "user", "content": "hello"}]), None]
    table = pa.table(
        {"label": [0, 1, 0], "prompt": [7, None, 8], "messages": messages},
        pa.schema(kinds, metadata={b"huggingface": json.dumps(info).encode()}),
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    job = ingested("in.parquet")
    requests = [job.requests.request(row.n, row.line, row.cells or b"") for row in job.rows]
    assert [one.conversation.as_messages()[0]["content"] for one in requests] == ["7", "hello", "8"]
    out = parquet.read_table(io.BytesIO(job.write("out.parquet")))
    assert json.loads(out.schema.metadata[b"huggingface"]) == info
    assert out.schema.field("label").metadata == {b"unit": b"class"}
    assert out["answer"].to_pylist() == ["A0", "A1", "A2"]


def test_partitioned_parquet_is_one_table_with_its_partitions_and_files(ingested, tmp_path):
    for day, kind in ((1, pa.int32()), (2, pa.int64())):
        (tmp_path / f"day=0{day}").mkdir()
        table = pa.table({"prompt": [f"p{day}"], "n": pa.array([day], kind)})
        parquet.write_table(table, tmp_path / f"day=0{day}" / "part-0.parquet")
    out = parquet.read_table(io.BytesIO(ingested(".").write("out.parquet"))).to_pylist()
    assert [(row["prompt"], row["n"], row["day"], row["source_file"], row["answer"]) for row in out] == [
        ("p1", 1, "01", "day=01/part-0.parquet", "A0"),
        ("p2", 2, "02", "day=02/part-0.parquet", "A1"),
    ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_parquet_file_without_rows_has_an_output_without_rows(ingested, tmp_path, suffix):
    table = pa.table({"prompt": pa.array([], pa.string()), "n": pa.array([], pa.int8())})
    target = tmp_path / f"in.parquet{suffix}"
    from promptmill.files import path_formats

    with target.open("wb") as out, path_formats.compressed(out, path_formats.compression_of(target)) as file:
        parquet.write_table(table, file)
    out_table = parquet.read_table(io.BytesIO(ingested(target.name).write("out.parquet")))
    assert (out_table.num_rows, out_table.schema.field("n").type) == (0, pa.int8())


@pytest.mark.thorough
def test_rows_that_repeat_a_large_value_of_a_small_file_are_read_a_few_at_a_time(tmp_path):
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["a" * (1 << 20)]))
    usual = pa.array([f"some words {at}" for at in range(500)])
    for name, prompts in (("large", column), ("usual", usual)):
        table = pa.table({"prompt": prompts})
        parquet.write_table(table, tmp_path / f"{name}.parquet", compression="brotli", store_schema=False)
    sizes = {}
    for name in ("large", "usual"):
        table = ParquetTable(InputFiles([InputFile(tmp_path / f"{name}.parquet")]))
        sizes[name] = [len(stretch.rows) for stretch in table.stretches([])]
    assert (tmp_path / "large.parquet").stat().st_size < 1000
    assert max(sizes["large"]) <= 16
    assert sum(sizes["large"]) == 500
    assert sizes["usual"] == [500]


def test_rows_that_become_far_more_than_their_file_are_refused(ingested, tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "_HARMLESS_BYTES", 1 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["a" * (1 << 16)]))
    parquet.write_table(pa.table({"prompt": column}), tmp_path / "a.parquet", compression="brotli", store_schema=False)
    with pytest.raises(PromptmillError, match="decompresses to more than 200 times its size"):
        ingested("a.parquet")


def test_a_table_of_many_columns_looks_its_schema_up_once(ingested, tmp_path, monkeypatch):
    table = pa.table({"prompt": ["a", "b"]} | {f"c{at}": [1, 2] for at in range(300)})
    parquet.write_table(table, tmp_path / "a.parquet")
    looked_up = []

    class Counted(parquet.ParquetFile):
        @property
        def schema_arrow(self) -> Any:
            looked_up.append(1)
            return super().schema_arrow

    monkeypatch.setattr(parquet, "ParquetFile", Counted)
    assert ingested("a.parquet").asked == [{"prompt": "a"}, {"prompt": "b"}]
    assert len(looked_up) < 10


def test_a_parquet_file_with_two_columns_of_a_name_is_refused_before_it_is_paid(ingested, tmp_path):
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    parquet.write_table(pa.Table.from_arrays(columns, ["prompt", "x", "x"]), tmp_path / "a.parquet")
    with pytest.raises(PromptmillError, match="two columns 'x'"):
        ingested("a.parquet")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"prompt": "a"}', "is not a Parquet file; name it"),
        (b"PAR1" + b"x" * 40, "is damaged or cut off"),
        (b"", "is not"),
    ],
)
def test_a_file_that_is_no_parquet_is_refused(ingested, tmp_path, data, said):
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(PromptmillError, match=said):
        ingested("a.parquet")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([0.1], pa.float32()), pa.array([0.1]), [0.1, 0.1]),
        (pa.array([0.1], pa.float16()), pa.array([0.1], pa.float32()), [0.1, 0.1]),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), ["a", "b"]),
        (pa.array([2**53 + 1]), pa.array([1], pa.int32()), [2**53 + 1, 1]),
        (pa.array([2**53 + 1]), pa.array([1.5]), "0.parquet has values in 'c' that do not fit"),
        (pa.array([1], pa.timestamp("ns")), pa.array([2**60], pa.timestamp("us")), "1.parquet has values in 'c'"),
        (pa.array([5, 2**31]), pa.array([0.5]), [5, 2**31, 0.5]),
        (pa.array([_PRICE]), pa.array([_FINE]), [_PRICE, _FINE]),
        (pa.array([2**53 + 1]), pa.array(["007"]), [str(2**53 + 1), "007"]),
        (pa.array([2**53 + 1]), pa.array([_PRICE]), [str(2**53 + 1), "1.50"]),
        (pa.array([0.1]), pa.array([_PRICE]), ["0.1", "1.50"]),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), [str(2**64 - 1), "-1"]),
        (pa.array([True, None]), pa.array([2]), ["true", None, "2"]),
        (
            pa.array([dt.date(2026, 1, 2)]),
            pa.array([10_800], pa.timestamp("s")),
            ["2026-01-02", "1970-01-01 03:00:00"],
        ),
        (pa.array([[1, 2]]), pa.array([["x"]]), ["[1,2]", '["x"]']),
        (pa.array([{"a": 1}]), pa.array([{"a": "x"}]), ['{"a":1}', '{"a":"x"}']),
        (pa.array([{"a": 1}]), pa.array([3]), ['{"a":1}', "3"]),
    ],
)
def test_files_whose_columns_have_other_types_keep_their_values_or_are_refused(tmp_path, one, other, expected):
    parts = []
    for at, column in enumerate((one, other)):
        parquet.write_table(pa.table({"c": column}), tmp_path / f"{at}.parquet")
        parts.append(InputFile(tmp_path / f"{at}.parquet"))
    if isinstance(expected, str):
        with pytest.raises(PromptmillError, match=expected):
            list(objects_of(ParquetTable(InputFiles(parts))))
    else:
        assert [row["c"] for row in objects_of(ParquetTable(InputFiles(parts)))] == expected
