"""Jobs over several files, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_a_job_over_a_folder_goes_on_and_finds_out_what_changed(bench: Any) -> None:
    folder = bench.path / "data"
    folder.mkdir()
    for at in range(3):
        (folder / f"{at}.jsonl").write_text(json.dumps({"q": f"prompt {at}", "id": at}) + "\n")
    bench.input = folder
    options = ("--prompt-column", "q", "--id-column", "id")
    bench.succeed(*options)
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(3)]
    assert [row["source_file"] for row in bench.answers()] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert bench.succeed(*options)["done"] == 3
    assert len(bench.upstream.seen) == 3
    (folder / "3.jsonl").write_text('{"q": "more"}\n')
    assert "has changed" in bench.fail(*options)
    assert "another prompt column" in bench.fail("--prompt-column", "id", "--reuse")
    found = bench.succeed(*options, "--reuse")
    assert len(bench.upstream.seen) == 4
    assert "1 row(s) have no `id`." in found["warnings"]
    assert [row["source_file"] for row in bench.answers()] == [f"{at}.jsonl" for at in range(4)]


def test_several_inputs_may_be_named(bench: Any) -> None:
    first, second = bench.write(['{"prompt": "a"}'], "a.jsonl"), bench.write(['{"prompt": "b"}'], "b.jsonl")
    command = bench.command()
    at = command.index(str(second))
    bench.command = lambda *arguments, **block: [*command[:at], str(first), *command[at:], *arguments]
    bench.succeed()
    assert [row["answer"] for row in bench.answers()] == ["echo: a", "echo: b"]
    assert Path(bench.status()["input_file"]) == first
