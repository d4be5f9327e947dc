"""The pace of requests to an endpoint that accepts a limited number per second or per minute.

`AdaptiveLimit` finds how many requests an endpoint takes at one time. Many endpoints limit requests per period instead.
If one second has more refusals than usual, although as many requests were in flight shortly before, or although the
refused request was alone, the number in flight is not the reason. Then the pace becomes the rate of requests accepted
since the last refusals, and the limit of requests in flight becomes what it was before these refusals. While no request
is refused, the pace rises in steps that double, but a step ends at the pace before the last cut. After a refused step,
the pace is the mean of the last two paces. If two cuts do not change the share of refusals, refusals are random, and
the pace ends. While no request is accepted, each wait is a quarter of the time since the last acceptance, so an
endpoint that is closed for a minute gets some twenty requests. When it opens, the pace becomes the rate since it last
opened. If answers are slow and all places stay taken, refusals cannot recur. So one second after a burst, some requests
beyond the limit are tried. If they are accepted although no place became free, the endpoint limits requests per period.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

_PERIOD_S = 1.0
_FEWEST = 10  # a period with fewer requests cannot be judged
_TOLERATED = 0.03
_TOLERATED_STEP = 0.01  # a smaller share is tolerated after a step to a higher pace, because its refusals are avoidable
# The pace stays below the rate that was found, because the lengths of answers vary and the clocks of both sides differ.
_CUT = 0.97
_STEP, _LARGE_STEP, _LARGEST_STEP = 0.03, 0.12, 0.5
_LONGEST_REST = 4  # the largest number of periods before the next step
_SAVED_S = 0.05  # the requests that the pace allows within this time may be sent together
_MOST_RANDOM = 0.35  # a larger share of refusals is never random
_A_RUN = 4  # refusals in a row
_A_BURST = 8
_LONGEST_STOP_S = 30.0
_LONGEST_PROBE_WAIT_S = 64.0
_UNUSED_S = 60.0


@dataclass(slots=True)
class _Since:
    """Counts the requests accepted between the request `serial`, sent at `at`, and a later request that is refused."""

    serial: int
    at: float
    refused: int = 0

    def accepted(self, serial: int) -> int:
        return serial - self.serial - self.refused


@dataclass(slots=True)
class _Period:
    """The requests sent in a period."""

    began: float
    serial: int
    """The serial of the newest request before the period."""
    size: int
    """The limit of requests in flight at the beginning of the period."""
    sent: int = 0
    refused: int = 0
    unexplained: int = 0
    """The refusals that the number in flight does not explain."""
    is_paced: bool = False
    """Whether the pace held a request back in the period."""
    most: int = 0
    """The largest number in flight when a request that was answered was sent, including this request."""
    last: tuple[int, float] = (0, 0.0)
    """The serial and the time of the newest request that was refused."""

    def rate(self, end: float) -> float:
        """Return the requests accepted per second, if the period ended at `end`."""
        return (self.sent - self.refused) / max(_PERIOD_S, end - self.began)


@dataclass(slots=True)
class _Run:
    """A run of consecutive refusals."""

    serial: int = 0
    at: float = 0.0
    refused: int = 0
    newest: int = 0

    def add(self, serial: int, at: float, unknown: float) -> None:
        """Count a refusal. `unknown`: the number of earlier requests whose refusal may not have arrived yet."""
        if serial - self.newest - 1 > 2 + unknown or self.refused < (serial - self.serial) / 2 - unknown:
            self.serial, self.at, self.refused = serial, at, 0
        self.refused += 1
        self.newest = max(self.newest, serial)


@dataclass(slots=True)
class _Probe:
    """A probe: requests beyond the limit show whether the endpoint accepts what it refused a while ago."""

    due: float = math.inf
    wait_s: float = 1.0
    began: float = 0.0
    size: int = 0
    """The limit during the probe; 0 if no probe runs."""
    most: int = 0
    """The number of requests of the probe."""
    held: int = 0
    """The limit after the burst of refusals."""
    restored: int = 0
    """The limit before the burst of refusals."""
    serials: set[int] = field(default_factory=set)

    def end(self, due: float = math.inf) -> None:
        """End the probe. `due`: the time of the next probe."""
        self.size, self.due = 0, due


class Pace:
    """The limit of requests per second to one endpoint. Times are seconds of one clock; serials number the requests."""

    def __init__(self, restore: Callable[[int], None], *, adaptive: bool = True) -> None:
        """`restore(size)` is called if the number in flight was not the reason for refusals. Without `adaptive`, there
        is never a pace.
        """
        self.rate = math.inf
        self._restore = restore
        self._adaptive = adaptive
        self.is_counting = False
        """Whether requests are counted, which begins at the first refusal."""
        self._credit = self._credit_at = 0.0
        self._stopped_until = self._stop_s = 0.0
        """`_stop_s`: the longest time without an acceptance since the last cut."""
        self._period_s = _PERIOD_S
        self._period = self._before = _Period(-math.inf, 0, 0)
        self._refusal_s = 0.0
        self._random = 0.0
        """The usual share of random refusals."""
        self._exhausted = self._opened = _Since(0, 0.0)
        self._run = _Run()
        self._probe = _Probe()
        self._cuts, self._share, self._cut_from, self._cut_to = 0, 0.0, math.inf, math.inf
        self._step, self._resting, self._rest = _STEP, 0, 1
        self._lower: float | None = None
        """The pace before the present step, until the step is judged."""
        self._last_at = self._held_at = self._refused_at = -math.inf

    @property
    def present(self) -> float:
        """The pace, if it held a request back in the present or the previous period; otherwise 0."""
        return self.rate if self.rate < math.inf and (self._period.is_paced or self._before.is_paced) else 0.0

    def wait_s(self, now: float) -> float:
        """Return the seconds until the pace allows the next request; 0 if it may be sent now."""
        if self.rate == math.inf:
            return 0.0
        saved = self._credit + (now - self._credit_at) * self.rate
        self._credit, self._credit_at = min(max(1.0, _SAVED_S * self.rate), saved), now
        return max(0.0 if self._credit >= 1 - 1e-6 else (1 - self._credit) / self.rate, self._stopped_until - now)

    def holds_back(self, now: float) -> bool:
        """Return whether the pace makes a request wait, although a place is free."""
        if self.wait_s(now) <= 0:
            return False
        self._period.is_paced = True
        return True

    def next_at(self, now: float) -> float:
        """Return the time at which the pace or a probe may allow the next request; 0 if no request is held back."""
        if self.rate < math.inf:
            return now + self.wait_s(now)
        at = self._probed_at if self._probe.size else self._probe.due
        return at if at < math.inf else 0.0

    @property
    def _probed_at(self) -> float:
        """The time at which the present probe succeeds if none of its requests has been refused."""
        return self._probe.began + max(0.2, 2 * self._refusal_s)

    def beyond(self, in_flight: int, size: int, now: float) -> int:
        """Return how many requests may be sent beyond the limit, while all places within the limit are taken."""
        probe = self._probe
        if self.rate < math.inf:
            return 0
        if not probe.size:
            # a probe has an eighth more requests than the burst; if the limit is far lower by now, none is sent
            probe.most = max(0, probe.held - size) + max(1, probe.held // 8)
            return probe.most if now >= probe.due and probe.most <= size else 0
        missing = probe.most - len(probe.serials)
        if missing > 0 and size == probe.size and now < probe.began + _SAVED_S:
            return min(missing, size + probe.most - in_flight)
        if now >= self._probed_at:
            probe.end(now + probe.wait_s if missing > 0 else math.inf)
            if missing <= 0:
                self._restore(min(probe.restored, 2 * size + _A_BURST))
                before, period = self._before, self._period
                rates = (before.rate(period.began), period.rate(now))
                self._set(max(1.0, *rates), now)
                self._step = 2 * _LARGE_STEP
        return 0

    def tried(self, serial: int, size: int, now: float) -> None:
        """Count a request beyond the limit."""
        probe = self._probe
        if not probe.size:
            probe.size, probe.due, probe.serials = size, math.inf, set()
            probe.wait_s = min(_LONGEST_PROBE_WAIT_S, 2 * probe.wait_s)
        probe.began = now
        probe.serials.add(serial)

    def taken(self, serial: int, size: int, now: float, *, is_idle: bool) -> None:
        """Count a request. `is_idle`: no other request is in flight, and the endpoint accepts requests."""
        if is_idle and (not self.is_counting or now - self._last_at > _PERIOD_S + 2 / self.rate):
            self._period = self._before = _Period(now, serial - 1, size)
            self._exhausted, self._opened = _Since(serial - 1, now), _Since(serial - 1, now)
        else:
            self._look(serial - 1, size, now)
        self._last_at = now
        self._period.sent += 1
        if self.rate < math.inf:
            self._credit -= 1

    def answered(self, sent_as: int, now: float) -> None:
        """Count an answer to the request that was the `sent_as`-th in flight."""
        self._last_at = now
        self._period.most = max(self._period.most, sent_as)

    def refused(self, serial: int, sent_as: int, at: float, *, newest: int, size: int, now: float) -> bool:
        """Count a refusal of the request that was sent at `at` as the `sent_as`-th in flight. `newest`: the serial of
        the newest request. Return whether the number in flight may be the reason of the refusal.
        """
        if not self._adaptive:
            return True
        if not self.is_counting:
            self.is_counting = True
            if now - self._period.began > _PERIOD_S:
                self._period = self._before = _Period(now, newest, size)
            self._period.sent = newest - self._period.serial
        self._last_at, self._refused_at = now, at
        self._refusal_s = max(0.9 * self._refusal_s, now - at)
        probe, period, is_free = self._probe, self._period, self.rate == math.inf
        if serial in probe.serials:
            if probe.size:
                probe.end(now + probe.wait_s)
            return False
        for since in (self._exhausted, self._opened):
            since.refused += serial > since.serial
        self._note_run(serial, at, size, now)
        # while the limit falls, refused requests count as in flight a little longer here than at the endpoint
        is_beyond = sent_as > max(1, (0.9 if is_free else 1.0) * max(self._before.most, period.most))
        if serial > period.serial:
            period.refused += 1
            period.unexplained += not (is_free and is_beyond)
            period.last = max(period.last, (serial, at))
        self._look(newest, size, now)
        return is_free or is_beyond

    def _note_run(self, serial: int, at: float, size: int, now: float) -> None:
        run, probe = self._run, self._probe
        unknown = 0.0 if self.rate == math.inf else self._refusal_s * self.rate
        run.add(serial, at, unknown)
        if self.rate < math.inf:
            if run.refused > _A_RUN + 2 * unknown:
                self._stopped_until = at + min(_LONGEST_STOP_S, (at - run.at) / 4)
                self._stop_s = max(self._stop_s, at - run.at)
        elif run.refused > _A_BURST and not probe.size:
            probe.held = size
            if probe.due == math.inf:
                probe.restored = max(self._period.size, self._before.size, size)
                probe.due = now + probe.wait_s

    def resumed(self, serial: int, stop_s: float, now: float) -> None:
        """Report that the endpoint accepts requests again, after `stop_s` seconds in which it accepted none."""
        accepted = self._opened.accepted(serial)
        if stop_s < 2 * _PERIOD_S or accepted <= _A_RUN:
            return
        if self.rate == math.inf:
            self._begin_pace()
        # the endpoint opened after the last refusal, or opens now, after a wait that it requested
        opened_at = self._refused_at if now - self._refused_at <= stop_s / 4 else now
        self._set(accepted / max(_PERIOD_S, opened_at - self._opened.at), now)
        self._step, self._resting, self._rest, self._lower, self._cuts = _STEP, 1, 2, None, 0
        self._period_s, self._stop_s, self._stopped_until = max(_PERIOD_S, stop_s / 3), 0.0, now
        self._cut_to = self.rate
        self._exhausted, self._opened = _Since(serial, now), _Since(serial, now)

    def _is_excess(self, known: float) -> bool:
        """Return whether the period has more refusals than usual. `known`: the share of outcomes that are known."""
        period, random = self._period, self._random
        if period.unexplained < 2:
            return False
        sent, tolerated = period.sent * known, _TOLERATED if self._lower is None else _TOLERATED_STEP
        usual = (tolerated + min(2 * random, random + 0.1)) * sent
        return period.unexplained > usual + 2 * math.sqrt(random * sent)

    def _look(self, serial: int, size: int, now: float) -> None:
        """Judge the period if it has lasted long enough, or if the pace is obviously too high."""
        period = self._period
        lasted_s = now - period.began
        if lasted_s < max(self._period_s, 2 * self._refusal_s) or period.sent < _FEWEST:
            is_plain = period.unexplained >= max(_A_BURST, 0.3 * period.sent) and lasted_s > _PERIOD_S / 4
            if self.rate == math.inf or not is_plain or period.last[1] - self._exhausted.at < _PERIOD_S / 2:
                return
        known = max(0.25, 1 - self._refusal_s / max(1e-9, lasted_s))
        if self._is_excess(known):
            self._cut(min(1.0, period.unexplained / (period.sent * known)), now)
        else:
            self._grow(now)
        period.most = period.most or self._before.most
        self._before, self._period = period, _Period(now, serial, size)

    def _cut(self, share: float, now: float) -> None:
        """Lower the pace to the rate of accepted requests. `share`: the period's share of refusals."""
        period, lower = self._period, self._lower
        (serial, at), since = period.last, self._exhausted
        accepted, seconds = since.accepted(serial), at - since.at
        if accepted < _A_RUN or seconds < _PERIOD_S / 4:  # the endpoint still accepts nothing
            return
        self._exhausted, self._lower = _Since(serial, at), None
        if self._cuts >= 2 and self._share / 3 < share < 0.5:
            self._random = min(_MOST_RANDOM, (share + self._share) / 2)
            self.rate, self._cuts = math.inf, 0
            return
        self._cuts = self._cuts + 1 if share > self._share / 3 else 1
        self._share = share
        if self.rate == math.inf:
            self._begin_pace()
        rate = accepted / seconds
        if lower is not None:  # the endpoint may accept more than before the step, so the period's rate counts, too
            recent = (serial - period.serial - period.refused) / max(1e-9, at - period.began)
            rate = max(rate, min(recent, (lower + self.rate) / 2))
        # a rate far below the pace that was tried may be too low, because no requests were sent for a while
        is_near = rate > 0.8 * self.rate or self.rate == math.inf
        if self.rate > 1.3 * self._cut_to:
            self._rest = 1
        self._cut_from = self.rate if self.rate < math.inf else self._cut_from
        self._set(min(self.rate, _CUT * rate), now)
        self._cut_to = self.rate
        self._step, self._resting = (_STEP, self._rest) if is_near else (_LARGE_STEP, 1)
        self._rest = min(_LONGEST_REST, 2 * self._rest)
        self._period_s, self._stop_s = max(_PERIOD_S, self._stop_s / 2), 0.0

    def _begin_pace(self) -> None:
        self._restore(max(self._period.size, self._before.size, self._probe.restored))
        self._probe.end()

    def _set(self, rate: float, now: float) -> None:
        self.rate, self._credit, self._credit_at, self._held_at = rate, 0.0, now, now

    def _grow(self, now: float) -> None:
        """Raise the pace after a period without unusual refusals, if it held requests back."""
        period = self._period
        if self._lower is not None:  # the step is accepted
            self._cuts, self._share, self._lower = 0, 0.0, None
        if self._random:
            share = min(_MOST_RANDOM if self.rate == math.inf else self._random, period.refused / period.sent)
            self._random += (share - self._random) * min(0.5, period.sent / 2000)
        if period.is_paced:
            self._held_at = now
        elif now - self._held_at > _UNUSED_S:
            self.rate = math.inf
        if self._resting:
            self._resting -= 1
        elif period.is_paced:
            higher, upper = (1 + self._step) * self.rate, self._cut_from
            is_past = not self.rate < upper < higher
            self._lower, self.rate = self.rate, higher if is_past else upper
            self._step = min(_LARGEST_STEP, 2 * self._step) if is_past else self._step
