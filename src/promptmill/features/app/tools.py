"""Registers the page as a resource and links it to the tools whose results it shows, only for hosts that show pages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import mcp_types
from fastmcp import Context
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from fastmcp.resources import Resource
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool, ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.features.app import MOST_PICTURES
from promptmill.server.results import object_schema
from promptmill.server.tool_calls import caller_of, tool
from promptmill.server.tool_socket import ToolSocket

ADDRESS = "ui://promptmill/job.html"
TOOLS = frozenset({"bulk_generate", "compare"})
"""The tools whose results the page shows. `bulk_status`, which a model calls again and again, would add a page of the
same job each time. The page itself calls `bulk_status`, `review` and `job_pictures`."""
PICTURES = "job_pictures"
_FOUND = object_schema(
    {
        "job_id": {"type": "string"},
        "columns": {"type": "array", "items": {"type": "string"}, "description": "Columns that may name the images."},
        "pictures": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "By the number of the row: a JPEG in base64.",
        },
    },
    "job_id",
)


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
        from promptmill.features.app.chat_page import html  # imported on use: the start of a server does not need it

        return await asyncio.to_thread(html)

    @tool(
        socket.mcp,
        output_schema=_FOUND,
        meta={"ui": {"visibility": ["app"]}},  # hides it from the model
        annotations=ToolAnnotations(
            title="Pictures of the rows of a job",
            readOnlyHint=True,
            idempotentHint=True,
            openWorldHint=False,
        ),
    )
    async def job_pictures(
        ctx: Context,
        *,
        job_id: Annotated[str, Field(description="Its id or output file.")],
        rows: Annotated[
            list[Annotated[int, Field(ge=1, le=1 << 53)]],
            Field(min_length=1, max_length=MOST_PICTURES, description="The numbers of the rows."),
        ],
    ) -> ToolResult:
        """Return small pictures of the images of rows, for the page alone."""
        from promptmill.features.app import pictures  # imported on use: most servers show no pictures

        found = await pictures.pictures(await socket.jobs(), caller_of(ctx, socket.service), job_id, rows)
        return ToolResult("The pictures are in the structured content.", found)

    socket.mcp.add_middleware(_Named())


class _Named(Middleware):
    """For hosts that show such pages: lists the page and its tool, and names the page in the list of tools."""

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
        if _shows_pages(context):
            return [_with_page(one) if one.name in TOOLS else one for one in tools]
        return [one for one in tools if one.name != PICTURES]


def _shows_pages(context: MiddlewareContext[Any]) -> bool:
    host = context.fastmcp_context
    return host is not None and host.client_supports_extension(UI_EXTENSION_ID)


def _with_page(tool: Tool) -> Tool:
    return tool.model_copy(update={"meta": {**(tool.meta or {}), "ui": {"resourceUri": ADDRESS}}})
