"""The continuous decode loop: rows join and leave a running batch at any token.

One turn computes a piece of a new prompt, if one is admitted, and one token of every row in the batch:

    waiting ──admit──▶ Prefill ──join──▶ ContinuousBatch ──token──▶ answered
       ▲               (a piece a turn)        │
       └───────────pause, keys kept────────────┘

A row is admitted while `Capacity` allows. If the batch is full, a row of the call with the most running rows is paused
for a call that has at least two fewer. A call without any running row gets a place from any row that has had
`_QUANTUM` tokens, so that all calls progress. A long prompt is computed in pieces, so that the batch never waits long.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch

from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.hf.decode_loop import DecodeLoop
from promptmill.backends.engines.hf.language_model import LanguageModel, left_padded
from promptmill.backends.engines.hf.pooled_cache import KeysValues, PooledCache, row_of
from promptmill.backends.engines.hf.schedule import Capacity, Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence

_QUANTUM = 64  # tokens that a row may compute before it is paused for a call without a running row


class Decoder(DecodeLoop):
    """Runs the batch; see the module's rule."""

    def __init__(
        self, model: LanguageModel, schedule: Schedule, channel: Channel, capacity: Capacity, chunk: int
    ) -> None:
        super().__init__(model, schedule, channel, capacity.rows)
        self._limits = capacity
        self._chunk = chunk
        self._prefill: Prefill | None = None
        self._batch = ContinuousBatch(model, capacity.tokens)

    def _turn(self) -> None:
        self._drop_cancelled()
        self._admit()
        self._advance_prefill()
        if self._batch.rows:
            self._advance()

    def _running(self) -> list[RunningSequence]:
        return self._batch.rows if self._prefill is None else [*self._batch.rows, *self._prefill.rows]

    def _drop_cancelled(self) -> None:
        rows = self._batch.rows
        self._batch.drop([place for place, row in enumerate(rows) if self._schedule.is_cancelled(row.run)])
        if self._prefill is not None and all(self._schedule.is_cancelled(row.run) for row in self._prefill.rows):
            self._prefill = None

    def _admit(self) -> None:
        """Start the next prompts if there is capacity, or if a run has less than its share."""
        while self._prefill is None:
            rows = self._running()
            running = Counter(row.run for row in rows)
            free = min(self._places - len(rows), self._limits.more(len(rows), _longest(rows)))
            if free <= 0:
                free = self._made_room(running)
            if free <= 0:
                return
            taken = self._schedule.take(free, self._chunk, running)
            if not taken:
                return
            rows = self._running()
            if rows and self._limits.more(len(rows), _longest([*rows, *taken])) < len(taken):
                for row in reversed(taken):
                    self._schedule.put_back(row)  # until a row of this length fits
                return
            for row in taken:
                row.turns = 0
                row.started = row.started or time.monotonic()
            is_resumed = taken[0].kept is not None
            try:
                if is_resumed:
                    self._resume(taken[0])
                else:
                    self._prefill = Prefill(self._model, taken, self._chunk)
            except Exception as error:
                # a prompt that fails before its first step has not damaged the batch
                self._mishap(self._reset(*taken) if is_resumed else taken, error)

    def _made_room(self, running: Counter[int]) -> int:
        """Pause a row of the run with the most for a run with at least two fewer, or none; return the places freed.

        A run without a place gets one from any row that has had its quantum, so that many runs take turns.
        """
        fewest = self._schedule.fewest_running(running)
        if fewest is None:
            return 0
        most = max(running.values())
        rows = self._batch.rows
        places = [i for i, row in enumerate(rows) if running[row.run] == most]
        if most - fewest < 2:
            places = [i for i in places if rows[i].turns >= _QUANTUM] if fewest == 0 else []
        if not places:
            return 0
        place = max(places, key=lambda i: rows[i].turns)
        row = rows[place]
        self._batch.leave(place)
        if self._schedule.kept() >= self._most:
            row.kept = None  # memory is for running rows; recomputing takes less time than the row may wait
        self._schedule.put_back(row)
        return 1

    def _resume(self, row: RunningSequence) -> None:
        assert row.kept is not None
        content, row.kept = row.kept, None
        self._batch.join(row, content)

    def _advance_prefill(self) -> None:
        prefill = self._prefill
        if prefill is None:
            return
        try:
            scores = prefill.step()
        except Exception as error:
            self._prefill = None
            self._mishap(prefill.rows, error)
            return
        if scores is None:
            return
        self._prefill = None
        before = len(self._batch.rows)
        try:
            for place, row in enumerate(prefill.rows):
                self._batch.join(row, prefill.content(place))
        except Exception as error:
            self._mishap(self._reset(*prefill.rows), error)
            return
        self._accept(before, scores)

    def _advance(self) -> None:
        try:
            scores = self._batch.step()
        except Exception as error:
            self._mishap(self._reset(), error)
            return
        self._accept(0, scores)
        self._stepped()

    def _accept(self, first: int, scores: Any) -> None:
        """Give each row from place `first` on its next token; drop the rows that are finished with it."""
        advance = self._advance_rows(self._batch.rows[first:], scores)
        for place, token in enumerate(advance.tokens):
            if token is None:
                self._batch.wipe(first + place)
        self._batch.drop([first + place for place in advance.done])

    def _reset(self, *more: RunningSequence) -> list[RunningSequence]:
        """Discard the batch's computed state; return its rows and `more`, each once."""
        rows = list(dict.fromkeys([*self._batch.rows, *more]))
        self._batch = ContinuousBatch(self._model, self._limits.tokens)
        return rows

    def _given_up(self) -> list[RunningSequence]:
        prefill, self._prefill = self._prefill, None
        return self._reset(*(() if prefill is None else prefill.rows))


