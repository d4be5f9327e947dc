"""The bulk tools: MCP tools that start and control jobs, and read their answers."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_origin

from fastmcp import Context
from fastmcp.exceptions import ResourceError
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.backends.protocol import Call, Facts
from promptmill.core.bounds import LARGEST_PAGE, LONGEST_COLUMN, MOST_ROWS, MOST_VARIANTS
from promptmill.core.errors import Code, Named, PromptmillError, argument_name, input_error, worded
from promptmill.core.feature import features, part
from promptmill.core.values import JsonDict, json_text
from promptmill.files.format_table import has_tables
from promptmill.files.path_formats import names_for_calls
from promptmill.jobs.caller import Caller
from promptmill.jobs.store.status_record import Status, schema
from promptmill.options import table
from promptmill.options.check import check
from promptmill.options.option import Argument, Option, sentence
from promptmill.server import arguments
from promptmill.server.listed_tools import RARE
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
from promptmill.server.tool_calls import caller_of, tool, with_progress
from promptmill.server.tool_socket import ToolSocket
from promptmill.server.tools import config_of_call, sampling_of_call
from promptmill.service.model import TOY
from promptmill.service.service import Service

if TYPE_CHECKING:
    from promptmill.jobs.caller import CallModels
    from promptmill.jobs.door import OpenJob, Rows
    from promptmill.jobs.manage.call_paths import CallPaths
    from promptmill.jobs.manage.server_jobs import ServerJobs

F = TypeVar("F", bound=Callable[..., Any])
_ENVELOPE = 4 << 10
_READ_AHEAD = 2  # the rows of this many pages are read for one page, whose length is known only when it is written
_LOOK_S, _LONGEST_WAIT_S = 0.5, 60  # seconds between polls, and the longest wait: clients abort a call after a minute
_MOST_LISTED, _MOST_READ = 20, 50
_OTHER_ARGUMENTS = {"system_prompt": "`system_prompt`", "prompts": "`prompts`"}
_STATUS = schema(Status)
_SEVERAL = object_schema(
    {
        **_STATUS,
        "rows": objects_schema(
            "With `read`. Each has `row`, its number from 1 (in the job of a call: `index`, the prompt's place), "
            '`answer`, "" for a failed row, and `error`, with `code` and `message` for a failed row, else null. Rows '
            "without an outcome are left out."
        ),
        "columns": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The names in place of `answer`, `error`, … if input rows have fields with these names.",
        },
        "next_offset": {**_STATUS["total"], "description": "With `read`: offset of the next page; null at the end."},
        "jobs": objects_schema("Without `job_id`: the newest jobs, each with these fields."),
    }
)


def with_options(*options: Option) -> Callable[[F], F]:
    """Return a decorator that gives a tool's function one argument per option in place of its last parameter, `**…`."""

    def added(function: F) -> F:
        shown, made = inspect.signature(function), [*_arguments(options)]
        *own, rest = shown.parameters.values()
        function.__signature__ = shown.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        hints = typing.get_type_hints(function, include_extras=True)
        hints.pop(rest.name)
        function.__annotations__ = hints | {each.name: each.annotation for each in made}
        return function

    return added


def _arguments(options: Sequence[Option]) -> Iterator[inspect.Parameter]:
    known, by_name = table.options(), inspect.Parameter.KEYWORD_ONLY
    for option in options:
        argument = option.argument
        if argument is not None and not argument.within:
            kind = _annotation(option, argument, known)
            default = inspect.Parameter.empty if argument.is_required else option.default
            yield inspect.Parameter(argument.name or option.name, by_name, default=default, annotation=kind)


def _annotation(option: Option, argument: Argument, known: dict[str, Option]) -> Any:
    has_value = option.default is not None or argument.is_required
    kind: Any = option.type if has_value else option.type | None  # type: ignore[operator]
    field = Field(
        description=sentence(option.words_on("argument", known)),
        ge=argument.least,
        le=argument.most,
        json_schema_extra=None if argument.is_common else {RARE: argument.form},
    )
    return Annotated[kind, field]


def _argument_of(named: Named) -> str | None:
    """Return the argument of `bulk_generate` that sets the job's field `named.field`; None if no argument sets it."""
    if named.field in _OTHER_ARGUMENTS:
        return _OTHER_ARGUMENTS[named.field]
    if named.field == "status":
        return argument_name(named)
    option = table.options().get(named.field)
    if option is None or (name := option.name_on("argument")) is None:
        return None
    value = "" if get_origin(option.type) is dict else named.value  # other interfaces may write an object as a text
    return argument_name(named._replace(field=name, value=value))


