"""A job by batch that is killed at any point answers every row, is billed once for each, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from batch_server import BatchServer, answer_to
from promptmill.cli.main import main
from promptmill.features.batches import batch_round
from promptmill.jobs.store.folder import Folder
from waiting import PATIENCE_S, eventually

ROWS = 24
KILLED = Path(__file__).parents[2] / "support" / "killed.py"
PROVIDERS = ["openai", "azure", "anthropic", "gemini", "mistral"]
NAMES = {"gemini": "google"}
# a batch begins, is planned, its amount, the upload, the creation, its id, each look, its end, the fetched replies; and
# its rows, the replies, its last state
POINTS = [f"{side}-batch:{n}" for n in range(1, 8) for side in ("before", "after")]
POINTS += [f"{side}-{what}" for what in ("rows", "replies", "finish") for side in ("before", "after")]


@pytest.fixture(params=PROVIDERS)
def server(request, monkeypatch):
    monkeypatch.setattr(batch_round, "LIST_LAG_S", 0.3)  # as in the killed processes
    # a result is waited for if it is missing and counted, as by Anthropic, or if nothing is counted, as by Azure
    lost = 0 if request.param in {"azure", "anthropic"} else 9
    with BatchServer(request.param, missing=lost) as started:
        yield started


def command(folder: Path, server: BatchServer, point: str) -> list[str]:
    """Return the command, which is killed at a point, after writing its input and configuration."""
    (folder / "in.csv").write_text("text\n" + "".join(f"text {n}\n" for n in range(ROWS)), encoding="utf-8")
    price = {"input": 1, "output": 10, "batch": 0.5}
    provider = {"provider": NAMES.get(server.family, server.family)}
    block = {"base_url": server.base_url, "model_name": "m", "api_key": "k", **provider}
    settings = {"backend": "openai", "backend_configs": {"openai": block}, "price": price}
    (folder / "p.yaml").write_text(json.dumps(settings | {"sampling_params": {"max_tokens": 20}}), encoding="utf-8")
    words = [sys.executable, str(KILLED), point, "bulk", "in.csv", "out.csv", "--config", "p.yaml"]
    return [*words, "--prompt", "Say {{text}}", "--batch", "--poll", "0.1s", "--max-cost", "1", "--quiet"]


def killed(folder: Path, server: BatchServer, point: str) -> None:
    """Run the command up to a point, unless it ends before that."""
    words = command(folder, server, point)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode in {0, -9}, done.stderr[-2000:] + done.stdout[-2000:]


def run(folder: Path, server: BatchServer) -> int:
    """Run the command to its end, in this process, which has all modules already; return its exit code."""
    with contextlib.chdir(folder):
        return main(command(folder, server, "never")[3:])


def check_whole(folder: Path, server: BatchServer) -> None:
    with (folder / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        answers = {row["text"]: row["answer"] for row in csv.DictReader(file)}
    assert answers == {f"text {n}": answer_to(f"Say text {n}") for n in range(ROWS)}
    assert set(server.billed.values()) == {1}
    assert len(server.billed) == ROWS
    assert not server.left_files()
    assert not server.running()
    assert not server.never_read()
    assert not list(folder.rglob("batch-*.jsonl"))


@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_job_goes_on_with_its_batch(tmp_path, server, point):
    killed(tmp_path, server, point)
    assert run(tmp_path, server) == 0
    check_whole(tmp_path, server)


@pytest.mark.thorough
@pytest.mark.parametrize("held", ["upload", "create", "poll", "download", "live"])
def test_a_job_that_is_killed_during_a_request_finds_what_it_left(tmp_path, server, held):
    server.switches.held = held
    with subprocess.Popen(command(tmp_path, server, "never"), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: held not in server.switches.held or process.poll() is not None)
        process.kill()
    assert run(tmp_path, server) == 0
    if held != "live":  # a live request in flight is the only one that may be paid twice
        check_whole(tmp_path, server)


def waiting_job(folder: Path, server: BatchServer, point: str, *more: str) -> subprocess.Popen[bytes]:
    """Start the command, which is killed at a point, and wait until it looks at its batch."""
    server.switches.polls = 100_000
    process = subprocess.Popen([*command(folder, server, point), *more], cwd=folder, stderr=subprocess.DEVNULL)
    eventually(lambda: server.requests["poll"] > 0 or process.poll() is not None)
    return process


def cancel(folder: Path) -> None:
    """Ask for the cancellation of the folder's job, and return at once."""
    job = next(path for path in folder.rglob("job.db")).parent
    assert Folder(job).request_cancel()


@pytest.mark.thorough
@pytest.mark.parametrize("held", ["cancel", ""], ids=["asked", "stored"])
def test_a_job_that_is_killed_while_it_is_cancelled_collects_the_finished_part(tmp_path, server, held):
    """`asked`: the provider has the cancellation, and the job has not stored it; `stored`: it has."""
    server.switches.held = held
    with waiting_job(tmp_path, server, "never") as process:
        cancel(tmp_path)
        eventually(lambda: server.requests["cancel"] > 0)
        if not held:
            eventually(lambda: process.poll() is not None)
        process.kill()
    assert any(batch.cancelling for batch in server.batches.values())
    server.switches.polls = 1
    assert run(tmp_path, server) == 0
    check_whole(tmp_path, server)


@pytest.mark.thorough
def test_a_job_that_is_killed_while_it_cancels_at_its_time_collects_the_finished_part(tmp_path, server):
    server.switches.set({"held": "cancel", "slow_files": 0})  # Azure's files would be ready only after that time
    with waiting_job(tmp_path, server, "never", "--by", "8s") as process:
        eventually(lambda: server.requests["cancel"] > 0)
        process.kill()
    server.switches.polls = 1
    assert run(tmp_path, server) == 0
    check_whole(tmp_path, server)


def test_one_kill_of_each_kind(tmp_path):
    with BatchServer("openai", missing=9) as server:
        for point in ("after-batch:2", "after-batch:5", "before-finish"):
            killed(tmp_path, server, point)
        assert run(tmp_path, server) == 0
        check_whole(tmp_path, server)
