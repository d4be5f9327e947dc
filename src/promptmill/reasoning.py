"""Thinking aloud, told apart from the answer."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


def split_reasoning(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """Return `(reasoning, answer)` of a text that may begin with `<think>…</think>`.

    `opened` says that the prompt itself ended with `<think>`, as some chat templates do. A block that never closes
    (an answer cut at its length) is all reasoning, and the answer is empty.
    """
    if not opened:
        start = text.lstrip()
        if not start.startswith(_OPEN):
            return None, text
        text = start[len(_OPEN) :]
    thought, _, answer = text.partition(_CLOSE)
    return thought.strip() or None, answer.lstrip()
