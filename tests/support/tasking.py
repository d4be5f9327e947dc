"""A client that takes tasks (SEP-2663): `call_tool` follows them, and the handles that it got are in `handles`.

tasking = Tasking()
async with Client(server, extensions=[tasking]) as client:
    result = await client.call_tool("generate", …)      # polls, when the server answers with a task
    state = await ask(client, "get", tasking.handles[0])
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from fastmcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import CallToolResult, Request, RequestParams, Result
from pydantic import ConfigDict

EXTENSION = "io.modelcontextprotocol/tasks"
_POLL_S = 0.05


class Handle(Result):
    """The answer to a call that became a task."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    status_message: str
    created_at: str
    last_updated_at: str
    ttl_ms: int
    poll_interval_ms: int


class _Params(RequestParams):
    task_id: str


class _Request(Request[_Params, str]):
    name_param = "taskId"


class State(Result):
    """The answer to a method of tasks, with all its fields in `model_extra`."""

    model_config = ConfigDict(extra="allow")


class Tasking(ClientExtension):
    """The client's half of the extension. `follows` False: a call of a task returns without waiting for it."""

    identifier = EXTENSION

    def __init__(self, *, follows: bool = True) -> None:
        self.handles: list[Handle] = []
        self._follows = follows

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Claim the handles of tasks."""
        return [ResultClaim(result_type="task", model=Handle, resolve=self._resolve)]

    async def _resolve(self, handle: Handle, context: ClaimContext) -> CallToolResult:
        self.handles.append(handle)
        while self._follows:
            found = await _asked(context.session, "get", handle.task_id)
            if found["status"] != "working":
                return CallToolResult.model_validate(found["result"])
            await asyncio.sleep(_POLL_S)
        return CallToolResult(content=[], structured_content={"ans_ls": []})


async def ask(client: Client[Any], method: str, task_id: str) -> dict[str, Any]:
    """Return the answer of `tasks/<method>`."""
    return await _asked(client.session, method, task_id)


async def ended(client: Client[Any], task_id: str) -> dict[str, Any]:
    """Poll a task until it has ended; return its state."""
    while (found := await ask(client, "get", task_id))["status"] == "working":
        await asyncio.sleep(_POLL_S)
    return found


async def _asked(session: Any, method: str, task_id: str) -> dict[str, Any]:
    request = _Request(method=f"tasks/{method}", params=_Params(task_id=task_id))
    state = await session.send_request(request, State)
    return dict(state.model_extra or {})
