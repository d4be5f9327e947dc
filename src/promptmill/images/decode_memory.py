"""The memory that images take while they are decoded: a bound for all at once, given back afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator

DEFAULT_BYTES = 1 << 30
_LARGE = 32 << 20
_M_MMAP_THRESHOLD = -3  # malloc.h


class DecodeMemory:
    """Bytes that decoding may take at a time. Threads wait their turn; an image above the limit is decoded alone."""

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = limit
        self._free = limit
        self._turn = threading.Lock()  # first come, first served: a large image waits no longer than those before it
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free and hold them for the block. Blocks: call it off the event loop."""
        held = min(size, self.limit)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= held)
            self._free -= held
        if size >= _LARGE:
            _map_large_blocks()
        try:
            yield
        finally:
            with self._changed:
                self._free += held
                self._changed.notify()


def _map_large_blocks() -> None:
    """Have glibc map blocks of 4 MiB and more one by one, which go back to the system when they are freed.

    By itself it stops that after the first large one, and keeps up to 64 MiB for each thread that has freed some.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such function
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 << 20)
