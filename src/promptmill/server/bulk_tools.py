"""The bulk tools: file → file jobs over MCP."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastmcp import Context
from fastmcp.exceptions import ResourceError
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.core.bounds import LARGEST_PAGE, LONGEST_COLUMN, MOST_ROWS, MOST_VARIANTS
from promptmill.core.errors import Code, Named, PromptmillError, argument_name, input_error, worded
from promptmill.core.feature import features, part
from promptmill.core.values import JsonDict, json_text
from promptmill.jobs.store.status_record import Status, schema
from promptmill.options import table
from promptmill.options.check import check
from promptmill.server import arguments
from promptmill.server.results import (
    INLINE,
    PAGE_CHARACTERS,
    most_bytes,
    object_schema,
    objects_schema,
    page,
    page_characters,
    wants_copy,
)
from promptmill.server.table_arguments import with_options
from promptmill.server.tool_calls import caller_of, tool
from promptmill.server.tool_socket import ToolSocket
from promptmill.server.tools import plan_of_call, sampling_of_call
from promptmill.service.service import Service

if TYPE_CHECKING:
    from promptmill.jobs.caller import CallModels
    from promptmill.jobs.door import OpenJob, Rows
    from promptmill.jobs.manage.call_paths import CallPaths

_ENVELOPE = 4 << 10
_OTHER_ARGUMENTS = {"status": "bulk_status", "system_prompt": "`system_prompt`", "prompts": "`prompts`"}
_STATUS = schema(Status)
_ROWS = object_schema(
    {
        "job_id": {"type": "string"},
        "state": _STATUS["state"],
        "done": _STATUS["done"],
        "total": _STATUS["total"],
        "rows": objects_schema(
            "Each has `row`, its number from 1 (in the job of a call: `index`, the prompt's place), `answer`, "
            '"" for a failed row, and `error`, with `code` and `message` for a failed row, else null.'
        ),
        "columns": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The names in place of `answer`, `error`, … if input rows have fields with these names.",
        },
        "next_offset": {**_STATUS["total"], "description": "Offset of the next page; null at the end."},
    },
    "job_id",
    "state",
    "rows",
    "next_offset",
)
_SEVERAL = object_schema(
    {**_STATUS, "jobs": {"type": "array", "items": {"$ref": "#"}}}
)  # each has the schema of a single one


def _argument_of(named: Named) -> str | None:
    """Return the argument of `bulk_generate` for a field of an order; None if it has none."""
    if named.field in _OTHER_ARGUMENTS:
        return _OTHER_ARGUMENTS[named.field]
    option = table.options().get(named.field)
    name = None if option is None else option.name_on("argument")
    return None if name is None else argument_name(named._replace(field=name))


def _check_source(
    input_file: str, output_file: str, prompts: object, files: list[str] | None, options: Mapping[str, Any]
) -> None:
    """Raise `PromptmillError` (`invalid_input`) unless the rows have one source, and their answers a place."""
    if bool(input_file) + (prompts is not None) + (files is not None) != 1:
        raise input_error("Give one of `input_file`, `prompts` and `files`.")
    check(options, "file" if input_file else "values" if files is None else "files", "argument")
    if (input_file or options.get("each") == "line") and not output_file:
        raise input_error("`output_file` is missing: name the file for the answers.")


def _sent(options: Mapping[str, Any]) -> JsonDict:
    """Return the options that a call has: null leaves one out, and so does an empty text, except for `fields`."""
    return {name: value for name, value in options.items() if value is not None and (value != "" or name == "fields")}


def _models_of(model: str | list[str] | None, prompt: str | dict[str, str] | None) -> Sequence[str | None]:
    """Return the models of a job, None for the default one. Raises `PromptmillError` (`invalid_input`)."""
    models = [*dict.fromkeys(model)] if isinstance(model, list) else [model]
    if not models:
        raise input_error("`model` is an empty list; name a model, or leave it out.")
    if isinstance(prompt, dict) and not prompt:
        raise input_error("`prompt` is an empty object; name each prompt in it, or send one text.")
    names = {"model": models, "prompt": prompt if isinstance(prompt, dict) else ()}
    for argument, name in ((argument, name or "-") for argument, given in names.items() for name in given):
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_COLUMN:  # each row repeats it
            raise input_error(f"`{argument}`: a name has printable characters, {LONGEST_COLUMN} at most.")
    if (variants := len(models) * (len(prompt) if isinstance(prompt, dict) else 1)) > MOST_VARIANTS:
        raise input_error(f"Each row would get {variants} answers; at most {MOST_VARIANTS} are possible.")
    return models


async def _rows_of(
    paths: CallPaths,
    input_file: str,
    prompts: Sequence[Any] | None,
    files: list[str] | None,
    *,
    options: Mapping[str, Any],
    session: str,
) -> Rows:
    """Return the rows of a call. Equal rows of two sessions are two jobs: no client may learn what another one asks.

    Raises `PromptmillError` (`invalid_input`).
    """
    from promptmill.jobs.door import Rows  # imported by `jobs`, as are the next ones
    from promptmill.jobs.inputs.given import lines_of
    from promptmill.jobs.inputs.whole_files import RowFiles

    if prompts is not None:
        if not prompts:
            raise input_error("`prompts` is an empty list; send at least one prompt.")
        return Rows(blocks=lines_of(prompts, "text" if "prompt" in options else "prompt", "prompts"), owned_by=session)
    if files is None:
        return Rows([str(paths.allowed(input_file, "input_file"))])
    if options.get("each") != "line":
        return Rows(files, rule=paths.rule, owned_by=session)
    return Rows(await asyncio.to_thread(lambda: [*map(str, RowFiles(files, paths.rule).paths())]))


async def _models_of_call(service: Service, names: Sequence[str | None], asked: tuple[Any, Any, Any]) -> CallModels:
    """Return the models of a job: the first one, and those that the configuration names, if there are several.

    `asked`: the last arguments of `plan_of_call`, which raises the same errors.
    """
    from promptmill.jobs.caller import CallModels

    plan, *others = [await plan_of_call(service, await service.job_plan(name), *asked) for name in names]
    named = zip(names, (plan, *others), strict=True)
    plans = {name: own for name, own in named if others and name is not None and name in service.offered}
    return CallModels(await service.settled(plan), plans)


def _about_files(job: OpenJob) -> JsonDict:
    """Return the entries about the files of a call: how many, and which are left out."""
    if (found := job.files) is None:
        return {}
    left_out = [worded(reason, argument_name) for reason in found.left_out]
    pdf = "".join(worded(form, argument_name) for form in found.forms)
    about = {"left_out": left_out, "raw": found.raw, "pdf": pdf}
    return {"files": found.count, **{name: value for name, value in about.items() if value}}


def add_bulk_tools(socket: ToolSocket) -> None:
    """Add the tools of jobs and the resource of answers to the app."""
    mcp, service, questions, jobs = socket.mcp, socket.service, socket.questions, socket.jobs

    @tool(
        mcp,
        output_schema=object_schema({"message": {"type": "string"}, **_STATUS}, "job_id", "state"),
        annotations=ToolAnnotations(
            title="Answer a file of prompts",
            readOnlyHint=False,
            destructiveHint=True,  # again="all" replaces the answers so far
            idempotentHint=True,
            openWorldHint=True,
        ),
    )
    @with_options(*table.options().values())
    async def bulk_generate(
        ctx: Context,
        *,
        input_file: Annotated[
            str,
            Field(
                description="A file on the server's machine, inside its folders: .csv, .xlsx, .parquet, .jsonl, or .db "
                "(SQLite), whose rows hold `prompt` or `messages`, unless `prompt` or `prompt_column` is given. "
                "`book.xlsx#Sheet`, `mails.db#table`. .jsonl may have "
                '{"prompt": "…", "images": ["a.png"]} or OpenAI Batch API requests. Left out: `prompts` are the rows.',
                examples=["reviews.csv"],
            ),
        ] = "",
        output_file: Annotated[
            str,
            Field(
                description="The file for the answers, .csv, .xlsx, .parquet, .jsonl; it must be new. Written at the "
                "job's end, in input order: each input row plus `answer`, `error`, `usage`, `finish_reason`. May be "
                "left out only without `input_file`; read the answers with bulk_results then.",
                examples=["answers.csv"],
            ),
        ] = "",
        prompts: Annotated[
            Any,
            arguments.a_list(
                of={"type": "string"},
                description="The prompts, if `input_file` is left out; with `prompt`, texts for its {{text}}.",
                examples=[["What is the capital of France?", "What is the capital of Peru?"]],
            ),
        ] = None,
        files: Annotated[
            list[str] | None,
            Field(
                description="Paths, folders or patterns of texts, images or PDFs inside the server's folders, if "
                "`input_file` is left out: `prompt` goes out for each text, with {{content}} and {{path}}; without "
                "{{content}}, for each image. Contents are sent to the model and not returned. Hidden files and those "
                "that may hold secrets are left out.",
                examples=[["docs/**/*.md"]],
            ),
        ] = None,
        **options: Any,
    ) -> ToolResult:
        """Answer every row of a file, prompt of a list, or file of a folder, in the background.

        Returns `job_id` and `state` at once.

        Use it for many prompts, and for rows in a file. Then call bulk_status every few seconds until
        `state` is `finished`; bulk_results reads the answers so far. The job survives crashes: the same call resumes
        it, and answered rows are not sent again.
        """
        values = _sent(options)
        model, prompt = values.get("model"), values.get("prompt")
        validate = bool(values["validate"])
        names, running, caller = _models_of(model, prompt), await jobs(), caller_of(ctx, service)
        from promptmill.jobs.inputs.short_forms import answer_forms  # imported by `jobs`, as is the other one
        from promptmill.jobs.store.spec import plan_of

        try:
            _check_source(input_file, output_file, prompts, files, values)
            if values["overwrite"] and output_file and not validate:
                foreign = await asyncio.to_thread(running.visible.foreign_output, output_file)
                if foreign is not None:
                    await questions.check_replacing(ctx, *foreign)
            form = {"schema": None, "choices": None, "system": values.get("system_prompt")}
            form |= answer_forms({**values, "system": form["system"]})
            asked = form["schema"], values.get("sampling_params"), form["choices"]
            others = {way.model for way in plan_of(values, [name or "" for name in names]).ways} - {"", *names}
            models = await _models_of_call(service, [*names, *others], asked)
            if (input_file or files is not None) and not validate:
                await questions.check_endpoint(ctx, models.plan)
            cost = None if validate else questions.cost(ctx, models.plan, values.get("max_cost"), "This job")
            rows = await _rows_of(running.paths, input_file, prompts, files, options=values, session=caller.session)
            values |= {
                "system_prompt": form["system"],
                "fields": values.get("fields") is not False,
                "model": names if names[1:] else None,
                "limit": values.get("limit") or None,
                "sampling": sampling_of_call(*asked),
            }
            if "from_job" in values:
                values["from_job"] = await asyncio.to_thread(running.visible.find, values["from_job"], caller)
            output = running.paths.allowed(output_file, "output_file") if output_file else None
            async with running.opened(rows, output, values, models, caller) as job:
                about = {"files": len(rows.names)} if values.get("each") == "line" else _about_files(job)
                if "raw" in about and values.get("each") is None and not validate:  # before anything is sent
                    anyway = Named("each", "file", "; {} sends them all the same")
                    raise input_error(f"Nothing was sent yet; tell the user: {about['raw']}", anyway, ".")
                approve = None if cost is None else cost.approve
                started = await running.start(job, caller, approve, validate=validate) | about
        except PromptmillError as error:
            if error.code is Code.INVALID_INPUT:  # it names fields of the order
                raise input_error(error.worded(_argument_of)) from None
            raise
        return ToolResult(structured_content=started)

    _add_tools_of_a_job(socket)


def _add_tools_of_a_job(socket: ToolSocket) -> None:
    mcp, service, questions, jobs = socket.mcp, socket.service, socket.questions, socket.jobs
    further = [(part(each.option), each.run) for feature in features().values() for each in feature.controls]
    controls = {option.name: run for option, run in further}

    @tool(
        mcp,
        output_schema=_SEVERAL,
        annotations=ToolAnnotations(title="Progress of jobs", readOnlyHint=True, openWorldHint=False),
    )
    async def bulk_status(
        ctx: Context,
        job_id: Annotated[
            str | None,
            Field(
                description="The job's id, or its output file. Left out: the newest jobs, as a list `jobs`.",
                examples=["prompts-1f0c9a7b2e"],
            ),
        ] = None,
        limit: Annotated[
            int,
            Field(ge=1, le=MOST_ROWS, description="The largest number of jobs to list; 20 unless given."),
        ] = 20,
    ) -> JsonDict:
        """Report a job's progress: `state`, rows `done` and `failed` of `total`, `errors` by code, time left `eta_s`.

        Jobs that are `starting`, `running` or `merging` need no further call. `finished` is final. To resume a job that
        is `stopped` (see `reason`), `cancelled` or `interrupted`, call bulk_generate as before; for the job of another
        tool's call, bulk_control with `resume`.
        """
        return await asyncio.to_thread((await jobs()).status, job_id, limit, caller_of(ctx, service))

    @tool(
        mcp,
        output_schema=_ROWS,
        meta=INLINE,
        annotations=ToolAnnotations(title="Read a job's answers", readOnlyHint=True, openWorldHint=False),
    )
    async def bulk_results(
        ctx: Context,
        *,
        job_id: arguments.JobId,
        offset: Annotated[
            int,
            Field(ge=0, description="The number of rows to skip, 0 unless given; `next_offset` for the next page."),
        ] = 0,
        limit: Annotated[
            int,
            Field(ge=1, le=MOST_ROWS, description="The largest number of rows to return; 50 unless given."),
        ] = 50,
        with_input: Annotated[
            bool,
            Field(description="Also return the fields of the input rows; false unless given."),
        ] = False,
        only: Annotated[
            Literal["all", "answers", "failed"],
            Field(description="Return only `failed` rows, or only rows with `answers`; `all` unless given."),
        ] = "all",
        max_characters: Annotated[
            int,
            Field(
                ge=1000,
                description="Length of a page; further rows are on the next page. 40,000 unless given; less for a "
                "client that cuts longer results.",
            ),
        ] = PAGE_CHARACTERS,
    ) -> ToolResult:
        """Read a job's answers page by page, in input order, also while it runs.

        Returns `rows`, `state`, and `next_offset`: null at the end. Rows without an outcome are left out; until
        `state` is `finished`, read again later, with the number of the last row before them as `offset`.
        """
        results = functools.partial((await jobs()).visible.results, with_input=with_input)
        found = await asyncio.to_thread(results, job_id, caller_of(ctx, service), offset, limit, only)
        characters = page_characters(ctx) if max_characters == PAGE_CHARACTERS else max_characters
        found = await asyncio.to_thread(page, found, characters, copies=1)
        if (most := most_bytes(ctx, service.plan)) is not None:
            found = await asyncio.to_thread(page, found, most - _ENVELOPE, copies=2)
        return ToolResult(None if wants_copy(ctx) else "The rows are in the structured content.", found)

    @mcp.resource(
        "promptmill://jobs/{job_id}/answers{?offset}",
        name="answers",
        title="Answers of a job",
        description="A job's answers in input order, page by page: `next` is the address of the next page.",
        mime_type="application/json",
    )
    async def answers(ctx: Context, job_id: str, offset: int = 0) -> str:
        try:
            results = (await jobs()).visible.results
            found = await asyncio.to_thread(results, job_id, caller_of(ctx, service), max(0, offset), MOST_ROWS)
        except PromptmillError as error:
            raise ResourceError(str(error)) from None
        found = page(found, min(most_bytes(ctx, service.plan) or LARGEST_PAGE, LARGEST_PAGE) - _ENVELOPE, copies=1)
        after = found.pop("next_offset")
        found["next"] = None if after is None else f"promptmill://jobs/{job_id}/answers?offset={after}"
        return json_text(found)

    @tool(
        mcp,
        output_schema=object_schema(_STATUS, "job_id", "state"),
        annotations=ToolAnnotations(
            title="End a job", readOnlyHint=False, destructiveHint=False, idempotentHint=True, openWorldHint=False
        ),
    )
    async def bulk_cancel(ctx: Context, job_id: arguments.JobId) -> JsonDict:
        """End a running job. Its answers are kept and can be read; bulk_generate with the same files resumes it.

        Returns the same as bulk_status.
        """
        return dict(await (await jobs()).cancel(job_id, caller_of(ctx, service)))

    @tool(
        mcp,
        output_schema=object_schema(_STATUS, "job_id", "state"),
        annotations=ToolAnnotations(
            title="Pause, resume, limit or report a job",
            readOnlyHint=False,
            destructiveHint=False,
            idempotentHint=True,
            openWorldHint=True,
        ),
    )
    @with_options(*(option for option, _ in further))
    async def bulk_control(
        ctx: Context,
        *,
        job_id: arguments.JobId,
        paused: Annotated[
            bool | None,
            Field(description="True: send no further rows. False: send them again. Unchanged unless given."),
        ] = None,
        concurrency: Annotated[
            int | None, Field(ge=1, description="The most requests in flight at a time. Unchanged unless given.")
        ] = None,
        max_cost: Annotated[
            float | None,
            Field(ge=0, description="The most US dollars that all runs of the job may spend. Unchanged unless given."),
        ] = None,
        resume: Annotated[
            bool,
            Field(description="Run the job of a call that was stopped or interrupted; false unless given."),
        ] = False,
        **added: Any,
    ) -> JsonDict:
        """Pause or continue a running job, or change its limits, within two seconds; or write its report.

        Returns the same as bulk_status, and the `file` and `rows` of a `report`.
        """
        running, caller = await jobs(), caller_of(ctx, service)
        wanted = (("paused", paused), ("concurrency", concurrency), ("max_cost", max_cost))
        changes = {name: value for name, value in wanted if value is not None}
        if max_cost is not None and (cost := questions.cost(ctx, service.plan, max_cost, "This job")) is not None:
            await cost.approve(None, max_cost)
        found = await asyncio.to_thread(functools.partial(running.visible.control, job_id, caller, **changes))
        found = await running.resume_call(job_id, caller) if resume else found
        done = {
            name: await part(controls[name])(running, caller, job_id, value)
            for name, value in added.items()
            if value is not None
        }
        return {**found, **done}
