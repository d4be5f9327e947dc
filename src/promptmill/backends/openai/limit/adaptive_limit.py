"""The limit of requests in flight to an endpoint, derived from its refusals and its answers per second.

`AdaptiveLimit` finds the endpoint's own limit from refusals. The limit doubles per round trip until more requests are
refused than chance explains. Then a lower limit is tried. If refusals stop, the lower limit is kept, and a slightly
higher limit is tried from time to time. If refusals continue at the same rate, they do not depend on the number in
flight, so the earlier limit is restored and grows again.

Each refusal closes one place immediately, and answers reopen places, so that a trial causes no storm of requests. The
doubling is TCP's slow start (V. Jacobson, 1988). Because of the trial, random refusals, which are common at shared
providers, do not cost speed.

`ThroughputSearch` sets the upper bound of the limit for an operator's own server, which seldom refuses. With continuous
batching, a server answers more requests per second the more requests are in flight, up to a point; beyond it, each
answer only takes longer. The bound is doubled until the rate stops growing, then set to the point where it stopped, and
a slightly higher bound is tried from time to time. A server that publishes how many requests wait in it gets no more
requests than it computes at the same time. vLLM always publishes this number (docs.vllm.ai, "Production Metrics");
SGLang and llama.cpp publish it if an option is set. It is in the Prometheus text at `/metrics` next to the API.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from promptmill.backends.protocol import ignored

# A refusal arrives immediately, an answer after seconds. So a request of this age without a refusal counts as accepted.
QUIET_S = 0.2
_START = 64
# While the limit doubles, a share of refusals up to this value starts no trial.
_TOLERATED = 0.1
# Refusals beyond this share never count as random.
_RANDOM_BELOW = 0.2
_CUT = 0.85
_GENTLE_CUT = 0.95
# A trial lasts until this many refusals would be expected at the share of refusals before the trial.
_TELLING = 8
_TRIAL_LIMITS = 4  # a trial also ends after about this many answers per place
# Rounds at a found limit before a slightly higher limit is tried. (A rest of 2 to 32 rounds makes a run no faster.)
_REST = 16
_LONGEST_REST = 32  # the longest rest in the search for the best throughput, in measurements
_KEPT_ROUNDS = 8
_FIRST_STEP = 0.02

# To be kept, a doubled bound must bring this share of the gain that a server with spare capacity would bring. With this
# value, quick answers matter more than a high rate: if the rate grows like n / (1 + n / 100), the search stops at 146
# in flight, where the rate is 0.65 of the rate at 1000.
_PAYS = 0.7
# To be kept, a small step must increase the rate by this share of the step's relative size.
_PAYS_STILL = 0.4
_STEP = 0.1
_FEWEST_ANSWERS = 32
_BUSY = 0.8
# A line of Prometheus text: a name, perhaps labels, a value. The values of several engines or models are added.
_WAITING = re.compile(
    rb"^(?:vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred|tgi_queue_size)"
    rb"(?:\{[^\n}]*\})? +([0-9.eE+]+)(?: .*)?$",
    re.MULTILINE,
)


@dataclass(slots=True)
class _Count:
    """The requests sent since the start of a round, and how many of them were answered or refused."""

    since: int
    sent: int = 0
    refused: int = 0
    answered: int = 0

    @property
    def share(self) -> float:
        """The share of refusals."""
        return self.refused / self.sent if self.sent else 0.0

    def exceeds(self, share: float, deviations: float = 3.0) -> bool:
        """Return whether there are more refusals than `share` explains, by `deviations` standard deviations."""
        expected = share * self.sent
        return self.refused > expected + deviations * math.sqrt(expected + 1)


class _Rounds:
    """The present round, and earlier rounds whose refusals may still arrive.

    A round of the limit ends when one of its requests is answered, or after a time without an answer.
    """

    __slots__ = ("_kept", "full", "in_a_row", "lag", "now", "number")

    def __init__(self) -> None:
        self.number = 0
        self.full = -2
        """The number of the last round in which all places were taken."""
        self.in_a_row = 0
        """The number of refusals since the last answer."""
        self.lag = 0
        """The largest number of rounds between the sending of a request and its refusal."""
        self.now = _Count(0)
        self._kept = deque([self.now], _KEPT_ROUNDS)

    def begin(self, *, forget: bool = False) -> None:
        """Start the next round. With `forget`, refusals from earlier rounds no longer count."""
        if forget:
            self._kept.clear()
        self.number += 1
        self.now = _Count(self.number)
        self._kept.append(self.now)

    def refused(self, number: int) -> _Count | None:
        """Count a refusal in its request's round. Return the round's count, or None if the round is too old."""
        age = self.number - number
        if age >= len(self._kept):
            return None
        self.lag = max(self.lag, age)
        count = self._kept[-1 - age]
        count.refused += 1
        return count


class _Trial(NamedTuple):
    """The trial of a lower limit."""

    before: _Count
    """The counts that led to the trial."""
    limit: float
    """The limit to restore if the trial does not make refusals rarer."""


@dataclass(slots=True)
class _Search:
    """The search for a limit slightly higher than the found limit."""

    proven: float
    """The last limit that caused no unusual number of refusals."""
    found: float = 0.0
    """The endpoint's own limit; 0 if it is not yet found."""
    step: float = 1.0
    rest: int = 0
    """The number of rounds before the next try."""


