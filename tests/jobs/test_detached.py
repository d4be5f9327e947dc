"""The process of a detached job ends, whatever a template of its caller computes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from promptmill.jobs.manage import detached
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.folder import Folder
from promptmill.system import runtime

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
    await watching
