"""Answers with choices in steps: one request to OpenVINO's pipeline for each token.

OpenVINO GenAI cannot be given the permitted tokens, and reports the log probability of a chosen token alone. Both can
be had for a single token: all others are end tokens that may not come yet, and where probabilities are requested, many
answers are drawn. They share the computed prompt, and their temperature is so high that each permitted token is equally
likely, so each comes up, with the log probability that the model gives it. Most choices differ in their first token;
a further step computes the prompt again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from promptmill.backends.engines.choice_tokens import ChoiceTokens

_EQUALLY = 1e6  # differences of log probabilities are below 100
# A draw takes 1 ms. 20 tokens need 240 draws, by which one of them is missed in 1 of 10,000 cases.
_MOST_TOKENS, _LOG_MISSED = 20, 9
_SEEDS = 2**32


@dataclass(slots=True)
class ChoiceSteps:
    """The steps of one row."""

    own: ChoiceTokens
    vocabulary: int
    """The number of tokens that the model gives a probability."""
    draws: bool
    """Whether the probabilities of the alternatives are requested."""
    temperature: float
    random: random.Random

    def prepare(self, config: Any, tokens: list[int]) -> None:
        """Set `config`, the row's generation settings, to the token after `tokens`."""
        permitted = self.own.following(tokens)
        ruled_out = {*range(self.vocabulary)}.difference(permitted)
        config.stop_token_ids, config.eos_token_id, config.stop_strings = ruled_out, min(ruled_out), set()
        config.ignore_eos, config.min_new_tokens, config.max_new_tokens = False, 1, 1
        config.structured_output_config = None
        config.rng_seed = self.random.randrange(_SEEDS)
        if self.draws:
            count = min(len(permitted), _MOST_TOKENS)
            config.do_sample, config.temperature, config.logprobs = True, _EQUALLY, 1
            config.top_k, config.top_p, config.min_p = count, 1.0, 0.0
            config.repetition_penalty, config.presence_penalty, config.frequency_penalty = 1.0, 0.0, 0.0
            config.num_return_sequences = math.ceil(count * (math.log(count) + _LOG_MISSED))

    def chosen(self, outputs: Iterable[Any]) -> list[tuple[int, float]]:
        """Return the tokens in `outputs` with their log probabilities; the first one is the answer's next token."""
        found: dict[int, float] = {each.generated_ids[0]: each.generated_log_probs[0] for each in outputs}
        token = max(found, key=lambda each: found[each])
        if self.draws and self.temperature > 0:
            weights = [math.exp((logprob - found[token]) / self.temperature) for logprob in found.values()]
            (token,) = self.random.choices([*found], weights)
        return [(token, found[token]), *(each for each in found.items() if each[0] != token)]
