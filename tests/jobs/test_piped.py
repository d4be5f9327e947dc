"""`-` for standard input and output."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest


def piped(bench: Any, data: bytes, *arguments: str, source: str = "-", target: str = "-") -> Any:
    """Run `promptmill bulk` over pipes."""
    command = bench.command(*arguments)
    at = command.index(str(bench.input))
    command[at : at + 2] = [source, target]
    state = os.environ | {"PROMPTMILL_STATE": str(bench.path / "state")}
    return subprocess.run(command, input=data, capture_output=True, cwd=bench.path, env=state, check=False, timeout=60)


def given(bench: Any) -> list[Path]:
    """What is kept of rows that came over a pipe."""
    return list((bench.path / "state" / "given").iterdir())


def test_rows_come_and_go_over_pipes_and_nothing_is_left(bench: Any) -> None:
    done = piped(bench, b'{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": "b"}\n')
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == ["echo: a", "echo: b"]
    assert given(bench) == []
    assert list((bench.path / "state" / "jobs").iterdir()) == []


def test_a_line_of_text_is_a_prompt_and_answers_may_be_cells(bench: Any) -> None:
    done = piped(bench, b"one\ntwo\n", "--input-format", "txt", "--output-format", "csv")
    assert done.stdout.splitlines()[1].startswith(b"one,echo: one,")
    unknown = piped(bench, b"one\ntwo\n")
    assert unknown.returncode == 2
    assert b"--input-format" in unknown.stderr


def test_what_a_job_over_pipes_has_paid_for_is_kept_until_the_same_rows_come_again(bench: Any) -> None:
    rows = b'[{"prompt": "a"}, {"prompt": "b"}]'
    stopped = piped(
        bench, rows, "--max-failures", "0", "--set", "backend_configs.openai.base_url=http://127.0.0.1:9/v1"
    )
    assert (stopped.returncode, stopped.stdout) == (75, b"")
    assert len(given(bench)) == 1
    done = piped(bench, rows, target="out.jsonl")
    assert done.returncode == 0, done.stderr
    assert len((bench.path / "out.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_is_answered_to_standard_output(bench: Any, times: int) -> None:
    source = bench.write([{"prompt": "a"}])
    for _ in range(times):
        done = piped(bench, b"", source=str(source))
        assert json.loads(done.stdout)["answer"] == "echo: a"
