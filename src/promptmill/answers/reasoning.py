"""Separate reasoning from the answer."""

from __future__ import annotations

import re
from dataclasses import replace

from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Completion

CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")
TAGS = ("<think>", "</think>")
_START, _CHANNEL, _MESSAGE = CHANNEL_MARKS[:3]
_OPEN, _CLOSE = TAGS
_END = re.compile(r"<\|(?:end|return|call)\|>")


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


def told_apart(completion: Completion) -> Completion:
    """Return `completion` with the reasoning in its text moved to where reasoning belongs."""
    reasoning, text = split_reasoning(completion.text)
    if text == completion.text:
        return completion
    return replace(completion, text=text, reasoning=completion.reasoning or reasoning)


def unanswered(completion: Completion) -> PromptmillError | None:
    """Return the error of a completion that ended within its reasoning, or None when it is an answer.

    One that reached its longest length is an answer that was cut, and says so by its finish reason.
    """
    if completion.text or completion.tool_calls or not completion.reasoning or completion.finish_reason == "length":
        return None
    return PromptmillError(
        Code.OPEN_REASONING,
        "The model stopped, or met a stop string, while it was still reasoning: there is no answer.",
    )


def split_channels(text: str) -> tuple[str | None, str]:
    """Return `(reasoning, answer)` of a text in the Harmony format, its marks included, as gpt-oss writes it.

    What is said on the channel `final` is the answer, and so is what is said on none; all else is reasoning. Format:
    github.com/openai/harmony, docs/format.md.
    """
    if _CHANNEL not in text and _MESSAGE not in text:
        return None, text
    said: dict[bool, list[str]] = {True: [], False: []}
    for message in text.split(_START):
        header, _, content = message.partition(_MESSAGE)
        channel = header.partition(_CHANNEL)[2].strip()
        said[not channel or channel.startswith("final")].append(_END.split(content, maxsplit=1)[0])
    reasoning = "\n".join(filter(None, map(str.strip, said[False])))
    return reasoning or None, "".join(said[True])
