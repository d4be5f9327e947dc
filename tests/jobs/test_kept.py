"""What is answered, and the output that holds it, are kept whatever the next command asks for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from replies import answer, by_prompt, choose, late, status
from waiting import PATIENCE_S, eventually

posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")

# Runs the command line, with what `patch` does to the system's functions before.
PATCHED = """
import os, pathlib, signal, sys
def end(): os.kill(os.getpid(), signal.SIGKILL)
{patch}
from promptmill.cli import main as cli
sys.exit(cli.main())
"""


def patched(bench: Any, patch: str, *arguments: str) -> subprocess.Popen[str]:
    """Start `promptmill bulk` with some function of the system changed."""
    command = bench.command(*arguments)
    process = subprocess.Popen(
        [command[0], "-c", PATCHED.format(patch=patch), *command[3:]],
        cwd=bench.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    bench._started.append(process)
    return process


def killed(bench: Any, patch: str, *arguments: str) -> None:
    """Run until `patch` kills the process."""
    process = patched(bench, patch, *arguments)
    _, err = process.communicate(timeout=180)
    assert process.returncode == -signal.SIGKILL, err
    eventually(lambda: not bench.upstream.open)


@pytest.mark.parametrize("before", [(), ("--limit", "20")])
def test_a_smaller_limit_keeps_an_output_that_holds_more(bench, before):
    bench.prompts(50)
    bench.succeed(*before)
    made, sent = bench.output.read_bytes(), len(bench.upstream.seen)
    result = bench.run("--limit", "5")
    assert result.returncode == 0
    held = before[-1] if before else "all"
    assert f"is finished already. Its output already holds {held} rows, and is left unchanged" in result.stderr
    assert (bench.output.read_bytes(), len(bench.upstream.seen)) == (made, sent)
    bench.succeed()
    assert len(bench.answers()) == len(bench.upstream.seen) == 50


def test_failed_rows_are_not_done_again_into_an_output_of_fewer_rows(bench):
    bench.upstream.reply = by_prompt({"prompt 3": status(400, "no")}, answer())
    bench.prompts(20)
    bench.fail(code=1)
    made, sent = bench.output.read_bytes(), len(bench.upstream.seen)
    assert "has more rows than --limit 5; writing it" in bench.fail("--again", "failed", "--limit", "5")
    assert (bench.output.read_bytes(), len(bench.upstream.seen)) == (made, sent)
    bench.upstream.reply = answer()
    bench.succeed("--again", "failed")
    assert [row["id"] for row in bench.answers()] == [f"r{at}" for at in range(20)]


@posix
def test_a_retry_that_was_killed_does_not_let_a_limit_cut_the_output(bench):
    bench.upstream.reply = by_prompt({"prompt 3": status(400, "no")}, answer())
    bench.prompts(20)
    bench.fail(code=1)
    made = bench.output.read_bytes()
    assert bench.run("--again", "failed", killed_at="merging").returncode == -signal.SIGKILL
    assert "has more rows than --limit 5; writing it" in bench.fail("--limit", "5")
    assert bench.output.read_bytes() == made
    bench.fail(code=1)
    assert len(bench.answers()) == 20


@pytest.mark.thorough
def test_an_answered_row_behind_the_limit_is_not_forgotten(bench):
    bench.prompts(30)
    bench.succeed()
    bench.output.unlink()
    bench.succeed("--limit", "10")
    assert len(bench.answers()) == 10
    bench.succeed()
    assert len(bench.answers()) == len(bench.upstream.seen) == 30


@pytest.mark.thorough
@posix
@pytest.mark.parametrize("point", ["after-write", "merging", "before-rename"])
def test_a_job_that_is_to_replace_a_foreign_file_goes_on_without_starting_anew(bench, point):
    bench.prompts(16)
    bench.output.write_text("to be replaced")
    assert bench.run("--overwrite", killed_at=point).returncode == -signal.SIGKILL
    eventually(lambda: not bench.upstream.open)
    assert bench.output.read_text() == "to be replaced"
    answered = len(bench.records())
    sent = len(bench.upstream.seen)
    bench.succeed()
    assert len(bench.answers()) == 16
    assert len(bench.upstream.seen) == sent + 16 - answered


@posix
def test_only_the_file_that_was_there_is_replaced_by_a_job_that_goes_on(bench):
    bench.prompts(16)
    bench.output.write_text("to be replaced")
    assert bench.run("--overwrite", killed_at="merging").returncode == -signal.SIGKILL
    bench.output.write_text("precious")
    said = bench.fail()
    assert "is not this job's own output; move it away to resume job" in said
    assert "--overwrite replaces it" in said
    assert bench.output.read_text() == "precious"
    bench.output.unlink()
    bench.succeed()
    assert len(bench.upstream.seen) == 16


@posix
def test_a_job_killed_after_its_output_had_its_name_tells_its_failures(bench):
    bench.upstream.reply = by_prompt({"prompt 3": status(500)}, answer())
    bench.prompts(20)
    assert bench.run(killed_at="after-rename").returncode == -signal.SIGKILL
    sent = len(bench.upstream.seen)
    result = bench.run("--json")
    found = json.loads(result.stdout)
    assert (found["state"], found["done"], found["total"]) == ("finished", 20, 20)
    assert (found["failed"], found["errors"], result.returncode) == (1, {"server_error": 1}, 1)
    assert found["requests"] == len(bench.upstream.seen) == sent


@posix
def test_a_job_killed_after_its_output_had_its_name_counts_the_fields_of_a_schema(bench):
    schema = bench.path / "s.json"
    schema.write_text('{"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}')
    bench.upstream.reply = answer('{"mood": "good"}')
    bench.prompts(2)
    assert bench.run("--schema", str(schema), killed_at="after-rename").returncode == -signal.SIGKILL
    assert bench.succeed("--schema", str(schema))["results"]["fields"] == {"mood": {"values": {"good": 2}}}


@posix
def test_nothing_is_left_beside_an_output_that_got_its_name(bench):
    bench.prompts(5)
    killed(bench, "link = os.link\ndef linked(*names): link(*names), end()\nos.link = linked")
    assert len(list(bench.path.glob(".*.partial"))) == 1
    bench.succeed()
    assert not list(bench.path.glob(".*.partial"))


@pytest.mark.thorough
@posix
def test_nothing_is_left_beside_an_output_that_nobody_wants_any_more(bench):
    bench.prompts(5)
    patch = """
