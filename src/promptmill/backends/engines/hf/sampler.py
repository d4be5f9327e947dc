"""Chooses the next token of each row: applies penalties, the model's constraints and the schema's mask, then draws.

    scores → penalties → `Constraints` → `AnswerMask` → temperature → top_k, top_p, min_p → token

Each row has its own parameters and random numbers, so its answer does not depend on other rows in the batch.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from promptmill.answers.choices import Choices
from promptmill.answers.reasoning import Family
from promptmill.answers.response_format import schema_of
from promptmill.backends.engines.choice_tokens import ChoiceTokens
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import Code, PromptmillError, first_line
from promptmill.system.installation import adding

# The number of most probable tokens to examine first: sorting the whole vocabulary for each token would cost more than
# a step of a small model, and these tokens nearly always include the nucleus.
_CANDIDATES = 256
_GREEDY_BELOW = 1e-5  # a lower temperature counts as 0: it leaves no choice, and the scores would overflow float32
_TAIL = 32  # the number of last tokens that are searched for the end of a reasoning block
# at most one space, because small models write endless white space if the grammar allows it
_OVERRIDES = {"whitespace_pattern": r"[ ]?"}
# Defaults that `SequenceBuilder` applies, or that do not affect the choice.
_ELSEWHERE = {"repetition_penalty": None, "do_sample": False, "renormalize_logits": None}
# Sampling methods that the decode loop does not support, each with the value that switches it off.
_UNSUPPORTED = {
    "num_beams": (None, 1),
    "guidance_scale": (None, 1),
    "watermarking_config": (None,),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
}
_UNSUPPORTED_WHEN_SAMPLING = {
    "typical_p": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "top_h": (None, 1),
}


@dataclass(slots=True)
class Penalties:
    """A row's penalties for tokens that it already contains, and the record of these tokens."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    _seen: Any = None
    _counts: Any = None
    _counted: int = 0  # the number of answer tokens that `_seen` and `_counts` include

    def apply(self, scores: Any, prompt: list[int], tokens: list[int]) -> None:
        """Change the `scores` of the row, `(vocabulary,)`, in place."""
        if self.repetition != 1:
            if self._seen is None:
                self._seen = torch.zeros_like(scores, dtype=torch.bool)
                self._seen[[token for token in prompt if token < len(scores)]] = True  # image tokens' ids may be larger
            self._seen[tokens[self._counted :]] = True
            weaker = torch.where(scores > 0, scores / self.repetition, scores * self.repetition)
            torch.where(self._seen, weaker, scores, out=scores)
        if self.presence or self.frequency:
            if self._counts is None:
                self._counts = torch.zeros_like(scores)
            for token in tokens[self._counted :]:
                self._counts[token] += 1
        self._counted = len(tokens)  # set before memory is allocated: if memory runs out, the step is computed again
        if self.presence or self.frequency:
            scores -= self.frequency * self._counts + self.presence * (self._counts > 0)


@dataclass(slots=True)
class SamplerState:
    """The sampling parameters of a row, and the state of its choices."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalties: Penalties = field(default_factory=Penalties)
    seed: int | None = None
    constraints: Any = None
    """The result of `Constraints.processors_for`; None without constraints."""
    mask: AnswerMask | None = None
    """The mask that excludes tokens which would violate the schema; it is applied last."""
    _generator: Any = None

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always chosen."""
        return self.temperature < _GREEDY_BELOW

    @property
    def truncates(self) -> bool:
        """Whether improbable tokens are excluded."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def draw(self) -> float:
        """Return the row's next random number, at least 0 and below 1."""
        if self._generator is None:
            self._generator = torch.Generator()
            if self.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.seed)
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def penalise(self, scores: Any, prompt: list[int], tokens: list[int]) -> None:
        """Apply penalties, constraints and mask to the `scores` of the row, `(vocabulary,)`, in place."""
        self.penalties.apply(scores, prompt, tokens)
        before = None
        if self.constraints is not None:
            before = scores if self.mask is None else scores.clone()
            whole = torch.tensor([prompt + tokens], device=scores.device)
            scores.copy_(self.constraints(whole, scores.unsqueeze(0)).squeeze(0))
        if self.mask is not None:
            self.mask.apply(scores, tokens)
            if before is not None and scores.max() == -math.inf:  # the constraints forbid all that the schema allows
                self.mask.apply(scores.copy_(before), tokens)


