"""An endpoint with a limit: above so many requests at a time it answers 429.

`python -m benchmarks.limited --limit N --delay-ms MS` prints its port, then answers each line on stdin, `N` for a new
limit or an empty one for none, with what it has counted since the last one: `answered refused first last`, the latter
two in seconds of its clock.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import uvloop

from benchmarks.measure import pin
from benchmarks.upstream import ANSWER, Upstream

_REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Limit:
    """What all connections share."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_flight = 0
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.answered = self.refused = 0
        self.first = self.last = 0.0


class Limited(Upstream):
    """One connection."""

    def __init__(self, delay_s: float, limit: Limit) -> None:
        super().__init__(delay_s)
        self._limit = limit

    def _answer(self) -> None:
        limit = self._limit
        limit.last = time.monotonic()
        limit.first = limit.first or limit.last
        if limit.in_flight >= limit.most:
            limit.refused += 1
            self._transport.write(_REFUSAL)
            return
        limit.in_flight += 1
        super()._answer()

    def _send(self) -> None:
        self._limit.in_flight -= 1
        self._limit.answered += 1
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


async def _serve(most: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    limit = Limit(most)
    server = await loop.create_server(lambda: Limited(delay_s, limit), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode():
        print(limit.answered, limit.refused, limit.first, limit.last, flush=True)
        if line.strip():
            limit.most = int(line)
        limit.clear()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=1_000_000)
    parser.add_argument("--delay-ms", type=float, default=50)
    parser.add_argument("--core", type=int)
    arguments = parser.parse_args()
    pin(arguments.core)
    uvloop.run(_serve(arguments.limit, arguments.delay_ms / 1000))


if __name__ == "__main__":
    main()
