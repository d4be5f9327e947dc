"""Of the requests with the same beginning, sends one first; the others find the beginning in the provider's cache.

A provider can use a cached beginning only after the first reply with this beginning has started. Requests sent together
would each pay the full price of the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Self

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Failure, Outcome
from promptmill.core.bounds import MOST_WARMED
from promptmill.core.request import Request, Shared
from promptmill.steps.step import Loading, Place, Step

_KEPT_S = 240.0  # seconds after the last use; every provider keeps a beginning for at least five minutes
_LONGEST_WAIT_S = 60.0  # the longest wait of other requests, if the first request is slow or sent repeatedly
_MOST_FAILURES = 3
_MOST_KNOWN = 4096


@dataclass(slots=True)
class _Beginning:
    """A beginning, and its state in the provider's cache."""

    until: float = 0.0
    """The time until which the cache certainly has the beginning."""
    first: asyncio.Future[None] | None = None
    """Done when the request that writes the beginning has ended."""
    failures: int = 0


class WarmedAnswers(Step):
    """Holds requests with a shared beginning until the first request with this beginning is answered."""

    place = Place.WARMED

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step for a provider that caches beginnings."""
        return cls() if registry.prompt_cache_of(loading.config) else None

    def __init__(self) -> None:
        self._held = 0
        """The total length of the beginnings of those held requests whose places other requests use."""
        self._known: dict[tuple[str, object], _Beginning] = {}

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request. A request of a batch, or without a shared beginning, is passed on."""
        if not request.shared or call.exchange is not None:
            return self.following(request, call)
        return self._after_first(request, call, request.shared)

    async def _after_first(self, request: Request, call: Call, shared: Shared) -> Outcome:
        beginning, end = self._beginning(request, shared), time.monotonic() + _LONGEST_WAIT_S
        while (first := beginning.first) is not None and beginning.until < (now := time.monotonic()) < end:
            with self._waiting(call, shared):
                await asyncio.wait({first}, timeout=end - now)
        if first is not None or beginning.until > time.monotonic():
            return self._noted(beginning, await self.following(request, call))
        first = beginning.first = asyncio.get_running_loop().create_future()
        try:
            return self._noted(beginning, await self.following(request, call))
        finally:
            beginning.first = None
            first.set_result(None)

    @contextlib.contextmanager
    def _waiting(self, call: Call, shared: Shared) -> Iterator[None]:
        """Let another request use the place of a held request, unless the held beginnings are too long together."""
        if self._held + shared.characters > MOST_WARMED:
            yield
            return
        self._held += shared.characters
        try:
            with call.hold():
                yield
        finally:
            self._held -= shared.characters

    def _beginning(self, request: Request, shared: Shared) -> _Beginning:
        key = shared.key, request.extra.get("model")
        beginning = self._known.pop(key, None) or _Beginning()
        self._known[key] = beginning  # the newest beginning is last
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return beginning

    @staticmethod
    def _noted(beginning: _Beginning, outcome: Outcome) -> Outcome:
        """Record whether the cache has the beginning. After several failures, no request waits for the beginning."""
        failed = isinstance(outcome, Failure)
        beginning.failures = beginning.failures + 1 if failed else 0
        if not failed or beginning.failures >= _MOST_FAILURES:
            beginning.until = time.monotonic() + _KEPT_S
        return outcome
