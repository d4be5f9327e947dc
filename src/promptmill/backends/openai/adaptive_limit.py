"""Adaptive concurrency limit of one endpoint.

Doubles per round trip until refusals come more often than an endpoint's everyday ones do. Then it holds still at what
the endpoint took: if refusals stop, the endpoint's own limit is found, and from then on a little more is tried now and
then; if they go on at the same rate, they have nothing to do with what is in flight, and the limit grows again.

Each refusal closes one place at once and answers reopen closed places, so nothing storms while that is being decided.
The doubling at the start is TCP's slow start (V. Jacobson, 1988). That a lower limit must be seen to help before it
is believed is what keeps random refusals, which shared providers give, from costing speed.
"""

from __future__ import annotations

import math
from collections import deque

# A refusal comes at once, an answer after seconds: places that were taken this long ago without a refusal are granted.
QUIET_S = 0.2
_START = 64
# While the limit doubles, this share of refusals is borne before it is asked what they come from …
_BORNE = 0.1
# … and beyond this share they are never taken for everyday ones.
_MOST_EVERYDAY = 0.2
_CUT = 0.85
_GENTLE_CUT = 0.95
# A trial is over when the share of before would have brought this many refusals, or after so many limits' worth
# of answers.
_TELLING = 8
_TRIAL_LIMITS = 4
_LONGEST_REST = 32
_KEPT_ROUNDS = 8
_FIRST_STEP = 0.02


class _Count:
    """Requests sent in one round or trial, and how many of them were answered or refused."""

    __slots__ = ("answered", "refused", "sent")

    def __init__(self) -> None:
        self.sent = self.refused = self.answered = 0

    @property
    def share(self) -> float:
        """The share of refusals."""
        return self.refused / self.sent if self.sent else 0.0

    def exceeds(self, share: float, deviations: float = 3.0) -> bool:
        """Return whether there are more refusals than `share` explains, by so many standard deviations."""
        expected = share * self.sent
        return self.refused > expected + deviations * math.sqrt(expected + 1)


