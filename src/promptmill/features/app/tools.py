"""Registers the page as a resource and links it to the tools whose results it shows, only for hosts that show pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import mcp_types
from fastmcp import Context
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from fastmcp.resources import Resource
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool, ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.features.app import LONGEST, MOST_IN_WINDOW, MOST_PICTURES, SHORT
from promptmill.server.results import object_schema, objects_schema
from promptmill.server.tool_calls import caller_of, tool
from promptmill.server.tool_socket import ToolSocket

ADDRESS = "ui://promptmill/job.html"
TOOLS = frozenset({"bulk_generate", "compare"})
"""The tools whose results the page shows. `bulk_status`, which a model calls again and again, would add a page of the
same job each time. The page itself calls `bulk_status`, `review` and the tools of `OWN_TOOLS`."""
PICTURES, ROWS = "job_pictures", "job_rows"
OWN_TOOLS = frozenset({PICTURES, ROWS})
"""The tools for the page alone, which hosts hide from the model."""
_OF_PAGE = {"ui": {"visibility": ["app"]}}
_WINDOW = object_schema(
    {
        "job_id": {"type": "string"},
        "columns": objects_schema("The columns of the table."),
        "found": {"type": "integer", "description": "Number of rows of the view."},
        "all": {"type": "integer", "description": "Number of all rows with an answer or a failure."},
        "rows": {
            "type": "object",
            "additionalProperties": True,
            "description": "From `offset` on: the `number` and `state` of each row, and the `cells` of each column.",
        },
    },
    "job_id",
    "rows",
)
_FOUND = object_schema(
    {
        "job_id": {"type": "string"},
        "columns": {"type": "array", "items": {"type": "string"}, "description": "Columns that may name the images."},
        "pictures": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "By the number of the row: a JPEG in base64.",
        },
        "pages": {
            "type": "object",
            "additionalProperties": True,
            "description": "By the number of the row: `page`, `width` and `height` in points, and a PNG in base64.",
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
        meta=_OF_PAGE,
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
        pages: Annotated[bool, Field(description="The pages of PDFs with quotes instead.")] = False,
    ) -> ToolResult:
        """Return small pictures of the images of rows, only for the page."""
        from promptmill.features.app import pictures  # imported on use: most servers show no pictures

        shown = pictures.pages if pages else pictures.pictures
        found = await shown(await socket.jobs(), caller_of(ctx, socket.service), job_id, rows)
        return ToolResult("The pictures are in the structured content.", found)

    orders: dict[tuple[object, ...], list[int]] = {}

    @tool(
        socket.mcp,
        output_schema=_WINDOW,
        meta=_OF_PAGE,
        annotations=ToolAnnotations(
            title="Rows of a job",
            readOnlyHint=True,
            idempotentHint=True,
            openWorldHint=False,
        ),
    )
    async def job_rows(
        ctx: Context,
        *,
        job_id: Annotated[str, Field(description="Its id or output file.")],
        offset: Annotated[int, Field(ge=0, description="Rows of the view to skip.")] = 0,
        limit: Annotated[int, Field(ge=1, le=MOST_IN_WINDOW, description="Most rows.")] = 50,
        longest: Annotated[int, Field(ge=1, le=LONGEST, description="Characters of a cell.")] = SHORT,
        search: Annotated[str, Field(max_length=1000, description="A text that a cell of the row has.")] = "",
        show: Annotated[Literal["all", "failed", "answered"], Field(description="Which rows.")] = "all",
        sort: Annotated[str, Field(description="The column of the order; else failed rows first, the newest.")] = "",
        down: Annotated[bool, Field(description="The order backwards.")] = False,
        row: Annotated[int | None, Field(ge=1, description="This row alone, by its number.")] = None,
        wanted: Annotated[dict[str, str] | None, Field(description="By column: the whole text of the cell.")] = None,
    ) -> ToolResult:
        """Return the status of a job and a window of its rows, only for the page."""
        from promptmill.features.app import window  # imported on use: most servers show no pages

        began, view = time.monotonic(), window.View(search, show, sort, down, wanted, row)
        jobs, caller = await socket.jobs(), caller_of(ctx, socket.service)
        found = await window.window(jobs, caller, job_id, view, orders, offset=offset, limit=limit, longest=longest)
        took = {"seconds": round(time.monotonic() - began, 3)}  # the page waits ten times as long until it asks again
        return ToolResult("The rows are in the structured content.", found, took)

    socket.mcp.add_middleware(_Named())


class _Named(Middleware):
    """For hosts that show such pages: lists the page and its tools, and names the page in the list of tools."""

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
        return [one for one in tools if one.name not in OWN_TOOLS]


def _shows_pages(context: MiddlewareContext[Any]) -> bool:
    host = context.fastmcp_context
    return host is not None and host.client_supports_extension(UI_EXTENSION_ID)


def _with_page(tool: Tool) -> Tool:
    return tool.model_copy(update={"meta": {**(tool.meta or {}), "ui": {"resourceUri": ADDRESS}}})
