"""Token constraints of a model's generation defaults, by transformers' own logits processors."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch

# What requests have a say in, which `PromptBuilder` reads, and what changes no choice.
_ELSEWHERE = {"repetition_penalty": None, "do_sample": False, "renormalize_logits": None}
# Ways to choose that the decode loop does not know, with the values that mean nothing.
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


class Constraints:
    """Forced and banned tokens, no-repeat n-grams, minimum length, as the model's generation defaults say."""

    def __init__(self, network: Any, ends: Collection[int], device: torch.device) -> None:
        """`ends` are the tokens that end an answer; `device` is where scores are."""
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
        """Return what to say of defaults that are not followed."""
        return [text for text in self._warnings[: 2 if drawing else 1] if text]

    def processors_for(self, prompt: list[int], limit: int, *, always: bool = False) -> Any:
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
