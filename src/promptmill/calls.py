"""The calls of a service: those in progress, and what all of them together have cost since its start."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from promptmill.backends.protocol import Scope
from promptmill.errors import Code

_COUNTS = ("done", "failed", "requests", "retries", "prompt_tokens", "completion_tokens")


class Calls:
    """Counts by reading the scopes, so that a call pays nothing for being counted."""

    def __init__(self) -> None:
        self.started = time.time()
        self._number = 0
        self._running: dict[int, Scope] = {}
        self._ended: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()

    @contextlib.contextmanager
    def counted(self, scope: Scope) -> Iterator[None]:
        """Count the call of `scope`, in progress until the end of the block."""
        self._number += 1
        number = self._number
        self._running[number] = scope
        try:
            yield
        finally:
            del self._running[number]
            self._add(scope)

    def unanswered(self, code: Code, count: int) -> None:
        """Count items that were left when something ended their call."""
        self._ended["done"] += count
        self._ended["failed"] += count
        self._codes[str(code)] += count

    def split(self, scope: Scope, left: int) -> Scope:
        """Return what the call of `scope` has cost so far; from now on `scope` counts its `left` last items alone."""
        before = replace(scope, codes=dict(scope.codes), warnings=dict(scope.warnings))
        self._add(before)
        for name in _COUNTS:
            setattr(scope, name, 0)
        scope.codes.clear()
        scope.total, scope.started = left, time.monotonic()
        return before

    def in_progress(self) -> list[dict[str, Any]]:
        """Return how far each running call is, the oldest first. `total` is None when nobody knows."""
        now = time.monotonic()
        return [
            {
                "done": scope.done,
                "total": scope.total,
                "failed": scope.failed,
                "in_flight": scope.in_flight,
                "seconds": round(now - scope.started, 1),
            }
            for scope in self._running.values()
        ]

    def totals(self) -> dict[str, Any]:
        """Return the sums over all calls since the start, running ones included. `errors` counts failures by code."""
        sums, codes = Counter(self._ended), Counter(self._codes)
        for scope in self._running.values():
            sums.update({name: getattr(scope, name) for name in _COUNTS})
            codes.update(scope.codes)
        counts = {"calls": self._number} | {name: sums[name] for name in _COUNTS}
        return counts | {"errors": dict(codes.most_common())}

    def _add(self, scope: Scope) -> None:
        self._ended.update({name: getattr(scope, name) for name in _COUNTS})
        self._codes.update(scope.codes)
