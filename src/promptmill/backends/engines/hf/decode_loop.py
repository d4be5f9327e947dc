"""The base of both decode loops (next tokens, outcomes, recovery from failed steps), and the fallback loop.

`batches.Decoder` lets rows join a running batch. `GenerateLoop` runs transformers' own `generate` for models that
cannot do that. After a failed step the rows of the batch start over, fewer at a time; a row that fails alone, or too
often with others, gets the error.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, NoReturn

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from promptmill.backends.engines import token_logprobs
from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.hf.language_model import LanguageModel, left_padded
from promptmill.backends.engines.hf.sampler import choose
from promptmill.backends.engines.hf.schedule import Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence
from promptmill.backends.engines.load_errors import first_line
from promptmill.core.errors import Code, PromptmillError
from promptmill.system.frames import Frame

_RECOVERY = 512  # after this many steps without running out of memory, one more row is tried
_IDLE_S = 1.0  # then unused memory is returned to the system; allocating it again takes time
_MISHAPS = 3  # a row that took part in this many failed steps is taken for their cause
_NAN = PromptmillError(
    Code.INTERNAL,
    "The model's scores became NaN, as happens in float16.",
    "Set `dtype: bfloat16` or `dtype: float32`.",
)
_QUANTUM = 64  # tokens after which a batch ends if another call has no running row


class Advance(NamedTuple):
    """The result of a step: a token per row (None: its scores are NaN), and the places of the finished rows."""

    tokens: list[int | None]
    done: list[int]


class DecodeLoop(ABC):
    """Takes waiting rows and answers them until the process ends."""

    def __init__(self, model: LanguageModel, schedule: Schedule, channel: Channel, rows: int) -> None:
        """`rows` is the largest number to compute together."""
        self._model = model
        self._schedule = schedule
        self._channel = channel
        self._most = self._places = rows
        self._steps = 0

    def run(self) -> NoReturn:
        """Work until the process ends."""
        with torch.inference_mode():
            while True:
                try:
                    self._turn()
                except Exception as error:
                    self._mishap(self._given_up(), error)
                if not self._running() and not self._schedule.wait(_IDLE_S):
                    _give_back()
                    self._schedule.wait()

    @abstractmethod
    def _turn(self) -> None:
        """Do the next piece of work."""

    @abstractmethod
    def _running(self) -> list[RunningSequence]:
        """Return the rows in the batch."""

    @abstractmethod
    def _given_up(self) -> list[RunningSequence]:
        """Discard the batch; return its rows."""

    def _advance_rows(self, rows: list[RunningSequence], scores: Any) -> Advance:
        """Choose each row's next token by `scores`, `(rows, vocabulary)`; send the outcomes of finished rows."""
        wrong: dict[int, Exception] = {}
        # the model's own log probabilities, before penalties and masks
        found = {place: scores[place].log_softmax(-1) for place, row in enumerate(rows) if row.logprobs is not None}
        for place, row in enumerate(rows):
            try:
                row.choice.penalise(scores[place], row.prompt, row.tokens)
            except Exception as error:
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
            except Exception as error:
                self._answer(row, row.failure(_explained(error)))
                done.append(place)
        return Advance(tokens, done)

    def _stepped(self) -> None:
        """Count a step; allow one more row after `_RECOVERY` steps."""
        self._steps += 1
        if self._places < self._most and self._steps % _RECOVERY == 0:
            self._places += 1

    def _answer(self, row: RunningSequence, outcome: Frame) -> None:
        row.answered = True
        self._channel.send(outcome)

    def _mishap(self, rows: list[RunningSequence], error: Exception) -> None:
        """Let `rows` start over, fewer at a time, after a failed step; a row that fails alone gets the error.

        Raises `error` if it does not concern rows or the device is broken: this process cannot continue then.
        """
        no_memory = _is_out_of_memory(error)
        if not rows or (not no_memory and isinstance(error, getattr(torch, "AcceleratorError", ()))):
            raise error
        alone = len(rows) == 1 and not self._running()
        if no_memory:
            self._places = max(1, (len(rows) + len(self._running())) // 2)
            self._schedule.drop_kept()
            error.__traceback__ = None  # it references the tensors of the step
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
    """Return unused memory to the system; the allocators would keep it."""
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


class GenerateLoop(DecodeLoop):
    """For models whose rows cannot join a running batch, because they have recurrent states or special caches.

    A batch runs until its longest answer is complete. If another call waits, the batch ends earlier, and its rows
    continue later from the tokens that they have.
    """

    def __init__(self, model: LanguageModel, schedule: Schedule, channel: Channel, rows: int, tokens: int) -> None:
        """`tokens` limits the total length of prompts that are computed together."""
        super().__init__(model, schedule, channel, rows)
        self._tokens = tokens
        self._rows: list[RunningSequence] = []
        model.network.generation_config = GenerationConfig()  # rows apply the model's defaults themselves

    def _running(self) -> list[RunningSequence]:
        return self._rows

    def _given_up(self) -> list[RunningSequence]:
        rows, self._rows = self._rows, []
        return rows

    def _turn(self) -> None:
        rows = self._rows = self._schedule.take(1 if self._model.alone else self._places, self._tokens, {})
        if not rows:
            return
        for row in rows:
            row.turns = 0
            row.started = row.started or time.monotonic()
        self._generate()
        for row in reversed([row for row in self._given_up() if not row.answered]):
            self._schedule.put_back(row)

    def _generate(self) -> None:
        rows, device = self._rows, self._model.device
        tokens, mask, _ = left_padded([row.sequence for row in rows], device)
        images = rows[0].image_inputs
        assert images is None or len(rows) == 1, "a row with images is computed alone"
        image_inputs = {} if images is None else images.inputs(tokens.shape[1], device, self._model.network.dtype)
        self._model.network.generate(
            input_ids=tokens,
            attention_mask=mask,
            **image_inputs,
            generation_config=GenerationConfig(
                do_sample=False,
                pad_token_id=0,
                max_new_tokens=max(row.limit - len(row.tokens) for row in rows),
            ),
            logits_processor=LogitsProcessorList([self._choose]),
            stopping_criteria=StoppingCriteriaList([self._ended]),
        )

    def _choose(self, tokens: Any, scores: Any) -> Any:
        """Make `generate` take the tokens that the rows choose, by ruling out all others."""
        del tokens
        places = [place for place, row in enumerate(self._rows) if not row.answered]
        advance = self._advance_rows([self._rows[place] for place in places], scores[places])
        self._stepped()
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 0] = 0.0
        for place, token in zip(places, advance.tokens, strict=True):
            forced[place, 0] = float("-inf")
            forced[place, token or 0] = 0.0
        return forced

    def _ended(self, tokens: Any, scores: Any) -> Any:
        """Return for each row whether `generate` should stop."""
        del scores
        waits = self._schedule.fewest_running({row.run: 1 for row in self._rows}) == 0
        leaves = waits and max(row.turns for row in self._rows) >= _QUANTUM
        # above the border the computed keys are invalid
        leaves = leaves or self._model.border in {len(row.sequence) - 1 for row in self._rows}
        ended = [leaves or row.answered or self._schedule.is_cancelled(row.run) for row in self._rows]
        return torch.tensor(ended, device=tokens.device)