class AdaptiveLimit:
    """The most requests in flight to one endpoint.

    A *round* ends with the answer to a request that was sent in it, or when it stays quiet. Requests carry the number
    of their round (`taken`), so that what comes of them is counted where they were sent.
    """

    def __init__(self, most: int, *, adaptive: bool = True) -> None:
        """`most` is the configured bound; without `adaptive` the limit stays there."""
        self._most = most
        self._adaptive = adaptive
        self._limit = float(min(most, _START) if adaptive else most)
        self._size = self._limit  # the limit less the places that refusals closed
        self._proven = self._limit  # the last limit at which nothing was amiss
        self._found = 0.0  # the endpoint's own limit; 0: none was met
        self._ramping = adaptive
        self._everyday = 0.0  # the share of refusals that what is in flight does not bring about
        self.round_number = 0
        self._used = -2  # the last round in which all places were taken
        self._rounds = deque([_Count()], _KEPT_ROUNDS)
        self._lag = 0  # rounds that ended before a refusal of a request of theirs came
        self._level, self._level_from = _Count(), 0  # all since the limit was last changed
        self._trial: _Count | None = None  # what led to it
        self._trial_limit = self._limit  # where to return to
        self._trial_from = 0
        self._in_a_row = 0  # refusals without an answer between
        self._step = 1.0
        self._rest = 0  # rounds before the next try
        self._rests = 2

    @property
    def size(self) -> int:
        """Requests that may be in flight now; at least 1."""
        return int(self._size + 1e-9)

    @property
    def most(self) -> int:
        """The upper bound of the limit; may be changed at any time."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        untroubled = self._trial is None and not self._found and self._limit == self._most
        self._most = most
        self._limit = float(most) if untroubled or not self._adaptive else min(self._limit, most)
        self._size = self._proven = self._limit
        self._next_level()

    @property
    def may_grow(self) -> bool:
        """Whether it is below its bound and allowed to change."""
        return self._adaptive and self._limit < self._most

    @property
    def may_double(self) -> bool:
        """Whether `stayed_quiet` may raise it."""
        return self._ramping and self._trial is None and self._limit < self._most and self._in_a_row < _TELLING

    @property
    def _in_use(self) -> bool:
        return self._used >= self.round_number - 1

    def taken(self, in_flight: int) -> int:
        """Count a request that is sent as the `in_flight`th; return the number of its round."""
        if self._adaptive:
            self._rounds[-1].sent += 1
            self._level.sent += self.round_number >= self._level_from
            if in_flight >= 0.9 * self._size:
                self._used = self.round_number
        return self.round_number

    def stayed_quiet(self, round_number: int) -> None:
        """Note that all places have been taken since `round_number` for `QUIET_S` without an end of that round."""
        if self.may_double and round_number == self.round_number and not self._rounds[-1].exceeds(self._borne):
            self._widen(self._limit)
            self._next_round()

    def accepted(self, round_number: int, *, may_grow: bool = True) -> None:
        """Count an answer. Without `may_grow`, more in flight would not help."""
        if not self._adaptive:
            return
        self._in_a_row = 0
        if may_grow and self.may_double and self._in_use:
            self._widen(1)  # one more per answer doubles the limit per round trip
        if self._size < self._limit:
            closed = self._limit - self._size
            self._size += min(closed, 2 * closed / self._limit + self._everyday)
        if self._trial is not None and round_number >= self._level_from:
            self._level.answered += 1
        if round_number == self.round_number and self._rounds[-1].sent >= 0.5 * self._size:
            if self._trial is not None:
                self._judge(answered=True)
            elif self._ramping:
                self._next_round()
            else:
                self._round_over(may_grow=may_grow)

    def refused(self, round_number: int) -> None:
        """Count a refusal of a request of `round_number`."""
        if not self._adaptive:
            return None
        self._size = max(1.0, self._size - 1)
        self._in_a_row += 1
        if self._size == 1.0 < self._limit and self._in_a_row >= _TELLING:
            return self._start_over()
        if round_number >= self._level_from:
            self._level.refused += 1
        elif self._trial is not None:  # sent before the trial: part of what led to it
            self._limit = min(self._limit, self._size)
            self._trial.refused += round_number >= self._trial_from
            return None
        if self._trial is not None:
            return self._judge(answered=False)
        age = self.round_number - round_number
        if age >= len(self._rounds):
            return None
        self._lag = max(self._lag, age)
        count = self._rounds[-1 - age]
        count.refused += 1
        if self._ramping:
            if count.exceeds(self._borne):
                self._try_less(1.0)
            elif self._level.refused >= 2 * _TELLING and self._level.exceeds(self._everyday):
                self._try_less(_CUT)
        elif count.exceeds(self._everyday):
            self._try_less(_GENTLE_CUT)
        return None

    @property
    def _borne(self) -> float:
        return max(self._everyday, _BORNE)

    def _start_over(self) -> None:
        """Begin again with one request: everything is refused, as beyond a limit per minute."""
        self._limit = self._size = self._proven = 1.0
        self._ramping, self._trial, self._found = True, None, 0.0
        self._next_level()

    def _widen(self, by: float) -> None:
        self._limit = min(self._most, self._limit + by)
        self._size = min(self._limit, self._size + by)
        self._level, self._level_from = _Count(), self.round_number + 1
        if self._limit > 2 * self._found:
            self._ramping = True

    def _next_round(self) -> None:
        self.round_number += 1
        self._rounds.append(_Count())

    def _next_level(self) -> None:
        self._rounds.clear()  # what still comes of them has been decided upon
        self._next_round()
        self._level, self._level_from = _Count(), self.round_number

    def _try_less(self, factor: float) -> None:
        """Try a lower limit for a while, to see whether refusals become rarer."""
        self._trial, self._trial_from, self._trial_limit = self._level, self._level_from, self._limit
        self._limit = self._size = max(1.0, self._size * factor)
        self._next_level()

    def _judge(self, *, answered: bool) -> None:
        """End the trial once it has shown whether the lower limit helps."""
        now, before = self._level, self._trial
        assert before is not None
        if now.exceeds(_MOST_EVERYDAY, 2):
            return self._try_less(_CUT)
        if now.refused >= 0.6 * _TELLING and (now.share >= 0.5 * before.share or self._trial_limit <= self._limit):
            return self._found_everyday(now, before)
        if not answered:  # more refusals of what was sent with these may be on their way
            return None
        likely = before.refused / (before.sent + 100)  # it is the highest of many, so somewhat less
        if now.answered < min(_TELLING / max(likely, 1e-9), _TRIAL_LIMITS * self._limit + _TELLING):
            return None
        if now.refused > 0.3 * now.sent * likely:
            return self._found_everyday(now, before) if now.share >= 0.5 * likely else self._try_less(_GENTLE_CUT)
        self._ramping = False
        self._found = self._proven = self._limit
        return self._tire()

    def _found_everyday(self, now: _Count, before: _Count) -> None:
        """Go back to the limit before the trial: the refusals do not depend on it."""
        if before.share <= _MOST_EVERYDAY:
            now.sent += before.sent
            now.refused += before.refused
        self._everyday = max(self._everyday, now.share)
        self._size = self._limit = self._trial_limit
        self._trial = None
        self._next_level()

    def _tire(self) -> None:
        """Rest for longer than the last time, then try a little more."""
        self._step = max(1.0, _FIRST_STEP * self._limit)
        self._rest = self._rests
        self._rests = min(_LONGEST_REST, 2 * self._rests)
        self._trial = None
        self._next_level()

    def _round_over(self, *, may_grow: bool) -> None:
        """Go on near the limit that was found: rest, or raise it, by twice as much after each round that went well."""
        everyday = self._everyday
        if self._rest > 0:
            self._rest -= 1
            if self._level.exceeds(everyday, 2):
                return self._try_less(_CUT)
            if self._level.sent * everyday > _TELLING:
                if self._level.share < everyday / 1.5:
                    self._everyday = self._level.share
                return self._next_level()
        elif self._level.refused > everyday * self._level.sent + 2 * math.sqrt(everyday * self._level.sent):
            self._limit = self._proven
            self._size = min(self._size, self._limit)
            return self._tire()
        elif may_grow and self._in_use and self.may_grow and self.round_number >= self._level_from + self._lag:
            if self._limit > self._proven:
                self._rests = 2
                self._step = min(self._limit, 2 * self._step)
            self._proven = self._limit
            self._widen(self._step)
        return self._next_round()
