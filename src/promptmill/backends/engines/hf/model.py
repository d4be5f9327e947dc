"""A causal language model and its tokenizer, loaded: token ids in, scores of the next token out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache

from promptmill.backends.engines.hf.cache import is_common, is_of_columns, plain_cache
from promptmill.backends.engines.hf.constraints import Constraints

if TYPE_CHECKING:
    from promptmill.backends.engines.hf.vision import Vision

_SLOPES = frozenset({"bloom", "mpt"})  # kinds that know how far apart tokens are from the mask, or need no more


class LanguageModel:
    """What the decode loop needs of a model, whatever its architecture."""

    def __init__(self, model: Any, tokenizer: Any, vision: Vision | None = None) -> None:
        self.network = model
        self.tokenizer = tokenizer
        self.vision = vision
        self.config = model.config.get_text_config(decoder=True)
        self.defaults = model.generation_config
        self.device = model.get_input_embeddings().weight.device
        self.context = _context(self.config, tokenizer)
        self.ends = _ends(model.generation_config, tokenizer)
        self.constraints = Constraints(model, self.ends, self.device)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._short_logits = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        self.border = _border(self.config)
        """Length behind which all tokens of a sequence, those in the cache too, have to be computed in another way."""
        cache = DynamicCache(config=self.config)
        self._layers = len(cache.layers)
        self.alone = _keeps_more_than_a_cache(model) or not is_common(cache) or not self._bears_padding()
        """Whether each row must be computed by itself."""
        self.merges_rows = is_of_columns(cache) and self.border is None and not self.alone
        """Whether rows may join a running batch; if not, transformers' own `generate` computes them."""

    def new_cache(self) -> Cache:
        """Return an empty cache for rows that join a running batch.

        Its layers keep all columns, those with a sliding window too: the mask leaves out what lies before the window.
        """
        return plain_cache(self._layers)

    def _bears_padding(self) -> bool:
        """Return whether rows of several lengths may be computed together: whether the model is told each one's places.

        Some count them by the columns of the cache instead, where a shorter row has columns that are not its own.
        """
        if not self._takes_positions:
            return self._cache_name == "cache_params" or self.network.config.model_type in _SLOPES
        ones = torch.ones((1, 1), dtype=torch.long, device=self.device)
        try:
            inputs = self.network.prepare_inputs_for_generation(
                ones,
                attention_mask=ones,
                position_ids=ones,
                use_cache=True,
                is_first_iteration=False,
                **{self._cache_name: self.new_cache()},
            )
        except Exception:  # noqa: BLE001 (code that came with a model; each item will meet it again, and say so)
            return True
        return inputs.get("position_ids") is not None

    def positions(self, tokens: Any, mask: Any, seen: Mapping[str, Any]) -> tuple[Any, int]:
        """Return the positions of one prompt with images, and how far the next token's is from the number of tokens.

        They are `(1, tokens)` or, where images have height and width, `(axes, 1, tokens)`.
        """
        given = {"attention_mask": mask, **seen}
        positions = self.network._prepare_position_ids_for_generation(tokens, given)
        axes = positions[-3:] if positions.dim() == 3 else positions  # a fourth, in front, counts tokens
        return positions, int(axes.max()) + 1 - tokens.shape[1]

    def scores(
        self,
        tokens: Any,
        mask: Any,
        positions: Any,
        cache: Cache,
        *,
        first: bool,
        seen: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Compute `tokens` behind what `cache` holds; return each row's scores of its next token.

        `tokens` and `positions` are `(rows, new)`, `mask` is `(rows, cached + new)`; the result is `(rows, vocabulary)`
        in float32. `first` says that the cache is empty; `seen` is then what the prompt shows.
        """
        inputs = self.network.prepare_inputs_for_generation(
            tokens,
            attention_mask=mask,
            use_cache=True,
            is_first_iteration=first,
            **{self._cache_name: cache},
            **({"position_ids": positions} if self._takes_positions else {}),
            **seen,
        )
        # Phi-3 would rather have a cache of its own for a prompt that begins behind the border
        answered = self.network(**{**inputs, self._cache_name: cache, **self._short_logits}, return_dict=True)
        return answered.logits[:, -1].float()


def _border(config: Any) -> int | None:
    """Return the length at which the model changes the angles by which it turns tokens, as LongRoPE does."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(inner for inner in rope.values() if isinstance(inner, dict))]
    lengths = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    border = min((length for length in lengths if length), default=None)
    return border if border is not None and border < config.max_position_embeddings else None


def _keeps_more_than_a_cache(network: Any) -> bool:
    """Return whether the model carries state of its own from token to token, such as what to look at in an image."""
    name = "_update_model_kwargs_for_generation"
    return getattr(type(network), name, None) is not getattr(GenerationMixin, name)


def _context(config: Any, tokenizer: Any) -> int | None:
    """Return the longest sequence in tokens that the model was made for; None when it has no bound."""
    for name in ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length", "n_positions"):
        if isinstance(longest := getattr(config, name, None), int) and longest > 0:
            return longest
    longest = getattr(tokenizer, "model_max_length", None)
    return longest if isinstance(longest, int) and 0 < longest < 10**9 else None  # 10**30 means: not said


def _ends(defaults: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: the generation defaults' and the tokenizer's."""
    named = defaults.eos_token_id
    ends = {named} if isinstance(named, int) else set(named or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return frozenset(ends)


def left_padded(rows: list[list[int]], device: torch.device) -> tuple[Any, Any, Any]:
    """Return `(tokens, mask, positions)` of rows of token ids, each `(rows, longest)`, padded at the left."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask, (mask.cumsum(1) - 1).clamp(min=0)
