"""How the chat template of a model that reads images takes a turn: as a text, or as a list of text and image parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BEFORE, _AFTER = "promptmillbefore", "promptmillafter"  # words that no template has of its own


class ImageLayout:
    """For models that read images. What their templates take differs, so the template is asked once."""

    def __init__(self, tokenizer: Any, template: str | None, mark: str | None) -> None:
        """`mark` is what stands for an image in a text, if that is known; without a template texts with it are used."""
        self._mark = mark
        text, image = {"type": "text", "text": _BEFORE}, {"type": "image"}
        after = {"type": "text", "text": _AFTER}
        seen = _rendered(tokenizer, template, [text, image, after])
        self._takes_lists = _BEFORE in seen and _AFTER in seen
        self._takes_texts = template is None or _BEFORE in _rendered(tokenizer, template, _BEFORE)
        # many templates put the images of a turn before its texts, wherever they stood
        between = seen.partition(_BEFORE)[2].partition(_AFTER)[0]
        self._keeps_places = self._takes_lists and (mark is None or mark in between)

    def turn(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return `message` as the template takes it, every image in its place."""
        content = message["content"] or ""
        if isinstance(content, str):
            content = content if self._takes_texts else [{"type": "text", "text": content}]
        elif not self._takes_lists or (_mixed(content) and not self._keeps_places):
            joined = "".join(part["text"] if part["type"] == "text" else self._mark or "" for part in content)
            content = joined if self._takes_texts else [{"type": "text", "text": joined}]
        else:
            content = [part if part["type"] == "text" else {"type": "image"} for part in content]
        return {**message, "content": content}


def _mixed(parts: list[dict[str, Any]]) -> bool:
    """Return whether an image comes behind a text."""
    kinds = [part["type"] for part in parts]
    return "text" in kinds and "image" in kinds[kinds.index("text") :]


def _rendered(tokenizer: Any, template: str | None, content: Any) -> str:
    if template is None:
        return ""
    try:
        turns = [{"role": "user", "content": content}]
        text: str = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except Exception:  # noqa: BLE001 (templates raise whatever they like; then this is not how they take a turn)
        return ""
    return text
