"""How many requests an endpoint takes at a time, found out by trying.

Doubles until the first refusal, then cuts by a fifth and grows slowly per clean round (additive increase,
multiplicative decrease: D.-M. Chiu and R. Jain, 1989). Only refusals cut: latency follows the length of the answers.
"""

from __future__ import annotations

_START = 16
_CUT = 0.8
_GROWTH = 0.05


class AdaptiveLimit:
    """The most requests in flight to one endpoint.

    A *round* is as many answers as the window is wide. Requests carry the window's `epoch`, so that the refusals of
    requests that were sent together cut only once.
    """

    def __init__(self, limit: int, *, adaptive: bool = True) -> None:
        """`limit` is the configured bound; without `adaptive` the window stays there."""
        self._limit = limit
        self._adaptive = adaptive
        self._size = float(min(limit, _START) if adaptive else limit)
        self._ramping = True
        self._clean = 0
        self.epoch = 0

    @property
    def size(self) -> int:
        """Requests that may be in flight now; at least 1."""
        return max(1, int(self._size))

    @property
    def may_grow(self) -> bool:
        """Whether it is below its bound and allowed to change."""
        return self._adaptive and self._size < self._limit

    def accepted(self, in_flight: int) -> None:
        """Count an answer that came while `in_flight` requests were out; grows only if the window was in use."""
        if not self.may_grow:
            return
        if self._ramping:
            # one more per answer doubles the window per round
            if in_flight >= self.size - 1:
                self._size = min(self._limit, self._size + 1)
            return
        self._clean += 1
        if self._clean >= self._size:
            self._clean = 0
            if in_flight >= 0.8 * self._size:
                self._size = min(self._limit, self._size + max(1.0, self._size * _GROWTH))

    def refused(self, epoch: int) -> None:
        """Count a refusal of a request that was sent in `epoch`."""
        if not self._adaptive or epoch != self.epoch:
            return
        self.epoch += 1
        self._ramping = False
        self._clean = 0
        self._size = max(1.0, self._size * _CUT)
