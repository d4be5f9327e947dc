"""Small copies of images, for HTML pages."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from promptmill.images.load import ImageRules, is_web, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

_SIZES = ((160, 60), (112, 60), (80, 50))
"""Pixels of a side and JPEG's quality, largest first. An image of noise takes 17,000, 8,700 and 4,300 characters."""


def thumbnail(source: str, rules: ImageRules, most: int | None = None) -> str | None:
    """Return an image as a small JPEG in base64, with at most `most` characters.

    Return None for a web image (it is not fetched), an image that `rules` refuse, and an unreadable image. Blocks.
    """
    if is_web(source):
        return None
    try:
        small = _small(load_image(source, rules).data)
        for side, quality in _SIZES if most is not None else _SIZES[:1]:
            small.thumbnail((side, side))
            made = io.BytesIO()
            small.save(made, "JPEG", quality=quality)
            text = base64.b64encode(made.getvalue()).decode()
            if most is None or len(text) <= most:
                return text
    except Exception:  # noqa: BLE001 (the file is gone, or Pillow's decoders raised one of their many errors)
        return None
    return None


def _small(data: bytes) -> Image:
    from PIL import Image

    side = _SIZES[0][0]
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (side, side))
        image.thumbnail((side, side))
        return image.convert("RGB")