def _check_source(
    input_file: str, output_file: str, prompts: object, files: list[str] | None, options: Mapping[str, Any]
) -> None:
    """Raise `PromptmillError` (`invalid_input`) unless the rows have one source, and the answers have a destination."""
    if bool(input_file) + (prompts is not None) + (files is not None) != 1:
        raise input_error("Give one of `input_file`, `prompts` and `files`.")
    check(options, "file" if input_file else "values" if files is None else "files", "argument")
    if (input_file or options.get("each") == "line") and not output_file:
        raise input_error("`output_file` is missing: name the file for the answers.")


def _sent(options: Mapping[str, Any]) -> JsonDict:
    """Return the options that a call sets. A null sets nothing, and neither does an empty text, except in `fields`."""
    return {name: value for name, value in options.items() if value is not None and (value != "" or name == "fields")}


def _models_of(model: str | list[str] | None, prompt: str | dict[str, str] | None) -> Sequence[str | None]:
    """Return the models of a job; None means the default model. Raises `PromptmillError` (`invalid_input`)."""
    models = [*dict.fromkeys(model)] if isinstance(model, list) else [model]
    if not models:
        raise input_error("`model` is an empty list; name a model, or leave it out.")
    if isinstance(prompt, dict) and not prompt:
        raise input_error("`prompt` is an empty object; name each prompt in it, or send one text.")
    names = {"model": models, "prompt": prompt if isinstance(prompt, dict) else ()}
    for argument, name in ((argument, name or "-") for argument, given in names.items() for name in given):
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_COLUMN:  # the name is repeated in each row
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
    caller: Caller,
) -> Rows:
    """Return the rows of a call. Equal rows from two clients are two jobs, so that no client learns another's requests.

    Raises `PromptmillError` (`invalid_input`).
    """
    # imported on use, like all of `jobs`
    from promptmill.jobs.door import CallFiles, MadeRows, NamedRows
    from promptmill.jobs.inputs.input_rows import lines_of
    from promptmill.jobs.inputs.whole_files import RowFiles

    if prompts is not None:
        if not prompts:
            raise input_error("`prompts` is an empty list; send at least one prompt.")
        lines = lines_of(prompts, "text" if "prompt" in options else "prompt", "prompts")
        return MadeRows(lines, has_lines=False, owned_by=caller.of_rows)
    if files is None:
        return NamedRows([str(paths.allowed(input_file, "input_file"))])
    if options.get("each") != "line":
        return CallFiles(files, paths.rule, owned_by=caller.of_rows)
    return NamedRows(await asyncio.to_thread(lambda: [*map(str, RowFiles(files, paths.rule).paths())]))


async def _models_of_call(service: Service, names: Sequence[str | None], asked: tuple[Any, Any, Any]) -> CallModels:
    """Return the first of a job's models and, if there are several, all of them that the configuration offers by name.

    `asked`: `schema`, `sampling_params` and `choices`, see `config_of_call`. Raises the errors of `config_of_call`.
    """
    from promptmill.jobs.caller import CallModels

    config, *others = [await config_of_call(service, await service.job_config(name), *asked) for name in names]
    named = zip(names, (config, *others), strict=True)
    configs = {name: own for name, own in named if others and name is not None and name in service.offered}
    return CallModels(await service.resolved_config(config), configs)


def _inputs() -> str:
    """Return the suffixes of input files, such as `.csv, .xlsx[#NAME]`."""
    names = names_for_calls("read", with_databases=True)
    return ", ".join(f"{name}[#NAME]" if has_tables(f"rows{name}") else name for name in names)


def _about_files(job: OpenJob) -> JsonDict:
    """Return entries about the files of a call: how many are used, and which are left out."""
    if (files := job.files) is None:
        return {}
    left_out = [worded(reason, argument_name) for reason in files.left_out]
    pdf = "".join(worded(form, argument_name) for form in files.forms)
    about = {"left_out": left_out, "raw": files.raw, "pdf": pdf}
    return {"files": files.count, **{name: value for name, value in about.items() if value}}


