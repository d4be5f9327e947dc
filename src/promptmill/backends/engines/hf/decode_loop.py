"""What both decode loops share: the next token of each row, its outcome, and what follows when a step fails."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, NoReturn

import torch

from promptmill.backends.engines import token_logprobs
from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.hf.model import LanguageModel
from promptmill.backends.engines.hf.sampler import choose
from promptmill.backends.engines.hf.schedule import Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence
from promptmill.backends.engines.load_errors import first_line
from promptmill.core.errors import Code, PromptmillError
from promptmill.system.frames import Frame

_RECOVERY = 512  # steps without running out of memory after which one more row is tried
_IDLE_S = 1.0  # then memory that nothing uses is given back; to get it again takes time
_MISHAPS = 3  # a row that went wrong this often with others is the one that is wrong
_NAN = PromptmillError(
    Code.INTERNAL,
    "The model's scores became NaN, as happens in float16.",
    "Set `dtype: bfloat16` or `dtype: float32`.",
)


class Advance(NamedTuple):
    """What a step came to: a token per row (None: its scores are NaN), and the places of the rows that are answered."""

    tokens: list[int | None]
    done: list[int]


class DecodeLoop(ABC):
    """Takes waiting rows, and answers them until the process ends."""

    def __init__(self, model: LanguageModel, schedule: Schedule, channel: Channel, rows: int) -> None:
        """`rows` is the most that are computed together."""
        self._model = model
        self._schedule = schedule
        self._channel = channel
        self._most = self._room = rows
        self._steps = 0

    def run(self) -> NoReturn:
        """Work until the process ends."""
        with torch.inference_mode():
            while True:
                try:
                    self._turn()
                except Exception as error:  # noqa: BLE001 (sorted out there)
                    self._mishap(self._given_up(), error)
                if not self._running() and not self._schedule.wait(_IDLE_S):
                    _give_back()
                    self._schedule.wait()

    @abstractmethod
    def _turn(self) -> None:
        """Do what is next."""

    @abstractmethod
    def _running(self) -> list[RunningSequence]:
        """Return the rows that are being computed."""

    @abstractmethod
    def _given_up(self) -> list[RunningSequence]:
        """Give up everything that is being computed; return its rows."""

    def _advance_rows(self, rows: list[RunningSequence], scores: Any) -> Advance:
        """Choose each row's next token by `scores`, `(rows, vocabulary)`; answer the rows that are complete with it."""
        wrong: dict[int, Exception] = {}
        # before penalties and masks: how likely the model itself found a token
        found = {place: scores[place].log_softmax(-1) for place, row in enumerate(rows) if row.logprobs is not None}
        for place, row in enumerate(rows):
            try:
                row.choice.penalise(scores[place], row.prompt, row.tokens)
            except Exception as error:  # noqa: BLE001 (this row's alone)
                wrong[place] = error
        tokens = choose(scores, [row.choice for row in rows])
        done = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            try:
                if place in wrong:
                    raise wrong[place]
                if token is None:
                    raise _NAN
                if row.logprobs is not None:
                    row.logprobs.append(_logprobs(row, token, found[place]))
                if row.accept(token):
                    self._answer(row, row.outcome())
                    done.append(place)
                elif (preview := row.preview()) is not None:
                    self._channel.send(preview)
            except Exception as error:  # noqa: BLE001 (this row's alone)
                self._answer(row, row.failure(_explained(error)))
                done.append(place)
        return Advance(tokens, done)

    def _stepped(self) -> None:
        """Count a step; after many without running out of memory one more row is tried."""
        self._steps += 1
        if self._room < self._most and self._steps % _RECOVERY == 0:
            self._room += 1

    def _answer(self, row: RunningSequence, outcome: Frame) -> None:
        row.answered = True
        self._channel.send(outcome)

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


def _give_back() -> None:
    """Give memory that nothing uses back to the system; the allocators keep it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library other than GNU's
            ctypes.CDLL(None).malloc_trim(0)


def _logprobs(row: RunningSequence, token: int, found: Any) -> dict[str, Any]:
    values, tokens = found.topk(min(row.top_logprobs, len(found)))
    likeliest = zip(tokens.tolist(), values.tolist(), strict=True)
    return token_logprobs.entry(row.texts.decode, token, float(found[token]), likeliest)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))


def _explained(error: Exception) -> PromptmillError:
    if isinstance(error, PromptmillError):
        return error
    if _is_out_of_memory(error):
        return PromptmillError(Code.OUT_OF_MEMORY, "The device's memory ran out while this answer was computed.")
    return PromptmillError(
        Code.INTERNAL,
        f"The model failed on this prompt: {type(error).__name__}: {first_line(error)}",
        "Check that the model's files belong together, and try another `dtype` or `device`.",
    )
