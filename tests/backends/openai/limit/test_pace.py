"""The pace at endpoints that count requests per time: its speed, and the refusals it causes, in simulated time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest

from promptmill.backends.openai.limit import pace
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


# ---- one cut


def cut(accepted: int, seconds: float, share: float = 0.1, **before: float) -> Pace:
    """Return a pace after a cut, whose endpoint accepted `accepted` requests in the `seconds` before its last refusal.

    `share`: the share of refusals. `before`: fields of the pace, without their underscores.
    """
    restored: list[int] = []
    made = Pace(restored.append)
    for name, value in before.items():
        setattr(made, name if name == "rate" else f"_{name}", value)
    made._exhausted, made._before = pace._Since(0, 0.0), pace._Period(-10.0, 0, 64)
    made._period = pace._Period(0.0, 0, 32, sent=accepted, last=(accepted, seconds))
    made._cut(share, seconds)
    assert restored == ([64] if math.isfinite(made.rate) and "rate" not in before else [])
    return made


def test_the_first_cut_is_to_the_rate_of_accepted_requests():
    found = cut(200, 2.0)
    assert found.rate == found._cut_to == pace._CUT * 100
    assert (found._cut_from, found._cuts, found._share) == (math.inf, 1, 0.1)
    assert (found._step, found._resting) == (pace._STEP, 1)
    assert found.wait_s(2.0) == pytest.approx(1 / found.rate), "no credit is left"
    assert (found._exhausted.serial, found._exhausted.at) == (200, 2.0)


@pytest.mark.parametrize(
    ("accepted", "seconds", "is_cut"),
    [
        (pace._A_RUN, 1.0, True),
        (pace._A_RUN - 1, 1.0, False),
        (100, pace._PERIOD_S / 4, True),
        (100, pace._PERIOD_S / 5, False),
    ],
)
def test_an_endpoint_that_accepts_nothing_yet_gets_no_pace(accepted, seconds, is_cut):
    assert (cut(accepted, seconds).rate < math.inf) is is_cut


@pytest.mark.parametrize(
    ("accepted", "rate", "step", "resting"),
    [
        (90, pace._CUT * 90, pace._STEP, 2),
        (150, 100.0, pace._STEP, 2),
        (80, pace._CUT * 80, pace._LARGE_STEP, 1),
    ],
    ids=["near", "above", "far below"],
)
def test_a_pace_far_above_the_accepted_rate_rises_fast_again(accepted, rate, step, resting):
    found = cut(accepted, 1.0, rate=100.0, rest=2, cut_to=100.0)
    assert (found.rate, found._cut_from, found._cut_to) == (rate, 100.0, rate)
    assert (found._step, found._resting, found._rest) == (step, resting, 4)


def test_the_rest_after_a_cut_grows_to_its_bound_and_begins_again_where_the_limit_rose():
    assert cut(90, 1.0, rate=100.0, rest=pace._LONGEST_REST)._rest == pace._LONGEST_REST
    risen = cut(90, 1.0, rate=100.0, rest=pace._LONGEST_REST, cut_to=76.0)
    assert (risen._resting, risen._rest) == (1, 2)
    equal = cut(90, 1.0, rate=130.0, rest=pace._LONGEST_REST, cut_to=100.0)
    assert equal._rest == pace._LONGEST_REST


@pytest.mark.parametrize(("lower", "rate"), [(80.0, 100.0), (140.0, 110.0), (20.0, 70.0), (0.0, 60.0)])
def test_a_cut_after_a_step_looks_at_the_present_period_too(lower, rate):
    """The endpoint accepted 60 a second since the last refusals, and 110 in the present period."""
    found = Pace(lambda _: None)
    found.rate, found._lower, found._exhausted = 120.0, lower, pace._Since(0, 0.0)
    found._period = pace._Period(3.5, 180, 32, sent=60, refused=5, last=(240, 4.0))
    found._cut(0.1, 4.0)
    assert found.rate == pytest.approx(pace._CUT * rate)
    assert found._lower is None


@pytest.mark.parametrize(
    ("share", "earlier", "cuts", "cuts_after", "random"),
    [
        (0.2, 0.1, 2, 0, 0.15),
        (0.5, 0.4, 2, 3, 0.0),
        (0.45, 0.4, 2, 0, pace._MOST_RANDOM),
        (0.03, 0.1, 2, 1, 0.0),
        (0.2, 0.1, 1, 2, 0.0),
        (0.03, 0.1, 1, 1, 0.0),
    ],
    ids=["similar", "half", "many", "fewer", "second", "second, fewer"],
)
def test_as_many_refusals_at_the_third_cut_are_random(share, earlier, cuts, cuts_after, random):
    found = Pace(lambda _: None)
    found.rate, found._cuts, found._share, found._exhausted = 100.0, cuts, earlier, pace._Since(0, 0.0)
    found._period = pace._Period(0.0, 0, 32, sent=90, last=(90, 1.0))
    found._cut(share, 1.0)
    assert found._cuts == cuts_after
    assert found._random == pytest.approx(random)
    assert (found.rate == math.inf) is bool(random)


def test_after_a_stop_the_periods_are_half_as_long_as_it():
    stopped = cut(90, 1.0, rate=100.0, stop_s=60.0)
    assert (stopped._period_s, stopped._stop_s) == (30.0, 0.0)
    assert cut(90, 1.0, rate=100.0, stop_s=0.1)._period_s == pace._PERIOD_S
