"""The tools `review` and `review_take`: a person reviews the rows of a job."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastmcp import Context
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.backends.protocol import Call, Facts
from promptmill.core.values import JsonDict
from promptmill.features.review import MOST_REVIEWED
from promptmill.server.results import INLINE, object_schema, objects_schema, page, page_characters, wants_copy
from promptmill.server.tool_calls import caller_of, tool, with_progress
from promptmill.server.tool_socket import ToolSocket

_REVIEW = object_schema(
    {
        "job_id": {"type": "string"},
        "count": {"type": "integer", "description": "Number of rows to review, also those that do not fit in `rows`."},
        "reasons": {"type": "object", "additionalProperties": {"type": "integer"}},
        "labels": {"type": "array", "items": {"type": "string"}, "description": "The labels of all answers."},
        "file": {"type": "string"},
        "rows": objects_schema(
            "The most doubtful row first: `row`, its number from 1, `answer`, `why` and `score`, `label`, if the user "
            "gave one, the fields of the input, the other answers to it, and `key`, which identifies its question."
        ),
    },
    "job_id",
    "count",
    "rows",
)
_TAKEN = object_schema(
    {
        "job_id": {"type": "string"},
        "taken": {"type": "integer", "description": "New labels."},
        "changed": {"type": "integer", "description": "New labels that differ from the answer."},
        "taken_back": {"type": "integer", "description": "Labels whose rows have their earlier answer again."},
        "written": {"type": "boolean", "description": "Whether the output has them; else the job's next run does it."},
    },
    "job_id",
    "taken",
    "changed",
    "taken_back",
    "written",
)
_Job = Annotated[str, Field(description="The job's id, or its output file.", examples=["labels.csv"])]
_Labels = Annotated[
    list[str] | None, Field(description="All labels, also without an answer; the labels of the answers unless given.")
]


def add(socket: ToolSocket) -> None:
    """Add the tools to the app."""
    mcp, service, jobs = socket.mcp, socket.service, socket.jobs

    @tool(
        mcp,
        output_schema=_REVIEW,
        meta=INLINE,
        annotations=ToolAnnotations(
            title="Rows worth a person's minute", readOnlyHint=False, destructiveHint=False, openWorldHint=False
        ),
    )
    async def review(
        ctx: Context,
        *,
        job_id: _Job,
        rows: Annotated[
            int | None, Field(ge=1, le=MOST_REVIEWED, description="The number of rows; 50 unless given.")
        ] = None,
        sample: Annotated[
            int | None,
            Field(
                ge=1,
                le=MOST_REVIEWED,
                description="N rows drawn at random instead, for the `gold` of `compare`; none unless given.",
            ),
        ] = None,
        choices: _Labels = None,
        output_file: Annotated[
            str | None,
            Field(
                description="Also write all rows to this file: .html, a page for the user that saves the decisions as "
                "a .csv; or a new .xlsx with a column `label` to fill in. None unless given.",
                examples=["review.html"],
            ),
        ] = None,
    ) -> ToolResult:
        """Find the rows of a job whose labels a person should check: ties, models that disagree, low scores, failures.

        Returns `rows`, the most doubtful first. Show them to the user, or give the user the `output_file`; then call
        review_take with the user's labels. Nothing is sent to a model.
        """
        from promptmill.features.review import call_review  # imported by the first use: most servers review nothing

        reviewing = call_review.reviewed(
            await jobs(),
            caller_of(ctx, service),
            job_id,
            rows=rows,
            sample=sample,
            choices=choices,
            output_file=output_file,
        )
        found = await with_progress(ctx, service, Call(Facts()), reviewing, lambda: "reading the rows")
        found = await asyncio.to_thread(page, found, page_characters(ctx), copies=1)
        return ToolResult(None if wants_copy(ctx) else "The rows are in the structured content.", found)

    @tool(
        mcp,
        output_schema=_TAKEN,
        annotations=ToolAnnotations(
            title="Take a person's labels",
            readOnlyHint=False,
            destructiveHint=True,  # the output's answers are replaced; the job keeps them
            idempotentHint=True,
            openWorldHint=False,
        ),
    )
    async def review_take(
        ctx: Context,
        *,
        job_id: _Job,
        take: Annotated[
            str | None,
            Field(
                description="The file of a review with the labels filled in; or `decisions`.",
                examples=["labels.decisions.csv"],
            ),
        ] = None,
        decisions: Annotated[
            list[dict[str, Any]] | None,
            Field(
                description="The user's labels, if they are in no file: `row` and `key` as in the review, and `label`; "
                "`-` takes an earlier label back.",
                examples=[[{"row": 3, "key": "5f0c9a7b2e11", "label": "yes"}]],
            ),
        ] = None,
        choices: _Labels = None,
    ) -> JsonDict:
        """Store the labels that the user gave to rows of a job, and write the job's output again. Never make them up.

        All labels are checked before the first is stored. No later run replaces them.
        """
        from promptmill.features.review import call_review

        taking = call_review.taken(
            await jobs(), caller_of(ctx, service), job_id, file=take, decisions=decisions, choices=choices
        )
        return await with_progress(ctx, service, Call(Facts()), taking, lambda: "writing the output")
