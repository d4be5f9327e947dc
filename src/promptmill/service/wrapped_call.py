"""What the wrappers around a backend have in common: a source and a sink around a call's own."""

from __future__ import annotations

from typing import Any

from promptmill.backends.protocol import CallStats, Sink, Source


class WrappedCall:
    """Source and sink around a call's own; what is known of the source stays known."""

    def __init__(self, source: Source, sink: Sink, stats: CallStats) -> None:
        self._source, self._sink, self._stats = source, sink, stats

    @property
    def size(self) -> int:
        """The length of all texts together, where the source knows it."""
        return getattr(self._source, "size", 0)

    @property
    def reading(self) -> Any:
        """How the source reads its lines, where it reads any."""
        return getattr(self._source, "reading", None)
