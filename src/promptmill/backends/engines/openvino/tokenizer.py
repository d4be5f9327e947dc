"""OpenVINO's tokenizer, with what the engines ask of a tokenizer by transformers' names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# How special tokens are written; which of these are special is asked of the detokenizer.
_MARKED = re.compile(b"<[^<>\\s]+>|\\[[^\\[\\]\\s]+\\]")
_MOST_MARKED = 4096


class Tokenizer:
    """Texts ↔ tokens of one model; any thread may ask."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is `openvino_genai.Tokenizer`."""
        self._tokenizer = tokenizer
        self.chat_template: str = tokenizer.get_original_chat_template() or ""
        self.special = _special(tokenizer)
        self.all_special_tokens = list(self.special)
        self.named = {
            name: getattr(tokenizer, f"get_{name}")() or "" for name in ("bos_token", "eos_token", "pad_token")
        }

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the number of a special token."""
        return self.special[token]

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of `text`; with `special` the tokenizer adds its own, such as one for the beginning."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data[0].tolist()
        return found

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool, **_: Any) -> str:
        """Return the text of `tokens`."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens) if tokens else ""
        return text


def _special(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that the detokenizer leaves out of texts, by name."""
    vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    marked = [(name.decode(errors="replace"), number) for name, number in vocabulary.items() if _MARKED.fullmatch(name)]
    marked = sorted(marked, key=lambda pair: -pair[1])[:_MOST_MARKED]
    if not marked:
        return {}
    texts = tokenizer.decode([[number] for _, number in marked], True)
    return {name: number for (name, number), text in zip(marked, texts, strict=True) if not text}
