"""Counts of a job's rows, and the histogram of their latencies."""

from __future__ import annotations

import math
from typing import cast

from promptmill.backends.protocol import COUNTERS, Counts, Failure, Outcome
from promptmill.core.errors import Code
from promptmill.jobs.store.status_record import RunStatus

_STEP = math.log(1.04)
_SHORTEST_S = 0.001
_STEPS = 450  # the last step is 13 hours
_SAMPLED = 8


class Latencies:
    """A histogram of the latencies of answers, in steps of 4 % from 1 ms."""

    def __init__(self) -> None:
        self._steps = [0] * _STEPS
        self._unsampled = 0

    def count(self, latency_s: float) -> None:
        """Count the latency of an answer."""
        if latency_s > _SHORTEST_S:
            self._steps[min(_STEPS - 1, int(math.log(latency_s / _SHORTEST_S) / _STEP))] += 1
        elif latency_s:  # 0 for a copy of another answer, which is not counted
            self._steps[0] += 1

    def sample(self, latency_s: float) -> None:
        """Count every eighth latency, which is enough while a job runs. At its end all latencies are counted."""
        self._unsampled += 1
        if self._unsampled == _SAMPLED:
            self._unsampled = 0
            self.count(latency_s)

    def add(self, other: Latencies) -> None:
        """Add the latencies that `other` has counted."""
        self._steps = [mine + its for mine, its in zip(self._steps, other._steps, strict=True)]

    def quantile(self, share: float) -> float | None:
        """Return the latency at quantile `share` (0 to 1), within 4 %; None without answers."""
        total = sum(self._steps)
        if not total:
            return None
        wanted, seen = math.ceil(share * total), 0
        for step, count in enumerate(self._steps):
            seen += count
            if seen >= wanted:
                return round(_SHORTEST_S * math.exp((step + 0.5) * _STEP), 4)
        return None


class JobCounts:
    """Counts of rows with an outcome, failures by code, requests, tokens, and latencies of answers."""

    def __init__(self, *, skips_empty: bool = False) -> None:
        """`skips_empty`: rows with an empty prompt are skipped, not failed."""
        self.skips_empty = skips_empty
        self.skipped = 0
        """Rows with an empty prompt that are skipped."""
        self.done = 0
        self.truncated = 0
        """Answers that `max_tokens` cut short."""
        self.empty = 0
        """Answers without text that call no tool."""
        self.requests = 0
        self.retries = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        """Prompt tokens that came from the provider's own cache."""
        self._codes: dict[str, int] = {}
        self.latencies = Latencies()

    @property
    def failed(self) -> int:
        """The number of rows that failed."""
        return sum(tuple(self._codes.values()))

    @property
    def answered(self) -> int:
        """The number of rows with an answer."""
        return self.done - self.failed - self.skipped

    def skips(self, code: str) -> bool:
        """Return whether rows with this error code are skipped."""
        return self.skips_empty and code == Code.EMPTY_PROMPT

    def count(self, outcome: Outcome) -> None:
        """Count the outcome of a row of this run. (A `Call` counts its requests and tokens.)"""
        self.done += 1
        if isinstance(outcome, Failure):
            self.fail(str(outcome.error.code))
            return
        self.latencies.sample(outcome.latency_s)
        self.truncated += outcome.finish_reason == "length"
        self.empty += outcome.is_empty

    def fail(self, code: str, count: int = 1) -> None:
        """Count `count` failures with `code`."""
        if self.skips(code):
            self.skipped += count
            return
        self._codes[code] = self._codes.get(code, 0) + count

    def add(self, other: JobCounts) -> None:
        """Add the counts of `other`."""
        for name in ("done", "skipped", "truncated", "empty", *COUNTERS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.codes.items():
            self.fail(code, count)
        self.latencies.add(other.latencies)

    def replace(self, found: JobCounts) -> None:
        """Take the counts of rows from `found`; keep the counts of requests and tokens."""
        self.done, self.skipped, self._codes = found.done, found.skipped, found.codes
        self.truncated, self.empty = found.truncated, found.empty

    @property
    def codes(self) -> dict[str, int]:
        """Failures by code, the most frequent first."""
        found = tuple(self._codes.items())  # a copy, because a thread may be counting
        return dict(sorted(found, key=lambda item: (-item[1], item[0])))

    def as_dict(self, run: Counts) -> RunStatus:
        """Return the counts for people and programs, with the counts of the present `run`."""
        counts = {
            "done": self.done,
            "answered": self.answered,
            "failed": self.failed,
            "errors": self.codes,
            **({"skipped": self.skipped} if self.skipped else {}),
            "truncated": self.truncated,
            **({"empty": self.empty} if self.empty else {}),
            **{name: getattr(self, name) + getattr(run, name) for name in COUNTERS},
            "latency_s": {
                name: self.latencies.quantile(share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
            },
        }
        return cast("RunStatus", counts)
