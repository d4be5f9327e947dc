"""Outcomes → the result of a tool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastmcp.tools import ToolResult
from mcp_types import TextContent

from promptmill.backends.protocol import CallStats
from promptmill.core.outcome import Outcome
from promptmill.service import call_report

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
    structured: dict[str, Any] = {"ans_ls": call_report.answers(outcomes)}
    meta = call_report.totals(stats) | call_report.columns(outcomes)
    if several := call_report.several(outcomes):
        structured["answers"] = several
    if errors := call_report.errors(outcomes):
        structured["errors"] = errors
    if job_id is not None:
        structured["job_id"] = meta["job_id"] = job_id
    failed = call_report.failed(outcomes, any_failure=any_failure)
    # the text block holds the same JSON, because existing pipelines parse it; an error's text is for people
    texts = [call_report.summary(outcomes) if failed else orjson.dumps(structured).decode()]
    if job_id is not None:
        texts.append(_goes_on(outcomes, job_id))
    content = [TextContent(type="text", text=text) for text in texts]
    return ToolResult(content, structured, meta, is_error=failed)


def _goes_on(outcomes: Sequence[Outcome], job_id: str) -> str:
    left = call_report.deferred(outcomes)
    return (
        f"{left} of {len(outcomes)} prompts are not answered yet; do not send them again. They go on as job {job_id}: "
        f'call bulk_results with {{"job_id": "{job_id}"}} for their answers as they come, until its `state` is '
        "`finished`. `index` in a row is the prompt's place in `prompt_ls`."
    )
