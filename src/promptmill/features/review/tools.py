"""The tool `review`, with which a person checks the rows of a job."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastmcp import Context
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.backends.protocol import Call, Facts
from promptmill.core.errors import input_error
from promptmill.features.review import MOST_REVIEWED
from promptmill.server.listed_tools import RARE
from promptmill.server.results import INLINE, object_schema, objects_schema, page, page_characters, wants_copy
from promptmill.server.tool_calls import caller_of, tool, with_progress
from promptmill.server.tool_socket import ToolSocket

_REVIEW = object_schema(
    {
        "job_id": {"type": "string"},
        "count": {"type": "integer", "description": "Number of rows to review, also those that do not fit in `rows`."},
        "reasons": {"type": "object", "additionalProperties": {"type": "integer"}},
        "labels": {"type": "array", "items": {"type": "string"}, "description": "All labels of the job."},
        "note": {"type": "string", "description": "Why the job stores no labels, or has no such row."},
        "file": {"type": "string"},
        "rows": objects_schema(
            "The most doubtful row first: `row`, its number from 1, `answer`, `why` and `score`, `label`, if the user "
            "gave one, the fields of the input, the other answers to it, `fields` to decide, each with its values "
            "and their places, and `key`, which identifies its question."
        ),
        "taken": {"type": "integer", "description": "New labels that were stored."},
        "changed": {"type": "integer", "description": "New labels that differ from the answer."},
        "taken_back": {"type": "integer", "description": "Labels whose rows have their earlier answer again."},
        "refused": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Labels that were not stored, with the reasons: show them to the user.",
        },
        "written": {"type": "boolean", "description": "Whether the output has them; else the job's next run does it."},
    },
    "job_id",
)


def add(socket: ToolSocket) -> None:
    """Add the tool to the app."""
    mcp, service, jobs = socket.mcp, socket.service, socket.jobs

    @tool(
        mcp,
        output_schema=_REVIEW,
        meta=INLINE,
        annotations=ToolAnnotations(
            title="Rows to check by hand",
            readOnlyHint=False,
            destructiveHint=True,  # the labels replace answers in the output (the job keeps the answers)
            openWorldHint=False,
        ),
    )
    async def review(
        ctx: Context,
        *,
        job_id: Annotated[str, Field(description="Its id or output file.")],
        rows: Annotated[int | None, Field(ge=1, le=MOST_REVIEWED, description="Most rows (default 50).")] = None,
        sample: Annotated[
            int | None,
            Field(
                ge=1,
                le=MOST_REVIEWED,
                description="Draw so many rows at random instead; their labels can be `gold` of compare.",
            ),
        ] = None,
        output_file: Annotated[
            str | None, Field(description="Also write all of them: .html, a page for the user, or .xlsx to fill in.")
        ] = None,
        decisions: Annotated[
            list[dict[str, Any]] | None,
            Field(
                description="The user's `row`, `key`, `label`: `-` takes it back, an object changes only its fields."
            ),
        ] = None,
        take: Annotated[
            str | None, Field(description="The same from a file that this tool wrote, filled in by the user.")
        ] = None,
        choices: Annotated[
            list[str] | None,
            Field(description="all labels, also those that are no answer", json_schema_extra={RARE: ""}),
        ] = None,
    ) -> ToolResult:
        """Find the rows of a job that a person should check, the most doubtful first; show them to the user.

        With `decisions` or `take`, store the user's labels in the job and its output. Never make labels up. Sends
        nothing to a model.
        """
        from promptmill.features.review import server_review  # imported on use: most servers review nothing

        running, caller = await jobs(), caller_of(ctx, service)
        if decisions is not None or take is not None:
            if (rows, sample, output_file) != (None,) * 3:
                raise input_error("`decisions` and `take` cannot be used with `rows`, `sample` or `output_file`.")
            taking = server_review.taken(running, caller, job_id, file=take, decisions=decisions, choices=choices)
            taken = await with_progress(ctx, service, Call(Facts()), taking, lambda: "writing the output")
            return ToolResult(structured_content=taken)
        reviewing = server_review.reviewed(
            running, caller, job_id, rows=rows, sample=sample, choices=choices, output_file=output_file
        )
        found = await with_progress(ctx, service, Call(Facts()), reviewing, lambda: "reading the rows")
        found = await asyncio.to_thread(page, found, page_characters(ctx), copies=1)
        return ToolResult(None if wants_copy(ctx) else "The rows are in the structured content.", found)