class AdaptiveLimit:
    """The limit of requests in flight to one endpoint.

    A request carries the number of its round (from `taken`), so that its refusal is counted in this round.
    """

    def __init__(self, most: int, *, adaptive: bool = True) -> None:
        """`most`: the configured upper bound. Without `adaptive`, the limit stays at this bound."""
        self._most = most
        self._adaptive = adaptive
        self._limit = float(min(most, _START) if adaptive else most)
        self._size = self._limit  # the limit, lowered by each refusal until answers restore it
        self.size = int(self._limit)
        """The number of requests that may be in flight now; at least 1."""
        self.resized: Callable[[], None] = ignored
        """A function that is called when `size` has changed."""
        self._ramping = adaptive
        self._random = 0.0  # the estimated share of refusals that does not depend on the number in flight
        self._rounds = _Rounds()
        self._level = _Count(0)  # counts all requests since the last change of the limit
        self._trial: _Trial | None = None
        self._search = _Search(self._limit)

    @property
    def most(self) -> int:
        """The upper bound of the limit. It may be changed at any time."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        untroubled = self._trial is None and not self._search.found and self._limit == self._most
        self._most = most
        self._limit = float(most) if untroubled or not self._adaptive else min(self._limit, most)
        self._search.proven = self._limit
        self._resize(self._limit)
        self._next_level()

    @property
    def round_number(self) -> int:
        """The number of the present round."""
        return self._rounds.number

    @property
    def may_grow(self) -> bool:
        """Whether the limit is below its bound and may change."""
        return self._adaptive and self._limit < self._most

    @property
    def may_double(self) -> bool:
        """Whether `stayed_quiet` may raise the limit."""
        return self._ramping and self._trial is None and self._limit < self._most and self._rounds.in_a_row < _TELLING

    @property
    def _in_use(self) -> bool:
        return self._rounds.full >= self._rounds.number - 1

    @property
    def _tolerated(self) -> float:
        return max(self._random, _TOLERATED)

    def taken(self, in_flight: int) -> int:
        """Count a request that brings the number in flight to `in_flight`. Return the number of its round."""
        rounds = self._rounds
        if self._adaptive:
            rounds.now.sent += 1
            self._level.sent += rounds.number >= self._level.since
            if in_flight >= 0.9 * self.size:
                rounds.full = rounds.number
        return rounds.number

    def stayed_quiet(self, round_number: int) -> None:
        """Report that all places were taken for `QUIET_S` seconds, while round `round_number` did not end."""
        if self.may_double and round_number == self._rounds.number and not self._rounds.now.exceeds(self._tolerated):
            self._widen(self._limit)
            self._rounds.begin()

    def accepted(self, round_number: int, *, may_grow: bool = True) -> None:
        """Count an answer. `may_grow` is false if a higher limit would not help."""
        if not self._adaptive:
            return
        self._rounds.in_a_row = 0
        if may_grow and self.may_double and self._in_use:
            self._widen(1)  # one more per answer doubles the limit with each round trip
        if self._size < self._limit:
            closed = self._limit - self._size
            self._resize(self._size + min(closed, 2 * closed / self._limit + self._random))
        if self._trial is not None and round_number >= self._level.since:
            self._level.answered += 1
        if round_number == self._rounds.number and self._rounds.now.sent >= 0.5 * self._size:
            if self._trial is not None:
                self._judge(self._trial, answered=True)
            elif self._ramping:
                self._rounds.begin()
            else:
                self._end_round(may_grow=may_grow)

    def refused(self, round_number: int) -> None:
        """Count the refusal of a request that was sent in round `round_number`."""
        if not self._adaptive:
            return
        self._resize(max(1.0, self._size - 1))
        self._rounds.in_a_row += 1
        trial, level = self._trial, self._level
        if self._size == 1.0 < self._limit and self._rounds.in_a_row >= _TELLING:
            self._start_over()
        elif trial is not None and round_number < level.since:  # one of the refusals that are reasons for the trial
            self._limit = min(self._limit, self._size)
            trial.before.refused += round_number >= trial.before.since
        else:
            level.refused += round_number >= level.since
            if trial is not None:
                self._judge(trial, answered=False)
            elif (count := self._rounds.refused(round_number)) is not None:
                self._consider_trial(count)

    def restore(self, limit: int) -> None:
        """Return to at least `limit`, because recent refusals did not depend on the number in flight."""
        if self._adaptive:
            self._limit = self._search.proven = min(self._most, max(limit, self._limit))
            self._ramping, self._trial, self._search.found = True, None, 0.0
            self._rounds.in_a_row = 0
            self._resize(self._limit)
            self._next_level()
            self._rounds.full = -2  # the last round does not count as full, because a pace may leave some places free

    def _consider_trial(self, count: _Count) -> None:
        """Try a lower limit if a round has more refusals than chance explains."""
        if count.exceeds(self._tolerated if self._ramping else self._random):
            self._try_less(1.0 if self._ramping else _GENTLE_CUT)

    def _start_over(self) -> None:
        """Start again with one request, because all requests are refused, as happens beyond a limit per minute."""
        self._limit = self._search.proven = 1.0
        self._resize(1.0)
        self._ramping, self._trial, self._search.found = True, None, 0.0
        self._next_level()

    def _widen(self, by: float) -> None:
        self._limit = min(self._most, self._limit + by)
        self._resize(min(self._limit, self._size + by))
        self._level = _Count(self._rounds.number + 1)
        if self._limit > 2 * self._search.found:
            self._ramping = True

    def _resize(self, size: float) -> None:
        self._size, whole = size, int(size + 1e-9)
        if whole != self.size:
            self.size = whole
            self.resized()

    def _next_level(self) -> None:
        """Reset the counts after a decision on the refusals so far."""
        self._rounds.begin(forget=True)
        self._level = _Count(self._rounds.number)

    def _try_less(self, factor: float) -> None:
        """Try a lower limit for a while, to test whether refusals become rarer."""
        self._trial = _Trial(self._level, self._limit)
        self._limit = max(1.0, self._size * factor)
        self._resize(self._limit)
        self._next_level()

    def _judge(self, trial: _Trial, *, answered: bool) -> None:
        """End the trial when it has shown whether the lower limit helps."""
        now, before = self._level, trial.before
        if now.exceeds(_RANDOM_BELOW, 2):
            return self._try_less(_CUT)
        if now.refused >= 0.6 * _TELLING and now.share >= 0.5 * before.share:
            return self._return_from(trial)
        if not answered:  # wait, because requests sent at the same time may still be refused
            return None
        likely = before.refused / (before.sent + 100)  # a low estimate: the trial began at an unusually high share
        if now.answered < min(_TELLING / max(likely, 1e-9), _TRIAL_LIMITS * self._limit + _TELLING):
            return None
        if now.refused > 0.3 * now.sent * likely:
            return self._return_from(trial) if now.share >= 0.5 * likely else self._try_less(_GENTLE_CUT)
        self._ramping = False
        self._search.found = self._search.proven = self._limit
        return self._begin_rest()

    def _return_from(self, trial: _Trial) -> None:
        self._random = max(self._random, self._level.share)
        self._limit = trial.limit
        self._resize(self._limit)
        self._trial = None
        self._next_level()

    def _begin_rest(self) -> None:
        """Keep the limit for some rounds, then try a slightly higher limit."""
        self._search.step = max(1.0, _FIRST_STEP * self._limit)
        self._search.rest = _REST
        self._trial = None
        self._next_level()

    def _end_round(self, *, may_grow: bool) -> None:
        """Keep the found limit, or raise it. The step doubles after each round without unusual refusals."""
        search, level, expected = self._search, self._level, self._random * self._level.sent
        if search.rest > 0:
            search.rest -= 1
            if expected > _TELLING:
                if level.share < self._random / 1.5:
                    self._random = level.share
                return self._next_level()
        elif level.refused > expected + 2 * math.sqrt(expected):
            self._limit = search.proven
            self._resize(min(self._size, self._limit))
            return self._begin_rest()
        elif may_grow and self._in_use and self.may_grow and self._rounds.number >= level.since + self._rounds.lag:
            if self._limit > search.proven:
                search.step = min(self._limit, 2 * search.step)
            search.proven = self._limit
            self._widen(search.step)
        return self._rounds.begin()


class ThroughputSearch:
    """Sets the bound of `limit`: at first to the limit's present size, and never to more than `most`.

    By Little's law, the answers per second are the requests in flight divided by the seconds per answer. If the server
    reports the tokens of answers, tokens are counted instead of answers, so that lengths do not matter.
    """

    def __init__(self, limit: AdaptiveLimit, most: int) -> None:
        self._limit = limit
        self._most = most
        self._doubling = True
        self._base: tuple[float, float] | None = None  # the best level so far: (in flight, answered per second)
        self._step = _STEP
        self._rest = 0  # the number of measurements before the next higher bound is tried
        self._rests = 2
        self._begin(limit.size)

    def answered(self, round_number: int, in_flight: int, answer_s: float, tokens: int) -> None:
        """Count an answer that arrived while `in_flight` requests, including its own, were in flight.

        `round_number`: the result of `AdaptiveLimit.taken`. `tokens`: 0 if the server does not report them.
        """
        if round_number < self._since:
            return
        self._answers += 1
        self._in_flight += in_flight
        self._seconds += answer_s
        self._tokens += tokens or 1
        if self._answers >= max(_FEWEST_ANSWERS, self._limit.most):
            self._decide()

    def waits(self, waiting: float, in_flight: int) -> None:
        """Report that `waiting` requests of any client wait in the server. `in_flight`: our requests in flight."""
        if waiting > 0.05 * in_flight:
            self._doubling = False
            self._base = None
            self._step = _STEP
            self._begin(min(self._limit.most, max(in_flight / 2, in_flight - waiting)))

    def _begin(self, most: float) -> None:
        self._limit.most = max(1, min(self._most, round(most)))
        self._since = self._limit.round_number
        self._answers = self._in_flight = self._tokens = 0
        self._seconds = 0.0

    def _decide(self) -> None:
        level = self._in_flight / self._answers
        if level < _BUSY * self._limit.most or self._seconds <= 0:  # too few requests for a conclusion
            return self._begin(self._limit.most)
        rate = level * self._tokens / self._seconds
        if self._base is None or self._rest:
            self._rest = max(0, self._rest - 1)
            self._base = level, rate
            return self._begin(self._limit.most if self._rest else self._wider(level))
        base_level, base_rate = self._base
        if level <= base_level:
            self._base = level, rate
            return self._begin(self._wider(level))
        gain = (rate / base_rate - 1) / (level / base_level - 1)
        if gain >= (_PAYS if self._doubling else _PAYS_STILL):
            self._base = level, rate
            self._step = min(1.0, 2 * self._step)
            self._rests = 2
            return self._begin(self._wider(level))
        if self._doubling:  # return to the number that would reach this rate with requests as fast as at the base
            self._doubling = False
            self._base = None
            return self._begin(max(base_level, min(level, base_level * rate / base_rate)))
        self._step = _STEP
        self._rest = self._rests
        self._rests = min(_LONGEST_REST, 2 * self._rests)
        return self._begin(base_level)

    def _wider(self, level: float) -> float:
        return 2 * level if self._doubling else max(level + 1, level * (1 + self._step))


def waiting_in(page: bytes) -> float | None:
    """Return the number of waiting requests that a metrics page reports; None if it reports none."""
    numbers = _WAITING.findall(page)
    try:
        return sum(map(float, numbers)) if numbers else None
    except ValueError:
        return None
