"""Images → bytes of an image file that models read: those in memory, and files of unusual kinds."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_QUALITY = 95
_PNG_MODES = frozenset({"1", "LA", "P", "PA", "RGBA", "RGBa", "La"})
_JPEG_MODES = frozenset({"L", "RGB"})
_WEB_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})
_ORIENTATION = 0x0112


def encoded(image: Any) -> bytes:
    """Return the file of an image in memory: bytes as they are, an array as pixels.

    JPEG, and PNG where that would lose transparency or a palette. Blocks. Raises `TypeError`, `ValueError`.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    from PIL import Image

    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    out = io.BytesIO()
    if image.mode in _PNG_MODES or "transparency" in image.info:
        image.save(out, "PNG", compress_level=1)
        return out.getvalue()
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    elif image.mode not in _JPEG_MODES:
        image = image.convert("RGB")
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def needs_rewriting(image: Image) -> bool:
    """Return whether models do not read an image as it is: animated, turned by EXIF, or not of 8 bits a channel."""
    animated = getattr(image, "is_animated", False) and image.format != "MPO"
    if animated or image.mode not in _WEB_MODES:
        return True
    # reading EXIF parses the file only where there is some
    return "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1


def rewritten(image: Image) -> bytes:
    """Return an image, or its first frame, as a PNG file: upright, 8 bits a channel."""
    from PIL import ImageOps

    image.seek(0)
    upright = ImageOps.exif_transpose(image)
    image.close()  # frees its pixels; what still refers to it does so in a circle, until the collector comes
    changed = _in_web_mode(upright)
    out = io.BytesIO()
    changed.save(out, "PNG", compress_level=1)
    upright.close()
    changed.close()
    return out.getvalue()


def _in_web_mode(image: Image) -> Image:
    if image.mode.startswith(("I", "F")):
        return _to_eight_bits(image)
    if image.mode not in _WEB_MODES or image.mode in {"P", "PA"}:
        return image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    return image


def _to_eight_bits(image: Image) -> Image:
    """Scale 16 bits to 8; Pillow's own conversion would clip everything above 255 to white."""
    if image.mode in {"I;16", "I;16L", "I;16B"}:  # the upper byte of each pixel, without its detour over 32 bits
        from PIL.Image import frombytes

        return frombytes("L", image.size, image.tobytes()[0 if image.mode == "I;16B" else 1 :: 2])
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 256).convert("L")
    low, high = image.getextrema()
    span = float(high) - float(low)  # type: ignore[arg-type]
    scale = 1 / 256 if image.mode == "I" and float(high) > 255 else 255 / span if span else 0.0  # type: ignore[arg-type]
    offset = 0.0 if image.mode == "I" else -float(low) * scale  # type: ignore[arg-type]
    return image.point(lambda value: value * scale + offset).convert("L")
