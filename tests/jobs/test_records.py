from __future__ import annotations

import random

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.jobs.store.records import JobCounts
from promptmill.jobs.store.spec import FailureLimit


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


@pytest.mark.parametrize(
    ("text", "failed", "settled", "exceeded"),
    [
        ("0", 1, 1, True),
        ("5", 5, 5, False),
        ("5", 6, 1000, True),
        ("10%", 2, 2, False),  # too few to say
        ("10%", 2, 20, False),
        ("10%", 3, 20, True),
        ("2.5%", 3, 100, True),
    ],
)
def test_a_limit_of_failures_is_a_number_or_a_share(text: str, failed: int, settled: int, exceeded: bool) -> None:
    assert FailureLimit.parse(text).exceeded(failed, settled) is exceeded


@pytest.mark.parametrize("text", ["", "x", "-1", "5 %%", "101%", "1.5"])
def test_a_limit_of_failures_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(PromptmillError, match="neither a number nor a share"):
        FailureLimit.parse(text)
