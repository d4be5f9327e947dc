"""Counts of a whole job, over all its runs, in constant memory."""

from __future__ import annotations

import math
from typing import Any

from promptmill.backends.protocol import CallStats

# Latencies are counted in steps of 4 %, from 1 ms up; the 450th step is 13 hours.
_STEP = math.log(1.04)
_SHORTEST_S = 0.001
_STEPS = 450


class JobCounts:
    """What is settled: rows, failures by code, requests, tokens, latencies of answers."""

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self.truncated = 0
        """Answers that `max_tokens` cut short."""
        self.empty = 0
        """Answers without text that call no tool."""
        self.requests = 0
        self.retries = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._codes: dict[str, int] = {}
        self._latencies = [0] * _STEPS

    def fail(self, code: str, count: int = 1) -> None:
        """Count failures."""
        self.failed += count
        self._codes[code] = self._codes.get(code, 0) + count

    def add(self, other: JobCounts) -> None:
        """Count what `other` has counted as well."""
        for name in ("done", "truncated", "empty", "requests", "retries", "prompt_tokens", "completion_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.codes.items():
            self.fail(code, count)
        self._latencies = [mine + its for mine, its in zip(self._latencies, other._latencies, strict=True)]

    def sample(self, latency_s: float) -> None:
        """Count the latency of an answer."""
        if latency_s:  # a copy of another answer took no time
            self._latencies[_step(latency_s)] += 1

    @property
    def codes(self) -> dict[str, int]:
        """Failures by code, the commonest first."""
        counted = tuple(self._codes.items())  # at once: a thread may be counting
        found = [(code, count) for code, count in counted if count]
        return dict(sorted(found, key=lambda item: (-item[1], item[0])))

    def latency_s(self, share: float) -> float | None:
        """Return the latency that `share` (0 to 1) of the answers did not exceed, within 4 %; None without answers."""
        total = sum(self._latencies)
        if not total:
            return None
        wanted, seen = math.ceil(share * total), 0
        for step, count in enumerate(self._latencies):
            seen += count
            if seen >= wanted:
                return round(_SHORTEST_S * math.exp((step + 0.5) * _STEP), 4)
        return None

    def as_dict(self, stats: CallStats) -> dict[str, Any]:
        """Return the counts for people and programs, with what the present run costs, which `stats` counts."""
        return {
            "done": self.done,
            "failed": self.failed,
            "errors": self.codes,
            "truncated": self.truncated,
            **({"empty": self.empty} if self.empty else {}),
            "requests": self.requests + stats.requests,
            "retries": self.retries + stats.retries,
            "prompt_tokens": self.prompt_tokens + stats.prompt_tokens,
            "completion_tokens": self.completion_tokens + stats.completion_tokens,
            "latency_s": {name: self.latency_s(share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
        }


def _step(latency_s: float) -> int:
    if latency_s <= _SHORTEST_S:
        return 0
    return min(_STEPS - 1, int(math.log(latency_s / _SHORTEST_S) / _STEP))
