"""Buckets that are a part of a larger one; tests/backends/openai has whole ones at work."""

from __future__ import annotations

import pytest

from promptmill.backends.openai.limit.limiter import TokenBucket


def let_through(bucket: TokenBucket, start: float, seconds: float) -> int:
    count, now = 0, start
    while now < start + seconds:
        if wait := bucket.wait_s(now):
            now += wait
            continue
        bucket.take(1)
        count += 1
    return count


def test_a_part_lets_through_its_part_and_the_whole_again_when_it_comes_back() -> None:
    bucket = TokenBucket(600, 0)
    bucket.lease(0.25, 0)
    assert let_through(bucket, 0, 60) == pytest.approx(150, abs=2)
    bucket.lease(1, 60)
    assert let_through(bucket, 60, 60) == pytest.approx(600, abs=2)


def test_parts_together_begin_with_no_more_than_the_whole_would() -> None:
    parts = [TokenBucket(60, 0) for _ in range(4)]
    for bucket in parts:
        bucket.lease(0.25, 0)
    assert sum(let_through(bucket, 0, 0.01) for bucket in parts) <= 1
