"""Decode tokens to answer text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from promptmill.backends.engines.reasoning_markers import ReasoningMarkers


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
        """Return `(reasoning, answer)` of a decoded text; `opened` says that the prompt ended inside `<think>`."""
        return self._markers.split(text, opened=opened)
