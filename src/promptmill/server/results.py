"""Outcomes → the result of a tool: whole, or its first answers and where all of them are, when it is too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastmcp import Context
from fastmcp.tools import ToolResult
from mcp_types import ResourceLink, TextContent

from promptmill.backends.protocol import CallStats
from promptmill.config.models import ResolvedConfig
from promptmill.core.outcome import Outcome
from promptmill.http.json_response_workaround import ONE_PIECE
from promptmill.service import list_call

# TypeScript's SDK ends a session over stdio at a message of 10 MiB, and httpx2, on which Python's SDK stands, an event
# stream at an event of 1 MiB. The answers have been paid for then. Who is at the other end cannot be known, so the size
# alone decides.
_EVENT_BYTES = 1_000_000  # of 1,048,576 that httpx2 takes, the event's other lines included
_FIRST_BYTES = 768 << 10
_ENVELOPE = 4 << 10
ANSWERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ans_ls": {
            "type": "array",
            "items": {"type": "string"},
            "description": 'One answer per prompt, in their order; "" for an item that has none, see `errors`.',
        },
        "answers": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "string"}},
            "description": "There only when `sampling_params` asked for several answers (`n`): all of each prompt.",
        },
        "errors": {
            "type": "array",
            "description": "One entry per item without an answer; absent when there is none.",
            "items": {
                "type": "object",
                "properties": {
                    "index": {"type": "integer", "description": "Place in `ans_ls`, from 0."},
                    "code": {
                        "type": "string",
                        "description": "What kind of failure; `deferred` is none, see `job_id`.",
                    },
                    "message": {"type": "string"},
                    "retryable": {"type": "boolean", "description": "Whether sending it again may help."},
                    "attempts": {"type": "integer", "description": "Requests made for it."},
                    "text": {
                        "type": "string",
                        "description": "With code `invalid_answer`: what the model said, which does not satisfy "
                        "`answer_schema`.",
                    },
                },
                "required": ["index", "code", "message", "retryable", "attempts"],
            },
        },
        "job_id": {
            "type": "string",
            "description": "There only when time was up: the items that failed with code `deferred` go on as this job; "
            "read their answers with bulk_results.",
        },
        "omitted": {
            "type": "integer",
            "description": "There only when all answers were too large for one message: how many are left out behind "
            "those in `ans_ls`.",
        },
        "kept_job_id": {
            "type": "string",
            "description": "There with `omitted`: the job that has all answers; read them with bulk_results.",
        },
    },
    "required": ["ans_ls"],
}


def _undescribed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_undescribed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _undescribed(inner) for name, inner in schema.items() if name != "description"}


ANSWERS_IN_SHORT: dict[str, Any] = _undescribed(ANSWERS)
"""The same object for the tools that refer to the first one: a client has all schemas in its context at once."""


def result_of(
    outcomes: Sequence[Outcome], stats: CallStats, *, any_failure: bool, job_id: str | None = None
) -> ToolResult:
    """Return the result of a call; `job_id` names the job that its deferred items go on as."""
    structured: dict[str, Any] = {"ans_ls": list_call.answers(outcomes)}
    meta = list_call.totals(stats) | list_call.columns(outcomes)
    if several := list_call.several(outcomes):
        structured["answers"] = several
    if errors := list_call.errors(outcomes):
        structured["errors"] = errors
    if job_id is not None:
        structured["job_id"] = meta["job_id"] = job_id
    failed = list_call.failed(outcomes, any_failure=any_failure)
    # the text block holds the same JSON, because existing pipelines parse it; an error's text is for people
    texts = [list_call.summary(outcomes) if failed else orjson.dumps(structured).decode()]
    if job_id is not None:
        texts.append(_goes_on(outcomes, job_id))
    content = [TextContent(type="text", text=text) for text in texts]
    return ToolResult(content, structured, meta, is_error=failed)


def _goes_on(outcomes: Sequence[Outcome], job_id: str) -> str:
    left = list_call.deferred(outcomes)
    return (
        f"{left} of {len(outcomes)} prompts are not answered yet; do not send them again. They go on as job {job_id}: "
        f'call bulk_results with {{"job_id": "{job_id}"}} for their answers as they come, until its `state` is '
        "`finished`. `index` in a row is the prompt's place in `prompt_ls`."
    )


def most_bytes(ctx: Context, plan: ResolvedConfig) -> int | None:
    """Return how large the message with a call's result may be; None when there is no limit.

    A trusted client is the operator's own program, which reads `ans_ls` and nothing else.
    """
    limit = plan.settings.max_result_bytes or None
    request = None if ctx.request_context is None else ctx.request_context.request
    if request is not None:
        if request.scope.get(ONE_PIECE):  # a JSON body has no limit
            return None
        return min(_EVENT_BYTES, limit or _EVENT_BYTES)
    return None if plan.trust_client else limit


def message_bytes(result: ToolResult) -> int:
    """Return the size of the message that `result` becomes, within a few bytes of the truth."""
    size = _ENVELOPE + len(orjson.dumps(result.structured_content)) + len(orjson.dumps(result.meta))
    return size + sum(_in_json(block.text) for block in result.content if isinstance(block, TextContent))


def _in_json(text: str) -> int:
    return len(orjson.dumps(text))


def first_answers(
    outcomes: Sequence[Outcome],
    stats: CallStats,
    *,
    any_failure: bool,
    kept_id: str,
    job_id: str | None,
    most: int,
) -> ToolResult:
    """Return the result of a call whose answers are kept as job `kept_id`: as many of the first as fit well.

    `job_id` is the job of what the call could not do in its time.
    """
    count, size = 0, 0
    for outcome in outcomes:
        size += 2 * _in_json(getattr(outcome, "text", "")) + 300
        if size > min(_FIRST_BYTES, most // 2):
            break
        count += 1
    result = result_of(outcomes[:count], stats, any_failure=any_failure and count == len(outcomes), job_id=job_id)
    if message_bytes(result) > most:  # reasoning can be longer than the answers
        assert result.meta is not None
        result.meta = {name: value for name, value in result.meta.items() if not isinstance(value, list)}
    left = len(outcomes) - count
    uri = f"promptmill://jobs/{kept_id}/answers"
    assert result.structured_content is not None
    result.structured_content |= {"omitted": left, "kept_job_id": kept_id}
    result.content = [
        TextContent(type="text", text=orjson.dumps(result.structured_content).decode()),
        TextContent(type="text", text=_where(count, len(outcomes), kept_id, uri)),
        *result.content[1:],
        ResourceLink(
            type="resource_link",
            uri=uri,
            name=f"answers of {kept_id}",
            description="All answers of the call, page by page: each page names the next one.",
            mime_type="application/json",
        ),
    ]
    return result


def _where(count: int, total: int, kept_id: str, uri: str) -> str:
    return (
        f"The result is too large for one message: `ans_ls` holds the first {count} of {total} answers. Do not send "
        f"the prompts again: all answers are kept as job {kept_id}. Read the rest with bulk_results and "
        f'{{"job_id": "{kept_id}", "offset": {count}}}, where `index` is the prompt\'s place, or the resource {uri}.'
    )


def page(found: Mapping[str, Any], most: int, copies: int) -> dict[str, Any]:
    """Return a page of a job's rows as far as it fits into `most` bytes, each row being sent `copies` times.

    The first row is there however large it is; `next_offset` is where the next page begins.
    """
    size = 0
    for place, row in enumerate(found["rows"]):
        text = orjson.dumps(row)
        size += copies * len(text) + text.count(b'"') + text.count(b"\\")
        if place and size > most:
            return {**found, "rows": found["rows"][:place], "next_offset": row["row"]}
    return dict(found)
