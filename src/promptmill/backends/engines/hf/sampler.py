"""Sampler: choose the next token of each row by its own parameters and random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

# Likeliest tokens to look at first: sorting a whole vocabulary for each token would cost more than a small model's own
# step, and the nucleus nearly always lies within.
_CANDIDATES = 256
_GREEDY_BELOW = 1e-5  # a temperature that leaves no choice, and divides scores out of the range of float32


@dataclass(slots=True)
class SamplerState:
    """How one row chooses, and what that depends on so far."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    constraints: Any = None
    """What changes scores beyond the above (see `constraints`); None: nothing does."""
    mask: Any = None
    """What rules tokens out, last of all (see `answer_mask`)."""
    _generator: Any = None
    _seen: Any = None
    _counts: Any = None
    _told: int = field(default=0)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken always."""
        return self.temperature < _GREEDY_BELOW

    @property
    def cut(self) -> bool:
        """Whether unlikely tokens are left out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def draw(self) -> float:
        """Return the row's next random number, from 0 up to 1."""
        if self._generator is None:
            self._generator = torch.Generator()
            if self.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.seed)
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def penalise(self, scores: Any, prompt: list[int], tokens: list[int]) -> None:
        """Change the row's `scores`, `(vocabulary,)`, in place by what occurred in its prompt and its answer."""
        if self.repetition_penalty != 1:
            if self._seen is None:
                self._seen = torch.zeros_like(scores, dtype=torch.bool)
                self._seen[[token for token in prompt if token < len(scores)]] = True  # an image's may lie beyond
            self._seen[tokens[self._told :]] = True
            weaker = torch.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
            torch.where(self._seen, weaker, scores, out=scores)
        if self.presence_penalty or self.frequency_penalty:
            if self._counts is None:
                self._counts = torch.zeros_like(scores)
            for token in tokens[self._told :]:
                self._counts[token] += 1
            scores -= self.frequency_penalty * self._counts + self.presence_penalty * (self._counts > 0)
        self._told = len(tokens)
        if self.constraints is not None:
            whole = torch.tensor([prompt + tokens], device=scores.device)
            scores.copy_(self.constraints(whole, scores.unsqueeze(0)).squeeze(0))
        if self.mask is not None:
            self.mask.apply(scores, tokens)


def choose(scores: Any, choices: list[SamplerState]) -> list[int | None]:
    """Return one token per row of `scores`, `(rows, vocabulary)` in float32; None where scores are NaN."""
    best, tokens = scores.max(-1)
    broken = best.isnan().tolist()
    chosen = tokens.tolist()
    drawing = [row for row, choice in enumerate(choices) if not choice.greedy and not broken[row]]
    if drawing:
        temperatures = torch.tensor([choices[row].temperature for row in drawing], device=scores.device)
        scaled = scores[drawing] / temperatures.unsqueeze(1)
        for row, token in zip(drawing, _drawn(scaled, [choices[row] for row in drawing]), strict=True):
            chosen[row] = token
    return [None if bad else token for token, bad in zip(chosen, broken, strict=True)]


def _drawn(scaled: Any, choices: list[SamplerState]) -> list[int]:
    numbers = [choice.draw() for choice in choices]
    drawn = [0] * len(choices)
    whole = [row for row, choice in enumerate(choices) if not choice.cut]
    for row in whole:
        upto = scaled[row].softmax(-1).cpu().cumsum(-1, dtype=torch.float64)  # cpu: Apple's GPUs have no float64
        drawn[row] = _place_of(numbers[row], upto)
    cut = [row for row in range(len(choices)) if row not in set(whole)]
    candidates = min(scaled.shape[1], _CANDIDATES)
    while cut:
        values, indices = scaled[cut].topk(candidates)
        shares = (values - scaled[cut].logsumexp(-1, keepdim=True)).exp().cpu()
        missing = []
        for place, row in enumerate(cut):
            token = _from_candidates(shares[place], choices[row], numbers[row], last=candidates == scaled.shape[1])
            if token is None:
                missing.append(row)
            else:
                drawn[row] = int(indices[place, token])
        cut, candidates = missing, scaled.shape[1]
    return drawn


def _from_candidates(shares: Any, choice: SamplerState, number: float, *, last: bool) -> int | None:
    """Return the place drawn from the likeliest `shares`, falling; None when the cut may lie beyond them."""
    kept = shares[: choice.top_k] if choice.top_k > 0 else shares
    complete = last or (0 < choice.top_k <= len(shares))
    mass = float(kept.sum()) if complete else 1.0
    upto = kept.cumsum(-1, dtype=torch.float64)
    count = len(kept)
    if choice.top_p < 1:
        # the token that reaches the mass is the last one kept
        reached = int((upto < choice.top_p * mass).sum()) + 1
        complete = complete or reached <= count
        count = min(count, reached)
    if choice.min_p > 0:
        above = int((kept >= choice.min_p * kept[0]).sum())
        complete = complete or above < len(kept)
        count = min(count, max(1, above))
    return _place_of(number, upto[:count]) if complete else None


def _place_of(number: float, upto: Any) -> int:
    """Return the place where the rising sums `upto` pass `number` of their whole."""
    aim = number * float(upto[-1])
    if not math.isfinite(aim):
        return 0
    place = int(torch.searchsorted(upto, torch.tensor(aim, dtype=upto.dtype, device=upto.device), right=True))
    return min(place, len(upto) - 1)
