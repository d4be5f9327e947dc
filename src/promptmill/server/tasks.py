"""MCP tasks (SEP-2663): a long call immediately returns a handle, and any process can return its result later.

    tools/call ──▶ the call, as a job ──▶ done in time: its result
                          │ longer, or large
                          ▼
                     job call-… ◀── tasks/get: its status, at the end the result; resumes it after a kill
                                ◀── tasks/cancel: ends it

A task is the job of a call (`jobs.manage.deferred_call`), and its id is the job's id, which is random. A task of a call
with a list of models has a job for each of them, and the id of the first. The jobs' folders have all data about the
task, so any server of the same user can answer the owner's requests about it. No task has the status `failed`, which
MCP uses for protocol errors: a job that stopped has a result with the answers so far.

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
from promptmill.jobs.caller import Caller, CallTask, CallWork, new_job_id
from promptmill.server.results import result_of, side_by_side
from promptmill.server.tool_calls import owner_of
from promptmill.service.service import Service

if TYPE_CHECKING:
    from promptmill.jobs.manage.server_jobs import ServerJobs
    from promptmill.jobs.store.folder import Folder
    from promptmill.jobs.store.index import JobFolders

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
    """The facts about a task that each of its jobs stores."""

    prompts: int
    model: str
    chosen: str | None
    expires: float
    models: Mapping[str, str]
    """The job of each model of a list, by its name in the list; empty for a call without a list."""


class _State(TypedDict):
    """The state of a task in the protocol."""

    taskId: str
    status: str
    statusMessage: str
    createdAt: str
    lastUpdatedAt: str
    ttlMs: int
    pollIntervalMs: int


def offer(ctx: Context, parts: Sequence[CallWork]) -> None:
    """Let a call become a task if the client supports tasks: at once if the call is large, else after some seconds."""
    if (context := ctx.request_context) is None:
        return
    is_old, is_large = context.protocol_version == _OLD, sum(len(part.items) for part in parts) >= _LARGE
    is_able = (
        context.protocol_version in MODERN_PROTOCOL_VERSIONS and ctx.client_extension_settings(EXTENSION) is not None
    )
    if _WANTED in (context.meta or {}) if is_old else is_able:
        jobs = {part.name: new_job_id() for part in parts}
        note = {"expires": time.time() + _TTL_S, "models": {} if "" in jobs else jobs}
        for part in parts:
            part.task = CallTask(jobs[part.name], 0.0 if is_old or is_large else _SOON_S, is_old, note)


class Started(InputRequiredToolResult):
    """The result of a call that became a task. FastMCP sends the content of this object instead of a tool result."""

    input_required: Any

    def __init__(self, task: _State) -> None:
        BaseModel.__init__(self, content=[], input_required={"resultType": "task", **task})


async def started(server_jobs: ServerJobs, task: CallTask) -> ToolResult:
    """Return the handle of a task, whose jobs are already stored and survive a power loss."""
    folders = server_jobs.folders
    state = await asyncio.to_thread(lambda: _Task(folders.loose(task.job_id), folders).state())
    return ToolResult([], meta={_WANTED: _old(state)}) if task.is_required else Started(state)


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
        """Return a task and its state. Its interrupted jobs are resumed first."""
        task = await self._found(ctx, params.task_id)
        for name, job in task.jobs.items():
            if job.is_interrupted:
                task.jobs[name] = await self._resumed(job, _caller(ctx))
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
        task, caller = await self._found(ctx, params.task_id), _caller(ctx)
        left = [job.folder.job_id for job in task.jobs.values() if not job.ending]
        await asyncio.gather(*(self._server_jobs().cancel(job_id, caller, is_call=True) for job_id in left))
        if not left and ctx.protocol_version == _OLD:
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
                task = _Task(server_jobs.visible.find(task_id, _caller(ctx)), server_jobs.folders)
            except PromptmillError:
                return None
            return None if time.time() > task.expires else task

        if (task := await asyncio.to_thread(found)) is None:
            raise MCPError(mcp_types.INVALID_PARAMS, f"There is no task {task_id[:60]!r}.")
        return task

    async def _resumed(self, job: _TaskJob, caller: Caller) -> _TaskJob:
        """Resume or queue a job, and return it. A job that cannot be resumed has ended."""
        error = None
        try:
            config = self._service.offered_config(job.note["model"])
            await self._server_jobs().resume(job.folder.job_id, config, caller)
        except PromptmillError as refused:
            error = None if refused.code is Code.RATE_LIMITED else refused  # the next poll tries again
        resumed = await asyncio.to_thread(lambda: _TaskJob(job.folder))
        if error is not None and resumed.is_interrupted:
            resumed.status |= {"reason": str(error), "code": error.code}
            resumed.ending = "completed"
        return resumed

    async def _result(self, task: _Task) -> JsonDict:
        async with Context(fastmcp=self.server) as context:
            results = {name: await self._result_of(context, job, len(task.jobs)) for name, job in task.jobs.items()}
        result = (results[""] if "" in results else side_by_side(results)).to_mcp_result()
        assert isinstance(result, mcp_types.CallToolResult)
        return result.model_dump(by_alias=True, mode="json", exclude_none=True)

    async def _result_of(self, context: Context, job: _TaskJob, models: int) -> ToolResult:
        try:
            config = self._service.offered_config(job.note["model"])
        except PromptmillError:  # the operator has removed the model
            config = self._service.config

        async def kept(_: Sequence[Outcome]) -> str:
            return job.folder.job_id  # the job has finished, so it has all answers

        part = await asyncio.to_thread(job.part, config, several_models=len(self._service.models) > 1)
        return await result_of(context, part, kept, models)


class _Task:
    """A task, as the folders of its jobs describe it. Reading it blocks the thread."""

    def __init__(self, folder: Folder, folders: JobFolders) -> None:
        """`folder`: one of the task's jobs. Raises `PromptmillError` (`invalid_input`) if a job does not exist."""
        self.task_id, note = folder.job_id, folder.task or {}
        self.jobs = {
            name: _TaskJob(folders.loose(job_id)) for name, job_id in (note.get("models") or {"": self.task_id}).items()
        }
        self.expires = float(note.get("expires", 0.0))
        """The time until which the client may request the task; 0 if the job is no task."""

    def state(self) -> _State:
        """Return the state in the protocol, without the result."""
        jobs, states = self.jobs.values(), [job.status for job in self.jobs.values()]
        failed, created = sum(status.get("failed", 0) for status in states), min(status["created"] for status in states)
        answered = sum(status.get("done", 0) for status in states) - failed
        message = f"{answered:,} of {sum(job.note['prompts'] for job in jobs):,} prompts answered"
        waits_ms = [1e3 * (status.get("eta_s") or 0.0) / _POLLS for status in states]
        waits_ms += [_POLL_MS[1] for job in jobs if job.is_interrupted]
        return {
            "taskId": self.task_id,
            "status": min(job.ending for job in jobs) or "working",  # "" is less than `cancelled`
            "statusMessage": f"{message}, {failed:,} failed" if failed else message,
            "createdAt": _time(created),
            "lastUpdatedAt": _time(max(created, *(status.get("updated", created) for status in states))),
            "ttlMs": int(1000 * (self.expires - created)),
            "pollIntervalMs": min(max(_POLL_MS[0], *map(int, waits_ms)), _POLL_MS[1]),
        }


