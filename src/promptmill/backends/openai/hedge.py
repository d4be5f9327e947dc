"""Hedged requests: one that takes far longer than others is sent a second time, and the first answer counts."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from promptmill.backends.openai.endpoint_state import EndpointState, Permit
from promptmill.backends.openai.limiter import ConcurrencyShare, Limiter
from promptmill.backends.openai.retry import RetryDecision
from promptmill.core.outcome import Completion

if TYPE_CHECKING:
    from promptmill.backends.openai.attempts import Item

_KEPT = 200
_FEWEST = 20
_PERCENTILE = 0.95
_TIMES = 2
_MOST_TWINS = 0.05

Result = Completion | RetryDecision
Send = Callable[[EndpointState], Awaitable[Result]]


class Hedge:
    """The stragglers of one call: how long an answer takes, and how many twins were sent."""

    def __init__(self, limiter: Limiter, share: ConcurrencyShare) -> None:
        self._limiter = limiter
        self._share = share
        self._newest: deque[float] = deque()
        self._sorted: list[float] = []
        self._sent = self._twins = 0

    @property
    def wait_s(self) -> float | None:
        """After how long a request is a straggler; None while too few were answered to tell."""
        times = self._sorted
        return _TIMES * times[int(_PERCENTILE * len(times))] if len(times) >= _FEWEST else None

    async def send(self, item: Item, permit: Permit, tokens: int, send: Send) -> tuple[Result, Permit]:
        """Return what came of `send`, or of its twin if that answered first, and the permit of that one.

        What `send` raises goes through; the twin's failures are told to its endpoint alone.
        """
        self._sent += 1
        clock = asyncio.get_running_loop().time
        began = clock()
        first = asyncio.ensure_future(send(permit.endpoint_state))
        twin: asyncio.Future[tuple[Result, Permit] | None] | None = None
        try:
            await asyncio.wait({first}, timeout=self.wait_s)
            if not first.done() and self._twins < _MOST_TWINS * self._sent:
                self._twins += 1
                twin = asyncio.ensure_future(self._twin(item, permit.endpoint_state, tokens, send))
                await asyncio.wait({first, twin}, return_when=asyncio.FIRST_COMPLETED)
                if not first.done() and (won := twin.result()) is not None:
                    return won
                failure = first.result() if first.done() and first.exception() is None else None
                if isinstance(failure, RetryDecision) and (won := await twin) is not None:
                    item.charge(failure.usage, failure.unmetered - 1)  # the twin, counted as unmetered, is the answer
                    permit.endpoint_state.failed(permit, failure, None)
                    return won
            result = await first
            if isinstance(result, Completion):
                self._note(clock() - began)
            return result, permit
        finally:
            losers = [task for task in (first, twin) if task is not None and not task.done()]
            for task in losers:
                task.cancel()
            await asyncio.gather(*losers, return_exceptions=True)

    async def _twin(self, item: Item, slow: EndpointState, tokens: int, send: Send) -> tuple[Result, Permit] | None:
        """Send once more, elsewhere if there is another endpoint; None if that brings no answer."""
        try:
            permit = await self._limiter.enter(self._share, tokens, slow)
        except Exception:  # noqa: BLE001 (no endpoint has hope: the first goes on)
            return None
        try:
            account = item.request.account
            if account is not None and not account.reserve_again():
                return None
            item.attempts += 1
            item.unmetered += 1  # one of the two brings no answer
            self._share.sent += 1
            self._share.call.sending(item.request)
            self._share.call.retries += 1
            result = await send(permit.endpoint_state)
            if isinstance(result, Completion):
                return result, permit
            item.charge(result.usage, result.unmetered - 1)
            permit.endpoint_state.failed(permit, result, None)
            return None
        except Exception:  # noqa: BLE001 (what is wrong with the item shows in the first)
            return None
        finally:
            self._limiter.leave(permit, self._share)

    def _note(self, seconds: float) -> None:
        self._newest.append(seconds)
        insort(self._sorted, seconds)
        if len(self._newest) > _KEPT:
            del self._sorted[bisect_left(self._sorted, self._newest.popleft())]
