"""Images made small, for pages."""

from __future__ import annotations

import base64
import io

from promptmill.images.load import ImageRules, is_web, load_image

_SIZES = ((160, 60), (112, 60), (80, 50))
"""Pixels of a side and JPEG's quality, largest first. Noise takes 17,000, 8,700 and 4,300 characters."""


def thumbnail(source: str, rules: ImageRules, most: int | None = None) -> str | None:
    """Return an image as a small JPEG in base64, of at most `most` characters.

    None for an image of the web, which is not fetched, and for one that `rules` refuse or that cannot be read. Blocks.
    """
    if is_web(source):
        return None
    try:
        image = load_image(source, rules).data
        for side, quality in _SIZES if most is not None else _SIZES[:1]:
            made = _small(image, side, quality)
            if most is None or len(made) <= most:
                return made
    except Exception:  # noqa: BLE001 (it is not there any more, or one of many errors of Pillow's decoders)
        return None
    return None


def _small(data: bytes, side: int, quality: int) -> str:
    from PIL import Image

    made = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (side, side))
        image.thumbnail((side, side))
        image.convert("RGB").save(made, "JPEG", quality=quality)
    return base64.b64encode(made.getvalue()).decode()
