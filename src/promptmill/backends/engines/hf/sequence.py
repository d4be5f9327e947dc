"""One request in the decode loop: prompt tokens in, answer out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from promptmill.backends.engines.growing_answer import GrowingAnswer
from promptmill.backends.engines.hf.pooled_cache import KeysValues
from promptmill.backends.engines.hf.sampler import SamplerState


@dataclass(slots=True)
class ImageInputs:
    """One prompt's images as its model takes them."""

    whole: dict[str, Any]
    """Pixels, sizes and the like, as the processor made them."""
    marks: dict[str, Any]
    """One number per token of the prompt, `(1, tokens)`, that distinguishes text from image."""

    def inputs(self, tokens: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Return all inputs for a sequence of `tokens`: the prompt and, after a pause, text that follows it."""
        given = {name: _moved(value, device, dtype) for name, value in self.whole.items()}
        for name, marks in self.marks.items():
            longer = marks.new_zeros((*marks.shape[:-1], tokens))
            longer[..., : marks.shape[-1]] = marks
            given[name] = longer.to(device)
        return given


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device, dtype) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)


@dataclass(slots=True, eq=False, kw_only=True)
class RunningSequence(GrowingAnswer):
    """A request with the state of its computation."""

    choice: SamplerState
    image_inputs: ImageInputs | None = None
    offset: int = 0
    """Its position minus its number of tokens; not 0 in models that give an image fewer positions than tokens."""
    kept: KeysValues | None = None
    """The keys and values computed before it was paused."""
    turns: int = 0
    """Tokens computed since it joined the batch."""

    @property
    def sequence(self) -> list[int]:
        """The tokens to compute before the next one: the prompt and, after a pause, the answer so far."""
        return self.prompt + self.tokens

    def accept(self, token: int) -> bool:
        """Take the next token; return whether the answer is complete with it."""
        self.turns += 1
        return GrowingAnswer.accept(self, token)