def _longest(rows: list[RunningSequence]) -> int:
    """Return the longest possible length of any of `rows`; every row takes that many columns of the cache."""
    return max((len(row.prompt) + row.limit for row in rows), default=0)


def _offset(positions: Any, rows: list[RunningSequence]) -> Any:
    """Return `positions`, `(rows, 1)`, shifted by each row's offset, which its images cause."""
    if not any(row.offset for row in rows):
        return positions
    return positions + torch.tensor([[row.offset] for row in rows], device=positions.device)


class ContinuousBatch:
    """A batch that rows join and leave at any token. Requires a cache of plain columns."""

    def __init__(self, model: LanguageModel, tokens: int | None) -> None:
        """`tokens` is the capacity of its cache (None: no limit)."""
        self.rows: list[RunningSequence] = []
        self._model = model
        self._cache = PooledCache(len(model.new_cache().layers), tokens)

    def join(self, row: RunningSequence, content: KeysValues) -> None:
        """Add a row with the keys and values of its sequence, all but the last token."""
        self._cache.add(content)
        self.rows.append(row)

    def leave(self, place: int) -> None:
        """Remove a row that continues later; it keeps its content."""
        self.rows[place].kept = self._cache.copy_of(place)
        self.drop([place])

    def wipe(self, place: int) -> None:
        """Erase a row's content, because another row will use its place."""
        self._cache.wipe(place)

    def drop(self, places: list[int]) -> None:
        """Remove the rows at `places`; the last rows take their places."""
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
    """The computation of prompts before they join: several of similar length at once, or a long one in pieces."""

    def __init__(self, model: LanguageModel, rows: list[RunningSequence], chunk: int) -> None:
        self.rows = rows
        self._model = model
        self._chunk = (
            chunk if len(rows) == 1 and rows[0].image_inputs is None else None
        )  # a prompt with images is computed at once
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
        """Compute the next piece; after the last one return the scores of the rows' next tokens, else None."""
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
        """Return the keys and values of a row, with which it joins the batch."""
        return row_of(self._cache, place, self._lengths[place])
