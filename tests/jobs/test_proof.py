"""The proof: a job is killed at random moments and at named points, and nothing is lost, doubled or mixed up."""

from __future__ import annotations

import random
import signal
import sys
import time
from typing import Any

import psutil
import pytest

from replies import answer, late
from waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")

ROWS = 5000
RANDOM_KILLS = 18
WRITE_KILLS = (("before-write", 1), ("after-write", 1), ("before-write", 25), ("after-write", 25))
END_KILLS = (("merging", 1), ("merging", ROWS // 2), ("before-rename", 1), ("after-rename", 1))
CONCURRENCY = 32
UNWRITTEN = 64  # the most outcomes that wait for one commit


def answered(bench: Any) -> set[int]:
    """Return the rows that have a sound record."""
    return {record.row for record in bench.records()}


@pytest.mark.timeout(600)
@pytest.mark.thorough
def test_a_job_killed_at_any_moment_answers_each_row_once_in_order(bench: Any) -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    chance = random.Random(seed)
    rows = bench.prompts(ROWS)
    upstream = bench.upstream
    kills = 0
    lost_in_all = 0
    plans: list[tuple[str, int]] = [
        ("random", chance.randint(1, 2 * ROWS // RANDOM_KILLS // 3)) for _ in range(RANDOM_KILLS)
    ]
    plans += WRITE_KILLS
    chance.shuffle(plans)
    before: set[int] = set()

    def check(what: str) -> None:
        nonlocal before, lost_in_all
        eventually(lambda: not upstream.open)  # until what the dead process had sent is counted
        sent = upstream.seen[seen_before:]
        after = answered(bench)
        assert before <= after, f"{what}: answers were lost"
        lost = {int(seen.prompt.split()[1]) for seen in sent} - after
        assert len(sent) - len(after - before) == len(lost), f"{what}: a row was sent twice in one run"
        assert len(lost) <= CONCURRENCY + UNWRITTEN, f"{what}: {len(lost)} rows to pay for twice"
        lost_in_all += len(lost)
        before = after

    for point, number in plans:
        seen_before = len(upstream.seen)
        if point == "random":
            process = bench.start()
            while len(upstream.seen) - seen_before < number and process.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        else:
            process = bench.start(killed_at=f"{point}:{number}")
            process.communicate(timeout=180)
        assert process.returncode == -signal.SIGKILL, f"{point}:{number} ended with {process.returncode}"
        kills += 1
        check(f"{point}:{number}")
        assert not bench.output.exists()

    for point, number in END_KILLS:
        seen_before = len(upstream.seen)
        process = bench.start(killed_at=f"{point}:{number}")
        process.communicate(timeout=180)
        assert process.returncode == -signal.SIGKILL, f"{point}:{number} ended with {process.returncode}"
        kills += 1
        check(f"{point}:{number}")
        assert bench.output.exists() == (point == "after-rename"), "the output is there whole or not at all"

    assert kills >= 20
    seen_before = len(upstream.seen)
    found = bench.succeed()
    assert len(upstream.seen) == seen_before, "a finished job sent requests"
    assert (found["done"], found["failed"]) == (ROWS, 0)
    assert [(row["id"], row["prompt"], row["answer"]) for row in bench.answers()] == [
        (row["id"], row["prompt"], f"echo: {row['prompt']}") for row in rows
    ]
    assert all(row["error"] is None and row["finish_reason"] == "stop" for row in bench.answers())
    assert len(upstream.seen) == ROWS + lost_in_all, "requests were repeated beyond those in flight at a kill"
    assert [path.name for path in bench.path.iterdir() if path.name.endswith(".partial")] == []
    print(f"{kills} kills, {lost_in_all} requests repeated")


def workers_of(process: Any) -> list[psutil.Process]:
    """Return the worker processes of a runner."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.timeout(600)
def test_a_job_whose_workers_and_runner_are_killed_answers_each_row_once_in_order(bench: Any) -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    chance = random.Random(seed)
    rows = bench.prompts(1500)
    upstream = bench.upstream
    settings = {"num_workers": 2, "retries": 10}
    orphans: list[psutil.Process] = []
    worker_kills = runner_kills = 0

    while runner_kills < 4:
        process = bench.start(**settings)
        for _ in range(2):
            goal = len(upstream.seen) + chance.randint(20, 120)
            while len(upstream.seen) < goal and process.poll() is None:
                time.sleep(0.002)
            if victims := workers_of(process):
                chance.choice(victims).kill()
                worker_kills += 1
        goal = len(upstream.seen) + chance.randint(1, 60)
        while len(upstream.seen) < goal and process.poll() is None:
            time.sleep(0.002)
        orphans += workers_of(process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        runner_kills += 1
    eventually(lambda: not any(orphan.is_running() for orphan in orphans))

    bench.succeed(**settings)
    assert [(row["id"], row["answer"]) for row in bench.answers()] == [
        (row["id"], f"echo: {row['prompt']}") for row in rows
    ]
    repeated = len(upstream.seen) - len(rows)
    assert repeated <= runner_kills * (CONCURRENCY + UNWRITTEN) + worker_kills * CONCURRENCY
    print(f"{worker_kills} workers and {runner_kills} runners killed, {repeated} requests repeated")


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="an open file has a path there")
def test_workers_read_on_when_the_input_was_replaced(bench: Any) -> None:
    bench.upstream.reply = late(0.02, answer())
    rows = bench.prompts(800)
    process = bench.start(num_workers=2, retries=10)
    eventually(lambda: len(bench.upstream.seen) > 100)
    bench.input.unlink()
    bench.input.write_text('{"prompt": "another file"}\n' * 800)
    for victim in workers_of(process):
        victim.kill()
    process.communicate(timeout=180)
    assert process.returncode == 0
    assert [row["answer"] for row in bench.answers()] == [f"echo: {row['prompt']}" for row in rows]
