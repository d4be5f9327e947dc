"""The tools for right labels: a person reviews the rows of a job, and labelled rows decide which prompt is better."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastmcp import Context, FastMCP
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field, WithJsonSchema

from promptmill.backends.protocol import Call, Facts
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.bounds import MOST_REVIEWED
from promptmill.core.errors import input_error
from promptmill.core.values import JsonDict
from promptmill.server import arguments
from promptmill.server.bulk_tools import imported
from promptmill.server.questions import Questions
from promptmill.server.results import INLINE, object_schema, objects_schema, page, page_characters, wants_copy
from promptmill.server.tool_calls import caller_of, tool, with_progress
from promptmill.server.tools import plan_of_call
from promptmill.service.service import Service

if TYPE_CHECKING:
    from promptmill.jobs.manage.running_jobs import RunningJobs

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
_SEARCH = object_schema(
    {
        "state": {"type": "string", "description": "`finished`; `running`: make the same call again, without `again`."},
        "step": {"type": "string", "description": "The step of a running search; `job_id` is its job."},
        "outcome": {"type": "string", "description": "`gain`, `cannot tell` or `worse`, by the held-out rows."},
        "prompt": {"type": "string", "description": "The winner; the given prompt if `winner` is `yours`."},
        "winner": {"type": "string"},
        "test": {
            "type": "object",
            "description": "The test on the held-out rows: gain, interval and p.",
            "additionalProperties": True,
        },
        "candidates": objects_schema("All prompts; `right` counts the seen rows, which chose the winner."),
        "cost": {"type": "number", "description": "Of all runs, in US dollars; absent without a price."},
    },
    "state",
)
_Job = Annotated[str, Field(description="The job's id, or its output file.", examples=["labels.csv"])]
_Failed = Annotated[Literal["failed"], WithJsonSchema({"type": "string", "enum": ["failed"]})]
_Labels = Annotated[
    list[str] | None, Field(description="All labels, also without an answer; the labels of the answers unless given.")
]


def add_label_tools(
    mcp: FastMCP, service: Service, running_jobs: Callable[[], RunningJobs], questions: Questions
) -> None:
    """Add the tools to the app."""
    jobs = functools.partial(imported, running_jobs)

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
        from promptmill.report import call_review  # imported by the first use: most servers review nothing

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
        from promptmill.report import call_review

        taking = call_review.taken(
            await jobs(), caller_of(ctx, service), job_id, file=take, decisions=decisions, choices=choices
        )
        return await with_progress(ctx, service, Call(Facts()), taking, lambda: "writing the output")

    @tool(
        mcp,
        output_schema=_SEARCH,
        meta=INLINE,
        annotations=ToolAnnotations(
            title="Find a better prompt",
            readOnlyHint=False,
            destructiveHint=False,
            idempotentHint=True,
            openWorldHint=True,
        ),
    )
    async def improve(
        ctx: Context,
        *,
        input_file: Annotated[
            str,
            Field(
                description="A file of rows, at least 100 of them with right labels; .csv, .xlsx, .parquet, .jsonl or "
                ".db, as for bulk_generate.",
                examples=["reviews.csv"],
            ),
        ],
        gold: Annotated[str, Field(description="The column of the right labels.", examples=["label"])],
        prompt: Annotated[str, Field(description="The prompt to improve.", examples=["Is it positive? {{text}}"])],
        choices: Annotated[
            list[str] | dict[str, str],
            Field(description="The labels; an object also defines each of them.", examples=[["positive", "negative"]]),
        ],
        strong: Annotated[
            str, Field(description="The model that writes better prompts, named as `model`.", examples=["good-1"])
        ],
        model: Annotated[
            str | None,
            Field(description="The model that labels the rows, as in bulk_generate; the default model if left out."),
        ] = None,
        system_prompt: arguments.SystemPrompt = "",
        encoding: Annotated[str | None, Field(description="Of a .csv that is not UTF-8, such as cp1252.")] = None,
        sampling_params: Annotated[
            dict[str, Any] | None, Field(description="Of `model`, such as max_tokens; as configured if left out.")
        ] = None,
        max_cost: Annotated[
            float | None, Field(ge=0, description="The most US dollars that the whole search may cost, in all calls.")
        ] = None,
        again: Annotated[_Failed | None, Field(description="Send failed rows again; none unless given.")] = None,
    ) -> ToolResult:
        """Have the model `strong` write better prompts from the mistakes on labelled rows, and test the best of them.

        Half of the rows choose the best prompt, and half decide: `outcome` is `gain`, `cannot tell` or `worse`. Takes
        minutes, and some twelve requests for each row. The same call resumes a search that was cancelled, stopped or
        killed, and pays for no answer twice. Use the `prompt` of a `gain` in bulk_generate.
        """
        from promptmill.improvement.call_search import CallModel, CallSearch, SearchOrder, strong_plan
        from promptmill.jobs.inputs.short_forms import labels_of

        running, labels = await jobs(), labels_of(choices)
        if not prompt.strip() or not strong.strip():
            raise input_error("`prompt` and `strong` are texts, not empty ones.")
        labelling = await plan_of_call(
            service, await service.job_plan(model), None, sampling_params, list(labels.texts)
        )
        writing = strong_plan(await service.job_plan(strong, "strong"), labelling, max_cost)

        async def checked(plan: ResolvedConfig) -> CallModel:
            plan = await service.settled(plan)
            await questions.check_endpoint(ctx, plan)
            cost = questions.cost(ctx, plan, max_cost, "This step of the search")
            return CallModel(plan, None if cost is None else cost.approve)

        order = SearchOrder(
            input_file,
            gold,
            prompt,
            labels,
            await checked(labelling),
            await checked(writing),
            system_prompt=system_prompt,
            encoding=encoding,
            again=again,
            max_cost=max_cost,
        )
        search = CallSearch(running, caller_of(ctx, service), order)
        work = search.figures(service.plan.settings.max_call_s)
        found = await with_progress(ctx, service, Call(Facts()), work, lambda: search.words)
        return ToolResult(None if wants_copy(ctx) else "The figures are in the structured content.", found)
