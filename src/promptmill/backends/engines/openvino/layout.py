"""Messages as chat templates take them; images as OpenVINO's own tags in the text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from promptmill.backends.engines.chat_template import ChatTemplate
from promptmill.core.errors import Code, PromptmillError, input_error

_TAG = re.compile("<ov_genai_(?:image|video)_[0-9]+>")
_SEEN = re.compile("image|img|vision|video|audio", re.IGNORECASE)  # in names of special tokens
_WORD = "promptmillword"  # one that no template has of its own


class PlainTexts:
    """For models that read only text: a turn is one text."""

    def turns(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return `messages` as the template takes them."""
        return [{**message, "content": _joined(message["content"])} for message in messages]


class TaggedImages:
    """For models that read images: the pipeline makes of each tag what the model knows for an image.

    A tag stays where it is in its text whatever the template does with images, and most templates have no place for
    them between texts.
    """

    def __init__(self, template: ChatTemplate | None, special: Collection[str]) -> None:
        """`special` are the tokenizer's special tokens."""
        self._takes_texts = template is None or _WORD in _rendered(template, _WORD)
        self._marks = [token for token in special if _SEEN.search(token)]

    def turns(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return `messages` as the template takes them."""
        return [{**message, "content": self._content(message["content"])} for message in messages]

    def _content(self, content: Any) -> Any:
        if isinstance(content, list):
            content = "".join(part["text"] if part["type"] == "text" else _tag(part["index"]) for part in content)
        return (content or "") if self._takes_texts else [{"type": "text", "text": content or ""}]

    def bare(self, text: str, images: int) -> str:
        """Return the prompt `text` without its tags, of which there has to be one for each of its `images`.

        Raises `PromptmillError` (`invalid_input`, `unsupported`).
        """
        found = _TAG.findall(text)
        expected = [_tag(image) for image in range(images)]
        bare = _TAG.sub("", text)
        # the model would look for images behind marks of its own in a text, and find what is not there
        own = next((tag for tag in found if tag not in expected or found.count(tag) > 1), None)
        own = own or next((mark for mark in self._marks if mark in bare), None)
        if own is not None:
            raise input_error(
                f"The prompt's own text holds {own}, which stands for an image to this model; "
                "write it in another way, or make it the `image_tag`."
            )
        if found != expected:
            raise PromptmillError(
                Code.UNSUPPORTED,
                f"The model's chat template has a place for {len(found)} of the prompt's {images} images.",
                "Put the images into user turns, or use another model.",
            )
        return bare


def _tag(image: int) -> str:
    return f"<ov_genai_image_{image}>"


def _joined(content: Any) -> str:
    text: str = "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""
    return text


def _rendered(template: ChatTemplate, content: Any) -> str:
    try:
        return template.render([{"role": "user", "content": content}], {})
    except Exception:  # noqa: BLE001 (templates raise whatever they like; then this is not how they take a turn)
        return ""
