"""Who may be loaded beside whom: engines that do not fit leave, the least recently used first, never under a call."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from promptmill.backends.engines import embedded_model, hardware
from promptmill.config.models import ResolvedConfig
from promptmill.config.settings import OpenVINOSettings

if TYPE_CHECKING:
    from promptmill.service.loaded_backend import LoadedBackend

# Two copies while loading, or bfloat16 on disk computed in float32; the rest is activations and cache.
_MEMORY_PER_WEIGHT = 2.5


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


def fits_beside(old: ResolvedConfig, new: ResolvedConfig) -> bool:
    """Return whether `new` may load while `old` still runs.

    Connections always do. Engines do on separate GPUs, and on the CPU when its free memory is ample for the weights.
    """
    if not (old.record.is_engine and new.record.is_engine):
        return True
    ours, theirs = old.block, new.block
    if isinstance(ours, OpenVINOSettings) or isinstance(theirs, OpenVINOSettings):  # on the CPU, always
        elsewhere = _has_accelerator() and not isinstance(theirs, OpenVINOSettings)
        return elsewhere or _enough_memory(new.model)
    if getattr(ours, "gpu_ids", None) and getattr(theirs, "gpu_ids", None):
        return on_other_gpus(old, new)
    return not _has_accelerator() and _enough_memory(new.model)


def on_other_gpus(one: ResolvedConfig, other: ResolvedConfig) -> bool:
    """Return whether two engines are known to share no device."""
    used = [set(getattr(plan.block, "gpu_ids", None) or ()) for plan in (one, other)]
    return all(used) and not used[0] & used[1]


def _has_accelerator() -> bool:
    return sys.platform == "darwin" or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _enough_memory(model: str) -> bool:
    weights, free = _weights(model), hardware.free_memory()
    return bool(weights) and free is not None and free > weights * _MEMORY_PER_WEIGHT + 2 * 2**30


def _weights(model: str) -> int:
    """Return the bytes of a model's weights, 0 where they are not known."""
    if model == embedded_model.NAME:
        return embedded_model.WEIGHTS_BYTES
    return hardware.weights(Path(model))
