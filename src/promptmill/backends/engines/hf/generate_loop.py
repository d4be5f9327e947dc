"""The fallback decode loop: some rows at a time go through transformers' own `generate`."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.hf.decode_loop import DecodeLoop
from promptmill.backends.engines.hf.model import LanguageModel, left_padded
from promptmill.backends.engines.hf.schedule import Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence

_QUANTUM = 64  # tokens after which a batch ends for a call of which no row runs


class GenerateLoop(DecodeLoop):
    """For models whose rows cannot join a running batch: those with recurrent states, or with caches of their own.

    A batch takes as long as its longest answer, except where another call waits; then its rows go on later, from the
    tokens that they have.
    """

    def __init__(self, model: LanguageModel, schedule: Schedule, channel: Channel, rows: int, tokens: int) -> None:
        """`tokens` is the most that prompts computed together have."""
        super().__init__(model, schedule, channel, rows)
        self._tokens = tokens
        self._rows: list[RunningSequence] = []
        model.network.generation_config = GenerationConfig()  # what the model's own says, rows follow by themselves

    def _running(self) -> list[RunningSequence]:
        return self._rows

    def _given_up(self) -> list[RunningSequence]:
        rows, self._rows = self._rows, []
        return rows

    def _turn(self) -> None:
        rows = self._rows = self._schedule.take(1 if self._model.alone else self._room, self._tokens, {})
        if not rows:
            return
        for row in rows:
            row.turns = 0
            row.started = row.started or time.monotonic()
        self._generate()
        for row in reversed([row for row in self._given_up() if not row.answered]):
            self._schedule.put_back(row)

    def _generate(self) -> None:
        rows, device = self._rows, self._model.device
        tokens, mask, _ = left_padded([row.sequence for row in rows], device)
        images = rows[0].image_inputs
        assert images is None or len(rows) == 1, "a row with images is computed alone"
        image_inputs = {} if images is None else images.inputs(tokens.shape[1], device, self._model.network.dtype)
        self._model.network.generate(
            input_ids=tokens,
            attention_mask=mask,
            **image_inputs,
            generation_config=GenerationConfig(
                do_sample=False,
                pad_token_id=0,
                max_new_tokens=max(row.limit - len(row.tokens) for row in rows),
            ),
            logits_processor=LogitsProcessorList([self._choose]),
            stopping_criteria=StoppingCriteriaList([self._ended]),
        )

    def _choose(self, tokens: Any, scores: Any) -> Any:
        """Have `generate` take the tokens that the rows choose: all others become impossible."""
        del tokens
        places = [place for place, row in enumerate(self._rows) if not row.answered]
        advance = self._advance_rows([self._rows[place] for place in places], scores[places])
        self._stepped()
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 0] = 0.0
        for place, token in zip(places, advance.tokens, strict=True):
            forced[place, 0] = float("-inf")
            forced[place, token or 0] = 0.0
        return forced

    def _ended(self, tokens: Any, scores: Any) -> Any:
        """Return for each row whether `generate` should stop."""
        del scores
        waits = self._schedule.fewest_running({row.run: 1 for row in self._rows}) == 0
        leaves = waits and max(row.turns for row in self._rows) >= _QUANTUM
        # behind the border what was computed counts no more
        leaves = leaves or self._model.border in {len(row.sequence) - 1 for row in self._rows}
        ended = [leaves or row.answered or self._schedule.is_cancelled(row.run) for row in self._rows]
        return torch.tensor(ended, device=tokens.device)
