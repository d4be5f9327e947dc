"""The keys and values of all running rows, in one buffer per layer that is written in place."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_STEP = 256  # the cache grows by at least this many columns (one per token)
_LEAST_STEP = 64  # the growth if memory is short
_LEAST_ROWS = 4

KeysValues: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""One row's part of a cache: per layer, keys and values of shape `(heads, tokens, width)`."""


def is_of_columns(cache: Cache) -> bool:
    """Return whether each layer of `cache` has one column of keys and values per token (or per token in its window)."""
    return bool(cache.layers) and all(
        type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in cache.layers
    )


def is_common(cache: Cache) -> bool:
    """Return whether all layers of `cache` are of transformers' common kinds. Some models define their own kinds."""
    return all(type(layer).__module__ == Cache.__module__ for layer in cache.layers)


def plain_cache(layers: int) -> DynamicCache:
    """Return an empty cache whose layers keep all columns."""
    cache = DynamicCache()
    cache.layers = [DynamicLayer() for _ in range(layers)]
    return cache


def row_of(cache: Cache, index: int, tokens: int) -> KeysValues:
    """Return views of the last `tokens` columns of one row in a cache of columns."""
    return [(layer.keys[index, :, -tokens:], layer.values[index, :, -tokens:]) for layer in cache.layers]


class _Window:
    """The used part of the buffers: `rows` rows, and the columns from `start` up to `end`."""

    def __init__(self) -> None:
        self.rows = self.start = self.end = 0
        self.room_rows = self.room_columns = 0


class _PooledLayer(DynamicLayer):  # type: ignore[misc]
    """The buffers of one layer. During a step, the window's last column is written."""

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self._window = window

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        window = self._window
        self.keys[: window.rows, :, window.end - 1 : window.end] = key_states
        self.values[: window.rows, :, window.end - 1 : window.end] = value_states
        visible = slice(window.start, window.end)
        return self.keys[: window.rows, :, visible], self.values[: window.rows, :, visible]

    def get_seq_length(self) -> int:
        return max(0, self._window.end - self._window.start - 1)

    def place(self, like: tuple[Any, Any], old: _Window, new: _Window) -> None:
        """Move the window's content to new buffers. `like` has the shape and type of a row."""
        for name, row in zip(("keys", "values"), like, strict=True):
            heads, _, width = row.shape
            buffer = row.new_zeros((new.room_rows, heads, new.room_columns, width))
            if old.rows:
                content = getattr(self, name)[: old.rows, :, old.start : old.end]
                buffer[: old.rows, :, new.start : new.end] = content
            setattr(self, name, buffer)
        self.is_initialized = True


