"""Values in the rows of a Python program, which are sent as the values of files are."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

import promptmill
from promptmill.core.errors import PromptmillError
from promptmill.jobs.manage.bulk_result import lines_of

np, pd, pl = pytest.importorskip("numpy"), pytest.importorskip("pandas"), pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")


class _Model(BaseModel):
    day: dt.date = dt.date(2024, 1, 5)


@dataclasses.dataclass
class _Limit:
    most: float = math.inf


class _Pair(NamedTuple):
    a: int
    b: int


def _column(rows: Any, name: str = "v") -> list[Any]:
    return [json.loads(line)[name] for line in lines_of(rows, "v")]


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (math.inf, math.inf),
        ([{"a": -math.inf}], [{"a": -math.inf}]),
        (np.float32("inf"), math.inf),
        (_Limit(), {"most": math.inf}),
        (2**70, 2**70),
        (b"abc", "abc"),
        ("Größe".encode(), "Größe"),
        (b"\xff", "/w=="),
        (b"%PDF-1.4", "JVBERi0xLjQ="),
        (np.float32(0.1), 0.1),
        (np.float16(65504), 65504.0),
        (np.array([0.1, math.inf], "float32"), [0.1, math.inf]),
        (np.array([1, "a", None], dtype=object), [1, "a", None]),
        (np.bool_(True), True),
        (np.datetime64("2024-01-05T10:00:00.123456789"), "2024-01-05T10:00:00.123456789"),
        (np.datetime64("2024-01-05"), "2024-01-05"),
        (np.datetime64("NaT"), None),
        (np.timedelta64(90, "m"), "01:30:00"),
        (np.longdouble("0.5"), "0.5"),
        (array.array("f", [0.1]), [0.1]),
        (pd.NaT, None),
        (pd.NA, None),
        (pd.Timedelta("1 day 2h"), "26:00:00"),
        (pd.Series([1, 2]), [1, 2]),
        (pl.Series([0.1], dtype=pl.Float32), [0.1]),
        (pa.scalar(0.1, pa.float32()), 0.1),
        (dt.timedelta(days=1, hours=2), "26:00:00"),
        (Decimal("1E+3"), "1000"),
        (Decimal("NaN"), None),
        (Fraction(1, 3), "1/3"),
        ({"b", "a"}, ["a", "b"]),
        (collections.deque([1, 2]), [1, 2]),
        (range(2), [0, 1]),
        (_Pair(1, 2), {"a": 1, "b": 2}),
        (_Model(), {"day": "2024-01-05"}),
        (Path("a/b"), "a/b"),
    ],
)
def test_a_value_of_python_is_sent_as_that_of_a_file(value, sent):
    (row,) = lines_of([{"v": value}])
    assert json.loads(row) == {"v": sent}


@pytest.mark.parametrize("value", [object(), (each for each in "ab"), len, int])
def test_an_object_without_a_value_is_refused(value):
    with pytest.raises(PromptmillError, match=r"rows\[0\] cannot be written as JSON: .* has no value"):
        list(lines_of([{"v": value}]))


_SHORT = [0.1, math.inf]


@pytest.mark.parametrize(
    ("table", "sent"),
    [
        (pd.DataFrame({"v": pd.Series(_SHORT, dtype="float32")}), _SHORT),
        (pd.Series(_SHORT, dtype="float32", name="v"), _SHORT),
        (pd.DataFrame({"v": pd.array([0.1, None], dtype="Float32")}), [0.1, None]),
        (pd.DataFrame({"v": pd.array([0.1, None], dtype=pd.ArrowDtype(pa.float32()))}), [0.1, None]),
        (pl.DataFrame({"v": _SHORT}, schema={"v": pl.Float32}), _SHORT),
        (pl.DataFrame({"v": [[0.1]]}, schema={"v": pl.List(pl.Float32)}), [[0.1]]),
        (pl.DataFrame({"v": [{"a": 0.1}]}, schema={"v": pl.Struct({"a": pl.Float32})}), [{"a": 0.1}]),
        (pl.DataFrame({"v": [2**100]}, schema={"v": pl.Int128}), [2**100]),
        (pa.table({"v": pa.array(_SHORT, pa.float32())}), _SHORT),
        (pa.chunked_array([pa.array(_SHORT, pa.float32())]), _SHORT),
        (pa.table({"v": pa.array([2**31 - 1], pa.date32())}), ["infinity"]),
        (np.array(_SHORT, "float32"), _SHORT),
        (np.array([("a", 0.1)], dtype=[("k", "U1"), ("v", "f4")]), [0.1]),
        (np.array(["2024-01-05"], "datetime64[ns]"), ["2024-01-05T00:00:00"]),
    ],
)
def test_a_column_has_the_values_that_its_file_would_have(table, sent):
    assert _column(table) == sent


def test_the_later_of_two_columns_of_pyarrow_is_no_other_value():
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["v", "v"])
    assert [json.loads(line) for line in lines_of(table)] == [{"v": 1, "v_2": 2}]


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_a_prompt_names_no_column_that_is_there_twice(library):
    frame = pd.DataFrame([["a", "b", 1]], columns=["v", "v", "n"])
    table = frame if library == "pandas" else pa.Table.from_arrays([pa.array(["a"])] * 2, names=["v", "v"])
    with pytest.raises(PromptmillError, match="The input has two columns `v`; rename one of them"):
        promptmill.bulk(table, prompt="{{v}}", base_url="http://127.0.0.1:9", model="m")
