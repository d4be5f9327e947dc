"""How many rows are computed together, by the model's size and by the memory for what they have computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from promptmill.backends.engines import hardware
from promptmill.backends.engines.hf.model import LanguageModel

_STATIC_ROWS = 8  # where rows cannot join a running batch: a batch takes as long as its longest
_CACHE_SHARE = 3  # of free memory one part in this many; what is being moved is there twice


@dataclass(frozen=True, slots=True)
class Room:
    """At most `rows` rows, and together `tokens` tokens in the cache (None: nobody can tell)."""

    rows: int
    tokens: int | None = None

    def more(self, rows: int, longest: int) -> int:
        """Return how many may join `rows` rows when the longest of all takes `longest` tokens; each takes as many."""
        by_memory = self.rows if self.tokens is None or not longest else self.tokens // longest
        return min(self.rows, by_memory) - rows


def room_for(model: LanguageModel, wanted: int | None) -> Room:
    """Return the room of a loaded model; `wanted` are the rows that the operator named."""
    if wanted is not None:
        return Room(wanted)
    if not model.merges_rows:
        return Room(_STATIC_ROWS)
    free, token = _free_memory(model.device), _bytes_per_token(model)
    tokens = None if free is None or token is None else free // _CACHE_SHARE // token
    return Room(hardware.batch_rows(model.device.type, model.parameters), tokens)


def _free_memory(device: torch.device) -> int | None:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else hardware.free_memory()


def _bytes_per_token(model: LanguageModel) -> int | None:
    """Return the size of the keys and values of one token; None for models whose configuration does not say."""
    config = model.config
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * width * model.network.dtype.itemsize)
    except (AttributeError, TypeError, ZeroDivisionError):
        return None
