"""The next token, row by row: against the definitions, with many draws."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from typing import Any, cast

import pytest

import hf_parts as hf
from sure import sure

pytestmark = hf.NEEDED


def scores_of(*shares: float):
    return hf.torch.tensor([[math.log(share) for share in shares]])


def drawn(choice: hf.SamplerState, scores, times: int = 3000) -> dict[int, float]:
    counts = Counter(map(sure, hf.choose(scores.repeat(times, 1), [choice] * times)))  # each draws its own number
    return {token: count / times for token, count in counts.items()}


def test_without_temperature_the_likeliest_token_is_taken():
    scores = hf.torch.randn(5, 1000)
    assert hf.choose(scores, [hf.SamplerState()] * 5) == scores.argmax(-1).tolist()
    assert hf.choose(scores, [hf.SamplerState(temperature=1e-6)] * 5) == scores.argmax(-1).tolist()


@pytest.mark.thorough
def test_draws_follow_the_shares():
    shares = drawn(hf.SamplerState(temperature=1, seed=1), scores_of(0.5, 0.3, 0.2))
    assert shares == pytest.approx({0: 0.5, 1: 0.3, 2: 0.2}, abs=0.04)


@pytest.mark.thorough
def test_temperature_sharpens_and_flattens():
    sharp = drawn(hf.SamplerState(temperature=0.5, seed=1), scores_of(0.6, 0.4))
    assert sharp[0] == pytest.approx(0.36 / (0.36 + 0.16), abs=0.04)


def test_top_k_keeps_that_many():
    shares = drawn(hf.SamplerState(temperature=1, top_k=2, seed=1), scores_of(0.2, 0.5, 0.3))
    assert shares == pytest.approx({1: 0.625, 2: 0.375}, abs=0.04)


@pytest.mark.thorough
def test_top_p_keeps_the_token_that_reaches_it():
    shares = drawn(hf.SamplerState(temperature=1, top_p=0.7, seed=1), scores_of(0.2, 0.5, 0.3))
    assert shares == pytest.approx({1: 0.625, 2: 0.375}, abs=0.04)
    assert set(drawn(hf.SamplerState(temperature=1, top_p=0.5, seed=1), scores_of(0.2, 0.5, 0.3), 200)) == {1}


def test_top_p_counts_within_what_top_k_left():
    shares = drawn(hf.SamplerState(temperature=1, top_k=2, top_p=0.6, seed=1), scores_of(0.2, 0.5, 0.3), 300)
    assert set(shares) == {1}


@pytest.mark.thorough
def test_top_p_counts_within_all_that_a_large_top_k_left():
    """Against transformers: 300 of 1,000 tokens have half of the mass, and `top_p` 0.3 is of that half."""
    from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

    scores = hf.torch.arange(1000).unsqueeze(0) / -500
    kept = LogitsProcessorList([TopKLogitsWarper(300), TopPLogitsWarper(0.3)])(None, scores)
    seen = drawn(hf.SamplerState(temperature=1, top_k=300, top_p=0.3, seed=1), scores)
    assert set(seen) == set((kept[0] > -math.inf).nonzero()[:, 0].tolist())


def test_min_p_leaves_out_what_is_far_below_the_likeliest():
    assert set(drawn(hf.SamplerState(temperature=1, min_p=0.5, seed=1), scores_of(0.2, 0.5, 0.3), 300)) == {1, 2}


@pytest.mark.thorough
@pytest.mark.parametrize("cut", [{"top_p": 0.95}, {"min_p": 1e-9}, {"top_k": 900, "top_p": 0.999}, {}])
def test_a_flat_choice_among_many_is_complete(cut):
    seen = drawn(hf.SamplerState(temperature=1, seed=3, **cut), hf.torch.zeros(1, 2000), 3000)
    assert len(seen) > 500


def test_a_seed_repeats_and_rows_do_not_disturb_each_other():
    scores = hf.torch.randn(3, 500)
    alone = hf.SamplerState(temperature=1, top_p=0.9, seed=5)
    first = [hf.choose(scores[1:2].clone(), [alone])[0] for _ in range(20)]
    second = hf.SamplerState(temperature=1, top_p=0.9, seed=5)
    rows = [hf.SamplerState(temperature=1, seed=9), second, hf.SamplerState()]
    assert [hf.choose(scores.clone(), rows)[1] for _ in range(20)] == first
    fresh = [hf.choose(scores[1:2].clone(), [hf.SamplerState(temperature=1, top_p=0.9)])[0] for _ in range(20)]
    assert fresh != first


def test_scores_that_are_no_numbers_choose_nothing():
    scores = hf.torch.zeros(2, 10)
    scores[0, 3] = float("nan")
    assert hf.choose(scores, [hf.SamplerState(), hf.SamplerState(temperature=1)])[0] is None


@pytest.mark.parametrize(("forbidden", "left"), [([2, 3], [2, 3]), ([0, 2], [3])])
def test_a_schema_goes_before_defaults_that_forbid_all_it_allows(forbidden, left):
    """As `min_new_tokens` and `no_repeat_ngram_size` do at the end of a short answer."""

    class Mask:
        def apply(self, scores, tokens):
            scores[:2] = -math.inf

    def constraints(tokens, scores):
        return scores.index_fill(1, hf.torch.tensor(forbidden), -math.inf)

    scores = hf.torch.zeros(4)
    hf.SamplerState(constraints=constraints, mask=cast("Any", Mask())).penalise(scores, [1], [])
    assert (scores > -math.inf).nonzero()[:, 0].tolist() == left


def test_penalties_follow_their_definitions():
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = hf.torch.randn(1, 50)
    prompt, tokens = [3, 7, 7], [11, 11, 4]
    mine = scores[0].clone()
    hf.Penalties(repetition=1.7).apply(mine, prompt, tokens)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(hf.torch.tensor([prompt + tokens]), scores.clone())
    assert hf.torch.equal(mine, theirs[0])

    penalties = hf.Penalties(presence=0.5, frequency=0.25)
    for upto in range(len(tokens) + 1):  # token by token, as the decode loop does
        mine = scores[0].clone()
        penalties.apply(mine, prompt, tokens[:upto])
    expected = scores[0].clone()
    expected[11] -= 0.5 + 2 * 0.25
    expected[4] -= 0.5 + 0.25
    assert hf.torch.allclose(mine, expected)


def test_the_numbers_of_several_rows_find_their_places_at_once():
    """As a card draws: a row's own sums and number count, and sums that are no numbers give the first token."""
    places_of = importlib.import_module("promptmill.backends.engines.hf.sampler")._places_of
    sums = hf.torch.tensor([[1.0, 2, 4], [1, 1, 2], [0, math.nan, math.nan]], dtype=hf.torch.float64)
    assert places_of([0.5, 0.5, 0.5], sums) == [2, 2, 0]
    assert places_of([0.1, 0.1, 0.1], sums) == [0, 0, 0]
    assert places_of([0.499, 0.999, 0.1], sums) == [1, 2, 0]
