"""Converts outcomes to a tool's result: the complete result, or the part that the client accepts in one message."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import orjson
from fastmcp import Context
from fastmcp.tools import ToolResult
from mcp_types import ContentBlock, Implementation, ResourceLink, TextContent

from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict, JsonObject, json_text
from promptmill.http.json_response_workaround import RESPONSE, EitherResponse
from promptmill.jobs.caller import CallWork
from promptmill.service import choosing, list_call
from promptmill.service.model import TOY

T = TypeVar("T")
_FEW = 10_000  # max items whose result is built on the event loop; more are built in a thread
_LITTLE = 1 << 20  # max characters of the items of a result that is built on the event loop

# TypeScript's SDK ends a stdio session at a message of 10 MiB. A client without a limit is recognised by its default
# name (`mcp` is the name of Python's SDK). TypeScript's SDK has no default name, so no client of it is listed here.
_STDIO_BYTES = 9 << 20
_WITHOUT_LIMIT = frozenset({"mcp", "fastmcp", "mcp-use", "ai-sdk-mcp-client"})
# The largest result over HTTP, where clients share the event loop: the SDK needs about 10 ns per byte of a message.
_HTTP_BYTES = 24 << 20
_ENVELOPE = 4 << 10
_NO_COPY = "The answers are in the structured content (`ans_ls`) only, without a copy here."
# Claude Code writes a longer result to a file, which its model must then open. A larger limit than this has no effect.
INLINE = {"anthropic/maxResultSizeChars": 500_000}
PAGE_CHARACTERS = 40_000  # about 10,000 tokens: clients shorten or refuse results of more than 25,000
_PAGES = {"codex-mcp-client": 9_000}  # this client removes the middle of a result of more than 10,000 bytes
# The models of these clients get the structured content, and never the text (in these versions and later ones).
_WITHOUT_TEXT = {"claude-code": (2, 1, 121), "codex-mcp-client": (0, 169)}


def object_schema(properties: JsonDict, *required: str) -> JsonDict:
    """Return the schema of an object that may have further properties."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": True}


def objects_schema(description: str = "") -> JsonDict:
    """Return the schema of a list of objects with any fields: a row may include input fields of any name."""
    schema: JsonDict = {"type": "array", "items": {"type": "object", "additionalProperties": True}}
    return schema | ({"description": description} if description else {})


ANSWERS: JsonDict = {
    "type": "object",
    "properties": {
        "ans_ls": {
            "type": "array",
            "items": {"type": "string"},
            "description": 'One answer per prompt, in the same order; "" for an item without an answer, see `errors`.',
        },
        "answers": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "string"}},
            "description": "Only if `sampling_params` has `n`: all answers to each prompt.",
        },
        "errors": {
            "type": "array",
            "description": "One entry per item without an answer; absent when every item has one.",
            "items": {
                "type": "object",
                "properties": {
                    "index": {"type": "integer", "description": "Place in `ans_ls`, from 0."},
                    "code": {
                        "type": "string",
                        "description": "Kind of failure; with `deferred` the item continues, see `job_id`; "
                        "`omitted`: see `kept_job_id`.",
                    },
                    "message": {"type": "string"},
                    "last": {
                        "type": "integer",
                        "description": "The entry covers all items from `index` to this one: they failed with the same "
                        "error, or were omitted.",
                    },
                    "retryable": {"type": "boolean", "description": "Whether sending the item again may help."},
                    "attempts": {"type": "integer", "description": "Requests made for it."},
                    "text": {
                        "type": "string",
                        "description": "With code `invalid_answer`: the model's answer, which does not satisfy "
                        "`schema`.",
                    },
                    "part": {"type": "string", "description": "The fields that have an answer, as JSON."},
                },
                "required": ["index", "code", "message", "retryable", "attempts"],
            },
        },
        "job_id": {
            "type": "string",
            "description": "Only if the time limit was reached: the job that answers the items with code `deferred`; "
            "read their answers with bulk_status.",
        },
        "kept_job_id": {
            "type": "string",
            "description": "Only if the result was too large for one message: the job that has all answers, "
            "also the omitted ones (code `omitted`); read them with bulk_status.",
        },
        "models": object_schema({})
        | {"description": "Instead of the above, only if `model` is a list: by name, an object with the above."},
    },
}


