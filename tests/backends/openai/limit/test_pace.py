"""The pace at endpoints that count requests per time: its speed, and the refusals it causes, in simulated time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest

from promptmill.backends.openai.limit.pace import Pace
from simulation import Bucket, Call, Endpoint, Fixed, PacedCall, Rate, Sliding

SEEDS = range(3)


def run(seconds: int, per_s: float, make: Callable[[int], Endpoint], seed: int = 1, **options: int) -> PacedCall:
    """Return the finished call of so many prompts that an endpoint accepts in `seconds`."""
    call = PacedCall(round(seconds * per_s), make(seed), seed=seed, **options)
    call.run()
    return call


RATES: dict[str, tuple[float, Callable[[], Rate], float, float | None]] = {
    "120 in a sliding second": (120, lambda: Sliding(120, 1.0), 0.4, None),
    "120 in a sliding second, asking for 1 s": (120, lambda: Sliding(120, 1.0), 0.4, 1.0),
    "30 in a sliding second, answers of 1 s": (30, lambda: Sliding(30, 1.0), 1.0, 1.0),
    "60 in a sliding second, answers of 2 s": (60, lambda: Sliding(60, 1.0), 2.0, None),
    "120 in a second of the clock": (120, lambda: Fixed(120, 1.0), 0.4, None),
    "a bucket of 120 per second": (120, lambda: Bucket(120, 120), 0.4, None),
    "a bucket of 30 per second, answers of 5 s": (30, lambda: Bucket(30, 30), 5.0, 1.0),
    "a bucket of 250 per second": (250, lambda: Bucket(250, 125), 0.8, None),
}


@pytest.mark.parametrize(("per_s", "rate", "delay_s", "asked_s"), RATES.values(), ids=RATES)
def test_a_limit_per_second_is_found_with_few_refusals(per_s, rate, delay_s, asked_s):
    calls = [
        run(60, per_s, lambda seed: Endpoint(delay_s, rate=rate(), asked_s=asked_s, seed=seed), seed) for seed in SEEDS
    ]
    assert statistics.median(60 / call.now for call in calls) >= 0.85
    assert max(call.now for call in calls) <= 60 / 0.75
    assert statistics.median(call.late_share() for call in calls) <= 0.1


def test_a_limit_below_one_request_at_a_time_is_found():
    call = run(60, 5, lambda seed: Endpoint(0.05, rate=Bucket(5, 1), asked_s=1.0, seed=seed))
    assert 60 / call.now >= 0.4


@pytest.mark.parametrize("window_s", [10.0, 60.0])
def test_a_window_that_is_used_up_is_asked_seldom_and_paced_when_it_opens(window_s):
    call = run(180, 30, lambda seed: Endpoint(0.4, rate=Fixed(30, window_s), seed=seed))
    assert 180 / call.now >= 0.85
    assert call.late_share(2 * window_s) <= 0.15


@pytest.mark.parametrize("seed", SEEDS)
def test_a_limit_per_second_beside_random_refusals_keeps_the_rate(seed):
    call = run(60, 30, lambda seed: Endpoint(1.0, rate=Bucket(30, 30), refused=0.1, seed=seed), seed)
    assert 60 / call.now >= 0.85


@pytest.mark.parametrize("refused", [0.02, 0.1])
def test_random_refusals_end_the_pace(refused):
    call = PacedCall(8000, Endpoint(1.0, refused=refused), concurrency=256)
    assert 8000 / 256 / call.run() >= 0.85
    assert call.state.pace.rate == math.inf


@pytest.mark.parametrize("limit", [4, 40, 200])
def test_a_limit_of_requests_at_a_time_gets_no_pace(limit):
    call = PacedCall(40 * limit, Endpoint(1.0, limit=limit))
    assert 40 / call.run() >= 0.9
    assert call.state.pace.rate == math.inf
    assert call.late_share() <= 0.05


def test_a_limit_per_second_that_rises_is_followed():
    bucket = Bucket(12, 12)
    call = PacedCall(7200, Endpoint(0.4, rate=bucket))
    call.at(30, setattr, bucket, "per_s", 120)
    call.at(30, setattr, bucket, "burst", 120)
    assert (30 + (7200 - 360) / 120) / call.run() >= 0.8


def test_two_jobs_at_one_endpoint_share_its_rate():
    endpoint = Endpoint(0.5, rate=Sliding(100, 1.0))
    first, second = PacedCall(10_000, endpoint), PacedCall(10_000, endpoint, seed=2)
    Call.run_together(60, first, second)
    assert first.done + second.done >= 0.8 * 60 * 100
    assert min(first.done, second.done) >= 0.15 * (first.done + second.done)


def test_a_job_that_begins_at_a_known_pace_sends_no_burst():
    call = PacedCall(3600, Endpoint(0.4, rate=Sliding(120, 1.0)))
    call.run()
    before = call.refusals
    call.go_on(1200)
    assert call.refusals - before <= 0.05 * 1200


def test_a_pace_that_holds_nothing_back_ends():
    call = PacedCall(1800, Endpoint(0.4, rate=Sliding(120, 1.0)))
    call.run()
    pace, serial, now = call.state.pace, call.state.load.sent, call.now
    assert pace.rate < math.inf
    for _ in range(1000):
        serial, now = serial + 1, now + 0.1
        pace.taken(serial, 64, now, is_idle=False)
        pace.answered(1, now)
    assert pace.rate == math.inf


def test_a_burst_of_refusals_that_recurs_restores_the_limit_once():
    restored: list[int] = []
    pace = Pace(restored.append)
    for second in range(3):
        for number in range(1, 101):
            pace.taken(100 * second + number, 64, second, is_idle=number == 1)
        for number in range(61, 101):
            pace.refused(100 * second + number, 50, second, newest=100 * second + 100, size=64, now=second + 0.02)
        pace.answered(64, second + 0.5)
    pace.taken(301, 64, 3.5, is_idle=False)
    assert restored == [64]
    assert 55 <= pace.rate <= 65


def test_without_adaptation_there_is_no_pace():
    pace = Pace(lambda size: None, adaptive=False)
    for number in range(1, 1000):
        pace.taken(number, 64, number / 100, is_idle=False)
        pace.refused(number, 1, number / 100, newest=number, size=64, now=number / 100)
    assert (pace.rate, pace.wait_s(20.0)) == (math.inf, 0.0)
