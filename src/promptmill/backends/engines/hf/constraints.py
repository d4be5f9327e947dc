"""Token constraints of a model's generation defaults, by transformers' own logits processors."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch

# What a request may say too, and is told apart there: see `PromptBuilder`; and what changes no choice.
_ELSEWHERE = {"repetition_penalty": None, "do_sample": False, "renormalize_logits": None}
# Ways to choose that the decode loop does not know, with the values that mean nothing.
_NOT_FOLLOWED = {
    "num_beams": (None, 1),
    "guidance_scale": (None, 1),
    "watermarking_config": (None,),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
}
_NOT_FOLLOWED_IN_DRAWING = {
    "typical_p": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "top_h": (None, 1),
}


class Constraints:
    """Tokens that must or must not come, passages that must not come again, a least length."""

    def __init__(self, network: Any, ends: Collection[int], device: torch.device) -> None:
        """`ends` are the tokens that end an answer; `device` is where scores are."""
        self._network = network
        self._device = device
        self._defaults = defaults = copy.deepcopy(network.generation_config)
        self._warnings = [_warning(defaults, _NOT_FOLLOWED), _warning(defaults, _NOT_FOLLOWED_IN_DRAWING)]
        nothing = dict.fromkeys(
            (*_NOT_FOLLOWED, *_NOT_FOLLOWED_IN_DRAWING, *(() if ends else ("exponential_decay_length_penalty",)))
        )
        vars(defaults).update(nothing | _ELSEWHERE)
        defaults._eos_token_tensor = torch.tensor(sorted(ends), device=device) if ends else None
        self._any = bool(self.of([0], 1, always=True))

    def warnings(self, *, drawing: bool) -> list[str]:
        """Return what to say of defaults that are not followed."""
        return [text for text in self._warnings[: 2 if drawing else 1] if text]

    def of(self, prompt: list[int], limit: int, *, always: bool = False) -> Any:
        """Return what changes the scores of the answer, of up to `limit` tokens, to `prompt`; None when nothing does.

        It is called with all tokens so far, `(1, tokens)`, and the scores of the next, `(1, vocabulary)`.
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
