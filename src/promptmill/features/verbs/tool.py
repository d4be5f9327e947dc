"""The tool of a verb: its arguments, and its result."""

from __future__ import annotations

import asyncio
from typing import Any

from fastmcp import Context
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations

from promptmill.backends.protocol import Call, Facts
from promptmill.core.feature import part
from promptmill.features.verbs.record import VerbRecord, VerbTool
from promptmill.server.bulk_tools import with_options
from promptmill.server.results import INLINE, page, page_characters, wants_copy
from promptmill.server.tool_calls import caller_of, tool, with_progress
from promptmill.server.tool_socket import ToolSocket


def add(verb: VerbRecord, socket: ToolSocket) -> None:
    """Add the tool of a verb to the server."""
    about: VerbTool = part(verb.tool)
    names = {option.argument.name or option.name: option.name for option in verb.every if option.argument is not None}

    async def called(ctx: Context, **given: Any) -> ToolResult:
        from promptmill.features.verbs.tool_call import ToolCall  # imported on use: most servers get no such call

        jobs, caller = await socket.jobs(), caller_of(ctx, socket.service)
        named = {names[name]: value for name, value in given.items()}
        options = about.resolved(verb.defaults | named, jobs, caller)
        call = ToolCall(verb, about=about, options=options, caller=caller, jobs=jobs, socket=socket, ctx=ctx)
        found = await with_progress(ctx, socket.service, [Call(Facts())], call.figures(), lambda: call.words)
        if isinstance(found.get("rows"), list):
            found = await asyncio.to_thread(page, found, page_characters(ctx), copies=1)
        return ToolResult(None if wants_copy(ctx) else about.text, found)

    called.__name__ = called.__qualname__ = verb.name
    called.__doc__ = about.words
    annotations = ToolAnnotations(
        title=about.title,
        readOnlyHint=False,
        destructiveHint=about.is_destructive,
        idempotentHint=about.is_idempotent,
        openWorldHint=about.is_open_world,
    )
    options = {"output_schema": about.schema, "meta": INLINE, "annotations": annotations}
    tool(socket.mcp, **options)(with_options(*verb.every)(called))
