"""How many requests a second the upstream itself can answer: a raw client that only counts.

`python -m benchmarks.ceiling URL CONNECTIONS SECONDS` prints requests per second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.client import ROOT
from benchmarks.contestant import SAMPLING, prompt
from benchmarks.field import Field
from benchmarks.measure import Row, pin
from benchmarks.upstream import ANSWER


class _Counter(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._received = 0
        self.answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received == len(ANSWER):
            self._received = 0
            self.answered += 1
            self._transport.write(self._request)


async def _count(url: str, connections: int, seconds: float) -> float:
    import orjson

    parts = urlsplit(url)
    body = orjson.dumps({"model": "bench", **SAMPLING, "messages": [{"role": "user", "content": prompt(1)}]})
    head = f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    counters = [
        (await loop.create_connection(lambda: _Counter(head.encode() + body), parts.hostname, parts.port))[1]
        for _ in range(connections)
    ]
    started, before = time.perf_counter(), sum(counter.answered for counter in counters)
    await asyncio.sleep(seconds)
    return (sum(counter.answered for counter in counters) - before) / (time.perf_counter() - started)


async def ceiling(field: Field, pairs: int) -> list[Row]:
    """The upstream's own rate without latency."""
    del pairs
    rows = []
    for connections in (64, 256):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.ceiling", field.fast, str(connections), "3"),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            preexec_fn=lambda: pin(field.inner),
        )
        rate = float((await process.communicate())[0])
        rows.append(Row("ceiling", f"the upstream itself, {connections} in flight", rate, unit="/s"))
    return rows


if __name__ == "__main__":
    print(uvloop.run(_count(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
