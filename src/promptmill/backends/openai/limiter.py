"""The limiter: one concurrency limit over all calls, shared fairly between them, over all endpoints."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from promptmill.backends.openai.adaptive_limit import QUIET_S
from promptmill.backends.openai.endpoint_state import EndpointState, Permit
from promptmill.backends.openai.rate_limits import RateLimits
from promptmill.backends.protocol import Call, ignored
from promptmill.core.errors import PromptmillError


class _Waiter(NamedTuple):
    future: asyncio.Future[Permit]
    tokens: int
    avoid: EndpointState | None


class ConcurrencyShare:
    """A call's fair share of the concurrency limit: how many of its items to have on their way, at least 1.

    Also the identity of the call at its limiter: one call may use several, one for each of its models.
    """

    def __init__(self, limiter: Limiter, call: Call, cap: int) -> None:
        """`cap`: the most answers in flight that the call can use here."""
        self.call = call
        self.most = 1
        self.cap = cap
        self.grown: Callable[[], None] = ignored
        self.wanted: int | None = None
        """How many items the call still has; None: more than it could be given."""
        self.in_flight = 0
        self.sent = 0
        """Requests sent so far."""
        self._limiter = limiter

    @property
    def has_sent(self) -> bool:
        """Whether a request of the call was sent, or is about to be."""
        return bool(self.sent or self.in_flight)

    def want(self, items: int | None) -> None:
        """Note how many items the call still has; None when that is not known."""
        if items != self.wanted:
            self.wanted = items
            self._limiter.share_changed()

    def idle(self) -> None:
        """Nothing here waits for other items."""


def _in_flight(share: ConcurrencyShare) -> tuple[int, int]:
    """Return the sort key of a waiting call: fewest in flight first, then fewest sent."""
    return share.in_flight, share.sent


class Limiter:
    """Hands out permits: a free place goes to the waiting call with the fewest requests in flight (max-min fair).

    Calls that keep to their share seldom have to wait for one.
    """

    def __init__(
        self,
        endpoint_states: Sequence[EndpointState],
        concurrency: int,
        clock: Callable[[], float],
        *,
        rpm: float | None = None,
        tpm: float | None = None,
    ) -> None:
        self.endpoint_states = endpoint_states
        self._concurrency = concurrency
        self._clock = clock
        self.counts_tokens = tpm is not None
        """Whether the sizes of requests are needed."""
        self._rates = RateLimits(rpm, tpm, clock()) if rpm or tpm else None
        self._in_flight = 0
        self._waiting: dict[ConcurrencyShare, deque[_Waiter]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._shares: set[ConcurrencyShare] = set()
        self._capacity = 1
        self._sharing = False

    def open(self, share: ConcurrencyShare) -> None:
        """Note that a call begins; the first one gives every endpoint a new chance."""
        if not self._shares:
            self._forgive()
            self._capacity = self.room
        share.most = min(share.cap, max(1, self._capacity // (len(self._shares) + 1)))
        self._shares.add(share)
        self._share_out_soon()

    def close(self, share: ConcurrencyShare) -> None:
        """Note that a call has ended."""
        self._shares.discard(share)
        share.grown = ignored  # else call and share hold each other, and all its answers, until the collector comes
        self._share_out_soon()
        if not self._shares and self._timer:
            self._timer.cancel()
            self._timer = None

    def share_changed(self) -> None:
        """Share out anew, as a call wants more or less."""
        if len(self._shares) > 1:
            self._share_out_soon()

    def _share_out_soon(self) -> None:
        if not self._sharing:
            self._sharing = True
            asyncio.get_running_loop().call_soon(self._share_out)

    def _share_out(self) -> None:
        """Give each call as much as it wants or as the others get, whichever is less (max-min fairness)."""
        self._sharing = False
        left = self._capacity = self.room
        modest_first = sorted(self._shares, key=lambda share: math.inf if share.wanted is None else share.wanted)
        for position, share in enumerate(modest_first):
            fair = left // (len(modest_first) - position)
            fair = min(fair, share.cap)
            before, share.most = share.most, max(1, fair if share.wanted is None else min(share.wanted, fair))
            left -= share.most
            if share.most > before:
                share.grown()

    @property
    def room(self) -> int:
        """How many requests the endpoints' limits and `concurrency` let be in flight together."""
        endpoint_states = self.endpoint_states
        size = (
            endpoint_states[0].limit.size
            if len(endpoint_states) == 1
            else sum(state.limit.size for state in endpoint_states if not state.blocked)
        )
        return max(1, min(self._concurrency, size))

    def enter_now(self, share: ConcurrencyShare, tokens: int, avoid: EndpointState | None) -> Permit | None:
        """Return a permit if there is a free place that nobody waits for.

        `tokens` is the request's estimated size, `avoid` the endpoint where it failed last: another one is better.
        """
        return None if self._waiting else self._admit(share, tokens, avoid, self._clock())

    async def enter(self, share: ConcurrencyShare, tokens: int, avoid: EndpointState | None) -> Permit:
        """Wait for a permit. Raises the endpoints' error when all of them are unusable.

        Nobody is refused who was never sent: a call's first request tries an endpoint that others have given up.
        """
        if error := self.unusable():
            if share.has_sent:
                raise error
            self._forgive()
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(share, deque()).append(_Waiter(future, tokens, avoid))
        if self._in_flight < self._concurrency:  # else the next that leaves serves
            self.serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self.leave(future.result(), share)
            raise

    def leave(self, permit: Permit, share: ConcurrencyShare) -> None:
        """Give the place back; the next one in turn gets it."""
        permit.endpoint_state.leave(permit)
        self._in_flight -= 1
        share.in_flight -= 1
        share.call.in_flight -= 1
        self._share_out_soon()  # once per turn: the endpoints' limits may have changed
        if self._waiting:
            self.serve()

    def only(self, state: EndpointState) -> bool:
        """Return whether all endpoints but `state` are unusable."""
        return all(other.unusable() is not None for other in self.endpoint_states if other is not state)

    def elsewhere(self, state: EndpointState) -> bool:
        """Return whether another endpoint than `state` is available."""
        now = self._clock()
        return any(
            not other.is_unavailable(now) and other.unusable() is None
            for other in self.endpoint_states
            if other is not state
        )

    def lease(self, share: float) -> None:
        """Let through no more than this part of `rpm` and `tpm` from now on."""
        if self._rates is not None:
            self._rates.lease(share, self._clock())
        if self._waiting:
            self.serve()

    def settle_tokens(self, difference: int) -> None:
        """Charge what a request really used beyond its estimate."""
        if self._rates is not None:
            self._rates.settle_tokens(difference)

    def serve(self) -> None:
        """Hand out what is free; called whenever a place, a pause or a rate may have changed."""
        now = self._clock()  # one for all below: a pause that ended between two looks would never be waited for
        stuck: set[EndpointState | None] = set()
        while self._waiting and self._in_flight < self._concurrency and self._serve_one(now, stuck):
            pass
        if self._waiting:
            if error := self.unusable():
                self._refuse_all(error)
                if self._waiting:
                    self._forgive()
                    self.serve()
            elif self._in_flight < self._concurrency:
                self._wake_later(now)

    def _serve_one(self, now: float, stuck: set[EndpointState | None]) -> bool:
        """Hand out one permit, or drop a call that has no more waiters; False when there is nothing to do.

        Those who wait for another endpoint than the one where they failed hold up nobody else: `stuck` are the
        endpoints to be avoided for which there is no permit at `now`.
        """
        waiting, alone = self._waiting, len(self.endpoint_states) == 1
        for share in [min(waiting, key=_in_flight)] if alone else sorted(waiting, key=_in_flight):
            queue = waiting[share]
            while queue and queue[0].future.done():
                queue.popleft()
            for waiter in queue:
                if waiter.avoid in stuck or waiter.future.done():
                    continue
                permit = self._admit(share, waiter.tokens, waiter.avoid, now)
                if permit is not None:
                    waiter.future.set_result(permit)
                    queue.remove(waiter)
                    break
                if alone:
                    return False
                stuck.add(waiter.avoid)
            else:
                permit = None
            if not queue:
                del waiting[share]
            if not queue or permit is not None:
                return True
        return False

    def _admit(self, share: ConcurrencyShare, tokens: int, avoid: EndpointState | None, now: float) -> Permit | None:
        if self._in_flight >= self._concurrency:
            return None
        endpoint_states = self.endpoint_states
        state = endpoint_states[0] if len(endpoint_states) == 1 else self._best(avoid, now)
        if state is None:
            return None
        if state.room(now) <= 0 and (share.has_sent or not state.may_be_probed):
            return None
        if self._rates is not None:
            if self._rates.wait_s(now) > 0:
                return None
            self._rates.take(tokens)
        self._in_flight += 1
        share.in_flight += 1
        share.call.in_flight += 1
        permit = state.enter(now)
        limit = state.limit
        if limit.may_double and state.in_flight >= limit.size and not state.watched:
            state.watched = True
            asyncio.get_running_loop().call_later(QUIET_S, self._widen_if_quiet, state, permit.round_number)
        return permit

    def _widen_if_quiet(self, state: EndpointState, round_number: int) -> None:
        state.watched = False
        state.limit.stayed_quiet(round_number)
        if self.room != self._capacity:
            self._share_out_soon()
        if self._waiting:
            self.serve()

    def _best(self, avoid: EndpointState | None, now: float) -> EndpointState | None:
        """Return the endpoint with the most room; `avoid` only when all others are unavailable."""
        others = [state for state in self.endpoint_states if state is not avoid and state.unusable() is None]
        best = max(others, key=lambda state: state.room(now), default=avoid)
        if avoid is None or best is None or best.room(now) > 0 or avoid.unusable() is not None:
            return best
        return avoid if all(state.is_unavailable(now) for state in others) else best

    def rate_wait_s(self, now: float) -> float:
        """Return the seconds until `rpm` and `tpm` allow another request."""
        return 0.0 if self._rates is None else self._rates.wait_s(now)

    def unusable(self) -> PromptmillError | None:
        """Return an endpoint's error when all endpoints are unusable, else None."""
        error = None
        for state in self.endpoint_states:
            error = state.unusable()
            if error is None:
                return None
        return error

    def _forgive(self) -> None:
        for state in self.endpoint_states:
            state.forgive()

    def _refuse_all(self, error: PromptmillError) -> None:
        """Refuse all who wait, but for calls that have sent nothing yet."""
        waiting = self._waiting
        self._waiting = {share: queue for share, queue in waiting.items() if not share.has_sent}
        for share, queue in waiting.items():
            for waiter in queue if share.has_sent else ():
                if not waiter.future.done():
                    waiter.future.set_exception(error)

    def _wake_later(self, now: float) -> None:
        """Come back when the next pause or the rate's wait is over; a place given back wakes by itself."""
        times = [state.paused_until - now for state in self.endpoint_states if state.paused_until > now]
        if (rate := self.rate_wait_s(now)) > 0:
            times.append(rate)
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if times:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, min(times)), self.serve)
