"""A call over one endpoint in simulated time: the limit is real, everything else is events in a heap.

seconds = Call(5000, AdaptiveLimit(512), Endpoint(2.0, "together")).run()
seconds = PacedCall(5000, Endpoint(0.4, rate=Sliding(120, 1.0))).run()  # with the pace, the strikes and the pauses

`python tests/support/simulation.py` prints the chart of docs/architecture.md.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from promptmill.backends.openai.endpoint import Endpoint as Target
from promptmill.backends.openai.failures import FailureKind, RetryDecision, backoff_s
from promptmill.backends.openai.limit.adaptive_limit import QUIET_S, AdaptiveLimit, ThroughputSearch
from promptmill.backends.openai.limit.endpoint_state import EndpointState
from promptmill.backends.openai.providers import profile_at
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError

_BASE_DELAY_S, _MAX_DELAY_S = 1.0, 30.0
_HEIGHTS, _COLUMNS = " ▁▂▃▄▅▆▇█", 60
Answers = Literal["one by one", "by sixteen", "together"]


class Rate(Protocol):
    """A limit of requests per time."""

    def takes(self, now: float) -> bool:
        """Return whether a request at `now` is accepted."""
        ...


class Bucket:
    """Accepts `per_s` requests per second, and at first, or after a time without requests, `burst` at once."""

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s, self._burst, self._level, self._at = per_s, burst, burst, 0.0

    def takes(self, now: float) -> bool:
        """Return whether a request at `now` is accepted."""
        self._level = min(self._burst, self._level + (now - self._at) * self.per_s)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Sliding:
    """Accepts `per_s` requests per second, counted over the last `window_s` seconds."""

    def __init__(self, per_s: float, window_s: float) -> None:
        self._most, self._window_s, self._times = per_s * window_s, window_s, deque[float]()

    def takes(self, now: float) -> bool:
        """Return whether a request at `now` is accepted."""
        while self._times and now - self._times[0] >= self._window_s:
            self._times.popleft()
        if len(self._times) >= self._most:
            return False
        self._times.append(now)
        return True


class Fixed:
    """Accepts `per_s` requests per second, counted from each multiple of `window_s` seconds."""

    def __init__(self, per_s: float, window_s: float) -> None:
        self._most, self._window_s, self._window, self._count = per_s * window_s, window_s, 0, 0

    def takes(self, now: float) -> bool:
        """Return whether a request at `now` is accepted."""
        if self._window != now // self._window_s:
            self._window, self._count = int(now // self._window_s), 0
        if self._count >= self._most:
            return False
        self._count += 1
        return True


class Endpoint:
    """Answers after `delay_s`: each for itself, sixteen at a time, or all that is there as one batch.

    It refuses a share of `refused` whatever happens, what is beyond `limit` in flight, what is beyond `per_minute`
    requests in a minute of the clock, and what is beyond `rate`. Its refusals ask for a wait of `asked_s`. A request
    and its response take `network_s` each on their way.
    """

    def __init__(
        self,
        delay_s: float,
        answers: Answers = "one by one",
        *,
        limit: int | None = None,
        refused: float = 0.0,
        refusal_s: float = 0.001,
        per_minute: int | None = None,
        network_s: float = 0.0,
        rate: Rate | None = None,
        asked_s: float | None = None,
        seed: int = 1,
    ) -> None:
        self.limit, self.rate, self.asked_s = limit, rate, asked_s
        self._per_minute, self._network_s = per_minute, network_s
        self._minute = self._in_minute = 0
        self._delay_s, self._answers, self._refused, self._refusal_s = delay_s, answers, refused, refusal_s
        self._chance = random.Random(seed)
        self._in_flight = 0
        self._batch: list[Any] = []
        self._ready: list[Any] = []
        self._computing = False
        self._given = 0

    def arrive(self, call: Call, *sent: Any) -> None:
        """Take a request."""
        if self._network_s:
            call.at(self._network_s, self._take, call, sent)
        else:
            self._take(call, sent)

    def _refuses(self, now: float) -> bool:
        if (self.limit is not None and self._in_flight >= self.limit) or self._chance.random() < self._refused:
            return True
        if self.rate is not None and not self.rate.takes(now):
            return True
        if self._per_minute is None:
            return False
        if self._minute != now // 60:
            self._minute, self._in_minute = int(now // 60), 0
        self._in_minute += 1
        return self._in_minute > self._per_minute

    def _take(self, call: Call, sent: Any) -> None:
        if self._refuses(call.now):
            return call.at(self._refusal_s + self._network_s, call.refused, *sent)
        self._in_flight += 1
        if self._answers == "together":
            self._batch.append(sent)
            if not self._computing:
                self._computing = True
                call.at(0.002, self._compute, call)
            return None
        return call.at(self._delay_s * self._chance.uniform(0.9, 1.1), self._finish, call, sent)

    def _compute(self, call: Call) -> None:
        batch, self._batch = self._batch, []
        call.at(self._delay_s, self._computed, call, batch)

    def _computed(self, call: Call, batch: list[Any]) -> None:
        self._computing = False
        self._give(call, batch)
        if self._batch and not self._computing:
            self._computing = True
            call.at(0.002, self._compute, call)

    def _finish(self, call: Call, sent: Any) -> None:
        self._ready.append(sent)
        if self._answers == "one by one" or len(self._ready) == 16:
            self._flush(call, self._given)
        elif len(self._ready) == 1:
            call.at(0.05 * self._delay_s, self._flush, call, self._given)

    def _flush(self, call: Call, given: int) -> None:
        if given == self._given:
            self._given += 1
            ready, self._ready = self._ready, []
            self._give(call, ready)

    def _give(self, call: Call, batch: list[Any]) -> None:
        self._in_flight -= len(batch)
        for sent in batch:
            if self._network_s:
                call.at(self._network_s, call.answered, *sent)
            else:
                call.answered(*sent)


class BatchingServer:
    """Computes all that is in flight together, at full speed up to `batch` requests; more share that speed."""

    def __init__(self, batch: int, token_s: float, tokens: Callable[[random.Random], int], *, seed: int = 1) -> None:
        self._batch, self._token_s, self._tokens = batch, token_s, tokens
        self._chance = random.Random(seed)
        self._running: list[tuple[float, int, int, Any]] = []
        self._computed = 0.0  # tokens, for each request
        self._at = 0.0
        self._count = 0

    def arrive(self, call: Call, *sent: Any) -> None:
        """Take a request."""
        self._compute(call.now)
        self._count += 1
        tokens = self._tokens(self._chance)
        heapq.heappush(self._running, (self._computed + tokens, self._count, tokens, sent))
        self._look_later(call)

    def _speed(self) -> float:
        return min(1.0, self._batch / max(1, len(self._running))) / self._token_s

    def _compute(self, now: float) -> None:
        self._computed += (now - self._at) * self._speed()
        self._at = now

    def _look_later(self, call: Call) -> None:
        if self._running:
            left = max(0.0, self._running[0][0] - self._computed) / self._speed()
            call.at(left, self._look, call, self._count)

    def _look(self, call: Call, count: int) -> None:
        if count != self._count:
            return
        self._count += 1
        self._compute(call.now)
        done = []
        while self._running and self._running[0][0] <= self._computed + 1e-6:
            done.append(heapq.heappop(self._running))
        for _, _, tokens, (item, round_number, sent_at, serial) in done:
            call.answered(item, round_number, sent_at, serial, tokens)
        self._look_later(call)


class Call:
    """So many prompts, sent as `Attempts` sends them: an item that was refused waits and goes to the back of the queue.

    An endpoint that takes nothing is paused, then probed by one request at a time, as `EndpointState` does it.
    """

    def __init__(
        self, prompts: int, limit: AdaptiveLimit, endpoint: Endpoint | BatchingServer, *, seed: int = 1
    ) -> None:
        self.now = 0.0
        self.sent = self.refusals = self.done = 0
        self.limit = limit
        self._prompts, self._fresh = prompts, prompts
        self._back: deque[list[int]] = deque()
        self._endpoint = endpoint
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.in_flight = 0
        self._watched = False
        self._waiting = 0
        self._strikes, self._struck_at, self._answered_at, self._paused_until = 0, 0, 0, 0.0
        self._chance = random.Random(seed)
        self._answer_s = _BASE_DELAY_S
        self.search: ThroughputSearch | None = None
        self.latencies: list[float] = []

    def at(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        """Have something happen so many seconds from now."""
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, what, arguments))

    def run(self) -> float:
        """Return the seconds until the last answer."""
        self._send()
        while self.done < self._prompts:
            self.now, _, what, arguments = heapq.heappop(self._events)
            what(*arguments)
        return self.now

    def go_on(self, prompts: int) -> float:
        """Answer further prompts. Return the time of the last answer."""
        self._prompts, self._fresh = self._prompts + prompts, prompts
        return self.run()

    @staticmethod
    def run_together(seconds: float, *calls: Call) -> None:
        """Run calls at one endpoint for so many seconds."""
        for call in calls:
            call._send()
        while (call := min(calls, key=lambda call: call._events[0][0]))._events[0][0] <= seconds:
            now, _, what, arguments = heapq.heappop(call._events)
            for each in calls:
                each.now = now
            what(*arguments)

    def _send(self) -> None:
        limit = self.limit
        while self.in_flight < self._room() and (self._back or (self._fresh and self._waiting <= 2 * limit.size)):
            if self._back and (self.sent % 2 or not self._fresh):
                item = self._back.popleft()
            else:
                self._fresh -= 1
                item = [0]
            self.in_flight += 1
            self.sent += 1
            self._endpoint.arrive(self, item, limit.taken(self.in_flight), self.now, self.sent)
        if limit.may_double and self.in_flight >= limit.size and not self._watched:
            self._watched = True
            self.at(QUIET_S, self._quiet, limit.round_number)

    def _room(self) -> int:
        if self.now < self._paused_until:
            return 0
        return 1 if self._strikes else self.limit.size

    def _quiet(self, round_number: int) -> None:
        self._watched = False
        self.limit.stayed_quiet(round_number)
        self._send()

    def answered(self, item: list[int], round_number: int, sent_at: float, serial: int, tokens: int = 0) -> None:
        """Have an answer come."""
        del item, serial
        self.done += 1
        self._strikes, self._answered_at = 0, self.sent
        self.latencies.append(self.now - sent_at)
        if self.search is not None:
            self.search.answered(round_number, self.in_flight, self.now - sent_at, tokens)
        self.in_flight -= 1
        self._answer_s += 0.1 * (self.now - sent_at - self._answer_s)
        self.limit.accepted(round_number)
        self._send()

    def refused(self, item: list[int], round_number: int, sent_at: float, serial: int) -> None:
        """Have a refusal come."""
        del sent_at
        self.refusals += 1
        self.limit.refused(round_number)
        if self.in_flight == 1 and max(self._answered_at, self._struck_at) < serial:
            self._strikes, self._struck_at = self._strikes + 1, self.sent
            pause_s = self._chance.uniform(0, min(_MAX_DELAY_S, _BASE_DELAY_S * 2 ** (self._strikes - 1)))
            self._paused_until = self.now + pause_s
            self.at(pause_s, self._send)
        self.in_flight -= 1
        item[0] += 1
        wait_s = 0.0
        if item[0] > 1:
            base_s = min(_BASE_DELAY_S, self._answer_s)
            wait_s = self._chance.uniform(0, min(_MAX_DELAY_S, base_s * 2 ** (item[0] - 2)))
        self._waiting += 1
        self.at(wait_s, self._return, item)
        self._send()

    def _return(self, item: list[int]) -> None:
        self._waiting -= 1
        self._back.append(item)
        self._send()


class PacedCall(Call):
    """A call over the real state of an endpoint, with its pace, its strikes and its pauses."""

    def __init__(self, prompts: int, endpoint: Endpoint, *, concurrency: int = 1024, seed: int = 1) -> None:
        self.now = 0.0
        url = "https://api.example.com/v1/chat/completions"
        target = Target(url, "api.example.com", {}, (), profile_at(urlsplit(url)))
        encoder = RequestEncoder(target, "m", enable_thinking=None, stream=False)
        settings = OpenAISettings(concurrency=concurrency)
        self.state = EndpointState(target, encoder, settings, lambda: self.now, random.Random(seed))
        super().__init__(prompts, self.state.load.limit, endpoint, seed=seed)
        self.asked_s = endpoint.asked_s
        self.times: list[float] = []
        """The times at which requests were sent."""
        self.times_refused: list[float] = []
        self._wakes_at = float("inf")

    def late_share(self, since: float = 10.0) -> float:
        """Return the share of refusals among the requests that were sent after `since` seconds."""
        return sum(at >= since for at in self.times_refused) / max(1, sum(at >= since for at in self.times))

    def _send(self) -> None:
        state, load = self.state, self.state.load
        while self._back or (self._fresh and self._waiting <= 2 * load.limit.size):
            room = state.room(self.now)
            if room <= 0:
                break
            if self._back and (self.sent % 2 or not self._fresh):
                item = self._back.popleft()
            else:
                self._fresh -= 1
                item = [0]
            self.in_flight += 1
            self.sent += 1
            self.times.append(self.now)
            permit = state.enter(self.now)
            if room <= 1 and not load.watched and load.in_flight >= load.limit.size and load.limit.may_double:
                load.watched = True
                self.at(QUIET_S, self._quiet, permit.round_number)
            self._endpoint.arrive(self, item, permit, self.now, self.sent)
        opens_at = state.opens_at(self.now)
        if self.now < opens_at < self._wakes_at:
            self._wakes_at = opens_at
            self.at(max(0.001, opens_at - self.now), self._wake)

    def _wake(self) -> None:
        self._wakes_at = float("inf")
        self._send()

    def _quiet(self, round_number: int) -> None:
        self.state.load.watched = False
        super()._quiet(round_number)

    def answered(self, item: list[int], permit: Any, sent_at: float, serial: int, tokens: int = 0) -> None:
        """Have an answer come."""
        del item, sent_at, serial
        self.done += 1
        self.in_flight -= 1
        self.state.succeeded(permit, tokens)
        self.state.leave(permit)
        self._send()

    def refused(self, item: list[int], permit: Any, sent_at: float, serial: int) -> None:
        """Have a refusal come."""
        del serial
        self.refusals += 1
        self.times_refused.append(sent_at)
        self.in_flight -= 1
        state = self.state
        refusal = PromptmillError(Code.RATE_LIMITED, "no")
        decision = RetryDecision(FailureKind.LOAD, refusal, self.asked_s, status=429)
        failed_before = item[1] if len(item) > 1 else None
        item[1:] = [state.load.sent]
        state.failed(permit, decision, failed_before)
        state.leave(permit)
        wait_s = 0.0
        if item[0]:
            base_s = min(_BASE_DELAY_S, state.load.answer_s or _BASE_DELAY_S)
            wait_s = backoff_s(item[0], base_s, _MAX_DELAY_S, self._chance)
        item[0] += 1
        self._waiting += 1
        self.at(max(wait_s, self.asked_s or 0.0), self._return, item)
        self._send()


def _row(name: str, seconds: int, call: Call) -> str:
    """Return the requests in flight in the first `seconds` of a call, as a line of a table."""
    found: list[list[int]] = [[] for _ in range(_COLUMNS)]

    def look() -> None:
        found[int(call.now / seconds * _COLUMNS)].append(call.in_flight)
        if call.now + seconds / 1000 < seconds:
            call.at(seconds / 1000, look)

    call.at(0.0, look)
    call.run()
    means = [sum(column) / len(column) for column in found]
    most = max(means)
    heights = "".join(_HEIGHTS[round(mean / most * (len(_HEIGHTS) - 1))] for mean in means)
    return f"{name:<30}  {seconds:>4} s  {heights}  {most:4.0f}"


def chart() -> str:
    """Return a table of the requests in flight to endpoints of several kinds, over time."""
    rising = Endpoint(2.0, limit=40)
    rises = Call(5000, AdaptiveLimit(256), rising)
    rises.at(60, setattr, rising, "limit", 120)
    return "\n".join(
        [
            f"{'the endpoint':<30}  {'in':>4}    {'requests in flight':<{_COLUMNS}}  most",
            _row("takes 40, from 60 s on 120", 120, rises),
            _row("refuses 10 % at random", 20, Call(4000, AdaptiveLimit(256), Endpoint(2.0, refused=0.1))),
            _row("takes 600 requests a minute", 120, Call(2000, AdaptiveLimit(256), Endpoint(1.0, per_minute=600))),
            _row("takes 120 requests a second", 20, PacedCall(2400, Endpoint(0.4, rate=Sliding(120, 1.0)))),
        ]
    )


if __name__ == "__main__":
    print(chart())
