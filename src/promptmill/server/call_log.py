"""One log line per tool call: who called what, and how it ended. Failures are warnings, the rest shows where asked."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter

from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from mcp_types import CallToolRequestParams

from promptmill.core.errors import Code
from promptmill.server.tool_errors import CodedToolError
from promptmill.system.logs import CALLS

_log = logging.getLogger(CALLS)
_OK, _CANCELLED = "code=ok", "code=cancelled"
_STRANGE = re.compile(r"[^\w.@+-]")  # names come from the client: no spaces, no line feeds
_LONGEST_NAME = 40


class CallLog(Middleware):
    """Writes the line when a call has ended."""

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        """Log the call, whatever becomes of it."""
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
    codes = Counter(error["code"] for error in errors if isinstance(errors, list))  # those of a job are counts by code
    deferred = codes.pop(Code.DEFERRED, 0)
    parts = [f"code={codes.most_common(1)[0][0]}" if codes else _OK]
    if answers is not None:
        parts.append(f"items={len(answers)} failed={codes.total()}")
    if deferred:
        parts.append(f"deferred={deferred}")
    return " ".join(parts)


def _client(context: MiddlewareContext[CallToolRequestParams]) -> str:
    """Return NAME/VERSION as the client gives them, over HTTP with the address that it called from."""
    request = context.fastmcp_context.request_context if context.fastmcp_context else None
    if request is None:
        return "-"
    params = request.session.client_params
    client = f"{_name(params.client_info.name)}/{_name(params.client_info.version)}" if params else "-"
    caller = request.request.client if request.request is not None else None
    return f"{client}@{caller.host}" if caller else client


def _name(text: str) -> str:
    return _STRANGE.sub("_", text[:_LONGEST_NAME]) or "-"
