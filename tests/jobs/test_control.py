"""Control of a job from another process while it runs: pause, limits, and the board of running jobs."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from promptmill.backends.protocol import Completion
from promptmill.cli.job_display import print_status
from promptmill.jobs.store import status
from promptmill.jobs.store.lock import Lock
from replies import answer, late
from sure import sure
from waiting import PATIENCE_S, eventually

PRICE = ("--set", "price={input: 0, output: 1000000}", "--max-tokens", "10")


def running(bench: Any, *arguments: str, rows: int = 3000) -> subprocess.Popen[str]:
    """Return a job that runs, with answers after 20 ms."""
    bench.upstream.reply = late(0.02, answer())
    bench.prompts(rows)
    process = bench.start(*arguments, concurrency=8)
    eventually(lambda: len(bench.upstream.seen) > 40)
    return process


def steer(bench: Any, *arguments: str) -> dict[str, Any]:
    """Change what a job does, as from another terminal; return its status."""
    done = bench.jobs(bench.folder.job_id, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def is_paused(bench: Any) -> bool:
    status = bench.folder.status
    return bool(status.get("paused")) and not status["in_flight"]


def test_the_counts_of_a_running_job_are_those_of_its_answers(bench):
    """The stored status, which says 0 answers, is older than the answers."""
    bench.prompts(3)
    bench.half_done({0: Completion("yes"), 1: Completion("yes")})
    lock = sure(Lock.take(bench.folder.lock))
    try:
        found = status.with_results(bench.folder, status.read(bench.folder))
    finally:
        lock.release()
    assert (found["state"], found["alive"], found["done"], found["answered"]) == ("running", True, 2, 2)
    assert found["results"]["values"] == {"yes": 2}


def test_a_paused_job_says_so_and_how_it_goes_on(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    found: Any = {"state": "running", "paused": True, "alive": True, "job_id": "out-1", "output_file": "out.csv"}
    found |= {"input_file": "in.csv", "waiting": "paused", "seconds": 38}
    print_status(found, as_json=False)
    first, *_, told, command = screen.getvalue().splitlines()
    assert first.startswith("in.csv → out.csv: paused after 38 s")
    assert (told, command.split()) == ("  let it go on with", ["promptmill", "jobs", "out-1", "--unpause"])


def test_a_job_that_ends_while_its_status_is_read_is_not_called_interrupted(bench):
    bench.prompts(2)
    bench.succeed()
    spec, last = bench.folder.spec_and_status()
    found = status.of(bench.folder, spec, last | {"state": "running", "done": 1, "waiting": "for a slot"})
    assert (found["state"], found["done"], "waiting" in found) == ("finished", 2, False)


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_pause_survives_a_kill(bench):
    process = running(bench, rows=600)
    assert "pauses within two seconds." in bench.jobs(bench.folder.job_id, "--pause").stderr
    eventually(lambda: is_paused(bench))
    process.kill()
    process.communicate()
    sent = len(bench.upstream.seen)
    shown = bench.jobs(bench.folder.job_id).stdout
    assert f"promptmill jobs {bench.folder.job_id}" in shown
    assert "--unpause" in shown
    assert "--resume" not in shown
    again = bench.start(concurrency=8)
    assert again.stderr is not None
    assert f"promptmill jobs {bench.folder.job_id}" in (said := again.stderr.readline())
    assert said.endswith(" --unpause` lets it go on.\n")
    while ": running, paused" not in again.stderr.readline():
        pass
    assert len(bench.upstream.seen) == sent
    steer(bench, "--unpause")
    again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0
    assert len(bench.upstream.seen) == 600


@pytest.mark.thorough
def test_fewer_and_more_requests_are_in_flight(bench):
    process = running(bench, rows=2000)
    steer(bench, "--set", "concurrency=2")
    eventually(lambda: {seen.in_flight for seen in bench.upstream.seen[-30:]} <= {1, 2})
    bench.upstream.peak = 0
    steer(bench, "--set", "concurrency=32")
    eventually(lambda: bench.upstream.peak > 8)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


@pytest.mark.thorough
def test_a_lower_budget_stops_a_job_and_a_higher_one_lets_it_go_on(bench):
    process = running(bench, *PRICE, rows=600)
    spent = bench.folder.status.get("cost") or 0.0
    steer(bench, "--set", f"max_cost={spent + 100}")
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75
    status = bench.folder.status
    assert status["cost"] <= max(spent + 100, 10 * len(bench.upstream.seen))
    assert len(bench.upstream.seen) < 600
    steer(bench, "--set", "max_cost=1000000")
    assert bench.run(*PRICE).returncode == 0


def test_a_limit_of_an_earlier_run_is_named_by_the_next(bench):
    bench.prompts(2)
    bench.succeed("--limit", "1")
    steer(bench, "--set", "concurrency=8")
    said = " ".join(bench.run().stdout.split())
    assert "At most 8 requests in flight: an earlier run was set to `concurrency=8`" in said


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("model=x", "model cannot change while a job runs; concurrency and max_cost can."),
        ("concurrency=0", "concurrency"),
        ("max_cost=much", "--max-cost: Input should be a valid number"),
    ],
)
def test_what_cannot_change_is_refused_with_what_can(bench, wish, said):
    bench.prompts(3)
    bench.succeed()
    done = bench.jobs(bench.folder.job_id, "--set", wish)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_a_wish_for_a_job_that_does_not_run_holds_when_it_is_resumed(bench):
    bench.prompts(3)
    bench.succeed()
    done = bench.jobs(bench.folder.job_id, "--pause")
    assert "is not running; this holds when it is resumed." in done.stderr
    assert bench.folder.control.paused


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
def test_the_board_shows_running_jobs_until_ctrl_c(bench):
    process = running(bench)
    python, *command = bench.command("--watch", command="jobs")
    board = subprocess.Popen(
        [python, *command], cwd=bench.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert board.stdout is not None
    line = board.stdout.readline()
    assert bench.folder.job_id in line
    assert " of 3,000 answered" in line
    steer(bench, "--pause")
    eventually(lambda: is_paused(bench))
    while "paused" not in board.stdout.readline():
        pass
    board.send_signal(signal.SIGINT)
    _, said = board.communicate(timeout=PATIENCE_S)
    assert board.returncode == 0
    assert not said
    assert process.poll() is None, "the job runs on"


@pytest.mark.thorough
def test_a_stored_reason_and_the_end_of_a_run_name_the_same_option(bench):
    bench.prompts(3)
    said = bench.fail(*PRICE, "--max-cost", "15", code=75)
    assert "Raise --max-cost and send the rest again." in " ".join(said.split())
    shown = " ".join(bench.jobs(bench.folder.job_id).stdout.split())
    assert "Raise --max-cost and send the rest again." in shown
    assert "`max_cost`" not in shown
