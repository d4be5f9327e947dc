"""Images that a program holds in memory, in the place of a path or URL."""

from __future__ import annotations

import re
from typing import Any

_SHORTEST_BASE64 = 64
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]++={0,2}\s*", re.ASCII)
# How the files of each format begin, in base64: JPEG, PNG, GIF, WebP, BMP, TIFF.
_BASE64_SIGNATURES = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")


class HeldImage(str):
    """The name of an image, equal for equal images, with the image behind it: bytes, one of Pillow's or an array."""

    image: Any

    def __new__(cls, image: Any, name: str = "") -> HeldImage:
        """`name` is by default that of the object, which this keeps alive."""
        held = super().__new__(cls, name or f"held:{id(image):x}")
        held.image = image
        return held


def is_image(value: object) -> bool:
    """Return whether `value` is of a kind that a `HeldImage` holds."""
    return (
        isinstance(value, bytes | bytearray | memoryview)
        or hasattr(type(value), "__array_interface__")  # of an image of Pillow's its value is all pixels
        or (hasattr(value, "mode") and hasattr(value, "tobytes"))
    )


def is_bare_base64(source: str) -> bool:
    """Return whether `source` is the base64 of an image without the head of a `data:` URL, as some programs send it.

    The shortest image is longer than the longest name of a file that could begin alike.
    """
    if len(source) < _SHORTEST_BASE64 or not source.lstrip()[:11].startswith(_BASE64_SIGNATURES):
        return False
    return _BASE64.fullmatch(source) is not None
