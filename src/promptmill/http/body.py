"""Read a request body with limits on size and slowness."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from promptmill.http.http_error import HttpError

_GRACE_S = 30.0
_BYTES_A_SECOND = 16 << 10  # slower than any line that people still use
_DIGITS = 18
# Each is a value in memory, of up to 130 bytes, and 0.3 µs in which the SDK's parser lets nobody else go on.
_MOST_VALUES = 300_000


async def read_body(receive: Receive, limit: int, *, declared: bytes | None, grace_s: float = _GRACE_S) -> bytes:
    """Return the body. Nothing beyond `limit` bytes is ever held.

    Raises `HttpError`: 413 as soon as it is known to be larger, at once when `declared` (Content-Length) says so, or to
    hold more than 300,000 values; 408 when after `grace_s` seconds it comes slower than 16 KiB a second;
    `ConnectionError` when the client leaves.
    """
    if declared is not None and declared.isdigit() and (len(declared) > _DIGITS or int(declared) > limit):
        raise _too_large(limit)
    chunks: list[bytes] = []
    values = _ValueCount()
    size = 0
    began = asyncio.get_running_loop().time()
    while True:
        try:
            async with asyncio.timeout_at(began + grace_s + size / _BYTES_A_SECOND):
                message = await receive()
        except TimeoutError:
            raise HttpError(408, "The request's body came too slowly.") from None
        if message["type"] != "http.request":
            raise ConnectionError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        values.add(chunk)
        if values.found > _MOST_VALUES:
            raise HttpError(413, f"The request holds more than {_MOST_VALUES:,} values; send fewer prompts at once.")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


class _ValueCount:
    """Counts what separates values in a JSON text that comes in pieces: `[`, `{`, `,` and `:` outside of strings."""

    def __init__(self) -> None:
        self.found = 0
        self._in_string = False
        self._escape = b""

    def add(self, piece: bytes) -> None:
        """Count a piece."""
        piece = self._escape + piece
        slashes = len(piece) - len(piece.rstrip(b"\\"))
        self._escape = b"\\" * (slashes % 2)  # of a character that comes with the next piece
        piece = piece[: len(piece) - slashes].replace(rb"\\", b"").replace(rb"\"", b"")
        texts = piece.split(b'"')
        outside = b"".join(texts[self._in_string :: 2])
        self.found += sum(map(outside.count, (b"[", b"{", b",", b":")))
        self._in_string ^= len(texts) % 2 == 0


def _too_large(limit: int) -> HttpError:
    return HttpError(
        413,
        f"The request is larger than {limit:,} bytes, the most this server takes. "
        "Send fewer prompts or images at once; the operator can raise it with --max-body.",
    )