class PooledCache(DynamicCache):  # type: ignore[misc]
    """A cache that rows join and leave. All rows end at the same column; short rows leave columns unused at the left.

    transformers' own cache is copied completely for every token, and rows cannot join it. These buffers grow with the
    rows, become smaller if they are moved after rows have left, and are freed when the last row leaves.
    """

    def __init__(self, layers: int, tokens: int | None = None) -> None:
        """`tokens`: the most tokens that the buffers have space for, unless the rows need more; None for no limit."""
        super().__init__()
        self._tokens = tokens
        self._window = _Window()
        self.layers = [_PooledLayer(self._window) for _ in range(layers)]
        self.lengths: list[int] = []
        self._mask = torch.zeros((0, 0), dtype=torch.long)

    @property
    def mask(self) -> torch.Tensor:
        """The mask of the used columns, `(rows, columns)`: 1 where a row has a token."""
        return self._mask[: self._window.rows, self._window.start : self._window.end]

    def add(self, content: KeysValues) -> None:
        """Add a row after the last row."""
        tokens = content[0][0].shape[1]
        window = self._window
        if window.rows == window.room_rows or tokens > window.end:
            self._place(content, window.rows + 1, max(tokens, window.end - window.start))
        slot, first = window.rows, window.end - tokens
        for layer, (keys, values) in zip(self.layers, content, strict=True):
            layer.keys[slot, :, first : window.end] = keys
            layer.values[slot, :, first : window.end] = values
        self._mask[slot] = 0
        self._mask[slot, first : window.end] = 1
        window.rows += 1
        window.start = min(window.start, first)
        self.lengths.append(tokens)

    def advance(self) -> torch.Tensor:
        """Open the column for the next token of all rows. Return the token's positions, `(rows, 1)`."""
        window = self._window
        if window.end == window.room_columns:
            any_row = [(layer.keys[0], layer.values[0]) for layer in self.layers]
            self._place(any_row, window.rows, window.end - window.start)
        self._mask[: window.rows, window.end] = 1
        window.end += 1
        positions = torch.tensor(self.lengths, device=self._mask.device).unsqueeze(1)
        self.lengths = [length + 1 for length in self.lengths]
        return positions

    def remove(self, slot: int) -> None:
        """Remove a row. The last row takes its place."""
        window = self._window
        last = window.rows - 1
        if slot != last:
            used = slice(window.end - self.lengths[last], window.end)
            for layer in self.layers:
                layer.keys[slot, :, used] = layer.keys[last, :, used]
                layer.values[slot, :, used] = layer.values[last, :, used]
            self._mask[slot] = self._mask[last]
        self.lengths[slot] = self.lengths[last]
        self.lengths.pop()
        window.rows = last
        if self.lengths:
            window.start = window.end - max(self.lengths)
        else:
            self._free()

    def go_back(self, slot: int, tokens: int) -> None:
        """Remove the last `tokens` columns of a row."""
        window, length = self._window, self.lengths[slot] - tokens
        old, new = (slice(window.end - length - back, window.end - back) for back in (tokens, 0))
        for layer in self.layers:
            layer.keys[slot, :, new] = layer.keys[slot, :, old].clone()
            layer.values[slot, :, new] = layer.values[slot, :, old].clone()
        self._mask[slot, old.start : new.start] = 0
        self.lengths[slot] = length
        window.start = window.end - max(self.lengths)

    def wipe(self, slot: int) -> None:
        """Set a row to zeros. NaNs leak through masks: 0 * NaN is NaN."""
        for layer in self.layers:
            layer.keys[slot] = 0
            layer.values[slot] = 0

    def copy_of(self, slot: int) -> KeysValues:
        """Return a copy of a row's content, with which the row can be added again."""
        used = slice(self._window.end - self.lengths[slot], self._window.end)
        return [(layer.keys[slot, :, used].clone(), layer.values[slot, :, used].clone()) for layer in self.layers]

    def _free(self) -> None:
        vars(self._window).update(vars(_Window()))
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False
        self._mask = torch.zeros((0, 0), dtype=torch.long)

    def _place(self, like: KeysValues, rows: int, columns: int) -> None:
        """Move to new buffers for `rows` rows of `columns`, with space for more rows and columns if memory allows."""
        old, new = self._window, _Window()
        new.rows = old.rows
        spare = max(_LEAST_ROWS, 2 * old.rows)
        new.room_rows = max(rows, spare if rows > old.room_rows else min(old.room_rows, spare))
        new.room_columns = columns + max(_STEP, columns // 2)
        if self._tokens is not None:
            new.room_columns = max(columns + _LEAST_STEP, min(new.room_columns, self._tokens // rows))
            new.room_rows = max(rows, min(new.room_rows, self._tokens // new.room_columns))
        new.end = columns
        new.start = new.end - (old.end - old.start)
        mask = torch.zeros((new.room_rows, new.room_columns), dtype=torch.long, device=like[0][0].device)
        mask[: old.rows, new.start : new.end] = self.mask
        for layer, row in zip(self.layers, like, strict=True):
            layer.place(row, old, new)
        self._mask = mask
        vars(self._window).update(vars(new))
