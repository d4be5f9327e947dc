"""Image cache of one call: each source is read once, off the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from promptmill.images.load import ImageFile, ImageRules, is_web, load_image

KEPT_BYTES = 256 * 1024 * 1024
"""Enough for the images that several items of a call share."""
_THREADS = 8
_EACH = 4096  # what remembering costs, most of it the error of an image that cannot be read


class ImageCache:
    """Reads and remembers. Two items that need the same file at the same time wait for one reading."""

    def __init__(
        self,
        rules: ImageRules,
        encode: Callable[[ImageFile], bytes],
        fetch: Callable[[str], Awaitable[str]] | None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """`encode` makes what is kept, in a thread; `fetch` turns an `http(s)` URL into a `data:` URL.

        Up to `kept_bytes` of it are kept for later items of the call; those in flight keep theirs alive.
        """
        self._rules = rules
        self._encode = encode
        self._fetch = fetch
        self._readings: OrderedDict[str, asyncio.Future[bytes]] = OrderedDict()
        self._kept_bytes = kept_bytes
        self._kept = 0
        self._threads: ThreadPoolExecutor | None = None  # our own: images may wait for memory, nobody else should

    async def read(self, source: str) -> bytes:
        """Return the encoded image at `source`. Raises `PromptmillError` (`invalid_image`)."""
        reading = self._readings.get(source)
        if reading is None:
            reading = asyncio.ensure_future(self._read(source))
            self._readings[source] = reading
            reading.add_done_callback(functools.partial(self._remember, source))
        return await asyncio.shield(reading)  # another item may be waiting for the same file

    async def _read(self, source: str) -> bytes:
        if self._fetch is not None and is_web(source):
            source = await self._fetch(source)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "images")
        return await asyncio.wrap_future(self._threads.submit(self._load, source))

    def _load(self, source: str) -> bytes:
        return self._encode(load_image(source, self._rules))

    def _remember(self, read: str, reading: asyncio.Future[bytes]) -> None:
        self._kept += _size(read, reading)
        while self._kept > self._kept_bytes and len(self._readings) > 1:
            source, oldest = next(iter(self._readings.items()))
            if not oldest.done():
                break
            del self._readings[source]
            self._kept -= _size(source, oldest)

    def close(self) -> None:
        """Stop what is still being read or fetched."""
        for reading in self._readings.values():
            reading.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _size(source: str, reading: asyncio.Future[bytes]) -> int:
    image = b"" if reading.cancelled() or reading.exception() else reading.result()
    size = _EACH + len(source) + len(image)
    # who brings the bytes themselves seldom brings them twice, and a file of such rows is answered in little memory
    return size * 8 if source.startswith("data:") else size
