"""Runners and steps of jobs in threads of the test, in place of processes, each of which imports for half a second."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.files import disk
from promptmill.jobs.manage import child_step
from promptmill.jobs.run import detached
from promptmill.jobs.run.process_call import arguments_of, plain
from promptmill.jobs.run.runner import Runner
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.folder import Folder
from promptmill.system import frames, runtime, subprocesses

T = TypeVar("T")
_ENDS_S = 60.0


class _Pipe(io.BytesIO):
    sent = b""

    def close(self) -> None:
        self.sent = self.getvalue()
        super().close()


class _RunnerHere:
    """What `detached` takes for the process of a runner."""

    def __init__(self, module: str, environment: Mapping[str, str], log: int, inherited: int | None) -> None:
        del module, environment, log
        assert inherited is not None
        self.stdin = _Pipe()
        self._lock = os.dup(inherited)

    def wait(self) -> None:
        called = frames.read(io.BytesIO(self.stdin.sent))
        assert called is not None
        with contextlib.suppress(asyncio.CancelledError):  # its test has ended
            detached._run_job(**arguments_of(detached._run_job, called["arguments"] | {"lock": self._lock}))


async def _done_here(
    call: functools.partial[T],
    name: str,
    environment: Mapping[str, str] | None = None,
    *,
    computing_s: float,
    note: Callable[[int], None] | None = None,
) -> T:
    """Do a step as `child_step.done_apart` does, its arguments packed and unpacked."""
    del environment, computing_s
    loop, halt = asyncio.get_running_loop(), threading.Event()

    def noted(count: int) -> None:
        if note is not None:
            loop.call_soon_threadsafe(note, count)

    def do() -> T:
        with contextlib.ExitStack() as opened:
            arguments = arguments_of(call.func, plain(call.keywords))
            if isinstance(folder := arguments.get("folder"), Folder):
                opened.callback(folder.close)
                folder.open()
            try:
                return call.func(*([Work(noted, halt)] if child_step.takes_work(call.func) else ()), **arguments)
            except OSError as error:
                raise disk.unusable(error, folder and str(folder.path)) from None

    try:
        return await asyncio.to_thread(do)
    finally:
        halt.set()


@contextlib.contextmanager
def in_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `detached` and `child_step` start no process; at the end, end the runners that are left."""
    running: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}

    async def until_ended(*given: Any) -> tuple[Any, PromptmillError | None, bool]:
        task = asyncio.ensure_future((runner := Runner(*given)).run())
        running[task] = asyncio.get_running_loop()
        try:
            return await task, runner.progress.error, False
        finally:
            del running[task]

    async def nothing(_: object) -> None: ...

    unlimited = dict.fromkeys(("limit_memory", "limit_computing"), lambda _: None)
    monkeypatch.setattr(subprocesses, "started_detached", _RunnerHere)
    monkeypatch.setattr(child_step, "done_apart", _done_here)
    monkeypatch.setattr(detached, "until_ended", until_ended)
    monkeypatch.setattr(detached, "_end_if_stuck", nothing)
    monkeypatch.setattr(detached, "sys", SimpleNamespace(platform=sys.platform, stderr=io.StringIO()))
    for module in (child_step, detached):
        monkeypatch.setattr(module, "runtime", SimpleNamespace(**vars(runtime) | unlimited))
    yield
    ended, until = set[asyncio.Task[Any]](), time.monotonic() + _ENDS_S
    while [each for each in threading.enumerate() if each.name.startswith("job ")] and time.monotonic() < until:
        for task, loop in list(running.items()):
            if task not in ended:
                ended.add(task)
                with contextlib.suppress(RuntimeError):  # it has just ended
                    loop.call_soon_threadsafe(task.cancel)
        time.sleep(0.01)
