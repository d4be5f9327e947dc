"""The values of the columns that a job adds to a row, from the record of the row's answer."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from promptmill.backends.vectors import floats_of, words_of
from promptmill.jobs.columns.column_names import EXTRA_FIELDS
from promptmill.jobs.store.records import Record


def answer_fields(record: Record, names: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Return the `ANSWER_FIELDS` of a record, and those `EXTRA_FIELDS` that have a value. A vector is an `array`.

    `names`: by usual name, the names of those columns that do not have their usual names.
    """
    failed = record.code is not None
    fields: dict[str, Any] = {
        "answer": record.extras.get("part", "") if failed else _answer(record),
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
        fields["reasoning"] = record.reasoning
    if record.more is not None:
        extras = record.extras
        if "tokens" in extras:
            fields["usage"] |= extras["tokens"]
        fields |= {name: extras[name] for name in EXTRA_FIELDS if name in extras}
    return {names.get(name, name): value for name, value in fields.items()} if names else fields


def shown_fields(record: Record, names: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Return `answer_fields` in a form for people: a vector is shown as its length and its first numbers."""
    fields = answer_fields(record, names)
    return {name: words_of(value) if isinstance(value, array) else value for name, value in fields.items()}


def _answer(record: Record) -> str | array[float]:
    return record.text if record.vector is None else floats_of(record.vector)
