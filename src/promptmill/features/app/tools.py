"""The page as a resource, and the tools whose results it shows: only hosts that can show it learn of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import mcp_types
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool

from promptmill.server.tool_socket import ToolSocket

ADDRESS = "ui://promptmill/job.html"
TOOLS = frozenset({"bulk_generate", "bulk_status", "compare"})
"""The tools whose results the page shows. It calls `bulk_status` and `review` itself."""


def add(socket: ToolSocket) -> None:
    """Add the page to the server."""

    @socket.mcp.resource(
        ADDRESS,
        name="job",
        title="A job, live",
        description="Progress, cost and rows of a job, and the review of its unsure rows, for hosts of MCP Apps.",
        mime_type=UI_MIME_TYPE,
        meta={"ui": {"csp": {}, "prefersBorder": True}},
    )
    async def page() -> str:
        from promptmill.features.app.chat_page import html  # a server's start does not need it

        return await asyncio.to_thread(html)

    socket.mcp.add_middleware(_Named())


class _Named(Middleware):
    """Names the page in the list of tools, for a host that shows such pages."""

    async def on_list_tools(
        self,
        context: MiddlewareContext[mcp_types.ListToolsRequest],
        call_next: CallNext[mcp_types.ListToolsRequest, Sequence[Tool]],
    ) -> Sequence[Tool]:
        """Return the tools."""
        tools, fastmcp = await call_next(context), context.fastmcp_context
        if fastmcp is None or not fastmcp.client_supports_extension(UI_EXTENSION_ID):
            return tools
        return [_with_page(tool) if tool.name in TOOLS else tool for tool in tools]


def _with_page(tool: Tool) -> Tool:
    return tool.model_copy(update={"meta": {**(tool.meta or {}), "ui": {"resourceUri": ADDRESS}}})
