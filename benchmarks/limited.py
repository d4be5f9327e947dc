"""An endpoint that is not simply quick: limits, random refusals, answers in batches, a server that saturates.

`python -m benchmarks.limited --limit N --delay-ms MS` prints its port, then answers each line on stdin, `N` for a new
limit or an empty one for none, with what it has counted since the last one: `answered refused first last p95 p99`, the
latter in seconds: of its clock, and of what answers took. Above `--limit` requests at a time it answers 429, and to a
share of `--refused` whatever happens. `--batch` gives answers by so many, 0: all that came while the last ones were
computed. A share of `--stragglers` takes ten times as long. With `--saturates N` more than N requests at a time share
the speed of N.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import random
import sys
import time

import uvloop

from benchmarks.measure import percentile, pin
from benchmarks.upstream import ANSWER, Upstream

_REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
_STRAGGLES = 10


class Limit:
    """What all connections share."""

    def __init__(self, most: int, refused: float = 0.0, batch: int = 1, saturates: int = 0, stragglers: float = 0.0):
        self.most = most
        self.share = refused
        self.stragglers = stragglers
        self.in_flight = 0
        self.chance = random.Random(1)
        self._batch = batch
        self._ready: list[Limited] = []
        self._computing = False
        self._saturates = saturates
        self._running: list[tuple[float, int, Limited]] = []
        self._done_s = self._at = 0.0
        self._count = 0
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.answered = self.refused = 0
        self.first = self.last = 0.0
        self.times: list[float] = []

    def begin(self, connection: Limited, delay_s: float) -> None:
        """Have a request answered after `delay_s`, or as the others let it."""
        later = asyncio.get_running_loop().call_later
        if self._saturates:
            self._compute()
            self._count += 1
            heapq.heappush(self._running, (self._done_s + delay_s, self._count, connection))
            self._look_later()
        elif self._batch == 0:
            self._ready.append(connection)
            if not self._computing:
                self._computing = True
                later(0.002, lambda: later(delay_s, self._batch_done, self._taken()))
        else:
            later(delay_s, self._done, connection)

    def _taken(self) -> list[Limited]:
        taken, self._ready = self._ready, []
        return taken

    def _batch_done(self, batch: list[Limited]) -> None:
        self._computing = False
        waiting = self._taken()
        for connection in batch:
            connection.give()
        for connection in waiting:
            self.begin(connection, connection.delay_s)

    def _done(self, connection: Limited) -> None:
        self._ready.append(connection)
        if len(self._ready) >= min(self._batch, self.in_flight):
            for ready in self._taken():
                ready.give()

    def _speed(self) -> float:
        return min(1.0, self._saturates / max(1, len(self._running)))

    def _compute(self) -> None:
        now = time.monotonic()
        self._done_s += (now - self._at) * self._speed()
        self._at = now

    def _look_later(self) -> None:
        if self._running:
            left = max(0.0, self._running[0][0] - self._done_s) / self._speed()
            asyncio.get_running_loop().call_later(left, self._look, self._count)

    def _look(self, count: int) -> None:
        if count != self._count:
            return
        self._count += 1
        self._compute()
        while self._running and self._running[0][0] <= self._done_s + 1e-4:
            heapq.heappop(self._running)[2].give()
        self._look_later()


class Limited(Upstream):
    """One connection."""

    def __init__(self, delay_s: float, limit: Limit) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s
        self._limit = limit

    def _answer(self) -> None:
        limit = self._limit
        limit.last = time.monotonic()
        limit.first = limit.first or limit.last
        if limit.in_flight >= limit.most or limit.chance.random() < limit.share:
            limit.refused += 1
            self._transport.write(_REFUSAL)
            return
        limit.in_flight += 1
        self.began = limit.last
        if not self.delay_s:
            self.give()
            return
        straggles = limit.chance.random() < limit.stragglers
        limit.begin(self, self.delay_s * (_STRAGGLES if straggles else 1))

    def give(self) -> None:
        """Answer now."""
        self._limit.in_flight -= 1
        self._limit.answered += 1
        self._limit.times.append(time.monotonic() - self.began)
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


async def _serve(limit: Limit, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Limited(delay_s, limit), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode():
        times = limit.times or [0.0]
        print(
            limit.answered,
            limit.refused,
            limit.first,
            limit.last,
            *(percentile(times, p) for p in (95, 99)),
            flush=True,
        )
        if line.strip():
            limit.most = int(line)
        limit.clear()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=1_000_000)
    parser.add_argument("--delay-ms", type=float, default=50)
    parser.add_argument("--refused", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--saturates", type=int, default=0)
    parser.add_argument("--stragglers", type=float, default=0.0)
    parser.add_argument("--core", type=int)
    arguments = parser.parse_args()
    pin(arguments.core)
    limit = Limit(
        arguments.limit, arguments.refused, arguments.batch, arguments.saturates, stragglers=arguments.stragglers
    )
    uvloop.run(_serve(limit, arguments.delay_ms / 1000))


if __name__ == "__main__":
    main()
