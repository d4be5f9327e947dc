"""Extra response fields, kept for Batch API output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.backends.openai.lenient_json import can_go_on

# Kept as fields of a `Completion`, or the same for every answer.
_PAYLOAD = frozenset({"object", "choices", "error"})
_CHOICE = frozenset({"index", "message", "text", "finish_reason", "logprobs"})
_MESSAGE = frozenset({"role", "content", "reasoning_content", "reasoning", "tool_calls"})


def details_of(
    payload: Mapping[str, Any], choice: Mapping[str, Any], message: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return `body`, `choice` and `message` of an answer without what a `Completion` has fields for.

    None when no file can hold them.
    """
    found = {"body": _rest(payload, _PAYLOAD), "choice": _rest(choice, _CHOICE), "message": _rest(message, _MESSAGE)}
    kept = {name: value for name, value in found.items() if value}
    return kept if can_go_on(kept) else None


def _rest(value: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if name not in known and inner is not None}
