"""A finished answer of an engine of this machine: its parts, why it ended, and what it took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from promptmill.backends.engines.tool_use import ToolUse
from promptmill.system.frames import Frame


def finished(
    found: dict[str, Any],
    *,
    reason: str | None,
    ended: bool,
    logprobs: list[dict[str, Any]] | None,
    prompt_tokens: int,
    tokens: int,
) -> Frame:
    """Return the fields of an `outcome` message about `found`, the parts of the answer.

    `ended`: its last token only says so, and is no part of the answer.
    """
    if logprobs is not None:
        found = found | {"logprobs": {"content": logprobs[:-1] if ended else logprobs}}
    called = "tool_calls" in found and reason == "stop"
    return {**found, "finish_reason": "tool_calls" if called else reason, "usage": [prompt_tokens, tokens]}


def parted(
    text: str, split: Callable[[str], tuple[str | None, str]], tools: ToolUse | None, *, inline: bool
) -> dict[str, Any]:
    """Return `text`, `reasoning` and `tool_calls` of what a model wrote; `split` tells reasoning apart.

    `inline`: reasoning stays in the text.
    """
    calls: list[dict[str, Any]] = []
    if tools is not None and tools.form.before_reasoning and not tools.must:
        text, calls = tools.read(text)
        tools = None
    reasoning, answer = (None, text) if inline and tools is None else split(text)
    before = text.removesuffix(answer) if inline else ""
    if tools is not None:
        answer, calls = tools.read(answer)
    found = {"text": before + answer, "reasoning": None if inline else reasoning}
    return found | ({"tool_calls": calls} if calls else {})
