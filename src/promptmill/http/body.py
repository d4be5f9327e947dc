"""Read a request body with limits on size and slowness."""

from __future__ import annotations

import asyncio
import re

from starlette.types import Receive

from promptmill.http.http_error import HttpError

_GRACE_S = 30.0
_BYTES_A_SECOND = 16 << 10  # slower than any line that people still use
_DIGITS = 18
# A short list or object is a few bytes in a body and 70 to 230 in memory.
_BYTES_PER_BRACKET = 16
_SMALL = 256 << 10
_STRING = re.compile(rb'"(?:[^"\\]+|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # never fails, so it takes linear time


async def read_body(receive: Receive, limit: int, *, declared: bytes | None, grace_s: float = _GRACE_S) -> bytes:
    """Return the body. Nothing beyond `limit` bytes is ever held.

    Raises `HttpError`: 413 as soon as it is known to be larger, at once when `declared` (Content-Length) says so; 408
    when after `grace_s` seconds it comes slower than 16 KiB a second; `ConnectionError` when the client leaves.
    """
    if declared is not None and declared.isdigit() and (len(declared) > _DIGITS or int(declared) > limit):
        raise _too_large(limit)
    chunks: list[bytes] = []
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
        chunks.append(chunk)
        if not message.get("more_body", False):
            body = b"".join(chunks)
            if _unfolds(body):
                raise HttpError(
                    413, "The request holds more lists and objects than its size allows; send fewer at once."
                )
            return body


def _unfolds(body: bytes) -> bool:
    """Return whether `body` is mostly brackets, which would take many times its size in memory."""
    most = len(body) // _BYTES_PER_BRACKET
    if len(body) < _SMALL or _brackets(body) <= most:
        return False
    return _brackets(_STRING.sub(b"", body)) > most  # those within texts cost nothing


def _brackets(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _too_large(limit: int) -> HttpError:
    return HttpError(
        413,
        f"The request is larger than {limit:,} bytes, the most this server takes. "
        "Send fewer prompts or images at once; the operator can raise it with --max-body.",
    )
