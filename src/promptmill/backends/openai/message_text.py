"""The text and the reasoning of a message, wherever endpoints put them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# vLLM, SGLang, DeepSeek, Qwen; OpenRouter, newer vLLM, Ollama; Anthropic's format through gateways.
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text")
_THINKING_PARTS = frozenset({"thinking", "reasoning", "reasoning_text", "thought", "redacted_thinking"})
_INNER = ("text", "thinking", "reasoning", "content", "summary", "parts", "value")
_DEEPEST = 8


def read_message(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return `(text, reasoning)`, the text as the endpoint gave it. Raises `TypeError` for content that is not text."""
    text, thought = _split_parts(message.get("content"))
    return text, _reasoning(message) or thought or None


def is_thinking(part: Any) -> bool:
    """Return whether a part of a content list is reasoning."""
    return isinstance(part, dict) and (part.get("type") in _THINKING_PARTS or part.get("thought") is True)


def text_of(part: Any, depth: int = 0) -> str:
    """Return the text of a part, `""` for one of another kind. Raises `TypeError` for what is neither."""
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
    """Return `(text, thinking)` of a message's content: Mistral's and Anthropic's reasoning models send parts."""
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
