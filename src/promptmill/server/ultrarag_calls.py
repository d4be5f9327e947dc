"""Calls of UltraRAG's client: read as its own generation server reads them, and reported on stderr.

Its client keeps the answers of a result and nothing else, so failures, warnings and progress go to stderr. A tool error
ends the client's whole run, with the answers of all earlier steps: a call without any answer is one only when the cause
of a failure affects all items.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, TextIO

import orjson
from fastmcp.exceptions import ToolError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from mcp_types import CallToolRequestParams, TextContent

from promptmill.core.errors import Code, PromptmillError, redact, without_controls
from promptmill.server import ultrarag_arguments
from promptmill.service.service import Service

_LINE_EVERY_S = 5.0
_BAR_EVERY_S = 0.2
_BAR_CELLS = 24
_CONFIGURING = frozenset({"build", "generation_init"})
_ANSWERING = frozenset({"generate", "multimodal_generate", "multiturn_generate"})
# Key, endpoint, model, configuration, engine: the next item would fail alike.
_AFFECTS_ALL = frozenset(
    {
        *(Code.INVALID_CONFIG, Code.UNSUPPORTED, Code.MISSING_DEPENDENCY, Code.ENGINE_LOAD_FAILED, Code.ENGINE_DIED),
        *(Code.UNAUTHORIZED, Code.INSUFFICIENT_QUOTA, Code.BUDGET, Code.NOT_FOUND, Code.RATE_LIMITED),
        *(Code.UNREACHABLE, Code.TLS, Code.NAME_RESOLUTION, Code.NO_FILE_DESCRIPTORS, Code.STORAGE),
        *(Code.DEADLINE, Code.REPLACED, Code.SHUTDOWN, Code.INTERNAL),
    }
)
# About the configuration (a parameter that the model refuses, an address that is not the API's) as long as nothing has
# been answered under it; later about the item.
_AFFECTS_ALL_AT_FIRST = _AFFECTS_ALL | {Code.BAD_REQUEST, Code.BAD_RESPONSE, Code.TIMEOUT, Code.CONNECTION_LOST}


class PipelineCalls(Middleware):
    """Adapts arguments and results, and writes to stderr what the client does not show. A warning is written once."""

    def __init__(self, service: Service, stream: TextIO | None = None, every_s: float = _LINE_EVERY_S) -> None:
        self._service = service
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._told: set[str] = set()
        self._has_answered = False
        """Whether a call since the last `generation_init` has had an answer."""

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        """Answer one call."""
        name = context.message.name
        try:
            arguments, told = _adapted(name, context.message.arguments or {})
        except PromptmillError as error:
            raise ToolError(redact(str(error))) from None
        self._tell(name, told)
        if arguments is None:
            answers: dict[str, Any] = {"ans_ls": []}
            return ToolResult([TextContent(type="text", text='{"ans_ls":[]}')], answers)
        adapted = context.copy(message=context.message.model_copy(update={"arguments": arguments}))
        if name not in _ANSWERING:
            self._has_answered = self._has_answered and name not in _CONFIGURING
            result = await call_next(adapted)
            self._tell(name, self._service.plan.warnings if name in _CONFIGURING else ())
            return result
        async with self._spinner(name):
            result = await call_next(adapted)
        self._tell(name, (result.meta or {}).get("warnings", ()))
        if line := _failures(result.structured_content or {}):
            self._write(f"{name}: {line}")
        return self._for_a_run(result)

    def _for_a_run(self, result: ToolResult) -> ToolResult:
        """Return the result; without any answer it is an error only where a failure affects all items."""
        structured = result.structured_content or {}
        codes = {error["code"] for error in structured.get("errors", ())}
        if not result.is_error:
            self._has_answered = self._has_answered or len(structured.get("errors", ())) < len(structured["ans_ls"])
            return result
        affects_all = _AFFECTS_ALL if self._has_answered else _AFFECTS_ALL_AT_FIRST
        if self._service.plan.settings.on_error == "raise" or codes & affects_all:
            return result
        return ToolResult([TextContent(type="text", text=orjson.dumps(structured).decode())], structured, result.meta)

    def _tell(self, name: str, warnings: Iterable[str]) -> None:
        for warning in warnings:
            if warning not in self._told:
                self._told.add(warning)
                self._write(f"{name}: {warning}")

    @contextlib.asynccontextmanager
    async def _spinner(self, name: str) -> AsyncIterator[None]:
        showing = asyncio.ensure_future(self._show(name))
        try:
            yield
        finally:
            showing.cancel()
            if self._stream.isatty():
                self._raw("\r\x1b[K")

    async def _show(self, name: str) -> None:
        bar = self._stream.isatty()
        while True:
            await asyncio.sleep(_BAR_EVERY_S if bar else self._every_s)
            calls = self._service.calls.in_progress()
            if not calls:
                continue
            sums = {key: sum(call[key] or 0 for call in calls) for key in ("done", "total", "failed")}
            activity = "" if sums["done"] else self._service.activity
            line = f"{name}: {activity or _progress(sums, max(call['seconds'] for call in calls))}"
            if bar:
                filled = int(_BAR_CELLS * sums["done"] / sums["total"]) if sums["total"] else 0
                self._raw(f"\r\x1b[K[{'#' * filled}{'.' * (_BAR_CELLS - filled)}] {line}")
            else:
                self._write(line)

    def _write(self, line: str) -> None:
        self._raw(f"generation: {without_controls(line)}\n")

    def _raw(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody there to read is no reason to end a call
            self._stream.write(text)
            self._stream.flush()


def _adapted(name: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    match name:
        case "generation_init":
            return ultrarag_arguments.initial(arguments)
        case "generate":
            return ultrarag_arguments.texts(arguments), []
        case "multimodal_generate":
            return ultrarag_arguments.with_images(arguments)
        case "multiturn_generate":
            return ultrarag_arguments.conversation(arguments), []
    return dict(arguments), []


def _failures(structured: Mapping[str, Any]) -> str:
    """Return one line on the items without an answer, the commonest reason first; `""` when all have one."""
    errors = structured.get("errors") or []
    if not errors:
        return ""
    by_code = Counter(error["code"] for error in errors).most_common()
    parts = []
    for code, count in by_code:
        first = next(error for error in errors if error["code"] == code)
        said = " ".join(str(first["message"]).split())
        parts.append(f"{code} x{count} (item {first['index']}: {said:.200})")
    return f"{len(errors)} of {len(structured.get('ans_ls', ()))} not answered: {'; '.join(parts)}"


def _progress(sums: Mapping[str, int], seconds: float) -> str:
    done, total = sums["done"], sums["total"]
    failed = f", {sums['failed']} failed" if sums["failed"] else ""
    rate = done / seconds if seconds else 0.0
    left = f", {(total - done) / rate:,.0f} s left" if rate and total > done else ""
    return f"{done} of {total} done{failed}, {rate:.1f}/s{left}"
