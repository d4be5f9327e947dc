"""The tool `compare`: the answers to the same rows, as figures."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastmcp import Context
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import BeforeValidator, Field

from promptmill.core.bounds import MOST_ROWS
from promptmill.core.errors import input_error
from promptmill.server.results import INLINE, object_schema, objects_schema, page, page_characters, wants_copy
from promptmill.server.tool_calls import caller_of, tool
from promptmill.server.tool_socket import SKILL, ToolSocket
from promptmill.server.tools import plan_of_call

_COMPARISON = object_schema(
    {
        "rows_compared": {"type": "integer"},
        "matched": {"type": "string", "description": "The key by which rows are the same, such as `by id`."},
        "files": objects_schema(),
        "pairs": objects_schema("The agreement of two files; `changes` counts each pair of answers."),
        "gold": {
            "type": "object",
            "description": "The figures against the right answers.",
            "additionalProperties": True,
        },
        "judge": {
            "type": "object",
            "description": "The verdicts so far by pair of files, and the state of the judge's job.",
            "additionalProperties": True,
        },
        "rows": objects_schema("Rows whose answers differ, with their number from 1."),
    },
    "rows_compared",
    "files",
    "rows",
)


_PROMPT = """\
Compare the models {models} on the file {file} with promptmill, for this question: {question}

1. Call `bulk_generate` with all of these models as the list `model`, with `validate: true` and a new `output_file` in \
the folder of the file; `prompt` asks the question and names columns as {{{{column}}}}. Report the cost, and ask \
whether to start.
2. Make the same call without `validate`, and call `bulk_status` until it is `finished`.
3. Call `compare` with the output as `files`, `by: "variant"`, and with the column of the right answers as `gold` if \
there is one.
4. Say which model is better, whether the difference may be chance, and what each costs. The resource {skill} \
explains more.\
"""


def add(socket: ToolSocket) -> None:
    """Add the tool to the server, and a prompt that compares models."""

    def compare_models(file: str, question: str, models: str) -> str:
        return _PROMPT.format(file=file, question=question, models=models, skill=SKILL)

    compare_models.__name__ = "compare"  # the tool has this name here
    socket.add_prompt(compare_models, "Compare models on a file", "Agreement, accuracy and cost of two or more models.")
    mcp, service, questions, jobs = socket.mcp, socket.service, socket.questions, socket.jobs

    @tool(
        mcp,
        output_schema=_COMPARISON,
        meta=INLINE,
        annotations=ToolAnnotations(  # a judge gets the rows
            title="Compare answers", readOnlyHint=False, destructiveHint=False, idempotentHint=True, openWorldHint=True
        ),
    )
    async def compare(
        ctx: Context,
        *,
        files: Annotated[
            list[str],
            Field(
                description="Two or more outputs of the same rows, or ids of their jobs; one with `gold` or `by`.",
                examples=[["labels-a.csv", "labels-b.csv"]],
            ),
        ],
        gold: Annotated[
            str | None,
            Field(
                description="The right answers of all or some rows: a column of any of the files, a file, or "
                "`FILE:COLUMN`. None unless given.",
                examples=["label", "gold.csv"],
            ),
        ] = None,
        field: Annotated[
            list[str] | None,
            Field(
                description="The columns, or fields of the answers, to compare; left out: all fields, or the answers."
            ),
        ] = None,
        by: Annotated[
            str | None,
            Field(description="The column that divides the rows of one file, such as `variant`; none unless given."),
        ] = None,
        tolerance: Annotated[
            str | None,
            BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value),
            Field(description="Numbers that differ by no more are the same; 0 unless given.", examples=["0.01", "1%"]),
        ] = None,
        id: Annotated[  # noqa: A002 (a tool's argument)
            str | None, Field(description="The column that identifies rows; left out: `id`, or the shared columns.")
        ] = None,
        rows: Annotated[
            int,
            Field(ge=0, le=MOST_ROWS, description="The largest number of rows that differ to return; 10 unless given."),
        ] = 10,
        criterion: Annotated[
            str | None,
            Field(
                description="What makes an answer better, such as: is the better summary. Then a model judges each "
                "pair of different answers, in both orders, as a job in the background. Nothing is sent unless given."
            ),
        ] = None,
        judge: Annotated[
            str | None,
            Field(description="The judge's name, as `model` of bulk_generate; the default model if left out."),
        ] = None,
        sampling_params: Annotated[
            dict[str, Any] | None, Field(description="Of the judge, such as temperature; as configured if left out.")
        ] = None,
        limit: Annotated[
            int | None, Field(ge=1, description="Judge only N rows, drawn at random; all unless given.")
        ] = None,
        again: Annotated[
            Literal["failed", "all"] | None, Field(description="Judge these pairs again; none unless given.")
        ] = None,
        max_cost: Annotated[
            float | None, Field(ge=0, description="The most US dollars that this judgement may cost, in all its runs.")
        ] = None,
        report: Annotated[
            str | None,
            Field(description="Write a report, an HTML page with all rows, to this file; none unless given."),
        ] = None,
    ) -> ToolResult:
        """Compare answers to the same rows: agreement, and with `gold` accuracy, F1 and paired differences.

        Returns the figures, and in `rows` the first rows whose answers differ. With `criterion`, `judge` has the
        verdicts so far, and `job_id` and `state` of their job: call bulk_status until it is `finished`, then make the
        same call without `again`, which pays for no verdict twice.
        """
        from promptmill.features.compare import sandboxed  # imported by the first use: most servers compare nothing
        from promptmill.features.compare.judge import VERDICTS, JudgeOrder

        judging = {"judge": judge, "criterion": criterion, "limit": limit, "max_cost": max_cost, "again": again}
        asked, judged = JudgeOrder.of(judging, compares_several=len(files) > 1 or by is not None), None
        if asked is not None:
            plan = await plan_of_call(service, await service.job_plan(judge, "judge"), None, sampling_params, VERDICTS)
            plan = await service.settled(plan)
            await questions.check_endpoint(ctx, plan)
            cost = questions.cost(ctx, plan, max_cost, "This judgement")
            judged = sandboxed.Judge(asked, plan, None if cost is None else cost.approve)
        elif sampling_params is not None:
            raise input_error("`sampling_params` goes with `criterion`.")
        options = {"field": field, "by": by, "tolerance": tolerance, "id": id}
        found = await sandboxed.compared(
            await jobs(),
            caller_of(ctx, service),
            files,
            gold=gold,
            rows=rows,
            options=options,
            report=report,
            judge=judged,
        )
        found = await asyncio.to_thread(page, found, page_characters(ctx), copies=1)
        return ToolResult(None if wants_copy(ctx) else "The figures are in the structured content.", found)
