"""Hides values in the errors of tool calls, logs a line for each call, and reports its progress.

Progress is reported at the start of a call, at its end, and at most twice a second between them. At its first
notification, a response that can still become JSON (`EitherResponse`) becomes a stream, which has a smaller size limit.
Therefore, a call with such a response reports nothing in the first two seconds.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import anyio
from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import InputRequiredToolResult, ToolResult
from mcp_types import (
    CallToolRequestParams,
    InputRequiredResult,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from promptmill.backends.protocol import Call
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.wording import duration, paced
from promptmill.http import token
from promptmill.http.json_response_workaround import RESPONSE
from promptmill.jobs.caller import Caller
from promptmill.service.list_call import sum_of_calls
from promptmill.service.observers import Observer
from promptmill.service.service import Service
from promptmill.system.call_files import FileRule
from promptmill.system.logs import CALLS

T = TypeVar("T")
P = ParamSpec("P")
_log = logging.getLogger(CALLS)
_OK, _CANCELLED = "code=ok", "code=cancelled"
_STRANGE = re.compile(r"[^\w.@+-]")  # matches what a name from the client may not have: spaces, line feeds, …
_PAUSE_S = 0.5
_FAST_S = 2.0
_CHANGE_S = 1.0  # seconds; a changed text is reported after this time even without progress
_SILENCE_S = 5.0  # longest silence: clients abort a call that reports no progress
_STEP = 1e-6  # added per report, because the protocol requires a growing number; the sum reaches 1 only after weeks


class CodedToolError(ToolError):
    """A tool error with a code of promptmill. `CallLog` logs it, so FastMCP does not."""

    def __init__(self, message: str, code: Code = Code.INVALID_INPUT) -> None:
        super().__init__(message, log_level=logging.DEBUG)
        self.code = code


_FILES = frozenset({"input_file", "output_file", "output", "report", "file"})
"""The fields of results that hold the path of a file."""
_RECORDS = frozenset({"jobs", "files", "report"})
"""The fields of results that hold records with such fields."""
_WORDS = frozenset({"message", "reason", "notes", "warnings", "problems"})
"""The fields of results with sentences, in which a path may occur."""


class UnansweredQuestion(Exception):  # noqa: N818 (no error: the client asks its user and repeats the call)
    """The user must answer before the call can run. `result`: the call's result, which has the question."""

    def __init__(self, result: InputRequiredResult) -> None:
        super().__init__()
        self.result = result


def tool(mcp: FastMCP, **options: Any) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Return a decorator that adds a function to `mcp` as a tool. The tool's description is the function's docstring.

    promptmill's errors are raised as FastMCP errors, which FastMCP neither masks nor logs with a traceback.
    """

    def added(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return await function(*args, **kwargs)
            except PromptmillError as error:
                raise CodedToolError(redact(str(error)), error.code) from None
            except UnansweredQuestion as question:
                return cast("T", InputRequiredToolResult(question.result))

        wrapper.__doc__ = (
            ""  # empty, or FastMCP would import griffe to search it for parameters (90 ms of a server's start)
        )
        mcp.tool(wrapper, description=_flowing(function.__doc__ or ""), **options)
        return wrapper

    return added


def _flowing(text: str) -> str:
    """Return `text` with each paragraph on one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


class PathsBelowRoots(Middleware):
    """Hides the folders above the roots in the errors and statuses of calls from other machines."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        """Make the call. Raises `CodedToolError`."""
        rule = self._service.config.file_rule
        try:
            result = await call_next(context)
        except CodedToolError as error:
            raise CodedToolError(rule.below_roots(str(error)), error.code) from None
        found = result.structured_content if rule.is_shared else None
        if found is None or (shown := _below_roots(found, rule)) == found:
            return result
        is_copy = len(result.content) == 1 and getattr(result.content[0], "text", "").startswith("{")
        return ToolResult(None if is_copy else result.content, shown, result.meta)


def _below_roots(status: Mapping[str, Any], rule: FileRule) -> dict[str, Any]:
    """Return a tool's result in which files and messages name no folder above the roots. Its rows stay as they are."""
    shown = dict(status)
    for name, value in status.items():
        if name in _RECORDS and isinstance(value, dict):
            shown[name] = _below_roots(value, rule)
        elif name in _RECORDS and isinstance(value, list):
            shown[name] = [_below_roots(each, rule) if isinstance(each, dict) else each for each in value]
        elif name in _FILES and isinstance(value, str):
            shown[name] = rule.shown_file(value)
        elif name in _WORDS and isinstance(value, str):
            shown[name] = rule.below_roots(value)
        elif name in _WORDS and isinstance(value, list):
            shown[name] = [rule.below_roots(each) if isinstance(each, str) else each for each in value]
    return shown


