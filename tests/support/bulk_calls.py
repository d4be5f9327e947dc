"""Calls of the bulk tools in tests: started, waited for, and agreed to by a user."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from mcp_types import ElicitResult

Call = Callable[..., Awaitable[dict[str, Any]]]


async def polled(
    ask: Callable[[], Awaitable[dict[str, Any]]], holds: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Ask again and again until `holds(answer)`; return that answer."""
    while not holds(found := await ask()):
        await asyncio.sleep(0.02)
    return found


async def ended(call: Call, job_id: str, *states: str) -> dict[str, Any]:
    """Wait until the job is in one of the states, as the tool reports it."""
    return await polled(lambda: call("bulk_status", job_id=job_id), lambda status: status["state"] in states)


async def cancelled(call: Callable[..., Awaitable[Any]], job_id: str) -> Any:
    """Cancel a job twice, which ends it without its requests in flight; return the second result."""
    await call("bulk_status", action="cancel", job_id=job_id)
    return await call("bulk_status", action="cancel", job_id=job_id)


async def ran(call: Call, *states: str, **arguments: Any) -> dict[str, Any]:
    """Start a job, of `in.jsonl` into `out.jsonl` unless these say otherwise; wait until it has ended."""
    files = {} if {"prompts", "files"} & arguments.keys() else {"input_file": "in.jsonl", "output_file": "out.jsonl"}
    job = await call("bulk_generate", **files | arguments)
    return job | await ended(call, job["job_id"], *states or ["finished"])


def asked_of(asked: list[str], action: Literal["accept", "decline", "cancel"], **content: bool) -> Any:
    async def answered(message: str, *_: Any) -> ElicitResult:
        asked.append(message)
        return ElicitResult(action=action, content=dict(content) or None)

    return answered