def _undescribed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_undescribed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _undescribed(inner) for name, inner in schema.items() if name != "description"}


ANSWERS_IN_SHORT: JsonDict = _undescribed(ANSWERS)
"""`ANSWERS` without descriptions, for all tools but one: a client's model has the schemas of all in its context."""


def _result(
    outcomes: Sequence[Outcome],
    errors: Sequence[JsonObject],
    call: Call,
    *,
    is_error: bool,
    job_id: str | None,
) -> ToolResult:
    structured: JsonDict = {"ans_ls": list_call.answers(outcomes)}
    meta = list_call.totals(call) | list_call.columns(outcomes)
    if several := list_call.several(outcomes):
        structured["answers"] = several
    if errors:
        structured["errors"] = errors
    if job_id is not None:
        structured["job_id"] = meta["job_id"] = job_id
    return ToolResult([], structured, meta, is_error=is_error)


async def _with_models(outcomes: Sequence[Outcome], config: ModelConfig) -> Sequence[Outcome]:
    """Return the outcomes. If the endpoint lacks the model, the errors get a hint with models that it has."""
    lacking = next((one for one in outcomes if _lacks_model(one)), None)
    if not isinstance(lacking, Failure) or config.settings.client_limits.models is not None:
        return outcomes
    how = "`model` (or `model_name` in `generation_init` or the configuration)"
    if not (meant := await choosing.meant_model(config, lacking.error, how)):
        return outcomes
    hint = f"{meant[0].upper()}{meant[1:]}"
    return [_hinted(one, hint) if isinstance(one, Failure) and _lacks_model(one) else one for one in outcomes]


def _lacks_model(outcome: Outcome) -> bool:
    # only the error of an unknown model has the default hint; any other hint means a wrong address
    return (
        isinstance(outcome, Failure)
        and outcome.error.code is Code.NOT_FOUND
        and outcome.error.hint == PromptmillError(Code.NOT_FOUND, "").hint
    )


def _hinted(failure: Failure, hint: str) -> Failure:
    error = PromptmillError(failure.error.code, failure.error.message, hint)
    error.said = failure.error.said
    return replace(failure, error=error)


def _texts(*texts: str) -> list[ContentBlock]:
    return [TextContent(type="text", text=text) for text in texts]


def _notes(outcomes: Sequence[Outcome], call: Call, job_id: str | None) -> list[str]:
    """Return the texts below the answers: about prompts that a job continues, and about answers of the embedded model.
    They are texts, because some clients do not show `_meta` to their model."""
    toy = [TOY] if TOY in call.warnings and any(isinstance(one, Completion) for one in outcomes) else []
    if job_id is None:
        return toy
    left = list_call.deferred(outcomes)
    words = (
        f"{left} of {len(outcomes)} prompts are not answered yet; do not send them again. Job {job_id} answers them: "
        f'call bulk_status with {{"job_id": "{job_id}", "read": "all"}} for the answers so far, until its `state` is '
        "`finished`. `index` in a row is the prompt's place in `prompt_ls`."
    )
    return [words, *toy]


def most_bytes(ctx: Context, config: ModelConfig) -> int | None:
    """Return the largest size in bytes of the next message with a call's result; None if there is no limit.

    A trusted client is the operator's own program, for which stdio has no limit.
    """
    limit, context = config.settings.max_result_bytes, ctx.request_context
    if context is not None and context.request is not None:
        response: EitherResponse | None = context.request.scope.get(RESPONSE)
        limits = (_HTTP_BYTES if limit is None else limit, None if response is None else response.most_bytes())
        return min(filter(None, limits), default=None)
    if config.trust_client:
        return None
    client = _client(ctx)
    if limit is None and (client is None or client.name not in _WITHOUT_LIMIT):
        return _STDIO_BYTES
    return limit or None


def _client(ctx: Context) -> Implementation | None:
    context = ctx.request_context
    params = None if context is None else context.session.client_params
    return None if params is None else params.client_info


def page_characters(ctx: Context) -> int:
    """Return the largest length of a page of rows that the client's model sees completely."""
    client = _client(ctx)
    return PAGE_CHARACTERS if client is None else _PAGES.get(client.name, PAGE_CHARACTERS)


