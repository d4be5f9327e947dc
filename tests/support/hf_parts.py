"""The parts of the backend `hf`, and torch, imported at their first use: they take 5 s of CPU in each process that
collects tests.

    import hf_parts as hf
    pytestmark = hf.NEEDED      # skipped without torch
    hf.Decoder, hf.torch.zeros(3)
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest

NEEDED = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
_MODULES = {
    "decode_loop": ("Decoder", "GenerateLoop"),
    "language_model": ("LanguageModel", "load_model"),
    "pooled_cache": ("PooledCache", "is_of_columns", "plain_cache"),
    "sampler": ("Penalties", "SamplerState", "choose"),
    "schedule": ("Capacity", "Schedule", "capacity_for"),
    "sequence": ("RunningSequence", "SequenceBuilder"),
    "vision": ("ImageInputs",),
}


def __getattr__(name: str) -> Any:
    if name in {"torch", "transformers"}:
        return importlib.import_module(name)
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"promptmill.backends.engines.hf.{module}"), name)
    raise AttributeError(name)
