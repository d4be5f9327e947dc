"""Why a call is waiting, and until when, in words for progress displays."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from promptmill.backends.openai.endpoint_state import EndpointState
from promptmill.backends.openai.limiter import Limiter
from promptmill.backends.openai.retry import FailureKind, RetryDecision
from promptmill.backends.protocol import Call
from promptmill.core.errors import Code
from promptmill.core.wording import counted

# A shorter wait is over before anybody has read of it.
_SHORTEST_S = 1.0
# An answer seldom takes longer; where it does, who watches may want to know what it is that takes so long.
_QUIET_S = 10.0
_WORDS = {
    Code.RATE_LIMITED: "rate limit",
    Code.CONNECTION_LOST: "connection lost",
    Code.NAME_RESOLUTION: "name not found",
    Code.UNREACHABLE: "cannot be reached",
    Code.BAD_RESPONSE: "unreadable answer",
}


class CallFlow:
    """Explains the waits of one call. Times are seconds of `clock`."""

    def __init__(self, limiter: Limiter, call: Call, clock: Callable[[], float], since: float) -> None:
        """`since`: when the call began."""
        self._limiter, self._call, self._clock = limiter, call, clock
        self._last: tuple[EndpointState, RetryDecision] | None = None
        self._due: list[float] = []
        self._done, self._quiet_since = 0, since

    def put_back(self, endpoint_state: EndpointState, decision: RetryDecision, wait_s: float) -> None:
        """Note that an item is sent again after `wait_s`."""
        self._last = endpoint_state, decision
        now = self._quiet_since = self._clock()
        while self._due and self._due[0] <= now:
            heapq.heappop(self._due)
        heapq.heappush(self._due, now + wait_s)

    def waiting(self) -> str:
        """Return why nothing goes on just now and until when, empty while something does.

        A request that only tries whether an endpoint is back is not going on.
        """
        now = self._clock()
        states = [state for state in self._limiter.endpoint_states if not state.blocked]
        if not states or any(state.room(now) > 0 and not state.is_down for state in states):
            if states and self._call.in_flight:
                return self._without_answers(states, now)
            return self._between_attempts(now) if states else ""
        if self._call.in_flight and not all(state.is_down for state in states):
            return self._without_answers(states, now)
        state = min(states, key=lambda state: state.paused_until)
        left_s = state.paused_until - now
        failure, since = state.last_failure, state.trouble_since
        if not state.is_down or failure is None or since is None:
            allows = f"{state.endpoint.name} has used up its limit for now"
            return f"{allows}, next request in {left_s:.0f} s" if left_s >= _SHORTEST_S else ""
        is_new = not state.successes
        if left_s < _SHORTEST_S and now - since < _SHORTEST_S and not is_new:
            return ""
        following = f"next try in {left_s:.0f} s" if left_s >= _SHORTEST_S else "trying now"
        if failure.kind is FailureKind.LOAD or is_new:
            return f"{self._reason(state, failure)}, {following}{self._so_far()}"
        minutes, seconds = divmod(int(now - since), 60)
        return f"waiting for {state.endpoint.name} since {minutes}:{seconds:02}, {following}"

    def _without_answers(self, states: Sequence[EndpointState], now: float) -> str:
        """Return for how long all that was sent has been without an answer; empty while that is nothing unusual."""
        if self._call.done != self._done:
            self._done, self._quiet_since = self._call.done, now
        quiet_s = now - self._quiet_since
        if quiet_s < _QUIET_S:
            return ""
        names = ", ".join(dict.fromkeys(state.endpoint.name for state in states))
        most_s = max(state.longest_silence_s for state in states)
        is_loading = all(state.endpoint.own and not state.successes for state in states)
        perhaps = " (it may still be loading the model)" if is_loading else ""
        return (
            f"no answer from {names} for {quiet_s:.0f} s{perhaps}; a try is given up after {most_s:.0f} s (`timeout`)"
        )

    def _between_attempts(self, now: float) -> str:
        """Return why all that is left waits to be sent again, or for `rpm` and `tpm`."""
        rate_s = self._limiter.rate_wait_s(now)
        if rate_s >= _SHORTEST_S:
            return f"`rpm` or `tpm` allows the next request in {rate_s:.0f} s"
        while self._due and self._due[0] <= now:
            heapq.heappop(self._due)
        if not self._due or self._last is None:
            return ""
        left_s = self._due[0] - now
        following = f"in {left_s:.0f} s" if left_s >= _SHORTEST_S else "within a second"
        return f"{self._reason(*self._last)}, next try {following}{self._so_far()}"

    @staticmethod
    def _reason(state: EndpointState, failure: RetryDecision) -> str:
        words = _WORDS.get(failure.error.code, str(failure.error.code).replace("_", " "))
        status = f"{failure.status} from " if failure.status else ""
        return f"{status}{state.endpoint.name}: {words}"

    def _so_far(self) -> str:
        refused = self._call.refused
        return f" ({counted(refused, 'refusal')} so far)" if refused else ""