def add_bulk_tools(socket: ToolSocket) -> None:
    """Add the tools for jobs, and the resource with the jobs' answers, to the app."""
    mcp, service, questions, jobs = socket.mcp, socket.service, socket.questions, socket.jobs

    @tool(
        mcp,
        output_schema=object_schema({"message": {"type": "string"}, **_STATUS}, "job_id", "state"),
        annotations=ToolAnnotations(
            title="Answer a file of prompts",
            readOnlyHint=False,
            destructiveHint=True,  # because again="all" replaces answers
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
            Field(description=f"A table on the server's machine: {_inputs()}."),
        ] = "",
        output_file: Annotated[
            str,
            Field(
                description=f"New {', '.join(names_for_calls('write'))}: each row plus `answer`, or a column per "
                "field, and `error`. Needed with `input_file`."
            ),
        ] = "",
        prompts: Annotated[
            Any, arguments.a_list(of={"type": "string"}, description="Instead of `input_file`: the rows, as texts.")
        ] = None,
        files: Annotated[
            list[str] | None,
            Field(
                description="Instead of `input_file`: folders, paths or patterns of texts, images or PDFs, each a row; "
                "their contents go to the model and are not returned."
            ),
        ] = None,
        **options: Any,
    ) -> ToolResult:
        """Answer every row of a table, or every file of a folder, in the background; for more than about 50 prompts.

        Returns `job_id` at once; then call bulk_status. With many rows, first set `validate`: it shows prompts,
        columns and price, and sends nothing. The same call resumes a stopped job; no answer is paid for twice.
        """
        values = _sent(options)
        model, prompt = values.get("model"), values.get("prompt")
        validate = bool(values["validate"])
        names, running, caller = _models_of(model, prompt), await jobs(), caller_of(ctx, service)
        from promptmill.jobs.door import NamedRows  # imported on use, like all of `jobs`
        from promptmill.jobs.inputs.short_forms import answer_forms
        from promptmill.jobs.store.plan import plan_of

        try:
            _check_source(input_file, output_file, prompts, files, values)
            given = table.with_implied(values)
            if values["overwrite"] and output_file:
                target = output_file, input_file, values.get("answer_column")
                foreign = await asyncio.to_thread(running.visible.foreign_output, *target)
                if foreign is not None:
                    await questions.check_replacing(ctx, running.paths.rule, *foreign, asks=not validate)
            form = {"schema": None, "choices": None, **answer_forms(given)}
            defined = {"definitions": form["definitions"]} if "definitions" in form else {}
            sampling = {**table.sampling_in(given), **(values.get("sampling_params") or {}), **defined}
            asked = form["schema"], sampling, form["choices"]
            others = plan_of(given, [name or "" for name in names]).named_models - {*names}
            models = await _models_of_call(service, [*names, *others], asked)
            if input_file or files is not None:
                models = await questions.for_files(ctx, models, asks=not validate)
            every = models.config, *models.configs.values()
            cost = None if validate else questions.cost(ctx, every, given.get("max_cost"), "This job")
            rows = await _rows_of(running.paths, input_file, prompts, files, options=values, caller=caller)
            values |= {
                "schema": form["schema"],
                "fields": values.get("fields") is not False,
                "model": names if names[1:] else None,
                "limit": values.get("limit") or None,
                "sampling": sampling_of_call(*asked),
            }
            if "from_job" in values:
                values["from_job"] = await asyncio.to_thread(running.visible.find, values["from_job"], caller)
            output = running.paths.allowed(output_file, "output_file") if output_file else None
            async with running.opened(rows, output, values, models, caller) as job:
                by_line = rows.names if isinstance(rows, NamedRows) and values.get("each") == "line" else None
                about = _about_files(job) if by_line is None else {"files": len(by_line)}
                if "raw" in about and values.get("each") is None:  # refused before anything is sent
                    anyway = Named("each", "file", "; {} sends them all the same")
                    raise input_error(f"Nothing was sent yet; tell the user: {about['raw']}", anyway, ".")
                approve = None if cost is None else cost.approve
                started = await running.start(job, caller, approve, validate=validate) | about
        except PromptmillError as error:
            if error.code is Code.INVALID_INPUT:  # the message then names the tool's arguments, not the job's fields
                raise input_error(error.worded(_argument_of)) from None
            raise
        if models.config.is_embedded:
            started["message"] += f" {TOY}"
        return ToolResult(structured_content=started)

    _add_tools_of_a_job(socket)


