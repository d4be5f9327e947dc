"""The tool `improve`, which searches for a better prompt; labelled rows decide."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastmcp import Context
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field, WithJsonSchema

from promptmill.backends.protocol import Call, Facts
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import input_error
from promptmill.server.listed_tools import RARE
from promptmill.server.results import INLINE, object_schema, objects_schema, wants_copy
from promptmill.server.tool_calls import caller_of, tool, with_progress
from promptmill.server.tool_socket import ToolSocket
from promptmill.server.tools import config_of_call

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
_Again = Annotated[Literal["failed", "prompts"], WithJsonSchema({"type": "string", "enum": ["failed", "prompts"]})]


def add(socket: ToolSocket) -> None:
    """Add the tool to the server."""
    service, questions = socket.service, socket.questions

    @tool(
        socket.mcp,
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
        input_file: Annotated[str, Field(description="A table with 100 labelled rows or more.")],
        gold: Annotated[str, Field(description="The column of the right labels.")],
        prompt: Annotated[str, Field(description="The prompt to improve: Is it positive? {{text}}")],
        choices: Annotated[
            list[str] | dict[str, str], Field(description="The labels; an object also defines each of them.")
        ],
        strong: Annotated[str, Field(description="The model that writes prompts.")],
        model: Annotated[str | None, Field(description="The model that labels the rows.")] = None,
        max_cost: Annotated[float | None, Field(ge=0, description="Most US dollars of the whole search.")] = None,
        system_prompt: Annotated[
            str, Field(description="system prompt of every row", json_schema_extra={RARE: ""})
        ] = "",
        encoding: Annotated[
            str | None, Field(description="of a .csv that is not UTF-8, such as cp1252", json_schema_extra={RARE: ""})
        ] = None,
        sampling_params: Annotated[
            dict[str, Any] | None, Field(description="of `model`", json_schema_extra={RARE: ""})
        ] = None,
        again: Annotated[
            _Again | None,
            Field(
                description="`failed`: send failed rows again; `prompts`: let `strong` write other prompts",
                json_schema_extra={RARE: ""},
            ),
        ] = None,
    ) -> ToolResult:
        """Let `strong` write better prompts from the mistakes on labelled rows, and test the best one on held-out rows.

        `outcome` is `gain`, `cannot tell` or `worse`. Takes minutes and about twelve requests per row; while `state`
        is `running`, make the same call again: no answer is paid for twice.
        """
        from promptmill.features.improve.server_search import SearchModel, SearchOrder, ServerSearch, strong_config
        from promptmill.jobs.inputs.short_forms import labels_of

        running, labels = await socket.jobs(), labels_of(choices)
        if not prompt.strip() or not strong.strip():
            raise input_error("`prompt` and `strong` are texts, not empty ones.")
        labelling = await config_of_call(
            service, await service.job_config(model), None, {**(sampling_params or {}), **labels.sampling}, labels.texts
        )
        writing = strong_config(await service.job_config(strong, "strong"), labelling, max_cost)

        async def checked(config: ModelConfig) -> SearchModel:
            config = await service.resolved_config(config)
            await questions.check_endpoint(ctx, config)
            cost = questions.cost(ctx, config, max_cost, "This step of the search")
            return SearchModel(config, None if cost is None else cost.approve)

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
        search = ServerSearch(running, caller_of(ctx, service), order)
        work = search.figures(service.config.settings.max_call_s)
        found = await with_progress(ctx, service, Call(Facts()), work, lambda: search.words)
        return ToolResult(None if wants_copy(ctx) else "The figures are in the structured content.", found)
