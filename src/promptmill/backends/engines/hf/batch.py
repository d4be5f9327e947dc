"""The running batch, and prompts on their way into it."""

from __future__ import annotations

from typing import Any

import torch

from promptmill.backends.engines.hf.cache import KeysValues, PooledCache, row_of
from promptmill.backends.engines.hf.model import LanguageModel, left_padded
from promptmill.backends.engines.hf.sequence import RunningSequence


def _offset(positions: Any, rows: list[RunningSequence]) -> Any:
    """Return `positions`, `(rows, 1)`, as far behind the numbers of tokens as each row's images put them."""
    if not any(row.offset for row in rows):
        return positions
    return positions + torch.tensor([[row.offset] for row in rows], device=positions.device)


class ContinuousBatch:
    """A batch that rows join and leave at any token; needs a cache of plain columns."""

    def __init__(self, model: LanguageModel, tokens: int | None) -> None:
        """`tokens` is how many its cache makes room for (None: as many as come)."""
        self.rows: list[RunningSequence] = []
        self._model = model
        self._cache = PooledCache(len(model.new_cache().layers), tokens)

    def join(self, row: RunningSequence, content: KeysValues) -> None:
        """Add a row with what was computed of its sequence, all but its last token."""
        self._cache.add(content)
        self.rows.append(row)

    def leave(self, place: int) -> None:
        """Take a row out that goes on later, with its content."""
        self.rows[place].kept = self._cache.copy_of(place)
        self.drop([place])

    def wipe(self, place: int) -> None:
        """Leave nothing of what was computed for a row, where other rows will be."""
        self._cache.wipe(place)

    def drop(self, places: list[int]) -> None:
        """Take the rows at `places` out; the last ones move up."""
        for place in sorted(places, reverse=True):
            self._cache.remove(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()

    def step(self) -> Any:
        """Compute each row's last token; return the scores of its next, `(rows, vocabulary)`."""
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._model.device)
        positions = _offset(self._cache.advance(), self.rows)
        return self._model.scores(tokens, self._cache.mask, positions, self._cache, first=False)


class Prefill:
    """Prompts on their way into the cache: several of similar length at once, or a long one in pieces."""

    def __init__(self, model: LanguageModel, rows: list[RunningSequence], chunk: int) -> None:
        self.rows = rows
        self._model = model
        self._chunk = chunk if len(rows) == 1 and rows[0].image_inputs is None else None  # images may not be cut
        self._done = 0
        self._cache = model.new_cache()
        sequences = [row.sequence for row in rows]
        self._lengths = list(map(len, sequences))
        self._tokens, self._mask, self._positions = left_padded(sequences, model.device)
        self._seen: dict[str, Any] = {}
        if (image_inputs := rows[0].image_inputs) is not None:  # then it is the only row
            self._seen = image_inputs.inputs(self._lengths[0], model.device, model.network.dtype)
            self._positions, rows[0].offset = model.positions(self._tokens, self._mask, self._seen)

    def step(self) -> Any:
        """Compute the next piece; return the scores of the rows' next tokens after the last one, else None."""
        first, whole = self._done, self._tokens.shape[1]
        self._done = end = whole if self._chunk is None else min(whole, first + self._chunk)
        scores = self._model.scores(
            self._tokens[:, first:end],
            self._mask[:, :end],
            self._positions[..., first:end],
            self._cache,
            first=first == 0,
            seen=self._seen,
        )
        return scores if end == whole else None

    def content(self, place: int) -> KeysValues:
        """Return what was computed for a row, to join an open batch with."""
        return row_of(self._cache, place, self._lengths[place])
