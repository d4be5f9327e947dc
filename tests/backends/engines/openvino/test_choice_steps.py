"""Answers with choices in steps of one token each, and what the draws of a step tell."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from promptmill.backends.engines.choice_tokens import ChoiceTokens
from promptmill.backends.engines.openvino.choice_steps import ChoiceSteps

OWN = ChoiceTokens({"no": (5, 1), "no idea": (5, 7, 1), "yes": (6, 1)})


@dataclass
class Output:
    generated_ids: list[int]
    generated_log_probs: list[float]


def steps(*, draws: bool, temperature: float = 0.0) -> ChoiceSteps:
    return ChoiceSteps(OWN, 10, draws, temperature, random.Random(1))


def prepared(row: ChoiceSteps, tokens: list[int]) -> SimpleNamespace:
    config = SimpleNamespace(temperature=0.5, num_return_sequences=1)
    row.prepare(config, tokens)
    return config


@pytest.mark.parametrize(("tokens", "permitted"), [([], {5, 6}), ([5], {1, 7})])
def test_a_step_permits_the_tokens_that_may_follow(tokens, permitted):
    config = prepared(steps(draws=False), tokens)
    assert {*range(10)} - config.stop_token_ids == permitted
    assert config.eos_token_id in config.stop_token_ids
    assert (config.min_new_tokens, config.max_new_tokens) == (1, 1)
    assert (config.temperature, config.num_return_sequences) == (0.5, 1), "the row's own"


def test_draws_are_so_many_that_no_token_is_missed():
    config = prepared(steps(draws=True), [])
    assert (config.top_k, config.logprobs, config.do_sample) == (2, 1, True)
    missed = config.top_k * (1 - 1 / config.top_k) ** config.num_return_sequences
    assert missed < 2e-4
    many = ChoiceSteps(ChoiceTokens({str(n): (n,) for n in range(100)}), 200, True, 0.0, random.Random(1))
    assert (prepared(many, []).top_k, prepared(many, []).num_return_sequences) == (20, 240)


def test_the_likeliest_token_is_chosen_and_all_are_told():
    outputs = [Output([token], [logprob]) for token, logprob in ((5, -3.0), (6, -2.0), (5, -3.0))]
    assert steps(draws=True).chosen(outputs) == [(6, -2.0), (5, -3.0)]


def test_a_temperature_draws_the_token_by_its_probability():
    outputs = [Output([5], [math.log(0.03)]), Output([6], [math.log(0.01)])]
    row = steps(draws=True, temperature=1.0)
    share = [row.chosen(outputs)[0][0] for _ in range(2000)].count(5) / 2000
    assert share == pytest.approx(0.75, abs=0.04)
