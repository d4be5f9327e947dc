"""Compressed bodies of requests: TypeSafe's client for Python and Codex send zstd."""

from __future__ import annotations

import io
import sys
from typing import Protocol, cast

PIECE = 1 << 20
"""Bytes that are decompressed at a time, so that a bomb ends at the limit; they take a millisecond."""


class Reader(Protocol):
    """Reads the decompressed bytes. `read` raises errors of the library for other data, and for incomplete data."""

    def read(self, size: int, /) -> bytes: ...


def opened(body: bytes) -> Reader:
    """Return the reader of a body in zstd. Raises `ImportError` if nothing here can decompress it. The first import
    blocks for a third of a second."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdFile(io.BytesIO(body))
    import pyarrow as pa

    return cast("Reader", pa.CompressedInputStream(pa.BufferReader(body), "zstd"))
