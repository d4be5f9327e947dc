"""Sends one request of each shared beginning before the others, so that they find it in the provider's cache.

A provider can read a beginning from its cache only after the first reply to it has begun. Requests that are sent
together would each pay for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass

from promptmill.backends.protocol import Answer, Call, Failure, Outcome
from promptmill.core.request import Request, Shared

_KEPT_S = 240.0  # after the last use; providers keep a beginning for five minutes or longer
_LONGEST_WAIT_S = 60.0  # a first request that is slow, or is repeated, does not hold up the others for longer
_MOST_FAILURES = 3
_MOST_KNOWN = 4096
_MOST_HELD = 16 << 20


@dataclass(slots=True)
class _Beginning:
    """A beginning in the provider's cache."""

    until: float = 0.0
    """Until when the cache surely has it."""
    first: asyncio.Future[None] | None = None
    """Ends with the request that writes it."""
    failures: int = 0


class WarmedAnswers:
    """Holds requests with a shared beginning until the first one with it is answered."""

    def __init__(self, following: Answer) -> None:
        self._following = following
        self._held = 0
        """The characters of the beginnings of requests that wait while others take their places."""
        self._known: dict[tuple[str, object], _Beginning] = {}

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; one of a batch, or that shares nothing, passes through."""
        if request.shared is None or call.exchange is not None:
            return self._following(request, call)
        return self._after_first(request, call, request.shared)

    async def _after_first(self, request: Request, call: Call, shared: Shared) -> Outcome:
        beginning, end = self._beginning(request, shared), time.monotonic() + _LONGEST_WAIT_S
        while (first := beginning.first) is not None and beginning.until < (now := time.monotonic()) < end:
            with self._waiting(call, shared):
                await asyncio.wait({first}, timeout=end - now)
        if first is not None or beginning.until > time.monotonic():
            return self._noted(beginning, await self._following(request, call))
        first = beginning.first = asyncio.get_running_loop().create_future()
        try:
            return self._noted(beginning, await self._following(request, call))
        finally:
            beginning.first = None
            first.set_result(None)

    @contextlib.contextmanager
    def _waiting(self, call: Call, shared: Shared) -> Iterator[None]:
        """Let another request take the place of one that waits, while those that wait are not too large together."""
        if self._held + shared.characters > _MOST_HELD:
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
        self._known[key] = beginning  # the last one is the newest
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return beginning

    @staticmethod
    def _noted(beginning: _Beginning, outcome: Outcome) -> Outcome:
        """Note whether the cache has a beginning now; after some failures, nothing waits for it any more."""
        failed = isinstance(outcome, Failure)
        beginning.failures = beginning.failures + 1 if failed else 0
        if not failed or beginning.failures >= _MOST_FAILURES:
            beginning.until = time.monotonic() + _KEPT_S
        return outcome
