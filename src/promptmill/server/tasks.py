"""MCP tasks (SEP-2663): a long call immediately returns a handle, and any process can return its result later.

    tools/call ──▶ the call, as a job ──▶ done in time: its result
                          │ longer, or large
                          ▼
                     job call-… ◀── tasks/get: its status, at the end the result; resumes it after a kill
                                ◀── tasks/cancel: ends it

A task is the job of a call (`jobs.manage.deferred_call`), and its id is the job's id, which is random. The job's folder
has all data about the task, so any server of the same user can answer the owner's requests about it. No task has the
status `failed`, which MCP uses for protocol errors: a job that stopped has a result with the answers so far.

In the 2025-11-25 form, the client requests a task by `task` in a call's parameters, and fetches the result with
`tasks/result`. The SDK does not support handlers for this form, so `Tasks.in_old_form` replaces the SDK's reply.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict, cast

import mcp_types
from fastmcp import Context
from fastmcp.server.extensions import MethodBinding, ServerExtension
from fastmcp.tools import ToolResult
from fastmcp.tools.base import InputRequiredToolResult
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel

from promptmill.backends.protocol import Call, Counts, Facts, Failure, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict, JsonObject
from promptmill.jobs.caller import Caller
from promptmill.server.results import result_of
from promptmill.server.tool_calls import owner_of
from promptmill.service.service import Service

if TYPE_CHECKING:
    from promptmill.jobs.manage.deferred_call import CallTask
    from promptmill.jobs.manage.server_jobs import ServerJobs
    from promptmill.jobs.store.folder import Folder

EXTENSION = "io.modelcontextprotocol/tasks"
_LARGE = 100  # a call with at least this many prompts is a task from the start
_SOON_S = 5.0
_TTL_S = 7 * 86_400
_POLL_MS = (1000, 10_000)
_POLLS = 10  # the number of polls that a client is asked to make in a job's remaining time
_OLD = "2025-11-25"
_WANTED = "promptmill/task"  # a call asks for a task by this key of its `_meta`; the result has the task's handle there
_RELATED = "io.modelcontextprotocol/related-task"
_CAPABILITY: JsonObject = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}


class _Note(TypedDict):
    """The facts about a task that its job stores."""

    prompts: int
    model: str
    chosen: str | None
    expires: float


class _State(TypedDict):
    """The state of a task in the protocol."""

    taskId: str
    status: str
    statusMessage: str
    createdAt: str
    lastUpdatedAt: str
    ttlMs: int
    pollIntervalMs: int


def limit_s(ctx: Context, prompts: int) -> float | None:
    """Return the seconds after which a call of `prompts` prompts becomes a task; None for clients without tasks."""
    context = ctx.request_context
    if context is None:
        return None
    if context.protocol_version == _OLD:
        return 0.0 if _WANTED in (context.meta or {}) else None
    is_modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
    if not is_modern or ctx.client_extension_settings(EXTENSION) is None:
        return None
    return 0.0 if prompts >= _LARGE else _SOON_S


def task_of(ctx: Context, prompts: int, config: ModelConfig) -> CallTask:
    """Return the task that the call may become."""
    from promptmill.jobs.manage.deferred_call import CallTask

    context = ctx.request_context
    note: _Note = {
        "prompts": prompts,
        "model": config.name,
        "chosen": config.chosen,
        "expires": time.time() + _TTL_S,
    }
    return CallTask(note, is_required=context is not None and context.protocol_version == _OLD)


class Started(InputRequiredToolResult):
    """The result of a call that became a task. FastMCP sends the content of this object instead of a tool result."""

    input_required: Any

    def __init__(self, task: _State) -> None:
        BaseModel.__init__(self, content=[], input_required={"resultType": "task", **task})


async def started(ctx: Context, server_jobs: ServerJobs, job_id: str) -> ToolResult:
    """Return the handle of a task, whose job is already stored and survives a power loss."""
    task = await asyncio.to_thread(lambda: _Task(server_jobs.folders.loose(job_id)).state())
    is_old = ctx.request_context is not None and ctx.request_context.protocol_version == _OLD
    return ToolResult([], meta={_WANTED: _old(task)}) if is_old else Started(task)


def _old(task: _State) -> JsonDict:
    """Return the fields of a task in the form of 2025-11-25."""
    names = {"ttlMs": "ttl", "pollIntervalMs": "pollInterval"}
    return {names.get(name, name): value for name, value in task.items()}


class _TaskParams(mcp_types.RequestParams):
    task_id: str


class Tasks(ServerExtension):
    """The methods `tasks/get`, `tasks/update` and `tasks/cancel`; for 2025-11-25 also `tasks/result`."""

    identifier = EXTENSION

    def __init__(self, service: Service, server_jobs: Callable[[], ServerJobs]) -> None:
        self._service = service
        self._server_jobs = server_jobs

    def methods(self) -> Sequence[MethodBinding]:
        """Return the methods and their handlers."""
        new, old = frozenset(MODERN_PROTOCOL_VERSIONS), frozenset({_OLD})
        return [
            MethodBinding("tasks/get", _TaskParams, self._get, new | old),
            MethodBinding("tasks/update", _TaskParams, self._update, new),
            MethodBinding("tasks/cancel", _TaskParams, self._cancel, new | old),
            MethodBinding("tasks/result", _TaskParams, self._payload, old),
        ]

    async def in_old_form(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """SDK middleware: replies with a task's handle to a call that has `task` in the 2025-11-25 form."""
        params = ctx.params or {}
        if ctx.method != "tools/call" or ctx.protocol_version != _OLD or params.get("task") is None:
            return await call_next(ctx)
        tool, meta = await self.server.get_tool(str(params.get("name"))), params.get("_meta")
        if tool is not None and not tool.task_config.supports_tasks():
            raise MCPError(mcp_types.METHOD_NOT_FOUND, f"{tool.name} cannot be called as a task.")
        marked = {**params, "_meta": {**(meta if isinstance(meta, Mapping) else {}), _WANTED: True}}
        result = await call_next(replace(ctx, params=marked))
        result_fields: dict[str, Any] = dict(result) if isinstance(result, Mapping) else {}
        if (task := result_fields.get("_meta", {}).get(_WANTED)) is None:
            text = " ".join(block.get("text", "") for block in result_fields.get("content", ()))
            raise MCPError(mcp_types.INVALID_PARAMS, f"The call did not become a task: {text}")
        return {"task": task}

    async def _payload(self, ctx: ServerRequestContext[Any, Any], params: _TaskParams) -> JsonDict:
        """Wait for the end of a task, and return its result."""
        task, state = await self._current(ctx, params)
        while state["status"] == "working":
            await asyncio.sleep(state["pollIntervalMs"] / 1000)
            task, state = await self._current(ctx, params)
        result = await self._result(task)
        del result["resultType"]
        return {**result, "_meta": {**result.get("_meta", {}), _RELATED: {"taskId": params.task_id}}}

    async def _current(self, ctx: ServerRequestContext[Any, Any], params: _TaskParams) -> tuple[_Task, _State]:
        """Return a task and its state. An interrupted task is resumed first."""
        task = await self._found(ctx, params.task_id)
        if task.is_interrupted:
            task = await self._resumed(task, _caller(ctx))
        return task, await asyncio.to_thread(task.state)

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: _TaskParams) -> JsonDict:
        """Return the state of a task and, if the task has completed, its result."""
        task, state = await self._current(ctx, params)
        if ctx.protocol_version == _OLD:
            return _old(state)
        result = {"result": await self._result(task)} if state["status"] == "completed" else {}
        return {"resultType": "complete", **state, **result}

    async def _update(self, ctx: ServerRequestContext[Any, Any], params: _TaskParams) -> JsonDict:
        """Accept answers to questions. promptmill's tasks ask none."""
        await self._found(ctx, params.task_id)
        return {"resultType": "complete"}

    async def _cancel(self, ctx: ServerRequestContext[Any, Any], params: _TaskParams) -> JsonDict:
        """End a task. A task that has already ended is not changed."""
        task = await self._found(ctx, params.task_id)
        if not task.has_ended:
            await self._server_jobs().cancel(params.task_id, _caller(ctx), is_call=True)
        elif ctx.protocol_version == _OLD:
            raise MCPError(mcp_types.INVALID_PARAMS, "The task has ended.")
        return await self._get(ctx, params) if ctx.protocol_version == _OLD else {"resultType": "complete"}

    async def _found(self, ctx: ServerRequestContext[Any, Any], task_id: str) -> _Task:
        """Return a task of this client. Raises `MCPError`."""
        if ctx.protocol_version != _OLD and self.client_settings(ctx) is None:
            undeclared = f"The request does not declare the extension {EXTENSION}."
            raise MCPError(mcp_types.MISSING_REQUIRED_CLIENT_CAPABILITY, undeclared, _CAPABILITY)
        name = None if ctx.request is None else ctx.request.headers.get("mcp-name")
        if name not in {None, task_id}:
            raise MCPError(mcp_types.HEADER_MISMATCH, "The header Mcp-Name is not the task's id.")
        server_jobs = self._server_jobs()

        def found() -> _Task | None:
            try:
                task = _Task(server_jobs.visible.find(task_id, _caller(ctx)))
            except PromptmillError:
                return None
            return None if not task.note or task.is_expired else task

        if (task := await asyncio.to_thread(found)) is None:
            raise MCPError(mcp_types.INVALID_PARAMS, f"There is no task {task_id[:60]!r}.")
        return task

    async def _resumed(self, task: _Task, caller: Caller) -> _Task:
        """Resume or queue the task's job, and return the task. Its state is `stopped` if the job cannot be resumed."""
        job_id, error = task.folder.job_id, None
        try:
            await self._server_jobs().resume(job_id, self._service.offered_config(task.note["model"]), caller)
        except PromptmillError as refused:
            error = None if refused.code is Code.RATE_LIMITED else refused  # the next poll tries again
        resumed = await asyncio.to_thread(lambda: _Task(task.folder))
        if error is not None and resumed.is_interrupted:
            resumed.status |= {"state": "stopped", "reason": str(error), "code": error.code}
        return resumed

    async def _result(self, task: _Task) -> JsonDict:
        outcomes = await asyncio.to_thread(task.outcomes)
        call = task.call(several_models=len(self._service.models) > 1)
        try:
            config = self._service.offered_config(task.note["model"])
        except PromptmillError:  # the operator has removed the model
            config = self._service.config

        async def kept(_: Sequence[Outcome]) -> str:
            return task.folder.job_id  # the job has finished, so it has all answers

        async with Context(fastmcp=self.server) as context:
            result = (await result_of(context, outcomes, call, config, kept)).to_mcp_result()
        assert isinstance(result, mcp_types.CallToolResult)
        return result.model_dump(by_alias=True, mode="json", exclude_none=True)


