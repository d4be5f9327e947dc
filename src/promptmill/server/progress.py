"""Progress notifications during a call: at its start, at its end, and at most two a second in between.

A response that may still become JSON (`EitherResponse`) is a stream from its first notification on, and holds less. So
its call reports nothing in its first two seconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
from fastmcp import Context

from promptmill.backends.protocol import Call
from promptmill.http.json_response_workaround import RESPONSE
from promptmill.service.service import Service

T = TypeVar("T")
_PAUSE_S = 0.5
_FAST_S = 2.0
_CHANGE_S = 1.0  # before a changed text is reported without progress
_SILENCE_S = 5.0  # clients end a call that reports no progress
_STEP = 0.001  # the protocol requires a number that grows each time


async def with_progress(ctx: Context, service: Service, stats: Call, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a separate task, and report its progress to the client if the request asks for that.

    The task is separate because FastMCP cancels with an anyio scope, in which the clean-up of `work` could not wait.
    """
    task = asyncio.ensure_future(work)
    try:
        if not _is_wanted(ctx):
            return await asyncio.shield(task)
        if _may_be_json(ctx) and (await asyncio.wait({task}, timeout=_FAST_S))[0]:
            return task.result()
        reported = ReportedProgress(time.monotonic)
        await ctx.report_progress(0, stats.total, "starting")
        while not task.done():
            await asyncio.wait({task}, timeout=_PAUSE_S)
            words = _status(service, stats)
            if not task.done() and reported.is_news(stats, words):
                await ctx.report_progress(reported.number, stats.total, words)
        if stats.total != 0:
            reported.end(stats)
            await ctx.report_progress(reported.number, stats.total, "ready" if stats.total is None else _count(stats))
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with anyio.move_on_after(2, shield=True):
                await asyncio.wait({task})


class ReportedProgress:
    """The last progress report to a client, and its time.

    `number` is the number of finished items; while no item finishes, it grows a little with each report. For work
    without items it is the number of seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.number: float = 0
        self._words = "starting"
        self._clock = clock
        self._began = self._at = clock()

    def is_news(self, stats: Call, words: str) -> bool:
        """Return whether to report `words` now, and note the report. The final number is reserved for `end`."""
        silent_s = self._clock() - self._at
        done = self._reached(stats)
        if stats.total is not None and done >= stats.total:
            done = 0
        if done <= self.number and silent_s < (_SILENCE_S if words == self._words else _CHANGE_S):
            return False
        self._grow(done)
        self._words, self._at = words, self._clock()
        return True

    def end(self, stats: Call) -> None:
        """Set `number` to its final value."""
        self._grow(self._reached(stats))

    def _reached(self, stats: Call) -> int:
        return int(self._clock() - self._began) if stats.total is None else stats.done

    def _grow(self, done: int) -> None:
        """Set `number` to `done` if that is larger; else add a thousandth, without reaching the next whole number."""
        left = math.floor(self.number) + 1 - self.number
        more = round(self.number + _STEP, 3) if left > 2 * _STEP else self.number + left / 2
        self.number = max(done, more)


def _is_wanted(ctx: Context) -> bool:
    context = ctx.request_context
    return context is not None and (context.meta or {}).get("progressToken") is not None


def _may_be_json(ctx: Context) -> bool:
    context = ctx.request_context
    return context is not None and context.request is not None and context.request.scope.get(RESPONSE) is not None


def _status(service: Service, stats: Call) -> str:
    if not stats.done and (activity := service.activity):
        return activity
    return "loading" if stats.total is None else _count(stats)


def _count(stats: Call) -> str:
    parts = [f"{stats.done:,} of {stats.total:,} done"]
    if stats.failed:
        parts.append(f"{stats.failed:,} failed")
    if stats.retries:
        parts.append(f"{stats.retries:,} retries")
    if waiting := stats.waiting:
        parts.append(waiting)
    elif stats.done:
        rate = stats.done / max(0.001, time.monotonic() - stats.started)
        parts.append(_rate(rate))
        if left := (stats.total or 0) - stats.done:
            parts.append(f"about {_duration(left / rate)} left")
    return ", ".join(parts)


def _rate(per_second: float) -> str:
    if per_second >= 1:
        return f"{per_second:,.1f}/s" if per_second < 10 else f"{per_second:,.0f}/s"
    return f"{per_second * 60:.1f}/min"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
