"""Jobs over several files, from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv, parquet


def test_a_job_over_a_folder_goes_on_and_finds_out_what_changed(bench: Any) -> None:
    folder = bench.path / "data"
    folder.mkdir()
    for at in range(3):
        (folder / f"{at}.jsonl").write_text(json.dumps({"q": f"prompt {at}", "id": at}) + "\n")
    bench.input = folder
    options = ("--prompt-column", "q")
    bench.succeed(*options)
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(3)]
    assert [row["source_file"] for row in bench.answers()] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert bench.succeed(*options)["done"] == 3
    assert len(bench.upstream.seen) == 3
    (folder / "3.jsonl").write_text('{"q": "prompt 3", "id": 1}\n')
    assert "keeps 0 of the 3 answers" in bench.fail("--prompt-column", "id")
    bench.succeed("--prompt-column", "q")
    assert len(bench.upstream.seen) == 4
    assert [row["source_file"] for row in bench.answers()] == [f"{at}.jsonl" for at in range(4)]


def test_several_inputs_may_be_named(bench: Any) -> None:
    first, second = bench.write(['{"prompt": "a"}'], "a.jsonl"), bench.write(['{"prompt": "b"}'], "b.jsonl")
    command = bench.command()
    at = command.index(str(second))
    bench.command = lambda *arguments, **block: [*command[:at], str(first), *command[at:], *arguments]
    bench.succeed()
    assert [row["answer"] for row in bench.answers()] == ["echo: a", "echo: b"]
    assert Path(bench.status()["input_file"]) == first


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.csv", "in.parquet"])
def test_validate_notes_rows_that_repeat_an_id(bench: Any, name: str) -> None:
    table = pa.table({"prompt": ["a", "b", "c"], "id": ["x", "y", "x"]})
    bench.input = bench.path / name
    if name.endswith("parquet"):
        parquet.write_table(table, bench.input)
    elif name.endswith("csv"):
        csv.write_csv(table, bench.input)
    else:
        rows = [json.dumps(row) for row in table.to_pylist()]
        bench.input.write_text(f"[{','.join(rows)}]" if name.endswith("json") else "\n".join(rows))
    checked = json.loads(bench.run("--validate", "--json").stdout)
    assert checked["invalid"] == 0
    (note,) = [note for note in checked["notes"] if "`id`" in note]
    assert re.fullmatch(r"(\w+) 3 has the `id` of \1 1; repeated ids in all: 1\.", note)
    assert not bench.upstream.seen
