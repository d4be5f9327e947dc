"""The tool `compare`, which returns figures about answers to the same rows."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastmcp import Context
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import BeforeValidator, Field

from promptmill.core.bounds import MOST_ROWS
from promptmill.core.errors import input_error
from promptmill.server.listed_tools import RARE, SKILL
from promptmill.server.results import INLINE, object_schema, objects_schema, page, page_characters, wants_copy
from promptmill.server.tool_calls import caller_of, tool
from promptmill.server.tool_socket import ToolSocket
from promptmill.server.tools import config_of_call

_COMPARISON = object_schema(
    {
        "rows_compared": {"type": "integer"},
        "matched": {"type": "string", "description": "The key by which rows are the same, such as `by id`."},
        "files": objects_schema(),
        "pairs": objects_schema("The agreement of two files; `changes` counts each pair of answers (`''`: rare ones)."),
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
    """Add the tool to the server, and a prompt for comparing models."""

    def compare_models(file: str, question: str, models: str) -> str:
        return _PROMPT.format(file=file, question=question, models=models, skill=SKILL)

    socket.add_prompt(compare_models, "Compare models on a file", "Agreement, accuracy and cost of two or more models.")
    mcp, service, questions, jobs = socket.mcp, socket.service, socket.questions, socket.jobs

    @tool(
        mcp,
        output_schema=_COMPARISON,
        meta=INLINE,
        annotations=ToolAnnotations(  # not read-only, because a judge receives the rows
            title="Compare answers", readOnlyHint=False, destructiveHint=False, idempotentHint=True, openWorldHint=True
        ),
    )
    async def compare(
        ctx: Context,
        *,
        files: Annotated[
            list[str], Field(description="Outputs of the same rows, or ids of their jobs; one with `gold` or `by`.")
        ],
        gold: Annotated[
            str | None, Field(description="The right answers of some rows: a column, a file, or `FILE:COLUMN`.")
        ] = None,
        by: Annotated[
            str | None, Field(description="The column that tells answers in one file apart, such as `variant`.")
        ] = None,
        criterion: Annotated[
            str | None,
            Field(
                description="What makes an answer better: 'is the better summary'. A model judges each pair, in a job."
            ),
        ] = None,
        report: Annotated[
            str | None, Field(description="Also write a report, an HTML page of all rows, to this file.")
        ] = None,
        field: Annotated[
            list[str] | None,
            Field(description="the columns, or fields of answers, to compare", json_schema_extra={RARE: ""}),
        ] = None,
        tolerance: Annotated[
            str | None,
            BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value),
            Field(description="numbers that differ by no more, 0.01 or 1%, are the same", json_schema_extra={RARE: ""}),
        ] = None,
        id: Annotated[  # noqa: A002 (the name is that of the tool's argument)
            str | None,
            Field(description="the column that identifies rows, `id` or the shared ones", json_schema_extra={RARE: ""}),
        ] = None,
        rows: Annotated[
            int,
            Field(ge=0, le=MOST_ROWS, description="most rows that differ to return, 10", json_schema_extra={RARE: ""}),
        ] = 10,
        judge: Annotated[
            str | None, Field(description="the judge, named as `model`", json_schema_extra={RARE: ""})
        ] = None,
        sampling_params: Annotated[
            dict[str, Any] | None, Field(description="of the judge", json_schema_extra={RARE: ""})
        ] = None,
        limit: Annotated[
            int | None, Field(ge=1, description="judge only N rows, drawn at random", json_schema_extra={RARE: ""})
        ] = None,
        again: Annotated[
            Literal["failed", "all"] | None, Field(description="judge these pairs again", json_schema_extra={RARE: ""})
        ] = None,
        max_cost: Annotated[
            float | None,
            Field(ge=0, description="most US dollars of the judgement, in all its runs", json_schema_extra={RARE: ""}),
        ] = None,
    ) -> ToolResult:
        """Compare answers to the same rows: agreement, accuracy by `gold`, whether a difference may be chance.

        Returns the figures and the first `rows` that differ. With `criterion`, wait for the job of `judge` with
        bulk_status, and make the same call again: no verdict is paid for twice.
        """
        from promptmill.features.compare import sandboxed  # imported on use: most servers compare nothing
        from promptmill.features.compare.judge import VERDICTS, JudgeOrder

        judging = {"judge": judge, "criterion": criterion, "limit": limit, "max_cost": max_cost, "again": again}
        asked, judged = JudgeOrder.of(judging, compares_several=len(files) > 1 or by is not None), None
        if asked is not None:
            config = await config_of_call(
                service, await service.job_config(judge, "judge"), None, sampling_params, VERDICTS
            )
            config = await service.resolved_config(config)
            await questions.check_endpoint(ctx, config)
            cost = questions.cost(ctx, config, max_cost, "This judgement")
            judged = sandboxed.Judge(asked, config, None if cost is None else cost.approve)
        elif sampling_params is not None:
            raise input_error("`sampling_params` needs `criterion`.")
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
