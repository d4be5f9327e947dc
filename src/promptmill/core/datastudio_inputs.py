"""One input of the Python faces, in any of the shapes that DataStudio's classes take → a conversation."""

from __future__ import annotations

import base64
import io
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
    shape,
)
from promptmill.core.errors import input_error

_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_SUFFICES_AS_IMAGE = ("data:image/", "file://")


def conversation_of(item: Any, where: str) -> Conversation:
    """Return the conversation of one input, as `OpenAIAPI.generate` describes it; `where` names it in errors."""
    items = list(item) if isinstance(item, list | tuple) else [item]
    if items and all(isinstance(one, Mapping) and "role" in one for one in items):
        return conversation_from_messages(items, where)
    system: list[str] = []
    parts: list[Part] = []
    for index, one in enumerate(items):
        place = where if items == [item] else f"{where}[{index}]"
        if isinstance(one, Mapping) and one.get("type") == "system":
            system.append(_value(one, place))
        else:
            parts.append(_part(one, place))
    if not parts:
        raise input_error(f"{where} is {shape(item)} without a text or image.")
    content = parts[0].text if len(parts) == 1 and isinstance(parts[0], TextPart) else tuple(parts)
    return Conversation((Message("user", content),)).with_system("\n".join(system))


def _part(item: Any, where: str) -> Part:
    if isinstance(item, str):
        return ImagePart(item) if _is_image(item) else TextPart(item)
    if isinstance(item, Mapping):
        match item.get("type"):
            case "text":
                return TextPart(_value(item, where))
            case "image" | "image_url":
                return ImagePart(_source(item, where))
    raise input_error(
        f'{where} is {shape(item)}. Send a text, {{"type": "text", "value": …}}, {{"type": "image", "value": …}} '
        'or {"role": "user", "content": …}.'
    )


def _value(item: Mapping[str, Any], where: str) -> str:
    value = _given(item)
    if not isinstance(value, str):
        raise input_error(f"{where} has no text in `value`.")
    return value


def _source(item: Mapping[str, Any], where: str) -> str:
    """Return the source of an image, for one of Pillow's a `data:` URL."""
    value = _given(item)
    if isinstance(value, str):
        return value
    from PIL import Image

    if not isinstance(value, Image.Image):
        raise input_error(f"{where} has no path, URL or image in `value`.")
    data = io.BytesIO()
    try:
        value.save(data, "PNG")
    except (OSError, ValueError):  # a mode that PNG has not
        value.convert("RGB").save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _given(item: Mapping[str, Any]) -> Any:
    value = next((item[name] for name in ("value", "text", "image", "image_url") if name in item), None)
    return value.get("url") if isinstance(value, Mapping) else value


def _is_image(text: str) -> bool:
    if text.startswith(_SUFFICES_AS_IMAGE):
        return True
    if len(text) > 1024 or "\n" in text or Path(text.split("?", maxsplit=1)[0]).suffix.lower() not in _IMAGE_SUFFIXES:
        return False
    return text.startswith(("http://", "https://")) or Path(text).is_file()