class _TaskJob:
    """A job of a task, as its folder describes it. Reading it blocks the thread."""

    def __init__(self, folder: Folder) -> None:
        """Raises `PromptmillError` (`invalid_input`) if the job does not exist."""
        from promptmill.jobs.store import progress, status

        self.folder = folder
        self.note = cast("_Note", folder.task or {})
        self.status = status.read(folder)
        state = self.status["state"]
        self.ending = "completed" if state in {progress.FINISHED, progress.STOPPED} else ""
        """The status of the job in the protocol if it has ended; else `""`."""
        if state == progress.CANCELLED or (state == progress.INTERRUPTED and folder.control.cancel):  # killed meanwhile
            self.ending = "cancelled"
        self.is_interrupted = not self.ending and state == progress.INTERRUPTED
        """Whether no process runs the unfinished job: it waits for a place, or its process has ended."""

    def part(self, config: ModelConfig, *, several_models: bool) -> CallWork:
        """Return the job's part of the call. Prompts without an outcome fail with the reason of its end. Blocks."""
        with self.folder.reading() as store:
            records = {record.key: record for record in store.sound_records()}
        reason = self.status.get("reason") or "The job has no answer."
        left = Failure(PromptmillError(Code(self.status.get("code", Code.INTERNAL)), reason, ""))
        prompts = range(self.note["prompts"])
        outcomes = [records[row].outcome() if row in records else left for row in prompts]
        every = {each.name for each in fields(Counts)}
        counted: dict[str, Any] = {name: count for name, count in self.status.items() if name in every and count}
        counts = Counts(codes=Counter(self.status.get("errors")), **counted)
        began = time.monotonic() - self.status.get("seconds", 0.0)
        call = Call(Facts(self.note["prompts"]), counts, started=began, chosen=self.note["chosen"] or "")
        call.model = self.note["model"] if several_models else ""
        for warning in self.status.get("warnings", ()):
            call.warn(warning)
        return CallWork((), call, "", config, outcomes=outcomes)


def _caller(ctx: ServerRequestContext[Any, Any]) -> Caller:
    request = ctx.request
    session = "" if request is None else request.headers.get("mcp-session-id", "")
    return Caller(session, owner_of(request))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
