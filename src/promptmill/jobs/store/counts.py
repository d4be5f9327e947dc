"""Counts of a job's rows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from promptmill.backends.protocol import COUNTERS, Counts, Failure, Outcome
from promptmill.core.errors import Code
from promptmill.jobs.store.status_record import RunStatus

LATENCIES = 4096
"""The latencies that are kept: enough for quantiles, and sorted within a millisecond."""


@dataclass(slots=True)
class JobCounts(Counts):
    """Counts of rows with an outcome, and of the requests of earlier runs."""

    skips_empty: bool = False
    """Whether rows with an empty prompt are skipped, not failed."""
    skipped: int = 0
    truncated: int = 0
    """Answers that `max_tokens` cut short."""
    empty: int = 0
    """Answers without text that call no tool."""
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    """The latencies of the last answers, in seconds."""

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
        if outcome.latency_s:  # a copy of another answer took no time
            self.latencies.append(outcome.latency_s)
        self.truncated += outcome.finish_reason == "length"
        self.empty += outcome.is_empty

    def fail(self, code: str, count: int = 1) -> None:
        """Count failures with `code`, which may be skipped rows."""
        if self.skips(code):
            self.skipped += count
        else:
            self.codes[code] = self.codes.get(code, 0) + count

    def add(self, other: JobCounts) -> None:
        """Add the counts of `other`."""
        for name in ("done", "skipped", "truncated", "empty", *COUNTERS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.codes.items():
            self.fail(code, count)
        self.latencies.extend(other.latencies)

    def as_dict(self, run: Counts) -> RunStatus:
        """Return the counts for people and programs, with the counts of the present `run`."""
        codes, seconds = tuple(self.codes.items()), sorted(self.latencies)
        counts = {
            "done": self.done,
            "answered": self.answered,
            "failed": self.failed,
            "errors": dict(sorted(codes, key=lambda item: (-item[1], item[0]))),
            **({"skipped": self.skipped} if self.skipped else {}),
            "truncated": self.truncated,
            **({"empty": self.empty} if self.empty else {}),
            **{name: getattr(self, name) + getattr(run, name) for name in COUNTERS},
            "latency_s": {f"p{percent}": quantile(seconds, percent) for percent in (50, 95, 99)},
        }
        return cast("RunStatus", counts)


def quantile(ordered: Sequence[float], percent: int) -> float | None:
    """Return the value that `percent` of the `ordered` values do not exceed; None without values.

    >>> quantile([0.1, 0.2, 0.3, 0.4], 50)
    0.2
    """
    return round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 4) if ordered else None
