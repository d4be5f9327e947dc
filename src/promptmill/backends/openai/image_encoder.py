"""Encodes the images of one call, each once and off the event loop, to be spliced into bodies as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pybase64

from promptmill.core.conversation import ImagePart
from promptmill.core.errors import Code, PromptmillError
from promptmill.images.cache import KEPT_BYTES, ImageCache
from promptmill.images.load import ImageFile, ImageRules, is_web
from promptmill.images.web import WebImages


class ImageEncoder:
    """Images as endpoints get them: a `data:` URL, or the URL of an image on the web."""

    def __init__(self, rules: ImageRules, fetcher: WebImages | None, kept_bytes: int = KEPT_BYTES) -> None:
        """With a `fetcher` images on the web are downloaded here, else the endpoint gets their URLs.

        Up to `kept_bytes` are kept for later items.
        """
        self._fetches = fetcher is not None
        self._image_cache = ImageCache(rules, _json_url, None if fetcher is None else fetcher.fetch, kept_bytes)

    def passes_on(self, images: Sequence[ImagePart]) -> bool:
        """Return whether the endpoint gets the URL of one of `images`."""
        return not self._fetches and any(is_web(image.source) for image in images)

    async def read(self, images: Sequence[ImagePart]) -> dict[str, bytes]:
        """Return source → JSON string with the URL that is sent. Raises `PromptmillError` (`invalid_image`)."""
        return {image.source: await self._one(image.source) for image in images}

    async def _one(self, source: str) -> bytes:
        if not self._fetches and is_web(source):
            try:
                return orjson.dumps(source)
            except TypeError:
                raise PromptmillError(
                    Code.INVALID_IMAGE, "The URL of an image holds half a surrogate pair.", "Write it percent-encoded."
                ) from None
        return await self._image_cache.read(source)

    def close(self) -> None:
        """Stop what is still being read or fetched."""
        self._image_cache.close()


def _json_url(image: ImageFile) -> bytes:
    return b'"data:%b;base64,%b"' % (image.media_type.encode(), pybase64.b64encode(image.data))
