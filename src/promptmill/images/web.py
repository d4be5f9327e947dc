"""Images on the web; the HTTP client is imported at the first download."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptmill.images.fetch import ImageFetcher


class WebImages:
    """Downloads images from public addresses."""

    def __init__(self) -> None:
        self._fetcher: ImageFetcher | None = None

    async def fetch(self, url: str) -> str:
        """Return the image at `url` as a `data:` URL, still to be checked. Raises `PromptmillError`."""
        # importing the HTTP client takes long, and most calls have no image on the web
        module = await asyncio.to_thread(importlib.import_module, "promptmill.images.fetch")
        if self._fetcher is None:
            self._fetcher = module.ImageFetcher()
        return await self._fetcher.fetch(url)

    async def aclose(self) -> None:
        """Close the connections."""
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            await fetcher.aclose()
