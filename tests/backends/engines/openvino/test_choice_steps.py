"""Answers with choices in steps of one token each, and what the outputs of a step tell."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace

from promptmill.backends.engines.choice_tokens import ChoiceDraw, ChoiceSearch, ChoiceTokens
from promptmill.backends.engines.openvino.choice_steps import ChoiceSteps


@dataclass
class Output:
    generated_ids: list[int]
    generated_log_probs: list[float]


def steps(sequences: dict[str, tuple[int, ...]], *, draws: bool, vocabulary: int = 10) -> ChoiceSteps:
    own = ChoiceTokens(sequences, lambda _, token: token == 1)
    return ChoiceSteps(ChoiceSearch(own, ChoiceDraw()), vocabulary, draws, random.Random(1))


def prepared(row: ChoiceSteps) -> tuple[SimpleNamespace, list[int]]:
    config = SimpleNamespace(temperature=0.5, num_return_sequences=7)
    return config, row.prepare(config)


def test_a_step_permits_the_tokens_that_are_asked():
    row = steps({"no": (5, 1), "no idea": (5, 7, 1), "yes": (6, 8, 1)}, draws=False)
    for tokens, permitted, found in (([], {5, 6}, {6: -1.0}), ([6], {8}, {8: -5.0}), ([], {5}, {5: -2.0})):
        config, before = prepared(row)
        assert (before, {*range(10)} - config.stop_token_ids) == (tokens, permitted)
        assert config.eos_token_id in config.stop_token_ids
        assert (config.min_new_tokens, config.max_new_tokens, config.num_return_sequences) == (1, 1, 1)
        row.search.add(found)
    assert prepared(row)[1] == [5], "`no` is likelier than `yes`, and begins `no idea`"


def test_draws_are_so_many_that_no_token_is_missed():
    config, _ = prepared(steps({"no": (5, 1), "yes": (6, 1)}, draws=True))
    assert (config.top_k, config.logprobs, config.do_sample) == (2, 1, True)
    missed = config.top_k * (1 - 1 / config.top_k) ** config.num_return_sequences
    assert missed < 2e-4
    config, _ = prepared(steps({str(n): (n,) for n in range(100)}, draws=True, vocabulary=200))
    assert (config.top_k, config.num_return_sequences) == (20, 240)


def test_the_outputs_of_a_step_tell_each_token_once():
    outputs = [Output([token], [logprob]) for token, logprob in ((5, -3.0), (6, -2.0), (5, -3.0))]
    assert ChoiceSteps.found(outputs) == {5: -3.0, 6: -2.0}
