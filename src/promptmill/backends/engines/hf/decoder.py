"""The continuous decode loop: rows join and leave a running batch at any token."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.hf.batch import ContinuousBatch, Prefill
from promptmill.backends.engines.hf.decode_loop import DecodeLoop
from promptmill.backends.engines.hf.model import LanguageModel
from promptmill.backends.engines.hf.room import Room
from promptmill.backends.engines.hf.schedule import Schedule
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
            except Exception as error:  # noqa: BLE001 (sorted out there)
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
        except Exception as error:  # noqa: BLE001 (sorted out there)
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
        except Exception as error:  # noqa: BLE001 (sorted out there)
            self._mishap(self._reset(*prefill.rows), error)
            return
        self._accept(before, scores)

    def _advance(self) -> None:
        try:
            scores = self._batch.step()
        except Exception as error:  # noqa: BLE001 (sorted out there)
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
