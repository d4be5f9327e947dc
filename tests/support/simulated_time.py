"""Simulated time: an event loop that skips its waits, so that a minute takes no time and each wait its exact length.

A test marked `simulated` runs on it together with its upstreams: client and endpoint share one loop, and
`time.monotonic` is the loop's clock. The clock stands still while anything happens. Where nothing is ready to be
read or run, it is set to the next timer.

           ready now?  ──yes──▶ run it, at the same time
               │no
      a thread at work? ─yes──▶ wait for it, at the same time
               │no
               ▼
    clock = time of the next timer
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any

_DELIVERY_S = 0.0005
"""What the system may take to deliver bytes from one socket of this process to another."""
_TRIES = 20
"""How often it gets this time while it ends a wait late, too: it is busy."""


class _Skipping(selectors.DefaultSelector):
    """Waits for sockets and threads, and skips the wait for a timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = time.monotonic()
        self.threads = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self.threads:
            return super().select(None)
        for _ in range(_TRIES):
            began = time.perf_counter()
            ready = super().select(_DELIVERY_S)
            if ready or time.perf_counter() < began + 4 * _DELIVERY_S:
                break
        if not ready:
            self.now += max(0.0, timeout or 0.0)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is simulated."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        """Return the simulated time."""
        return self._skipping.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Run `func` in a thread, for which the clock waits."""
        future = super().run_in_executor(executor, func, *args)
        self._skipping.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self._skipping.threads -= 1
