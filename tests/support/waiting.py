"""Waiting until something is true. The limit only ends a test that hangs; no test asserts how long a wait takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 120.0
_STEP_S = 0.005


def eventually(condition: Callable[..., object]) -> None:
    """Wait until `condition()`, in the thread of the test."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        time.sleep(_STEP_S)


async def until(condition: Callable[..., object]) -> None:
    """Wait until `condition()`, on the test's event loop."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        await asyncio.sleep(_STEP_S)
