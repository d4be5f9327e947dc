"""The fields of an answer in all the places where endpoints put them: text, reasoning, finish reason, other fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Any

import orjson

# vLLM, SGLang, DeepSeek, Qwen; OpenRouter, newer vLLM, Ollama; Anthropic's format through gateways.
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text")
_THINKING_PARTS = frozenset({"thinking", "reasoning", "reasoning_text", "thought", "redacted_thinking"})
_INNER = ("text", "thinking", "reasoning", "content", "summary", "parts", "value")
_DEEPEST = 8
_LONGEST_REASON = 200  # characters; a search through a longer one would hold up everything else
_DEEPEST_JSON = 32  # levels of nesting; deeper values are measured, because each encoder on their way has its own limit
_DEEPEST_ORJSON = 254
# Fields that `Completion` has itself, or that are equal in every answer.
_PAYLOAD = frozenset({"object", "choices", "error"})
_CHOICE = frozenset({"index", "message", "text", "finish_reason", "logprobs"})
_MESSAGE = frozenset({"role", "content", "reasoning_content", "reasoning", "tool_calls"})


def read_message(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return `(text, reasoning)` of a message, the text unchanged. Raises `TypeError` for content that is not text."""
    text, thought = _split_parts(message.get("content"))
    return text, _reasoning(message) or thought or None


def is_thinking(part: Any) -> bool:
    """Return whether a part of a content list is reasoning."""
    return isinstance(part, dict) and (part.get("type") in _THINKING_PARTS or part.get("thought") is True)


def text_of(part: Any, depth: int = 0) -> str:
    """Return the text of a part; `""` for a part of another type. Raises `TypeError` for a value that is not a part."""
    if isinstance(part, str):
        return part
    if part is None:
        return ""
    if depth > _DEEPEST:
        raise TypeError
    if isinstance(part, list):
        return "".join(text_of(inner, depth + 1) for inner in part)
    if not isinstance(part, dict):
        raise TypeError
    for name in _INNER:
        if part.get(name) is not None:
            return text_of(part[name], depth + 1)
    return ""


def _split_parts(content: Any) -> tuple[str, str]:
    """Return `(text, thinking)` of a message's content. Mistral's and Anthropic's reasoning models send parts."""
    if isinstance(content, str):
        return content, ""
    parts = content if isinstance(content, list) else [content]
    text = "".join(text_of(part) for part in parts if not is_thinking(part))
    return text, "".join(text_of(part) for part in parts if is_thinking(part))


def _reasoning(message: Mapping[str, Any]) -> str | None:
    for name in _REASONING:
        if found := _optional(message.get(name)):
            return found
    for name in ("reasoning_details", "thinking_blocks"):
        details = message.get(name)
        if isinstance(details, list) and (found := "".join(_details(details))):
            return found
    inner = message.get("provider_specific_fields")
    return _reasoning(inner) if isinstance(inner, dict) else None


def _details(details: list[Any]) -> Iterator[str]:
    for detail in details:
        if isinstance(detail, dict) and (found := _optional(detail)):
            yield found


def _optional(value: Any) -> str | None:
    try:
        return text_of(value) or None
    except TypeError:
        return None


class Ending(Enum):
    """The way an answer ended."""

    WHOLE = auto()
    FILTERED = auto()
    BROKEN_OFF = auto()


def _set_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STOP = _set_of(
    "stop eos eos_token end_turn stop_sequence stop_token end_of_text complete completed finished finish normal end "
    "done"
)
_LENGTH = _set_of(
    "length max_tokens max_output_tokens max_length model_length token_limit length_limit error_limit max_new_tokens "
    "model_context_window_exceeded context_length_exceeded repetition_truncation"
)
# Any word for a filter, also inside a longer reason such as `content_filter: PROHIBITED_CONTENT`.
_FILTER = re.compile(
    r"filter|safety|sensitive|moderat|blocked|blocklist|prohibit|spii|recitation|guardrail|toxic|refus|polic"
    r"|flagged|unsafe"
    r"|risk|censor|violat|content_"
)
_BROKEN = re.compile(
    r"error|abort|cancel|fail|interrupt|time_?d?_?out|insufficient|overload|malformed|incomplete|unavailable"
    r"|disconnect|preempt"
    r"|connection|network|server"
)


def read_finish(reason: object) -> tuple[str | None, Ending]:
    """Return `(OpenAI's finish reason or the endpoint's own, the ending)`; SGLang's may be an object with a `type`.

    Sources: the providers' API references. Gateways pass on Gemini's and Cohere's own reasons unchanged.
    """
    if isinstance(reason, dict):
        reason = reason.get("type")
    if not isinstance(reason, str) or not reason:
        return None, Ending.WHOLE
    reason = reason[:_LONGEST_REASON]
    word = reason.strip().lower().replace("-", "_").replace(" ", "_")
    if word in _STOP:
        return "stop", Ending.WHOLE
    if word in _LENGTH:
        return "length", Ending.WHOLE
    if "malformed" in word or (_BROKEN.search(word) and not _FILTER.search(word)):
        return reason, Ending.BROKEN_OFF
    if _FILTER.search(word):
        return "content_filter", Ending.FILTERED
    return reason, Ending.WHOLE


def details_of(
    payload: Mapping[str, Any], choice: Mapping[str, Any], message: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the other fields of an answer's `body`, `choice` and `message`, for outputs of the Batch format.

    None if there are none, or if they are nested too deeply for a file.
    """
    found = {"body": _rest(payload, _PAYLOAD), "choice": _rest(choice, _CHOICE), "message": _rest(message, _MESSAGE)}
    kept = {name: value for name, value in found.items() if value}
    return kept if can_go_on(kept) else None


def _rest(value: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if name not in known and inner is not None}


def can_go_on(value: Any) -> bool:
    """Return whether files, frames and results can hold `value`: it is valid JSON and not nested too deeply."""
    try:
        text = orjson.dumps(value)
        if text.count(b"{") + text.count(b"[") <= _DEEPEST_JSON:
            return True
        for _ in range(_DEEPEST_ORJSON - _DEEPEST_JSON):  # wrapped until orjson's limit stands for ours
            value = [value]
        return bool(orjson.dumps(value))
    except TypeError:
        return False