def _add_tools_of_a_job(socket: ToolSocket) -> None:
    mcp, service, questions, jobs = socket.mcp, socket.service, socket.questions, socket.jobs
    further = [(part(each.option), each.run) for feature in features().values() for each in feature.controls]
    controls = {option.name: run for option, run in further}

    @tool(
        mcp,
        output_schema=_SEVERAL,
        meta=INLINE,
        annotations=ToolAnnotations(
            title="Progress and answers of jobs",
            readOnlyHint=False,  # `action` changes jobs
            destructiveHint=False,
            idempotentHint=True,
            openWorldHint=True,
        ),
    )
    @with_options(*(option for option, _ in further))
    async def bulk_status(
        ctx: Context,
        *,
        job_id: Annotated[str | None, Field(description="Its id or output file.")] = None,
        wait_s: Annotated[
            int, Field(ge=0, le=_LONGEST_WAIT_S, description="Seconds to wait for the job's end, at most 60.")
        ] = 0,
        action: Annotated[
            Literal["pause", "continue", "cancel"] | None,
            Field(
                description="Done first. `continue` also resumes a stopped job of `generate`; `cancel` ends a job "
                "after its requests in flight, a second one at once."
            ),
        ] = None,
        read: Annotated[
            Literal["answers", "failed", "all"] | None, Field(description="Also return these rows.")
        ] = None,
        offset: Annotated[int, Field(ge=0, description="Rows to skip: `next_offset` of the page before.")] = 0,
        limit: Annotated[
            int | None, Field(ge=1, le=MOST_ROWS, description="Most rows (default 50) or jobs (20).")
        ] = None,
        with_input: Annotated[
            bool, Field(description="rows with all fields of the input", json_schema_extra={RARE: ""})
        ] = False,
        max_characters: Annotated[
            int, Field(ge=1000, description="length of a page of rows", json_schema_extra={RARE: ""})
        ] = PAGE_CHARACTERS,
        concurrency: Annotated[
            int | None, Field(ge=1, description="most requests in flight from now on", json_schema_extra={RARE: ""})
        ] = None,
        max_cost: Annotated[
            float | None,
            Field(ge=0, description="most US dollars of all runs of the job", json_schema_extra={RARE: ""}),
        ] = None,
        **added: Any,
    ) -> ToolResult:
        """Report a job's progress, wait for its end, read its answers, pause or cancel it; without `job_id`: the newest
        jobs.

        A `stopped` job has a `reason`, and the same bulk_generate resumes it.
        """
        running, caller = await jobs(), caller_of(ctx, service)
        if job_id is None:
            if wait_s or any(value is not None for value in (action, read, concurrency, max_cost, *added.values())):
                raise input_error("`job_id` is missing: name the job.")
            job_status = await asyncio.to_thread(running.status, None, limit or _MOST_LISTED, caller)
            return ToolResult(structured_content=job_status)
        wanted = (("concurrency", concurrency), ("max_cost", max_cost))
        changes = {name: value for name, value in wanted if value is not None}
        if max_cost is not None and (cost := questions.cost(ctx, [service.config], max_cost, "This job")) is not None:
            await cost.approve(None, max_cost)
        if changes:
            await asyncio.to_thread(functools.partial(running.visible.control, job_id, caller, **changes))
        if action is not None:
            await _acted(running, job_id, caller, action)
        work = _awaited(running, job_id, caller, wait_s, goes_on=action == "continue")
        job_status = await with_progress(ctx, service, [Call(Facts())], work, lambda: "waiting for the job")
        for name, value in added.items():
            if value is not None:
                job_status[name] = await part(controls[name])(running, caller, job_id, value)
        if read is None:
            return ToolResult(structured_content=job_status)
        characters = page_characters(ctx) if max_characters == PAGE_CHARACTERS else max_characters
        largest = min(LARGEST_PAGE, _READ_AHEAD * characters)
        results = functools.partial(running.visible.results, with_input=with_input, largest=largest)
        rows = await asyncio.to_thread(results, job_id, caller, offset, limit or _MOST_READ, read)
        job_status = job_status | rows  # the `state` that was read with the rows is newer
        job_status = await asyncio.to_thread(page, job_status, characters, copies=1)
        if (most := most_bytes(ctx, service.config)) is not None:
            job_status = await asyncio.to_thread(page, job_status, most - _ENVELOPE, copies=2)
        return ToolResult(None if wants_copy(ctx) else "The rows are in the structured content.", job_status)

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
            result = await asyncio.to_thread(results, job_id, caller_of(ctx, service), max(0, offset), MOST_ROWS)
        except PromptmillError as error:
            raise ResourceError(str(error)) from None
        result = page(result, min(most_bytes(ctx, service.config) or LARGEST_PAGE, LARGEST_PAGE) - _ENVELOPE, copies=1)
        after = result.pop("next_offset")
        result["next"] = None if after is None else f"promptmill://jobs/{job_id}/answers?offset={after}"
        return json_text(result)


async def _acted(running: ServerJobs, job_id: str, caller: Caller, action: str) -> None:
    """Pause, continue or end a job."""
    from promptmill.jobs.store.progress import ALIVE  # imported on use, like all of `jobs`

    if action == "cancel":
        await running.cancel(job_id, caller)
        return
    job_status = await asyncio.to_thread(
        functools.partial(running.visible.control, job_id, caller, paused=action == "pause")
    )
    if action == "continue" and job_status["state"] not in {*ALIVE, "finished"}:
        await running.resume_call(job_id, caller)


async def _awaited(running: ServerJobs, job_id: str, caller: Caller, wait_s: int, *, goes_on: bool) -> JsonDict:
    """Wait at most `wait_s` seconds until a job ends or (unless `goes_on`) is paused, and return its status."""
    from promptmill.jobs.store.progress import ALIVE

    end = time.monotonic() + wait_s
    while True:
        job_status = await asyncio.to_thread(running.status, job_id, caller=caller)
        is_paused = job_status.get("paused") and not goes_on
        if job_status["state"] not in ALIVE or is_paused or (left := end - time.monotonic()) <= 0:
            return dict(job_status)
        await asyncio.sleep(min(_LOOK_S, left))
