"""`-` for standard input and output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from forked import started
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.status import read as status_of
from replies import answer, by_prompt, late, status
from waiting import PATIENCE_S, eventually


def piped(bench: Any, data: bytes, *arguments: str, source: str = "-", target: str = "-") -> Any:
    """Run `promptmill bulk` over pipes."""
    command, state = command_of(bench, arguments, source, target)
    pipe = subprocess.PIPE
    with started(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=bench.path, env=state) as process:
        out, err = process.communicate(data, timeout=PATIENCE_S)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def start_piped(bench: Any, data: bytes, *arguments: str) -> Any:
    """Start `promptmill bulk` over pipes, with all of its input."""
    command, state = command_of(bench, arguments, "-", "-")
    pipe = subprocess.PIPE
    process = started(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=bench.path, env=state)
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.close()
    return process


def waiting(prompt: str, until: threading.Event) -> Any:
    """Answer everything at once, but `prompt` only when it may be."""

    async def reply(exchange: Any) -> None:
        while exchange.seen.prompt == prompt and not until.is_set():
            await exchange.sleep(0.01)
        await answer()(exchange)

    return reply


def command_of(bench: Any, arguments: Any, source: str, target: str) -> Any:
    """Return a command line over pipes and its environment."""
    command = bench.command(*arguments)
    at = command.index(str(bench.input))
    command[at : at + 2] = [source, target]
    return command, os.environ | {"PROMPTMILL_STATE": str(bench.path / "state")}


def given(bench: Any) -> list[Path]:
    """The temporary files of rows that came over a pipe."""
    return list((bench.path / "state" / "given").iterdir())


def kept(bench: Any) -> list[Path]:
    """The jobs that are kept, with their rows."""
    return list((bench.path / "state" / "jobs").iterdir())


def test_rows_come_and_go_over_pipes_and_nothing_is_left(bench):
    done = piped(bench, b'{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": "b"}\n')
    assert done.returncode == 0, done.stderr
    assert b"/given/" not in done.stderr, "a file that is gone"
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == ["echo: a", "echo: b"]
    assert (given(bench), kept(bench)) == ([], [])


def test_a_line_of_text_is_a_prompt_and_answers_may_be_cells(bench):
    done = piped(bench, b"one\ntwo\n", "--input-format", "txt", "--output-format", "csv")
    assert done.stdout.splitlines()[1].startswith(b"one,echo: one,")
    unknown = piped(bench, b"one\ntwo\n")
    assert unknown.returncode == 2
    assert b"--input-format" in unknown.stderr


def test_what_a_job_over_pipes_has_paid_for_is_kept_until_the_same_rows_come_again(bench):
    rows = b'[{"prompt": "a"}, {"prompt": "b"}]'
    stopped = piped(
        bench, rows, "--max-failures", "0", "--set", "backend_configs.openai.base_url=http://127.0.0.1:9/v1"
    )
    assert (stopped.returncode, stopped.stdout) == (75, b"")
    assert (given(bench), len(kept(bench))) == ([], 1)
    done = piped(bench, rows, target="out.jsonl")
    assert done.returncode == 0, done.stderr
    assert len((bench.path / "out.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_is_answered_to_standard_output(bench, times):
    source = bench.write([{"prompt": "a"}])
    for _ in range(times):
        done = piped(bench, b"", source=str(source))
        assert json.loads(done.stdout)["answer"] == "echo: a"


@pytest.mark.parametrize("output_format", ["jsonl", "json", "jsonl.gz"])
def test_answers_come_in_input_order_while_later_rows_are_still_asked(bench, output_format):
    may_end = threading.Event()

    bench.upstream.reply = waiting("prompt 2", may_end)
    rows = b"".join(b'{"prompt": "prompt %d"}\n' % at for at in range(6))
    patient = ("--set", "backend_configs.openai.timeout=[10, 60]")
    process = start_piped(bench, rows, "--output-format", output_format, *patient)
    try:
        seen = b""
        unpack = zlib.decompressobj(31)
        while seen.count(b"echo") < 2:
            data = os.read(process.stdout.fileno(), 1 << 16)
            assert data, process.stderr.read()
            seen += unpack.decompress(data) if output_format.endswith("gz") else data
        assert process.poll() is None
        eventually(lambda: len(bench.upstream.seen) >= 6)  # those behind the one that waits were asked
        assert b"prompt 3" not in seen
        may_end.set()
        rest = process.stdout.read()
        seen += unpack.decompress(rest) if output_format.endswith("gz") else rest
        assert process.wait(PATIENCE_S) == 0
    finally:
        may_end.set()
        process.kill()
    found = json.loads(seen) if output_format == "json" else [json.loads(line) for line in seen.splitlines()]
    assert [row["answer"] for row in found] == [f"echo: prompt {at}" for at in range(6)]
    assert given(bench) == []


def test_a_row_that_is_done_again_is_printed_as_it_is_then(bench):
    rows = b"".join(b'{"prompt": "prompt %d"}\n' % at for at in range(4))
    failing = {"prompt 1": status(500), "prompt 2": status(500)}
    bench.upstream.reply = by_prompt(failing, answer())
    first = piped(bench, rows, "--max-failures", "1")
    assert first.returncode != 0
    bench.upstream.reply = by_prompt({"prompt 1": late(0.5, answer())}, answer())  # row 2 is done while row 1 waits
    done = piped(bench, rows)
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == [
        f"echo: prompt {at}" for at in range(4)
    ]


def test_rows_with_the_same_question_are_all_printed_with_the_new_answer(bench):
    rows = b"".join(b'{"prompt": "%s"}\n' % prompt for prompt in (b"a", b"b", b"a", b"a", b"c"))
    bench.upstream.reply = by_prompt({"c": status(400)}, answer("old"))
    assert piped(bench, rows, "--temperature", "0", "--max-failures", "0").returncode != 0
    bench.upstream.reply = answer("new")
    done = piped(bench, rows, "--temperature", "0", "--dedupe", "--again", "all")
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == ["new"] * 5


def test_a_job_whose_answers_nobody_reads_stops_and_keeps_them(bench):
    may_end = threading.Event()

    bench.upstream.reply = waiting("prompt 1", may_end)
    process = start_piped(bench, b'{"prompt": "prompt 0"}\n{"prompt": "prompt 1"}\n{"prompt": "prompt 2"}\n')
    try:
        assert b"prompt 0" in process.stdout.readline()
        process.stdout.close()
        may_end.set()
        said = process.stderr.read()
        process.wait(PATIENCE_S)
    finally:
        may_end.set()
        process.kill()
    assert process.returncode not in {0, -9}
    assert b"Standard output cannot be written" in said
    assert given(bench) == []
    (job,) = kept(bench)
    assert status_of(Folder(job))["done"] >= 1


def test_rows_that_nobody_came_back_for_are_pruned_with_their_job(bench):
    gone = "backend_configs.openai.base_url=http://127.0.0.1:9/v1"
    piped(bench, b'{"prompt": "a"}\n', "--max-failures", "0", "--set", gone)
    (job,) = kept(bench)
    stray = bench.path / "state" / "given" / "tmpstray"
    stray.mkdir()

    def prune(*arguments: str) -> None:
        command = [sys.executable, "-m", "promptmill", "jobs", "--prune", *arguments]
        assert bench.here(command, PROMPTMILL_STATE=str(bench.path / "state")).returncode == 0

    prune("1h", "--unfinished")
    assert (given(bench), kept(bench)) == ([stray], [job])
    prune("0m")  # the job could go on
    assert (given(bench), kept(bench)) == ([], [job])
    prune("0m", "--unfinished")
    assert kept(bench) == []
