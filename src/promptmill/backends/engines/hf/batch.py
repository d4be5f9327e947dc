"""Batches of rows that compute one token each per step."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from promptmill.backends.engines.hf.cache import KeysValues, PooledCache, row_of
from promptmill.backends.engines.hf.model import LanguageModel, left_padded
from promptmill.backends.engines.hf.sequence import RunningSequence


def _offset(positions: Any, rows: list[RunningSequence]) -> Any:
    """Return `positions`, `(rows, 1)`, as far behind the numbers of tokens as each row's images put them."""
    if not any(row.offset for row in rows):
        return positions
    return positions + torch.tensor([[row.offset] for row in rows], device=positions.device)


class Batch(Protocol):
    """Running rows with what they have computed so far."""

    rows: list[RunningSequence]

    def step(self) -> Any:
        """Compute each row's last token; return the scores of its next, `(rows, vocabulary)`."""
        ...

    def drop(self, places: list[int]) -> None:
        """Take the rows at `places` out."""
        ...


class ContinuousBatch:
    """A batch that rows join and leave at any token; needs a cache of plain columns."""

    def __init__(self, model: LanguageModel) -> None:
        self.rows: list[RunningSequence] = []
        self._model = model
        self._cache = PooledCache(len(model.new_cache().layers))

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


class StaticBatch:
    """A batch that rows only leave, as they were prefilled together: for windows, recurrent states and the like."""

    def __init__(self, model: LanguageModel, rows: list[RunningSequence], cache: Cache, mask: Any) -> None:
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
        positions = _offset(self._mask.sum(1, keepdim=True) - 1, self.rows)
        return self._model.scores(tokens, self._mask, positions, self._cache, first=False)


class Prefill:
    """Prompts on their way into the cache: several of similar length at once, or a long one in pieces."""

    def __init__(self, model: LanguageModel, rows: list[RunningSequence], chunk: int) -> None:
        self.rows = rows
        self._model = model
        # rows that cannot be merged later may not be cut either: their states are not plain columns; nor may images
        self._chunk = chunk if len(rows) == 1 and model.merges_rows and rows[0].image_inputs is None else None
        self._done = 0
        self.cache = model.new_cache()
        sequences = [row.sequence for row in rows]
        self._lengths = list(map(len, sequences))
        self._tokens, self.mask, self._positions = left_padded(sequences, model.device)
        self._seen: dict[str, Any] = {}
        if (image_inputs := rows[0].image_inputs) is not None:  # then it is the only row
            self._seen = image_inputs.inputs(self._lengths[0], model.device, model.network.dtype)
            self._positions, rows[0].offset = model.positions(self._tokens, self.mask, self._seen)

    def step(self) -> Any:
        """Compute the next piece; return the scores of the rows' next tokens after the last one, else None."""
        first, whole = self._done, self._tokens.shape[1]
        self._done = end = whole if self._chunk is None else min(whole, first + self._chunk)
        scores = self._model.scores(
            self._tokens[:, first:end],
            self.mask[:, :end],
            self._positions[..., first:end],
            self.cache,
            first=first == 0,
            seen=self._seen,
        )
        return scores if end == whole else None

    def content(self, place: int) -> KeysValues:
        """Return what was computed for a row, to join an open batch with."""
        return row_of(self.cache, place, self._lengths[place])


class SingleSequence:
    """A row by itself, prompt and tokens, step by step as transformers' own loop computes it.

    For models that carry more than a cache from one token to the next; a batch of one row.
    """

    def __init__(self, model: LanguageModel, row: RunningSequence) -> None:
        self.rows = [row]
        self._model = model
        self._first = True
        self._tokens, mask, positions = left_padded([row.sequence], model.device)
        seen: dict[str, Any] = {}
        if row.image_inputs is not None:
            seen = row.image_inputs.inputs(len(row.sequence), model.device, model.network.dtype)
            positions, _ = model.positions(self._tokens, mask, seen)
        self._carried = {
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": model.new_cache(),
            "use_cache": True,
            **seen,
        }

    def drop(self, places: list[int]) -> None:
        """Take the row out."""
        if places:
            self.rows = []

    def step(self) -> Any:
        """Compute the prompt, or the last token; return the scores of the next, `(1, vocabulary)`."""
        network = self._model.network
        if not self._first:
            self._tokens = torch.tensor([[self.rows[0].tokens[-1]]], device=self._model.device)
        inputs = network.prepare_inputs_for_generation(self._tokens, is_first_iteration=self._first, **self._carried)
        answered = network(**inputs, return_dict=True)
        self._carried = network._update_model_kwargs_for_generation(answered, self._carried, is_encoder_decoder=False)
        self._first = False
        return answered.logits[:, -1].float()