def wants_copy(ctx: Context) -> bool:
    """Return whether the client may need the structured content as text, too. Only a few clients never need it."""
    client = _client(ctx)
    since = None if client is None else _WITHOUT_TEXT.get(client.name)
    return client is None or since is None or tuple(map(int, re.findall(r"\d+", client.version)[:3])) < since


async def result_of(
    ctx: Context, part: CallWork, keep: Callable[[Sequence[Outcome]], Awaitable[str]], models: int
) -> ToolResult:
    """Return the result of a part of a call. If it is too large for the client, it names the job that `keep` creates.

    `models`: the number of such results in one message.
    """
    outcomes, call, config, job_id = part.outcomes, part.call, part.config, part.job_id
    any_failure = config.settings.on_error == "raise"
    is_small = _is_small(outcomes)

    async def apart(work: Callable[[], T]) -> T:
        """Run `work`, in a thread if it takes long, so that other calls continue."""
        return work() if is_small else await asyncio.to_thread(work)

    if await apart(partial(list_call.failed, outcomes, any_failure=any_failure)):
        outcomes = await _with_models(outcomes, config)
    most = (limit := most_bytes(ctx, config)) and limit // models
    build = partial(_whole_result, outcomes, call, any_failure=any_failure, job_id=job_id)
    if (result := await apart(partial(build, most=most, with_copy=wants_copy(ctx)))) is not None:
        return result
    assert most is not None
    try:
        kept_id = await keep(outcomes)
    except PromptmillError as error:
        call.warn(f"The result may be too large for the client, and could not be kept as a job: {error}")
        result = await apart(partial(build, most=None, with_copy=False))
        assert result is not None
        return result
    first = partial(_first_answers, outcomes, call, any_failure=any_failure, kept_id=kept_id, job_id=job_id)
    return await apart(partial(first, most=most))


def side_by_side(results: Mapping[str, ToolResult]) -> ToolResult:
    """Return the results of several models as one, which is an error only if each of them is."""
    content = [block for name, result in results.items() for block in (*_texts(f"{name}:"), *result.content)]
    structured = {"models": {name: result.structured_content for name, result in results.items()}}
    meta = {"models": {name: result.meta for name, result in results.items()}}
    return ToolResult(content, structured, meta, is_error=all(result.is_error for result in results.values()))


def _is_small(outcomes: Sequence[Outcome]) -> bool:
    """Return whether the result of a call can be built within a few milliseconds."""
    if len(outcomes) > _FEW:
        return False
    done = [one for one in outcomes if isinstance(one, Completion)]
    if any(one.logprobs or one.tool_calls for one in done):
        return False
    more = sum(len(text) for one in done for text in (one.reasoning or "", *one.answers))
    return more + sum(len(one.text) for one in outcomes) < _LITTLE  # a failure may contain the model's invalid answer


def _whole_result(
    outcomes: Sequence[Outcome],
    call: Call,
    *,
    any_failure: bool,
    job_id: str | None,
    most: int | None,
    with_copy: bool = True,
) -> ToolResult | None:
    """Return the result of a call; None if it exceeds `most` bytes even without its text copy.

    The copy is a text block with the same JSON, for existing pipelines that parse it. A failed call has a text for
    people instead. `job_id`: the job that answers the deferred items.
    """
    failed = list_call.failed(outcomes, any_failure=any_failure)
    result = _result(outcomes, list_call.errors(outcomes), call, is_error=failed, job_id=job_id)
    result.content = _texts(list_call.summary(outcomes) if failed else _NO_COPY, *_notes(outcomes, call, job_id))
    size = 0 if most is None else _message_bytes(result)
    if most is not None and size > most:
        return None
    if with_copy and not failed and (most is None or 2 * size <= most):
        copy = orjson.dumps(result.structured_content).decode()
        if most is None or size + len(orjson.dumps(copy)) <= most:
            result.content[:1] = _texts(copy)
    return result


def _message_bytes(result: ToolResult) -> int:
    """Return the size of the message with `result`, exact to a few bytes."""
    texts = [block.text for block in result.content if isinstance(block, TextContent)]
    return _ENVELOPE + sum(map(_json_bytes, (result.structured_content or {}, result.meta or {}, {"": texts})))


