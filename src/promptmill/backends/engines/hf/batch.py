"""Rows that are computed together, one token each per step."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from promptmill.backends.engines.hf.cache import KeysValues, PooledCache, row_of
from promptmill.backends.engines.hf.model import LanguageModel, left_padded
from promptmill.backends.engines.hf.row import Row


class Batch(Protocol):
    """Running rows with what they have computed so far."""

    rows: list[Row]

    def step(self) -> Any:
        """Compute each row's last token; return the scores of its next, `(rows, vocabulary)`."""
        ...

    def drop(self, places: list[int]) -> None:
        """Take the rows at `places` out."""
        ...


class OpenBatch:
    """A batch that rows join and leave at any token; needs a cache of plain columns."""

    def __init__(self, model: LanguageModel) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._cache = PooledCache(len(model.new_cache().layers))

    def join(self, row: Row, content: KeysValues) -> None:
        """Add a row with what was computed of its sequence, all but its last token."""
        self._cache.add(content)
        self.rows.append(row)

    def leave(self, place: int) -> None:
        """Take a row out that goes on later, with its content."""
        self.rows[place].kept = self._cache.copy_of(place)
        self.drop([place])

    def drop(self, places: list[int]) -> None:
        """Take the rows at `places` out; the last ones move up."""
        for place in sorted(places, reverse=True):
            self._cache.remove(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()

    def step(self) -> Any:
        """Compute each row's last token; return the scores of its next, `(rows, vocabulary)`."""
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._model.device)
        positions = self._cache.advance()
        return self._model.scores(tokens, self._cache.mask, positions, self._cache, first=False)


class ClosedBatch:
    """A batch that rows only leave, as they were prefilled together: for windows, recurrent states and the like."""

    def __init__(self, model: LanguageModel, rows: list[Row], cache: Cache, mask: Any) -> None:
        self.rows = list(rows)
        self._model = model
        self._cache = cache
        self._mask = mask

    def drop(self, places: list[int]) -> None:
        """Take the rows at `places` out."""
        stay = [place for place in range(len(self.rows)) if place not in set(places)]
        self.rows = [self.rows[place] for place in stay]
        if stay:
            chosen = torch.tensor(stay, device=self._mask.device)
            self._cache.reorder_cache(chosen)
            self._mask = self._mask.index_select(0, chosen)

    def step(self) -> Any:
        """Compute each row's last token; return the scores of its next, `(rows, vocabulary)`."""
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._model.device)
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(self.rows), 1))], dim=1)
        positions = self._mask.sum(1, keepdim=True) - 1
        return self._model.scores(tokens, self._mask, positions, self._cache, first=False)


class Prefill:
    """Prompts on their way into the cache: several of similar length at once, or a long one in pieces."""

    def __init__(self, model: LanguageModel, rows: list[Row], chunk: int) -> None:
        self.rows = rows
        self._model = model
        # rows that cannot be merged later may not be cut either: their states are not plain columns
        self._chunk = chunk if len(rows) == 1 and model.merges_rows else None
        self._done = 0
        self.cache = model.new_cache()
        sequences = [row.sequence for row in rows]
        self._lengths = list(map(len, sequences))
        self._tokens, self.mask, self._positions = left_padded(sequences, model.device)

    def step(self) -> Any:
        """Compute the next piece; return the scores of the rows' next tokens after the last one, else None."""
        first, whole = self._done, self._tokens.shape[1]
        self._done = end = whole if self._chunk is None else min(whole, first + self._chunk)
        scores = self._model.scores(
            self._tokens[:, first:end],
            self.mask[:, :end],
            self._positions[:, first:end],
            self.cache,
            first=first == 0,
        )
        return scores if end == whole else None

    def content(self, place: int) -> KeysValues:
        """Return what was computed for a row, to join an open batch with."""
        return row_of(self.cache, place, self._lengths[place])
