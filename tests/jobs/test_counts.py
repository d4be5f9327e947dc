"""Counts of a job's rows."""

import random

import pytest

from promptmill.backends.protocol import Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.counts import JobCounts


def test_latencies_are_within_four_percent():
    counts, chance = JobCounts(), random.Random(3)
    seconds = sorted(chance.lognormvariate(0, 2) for _ in range(5000))
    for one in seconds:
        counts.latencies.count(one)
    for share in (0.5, 0.95, 0.99):
        assert counts.latencies.quantile(share) == pytest.approx(seconds[int(share * 5000) - 1], rel=0.04)


def test_latencies_of_any_size_are_counted():
    counts = JobCounts()
    assert counts.latencies.quantile(0.5) is None
    for one in (1e-9, 1e9):
        counts.latencies.count(one)
    assert counts.latencies.quantile(0.5) == pytest.approx(0.001, rel=0.05)
    assert (counts.latencies.quantile(1.0) or 0) > 10_000


def test_counts_add_up():
    one, other = JobCounts(), JobCounts()
    for counts, code in ((one, Code.TIMEOUT), (other, Code.TIMEOUT), (other, Code.BAD_REQUEST)):
        counts.count(Failure(PromptmillError(code, "No.")))
    other.prompt_tokens = 5
    one.add(other)
    assert (one.done, one.codes, one.prompt_tokens) == (3, {"timeout": 2, "bad_request": 1}, 5)
