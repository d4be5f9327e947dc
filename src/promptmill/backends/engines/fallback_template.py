"""Fallback prompt format for models without a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NO_TEMPLATE = (
    "The model has no chat template: a lone user turn goes in as plain text, several turns as `User: …` and "
    "`Assistant: …`. For chats use an instruction-tuned model."
)


def plain_text(turns: Sequence[Mapping[str, Any]]) -> str:
    """Return the prompt of `turns`, whose contents are texts."""
    if [turn["role"] for turn in turns if turn["role"] not in {"system", "developer"}] == ["user"]:
        return "\n\n".join(turn["content"] for turn in turns if turn["content"])
    names = {"user": "User: ", "assistant": "Assistant: ", "tool": "Tool: "}
    return "\n\n".join([*(names.get(turn["role"], "") + turn["content"] for turn in turns), "Assistant:"])
