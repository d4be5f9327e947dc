"""The bulk tools: file → file jobs over MCP. Their names and arguments are the wire's, like those in `server`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastmcp import FastMCP
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.server.refusals import said
from promptmill.service import Service

if TYPE_CHECKING:
    from promptmill.jobs.board import Board

_MOST_ROWS = 1000
_JobId = Annotated[str, Field(description="As bulk_generate returned it.")]


def add_bulk_tools(mcp: FastMCP, service: Service, *, default_roots: Sequence[Path] | None = None) -> None:
    """Add the four tools to the app.

    Files are read and written inside `allowed_roots`; when that is not set inside `default_roots`, None for the
    working directory.
    """

    def roots() -> list[Path]:
        named = service.plan.settings.allowed_roots
        if named is None:
            return [Path.cwd()] if default_roots is None else [root.resolve() for root in default_roots]
        return [Path(root).expanduser().resolve() for root in named]

    @functools.cache
    def board() -> Board:
        from promptmill.jobs.board import Board  # on the first use: servers start often, jobs do not

        return Board(service, roots)

    @mcp.tool(
        annotations=ToolAnnotations(title="Answer a file of prompts", readOnlyHint=False, destructiveHint=False),
    )
    @said
    async def bulk_generate(
        input_file: Annotated[
            str,
            Field(
                description='.jsonl with lines {"prompt"}, {"messages"} or {"prompt", "images"}, or Batch API lines; '
                ".csv or .parquet with such columns.",
                examples=["prompts.jsonl"],
            ),
        ],
        output_file: Annotated[
            str, Field(description="Written when every row is done, in input order: the row, and its `answer`.")
        ],
        system_prompt: Annotated[
            str, Field(description="Instruction above every row; empty: the configured one.")
        ] = "",
        resume: Annotated[  # noqa: FBT002 (the tool's signature is given)
            bool, Field(description="Go on with an unfinished job of these two files; false starts anew.")
        ] = True,
    ) -> dict[str, Any]:
        """Answer every row of a file into another file, in the background. Returns `job_id` at once.

        For thousands of prompts: the job survives crashes, and calling again with the same files goes on where it
        stopped. Watch it with bulk_status; answers can be read with bulk_results before the job's end.
        """
        return await board().start(input_file, output_file, system_prompt, resume=resume)

    @mcp.tool(annotations=ToolAnnotations(title="How far jobs are", readOnlyHint=True))
    @said
    async def bulk_status(
        job_id: Annotated[str | None, Field(description="One job; without it all of them, under `jobs`.")] = None,
    ) -> dict[str, Any]:
        """Tell how far a job is: `state`, rows `done` and `failed` of `total`, `errors` by code, rates, seconds left.

        States: starting, running, merging, finished; stopped (`reason` says why), cancelled, interrupted: these three
        go on with bulk_generate.
        """
        return await asyncio.to_thread(board().status, job_id)

    @mcp.tool(annotations=ToolAnnotations(title="Read a job's answers", readOnlyHint=True))
    @said
    async def bulk_results(
        job_id: _JobId,
        offset: Annotated[int, Field(ge=0, description="First row, from 0.")] = 0,
        limit: Annotated[int, Field(ge=1, le=_MOST_ROWS, description="Most rows to return.")] = 50,
    ) -> dict[str, Any]:
        """Read answered rows of a job in input order, page by page, also while it runs.

        Returns `rows` and `next_offset`, None at the end; rows without an answer yet are left out.
        """
        return await asyncio.to_thread(board().results, job_id, offset, limit)

    @mcp.tool(
        annotations=ToolAnnotations(title="End a job", readOnlyHint=False, destructiveHint=False, idempotentHint=True)
    )
    @said
    async def bulk_cancel(job_id: _JobId) -> dict[str, Any]:
        """End a running job. What is answered is kept, and bulk_generate goes on with it later."""
        return await board().cancel(job_id)