class _Task:
    """A task, as its job's folder describes it. Reading it blocks the thread."""

    def __init__(self, folder: Folder) -> None:
        """Raises `PromptmillError` (`invalid_input`) if the job does not exist."""
        from promptmill.jobs.store import progress, status

        self.folder = folder
        self.note = cast("_Note", folder.task or {})
        self.status = status.read(folder)
        self.has_ended = self.status["state"] in progress.ENDED - {progress.INTERRUPTED}
        self.is_cancelled = self.status["state"] == progress.CANCELLED
        if self.status["state"] == progress.INTERRUPTED and folder.control.cancel:  # killed while it was cancelled
            self.has_ended = self.is_cancelled = True

    @property
    def is_interrupted(self) -> bool:
        """Whether no process runs the unfinished job: it waits for a place, or its process has ended."""
        return not self.has_ended and self.status["state"] == "interrupted"

    @property
    def is_expired(self) -> bool:
        """Whether the `ttlMs` given to the client has passed."""
        return time.time() > float(self.note.get("expires", 0.0))

    def state(self) -> _State:
        """Return the state in the protocol, without the result."""
        status, created = self.status, float(self.status["created"])
        answered, failed = status.get("done", 0) - status.get("failed", 0), status.get("failed", 0)
        message = f"{answered:,} of {self.note['prompts']:,} prompts answered"
        left_ms = _POLL_MS[1] if self.is_interrupted else int(1000 * (status.get("eta_s") or 0.0) / _POLLS)
        over = "cancelled" if self.is_cancelled else "completed" if status["state"] in {"finished", "stopped"} else ""
        return {
            "taskId": self.folder.job_id,
            "status": over or "working",
            "statusMessage": f"{message}, {failed:,} failed" if failed else message,
            "createdAt": _time(created),
            "lastUpdatedAt": _time(max(created, float(status.get("updated", created)))),
            "ttlMs": int(1000 * (self.note["expires"] - created)),
            "pollIntervalMs": min(max(left_ms, _POLL_MS[0]), _POLL_MS[1]),
        }

    def outcomes(self) -> list[Outcome]:
        """Return the outcome of each prompt, or else a failure with the reason why the job stopped. Blocks."""
        with self.folder.reading() as store:
            records = {record.key: record for record in store.sound_records()}
        reason = self.status.get("reason") or "The job has no answer."
        left = Failure(PromptmillError(Code(self.status.get("code", Code.INTERNAL)), reason, ""))
        prompts = range(self.note["prompts"])
        return [records[row].outcome() if row in records else left for row in prompts]

    def call(self, *, several_models: bool) -> Call:
        """Return a call that has the counts of all runs of the task's job."""
        every = {each.name for each in fields(Counts)}
        counted: dict[str, Any] = {name: count for name, count in self.status.items() if name in every and count}
        counts = Counts(codes=Counter(self.status.get("errors")), **counted)
        began = time.monotonic() - self.status.get("seconds", 0.0)
        call = Call(Facts(self.note["prompts"]), counts, started=began, chosen=self.note["chosen"] or "")
        call.model = self.note["model"] if several_models else ""
        for warning in self.status.get("warnings", ()):
            call.warn(warning)
        return call


def _caller(ctx: ServerRequestContext[Any, Any]) -> Caller:
    request = ctx.request
    session = "" if request is None else request.headers.get("mcp-session-id", "")
    return Caller(session, owner_of(request))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
