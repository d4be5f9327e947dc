"""The rate limits `rpm` and `tpm`: token buckets, which may go into debt."""

from __future__ import annotations

_MOST_DEBT_S = 120


class TokenBucket:
    """Lets through `per_minute` units a minute, at most a quarter of a second's worth at once.

    A taker may overdraw (a long prompt), the next ones then wait until the debt is paid. What goes beyond two minutes'
    worth is forgiven: what an endpoint says it used need not be true.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._full_rate = self._rate = per_minute / 60
        self._most = max(1.0, self._rate / 4)
        self._level = self._most
        self._at = now

    def lease(self, share: float, now: float) -> None:
        """Let through only this part, of 1, from now on; what is saved up shrinks to the same part."""
        self.wait_s(now)
        self._level = min(self._level, max(1.0, self._full_rate / 4) * share)
        self._rate = self._full_rate * share
        self._most = max(1.0, self._rate / 4)

    def wait_s(self, now: float) -> float:
        """Return the seconds until something may be taken; 0: now."""
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        need = min(1.0, self._most) - self._level
        return need / self._rate if need > 1e-9 else 0.0

    def take(self, units: float) -> None:
        """Take `units`; a negative number gives back."""
        self._level = max(self._level - units, -_MOST_DEBT_S * self._rate)


class RateLimits:
    """A bucket for `rpm` and one for `tpm`, each where it is set; a request takes from both."""

    def __init__(self, rpm: float | None, tpm: float | None, now: float) -> None:
        self._requests = TokenBucket(rpm, now) if rpm else None
        self._tokens = TokenBucket(tpm, now) if tpm else None
        self._buckets = [bucket for bucket in (self._requests, self._tokens) if bucket is not None]

    def wait_s(self, now: float) -> float:
        """Return the seconds until another request is allowed; 0: now."""
        return max((bucket.wait_s(now) for bucket in self._buckets), default=0.0)

    def take(self, tokens: int) -> None:
        """Take a request of an estimated number of tokens."""
        if self._requests is not None:
            self._requests.take(1)
        self.settle_tokens(tokens)

    def settle_tokens(self, difference: int) -> None:
        """Take the tokens that a request really used beyond its estimate."""
        if self._tokens is not None:
            self._tokens.take(difference)

    def lease(self, share: float, now: float) -> None:
        """Allow no more than this part, of 1, of both from now on."""
        for bucket in self._buckets:
            bucket.lease(share, now)
