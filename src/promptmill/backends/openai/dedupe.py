"""Deduplication: identical requests of a call are sent once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.core.outcome import NO_USAGE, Outcome


class Dedupe:
    """Source and sink around a call's own. Only requests at temperature 0 are told apart by what they ask.

    `fingerprint` must be equal for requests that would be sent alike. A request answered through another one has
    `attempts` 0 and no usage, so that totals count what was really spent.
    """

    def __init__(self, source: Source, sink: Sink, stats: CallStats, fingerprint: Callable[[Request], bytes]) -> None:
        self._source, self._sink, self._scope = source, sink, stats
        self._fingerprint = fingerprint
        self._first: dict[int, bytes] = {}
        self._waiting: dict[bytes, list[int]] = {}
        self._settled: dict[bytes, Outcome] = {}

    async def take(self, n: int) -> list[Request]:
        """Return the next requests that are not on their way already."""
        while requests := await self._source.take(n):
            new = [request for request in requests if not await self._is_known(request)]
            if new:
                return new
        return []

    async def put(self, key: int, outcome: Outcome) -> None:
        """Settle `key` and those that asked the same."""
        await self._sink.put(key, outcome)
        print_ = self._first.pop(key, None)
        if print_ is not None:
            self._settled[print_] = outcome
            for follower in self._waiting.pop(print_, ()):
                await self._follow(follower, outcome)

    async def _is_known(self, request: Request) -> bool:
        if request.extra.get("temperature", request.sampling.temperature) != 0:
            return False
        print_ = self._fingerprint(request)
        if print_ in self._settled:
            await self._follow(request.key, self._settled[print_])
            return True
        if print_ in self._waiting:
            self._waiting[print_].append(request.key)
            return True
        self._waiting[print_] = []
        self._first[request.key] = print_
        return False

    async def _follow(self, key: int, outcome: Outcome) -> None:
        copy = replace(outcome, attempts=0, latency_s=0.0, usage=NO_USAGE)
        await self._sink.put(key, copy)
        self._scope.settle(copy)
