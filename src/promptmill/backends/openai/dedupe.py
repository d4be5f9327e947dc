"""Deduplication: identical requests of a call are sent once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.core.outcome import NO_USAGE, Failure, Outcome


class _Listed(Source):
    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    async def take(self, n: int) -> list[Request]:
        taken, self._requests = self._requests[:n], self._requests[n:]
        return taken


class Dedupe(Source, Sink):
    """Source and sink around a call's own. Only requests at temperature 0 are deduplicated.

    `fingerprint` must be equal for requests that would be sent alike. A request answered through another one has
    `attempts` 0 and no usage, so that totals count what was really spent.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        stats: CallStats,
        fingerprint: Callable[[Request], bytes],
        *,
        last: bool = False,
    ) -> None:
        """`last`: a failure is shared, whatever it is."""
        self._last = last
        self._source, self._sink, self._stats = source, sink, stats
        self._fingerprint = fingerprint
        self._first: dict[int, bytes] = {}
        self._waiting: dict[bytes, list[Request]] = {}
        self._settled: dict[bytes, Outcome] = {}
        self._left: list[Request] = []

    async def take(self, n: int) -> list[Request]:
        """Return the next requests that are not on their way already."""
        while requests := await self._source.take(n):
            new = [request for request in requests if not await self._is_known(request)]
            if new:
                return new
        return []

    async def put(self, key: int, outcome: Outcome) -> None:
        """Settle `key` and the requests that are identical to it."""
        await self._sink.put(key, outcome)
        print_ = self._first.pop(key, None)
        if print_ is None:
            return
        followers = self._waiting.pop(print_, [])
        if isinstance(outcome, Failure) and outcome.error.retryable and not (outcome.concerns_all or self._last):
            self._left += followers  # what passed over one need not meet the others
            return
        self._settled[print_] = outcome
        for follower in followers:
            await self._follow(follower.key, outcome)

    def again(self) -> Dedupe | None:
        """Return the same for the requests whose like failed in a way that may pass; None when there are none."""
        if not self._left:
            return None
        return Dedupe(_Listed(self._left), self._sink, self._stats, self._fingerprint, last=True)

    async def _is_known(self, request: Request) -> bool:
        if request.extra.get("temperature", request.sampling.temperature) != 0:
            return False
        print_ = self._fingerprint(request)
        if print_ in self._settled:
            await self._follow(request.key, self._settled[print_])
            return True
        if print_ in self._waiting:
            self._waiting[print_].append(request)
            return True
        self._waiting[print_] = []
        self._first[request.key] = print_
        return False

    async def _follow(self, key: int, outcome: Outcome) -> None:
        copy = replace(outcome, attempts=0, latency_s=0.0, usage=NO_USAGE, unmetered=0)
        await self._sink.put(key, copy)
        self._stats.settle(copy)