def choose(scores: Any, choices: list[SamplerState]) -> list[int | None]:
    """Return a token for each row of `scores`, `(rows, vocabulary)` in float32; None if the scores of a row are NaN."""
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
    whole = [row for row, choice in enumerate(choices) if not choice.truncates]
    # a card computes all rows in the time of one; a CPU would take three times as long as for one row after the other
    for rows in [whole] if scaled.is_cuda and whole else [[row] for row in whole]:
        shares = (scaled[rows] if len(rows) > 1 else scaled[rows[0], None]).softmax(-1)
        upto = (shares.cpu() if shares.is_mps else shares).cumsum(-1, dtype=torch.float64)  # Apple's GPUs lack float64
        for row, place in zip(rows, _places_of([numbers[row] for row in rows], upto), strict=True):
            drawn[row] = place
    truncated = [row for row in range(len(choices)) if row not in set(whole)]
    # `top_p` is a share of the tokens that `top_k` has kept, so all of these tokens are needed
    candidates = min(scaled.shape[1], max(_CANDIDATES, *(choice.top_k for choice in choices)))
    while truncated:
        values, indices = scaled[truncated].topk(candidates)
        shares = (values - scaled[truncated].logsumexp(-1, keepdim=True)).exp().cpu()
        indices = indices.cpu()
        missing = []
        for position, row in enumerate(truncated):
            token = _from_candidates(shares[position], choices[row], numbers[row], last=candidates == scaled.shape[1])
            if token is None:
                missing.append(row)
            else:
                drawn[row] = int(indices[position, token])
        truncated, candidates = missing, scaled.shape[1]
    return drawn


def _from_candidates(shares: Any, choice: SamplerState, number: float, *, last: bool) -> int | None:
    """Return an index drawn from the largest `shares`, in descending order; None if smaller shares may be needed."""
    kept = shares[: choice.top_k] if choice.top_k > 0 else shares
    complete = last or (0 < choice.top_k <= len(shares))
    mass = float(kept.sum()) if complete else 1.0
    upto = kept.cumsum(-1, dtype=torch.float64)
    count = len(kept)
    if choice.top_p < 1:
        # the token at which the sum reaches `top_p` is the last token to keep
        reached = int((upto < choice.top_p * mass).sum()) + 1
        complete = complete or reached <= count
        count = min(count, reached)
    if choice.min_p > 0:
        above = int((kept >= choice.min_p * kept[0]).sum())
        complete = complete or above < len(kept)
        count = min(count, max(1, above))
    return _places_of([number], upto[None, :count])[0] if complete else None


def _places_of(numbers: list[float], upto: Any) -> list[int]:
    """Return, for each row, the first index in `upto` whose sum exceeds the row's number times the row's total."""
    aims = upto[:, -1:] * torch.tensor(numbers, dtype=upto.dtype, device=upto.device).unsqueeze(1)
    places = torch.searchsorted(upto, aims, right=True).clamp(max=upto.shape[1] - 1)
    return [int(place) for place in places.masked_fill(~aims.isfinite(), 0).flatten().tolist()]


class AnswerMasks:
    """Creates masks for answers of one model. `ends`: the tokens that end an answer."""

    def __init__(self, tokenizer: Any, ends: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = sorted(ends)
        self._vocabulary: Any = None
        self._grammar = functools.lru_cache(maxsize=MOST_KEPT)(self._valid_grammar)

    def of(self, wanted: Mapping[str, Any] | None, *, opened: Family | None) -> AnswerMask | None:
        """Return the mask for an answer in the `response_format` `wanted`; None if the format is not JSON.

        `opened`: the answer starts inside reasoning of this family, and the JSON follows the reasoning. Raises
        `PromptmillError` (`unsupported`, `missing_dependency`) if the format cannot be enforced.
        """
        schema = schema_of(wanted)
        if schema is None:
            return None
        return self._mask("schema", json.dumps(schema), closings=() if opened is None else opened.closings)

    def of_choices(self, choices: Choices, own: ChoiceTokens | None) -> AnswerMask:
        """Return the mask for the rest of an answer that begins with `choices.OPENING`. Raises the errors of `of`."""
        if own is None:
            alternatives = [json.dumps(ending, ensure_ascii=False) for ending in choices.endings.values()]
        else:
            alternatives = [" ".join(f"<[{token}]>" for token in tokens) for tokens in own.sequences.values()]
        return self._mask("lark", f"start: {' | '.join(alternatives)}")

    def _mask(self, kind: str, source: str, *, closings: tuple[str, ...] = ()) -> AnswerMask:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise PromptmillError(
                Code.MISSING_DEPENDENCY,
                "Answers with a schema need the package llguidance.",
                adding("hf"),
            ) from None
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer, self._ends)
        matcher = LLMatcher(self._vocabulary, self._grammar(kind, source), log_level=0)
        return AnswerMask(matcher, self._vocabulary.vocab_size, self._ends, self._tokenizer, closings)

    def _valid_grammar(self, kind: str, source: str) -> Any:
        from llguidance import LLMatcher

        matcher: Any = LLMatcher
        if kind == "schema":
            grammar = matcher.grammar_from_json_schema(source, overrides=_OVERRIDES)
        else:
            grammar = matcher.grammar_from_lark(source)
        if problem := LLMatcher.validate_grammar(grammar, self._vocabulary):
            raise _not_held(problem)
        return grammar


