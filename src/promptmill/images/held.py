"""Images in memory → bytes of an image file: JPEG, and PNG where that would lose transparency or a palette."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_QUALITY = 95
_PNG_MODES = frozenset({"1", "LA", "P", "PA", "RGBA", "RGBa", "La"})
_JPEG_MODES = frozenset({"L", "RGB"})


def encoded(image: Any) -> bytes:
    """Return the file of an image: bytes as they are, an array as pixels. Blocks. Raises `TypeError`, `ValueError`."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    return _encoded(_pillow(image))


def _pillow(image: Any) -> Image:
    from PIL import Image

    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _encoded(image: Image) -> bytes:
    out = io.BytesIO()
    if image.mode in _PNG_MODES or "transparency" in image.info:
        image.save(out, "PNG", compress_level=1)
    else:
        plain = image if image.mode in _JPEG_MODES else _to_eight_bits(image)
        plain.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _to_eight_bits(image: Image) -> Image:
    from promptmill.images.load import to_eight_bits

    return to_eight_bits(image) if image.mode.startswith(("I", "F")) else image.convert("RGB")
