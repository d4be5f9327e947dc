"""Answers with choices, in steps: for each place that the search examines, OpenVINO's pipeline gets one request.

OpenVINO GenAI cannot be given a list of permitted tokens, and reports the log probability of the chosen token only. For
a single token, both limits can be avoided. Tokens that are not permitted become end tokens, which cannot be the first
token. If the search needs the alternatives, many answers are drawn, which share the computed prompt. Their temperature
is so high that all permitted tokens are equally likely, so each token is drawn, and OpenVINO reports the model's log
probability of it. The next step finds the computed prompt in the pipeline's cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from promptmill.backends.engines.choice_tokens import ChoiceSearch

_EQUALLY = 1e6  # a temperature that makes tokens equally likely: differences of log probabilities are below 100
# A draw takes 1 ms. For 20 tokens, 240 draws are made; in 1 of 10,000 cases, one of the tokens is not drawn.
_MOST_TOKENS, _LOG_MISSED = 20, 9
_SEEDS = 2**32


@dataclass(slots=True)
class ChoiceSteps:
    """The steps of one row."""

    search: ChoiceSearch
    vocabulary: int
    """The number of tokens to which the model assigns a probability."""
    draws: bool
    """Whether the search needs the alternatives to the likeliest token."""
    random: random.Random

    def prepare(self, config: Any) -> list[int]:
        """Change `config`, the row's generation settings, to generate one token; return the tokens before it."""
        assert self.search.asked is not None
        tokens, permitted = self.search.asked
        ruled_out = {*range(self.vocabulary)}.difference(permitted)
        config.stop_token_ids, config.eos_token_id, config.stop_strings = ruled_out, min(ruled_out), set()
        config.ignore_eos, config.min_new_tokens, config.max_new_tokens = False, 1, 1
        config.structured_output_config, config.do_sample, config.logprobs = None, False, 1
        config.repetition_penalty, config.presence_penalty, config.frequency_penalty = 1.0, 0.0, 0.0
        config.top_p, config.min_p, config.num_return_sequences = 1.0, 0.0, 1
        if self.draws and len(permitted) > 1:
            count = min(len(permitted), _MOST_TOKENS)
            config.do_sample, config.temperature, config.top_k = True, _EQUALLY, count
            config.rng_seed = self.random.randrange(_SEEDS)
            config.num_return_sequences = math.ceil(count * (math.log(count) + _LOG_MISSED))
        return [*tokens]

    @staticmethod
    def found(outputs: Iterable[Any]) -> dict[int, float]:
        """Return the tokens in `outputs` with their log probabilities."""
        return {each.generated_ids[0]: each.generated_log_probs[0] for each in outputs}
