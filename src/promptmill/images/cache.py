"""The image cache of one call: reads each source once, off the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from promptmill.images.load import ImageFile, ImageRules, is_web, load_image

KEPT_BYTES = 256 * 1024 * 1024
"""Bytes of images kept for later items of a call that share them."""
_THREADS = 8
_EACH = 4096  # bytes of an entry without its image; most of them are the error of an unreadable image


class ImageCache:
    """Reads images and keeps them. Items that need the same file at the same time share one reading."""

    def __init__(
        self,
        rules: ImageRules,
        encode: Callable[[ImageFile], bytes],
        fetch: Callable[[str], Awaitable[str]] | None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """`encode` makes the bytes to keep, in a thread; `fetch` turns an `http(s)` URL into a `data:` URL.

        At most `kept_bytes` are kept for later items of the call; items in flight keep their own images alive.
        """
        self._rules = rules
        self._encode = encode
        self._fetch = fetch
        self._readings: OrderedDict[str, asyncio.Future[bytes]] = OrderedDict()
        self._kept_bytes = kept_bytes
        self._kept = 0
        self._threads: ThreadPoolExecutor | None = (
            None  # separate from the default pool: images may wait for memory, and must not block other work
        )

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
        """Cancel all running reads and downloads."""
        for reading in self._readings.values():
            reading.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _size(source: str, reading: asyncio.Future[bytes]) -> int:
    image = b"" if reading.cancelled() or reading.exception() else reading.result()
    size = _EACH + len(source) + len(image)
    # a `data:` URL seldom occurs twice: count it eightfold, so that a file of such rows needs little memory
    return size * 8 if source.startswith("data:") else size
