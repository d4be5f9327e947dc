"""Service statistics: calls in progress, and totals since the start."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from promptmill.backends.protocol import CallStats
from promptmill.core.errors import Code

_COUNTS = (
    *("done", "failed", "requests", "retries", "prompt_tokens", "completion_tokens"),
    *("cached", "repaired", "asked_again"),
)


class ServiceStats:
    """Counts by reading each call's `CallStats`, so that a call pays nothing for being counted."""

    def __init__(self) -> None:
        self.started = time.time()
        self._number = 0
        self._running: dict[int, CallStats] = {}
        self._ended: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()

    @contextlib.contextmanager
    def counted(self, stats: CallStats) -> Iterator[None]:
        """Count the call of `stats`, in progress until the end of the block."""
        self._number += 1
        number = self._number
        self._running[number] = stats
        try:
            yield
        finally:
            del self._running[number]
            self._add(stats)

    def unanswered(self, code: Code, count: int) -> None:
        """Count items that were left when something ended their call."""
        self._ended["done"] += count
        self._ended["failed"] += count
        self._codes[str(code)] += count

    def in_progress(self) -> list[dict[str, Any]]:
        """Return how far each running call is, the oldest first. `total` is None when nobody knows."""
        now = time.monotonic()
        return [
            {
                "done": stats.done,
                "total": stats.total,
                "failed": stats.failed,
                "in_flight": stats.in_flight,
                "seconds": round(now - stats.started, 1),
            }
            for stats in self._running.values()
        ]

    def totals(self) -> dict[str, Any]:
        """Return the sums over all calls since the start, running ones included. `errors` counts failures by code."""
        sums, codes = Counter(self._ended), Counter(self._codes)
        for stats in self._running.values():
            sums.update({name: getattr(stats, name) for name in _COUNTS})
            codes.update(stats.codes)
        counts = {"calls": self._number} | {name: sums[name] for name in _COUNTS}
        return counts | {"errors": dict(codes.most_common())}

    def _add(self, stats: CallStats) -> None:
        self._ended.update({name: getattr(stats, name) for name in _COUNTS})
        self._codes.update(stats.codes)
