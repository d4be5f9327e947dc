"""What the wrappers around a backend have in common: a source and a sink around a call's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeAlias

from promptmill.backends.protocol import CallStats, Reading, Sink, Source
from promptmill.core.sampling import Sampling

RunCall: TypeAlias = Callable[[Source, Sink, CallStats], Coroutine[Any, Any, None]]
"""Runs a call on a backend, or on what is around it."""
_BLOCK = 1 << 20


class WrappedCall(Source, Sink):
    """Source and sink around a call's own; what is known of the source stays known."""

    def __init__(self, source: Source, sink: Sink, stats: CallStats) -> None:
        self._source, self._sink, self._stats = source, sink, stats

    @property
    def size(self) -> int:
        """The length of all texts together, where the source knows it."""
        return self._source.size

    @property
    def sampling(self) -> Sampling | None:
        """The sampling parameters of all requests, where they share them."""
        return self._source.sampling

    @property
    def reading(self) -> Reading | None:
        """How lines of a file become these requests; None where they are no lines."""
        return self._source.reading


async def may_mention(source: Source, names: Iterable[bytes]) -> bool:
    """Return whether the file behind `source` may hold one of `names`."""
    return source.path is None or await asyncio.to_thread(mentions, source.path, names)


def mentions(path: Path, names: Iterable[bytes]) -> bool:
    """Return whether a file holds one of `names`; a gigabyte takes about a second."""
    names, before = list(names), b""
    longest = max(map(len, names), default=1)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            content = before + block
            if any(name in content for name in names):
                return True
            before = content[1 - longest :] if longest > 1 else b""
    return False
