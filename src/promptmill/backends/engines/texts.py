"""From tokens to the text of an answer, with the marks in it that its reasoning and its calls are told apart by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


class Texts:
    """Decodes answers of one model, without its special tokens."""

    def __init__(self, tokenizer: Any, also: Collection[str] = ()) -> None:
        """`tokenizer` is the model's; of its special tokens, `also` stay in texts."""
        self._tokenizer = tokenizer
        self._markers = ReasoningMarkers(tokenizer, also)
        self._hidden = frozenset(self._markers.hidden.values())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, with the marks of thinking aloud."""
        bare = not self._markers.are_special
        shown = tokens if bare else [token for token in tokens if token not in self._hidden]
        text: str = self._tokenizer.decode(shown, skip_special_tokens=bare, clean_up_tokenization_spaces=False)
        return text

    def split(self, text: str, *, opened: bool) -> tuple[str | None, str]:
        """Return `(reasoning, answer)` of a decoded text; `opened` as in `split_reasoning`."""
        return self._markers.split(text, opened=opened)
