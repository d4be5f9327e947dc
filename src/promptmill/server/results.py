"""Outcomes → the result of a tool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastmcp.tools import ToolResult
from mcp_types import TextContent

from promptmill import report
from promptmill.backends.protocol import Scope
from promptmill.outcome import Outcome

ANSWERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ans_ls": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The answers, in the order of the prompts.",
        },
        "errors": {
            "type": "array",
            "description": "One entry per failed item; absent when there is none.",
            "items": {
                "type": "object",
                "properties": {
                    "index": {"type": "integer"},
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "retryable": {"type": "boolean"},
                    "attempts": {"type": "integer"},
                },
                "required": ["index", "code", "message", "retryable", "attempts"],
            },
        },
    },
    "required": ["ans_ls"],
}


def result_of(outcomes: Sequence[Outcome], scope: Scope, *, any_failure: bool) -> ToolResult:
    structured: dict[str, Any] = {"ans_ls": report.answers(outcomes)}
    if errors := report.errors(outcomes):
        structured["errors"] = errors
    failed = report.failed(outcomes, any_failure=any_failure)
    # the text block holds the same JSON, because existing pipelines parse it; an error's text is for people
    text = report.summary(outcomes) if failed else orjson.dumps(structured).decode()
    meta = report.totals(scope) | report.columns(outcomes)
    return ToolResult([TextContent(type="text", text=text)], structured, meta, is_error=failed)
