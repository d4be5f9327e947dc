"""Counts of a job's rows."""

from __future__ import annotations

import random

import pytest

from promptmill.backends.protocol import Completion, Counts, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.counts import JobCounts


def test_latencies_are_within_four_percent() -> None:
    counts, chance = JobCounts(), random.Random(3)
    seconds = sorted(chance.lognormvariate(0, 2) for _ in range(5000))
    for one in seconds:
        counts.latencies.count(one)
    for share in (0.5, 0.95, 0.99):
        assert counts.latencies.quantile(share) == pytest.approx(seconds[int(share * 5000) - 1], rel=0.04)


def test_latencies_of_any_size_are_counted() -> None:
    counts = JobCounts()
    assert counts.latencies.quantile(0.5) is None
    for one in (1e-9, 1e9):
        counts.latencies.count(one)
    assert counts.latencies.quantile(0.5) == pytest.approx(0.001, rel=0.05)
    assert (counts.latencies.quantile(1.0) or 0) > 10_000


def test_a_row_that_asks_nothing_is_left_out_or_fails() -> None:
    for skips_empty, skipped, failed in ((True, 1, 0), (False, 0, 1)):
        counts = JobCounts(skips_empty=skips_empty)
        counts.count(Failure(PromptmillError(Code.EMPTY_PROMPT, "It is empty.")))
        counts.count(Completion("a", "length"))
        counts.count(Completion(" "))
        assert (counts.done, counts.skipped, counts.failed, counts.answered) == (3, skipped, failed, 2)
        assert (counts.truncated, counts.empty) == (1, 1)
        assert counts.as_dict(Counts()).get("skipped", 0) == skipped


def test_counts_add_up() -> None:
    one, other = JobCounts(), JobCounts()
    for counts, code in ((one, Code.TIMEOUT), (other, Code.TIMEOUT), (other, Code.BAD_REQUEST)):
        counts.count(Failure(PromptmillError(code, "No.")))
    other.prompt_tokens = 5
    one.add(other)
    assert (one.done, one.codes, one.prompt_tokens) == (3, {"timeout": 2, "bad_request": 1}, 5)
