"""Answers for clients that give up after ten seconds: after nine seconds, a reply asks them to repeat the request.

The work continues, and a request with the same body finds it: a client that repeats its request gets the answer, and
the work is done once. Work that no client requests again is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")
WAIT_S = 9.0
"""TypeSafe's clients give up an attempt after 10 s, and all attempts after 30 s."""
KEPT_S = 30.0
MOST_KEPT = 64
"""The most pieces of work whose clients were asked to repeat their request: each holds its request in memory."""


class NotYetError(Exception):
    """The work takes longer than its client waits."""


class Patience(Generic[T]):
    """The tasks that are in progress, each under its key."""

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._kept_s = kept_s
        self._tasks: dict[bytes, asyncio.Task[T]] = {}
        self._clients: dict[bytes, int] = {}
        self._ends: dict[bytes, asyncio.TimerHandle] = {}
        self._promised = set[bytes]()
        """The keys of work whose client was asked to repeat its request."""

    async def result(self, key: bytes, work: Callable[[], Coroutine[Any, Any, T]], wait_s: float | None = None) -> T:
        """Return the result of the work with this key, which begins now or has begun earlier. Raises `NotYetError`
        after `wait_s`, and the errors of the work."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(work())
        if (end := self._ends.pop(key, None)) is not None:
            end.cancel()
        self._clients[key] = self._clients.get(key, 0) + 1
        try:
            done, _ = await asyncio.wait({task}, timeout=wait_s)
            if not done and (key in self._promised or len(self._promised) < MOST_KEPT):
                self._promised.add(key)
                raise NotYetError
            await asyncio.wait({task})
            self._promised.discard(key)
            return task.result()
        finally:
            self._left(key)

    def _left(self, key: bytes) -> None:
        self._clients[key] -= 1
        if self._clients[key]:
            return
        del self._clients[key]
        if key in self._promised:
            self._ends[key] = asyncio.get_running_loop().call_later(self._kept_s, self._end, key)
        else:
            self._end(key)

    def _end(self, key: bytes) -> None:
        self._ends.pop(key, None)
        self._promised.discard(key)
        task = self._tasks.pop(key)
        task.cancel()
        if task.done() and not task.cancelled():
            task.exception()  # read it, or asyncio logs an unread exception

    async def aclose(self) -> None:
        """End all work."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