class CallLog(Middleware):
    """Logs a line per call: tool, client and outcome. A failure is logged as a warning, other calls at INFO.

    With `observer`, each call is also observed.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        """Log the call, even if it fails or is cancelled."""
        if self._observer is None:
            return await self._logged(context, call_next, lambda _: None)
        fastmcp = context.fastmcp_context
        name = context.message.name
        is_known = fastmcp is not None and await fastmcp.fastmcp.get_tool(name) is not None
        with self._observer.tool_call(name if is_known else None, _carrier(context)) as failed:
            return await self._logged(context, call_next, failed)

    async def _logged(
        self,
        context: MiddlewareContext[CallToolRequestParams],
        call_next: CallNext[CallToolRequestParams, ToolResult],
        failed: Callable[[str], None],
    ) -> ToolResult:
        """Log the call. `failed` is called with the code of a call that has not answered all of its items."""
        began, end = time.monotonic(), f"code={Code.INTERNAL}"
        try:
            result = await call_next(context)
            end = _end_of(result)
        except CodedToolError as error:
            end = f"code={error.code}"
            raise
        except asyncio.CancelledError:
            end = _CANCELLED
            raise
        finally:
            if not end.startswith(_OK):
                failed(end.split()[0].removeprefix("code="))
            _log.log(
                logging.INFO if end.startswith((_OK, _CANCELLED)) else logging.WARNING,
                "tool=%s client=%s %s seconds=%.3f",
                _name(context.message.name),
                _client(context),
                end,
                time.monotonic() - began,
            )
        return result


def _end_of(result: ToolResult) -> str:
    structured = result.structured_content or {}
    parts = [*structured.get("models", {}).values()] or [structured]
    codes: Counter[str] = Counter()
    for errors in (part.get("errors") for part in parts):
        for entry in errors if isinstance(errors, list) else ():  # `errors` of a job are no list, but counts by code
            codes[entry["code"]] += entry.get("last", entry["index"]) - entry["index"] + 1
    deferred, omitted = codes.pop(Code.DEFERRED, 0), codes.pop(Code.OMITTED, 0)
    words = [f"code={codes.most_common(1)[0][0]}" if codes else _OK]
    if "ans_ls" in parts[0]:
        words.append(f"items={sum(len(part['ans_ls']) for part in parts)} failed={codes.total()}")
    if deferred:
        words.append(f"deferred={deferred}")
    if omitted:
        words.append(f"omitted={omitted}")
    return " ".join(words)


def _client(context: MiddlewareContext[CallToolRequestParams]) -> str:
    """Return the client as NAME/VERSION; over HTTP as NAME/VERSION@ADDRESS."""
    request = context.fastmcp_context.request_context if context.fastmcp_context else None
    if request is None:
        return "-"
    params = request.session.client_params
    client = f"{_name(params.client_info.name)}/{_name(params.client_info.version)}" if params else "-"
    caller = request.request.client if request.request is not None else None
    return f"{client}@{caller.host}" if caller else client


def _carrier(context: MiddlewareContext[CallToolRequestParams]) -> Mapping[str, str]:
    """Return the carrier of the client's trace: the call's `_meta`, or else the headers of its HTTP request."""
    request = context.fastmcp_context.request_context if context.fastmcp_context else None
    if request is None:
        return {}
    meta = request.meta or {}
    if isinstance(parent := meta.get("traceparent"), str):
        return {"traceparent": parent}
    return request.request.headers if request.request is not None else {}


def _name(text: str) -> str:
    return _STRANGE.sub("_", text[:40]) or "-"


async def with_progress(
    ctx: Context,
    service: Service,
    calls: Sequence[Call],
    work: Coroutine[Any, Any, T],
    words_of: Callable[[], str] | None = None,
) -> T:
    """Run `work` in a separate task, and report its progress to the client if the request asks for progress.

    `words_of` returns the text of a report; by default, the text is about the items that the `calls` count together.

    The task is separate because FastMCP cancels a call by an anyio scope, in which `work` could not clean up.
    """
    task = asyncio.ensure_future(work)
    try:
        if not _is_wanted(ctx):
            return await asyncio.shield(task)
        if _may_be_json(ctx) and (await asyncio.wait({task}, timeout=_FAST_S))[0]:
            return task.result()
        reported, call = ReportedProgress(time.monotonic), sum_of_calls(calls)
        await ctx.report_progress(0, call.facts.total, "starting")
        while not task.done():
            await asyncio.wait({task}, timeout=_PAUSE_S)
            call = sum_of_calls(calls)
            words = _status(service, call) if words_of is None else words_of()
            if not task.done() and reported.is_news(call, words):
                await ctx.report_progress(reported.number, call.facts.total, words)
        if (call := sum_of_calls(calls)).facts.total != 0:
            words = "ready" if call.facts.total is None else _count(call) if words_of is None else words_of()
            reported.end(call)
            await ctx.report_progress(reported.number, call.facts.total, words)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with anyio.move_on_after(2, shield=True):
                await asyncio.wait({task})


class ReportedProgress:
    """The last progress report to a client, and its time.

    `number`: the number of finished items; it grows slightly with each report even if no item finishes. For work
    without items, it is the number of seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.number: float = 0
        self._words = "starting"
        self._clock = clock
        self._began = self._at = clock()

    def is_news(self, call: Call, words: str) -> bool:
        """Return whether to report `words` now; if so, record the report. The final number is reserved for `end`."""
        silent_s = self._clock() - self._at
        done = self._reached(call)
        if call.facts.total is not None and done >= call.facts.total:
            done = 0
        if done <= self.number and silent_s < (_SILENCE_S if words == self._words else _CHANGE_S):
            return False
        self._grow(done)
        self._words, self._at = words, self._clock()
        return True

    def end(self, call: Call) -> None:
        """Set `number` to its final value."""
        self._grow(self._reached(call))

    def _reached(self, call: Call) -> int:
        return int(self._clock() - self._began) if call.facts.total is None else call.counts.done

    def _grow(self, done: int) -> None:
        self.number = max(done, round(self.number + _STEP, 6))


