"""The process of a detached job ends, whatever a template of its caller computes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from promptmill.jobs.run import detached
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.folder import Folder
from promptmill.system import runtime
from waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such timer")


def test_a_process_that_computes_in_one_operation_is_ended_by_the_system():
    code = "from promptmill.system import runtime; runtime.limit_computing(0.05); 10 ** 10 ** 9"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGPROF


@pytest.mark.processes
async def test_a_runner_may_go_on_computing_until_its_job_is_cancelled(tmp_path, monkeypatch):
    limits: list[float] = []
    looked = asyncio.Event()

    def limit(seconds: float) -> None:
        limits.append(seconds)
        if len(limits) == 2:
            looked.set()

    monkeypatch.setattr(runtime, "limit_computing", limit)
    monkeypatch.setattr(detached, "_LOOK_S", 0.0)
    job: Any = SimpleNamespace(folder=Folder(tmp_path))
    watching = asyncio.ensure_future(detached._end_if_stuck(job))
    await looked.wait()
    Control(cancel=True).write(tmp_path)
    await asyncio.sleep(0)
    limits.clear()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not limits
    watching.cancel()


@pytest.mark.processes
async def test_a_second_cancel_ends_a_runner_whose_event_loop_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "limit_computing", lambda _: None)
    monkeypatch.setattr(detached, "_LOOK_S", 0.001)
    monkeypatch.setattr(detached, "_DEAF_S", 0.1)
    has_ended, job = threading.Event(), cast("Any", SimpleNamespace(folder=Folder(tmp_path)))
    watching = asyncio.ensure_future(detached._end_if_stuck(job, has_ended.set))
    await asyncio.sleep(0)
    Control(cancel=True).write(tmp_path)
    assert not has_ended.wait(0.3), "the event loop stands still, and the first cancel waits for requests in flight"
    Control(cancel=True, at_once=True).write(tmp_path)
    assert has_ended.wait(PATIENCE_S)
    watching.cancel()
