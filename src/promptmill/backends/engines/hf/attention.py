"""Attention over a cache, for one new token per row, without a copy of the cache per group of query heads."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def install() -> None:
    """Stand in for transformers' `sdpa` attention in this process."""
    AttentionInterface.register("sdpa", _attention)


def _attention(  # noqa: PLR0917 (transformers' signature)
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **options: Any
) -> Any:
    """Compute as `sdpa_attention_forward` does: `(rows, heads, 1, width)` queries → `(rows, 1, heads, width)`.

    Where several query heads share one head of the cache, transformers repeats the cache for each of them. For a single
    new token the heads of a group can be taken as several tokens instead: the same sums without the copy, five times
    as fast in bfloat16 on a CPU (8 rows, 100 to 1,500 columns, 9 query heads on 3).
    """
    rows, heads, tokens, _ = query.shape
    shared = key.shape[1]
    plain = not options.get("dropout") and options.get("position_bias") is None and options.get("cache") is None
    mask_fits = attention_mask is None or attention_mask.shape[1] == 1
    if tokens != 1 or heads == shared or not plain or not mask_fits:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    grouped = query.reshape(rows, shared, heads // shared, query.shape[-1])
    if attention_mask is not None:
        attention_mask = attention_mask.expand(-1, -1, heads // shared, -1)
    answered = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return torch.reshape(answered, (rows, 1, heads, value.shape[-1])), None
