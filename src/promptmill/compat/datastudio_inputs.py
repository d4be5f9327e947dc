"""An input of the Python classes, in any shape that DataStudio's classes accept → a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptmill.core.conversation import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    conversation_from_messages,
)
from promptmill.core.errors import input_error
from promptmill.core.wording import shape
from promptmill.images.load import HeldImage, is_bare_base64, is_image

_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_SUFFICES_AS_IMAGE = ("data:image/", "file://")


def conversation_of(item: Any, where: str, image_key: str = "image") -> Conversation:
    """Return the conversation of one input, as `OpenAIAPI.generate` describes it; `where` names it in errors.

    `image_key` is the key under which a part may hold its image.
    """
    items = list(item) if isinstance(item, list | tuple) else [item]
    if items and all(isinstance(one, Mapping) and "role" in one for one in items):
        turns = [_turn(one, f"{where}[{index}]", image_key) for index, one in enumerate(items)]
        return conversation_from_messages(turns, where)
    system: list[str] = []
    parts: list[Part] = []
    for index, one in enumerate(items):
        place = where if items == [item] else f"{where}[{index}]"
        if isinstance(one, Mapping) and one.get("type") == "system":
            system.append(_value(one, place))
        else:
            parts.append(_part(one, place, image_key))
    if not parts:
        raise input_error(f"{where} is {shape(item)} without a text or image.")
    content = parts[0].text if len(parts) == 1 and isinstance(parts[0], TextPart) else tuple(parts)
    return Conversation((Message("user", content),)).with_system("\n".join(system))


def parts_of(item: Any, where: str, image_key: str = "image") -> list[dict[str, Any]]:
    """Return one input as parts `{"type": "text" | "image" | "system", "value": …}`; messages with a role stay.

    Raises `PromptmillError` (`invalid_input`) as `conversation_of` does.
    """
    items = list(item) if isinstance(item, list | tuple) else [item]
    found: list[dict[str, Any]] = []
    for index, one in enumerate(items):
        place = where if items == [item] else f"{where}[{index}]"
        if isinstance(one, Mapping) and "role" in one:
            found.append(dict(one))
        elif isinstance(one, Mapping) and one.get("type") == "system":
            found.append({"type": "system", "value": _value(one, place)})
        else:
            part = _part(one, place, image_key)
            if isinstance(part, TextPart):
                found.append({"type": "text", "value": part.text})
            else:
                found.append({"type": "image", "value": getattr(part.source, "image", part.source)})
    return found


def texts_of(conversation: Conversation) -> list[str]:
    """Return the texts of a conversation in their order, images and audio left out."""
    found = []
    for message in conversation.messages:
        parts = message.content if isinstance(message.content, tuple) else (TextPart(message.content or ""),)
        found += [part.text for part in parts if isinstance(part, TextPart)]
    return found


def _turn(message: Mapping[str, Any], where: str, image_key: str) -> Mapping[str, Any]:
    """Return a message whose parts are OpenAI's; DataStudio's have their text or image in `value`."""
    content = message.get("content")
    if not isinstance(content, list) or all(isinstance(part, Mapping) and _is_openais(part) for part in content):
        return message
    parts = [_part(part, f"{where}.content[{index}]", image_key) for index, part in enumerate(content)]
    return {
        **message,
        "content": [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "image_url", "image_url": {"url": part.source}}
            for part in parts
        ],
    }


def _is_openais(part: Mapping[str, Any]) -> bool:
    match part:
        case {"type": "text", "text": str()} | {"type": "image_url", "image_url": str() | {"url": str()}}:
            return True
    return part.get("type") not in {"text", "image", "image_url"}


def _part(item: Any, where: str, image_key: str) -> TextPart | ImagePart:
    if isinstance(item, str):
        return ImagePart(item) if _is_image(item) else TextPart(item)
    if isinstance(item, Mapping):
        match item.get("type"):
            case "text":
                return TextPart(_value(item, where))
            case "image" | "image_url":
                return ImagePart(_source(item, where, image_key))
    if not isinstance(item, Mapping | list | tuple) and is_image(item):
        return ImagePart(HeldImage(item))
    raise input_error(
        f'{where} is {shape(item)}. Send a text, {{"type": "text", "value": …}}, {{"type": "image", "value": …}} '
        'or {"role": "user", "content": …}.'
    )


def _value(item: Mapping[str, Any], where: str) -> str:
    value = _given(item)
    if not isinstance(value, str):
        raise input_error(f"{where} has no text in `value`.")
    return value


def _source(item: Mapping[str, Any], where: str, image_key: str) -> str:
    """Return the source of an image; one in memory is encoded when it is sent."""
    value = _given(item, image_key)
    if isinstance(value, str):
        return value
    if not is_image(value):
        raise input_error(f"{where} has no path, URL or image in `value`.")
    return HeldImage(value)


def _given(item: Mapping[str, Any], image_key: str = "") -> Any:
    names = (image_key, "value", "text", "image", "image_url")
    value = next((item[name] for name in names if name in item and item[name] is not None), None)
    return value.get("url") if isinstance(value, Mapping) else value


def _is_image(text: str) -> bool:
    if text.startswith(_SUFFICES_AS_IMAGE) or is_bare_base64(text):
        return True
    if len(text) > 1024 or "\n" in text or Path(text.split("?", maxsplit=1)[0]).suffix.lower() not in _IMAGE_SUFFIXES:
        return False
    return text.startswith(("http://", "https://")) or Path(text).is_file()
