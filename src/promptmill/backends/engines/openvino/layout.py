"""The images of a conversation as OpenVINO's own tags in its text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from promptmill.backends.engines.chat_template import ChatTemplate
from promptmill.backends.engines.image_decoding import mark_in_text, misplaced

_TAG = re.compile("<ov_genai_(?:image|video)_[0-9]+>")
_SEEN = re.compile("image|img|vision|video|audio", re.IGNORECASE)  # in names of special tokens
_WORD = "promptmillword"  # one that no template has of its own


class TaggedImages:
    """For models that read images: the pipeline makes of each tag what the model knows for an image.

    A tag stays where it is in its text whatever the template does with images, and most templates have no place for
    them between texts.
    """

    def __init__(self, template: ChatTemplate | None, special: Collection[str]) -> None:
        """`special` are the tokenizer's special tokens."""
        self._takes_texts = template is None or _WORD in _rendered(template, _WORD)
        self._marks = [token for token in special if _SEEN.search(token)]

    def turn(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return `message` as the template takes it."""
        content = message["content"] or ""
        if isinstance(content, list):
            content = "".join(part["text"] if part["type"] == "text" else _tag(part["index"]) for part in content)
        return {**message, "content": content if self._takes_texts else [{"type": "text", "text": content}]}

    def check(self, asked: Any) -> None:
        """Raise `PromptmillError` (`invalid_input`) where what is asked, as JSON, holds what stands for an image.

        The model would look for images behind marks of its own in a text, and find what is not there.
        """
        said = json.dumps(asked, ensure_ascii=False)
        tag = _TAG.search(said)
        mark = tag[0] if tag else next((mark for mark in self._marks if mark in said), None)
        if mark is not None:
            raise mark_in_text(mark)

    def bare(self, text: str, images: int) -> str:
        """Return the prompt `text` without its tags, of which there has to be one for each of its `images`.

        Raises `PromptmillError` (`unsupported`).
        """
        found = _TAG.findall(text)
        if found != [_tag(image) for image in range(images)]:
            raise misplaced(len(found), images)
        return _TAG.sub("", text)


def _tag(image: int) -> str:
    return f"<ov_genai_image_{image}>"


def _rendered(template: ChatTemplate, content: Any) -> str:
    try:
        return template.render([{"role": "user", "content": content}], {})
    except Exception:  # noqa: BLE001 (templates raise whatever they like; then this is not how they take a turn)
        return ""