def _json_bytes(fields: JsonObject) -> int:
    """Return the size of `fields` as JSON, measured in pieces: orjson blocks all threads while it writes a value."""
    size = 0
    for name, value in fields.items():
        pieces = value if isinstance(value, list) else [value]
        size += len(name) + len(pieces) + len('"": [],') + sum(len(orjson.dumps(piece)) for piece in pieces)
    return size


def _first_answers(
    outcomes: Sequence[Outcome],
    call: Call,
    *,
    any_failure: bool,
    kept_id: str,
    job_id: str | None,
    most: int,
) -> ToolResult:
    """Return the result with the first answers that fit into `most` bytes. Job `kept_id` has all answers.

    The other answers are `""`, and have one common entry in `errors`. `job_id`: the job of the deferred items.
    """
    link = ResourceLink(
        type="resource_link",
        uri=f"promptmill://jobs/{kept_id}/answers",
        name=f"answers of {kept_id}",
        description="All answers of the call, page by page; each page names the next one.",
        mime_type="application/json",
    )

    def with_first(count: int) -> ToolResult:
        left_out = Failure(_left_out(outcomes, count, kept_id, link.uri, most))
        shown = [*outcomes[:count], *[left_out] * (len(outcomes) - count)]
        (entry,) = list_call.errors([left_out])
        errors = [*list_call.errors(outcomes[:count]), {**entry, "index": count, "last": len(outcomes) - 1}]
        failed = list_call.failed(shown, any_failure=any_failure)
        result = _result(shown, errors, call, is_error=failed, job_id=job_id)
        result.structured_content = {**(result.structured_content or {}), "kept_job_id": kept_id}
        reasons = filter(None, [list_call.summary(outcomes) if failed else ""])
        result.content = [*_texts(str(left_out.error), *reasons, *_notes(outcomes, call, job_id)), link]
        return result

    left = most - _message_bytes(with_first(0))
    count = 0
    for size in itertools.islice(_sizes(outcomes), len(outcomes) - 1):
        left -= size
        if left < 0:
            break
        count += 1
    return with_first(count)


def _sizes(outcomes: Sequence[Outcome]) -> Iterator[int]:
    """Yield the number of bytes that each outcome adds to the message, or slightly more."""
    columns = list(list_call.columns(outcomes).values())
    several = list_call.several(outcomes)
    for index, outcome in enumerate(outcomes):
        size = sum(len(orjson.dumps(column[index])) for column in columns)
        if several:
            size += len(orjson.dumps(several[index]))
        if isinstance(outcome, Completion):
            yield size + len(orjson.dumps(outcome.text)) - len('""')
        else:
            yield size + len(orjson.dumps(list_call.errors([outcome]))) + len(str(len(outcomes)))


def _left_out(outcomes: Sequence[Outcome], count: int, kept_id: str, uri: str, most: int) -> PromptmillError:
    offset = count - list_call.deferred(outcomes[:count])  # deferred items do not count: they are rows of another job
    which = f"{count} to {len(outcomes) - 1}" if count < len(outcomes) - 1 else f"{count}"
    return PromptmillError(
        Code.OMITTED,
        f"The answers of items {which} of {len(outcomes)} are left out: the result is too large for one message.",
        f"Do not send the prompts again: all answers are kept as job {kept_id}. Read the rest with bulk_status and "
        f'{{"job_id": "{kept_id}", "read": "all", "offset": {offset}, "max_characters": {most}}}, where `index` is the '
        f"prompt's place, or the resource {uri}.",
    )


def page(result: JsonObject, most: int, copies: int) -> JsonDict:
    """Return a page with the rows of a job that fit into `most` bytes. The message has each row `copies` times.

    The first row is included whatever its size. `next_offset` becomes the number of rows before the first omitted one.
    """
    size = 0
    for place, row in enumerate(result["rows"]):
        text = json_text(row).encode()
        size += copies * len(text) + text.count(b'"') + text.count(b"\\")
        if place and size > most:
            number = row[result.get("columns", {}).get("row", "row")]
            after = {"next_offset": number - 1} if "next_offset" in result else {}
            return {**result, "rows": result["rows"][:place], **after}
    return dict(result)
