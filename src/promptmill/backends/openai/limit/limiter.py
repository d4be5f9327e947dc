"""The limiter: gives permits to calls, fairly, within `concurrency`, the rates, and each endpoint's limit.

`CallFlow` explains, for progress displays, why a call waits.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.limit.adaptive_limit import QUIET_S
from promptmill.backends.openai.limit.endpoint_state import EndpointState, Permit, Trouble
from promptmill.backends.protocol import Call, fair_parts, ignored
from promptmill.core.bounds import LONGEST_DEBT_S
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.wording import counted, duration

# Shorter waits are not reported: they would end before a user has read about them.
_SHORTEST_S = 1.0
# The seconds without an answer after which the reason is reported. Answers seldom take longer.
_QUIET_S = 10.0
_WORDS = {
    Code.RATE_LIMITED: "rate limit",
    Code.CONNECTION_LOST: "connection lost",
    Code.NAME_RESOLUTION: "name not found",
    Code.UNREACHABLE: "cannot be reached",
    Code.BAD_RESPONSE: "unreadable answer",
}


class _Waiter(NamedTuple):
    future: asyncio.Future[Permit]
    tokens: int
    avoid: EndpointState | None


class ConcurrencyShare:
    """A call's fair share of the concurrency limit: the number of items to keep in flight, at least 1.

    It also identifies the call at its limiter: a call may use several limiters, one for each of its models.
    """

    def __init__(self, shares: FairShares, call: Call, cap: int) -> None:
        """`cap`: how many requests in flight the call can use at this limiter."""
        self.call = call
        self.most = 1
        self.cap = cap
        self.grown: Callable[[], None] = ignored
        self.gathered = 0
        self.wanted: int | None = None
        """The number of items that remain for the call; None if there are more than its share can ever have."""
        self.in_flight = 0
        self.sent = 0
        """The number of requests sent so far."""
        self._shares = shares

    @property
    def has_sent(self) -> bool:
        """Whether the call has sent a request, or is about to send one."""
        return bool(self.sent or self.in_flight)

    def want(self, items: int | None) -> None:
        """Set the number of remaining items; None if it is unknown."""
        if items != self.wanted:
            self.wanted = items
            self._shares.changed(self)

    def idle(self) -> None:
        """Do nothing: this limiter does not hold items."""


class FairShares:
    """Divides a limiter's places among its calls: a call gets the places it needs, up to an equal share (max-min)."""

    def __init__(self, room: Callable[[], int]) -> None:
        """`room` returns the number of requests that may be in flight now."""
        self._room = room
        self._shares: set[ConcurrencyShare] = set()
        self._divided = 1
        """The number of places at the last division."""
        self._is_due = False

    def __len__(self) -> int:
        """Return the number of calls."""
        return len(self._shares)

    def add(self, share: ConcurrencyShare) -> None:
        """Record that a call starts."""
        if not self._shares:
            self._divided = self._room()
        share.most = min(share.cap, max(1, self._divided // (len(self._shares) + 1)))
        self._shares.add(share)
        self.divide()

    def remove(self, share: ConcurrencyShare) -> None:
        """Record that a call has ended."""
        self._shares.discard(share)
        share.grown = ignored  # breaks a reference cycle that would keep all answers until a garbage collection
        self.divide()

    def changed(self, share: ConcurrencyShare) -> None:
        """Compute the shares again if the call's need may change a share."""
        if len(self._shares) > 1 or share.wanted is None or share.wanted > share.most:
            self.divide()

    def room_changed(self) -> None:
        """Divide the places again if their number has changed."""
        if self._room() != self._divided:
            self.divide()

    def divide(self) -> None:
        """Compute the shares again soon."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._divide)

    def _divide(self) -> None:
        self._is_due = False
        self._divided, shares = self._room(), [*self._shares]
        wanted = [share.cap if share.wanted is None else min(share.wanted, share.cap) for share in shares]
        for share, part in zip(shares, fair_parts(self._divided, wanted), strict=True):
            before, share.most = share.most, max(1, part)
            if share.most > before:
                share.grown()


def _in_flight(share: ConcurrencyShare) -> tuple[int, int]:
    """Return the sort key of a waiting call: calls with fewer requests in flight, then with fewer sent, come first."""
    return share.in_flight, share.sent


class TokenBucket:
    """Allows `per_minute` units per minute, and at most the units of a quarter of a second together.

    A long prompt may overdraw the bucket; later requests then wait until the debt is paid.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._full_rate = self._rate = per_minute / 60
        self._most = max(1.0, self._rate / 4)
        self._level = self._most
        self._at = now

    def lease(self, share: float, now: float) -> None:
        """From now on, allow only the fraction `share` (0 to 1) of the rate. Saved units shrink in proportion."""
        self.wait_s(now)
        self._level = min(self._level, max(1.0, self._full_rate / 4) * share)
        self._rate = self._full_rate * share
        self._most = max(1.0, self._rate / 4)

    def wait_s(self, now: float) -> float:
        """Return the seconds until a unit is available; 0 if one is available now."""
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        need = min(1.0, self._most) - self._level
        if need <= 1e-9:
            return 0.0
        return need / self._rate if self._rate else LONGEST_DEBT_S

    def take(self, units: float) -> None:
        """Take `units`; a negative number returns units."""
        self._level = max(self._level - units, -LONGEST_DEBT_S * self._rate)


class _RateLimits:
    """A bucket for each of `rpm` and `tpm`, if the setting has a value. A request takes units from both buckets."""

    def __init__(self, rpm: float | None, tpm: float | None, now: float) -> None:
        self._requests = TokenBucket(rpm, now) if rpm else None
        self._tokens = TokenBucket(tpm, now) if tpm else None
        self._buckets = [bucket for bucket in (self._requests, self._tokens) if bucket is not None]

    def wait_s(self, now: float) -> float:
        """Return the seconds until another request is allowed; 0 if it is allowed now."""
        return max((bucket.wait_s(now) for bucket in self._buckets), default=0.0)

    def take(self, tokens: int) -> None:
        """Take the units for a request with an estimated number of tokens."""
        if self._requests is not None:
            self._requests.take(1)
        self.charge_tokens(tokens)

    def charge_tokens(self, difference: int) -> None:
        """Take the tokens that a request used in addition to its estimate."""
        if self._tokens is not None:
            self._tokens.take(difference)

    def lease(self, share: float, now: float) -> None:
        """From now on, allow at most this fraction (0 to 1) of both rates."""
        for bucket in self._buckets:
            bucket.lease(share, now)


class Limiter:
    """Gives permits: a free place goes to the waiting call with the fewest requests in flight.

    A call that uses no more than its share seldom has to wait.
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
        self._whole = self._concurrency = concurrency
        self._leased = sys.maxsize
        """The part of `concurrency` that this process may use; other processes use the rest."""
        self._drained = asyncio.Event()
        self._clock = clock
        self.counts_tokens = tpm is not None
        """Whether the sizes of requests are needed, because `tpm` is set."""
        self._rates = _RateLimits(rpm, tpm, clock()) if rpm or tpm else None
        self._in_flight = 0
        self._waiting: dict[ConcurrencyShare, deque[_Waiter]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.suspects = asyncio.Lock()
        """A lock that is held while an item that may crash its server is in flight."""
        self.shares = FairShares(lambda: self.room)
        for state in endpoint_states:
            state.load.limit.resized = self.shares.divide

    def widen(self, concurrency: int) -> None:
        """Raise the limit to `concurrency` requests in flight, but not above the leased number."""
        self._whole = concurrency
        self._concurrency = min(concurrency, self._leased)
        for state in self.endpoint_states:
            state.load.limit.most = max(state.load.limit.most, concurrency)

    def open(self, share: ConcurrencyShare) -> None:
        """Record that a call starts. The first call resets the health of every endpoint."""
        if not self.shares:
            self._forgive()
        self.shares.add(share)

    def close(self, share: ConcurrencyShare) -> None:
        """Record that a call has ended."""
        self.shares.remove(share)
        if not self.shares and self._timer:
            self._timer.cancel()
            self._timer = None

    @property
    def room(self) -> int:
        """The number of requests that may be in flight, as allowed by the endpoints' limits and `concurrency`."""
        endpoint_states = self.endpoint_states
        size = (
            endpoint_states[0].load.limit.size
            if len(endpoint_states) == 1
            else sum(state.load.limit.size for state in endpoint_states if not state.health.blocked)
        )
        return max(1, min(self._concurrency, size))

    @property
    def pace(self) -> float:
        """The sum of the paces of all usable endpoints, in requests per second; 0 if one of them has no pace."""
        paces = [state.pace.present for state in self.endpoint_states if not state.health.blocked]
        return sum(paces) if paces and all(paces) else 0.0

    def enter_now(self, share: ConcurrencyShare, tokens: int, avoid: EndpointState | None) -> Permit | None:
        """Return a permit if a place is free and no other request waits for it.

        `tokens`: the request's estimated size. `avoid`: the endpoint of its last failure; any other is preferred.
        """
        return None if self._waiting else self._admit(share, tokens, avoid, self._clock())

    async def enter(self, share: ConcurrencyShare, tokens: int, avoid: EndpointState | None) -> Permit:
        """Wait for a permit. Raises the endpoints' error if all endpoints are unusable.

        A call that has not sent any request is not refused: its first request probes an endpoint that is down.
        """
        if error := self.unusable():
            if share.has_sent:
                raise error
            self._forgive()
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(share, deque()).append(_Waiter(future, tokens, avoid))
        if self._in_flight < self._concurrency:  # if all places are taken, the next finished request frees one
            self.serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self.leave(future.result(), share)
            raise

    def leave(self, permit: Permit, share: ConcurrencyShare) -> None:
        """Free the place for the next request in turn."""
        permit.endpoint_state.leave(permit)
        self._in_flight -= 1
        share.in_flight -= 1
        share.call.in_flight -= 1
        if self._in_flight <= self._leased:
            self._drained.set()
        if len(self.endpoint_states) > 1:
            self.shares.divide()  # an endpoint may be blocked now, so places are divided again
        if self._waiting:
            self.serve()

    def only(self, state: EndpointState) -> bool:
        """Return whether all endpoints but `state` are unusable."""
        return all(other.unusable() is not None for other in self.endpoint_states if other is not state)

    def elsewhere(self, state: EndpointState) -> bool:
        """Return whether an endpoint other than `state` is available."""
        now = self._clock()
        return any(
            not other.is_unavailable(now) and other.unusable() is None
            for other in self.endpoint_states
            if other is not state
        )

    async def lease(self, most: int, rates: float) -> None:
        """From now on, allow `most` requests in flight, and this fraction (0 to 1) of `rpm` and `tpm`.

        Returns when at most `most` requests are in flight. It must not run twice at the same time.
        """
        self._leased = most
        self._concurrency = min(self._whole, most)
        if self._rates is not None:
            self._rates.lease(rates, self._clock())
        self.shares.divide()
        if self._waiting:
            self.serve()
        self._drained.clear()
        if self._in_flight > most:
            await self._drained.wait()

    def charge_tokens(self, difference: int) -> None:
        """Charge the tokens that a request used in addition to its estimate."""
        if self._rates is not None:
            self._rates.charge_tokens(difference)

    def serve(self) -> None:
        """Give free places to waiting requests. It is called whenever a place, a pause or a rate may have changed."""
        # the clock is read only once: if a pause ended between two readings, no timer would be set
        now = self._clock()
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
        """Give one permit, or drop a call that has no waiting requests. Return False if there is nothing to do.

        A request that must avoid the endpoint at which it failed does not delay other requests. `stuck`: the values of
        `avoid` for which no permit is available at `now`.
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
        room = state.room(now)
        if room <= 0 and (share.has_sent or not state.may_be_probed):
            return None
        if self._rates is not None:
            if self._rates.wait_s(now) > 0:
                return None
            self._rates.take(tokens)
        self._in_flight += 1
        share.in_flight += 1
        share.call.in_flight += 1
        permit = state.enter(now)
        load = state.load
        if room <= 1 and not load.watched and load.in_flight >= load.limit.size and load.limit.may_double:
            load.watched = True
            asyncio.get_running_loop().call_later(QUIET_S, self._widen_if_quiet, state, permit.round_number)
        return permit

    def _widen_if_quiet(self, state: EndpointState, round_number: int) -> None:
        state.load.watched = False
        state.load.limit.stayed_quiet(round_number)
        self.shares.room_changed()
        if self._waiting:
            self.serve()

    def _best(self, avoid: EndpointState | None, now: float) -> EndpointState | None:
        """Return the endpoint with the most room; `avoid` only if all others are unavailable."""
        others = [state for state in self.endpoint_states if state is not avoid and state.unusable() is None]
        best = max(others, key=lambda state: state.room(now), default=avoid)
        if avoid is None or best is None or best.room(now) > 0 or avoid.unusable() is not None:
            return best
        return avoid if all(state.is_unavailable(now) for state in others) else best

    def rate_wait_s(self, now: float) -> float:
        """Return the seconds until `rpm` and `tpm` allow another request."""
        return 0.0 if self._rates is None else self._rates.wait_s(now)

    def unusable(self) -> PromptmillError | None:
        """Return an endpoint's error if all endpoints are unusable, else None."""
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
        """Refuse all waiting requests, except those of calls that have not sent anything."""
        waiting = self._waiting
        self._waiting = {share: queue for share, queue in waiting.items() if not share.has_sent}
        for share, queue in waiting.items():
            for waiter in queue if share.has_sent else ():
                if not waiter.future.done():
                    waiter.future.set_exception(error)

    def _wake_later(self, now: float) -> None:
        """Schedule `serve` for the end of the next pause or wait. (When a place becomes free, `serve` runs anyway.)"""
        times = [at - now for state in self.endpoint_states if (at := state.opens_at(now)) > now]
        if (rate := self.rate_wait_s(now)) > 0:
            times.append(rate)
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if times:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, min(times)), self.serve)


