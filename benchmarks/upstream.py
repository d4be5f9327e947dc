"""An OpenAI-compatible endpoint that costs next to nothing: raw protocol, answers built beforehand, optional delay.

`python -m benchmarks.upstream` prints its ports: one answers at once, one after `--delay-ms`, and with `--tls FILE` one
answers at once over TLS, with the certificate and key in that file.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import re
import ssl
from typing import cast

import orjson
import uvloop

from benchmarks.measure import pin

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_BODY = orjson.dumps(
    {
        "id": "chatcmpl-7f3a2c",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris is the capital of France, on the river Seine."},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 12, "total_tokens": 36},
    }
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


class Upstream(asyncio.Protocol):
    """One connection. Bodies are counted, not kept."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._later = asyncio.get_running_loop().call_later

    def data_received(self, data: bytes) -> None:
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
            else:
                self._head += data
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                found = _LENGTH.search(self._head, 0, end)
                self._left = int(found[1]) if found else 0
                data, self._head = self._head[end + 4 :], b""
            if not self._left:
                self._answer()

    def _answer(self) -> None:
        if self._delay_s:
            self._later(self._delay_s, self._send)
        else:
            self._send()

    def _send(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


async def _serve(delay_s: float, certificate: str | None) -> None:
    loop = asyncio.get_running_loop()
    kinds: list[tuple[float, ssl.SSLContext | None]] = [(0.0, None), (delay_s, None)]
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        kinds.append((0.0, context))
    servers = [
        await loop.create_server(functools.partial(Upstream, after_s), "127.0.0.1", 0, backlog=4096, ssl=context)
        for after_s, context in kinds
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, default=50)
    parser.add_argument("--tls", metavar="FILE")
    parser.add_argument("--core", type=int)
    arguments = parser.parse_args()
    pin(arguments.core)
    uvloop.run(_serve(arguments.delay_ms / 1000, arguments.tls))


if __name__ == "__main__":
    main()
