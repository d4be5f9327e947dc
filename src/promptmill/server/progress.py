"""Progress notifications while a call works: first, last, and at most two a second between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
from fastmcp import Context

from promptmill.backends.protocol import Scope
from promptmill.service import Service

T = TypeVar("T")
_PAUSE_S = 0.5
_TICK = 1e-6  # the protocol wants a number that grows each time


async def with_progress(ctx: Context, service: Service, scope: Scope, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as a task of its own and tell the client how far it is, if it asked.

    A task of its own, because FastMCP cancels with an anyio scope, in which the work's clean-up could not wait.
    """
    task = asyncio.ensure_future(work)
    try:
        if not _is_wanted(ctx):
            return await asyncio.shield(task)
        told = 0.0
        await ctx.report_progress(told, scope.total, "starting")
        while not task.done():
            await asyncio.wait({task}, timeout=_PAUSE_S)
            following = max(scope.done, told + _TICK)
            if not task.done() and (scope.total is None or following < scope.total):
                told = following
                await ctx.report_progress(told, scope.total, _status(service, scope))
        last = told + _TICK if scope.total is None else max(scope.total, _TICK)
        if scope.total != 0:
            await ctx.report_progress(last, scope.total, "ready" if scope.total is None else _count(scope))
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with anyio.move_on_after(2, shield=True):
                await asyncio.wait({task})


def _is_wanted(ctx: Context) -> bool:
    context = ctx.request_context
    return context is not None and (context.meta or {}).get("progressToken") is not None


def _status(service: Service, scope: Scope) -> str:
    if not scope.done and (activity := service.activity):
        return activity
    return "loading" if scope.total is None else _count(scope)


def _count(scope: Scope) -> str:
    seconds = max(0.001, time.monotonic() - scope.started)
    failed = f", {scope.failed} failed" if scope.failed else ""
    retried = f", {scope.retries} retries" if scope.retries else ""
    return f"{scope.done} of {scope.total} done{failed}{retried}, {scope.done / seconds:.1f}/s"
