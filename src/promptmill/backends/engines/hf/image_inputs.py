"""Image inputs of a prompt for the prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True)
class ImageInputs:
    """One prompt's images as its model takes them."""

    whole: dict[str, Any]
    """Pixels, sizes and the like, as the processor made them."""
    marks: dict[str, Any]
    """One number per token of the prompt, `(1, tokens)`: what is text and what is image."""

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
