"""This process: its event loop, garbage collector, cores and file descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
CGROUP = Path("/sys/fs/cgroup")
# How long a thread waits for a busy event loop to let it in. At Python's 5 ms a ping, which a thread reads and another
# writes, takes up to 47 ms beside a full pool; at this 26 (99th percentile), at the same rate.
_SWITCH_S = 0.0005


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on an event loop of its own and return its result."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(work)


def run_anywhere(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, in a thread of its own where this one runs an event loop already (a notebook)."""
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
                with contextlib.suppress(RuntimeError):  # its loop is closed: it has just ended
                    stop[0]()
            raise


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def start_quickly() -> None:
    """Search for no cyclic garbage until `stay_responsive`: a seventh of the imports' time is such searches."""
    gc.disable()


def stay_responsive() -> None:
    """Keep pauses short in a process of ours: look for cyclic garbage seldom, and let threads in at once.

    By default 100,000 prompts make several full searches of 0.2 s and more, in which the process answers nobody.
    Prompts and answers hold no cycles, and what the imports left is never garbage.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()
    sys.setswitchinterval(_SWITCH_S)


def usable_cores() -> int:
    """Return the cores that affinity and the container's quota leave to this process, hyper-threads included."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
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
    """Make this process fail with `MemoryError` where it would take more than `most` bytes; Linux alone does."""
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def descriptors(wanted: int) -> int:
    """Return how many descriptors this process may have, having raised its soft limit to `wanted` where it was lower.

    At least `wanted` where nothing limits them.
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
        except (ValueError, OSError):  # macOS has a lower ceiling of its own
            pass
    return soft
