"""Who may be loaded beside whom: engines that do not fit leave, the least recently used first, never under a call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from promptmill.service.gpu_placement import fits_beside, on_other_gpus

if TYPE_CHECKING:
    from promptmill.service.loaded_backend import LoadedBackend


class Room:
    """What the engines of all models share. On one device they load one after the other, as they come."""

    def __init__(
        self, loaded: Callable[[], Iterable[LoadedBackend]], unload: Callable[[LoadedBackend], Awaitable[None]]
    ) -> None:
        """`loaded` gives what has memory now; `unload` returns when one of them has left, after its last call."""
        self._loaded = loaded
        self._unload = unload
        self._turn = asyncio.Lock()
        self._loading: list[LoadedBackend] = []

    @contextlib.asynccontextmanager
    async def made(self, coming: LoadedBackend, report: Callable[[str], None]) -> AsyncIterator[None]:
        """Make room for the engine `coming`, and keep it until the end of the block, in which it loads."""
        async with self._turn:
            while blocking := self._loads_there(coming):
                report(f"waiting until the model {blocking.plan.name} is loaded")
                await asyncio.wait({blocking.ready})
            while (other := self._in_the_way(coming)) is not None:
                report(f"waiting for running calls of the model {other.plan.name} to end")
                await self._unload(other)
            self._loading.append(coming)
        try:
            yield
        finally:
            self._loading.remove(coming)

    def _loads_there(self, coming: LoadedBackend) -> LoadedBackend | None:
        """Return one whose memory is not known before it is loaded."""
        return next((other for other in self._loading if not on_other_gpus(other.plan, coming.plan)), None)

    def _in_the_way(self, coming: LoadedBackend) -> LoadedBackend | None:
        """Return what has to leave next, None when `coming` fits beside all that is there."""
        there = [
            other for other in self._loaded() if other is not coming and other.is_ready and other.plan.record.is_engine
        ]
        blocking = [other for other in there if not fits_beside(other.plan, coming.plan)]
        return min(blocking, key=lambda other: other.last_used, default=None)
