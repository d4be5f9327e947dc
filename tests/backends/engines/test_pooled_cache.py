"""The pooled cache equals transformers' own cache while rows join and leave."""

from __future__ import annotations

import random
from typing import Any

import pytest

import hf_parts as hf

pytestmark = hf.NEEDED


LAYERS, HEADS, WIDTH = 2, 3, 4


def content_of(tokens: int) -> list[tuple[Any, Any]]:
    return [(hf.torch.randn(HEADS, tokens, WIDTH), hf.torch.randn(HEADS, tokens, WIDTH)) for _ in range(LAYERS)]


def append(content, keys, values):
    return [
        (hf.torch.cat([old_keys, keys[layer]], 1), hf.torch.cat([old_values, values[layer]], 1))
        for layer, (old_keys, old_values) in enumerate(content)
    ]


def test_rows_keep_their_content_through_any_coming_and_going():
    hf.torch.set_num_threads(1)  # several wait for each other where others compute
    chance = random.Random(4)
    cache, rows = hf.PooledCache(LAYERS), []
    for _ in range(400):
        if rows and chance.random() < 0.1:
            slot = chance.randrange(len(rows))
            cache.remove(slot)
            rows[slot] = rows[-1]
            rows.pop()
        if len(rows) < 6 and chance.random() < 0.15:
            rows.append(content_of(chance.choice([1, 5, 40, 300, 700])))
            cache.add(rows[-1])
        if not rows:
            continue
        slot, back = chance.randrange(len(rows)), chance.randrange(1, 4)
        if chance.random() < 0.2 and rows[slot][0][0].shape[1] > back:
            cache.go_back(slot, back)
            rows[slot] = [(keys[:, :-back], values[:, :-back]) for keys, values in rows[slot]]
        positions = cache.advance()
        assert positions.squeeze(1).tolist() == [content[0][0].shape[1] for content in rows]
        keys = hf.torch.randn(LAYERS, len(rows), HEADS, 1, WIDTH)
        values = hf.torch.randn(LAYERS, len(rows), HEADS, 1, WIDTH)
        past = cache.get_seq_length()
        for layer in range(LAYERS):
            seen_keys, seen_values = cache.update(keys[layer], values[layer], layer)
            assert seen_keys.shape[2] == past + 1 == cache.mask.shape[1]
            assert seen_keys.isfinite().all()
            assert seen_values.isfinite().all()
        rows = [append(row, keys[:, slot], values[:, slot]) for slot, row in enumerate(rows)]
        for slot, row in enumerate(rows):
            used = cache.mask[slot].bool()
            assert hf.torch.equal(seen_keys[slot][:, used], row[-1][0])
            assert hf.torch.equal(seen_values[slot][:, used], row[-1][1])
    for slot, row in enumerate(rows):
        for (keys, values), (expected_keys, expected_values) in zip(cache.copy_of(slot), row, strict=True):
            assert hf.torch.equal(keys, expected_keys)
            assert hf.torch.equal(values, expected_values)


def room_of(cache) -> tuple[int, int]:
    """Return for how many rows and columns the buffers have room."""
    keys = cache.layers[0].keys
    return (0, 0) if keys is None else (keys.shape[0], keys.shape[2])


def test_buffers_are_as_large_as_the_rows_there_are_not_as_they_once_were():
    cache = hf.PooledCache(LAYERS)
    for _ in range(64):
        cache.add(content_of(5))
    assert room_of(cache)[0] == 64
    for _ in range(63):
        cache.remove(0)
    cache.add(content_of(3000))
    assert room_of(cache) == (4, 4500), "two rows are there"
    cache.remove(1)
    cache.remove(0)
    assert room_of(cache) == (0, 0), "nothing is kept for nobody"
    cache.add(content_of(3000))
    assert room_of(cache) == (4, 4500)


def test_buffers_have_no_more_room_than_memory_unless_the_rows_need_it():
    cache = hf.PooledCache(LAYERS, tokens=2_000)
    for _ in range(20):
        cache.add(content_of(50))
        rows, columns = room_of(cache)
        assert rows * columns <= 20 * (50 + 64)
    for _ in range(300):
        cache.advance()
    rows, columns = room_of(cache)
    assert rows == 20
    assert columns <= 350 + 64
    while len(cache.lengths) > 1:
        cache.remove(0)
    cache.add(content_of(400))
    rows, columns = room_of(cache)
    assert rows * columns <= 2_000


def test_only_caches_that_keep_columns_can_become_plain():
    from transformers import DynamicCache, LlamaConfig, MambaConfig, MistralConfig
    from transformers.cache_utils import DynamicLayer

    assert hf.is_of_columns(DynamicCache(config=LlamaConfig()))
    assert hf.is_of_columns(DynamicCache(config=MistralConfig(sliding_window=64)))
    assert not hf.is_of_columns(DynamicCache(config=MambaConfig()))
    assert not hf.is_of_columns(DynamicCache())
    assert [type(layer) for layer in hf.plain_cache(3).layers] == [DynamicLayer] * 3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shared", [1, 3, 9])
def test_grouped_attention_computes_what_transformers_does(masked, shared):
    from types import SimpleNamespace

    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from promptmill.backends.engines.hf.language_model import _attention

    query = hf.torch.randn(4, 9, 1, 16)
    key, value = hf.torch.randn(4, shared, 33, 16), hf.torch.randn(4, shared, 33, 16)
    mask = hf.torch.rand(4, 1, 1, 33) > 0.3 if masked else None
    module = SimpleNamespace(num_key_value_groups=9 // shared, is_causal=True)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.2)
    answered, _ = _attention(module, query, key, value, mask, scaling=0.2)
    assert answered.shape == expected.shape == (4, 1, 9, 16)
    assert hf.torch.allclose(answered, expected, atol=1e-6)
