"""Who may send now: one bound over all calls, fair between them, over all endpoints and their windows."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from promptmill.backends.openai.bucket import Bucket
from promptmill.backends.openai.lane import Lane, Ticket
from promptmill.backends.protocol import Scope
from promptmill.errors import PromptmillError


class _Waiter(NamedTuple):
    future: asyncio.Future[Ticket]
    tokens: int
    avoid: Lane | None


def _in_flight(entry: tuple[int, tuple[Scope, deque[_Waiter]]]) -> int:
    return entry[1][0].in_flight


class Share:
    """A call's part of what may be in flight: a hint how many of its items to have on their way, at least 1."""

    __slots__ = ("grown", "most", "wanted")

    def __init__(self, most: int, grown: Callable[[], None]) -> None:
        """`grown` is told when `most` has become more."""
        self.most = most
        self.grown = grown
        self.wanted: int | None = None
        """How many items the call still has; None: more than it could be given."""


def _nobody() -> None:
    """Be told nothing."""


class Gate:
    """Hands out tickets: a free place goes to the waiting call with the fewest requests in flight (max-min fair).

    Calls that keep to their `Share` seldom have to wait for one.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        concurrency: int,
        clock: Callable[[], float],
        *,
        rpm: float | None = None,
        tpm: float | None = None,
    ) -> None:
        self._lanes = lanes
        self._concurrency = concurrency
        self._clock = clock
        self._requests = Bucket(rpm, clock()) if rpm else None
        self._tokens = Bucket(tpm, clock()) if tpm else None
        self._in_flight = 0
        self._waiting: dict[int, tuple[Scope, deque[_Waiter]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._shares: set[Share] = set()
        self._capacity = 1
        self._sharing = False

    def opened(self, grown: Callable[[], None]) -> Share:
        """Note that a call begins; the first one gives every endpoint a new chance. `grown` is `Share.grown`."""
        if not self._shares:
            for lane in self._lanes:
                lane.forgive()
            self._capacity = self._room()
        share = Share(max(1, self._capacity // (len(self._shares) + 1)), grown)
        self._shares.add(share)
        self._share_out_soon()
        return share

    def closed(self, share: Share) -> None:
        """Note that a call has ended."""
        self._shares.discard(share)
        share.grown = _nobody  # else call and share hold each other, and all its answers, until the collector comes
        self._share_out_soon()
        if not self._shares and self._timer:
            self._timer.cancel()
            self._timer = None

    def want(self, share: Share, items: int | None) -> None:
        """Note how many items the call still has; None when that is not known."""
        if items != share.wanted:
            share.wanted = items
            if len(self._shares) > 1:
                self._share_out_soon()

    def _share_out_soon(self) -> None:
        if not self._sharing:
            self._sharing = True
            asyncio.get_running_loop().call_soon(self._share_out)

    def _share_out(self) -> None:
        """Give each call as much as it wants or as the others get, whichever is less (max-min fairness)."""
        self._sharing = False
        left = self._capacity = self._room()
        modest_first = sorted(self._shares, key=lambda share: math.inf if share.wanted is None else share.wanted)
        for position, share in enumerate(modest_first):
            fair = left // (len(modest_first) - position)
            before, share.most = share.most, max(1, fair if share.wanted is None else min(share.wanted, fair))
            left -= share.most
            if share.most > before:
                share.grown()

    def _room(self) -> int:
        """Return how many requests the endpoints' windows and `concurrency` let be in flight together."""
        lanes = self._lanes
        size = lanes[0].window.size if len(lanes) == 1 else sum(lane.window.size for lane in lanes if not lane.blocked)
        return max(1, min(self._concurrency, size))

    def enter_now(self, scope: Scope, tokens: int, avoid: Lane | None) -> Ticket | None:
        """Return a ticket if there is a free place that nobody waits for.

        `tokens` is the request's estimated size, `avoid` the endpoint where it failed last: another one is better.
        """
        return None if self._waiting else self._admit(scope, tokens, avoid, self._clock())

    async def enter(self, scope: Scope, tokens: int, avoid: Lane | None) -> Ticket:
        """Wait for a ticket. Raises the endpoints' error when nothing can be hoped for from any of them."""
        if error := self._hopeless():
            raise error
        future: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        _, queue = self._waiting.setdefault(id(scope), (scope, deque()))
        queue.append(_Waiter(future, tokens, avoid))
        if self._in_flight < self._concurrency:  # else the next that leaves serves
            self.serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self.leave(future.result(), scope)
            raise

    def leave(self, ticket: Ticket, scope: Scope) -> None:
        """Give the place back; the next one in turn gets it."""
        ticket.lane.leave(ticket)
        self._in_flight -= 1
        scope.in_flight -= 1
        if self._room() != self._capacity:
            self._share_out_soon()
        if self._waiting:
            self.serve()

    def only(self, lane: Lane) -> bool:
        """Return whether no other endpoint than `lane` can be hoped for."""
        return all(other.verdict() is not None for other in self._lanes if other is not lane)

    def elsewhere(self, lane: Lane) -> bool:
        """Return whether another endpoint than `lane` is well."""
        return any(not other.ailing and other.verdict() is None for other in self._lanes if other is not lane)

    def settle_tokens(self, difference: int) -> None:
        """Charge what a request really used beyond its estimate."""
        if self._tokens:
            self._tokens.take(difference)

    def serve(self) -> None:
        """Hand out what is free; called whenever a place, a pause or a rate may have changed."""
        now = self._clock()  # one for all below: a pause that ended between two looks would never be waited for
        stuck: set[Lane | None] = set()
        while self._waiting and self._in_flight < self._concurrency and self._serve_one(now, stuck):
            pass
        if self._waiting:
            if error := self._hopeless():
                self._refuse_all(error)
            elif self._in_flight < self._concurrency:
                self._wake_later(now)

    def _serve_one(self, now: float, stuck: set[Lane | None]) -> bool:
        """Hand out one ticket, or forget a call in which nobody waits any more; False when there is nothing to do.

        Those who wait for another endpoint than the one where they failed hold up nobody else: `stuck` are the
        endpoints to be avoided for which there is no ticket at `now`.
        """
        waiting, alone = self._waiting.items(), len(self._lanes) == 1
        for key, (scope, queue) in [min(waiting, key=_in_flight)] if alone else sorted(waiting, key=_in_flight):
            while queue and queue[0].future.done():
                queue.popleft()
            for waiter in queue:
                if waiter.avoid in stuck or waiter.future.done():
                    continue
                ticket = self._admit(scope, waiter.tokens, waiter.avoid, now)
                if ticket is not None:
                    waiter.future.set_result(ticket)
                    queue.remove(waiter)
                    break
                if alone:
                    return False
                stuck.add(waiter.avoid)
            else:
                ticket = None
            if not queue:
                del self._waiting[key]
            if not queue or ticket is not None:
                return True
        return False

    def _admit(self, scope: Scope, tokens: int, avoid: Lane | None, now: float) -> Ticket | None:
        if self._in_flight >= self._concurrency:
            return None
        lanes = self._lanes
        lane = lanes[0] if len(lanes) == 1 else self._best(avoid, now)
        if lane is None or lane.room(now) <= 0:
            return None
        if self._requests or self._tokens:
            if self._rate_wait_s(now) > 0:
                return None
            if self._requests:
                self._requests.take(1)
            if self._tokens:
                self._tokens.take(tokens)
        self._in_flight += 1
        scope.in_flight += 1
        return lane.enter()

    def _best(self, avoid: Lane | None, now: float) -> Lane | None:
        """Return the endpoint with the most room; `avoid` only when all others ail, and none is to be probed now."""
        others = [lane for lane in self._lanes if lane is not avoid and lane.verdict() is None]
        best = max(others, key=lambda lane: lane.room(now), default=avoid)
        if avoid is None or best is None or best.room(now) > 0 or avoid.verdict() is not None:
            return best
        return avoid if all(lane.ailing for lane in others) else best

    def _rate_wait_s(self, now: float) -> float:
        return max((bucket.wait_s(now) for bucket in (self._requests, self._tokens) if bucket), default=0.0)

    def _hopeless(self) -> PromptmillError | None:
        error = None
        for lane in self._lanes:
            error = lane.verdict()
            if error is None:
                return None
        return error

    def _refuse_all(self, error: PromptmillError) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, queue in waiting.values():
            for waiter in queue:
                if not waiter.future.done():
                    waiter.future.set_exception(error)

    def _wake_later(self, now: float) -> None:
        """Come back when the next pause or the rate's wait is over; a place given back wakes by itself."""
        times = [lane.paused_until - now for lane in self._lanes if lane.paused_until > now]
        if (rate := self._rate_wait_s(now)) > 0:
            times.append(rate)
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if times:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, min(times)), self.serve)
