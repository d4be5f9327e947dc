"""Old jobs are forgotten, running ones never, unfinished ones only when asked for."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from promptmill.errors import PromptmillError
from promptmill.jobs import folder, prune
from promptmill.jobs.lock import Lock
from replies import answer, hang

DAY_S = 86_400


def _age(path, days):
    for file in path.iterdir():
        os.utime(file, (time.time() - days * DAY_S,) * 2)


def _finished(bench, name, days):
    bench.write([{"prompt": name}], f"{name}.jsonl")
    bench.output = bench.path / f"{name}-out.jsonl"
    bench.succeed()
    _age(bench.folder.path, days)
    return bench.folder


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600), ("0d", 0)]
)
def test_an_age_is_a_number_and_a_unit(text, seconds):
    assert prune.age_s(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 days", "1e3d"])
def test_what_is_no_age_says_how_to_write_one(text):
    with pytest.raises(PromptmillError, match="30m, 12h, 7d or 2w"):
        prune.age_s(text)


def test_finished_jobs_older_than_that_go_and_their_outputs_stay(bench):
    old, young = _finished(bench, "old", 8), _finished(bench, "young", 6)
    found = subprocess.run(bench.command("--prune", "7d", "--json", command="jobs"), capture_output=True, check=True)
    assert json.loads(found.stdout) == {"removed": [old.job_id]}
    assert not old.path.exists()
    assert young.path.exists()
    assert (bench.path / "old-out.jsonl").exists()


def test_an_unfinished_job_goes_only_when_asked_for(bench):
    bench.upstream.reply = hang()
    bench.prompts(3)
    process = bench.start()
    bench.wait(lambda: bench.upstream.in_flight)
    process.kill()
    process.communicate()
    _age(bench.folder.path, 30)
    root = folder.state_root()
    assert prune.prune(root, DAY_S, unfinished=False) == []
    assert prune.prune(root, DAY_S, unfinished=True) == [bench.folder.job_id]
    assert not bench.folder.path.exists()
    bench.upstream.reply = answer()
    bench.succeed()


def test_a_job_that_runs_is_never_removed(bench):
    old = _finished(bench, "old", 8)
    lock = Lock.take(old.lock)
    try:
        assert prune.prune(folder.state_root(), 0, unfinished=True) == []
    finally:
        lock.release()
    assert prune.prune(folder.state_root(), 0, unfinished=True) == [old.job_id]


def test_what_a_crash_left_without_a_description_goes_too(bench):
    torn = folder.state_root() / "call-0123"
    torn.mkdir(parents=True)
    (torn / "prompts.jsonl").write_text("{")
    _age(torn, 8)
    assert prune.prune(folder.state_root(), 7 * DAY_S, unfinished=False) == ["call-0123"]


def test_nothing_is_there_to_prune(bench):
    said = subprocess.run(bench.command("--prune", "7d", command="jobs"), capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("", "promptmill: 0 job(s) removed.\n")
