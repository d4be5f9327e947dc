"""Registers the page as a resource and links it to the tools whose results it shows, only for hosts that show pages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import mcp_types
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from fastmcp.resources import Resource
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool

from promptmill.server.tool_socket import ToolSocket

ADDRESS = "ui://promptmill/job.html"
TOOLS = frozenset({"bulk_generate", "bulk_status", "compare"})
"""The tools whose results the page shows. The page itself calls `bulk_status` and `review`."""


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
        from promptmill.features.app.chat_page import html  # the start of a server does not need it

        return await asyncio.to_thread(html)

    socket.mcp.add_middleware(_Named())


class _Named(Middleware):
    """For hosts that show such pages: lists the page as a resource, and names it in the list of tools."""

    async def on_list_resources(
        self,
        context: MiddlewareContext[mcp_types.ListResourcesRequest],
        call_next: CallNext[mcp_types.ListResourcesRequest, Sequence[Resource]],
    ) -> Sequence[Resource]:
        """Return the resources, with the page if the host shows pages."""
        found = await call_next(context)
        return found if _shows_pages(context) else [one for one in found if str(one.uri) != ADDRESS]

    async def on_list_tools(
        self,
        context: MiddlewareContext[mcp_types.ListToolsRequest],
        call_next: CallNext[mcp_types.ListToolsRequest, Sequence[Tool]],
    ) -> Sequence[Tool]:
        """Return the tools, with the page's name if the host shows pages."""
        tools = await call_next(context)
        return [_with_page(tool) if tool.name in TOOLS else tool for tool in tools] if _shows_pages(context) else tools


def _shows_pages(context: MiddlewareContext[Any]) -> bool:
    host = context.fastmcp_context
    return host is not None and host.client_supports_extension(UI_EXTENSION_ID)


def _with_page(tool: Tool) -> Tool:
    return tool.model_copy(update={"meta": {**(tool.meta or {}), "ui": {"resourceUri": ADDRESS}}})
