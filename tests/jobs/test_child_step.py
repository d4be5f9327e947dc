"""A child process that calls a function of any module, with limits."""

from __future__ import annotations

import functools
import importlib
import sys

import pytest

from promptmill.core.bounds import MOST_SHARED
from promptmill.core.errors import PromptmillError
from promptmill.jobs.manage import child_step

_MODULE = """
import time
from pathlib import Path

from promptmill.jobs.store.database import Work

def of_stranger(path: Path, words: list[str]) -> dict[str, int]:
    return {word: path.read_text().count(word) for word in words}

def endless() -> int:
    while True:
        pass

def step(work: Work, computing_s: list[float]) -> int:
    for count, seconds in enumerate(computing_s):
        work.done(count)
        start = time.process_time()
        while time.process_time() - start < seconds:
            pass
    return len(computing_s)

def text(length: int) -> str:
    return "a" * length
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module of another package."""
    (tmp_path / "stranger.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("stranger")
    del sys.modules["stranger"]


@pytest.mark.processes
async def test_a_function_of_another_package_gets_its_arguments_in_the_child(stranger, tmp_path):
    (tmp_path / "rows.txt").write_text("a b a")
    call = functools.partial(stranger.of_stranger, path=tmp_path / "rows.txt", words=["a", "b"])
    environment = {"PYTHONPATH": str(tmp_path)}
    assert await child_step.done_apart(call, "rows.txt", environment, computing_s=60) == {"a": 2, "b": 1}


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
async def test_a_call_that_computes_too_long_is_ended(stranger, tmp_path):
    environment = {"PYTHONPATH": str(tmp_path)}
    with pytest.raises(PromptmillError, match=r"rows\.txt cannot be read: .*too much memory or time"):
        await child_step.done_apart(functools.partial(stranger.endless), "rows.txt", environment, computing_s=1)


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
async def test_a_step_may_compute_for_the_limit_after_each_look_at_its_work(stranger, tmp_path):
    environment, counts = {"PYTHONPATH": str(tmp_path)}, list[int]()
    step = functools.partial(child_step.done_apart, environment=environment, note=counts.append, computing_s=1)
    assert await step(functools.partial(stranger.step, computing_s=[0.6, 0.6, 0.0]), "rows.txt") == 3
    assert counts == [0, 1, 2]
    with pytest.raises(PromptmillError, match=r"rows\.txt cannot be read: .*too much memory or time"):
        await step(functools.partial(stranger.step, computing_s=[60.0]), "rows.txt")


@pytest.mark.processes
async def test_a_result_that_takes_too_much_memory_is_an_error(stranger, tmp_path):
    environment = {"PYTHONPATH": str(tmp_path)}
    call = functools.partial(stranger.text, length=MOST_SHARED + 1)
    with pytest.raises(PromptmillError, match="more than 64 MiB; choose fewer rows"):
        await child_step.done_apart(call, "rows.txt", environment, computing_s=60)
