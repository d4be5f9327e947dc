"""The adaptive limit in simulated time: its speed compared with a limit set by hand, and the refusals it causes."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from everyday import everyday
from promptmill.backends.openai.limit.adaptive_limit import AdaptiveLimit
from simulation import Answers, Call, Endpoint, chart

DELAYS_S = [0.05, 2.0, 10.0]
ANSWERS: list[Answers] = ["one by one", "by sixteen", "together"]
SEEDS = range(3)


def seconds(prompts: int, concurrency: int, endpoint: Endpoint, *, adaptive: bool = True, seed: int = 1) -> float:
    return Call(prompts, AdaptiveLimit(concurrency, adaptive=adaptive), endpoint, seed=seed).run()


@pytest.mark.thorough
@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_where_nothing_is_refused_it_is_as_fast_as_a_fixed_window(delay_s, answers):
    prompts, concurrency = (5000, 256) if delay_s == 0.05 else (8000, 512)
    found = seconds(prompts, concurrency, Endpoint(delay_s, answers))
    fixed = seconds(prompts, concurrency, Endpoint(delay_s, answers), adaptive=False)
    assert fixed / found >= 0.9


@pytest.mark.thorough
@pytest.mark.parametrize("delay_s", [2.0, 10.0])
def test_slow_answers_are_not_waited_for_before_it_grows(delay_s):
    assert delay_s * 4 / seconds(500, 128, Endpoint(delay_s)) >= 0.9
    assert delay_s * 3 / seconds(5000, 2048, Endpoint(delay_s)) >= 0.7


@pytest.mark.thorough
@pytest.mark.parametrize(("refused", "target"), [(0.02, 0.9), (0.1, 0.7)])
@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("delay_s", everyday(DELAYS_S, 2.0))
def test_random_refusals_cost_little(delay_s, answers, refused, target):
    prompts = 20_000 if delay_s == 0.05 else 4_000
    none = seconds(prompts, 256, Endpoint(delay_s, answers))
    some = [seconds(prompts, 256, Endpoint(delay_s, answers, refused=refused, seed=seed), seed=seed) for seed in SEEDS]
    assert none / statistics.median(some) >= target


@pytest.mark.thorough
@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_a_limit_is_found_out_with_few_refusals(delay_s, answers):
    by_hand = seconds(2000, 40, Endpoint(delay_s, answers, limit=40), adaptive=False)
    call = Call(2000, AdaptiveLimit(256), Endpoint(delay_s, answers, limit=40))
    assert by_hand / call.run() >= 0.9
    assert call.refusals / call.sent <= 0.02


@pytest.mark.thorough
@pytest.mark.parametrize(("limit", "refusals"), [(1, 0.3), (4, 0.25), (60, 0.03), (240, 0.02), (500, 0.03)])
def test_limits_of_any_size_are_found_out(limit, refusals):
    prompts = max(300, 50 * limit)
    call = Call(prompts, AdaptiveLimit(1024), Endpoint(2.0, limit=limit))
    assert prompts / limit * 2.0 / call.run() >= 0.85
    assert call.refusals / call.sent <= refusals


@pytest.mark.parametrize(("refusal_s", "refusals"), [(0.3, 0.05), (2, 0.11), (5, 0.11)])
def test_a_limit_is_found_out_although_refusals_come_slowly(refusal_s, refusals):
    call = Call(4000, AdaptiveLimit(256), Endpoint(2.0, limit=40, refusal_s=refusal_s))
    assert 200 / call.run() >= 0.9
    assert call.refusals / call.sent <= refusals


@pytest.mark.parametrize("refused", [0.02, 0.1])
def test_a_limit_is_found_out_beside_random_refusals(refused):
    call = Call(4000, AdaptiveLimit(256), Endpoint(2.0, limit=40, refused=refused))
    assert 200 / call.run() >= 0.85


def test_many_random_refusals_leave_most_of_the_speed():
    none = seconds(4000, 256, Endpoint(1.0, refused=0.3), adaptive=False)
    some = [seconds(4000, 256, Endpoint(1.0, refused=0.3, seed=seed), seed=seed) for seed in range(1, 8)]
    assert none / statistics.median(some) >= 0.65


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("delay_s", "limit", "network_s", "refusals"),
    [(1.0, 40, 0.15, 0.02), (0.05, 40, 0.03, 0.03), (0.2, 100, 0.15, 0.04)],
)
def test_the_limit_of_an_endpoint_far_away_is_found_out_with_few_refusals(delay_s, limit, network_s, refusals):
    """Its count of requests in flight is not ours: those on their way are in neither or in both."""
    endpoint = Endpoint(delay_s, limit=limit, network_s=network_s / 2)
    call = Call(6000, AdaptiveLimit(256), endpoint)
    assert 6000 / limit * delay_s / call.run() >= 0.65
    assert call.refusals / call.sent <= refusals


@pytest.mark.parametrize("seed", SEEDS)
def test_beyond_a_quota_per_minute_little_is_sent_although_no_response_names_a_wait(seed):
    call = Call(3000, AdaptiveLimit(256), Endpoint(1.0, per_minute=600, seed=seed), seed=seed)
    assert 240 / call.run() >= 0.85
    assert call.refusals / call.sent <= 0.2


@pytest.mark.thorough
@pytest.mark.parametrize(("before", "after"), [(40, 80), (40, 200), (80, 20)])
def test_a_limit_that_changes_is_followed(before, after):
    endpoint = Endpoint(0.05, limit=before)
    call = Call(6000, AdaptiveLimit(256), endpoint)
    call.at(2.5, setattr, endpoint, "limit", after)
    best = 2.5 + (6000 - 2.5 * before / 0.05) / after * 0.05
    assert best / call.run() >= 0.75
    assert call.refusals / call.sent <= 0.05


def test_where_nothing_is_taken_any_more_it_begins_again_with_one():
    limit = AdaptiveLimit(256)
    for number in [limit.taken(number) for number in range(1, 65)]:
        limit.refused(number)
    assert limit.size == 1
    sizes = []
    for _ in range(6):
        for number in [limit.taken(number) for number in range(1, limit.size + 1)]:
            limit.accepted(number)
        sizes.append(limit.size)
    assert sizes == [2, 4, 8, 16, 32, 64]


@pytest.mark.thorough
def test_a_limit_with_a_fraction_of_a_place_can_be_full_and_grows():
    limit = AdaptiveLimit(256)
    for place, number in enumerate([limit.taken(number) for number in range(1, 65)]):
        (limit.refused if place < 60 else limit.accepted)(number)
    for turn in range(300):
        for place, number in enumerate([limit.taken(number) for number in range(1, limit.size + 1)]):
            (limit.refused if turn < 3 and place % 3 == 0 else limit.accepted)(number)
    assert limit.size == 256


def test_a_call_that_needs_little_does_not_make_it_grow():
    limit = AdaptiveLimit(512)
    for _ in range(1000):
        limit.accepted(limit.taken(1))
    assert limit.size == 64


def test_answers_that_come_together_find_it_full_as_often_as_single_ones():
    together, single = AdaptiveLimit(512), AdaptiveLimit(512)
    rounds = [together.taken(number) for number in range(1, 65)]
    for number in rounds:
        together.accepted(number)
    for _ in range(63):
        single.taken(64)
    for _ in range(64):
        single.accepted(single.taken(64))
    assert together.size == single.size == 128


def test_a_fixed_window_stays():
    limit = AdaptiveLimit(10, adaptive=False)
    limit.refused(limit.taken(1))
    limit.accepted(limit.taken(10))
    assert limit.size == 10


@pytest.mark.thorough
def test_the_chart_in_the_docs_is_what_the_simulation_draws():
    assert chart() in (Path(__file__).parents[4] / "docs" / "architecture.md").read_text(encoding="utf-8")
