"""The images of one call: each read and encoded once, off the event loop, and spliced into bodies as bytes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import orjson
import pybase64

from promptmill.conversation import ImagePart
from promptmill.images import ImageRules, is_web, load_image
from promptmill.webimages import ImageFetcher

# Encoded images that are kept for a later item of the call; those in flight are kept alive by their items.
_KEPT_BYTES = 256 * 1024 * 1024


class Attachments:
    """Reads and remembers. Two items that need the same file at the same time wait for one reading."""

    def __init__(self, rules: ImageRules, fetcher: ImageFetcher | None) -> None:
        """With a `fetcher` images on the web are downloaded here, else the endpoint gets their URLs."""
        self._rules = rules
        self._fetcher = fetcher
        self._readings: OrderedDict[str, asyncio.Future[bytes]] = OrderedDict()
        self._kept = 0

    async def read(self, images: Sequence[ImagePart]) -> dict[str, bytes]:
        """Return source → JSON string with the URL that is sent. Raises `PromptmillError` (`invalid_image`)."""
        return {image.source: await self._one(image.source) for image in images}

    async def _one(self, source: str) -> bytes:
        if is_web(source) and self._fetcher is None:
            return orjson.dumps(source)
        reading = self._readings.get(source)
        if reading is None:
            reading = asyncio.ensure_future(self._read(source))
            self._readings[source] = reading
            reading.add_done_callback(self._remember)
        return await asyncio.shield(reading)  # another item may be waiting for the same file

    async def _read(self, source: str) -> bytes:
        if is_web(source) and self._fetcher is not None:
            source = await self._fetcher.fetch(source)
        return await asyncio.to_thread(self._encode, source)

    def _encode(self, source: str) -> bytes:
        image = load_image(source, self._rules)
        return b'"data:%b;base64,%b"' % (image.media_type.encode(), pybase64.b64encode(image.data))

    def _remember(self, reading: asyncio.Future[bytes]) -> None:
        self._kept += _size(reading)
        while self._kept > _KEPT_BYTES and len(self._readings) > 1:
            source, oldest = next(iter(self._readings.items()))
            if not oldest.done():
                break
            del self._readings[source]
            self._kept -= _size(oldest)

    def close(self) -> None:
        """Stop what is still being read or fetched."""
        for reading in self._readings.values():
            reading.cancel()


def _size(reading: asyncio.Future[bytes]) -> int:
    return 0 if reading.cancelled() or reading.exception() else len(reading.result())