import time
fsync = os.fsync
def slow(descriptor):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".partial"):
        pathlib.Path("written").touch()
        time.sleep(1)
    fsync(descriptor)
os.fsync = slow
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    process = patched(bench, patch)
    eventually((bench.path / "written").exists)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, said
    assert not bench.output.exists()
    assert not list(bench.path.glob(".*.partial"))
    bench.succeed()
    assert len(bench.upstream.seen) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_filtered_answer_cost_is_counted(bench, workers):
    filtered = answer("half of it", finish_reason="content_filter")
    bench.upstream.reply = by_prompt({"prompt 1": filtered}, answer())
    bench.prompts(3)
    said = bench.run("--json", num_workers=workers)
    found = json.loads(said.stdout)
    assert (found["failed"], found["prompt_tokens"], found["completion_tokens"]) == (1, 6, 3 + 3 + 3)
    assert bench.answers()[1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3}


@pytest.mark.thorough
def test_the_latency_of_a_copied_answer_is_none(bench):
    arguments = ("--set", "sampling_params.temperature=0")
    bench.upstream.reply = late(0.05, choose(lambda seen: answer() if seen.prompt == "a" else status(500)))
    bench.write([{"prompt": "a"}, *[{"prompt": "b"}] * 9])
    bench.fail(*arguments, code=1)
    bench.upstream.reply = late(0.05, answer())
    found = bench.succeed("--again", "failed", "--dedupe", *arguments)
    assert found["latency_s"]["p50"] >= 0.045


@pytest.mark.thorough
@pytest.mark.parametrize("point", ["merging", "before-rename"])
@pytest.mark.parametrize("options", [(), ("--from", "other.jsonl")], ids=["appended", "another job's"])
def test_an_output_of_the_rows_before_does_not_count_as_finished_after_a_kill(bench, point, options):
    rows = bench.prompts(3)
    own, bench.output = bench.output, bench.path / "other.jsonl"
    bench.succeed()
    bench.output = own
    if options:
        bench.upstream.reply = by_prompt({rows[1]["prompt"]: status(400, "no")}, answer())
        bench.fail(code=1)
    else:
        bench.succeed()
        bench.write([*rows, {"id": "r3", "prompt": "prompt 3"}])
    assert bench.run(*options, killed_at=point).returncode == -signal.SIGKILL
    bench.upstream.reply = status(400, "no")
    asked = len(bench.upstream.seen)
    bench.succeed()
    assert len(bench.upstream.seen) == asked
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(4 - bool(options))]
