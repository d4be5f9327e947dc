"""Progress notifications while a call works: first, last, and at most two a second between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
from fastmcp import Context

from promptmill.backends.protocol import CallStats
from promptmill.service.service import Service

T = TypeVar("T")
_PAUSE_S = 0.5
_TICK = 1e-6  # the protocol wants a number that grows each time


async def with_progress(ctx: Context, service: Service, stats: CallStats, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as a task of its own and tell the client how far it is, if it asked.

    A task of its own, because FastMCP cancels with an anyio scope, in which the work's clean-up could not wait.
    """
    task = asyncio.ensure_future(work)
    try:
        if not _is_wanted(ctx):
            return await asyncio.shield(task)
        told = 0.0
        await ctx.report_progress(told, stats.total, "starting")
        while not task.done():
            await asyncio.wait({task}, timeout=_PAUSE_S)
            following = max(stats.done, told + _TICK)
            if not task.done() and (stats.total is None or following < stats.total):
                told = following
                await ctx.report_progress(told, stats.total, _status(service, stats))
        last = told + _TICK if stats.total is None else max(stats.done, told + _TICK)
        if stats.total != 0:
            await ctx.report_progress(last, stats.total, "ready" if stats.total is None else _count(stats))
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with anyio.move_on_after(2, shield=True):
                await asyncio.wait({task})


def _is_wanted(ctx: Context) -> bool:
    context = ctx.request_context
    return context is not None and (context.meta or {}).get("progressToken") is not None


def _status(service: Service, stats: CallStats) -> str:
    if not stats.done and (activity := service.activity):
        return activity
    return "loading" if stats.total is None else _count(stats)


def _count(stats: CallStats) -> str:
    seconds = max(0.001, time.monotonic() - stats.started)
    failed = f", {stats.failed} failed" if stats.failed else ""
    retried = f", {stats.retries} retries" if stats.retries else ""
    return f"{stats.done} of {stats.total} done{failed}{retried}, {stats.done / seconds:.1f}/s"
