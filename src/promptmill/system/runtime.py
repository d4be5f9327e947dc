"""The set-up of this process: event loop, garbage collector, cores and file descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
CGROUP = Path("/sys/fs/cgroup")
# A thread's longest wait for the GIL of a busy event loop. One thread reads a ping, another writes it. Next to a full
# pool, this takes up to 47 ms (99th percentile) with Python's 5 ms, and 26 ms with this value. The throughput is equal.
_SWITCH_S = 0.0005


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on a new event loop and return its result."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(work)


def run_anywhere(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; in a separate thread if this thread already runs an event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run(work)
    stop: list[Callable[[], object]] = []

    async def stoppable() -> T:
        running, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stop.append(lambda: running.call_soon_threadsafe(task.cancel))
        return await work

    with ThreadPoolExecutor(1, thread_name_prefix="promptmill") as thread:
        result = thread.submit(run, stoppable())
        try:
            return result.result()
        except KeyboardInterrupt:
            if stop and not result.done():
                with contextlib.suppress(RuntimeError):  # the work has just ended, and its event loop is closed
                    stop[0]()
            raise


def in_daemon_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Start `work` in a thread that does not delay the end of the process. The future has the result or the error."""
    future = Future[T]()
    future.set_running_or_notify_cancel()  # a caller that is cancelled does not cancel the work

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised by `result`)
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def start_quickly() -> None:
    """Save a tenth of a server's start time: collect no garbage until `stay_responsive`, and search for no plugins.

    For its first model, pydantic would read the metadata of every installed package to find pydantic plugins.
    """
    gc.disable()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def stay_responsive() -> None:
    """Keep pauses short in this process: collect cyclic garbage seldom, and switch threads often.

    By default, 100,000 prompts cause several full collections of 0.2 s or more, during which the process answers no
    request. Prompts and answers have no cycles, and imported objects never become garbage.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()
    sys.setswitchinterval(_SWITCH_S)


def without_telemetry() -> None:
    """Hide the package with which OpenVINO, when imported, reports to its makers and writes into the home folder."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO then uses a stub


def usable_cores() -> int:
    """Return the number of cores permitted by affinity and the container's quota, including hyper-threads."""
    affinity = getattr(os, "sched_getaffinity", None)  # exists on Linux only
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        usable = min(usable, math.ceil(int(quota) / int(period)))  # "max" is not a number: no quota
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((CGROUP / "cpu/cpu.cfs_period_us").read_text())
        if quota_us > 0:
            usable = min(usable, math.ceil(quota_us / period_us))
    return max(1, usable)


def limit_memory(most: int) -> None:
    """Make allocations beyond `most` bytes fail with `MemoryError` (on Linux only)."""
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def limit_computing(seconds: float) -> None:
    """End this process after `seconds` more of processor time. A later call restarts the limit.

    The system ends the process, because Python runs no handlers during a long operation. On Windows, do nothing.
    """
    if sys.platform != "win32":
        import signal

        signal.setitimer(signal.ITIMER_PROF, seconds)


def descriptors(wanted: int) -> int:
    """Raise the soft limit of file descriptors to `wanted` if it is lower. Return the resulting limit.

    If there is no limit, return `wanted`.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted:
        goal = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
            soft = goal
        except (ValueError, OSError):  # macOS has a lower limit
            pass
    return soft


class HaltedError(Exception):
    """The run has ended and no longer needs the result."""