class CallFlow:
    """Explains the waits of one call. Times are seconds of `clock`."""

    def __init__(self, limiter: Limiter, call: Call, clock: Callable[[], float], since: float) -> None:
        """`since`: the start of the call."""
        self._limiter, self._call, self._clock = limiter, call, clock
        self._last: tuple[EndpointState, RetryDecision] | None = None
        self._attempts = ""
        self._due: list[float] = []
        self._done, self._quiet_since = 0, since

    def put_back(
        self, endpoint_state: EndpointState, decision: RetryDecision, wait_s: float, attempts: str = ""
    ) -> None:
        """Record that an item will be sent again after `wait_s`. `attempts`: a text on the limit of its attempts."""
        self._last, self._attempts = (endpoint_state, decision), attempts
        now = self._quiet_since = self._clock()
        while self._due and self._due[0] <= now:
            heapq.heappop(self._due)
        heapq.heappush(self._due, now + wait_s)

    def waiting(self) -> str:
        """Return why the call is stalled, and when the stall ends; `""` while requests are running.

        A probe of an endpoint that is down does not count as a running request.
        """
        now = self._clock()
        states = [state for state in self._limiter.endpoint_states if not state.health.blocked]
        if not states:
            return ""
        if self._call.in_flight and not all(state.is_down for state in states):
            return self._without_answers(states, now)
        if any(state.room(now) > 0 and not state.is_down for state in states):
            return self._between_attempts(now)
        state = min(states, key=lambda state: state.pause.until)
        left_s = state.pause.until - now
        if not state.is_down or state.health.trouble is None:
            allows = f"{state.endpoint.name} has used up its limit for now"
            return f"{allows}, next request in {left_s:.0f} s" if left_s >= _SHORTEST_S else ""
        return self._until_back(state, state.health.trouble, now)

    def _until_back(self, state: EndpointState, trouble: Trouble, now: float) -> str:
        since, failure = trouble
        left_s = state.pause.until - now
        is_new = not state.health.successes
        if left_s < _SHORTEST_S and now - since < _SHORTEST_S and not is_new:
            return ""
        following = f"next try in {left_s:.0f} s" if left_s >= _SHORTEST_S else "trying now"
        if failure.kind is FailureKind.LOAD or is_new:
            return f"{self._reason(state, failure)}, {following}{self._so_far()}{self._end(state)}"
        return f"waiting for {state.endpoint.name} since {duration(now - since)}, {following}{self._end(state)}"

    def _without_answers(self, states: Sequence[EndpointState], now: float) -> str:
        if self._call.counts.done != self._done:
            self._done, self._quiet_since = self._call.counts.done, now
        quiet_s = now - self._quiet_since
        if quiet_s < _QUIET_S:
            return ""
        names = ", ".join(dict.fromkeys(state.endpoint.name for state in states))
        most_s = max(state.longest_silence_s for state in states)
        is_loading = all(state.endpoint.own and not state.health.successes for state in states)
        perhaps = " (it may still be loading the model)" if is_loading else ""
        return f"no answer from {names} for {quiet_s:.0f} s{perhaps}; an attempt fails after {most_s:.0f} s (`timeout`)"

    def _between_attempts(self, now: float) -> str:
        """Return the reason why all remaining items wait: for another attempt, or for `rpm` and `tpm`."""
        rate_s = self._limiter.rate_wait_s(now)
        if rate_s >= _SHORTEST_S:
            return f"`rpm` or `tpm` allows the next request in {rate_s:.0f} s"
        while self._due and self._due[0] <= now:
            heapq.heappop(self._due)
        if not self._due or self._last is None:
            return ""
        left_s = self._due[0] - now
        following = f"in {left_s:.0f} s" if left_s >= _SHORTEST_S else "within a second"
        return f"{self._reason(*self._last)}, next try {following}{self._so_far()}{self._end(self._last[0])}"

    @staticmethod
    def _reason(state: EndpointState, failure: RetryDecision) -> str:
        words = _WORDS.get(failure.error.code, str(failure.error.code).replace("_", " "))
        status = f"{failure.status} from " if failure.status else ""
        return f"{status}{state.endpoint.name}: {words}"

    def _end(self, state: EndpointState) -> str:
        """Return the end of the wait, and the configuration key that determines it; `""` while requests succeed."""
        if self._attempts and self._last is not None and self._last[0] is state:
            return f"; {self._attempts}"
        if state.health.trouble is None or state.has_never_listened:
            return ""
        return f"; gives up in {duration(max(0.0, state.patience_s))} (the setting `patience`)"

    def _so_far(self) -> str:
        refused = self._call.counts.refused
        return f" ({counted(refused, 'refusal')} so far)" if refused else ""
