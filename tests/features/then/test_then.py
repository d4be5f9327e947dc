"""`bulk --then COMMAND`: a command of the user that runs when a job has ended."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.features.then import command
from replies import answer, choose, late, status
from waiting import PATIENCE_S, eventually

_NOTE = """
import os, sys
with open(sys.argv[1], "a") as file:
    job = {name: value for name, value in os.environ.items() if name.startswith("PROMPTMILL_JOB")}
    print(*sys.argv[2:], *[f"{name}={value}" for name, value in sorted(job.items())], sep="|", file=file)
print("noted")
sys.exit(int(os.environ.get("NOTE_CODE", "0")))
"""


def noting(folder: Path, *words: str) -> str:
    """Return a command that adds a line to the file `notes`."""
    script = folder / "note.py"
    script.write_text(_NOTE)
    return shlex.join([sys.executable, str(script), str(folder / "notes"), *words])


def notes(folder: Path) -> list[dict[str, str]]:
    """Return the variables of each run of the command."""
    lines = (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []
    return [dict(word.partition("=")[::2] for word in line.split("|") if "=" in word) for line in lines]


def test_the_command_runs_once_with_the_job_in_its_environment(bench: Any):
    bench.prompts(3)
    then = noting(bench.path, "a word", "$HOME")
    bench.succeed("--then", then, "--report", "r.html")
    assert (bench.path / "notes").read_text().startswith("a word|$HOME|")
    (seen,) = notes(bench.path)
    assert seen == {
        "PROMPTMILL_JOB": bench.folder.job_id,
        "PROMPTMILL_JOB_STATE": "finished",
        "PROMPTMILL_JOB_REASON": "",
        "PROMPTMILL_JOB_OUTPUT": str(bench.output),
        "PROMPTMILL_JOB_ROWS": "3",
        "PROMPTMILL_JOB_DONE": "3",
        "PROMPTMILL_JOB_FAILED": "0",
        "PROMPTMILL_JOB_COST": "",
        "PROMPTMILL_JOB_REPORT": str(bench.path / "r.html"),
    }
    bench.succeed("--then", then)
    assert len(notes(bench.path)) == 1


def test_a_stopped_job_runs_it_and_so_does_its_resumption_by_id(bench: Any):
    bench.prompts(2)
    bench.upstream.reply = status(401, "bad key")
    bench.fail("--then", noting(bench.path), code=1)
    bench.upstream.reply = answer("yes")
    done = bench.jobs(bench.folder.job_id, "--resume")
    assert done.returncode == 0, done.stderr
    assert [seen["PROMPTMILL_JOB_STATE"] for seen in notes(bench.path)] == ["stopped", "finished"]
    assert "bad key" in notes(bench.path)[0]["PROMPTMILL_JOB_REASON"]


def test_its_exit_code_is_reported_and_does_not_change_the_one_of_the_job(bench: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOTE_CODE", "3")
    bench.prompts(2)
    bench.upstream.reply = choose(lambda seen: status(400, "no") if "0" in seen.prompt else answer("yes"))
    done = bench.fail("--then", noting(bench.path), code=1)
    assert "failed: it ended with status 3" in done
    assert notes(bench.path)[0]["PROMPTMILL_JOB_FAILED"] == "1"


def test_a_detached_job_runs_it_with_the_variables_of_the_shell(bench: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROMPTMILL_JOB_OF_MINE", "secret")
    bench.prompts(2)
    bench.run("--then", noting(bench.path), "--detach")
    eventually(lambda: notes(bench.path))
    (seen,) = notes(bench.path)
    assert (seen["PROMPTMILL_JOB_STATE"], seen["PROMPTMILL_JOB_OF_MINE"]) == ("finished", "secret")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("'open", "open quote"),
        (" ", "is empty"),
        ("no-such-program --now", "no program no-such-program"),
        (f"{shlex.quote(sys.executable)} -H 'Authorization: Bearer abcdefgh12345678'", "shows a key"),
    ],
)
def test_a_command_that_cannot_run_is_refused_before_the_job(words: str, problem: str):
    with pytest.raises(PromptmillError, match=problem):
        command.check(words)


def test_an_output_that_ends_after_the_job_is_refused(bench: Any):
    bench.prompts(1)
    words = [sys.executable, "-m", "promptmill", "bulk", "in.jsonl", "memory://x/out.jsonl", "--then"]
    done = bench.here([*words, shlex.quote(sys.executable)])
    assert done.returncode == 2
    assert "--then needs a file as OUTPUT" in done.stderr
    assert not bench.upstream.seen


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM")
def test_an_interrupted_job_does_not_run_it_and_its_resumption_does(bench: Any):
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 5 else late(None))
    bench.prompts(20)
    process = bench.start("--then", noting(bench.path))
    eventually(lambda: len(bench.upstream.seen) > 5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert bench.status()["state"] == "interrupted"
    assert not notes(bench.path)
    bench.upstream.reply = answer()
    bench.run("--then", noting(bench.path))
    assert [seen["PROMPTMILL_JOB_DONE"] for seen in notes(bench.path)] == ["20"]


def test_its_words_are_on_stderr(bench: Any):
    bench.prompts(1)
    done = bench.run("--then", noting(bench.path), "--json", apart=True)
    assert "noted" not in done.stdout
    assert "noted" in done.stderr
