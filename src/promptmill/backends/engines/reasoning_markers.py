"""Reasoning markers that are special tokens, which the tokenizer would strip from the text."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from promptmill.answers.reasoning import CHANNEL_MARKS, TAGS, split_channels, split_reasoning
from promptmill.backends.engines.request_options import special_tokens


class ReasoningMarkers:
    """What of a tokenizer's special tokens must stay in an answer's text so that its reasoning can be told apart."""

    def __init__(self, tokenizer: Any, also: Collection[str] = ()) -> None:
        """`tokenizer` is the model's; `also` are other marks that the text is read by."""
        special = special_tokens(tokenizer)
        self._channels = {"<|channel|>", "<|message|>"} <= special.keys()
        marks = (*(CHANNEL_MARKS if self._channels else TAGS), *also)
        self.are_special = any(mark in special for mark in marks)
        """Whether texts have to be made with special tokens, all but `hidden`."""
        self.hidden = {name: number for name, number in special.items() if name not in marks}
        """The other special tokens, by name."""

    def split(self, text: str, *, opened: bool) -> tuple[str | None, str]:
        """Return `(reasoning, answer)`; `opened` as in `split_reasoning`."""
        return split_channels(text) if self._channels else split_reasoning(text, opened=opened)
