"""Every tool call: checks its arguments, hides values in its errors, logs a line, and reports its progress.

Progress is reported at the start of a call, at its end, and at most twice a second between them. A response that can
still become JSON (`EitherResponse`) becomes a stream at its first notification, and then has a smaller size limit. So
its call reports nothing in the first two seconds.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import anyio
from fastmcp import Context, FastMCP
from fastmcp.exceptions import ResourceError, ToolError, ValidationError
from fastmcp.prompts.base import PromptResult
from fastmcp.resources import ResourceResult
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import InputRequiredToolResult, Tool, ToolResult
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    GetPromptRequestParams,
    InputRequiredResult,
    ListToolsRequest,
    ReadResourceRequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError as PydanticValidationError

from promptmill.backends.protocol import Call
from promptmill.backends.registry import check_name
from promptmill.config.backends import AUTO
from promptmill.config.explain import explain
from promptmill.config.settings import BackendConfigs
from promptmill.core.bounds import MOST_VALUES
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.request import Sampling
from promptmill.core.values import JsonDict, JsonObject, read_json
from promptmill.core.wording import did_you_mean, duration, shape, synonym
from promptmill.http import token
from promptmill.http.json_response_workaround import RESPONSE
from promptmill.jobs.caller import Caller
from promptmill.options import table
from promptmill.server.listed_tools import OPTIONS, listed, unpacked
from promptmill.service.observers import Observer
from promptmill.service.service import Service
from promptmill.system.logs import CALLS

T = TypeVar("T")
P = ParamSpec("P")
_log = logging.getLogger(CALLS)
_OK, _CANCELLED = "code=ok", "code=cancelled"
_STRANGE = re.compile(r"[^\w.@+-]")  # not allowed in a name from the client: spaces, line feeds, …
_IMAGES = frozenset({"image", "images", "image_path", "image_paths", "image_url", "image_urls", "pictures"})
# Older releases of n8n add the fields of their chat trigger to the arguments of each tool (n8n#21500, #21716). Other
# programs add the last two.
_NOT_OURS = frozenset({"sessionId", "action", "chatInput", "toolCallId", "tool", "_meta", "kwargs"})
_PAUSE_S = 0.5
_FAST_S = 2.0
_CHANGE_S = 1.0  # seconds; a changed text is reported after this time even without progress
_SILENCE_S = 5.0  # longest silence: clients abort a call that reports no progress
_STEP = 1e-6  # added per report, because the protocol requires a growing number; a million reports take weeks
_WANTED = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}

_KINDS = {"array": list, "object": dict, "boolean": bool}  # kinds that pydantic would convert or quote


class CodedToolError(ToolError):
    """A tool error with a code of promptmill. `CallLog` logs it, so FastMCP does not."""

    def __init__(self, message: str, code: Code = Code.INVALID_INPUT) -> None:
        super().__init__(message, log_level=logging.DEBUG)
        self.code = code


class UnansweredQuestion(Exception):  # noqa: N818 (no error: the client asks its user and repeats the call)
    """The user must answer before the call can run. `result`: the result of this call."""

    def __init__(self, result: InputRequiredResult) -> None:
        super().__init__()
        self.result = result


def tool(mcp: FastMCP, **options: Any) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Return a decorator that adds a function to `mcp` as a tool, whose description is the docstring.

    promptmill's errors are raised as FastMCP errors, which it neither masks nor logs with a traceback.
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
        """Log the call. `failed` gets the code of a call that has not answered all of its items."""
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
    answers, errors = structured.get("ans_ls"), structured.get("errors") or ()
    entries: list[JsonDict] = errors if isinstance(errors, list) else []  # a job's `errors` are counts by code
    codes: Counter[str] = Counter()
    for entry in entries:
        codes[entry["code"]] += entry.get("last", entry["index"]) - entry["index"] + 1
    deferred, omitted = codes.pop(Code.DEFERRED, 0), codes.pop(Code.OMITTED, 0)
    parts = [f"code={codes.most_common(1)[0][0]}" if codes else _OK]
    if answers is not None:
        parts.append(f"items={len(answers)} failed={codes.total()}")
    if deferred:
        parts.append(f"deferred={deferred}")
    if omitted:
        parts.append(f"omitted={omitted}")
    return " ".join(parts)


def _client(context: MiddlewareContext[CallToolRequestParams]) -> str:
    """Return NAME/VERSION from the client, over HTTP with its address."""
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


class PlainArguments(Middleware):
    """Reports invalid arguments of tools, prompts and resources in plain words, without tracebacks and values.

    It checks names and types before pydantic does, because pydantic's errors quote all arguments: ten megabytes of
    arguments would block the event loop for half a second.
    """

    def __init__(self) -> None:
        self._schemas: dict[str, JsonDict] = {}
        self._listed: dict[str, JsonDict] = {}

    async def on_list_tools(
        self, context: MiddlewareContext[ListToolsRequest], call_next: CallNext[ListToolsRequest, Sequence[Tool]]
    ) -> Sequence[Tool]:
        """Return the tools with their short schemas."""
        tools = await call_next(context)
        if self._listed.keys() != {tool.name for tool in tools}:
            self._listed = listed({tool.name: tool.parameters for tool in tools})
        return [tool.model_copy(update={"parameters": self._listed[tool.name]}) for tool in tools]

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        arguments = context.message.arguments or {}
        # refused at once, because each unknown argument adds an error
        if len(arguments) > 50:
            raise CodedToolError(f"The call has {len(arguments)} arguments; see the tool's input schema.")
        schema = await self._schema(context)
        if OPTIONS in arguments:
            arguments = _unpacked(arguments, schema)
        backend = arguments.get("backend")
        name = backend.strip().lower() if isinstance(backend, str) else AUTO
        if name != AUTO and "backend" in schema.get("properties", {}):
            try:  # checked first, because a call with another program's arguments also lacks several of ours
                check_name(name)
            except PromptmillError as error:
                raise CodedToolError(redact(str(error)), error.code) from None
        properties = {} if "chatInput" in arguments else schema.get("properties", {})
        foreign = [name for name in arguments if name in _NOT_OURS - properties.keys()]
        arguments = _as_meant({name: arguments[name] for name in arguments if name not in foreign}, schema)
        if wrong := _wrong_names_and_kinds(arguments, schema):
            raise CodedToolError(wrong)
        try:
            result = await call_next(context.copy(message=context.message.model_copy(update={"arguments": arguments})))
        except ValidationError as error:
            cause = error.__cause__
            raise CodedToolError(explain(cause) if isinstance(cause, PydanticValidationError) else "") from None
        if foreign:
            meta = result.meta or {}
            left_out = f"Arguments of the client's own were left out: {', '.join(foreign)}."
            result.meta = {**meta, "warnings": [*meta.get("warnings", ()), left_out]}
        return result

    async def on_read_resource(
        self,
        context: MiddlewareContext[ReadResourceRequestParams],
        call_next: CallNext[ReadResourceRequestParams, ResourceResult],
    ) -> ResourceResult:
        """Refuse a long URI, which FastMCP would match against templates for seconds; report an invalid `offset`."""
        uri = str(context.message.uri)
        if len(uri) > 2000:
            raise ResourceError(f"The URI has {len(uri):,} characters; no resource has such a long one.")
        for offset in parse_qs(urlsplit(uri).query, keep_blank_values=True).get("offset", ()):
            if not re.fullmatch("[0-9]{1,18}", offset):  # or FastMCP would log a stack trace, and answer -32603
                raise MCPError(INVALID_PARAMS, f"`offset` is {offset[:40]!r}; it is the number of rows to skip.")
        return await call_next(context)

    async def on_get_prompt(
        self,
        context: MiddlewareContext[GetPromptRequestParams],
        call_next: CallNext[GetPromptRequestParams, PromptResult],
    ) -> PromptResult:
        """Report missing arguments. FastMCP would log a stack trace and answer -32603."""
        server, given = context.fastmcp_context, context.message.arguments or {}
        prompt = None if server is None else await server.fastmcp.get_prompt(context.message.name)
        required = [] if prompt is None else [one.name for one in prompt.arguments or () if one.required]
        if missing := [f"`{name}`" for name in required if name not in given]:
            raise MCPError(INVALID_PARAMS, f"The prompt {context.message.name} needs {' and '.join(missing)}.")
        return await call_next(context)

    async def _schema(self, context: MiddlewareContext[CallToolRequestParams]) -> JsonDict:
        """Return the input schema of the called tool. Tools never change while the server runs."""
        name = context.message.name
        if name not in self._schemas:
            server = context.fastmcp_context
            tool = None if server is None else await server.fastmcp.get_tool(name)
            if server is not None and tool is None:
                known = ", ".join(other.name for other in await server.fastmcp.list_tools())
                raise CodedToolError(f"Unknown tool: {name[:100]!r}; tools here: {known}.")
            if tool is None:
                return {}
            self._schemas[name] = tool.parameters
        return self._schemas[name]


def _unpacked(arguments: JsonObject, schema: JsonObject) -> JsonDict:
    """Move the keys of `options` (an object or its JSON text) to the top level. Raises `CodedToolError`."""
    if isinstance(options := arguments[OPTIONS], str):
        arguments = {**arguments, OPTIONS: _parsed(OPTIONS, options, ["object"])}
    try:
        return unpacked(arguments, schema)
    except PromptmillError as error:
        raise CodedToolError(str(error), error.code) from None


def _as_meant(arguments: JsonObject, schema: JsonObject) -> JsonDict:
    """Return the arguments as language models mean them: `null` stands for an optional argument's default.

    For a list or an object, they may send its JSON text; for a list, also its only text or object; for `choices`, a
    text with commas.

    Raises `CodedToolError` for a text that may have more than 300,000 values: 60 MB of them would take 2 GB and 15
    seconds.
    """
    properties, required = schema.get("properties", {}), schema.get("required", ())
    meant: JsonDict = {}
    for name, value_ in arguments.items():
        value, kinds = value_, _kinds(properties.get(name, {}))
        if value is None and name in properties and name not in required:
            continue
        if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"} and kinds:
            value = _parsed(name, value, kinds)
        if name == "choices" and isinstance(value, str):
            value = [text.strip() for text in re.split("[,;\n]", value) if text.strip()]
        meant[name] = _in_list(value, kinds)
    return meant


def _in_list(value: Any, kinds: Collection[str]) -> Any:
    """Return a list with a single text or object, if the argument can only be a list."""
    kind = "string" if isinstance(value, str) else "object" if isinstance(value, dict) else ""
    return [value] if kind and "array" in kinds and kind not in kinds else value


def _parsed(name: str, text: str, kinds: Collection[str]) -> Any:
    """Return the list or object in a JSON text, if the text was meant as one; else the text. Raises `CodedToolError`,
    see `_as_meant`.

    If the argument may be a text, only a list of texts is parsed: `["a", "b"]` names two models. An object stays a
    text: `{"task": "classify", "text": "{{text}}"}` is a prompt.
    """
    if len(text) > MOST_VALUES and sum(map(text.count, "[{,")) > MOST_VALUES:
        if "string" in kinds:
            return text
        many = f"{name} is a text that may hold more than {MOST_VALUES:,} values; send a list or an object."
        raise CodedToolError(many)
    try:
        parsed = read_json(text)
    except json.JSONDecodeError:
        return text
    if "string" not in kinds:
        return parsed
    is_list = "array" in kinds and isinstance(parsed, list)
    return parsed if is_list and all(isinstance(each, str) for each in parsed) else text


def _wrong_names_and_kinds(arguments: JsonObject, schema: JsonObject) -> str:
    if not schema:
        return ""  # a missing tool, which FastMCP reports
    properties: JsonDict = schema.get("properties", {})
    lines = []
    for name in schema.get("required", ()):
        if name not in arguments:
            kinds = _kinds(properties[name])
            lines.append(f"{name} is missing; send {_WANTED.get(kinds[0], 'it') if kinds else 'it'}.")
    for name, value in arguments.items():
        kinds = _kinds(properties.get(name, {}))
        kind = next((name for name, type_ in _KINDS.items() if isinstance(value, type_)), "")
        if name not in properties:
            lines.append(f"{name:.100} is not an argument of this tool{_where(name, properties)}")
        elif name == "schema" and isinstance(value, str) and "fields" in properties:
            lines.append(
                'schema is a text; send a JSON Schema, an object. Names of fields go into `fields`: "name,age".'
            )
        elif len({*kinds} - {"null"}) > 1 and _json_types(value).isdisjoint(kinds):
            wanted = " or ".join(_WANTED.get(each, each) for each in kinds if each != "null")
            lines.append(f"{name} is {shape(value)}; send {wanted}.")
        elif kinds and kind not in kinds and (kind or kinds == ["array"]):
            lines.append(f"{name} is {shape(value)}; send {_WANTED.get(kinds[0], kinds[0])}.")
    more = [f"And {len(lines) - 5} more."] if len(lines) > 5 else []
    return " ".join([*lines[:5], *more])


def _json_types(value: object) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
    return {"object"}


def _kinds(argument: JsonObject) -> list[str]:
    """Return the JSON types that an argument accepts."""
    return [kind["type"] for kind in (argument, *argument.get("anyOf", ())) if "type" in kind]


def _where(name: str, properties: JsonObject) -> str:
    """Return the right position of an unknown argument, or the argument with a similar name."""
    if "output_file" in properties and (needs := table.needs_hidden(name, "argument")):
        return f": it {needs}."
    if meant := synonym(name, properties):
        return f"; did you mean {meant}?"
    if name == "concurrency" and "output_file" in properties:
        return ": bulk_status sets it for a job that runs."
    sampling = name if name in Sampling.model_fields else synonym(name, Sampling.model_fields)
    if sampling and "sampling_params" in properties:
        return f': it goes into sampling_params, {{"{sampling}": …}}.'
    if "backend_configs" in properties and any(
        name in block.annotation.model_fields
        for block in BackendConfigs.model_fields.values()
        if isinstance(block.annotation, type)
    ):
        return f': it goes into backend_configs, below the backend\'s name, {{"{name}": …}}.'
    if name in _IMAGES and "multimodal_path" in properties:
        return (
            ': images go into multimodal_path, a list of them for each prompt: {"prompt_ls": ["…"], '
            '"multimodal_path": [["a.png"]]}.'
        )
    if name in _IMAGES and "prompt_ls" in properties:
        return ": multimodal_generate takes images."
    if name == "messages" and "prompt_ls" in properties:
        return ": multiturn_generate takes messages."
    known = f"it takes {', '.join(properties) or 'none'}."
    return f"; {did_you_mean(name, properties, known)}"


async def with_progress(
    ctx: Context,
    service: Service,
    stats: Call,
    work: Coroutine[Any, Any, T],
    words_of: Callable[[], str] | None = None,
) -> T:
    """Run `work` in a separate task, and report its progress to the client if the request asks for progress.

    `words_of` returns the text of a report; by default, the text is about the items that `stats` counts.

    The task is separate because FastMCP cancels by an anyio scope, in which the clean-up of `work` could not wait.
    """
    task = asyncio.ensure_future(work)
    try:
        if not _is_wanted(ctx):
            return await asyncio.shield(task)
        if _may_be_json(ctx) and (await asyncio.wait({task}, timeout=_FAST_S))[0]:
            return task.result()
        reported = ReportedProgress(time.monotonic)
        await ctx.report_progress(0, stats.facts.total, "starting")
        while not task.done():
            await asyncio.wait({task}, timeout=_PAUSE_S)
            words = _status(service, stats) if words_of is None else words_of()
            if not task.done() and reported.is_news(stats, words):
                await ctx.report_progress(reported.number, stats.facts.total, words)
        if stats.facts.total != 0:
            reported.end(stats)
            words = "ready" if stats.facts.total is None else _count(stats)
            await ctx.report_progress(reported.number, stats.facts.total, words)
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

    def is_news(self, stats: Call, words: str) -> bool:
        """Return whether to report `words` now; if so, record the report. The final number is reserved for `end`."""
        silent_s = self._clock() - self._at
        done = self._reached(stats)
        if stats.facts.total is not None and done >= stats.facts.total:
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
        return int(self._clock() - self._began) if stats.facts.total is None else stats.counts.done

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
    """Return the id of a client's session; in a protocol without sessions (2026-07-28), its owner and address, which
    other clients may have, too: see `Caller.is_alone`."""
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


def _status(service: Service, stats: Call) -> str:
    if not stats.counts.done and (activity := service.activity):
        return activity
    return "loading" if stats.facts.total is None else _count(stats)


def _count(stats: Call) -> str:
    parts = [f"{stats.counts.done:,} of {stats.facts.total:,} done"]
    if stats.counts.failed:
        parts.append(f"{stats.counts.failed:,} failed")
    if stats.counts.retries:
        parts.append(f"{stats.counts.retries:,} retries")
    if waiting := stats.waiting:
        parts.append(waiting)
    elif stats.counts.done:
        rate = stats.counts.done / max(0.001, time.monotonic() - stats.started)
        parts.append(f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
        if left := (stats.facts.total or 0) - stats.counts.done:
            parts.append(f"about {duration(left / rate)} left")
    return ", ".join(parts)