def caller_of(ctx: Context, service: Service) -> Caller:
    """Return the client of a call."""
    context = ctx.request_context
    owner = owner_of(None if context is None else context.request)
    if not service.is_shared:
        return Caller("", owner)
    return Caller(session_of(ctx), owner, ctx.session.protocol_version not in MODERN_PROTOCOL_VERSIONS)


def session_of(ctx: Context) -> str:
    """Return the id of a client's session; in a protocol without sessions (2026-07-28), the client's owner and address,
    which other clients may share: see `Caller.is_alone`."""
    request = None if ctx.request_context is None else ctx.request_context.request
    if request is None:
        return ""
    if ctx.session.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return ctx.session_id
    return f"{owner_of(request)}@{request.client.host if request.client else ''}"


def owner_of(request: Any) -> str:
    """Return the owner of the objects that an HTTP request creates: a digest of its token; `""` without a request."""
    return "" if request is None else token.owner_of(request.headers.get("authorization", ""))


def _is_wanted(ctx: Context) -> bool:
    context = ctx.request_context
    return context is not None and (context.meta or {}).get("progressToken") is not None


def _may_be_json(ctx: Context) -> bool:
    context = ctx.request_context
    return context is not None and context.request is not None and context.request.scope.get(RESPONSE) is not None


def _status(service: Service, call: Call) -> str:
    if not call.counts.done and (activity := service.activity):
        return activity
    return "loading" if call.facts.total is None else _count(call)


def _count(call: Call) -> str:
    parts = [f"{call.counts.done:,} of {call.facts.total:,} done"]
    if call.counts.failed:
        parts.append(f"{call.counts.failed:,} failed")
    if call.counts.retries:
        parts.append(f"{call.counts.retries:,} retries")
    if waiting := call.waiting:
        parts.append(waiting)
    elif call.counts.done:
        rate = call.counts.done / max(0.001, time.monotonic() - call.started)
        parts.append(f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
        if left := (call.facts.total or 0) - call.counts.done:
            parts.append(f"about {duration(left / rate)} left")
        if call.pace:
            parts.append(paced(call.pace))
    return ", ".join(parts)