def _vocabulary(tokenizer: Any, ends: list[int]) -> Any:
    """Return llguidance's view of a tokenizer. Raises `PromptmillError` (`unsupported`)."""
    from llguidance import LLTokenizer

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    try:
        return LLTokenizer(backend.to_str(), n_vocab=len(tokenizer), eos_token=ends[0] if ends else None)
    except Exception as error:  # native code fails for vocabularies it does not support
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"The hf backend cannot constrain this model's answers to a schema: {first_line(error)}.",
            "Choose another model or backend.",
        ) from None


def _not_held(problem: str) -> PromptmillError:
    return PromptmillError(
        Code.UNSUPPORTED,
        f"The hf backend cannot constrain answers to this schema: {first_line(problem)}.",
        "Simplify the schema, or choose another backend.",
    )


class AnswerMask:
    """The token mask of one answer: permits only tokens that can still lead to a text of the grammar."""

    def __init__(self, matcher: Any, known: int, ends: list[int], tokenizer: Any, closings: tuple[str, ...]) -> None:
        """`known`: the size of the matcher's vocabulary. `closings`: marks after which the grammar starts."""
        self._matcher = matcher
        self._known = known
        self._ends = ends
        self._tokenizer = tokenizer
        self._closings = closings
        self._followed = 0
        self._bits: Any = None

    def apply(self, scores: Any, tokens: list[int]) -> None:
        """Set the `scores`, `(vocabulary,)`, of tokens that cannot follow the answer so far (`tokens`) to -inf."""
        if self._closings and not self._begins(tokens):
            return
        for token in tokens[self._followed :]:
            if not self._matcher.consume_token(token):  # the token would take seconds, so llguidance refuses it
                raise _not_held(self._matcher.get_error())
        self._followed = len(tokens)
        ruled_out = self._ruled_out(len(scores))
        if scores.device.type == "cpu":  # numpy is faster, because torch would start threads
            np.copyto(scores.numpy(), -np.inf, where=ruled_out)
        else:
            scores.masked_fill_(torch.from_numpy(ruled_out).to(scores.device), float("-inf"))

    def _ruled_out(self, size: int) -> Any:
        """Return, for each token of a vocabulary of `size`, whether it cannot be the next token."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        if self._bits is None:
            self._bits = allocate_token_bitmask(1, self._known)
        fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise _not_held(self._matcher.get_error())
        ruled_out: Any = np.ones(size, dtype=bool)  # the model may have more or fewer tokens than its tokenizer
        known = min(size, self._known)
        ruled_out[:known] = np.unpackbits(self._bits[0].view(np.uint8), count=known, bitorder="little") == 0
        if self._ends and not ruled_out[self._ends[0]]:
            ruled_out[self._ends] = False
        return ruled_out

    def _begins(self, tokens: list[int]) -> bool:
        """Return whether the last token ended the reasoning, after which the grammar starts."""
        end = self._tokenizer.decode(tokens[-_TAIL:], skip_special_tokens=False)
        if not any(mark in end for mark in self._closings):
            return False
        self._closings, self._followed = (), len(tokens)
        return True


class Constraints:
    """A model's generation defaults as logits processors of transformers: forced and banned tokens, n-gram rules, …"""

    def __init__(self, network: Any, ends: Collection[int], device: torch.device) -> None:
        """`ends`: the tokens that end an answer. `device`: the device of the scores."""
        self._network = network
        self._device = device
        self._defaults = defaults = copy.deepcopy(network.generation_config)
        self._warnings = [_warning(defaults, _UNSUPPORTED), _warning(defaults, _UNSUPPORTED_WHEN_SAMPLING)]
        nothing = dict.fromkeys(
            (*_UNSUPPORTED, *_UNSUPPORTED_WHEN_SAMPLING, *(() if ends else ("exponential_decay_length_penalty",)))
        )
        vars(defaults).update(nothing | _ELSEWHERE)
        defaults._eos_token_tensor = torch.tensor(sorted(ends), device=device) if ends else None
        self._any = bool(self.processors_for([0], 1, always=True))

    def warnings(self, *, drawing: bool) -> list[str]:
        """Return warnings about generation defaults that this engine ignores."""
        return [text for text in self._warnings[: 2 if drawing else 1] if text]

    def processors_for(self, prompt: list[int], limit: int, *, always: bool = False) -> Any:
        """Return the logits processors for an answer of up to `limit` tokens to `prompt`; None if none are needed.

        The processors are called with all tokens so far, `(1, tokens)`, and the next token's scores, `(1, vocabulary)`.
        """
        if not (always or self._any):
            return None
        defaults = copy.copy(self._defaults)
        defaults.max_length = len(prompt) + limit
        tokens = torch.tensor([prompt], device=self._device)
        return self._network._get_logits_processor(defaults, len(prompt), tokens, device=self._device, model_kwargs={})


def _warning(defaults: Any, off: dict[str, tuple[Any, ...]]) -> str:
    names = ", ".join(name for name, values in off.items() if getattr(defaults, name, None) not in values)
    return f"The model's generation defaults set {names}, which the hf backend does not follow." if names else ""
