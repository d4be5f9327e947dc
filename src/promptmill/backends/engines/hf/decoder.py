"""The decode loop: rows in, one token each per step, finished rows out."""

from __future__ import annotations

import gc
import time
from collections import Counter
from typing import Any, NoReturn

import torch

from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.hf.batch import Batch, ContinuousBatch, Prefill, SingleSequence, StaticBatch
from promptmill.backends.engines.hf.model import LanguageModel
from promptmill.backends.engines.hf.room import Room
from promptmill.backends.engines.hf.sampler import choose
from promptmill.backends.engines.hf.schedule import Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.system.frames import Frame

_QUANTUM = 64  # tokens that a row may compute before it makes room for a run that has no place at all
_RECOVERY = 512  # steps without running out of memory after which one more row is tried
_MISHAPS = 3  # a row that went wrong this often with others is the one that is wrong


class Decoder:
    """Keeps as many rows computing as `room` says; each turn takes a piece of a prompt and one token of every row."""

    def __init__(self, model: LanguageModel, schedule: Schedule, channel: Channel, room: Room, chunk: int) -> None:
        self._model = model
        self._schedule = schedule
        self._channel = channel
        self._limits = room
        self._most = self._room = room.rows
        self._chunk = chunk
        self._together = chunk if model.merges_rows else 4 * chunk
        self._prefill: Prefill | SingleSequence | None = None
        self._open = ContinuousBatch(model) if model.merges_rows and not model.alone else None
        self._closed: list[StaticBatch | SingleSequence] = []
        self._steps = 0

    def run(self) -> NoReturn:
        """Work until the process ends."""
        with torch.inference_mode():
            while True:
                try:
                    self._turn()
                except Exception as error:  # noqa: BLE001 (sorted out there)
                    self._mishap(self._given_up(), error)
                if not self._running():
                    self._schedule.wait()

    def _turn(self) -> None:
        self._drop_cancelled()
        self._admit()
        self._advance_prefill()
        for batch in self._batches():
            self._advance(batch)

    def _batches(self) -> list[Batch]:
        return [batch for batch in (self._open, *self._closed) if batch is not None and batch.rows]

    def _running(self) -> list[RunningSequence]:
        rows = [row for batch in self._batches() for row in batch.rows]
        return rows if self._prefill is None else [*rows, *self._prefill.rows]

    def _drop_cancelled(self) -> None:
        for batch in self._batches():
            self._drop(batch, [i for i, row in enumerate(batch.rows) if self._schedule.is_cancelled(row.run)])
        if self._prefill is not None and all(self._schedule.is_cancelled(row.run) for row in self._prefill.rows):
            self._prefill = None

    def _admit(self) -> None:
        """Start the next prompts when there is room, or when a run has less than its share."""
        while self._prefill is None:
            rows = self._running()
            running = Counter(row.run for row in rows)
            free = min(self._room - len(rows), self._limits.more(len(rows), _longest(rows)))
            if self._open is None:
                free = self._worth_a_batch(free, running)
            elif free <= 0:
                free = self._made_room(running)
            if free <= 0:
                return
            taken = self._schedule.take(1 if self._model.alone else free, self._together, running)
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
            resumed = self._open if taken[0].kept is not None else None
            try:
                if self._model.alone:
                    self._prefill = SingleSequence(self._model, taken[0])
                elif taken[0].kept is None:
                    self._prefill = Prefill(self._model, taken, self._chunk)
                else:
                    self._resume(taken[0])
            except Exception as error:  # noqa: BLE001 (sorted out there)
                # a prompt that cannot even begin has spoilt nothing that others computed
                self._mishap(taken if resumed is None else self._reset(resumed, *taken), error)

    def _worth_a_batch(self, free: int, running: Counter[int]) -> int:
        """Return how many rows to start as a closed batch: many at a time, for each such batch is a step of its own.

        A run without a place need not wait for that; as no row can be paused, it computes beside the others.
        """
        if self._schedule.fewest_running(running) == 0:
            return max(free, 1 if running.total() < 2 * self._room else 0)
        return free if 2 * free >= self._room else 0

    def _made_room(self, running: Counter[int]) -> int:
        """Pause a row of the run with the most for a run that has at least two fewer, or none; return the room made.

        A run without a place gets one from any row that had its turn, so that many runs go round.
        """
        fewest = self._schedule.fewest_running(running)
        if fewest is None:
            return 0
        assert self._open is not None
        most = max(running.values())
        rows = self._open.rows
        places = [i for i, row in enumerate(rows) if running[row.run] == most]
        if most - fewest < 2:
            places = [i for i in places if rows[i].turns >= _QUANTUM] if fewest == 0 else []
        if not places:
            return 0
        place = max(places, key=lambda i: rows[i].turns)
        row = rows[place]
        self._open.leave(place)
        if self._schedule.kept() >= self._most:
            row.kept = None  # memory is for rows that run; computing it again takes less than it may wait
        self._schedule.put_back(row)
        return 1

    def _resume(self, row: RunningSequence) -> None:
        assert self._open is not None
        assert row.kept is not None
        content, row.kept = row.kept, None
        self._open.join(row, content)

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
        batch: Batch
        if isinstance(prefill, SingleSequence):
            batch = prefill
            self._closed.append(prefill)
        elif self._open is None:
            batch = StaticBatch(self._model, prefill.rows, prefill.cache, prefill.mask)
            self._closed.append(batch)
        else:
            batch = self._open
            try:
                for place, row in enumerate(prefill.rows):
                    batch.join(row, prefill.content(place))
            except Exception as error:  # noqa: BLE001 (sorted out there)
                self._mishap(self._reset(batch, *prefill.rows), error)
                return
        self._accept(batch, len(batch.rows) - len(prefill.rows), scores)

    def _advance(self, batch: Batch) -> None:
        try:
            scores = batch.step()
        except Exception as error:  # noqa: BLE001 (sorted out there)
            self._mishap(self._reset(batch), error)
            return
        self._accept(batch, 0, scores)
        self._steps += 1
        if self._room < self._most and self._steps % _RECOVERY == 0:
            self._room += 1

    def _accept(self, batch: Batch, first: int, scores: Any) -> None:
        """Choose the next token of each row from place `first` on; answer the rows that are complete with it."""
        rows = batch.rows[first:]
        wrong: dict[int, Exception] = {}
        for place, row in enumerate(rows):
            try:
                row.choice.penalise(scores[place], row.prompt, row.tokens)
            except Exception as error:  # noqa: BLE001 (this row's alone)
                wrong[place] = error
        done = []
        for place, (row, token) in enumerate(zip(rows, choose(scores, [row.choice for row in rows]), strict=True)):
            try:
                if place in wrong:
                    raise wrong[place]
                if token is None:
                    if isinstance(batch, ContinuousBatch):
                        batch.wipe(first + place)
                    raise PromptmillError(
                        Code.INTERNAL,
                        "The model's scores became NaN, as happens in float16.",
                        "Set `dtype: bfloat16` or `dtype: float32`.",
                    )
                if row.accept(token, self._model.texts):
                    self._answer(row, row.outcome(self._model.texts))
                    done.append(first + place)
                elif self._model.border == len(row.prompt) + len(row.tokens) - 1:
                    # it crosses the border: what was computed counts no more
                    self._schedule.put_back(row)
                    done.append(first + place)
                elif (preview := row.preview(self._model.texts)) is not None:
                    self._channel.send(preview)
            except Exception as error:  # noqa: BLE001 (this row's alone)
                self._answer(row, row.failure(_explained(error)))
                done.append(first + place)
        self._drop(batch, done)

    def _answer(self, row: RunningSequence, outcome: Frame) -> None:
        row.answered = True
        self._channel.send(outcome)

    def _drop(self, batch: Batch, places: list[int]) -> None:
        if places:
            batch.drop(places)
        self._closed = [closed for closed in self._closed if closed.rows]

    def _reset(self, batch: Batch, *more: RunningSequence) -> list[RunningSequence]:
        """Give up what `batch` has computed; return its rows and `more`, each once."""
        rows = list(dict.fromkeys([*batch.rows, *more]))
        if batch is self._open:
            self._open = ContinuousBatch(self._model)
        self._closed = [closed for closed in self._closed if closed is not batch]
        return rows

    def _given_up(self) -> list[RunningSequence]:
        """Give up everything that is being computed; return its rows."""
        rows = self._running()
        self._prefill, self._closed = None, []
        if self._open is not None:
            self._open = ContinuousBatch(self._model)
        return list(dict.fromkeys(rows))

    def _mishap(self, rows: list[RunningSequence], error: Exception) -> None:
        """Let `rows` start over, fewer at a time, after a step failed; a row that fails alone gets the error.

        Raises `error` when it does not concern one row, or the device itself is broken: this process
        cannot continue then.
        """
        no_memory = _is_out_of_memory(error)
        if not rows or (not no_memory and isinstance(error, getattr(torch, "AcceleratorError", ()))):
            raise error
        alone = len(rows) == 1 and not self._running()
        if no_memory:
            self._room = max(1, (len(rows) + len(self._running())) // 2)
            self._schedule.drop_kept()
            error.__traceback__ = None  # it holds on to the tensors of the step
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for row in reversed([row for row in rows if not row.answered]):
            row.mishaps += not no_memory
            row.kept = None
            if alone or (len(rows) == 1 and not no_memory) or row.mishaps >= _MISHAPS:
                self._answer(row, row.failure(_explained(error)))
            else:
                self._schedule.put_back(row)


def _longest(rows: list[RunningSequence]) -> int:
    """Return how many tokens the longest of `rows` may come to; the columns of each in the cache are as many."""
    return max((len(row.prompt) + row.limit for row in rows), default=0)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))


def _explained(error: Exception) -> PromptmillError:
    if isinstance(error, PromptmillError):
        return error
    if _is_out_of_memory(error):
        return PromptmillError(Code.OUT_OF_MEMORY, "The device's memory ran out while this answer was computed.")
    reason = redact((str(error).splitlines() or [""])[0])[:200]
    return PromptmillError(
        Code.INTERNAL,
        f"The model failed on this prompt: {type(error).__name__}: {reason}",
        "Check that the model's files belong together, and try another `dtype` or `device`.",
    )
