"""Records → what an output file says, row by row."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import orjson

from promptmill.backends import rows
from promptmill.core.errors import PromptmillError
from promptmill.jobs.records import Record

ANSWER_FIELDS = ("answer", "error", "usage", "finish_reason")
RARE_FIELDS = ("answers", "reasoning", "tool_calls", "logprobs", "cost", "answered_by", "changed")
"""Those of a record that only some models give, or when they are asked to."""


def answer_fields(record: Record) -> dict[str, Any]:
    """Return `answer`, `error`, `usage`, `finish_reason`; of `RARE_FIELDS` those that there are."""
    failed = record.code is not None
    found: dict[str, Any] = {
        "answer": "" if failed else record.text,
        "error": {
            "code": record.code,
            "message": record.text,
            "retryable": bool(record.retryable),
            "attempts": record.attempts,
        }
        if failed
        else None,
        "usage": {"prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens},
        "finish_reason": record.finish_reason,
    }
    if record.reasoning is not None:
        found["reasoning"] = record.reasoning
    if record.more is not None:
        extras = record.extras
        found["usage"] |= extras.get("tokens", {})
        found |= {name: extras[name] for name in RARE_FIELDS if name in extras}
    return found


def jsonl_line(line: bytes, record: Record) -> bytes:
    """Return the output line of an input line: its own bytes, with the answer's fields behind them."""
    fields = answer_fields(record)
    line = line.removeprefix(rows.BOM).strip()
    try:
        value = rows.load(line, "")
    except PromptmillError:
        value = None
    if not isinstance(value, dict):  # the error says which line it is
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    if value.keys() & fields.keys():  # an earlier output as input: the new answer counts
        return plain_line({name: inner for name, inner in value.items() if name not in fields} | fields)
    tail = orjson.dumps(fields)[1:]
    return b"%b%b%b\n" % (line[:-1].rstrip(), b"," if value else b"", tail)


def plain_line(value: Mapping[str, Any]) -> bytes:
    """Return `value` as a line of JSON."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE, default=_as_text)
    except TypeError:  # numbers beyond 64 bits, which came in and go out as they are
        return json.dumps(value, separators=(",", ":"), default=_as_text).encode() + b"\n"


def _as_text(value: object) -> str:
    """Return what JSON has no form for, from a column of a table: bytes as base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def cells(record: Record, names: tuple[str, ...]) -> list[str]:
    """Return the answer's fields named as CSV cells: an error as `code: message`, what has parts as JSON."""
    fields = answer_fields(record)
    error = fields["error"]
    fields["error"] = f"{error['code']}: {error['message']}" if error else ""
    return [_cell(fields.get(name)) for name in names]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
