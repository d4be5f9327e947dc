"""The continuous decode loop: rows join and leave a running batch at any token."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch

from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.hf.cache import KeysValues, PooledCache, row_of
from promptmill.backends.engines.hf.decode_loop import DecodeLoop
from promptmill.backends.engines.hf.language_model import LanguageModel, left_padded
from promptmill.backends.engines.hf.schedule import Room, Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence

_QUANTUM = 64  # tokens that a row may compute before it makes room for a run that has no place at all


class Decoder(DecodeLoop):
    """Keeps as many rows computing as `room` says; each turn takes a piece of a prompt and one token of every row."""

    def __init__(self, model: LanguageModel, schedule: Schedule, channel: Channel, room: Room, chunk: int) -> None:
        super().__init__(model, schedule, channel, room.rows)
        self._limits = room
        self._chunk = chunk
        self._prefill: Prefill | None = None
        self._batch = ContinuousBatch(model, room.tokens)

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
        """Start the next prompts when there is room, or when a run has less than its share."""
        while self._prefill is None:
            rows = self._running()
            running = Counter(row.run for row in rows)
            free = min(self._room - len(rows), self._limits.more(len(rows), _longest(rows)))
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
                    self._schedule.put_back(row)  # until there is room for one as long as these
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
                # a prompt that cannot even begin has spoilt nothing that others computed
                self._mishap(self._reset(*taken) if is_resumed else taken, error)

    def _made_room(self, running: Counter[int]) -> int:
        """Pause a row of the run with the most for a run that has at least two fewer, or none; return the room made.

        A run without a place gets one from any row that had its turn, so that many runs go round.
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
            row.kept = None  # memory is for rows that run; computing it again takes less than it may wait
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
        """Give each row from place `first` on its next token; drop those that are answered with it."""
        advance = self._advance_rows(self._batch.rows[first:], scores)
        for place, token in enumerate(advance.tokens):
            if token is None:
                self._batch.wipe(first + place)
        self._batch.drop([first + place for place in advance.done])

    def _reset(self, *more: RunningSequence) -> list[RunningSequence]:
        """Give up what the batch has computed; return its rows and `more`, each once."""
        rows = list(dict.fromkeys([*self._batch.rows, *more]))
        self._batch = ContinuousBatch(self._model, self._limits.tokens)
        return rows

    def _given_up(self) -> list[RunningSequence]:
        prefill, self._prefill = self._prefill, None
        return self._reset(*(() if prefill is None else prefill.rows))


def _longest(rows: list[RunningSequence]) -> int:
    """Return how many tokens the longest of `rows` may come to; the columns of each in the cache are as many."""
    return max((len(row.prompt) + row.limit for row in rows), default=0)


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
