"""The decode loop: rows join and leave a running batch at any token.

One turn computes a piece of a new prompt, if one is admitted, and one token for every row in the batch:

    waiting ──admit──▶ Prefill ──join──▶ ContinuousBatch ──token──▶ answered
       ▲               (a piece a turn)        │
       └───────────pause, keys kept────────────┘

A row is admitted while `Capacity` allows it. If the batch is full, a row of the call with the most running rows is
paused in favour of a call that has at least two rows fewer. A call without running rows gets the place of any row that
has had `_QUANTUM` tokens, so all calls progress. A long prompt is computed in pieces, so the batch never waits long.

After a failed step, the rows of the batch start over, fewer at a time; a row that fails alone, or too often with
others, gets the error. `GenerateLoop` (transformers' `generate`) is for models whose rows cannot join a running batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.choice_tokens import ChoiceSearch
from promptmill.backends.engines.growing_answer import TokenLogprob, logprob_entry
from promptmill.backends.engines.hf.language_model import LanguageModel, left_padded
from promptmill.backends.engines.hf.pooled_cache import KeysValues, PooledCache, row_of
from promptmill.backends.engines.hf.sampler import choose
from promptmill.backends.engines.hf.schedule import Capacity, Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence
from promptmill.core.errors import Code, PromptmillError, first_line
from promptmill.system.frames import Frame

_RECOVERY = 512  # after memory ran out, this many steps pass before more rows are computed together
_IDLE_S = 1.0  # after this time without rows, unused memory is returned to the system; allocating it again takes time
_NO_MEMORY = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED")  # words in errors of CPUs and GPU libraries
_MISHAPS = 3  # a row that was in this many failed steps is considered their cause
_MOST_LEADING = 256  # max tokens of a position that count for the probabilities of the choices
_MOST_TEXTS = 8  # max kept texts; a run needs only one at a time, because it answers all questions about a text first
_SHARE_OF_TEXTS = 4  # texts may take 1/4 of the cache's tokens
_QUANTUM = 64  # max tokens of a row before it is paused for a call without running rows


class Advance(NamedTuple):
    """The result of a step: each row's token (None if its scores are NaN), and the indices of the finished rows."""

    tokens: list[int | None]
    done: list[int]


class DecodeLoop(ABC):
    """Takes waiting rows and answers them, until the process ends."""

    def __init__(self, model: LanguageModel, schedule: Schedule, channel: Channel, rows: int) -> None:
        """`rows`: the largest number of rows to compute together."""
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
                    self._mishap(self._discard_batch(), error)
                if not self._running() and not self._schedule.wait(_IDLE_S):
                    self._forget()
                    _free_unused_memory()
                    self._schedule.wait()

    @abstractmethod
    def _turn(self) -> None:
        """Do the next piece of work."""

    @abstractmethod
    def _running(self) -> list[RunningSequence]:
        """Return the rows in the batch."""

    def _forget(self) -> None:  # noqa: B027 (a loop may keep nothing)
        """Drop the values that were kept for later rows."""

    @abstractmethod
    def _discard_batch(self) -> list[RunningSequence]:
        """Discard the batch; return its rows."""

    def _advance_rows(self, rows: list[RunningSequence], scores: Any) -> Advance:
        """Choose each row's next token from `scores`, `(rows, vocabulary)`. Send the outcomes of finished rows."""
        wrong: dict[int, Exception] = {}
        # the model's own log probabilities, before penalties and masks
        logprobs = {
            position: scores[position].log_softmax(-1)
            for position, row in enumerate(rows)
            if row.logprobs is not None or row.form.chances is not None or row.search is not None
        }
        for position, row in enumerate(rows):
            try:
                row.choice.penalise(scores[position], row.prompt, row.tokens)
            except Exception as error:
                wrong[position] = error
        tokens = choose(scores, [row.choice for row in rows])
        done = []
        for position, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            try:
                if position in wrong:
                    raise wrong[position]
                if token is None:
                    raise _not_a_number()
                if row.search is not None:
                    if _searched(row, row.search, logprobs[position]):
                        self._answer(row, row.outcome())
                        done.append(position)
                    continue
                if row.logprobs is not None:
                    row.logprobs.append(_logprobs(row, token, logprobs[position]))
                if row.form.chances is not None:
                    _add_chances(row, token, logprobs[position].masked_fill(scores[position].isneginf(), -math.inf))
                if row.accept(token):
                    self._answer(row, row.outcome())
                    done.append(position)
                elif (preview := row.preview()) is not None:
                    self._channel.send(preview)
            except Exception as error:
                self._answer(row, row.failure(_item_error(error, shared=len(self._running()) > 1)))
                done.append(position)
        return Advance(tokens, done)

    def _count_step(self) -> None:
        """Count a step; allow an eighth more rows after `_RECOVERY` steps."""
        self._steps += 1
        if self._steps % _RECOVERY == 0:
            self._places = min(self._most, self._places + self._places // 8 + 1)

    def _answer(self, row: RunningSequence, outcome: Frame) -> None:
        row.answered = True
        self._channel.send(outcome)

    def _mishap(self, rows: list[RunningSequence], error: Exception) -> None:
        """After a failed step, let `rows` start over, fewer at a time. A row that failed alone gets the error.

        Raises `error` if no row has caused it, or if the device is broken, so that this process cannot continue.
        """
        no_memory = _is_out_of_memory(error)
        if not rows or (not no_memory and isinstance(error, getattr(torch, "AcceleratorError", ()))):
            raise error
        alone = len(rows) == 1 and not self._running()
        if no_memory:
            self._places = max(1, (len(rows) + len(self._running())) // 2)
            self._schedule.drop_kept()
            self._forget()
            error.__traceback__ = None  # the traceback would keep the tensors of the step
            gc.collect()
            _free_unused_memory()
        for row in reversed([row for row in rows if not row.answered]):
            row.mishaps += not no_memory
            row.kept = None
            if alone or (len(rows) == 1 and not no_memory) or row.mishaps >= _MISHAPS:
                self._answer(row, row.failure(_item_error(error)))
                self._places = self._most if no_memory else self._places  # this row alone was too large; others may fit
            else:
                self._schedule.put_back(row)


class Decoder(DecodeLoop):
    """The decode loop for a `ContinuousBatch`; see the module's docstring."""

    def __init__(
        self, model: LanguageModel, schedule: Schedule, channel: Channel, capacity: Capacity, chunk: int
    ) -> None:
        super().__init__(model, schedule, channel, capacity.rows)
        self._limits = capacity
        self._chunk = chunk
        self._prefill: Prefill | None = None
        self._batch = ContinuousBatch(model, capacity.tokens)
        self._texts = ComputedTexts(None if capacity.tokens is None else capacity.tokens // _SHARE_OF_TEXTS)

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
        self._batch.drop([position for position, row in enumerate(rows) if self._schedule.is_cancelled(row.run)])
        if self._prefill is not None and all(self._schedule.is_cancelled(row.run) for row in self._prefill.rows):
            self._prefill = None
        self._texts.drop(self._schedule.is_cancelled)

    def _admit(self) -> None:
        """Start the next prompts if there is capacity, or if a run has less than its share."""
        while self._prefill is None:
            rows = self._running()
            if not rows and self._limits.renew is not None:
                self._limits = self._limits.renew()
                self._reset()
            running = Counter(row.run for row in rows)
            free = min(self._places - len(rows), self._limits.more(len(rows), _longest(rows)))
            if free <= 0:
                free = self._make_room(running)
            if free <= 0:
                return
            taken = self._schedule.take(free, self._chunk, running)
            if not taken:
                return
            rows = self._running()
            fitting = max(not rows, self._limits.more(len(rows), _longest([*rows, *taken])))
            for row in reversed(taken[fitting:]):
                self._schedule.put_back(row)  # the row waits until its length fits
            if not (taken := taken[:fitting]):
                return
            for row in taken:
                row.turns = 0
                row.started = row.started or time.monotonic()
            is_resumed = taken[0].kept is not None
            try:
                if is_resumed:
                    self._resume(taken[0])
                else:
                    self._prefill = Prefill(self._model, taken, self._chunk, self._texts.of(taken))
            except Exception as error:
                # a prompt that fails before its first step does not damage the batch
                self._mishap(self._reset(*taken) if is_resumed else taken, error)

    def _make_room(self, running: Counter[int]) -> int:
        """Pause a row of the largest run if another run has at least two rows fewer. Return the number of freed places.

        A row that has used up its quantum gives its place to a run without running rows, so that many runs take turns.
        """
        fewest = self._schedule.fewest_running(running)
        if fewest is None:
            return 0
        most = max(running.values())
        rows = self._batch.rows
        positions = [i for i, row in enumerate(rows) if running[row.run] == most]
        if most - fewest < 2:
            positions = [i for i in positions if rows[i].turns >= _QUANTUM] if fewest == 0 else []
        if not positions:
            return 0
        position = max(positions, key=lambda i: rows[i].turns)
        row = rows[position]
        self._batch.leave(position)
        if self._schedule.kept() >= self._most:
            row.kept = None  # running rows need the memory; recomputing takes less time than the row may have to wait
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
        done = self._advance_rows(prefill.rows, scores).done
        self._prefill = None
        left = [(position, row) for position, row in enumerate(prefill.rows) if position not in done]
        try:
            for position, row in enumerate(prefill.rows):
                if row.text is not None and not row.follows:
                    self._texts.keep(row, prefill.content(position))
            if left and prefill.goes_on():
                self._prefill = prefill
                return
            for position, row in left:
                self._batch.join(row, prefill.content(position))
            self._batch.go_back()
        except Exception as error:
            self._mishap(self._reset(*prefill.rows), error)

    def _advance(self) -> None:
        try:
            scores = self._batch.step()
        except Exception as error:
            self._mishap(self._reset(), error)
            return
        advance = self._advance_rows(self._batch.rows, scores)
        for position, token in enumerate(advance.tokens):
            if token is None:
                self._batch.wipe(position)
        self._batch.go_back()
        self._batch.drop(advance.done)
        self._count_step()

    def _reset(self, *more: RunningSequence) -> list[RunningSequence]:
        """Discard the batch's computed state. Return the batch's rows and `more`, each row once."""
        rows = list(dict.fromkeys([*self._batch.rows, *more]))
        self._batch = ContinuousBatch(self._model, self._limits.tokens)
        return rows

    def _forget(self) -> None:
        self._texts.clear()

    def _discard_batch(self) -> list[RunningSequence]:
        prefill, self._prefill = self._prefill, None
        return self._reset(*(() if prefill is None else prefill.rows))


def _longest(rows: list[RunningSequence]) -> int:
    """Return the greatest length that any of the `rows` can reach; every row takes this many columns of the cache."""
    return max((len(row.prompt) + row.ending.limit for row in rows), default=0)


def _offset(positions: Any, rows: list[RunningSequence]) -> Any:
    """Return `positions`, `(rows, 1)`, with each row's offset added. Images in the row cause the offset."""
    if not any(row.offset for row in rows):
        return positions
    return positions + torch.tensor([[row.offset] for row in rows], device=positions.device)


class ContinuousBatch:
    """A batch that rows can join and leave at any token. Its cache must have one column per token."""

    def __init__(self, model: LanguageModel, tokens: int | None) -> None:
        """`tokens`: the capacity of the cache (None: no limit)."""
        self.rows: list[RunningSequence] = []
        self._model = model
        self._cache = PooledCache(len(model.new_cache().layers), tokens)

    def join(self, row: RunningSequence, content: KeysValues) -> None:
        """Add a row, with the keys and values of its sequence except for the last token."""
        self._cache.add(content)
        self.rows.append(row)

    def leave(self, position: int) -> None:
        """Remove a row that continues later. The row keeps its content."""
        self.rows[position].kept = self._cache.copy_of(position)
        self.drop([position])

    def go_back(self) -> None:
        """Remove the last `computed_too_far` tokens of each row from the cache."""
        for position, row in enumerate(self.rows):
            if row.computed_too_far:
                self._cache.go_back(position, row.computed_too_far)
                row.computed_too_far = 0

    def wipe(self, position: int) -> None:
        """Erase a row's content before another row uses its part of the cache."""
        self._cache.wipe(position)

    def drop(self, positions: list[int]) -> None:
        """Remove the rows at `positions`; the last rows take their places."""
        for position in sorted(positions, reverse=True):
            self._cache.remove(position)
            self.rows[position] = self.rows[-1]
            self.rows.pop()

    def step(self) -> Any:
        """Compute each row's last token. Return the scores for its next token, `(rows, vocabulary)`."""
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._model.device)
        positions = _offset(self._cache.advance(), self.rows)
        return self._model.scores(tokens, self._cache.mask, positions, self._cache, first=False)


class Prefill:
    """Computes prompts before their rows join the batch: several of similar length, or one long prompt in pieces."""

    def __init__(
        self, model: LanguageModel, rows: list[RunningSequence], chunk: int, computed: Computed | None = None
    ) -> None:
        """`computed`: a sequence whose beginning equals that of the first row. If given, there is only one row."""
        self.rows = rows
        self._model = model
        self._chunk = (
            chunk if len(rows) == 1 and rows[0].image_inputs is None else None
        )  # a prompt with images is computed in one piece
        self._done = 0
        self._cache = model.new_cache()
        sequences = [row.sequence for row in rows]
        self._lengths = list(map(len, sequences))
        self._tokens, self._mask, self._positions = left_padded(sequences, model.device)
        self._seen: dict[str, Any] = {}
        if (image_inputs := rows[0].image_inputs) is not None:  # a row with images is the only row
            self._seen = image_inputs.inputs(self._lengths[0], model.device, model.network.dtype)
            self._positions, rows[0].offset = model.positions(self._tokens, self._mask, self._seen)
        if computed is not None:
            self._done = _same(computed.tokens, sequences[0])
            for layer, (keys, values) in enumerate(computed.content):
                self._cache.update(keys[None, :, : self._done], values[None, :, : self._done], layer)

    def step(self) -> Any:
        """Compute the next piece. After the last piece, return the scores for the rows' next tokens, else None."""
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

    def goes_on(self) -> bool:
        """If the only row has a search that needs another step, prepare the step. Return whether there is one."""
        row = self.rows[0]
        if len(self.rows) > 1 or row.search is None or row.search.asked is None or row.image_inputs is not None:
            return False
        before = self._tokens[0].tolist()
        row.tokens, row.computed_too_far = [*row.search.asked.tokens], 0
        self._lengths = [len(row.sequence)]
        self._tokens, self._mask, self._positions = left_padded([row.sequence], self._model.device)
        self._done = _same(before, row.sequence)
        if removed := len(before) - self._done:  # as a negative number; transformers 5.24 takes no length to keep
            self._cache.crop(-removed)
        return True

    def content(self, position: int) -> KeysValues:
        """Return the keys and values with which a row joins the batch."""
        return row_of(self._cache, position, self._lengths[position])


class Computed(NamedTuple):
    """The tokens of a computed row, and their keys and values."""

    tokens: list[int]
    content: KeysValues


class ComputedTexts:
    """The latest texts about which several questions are asked. Later questions reuse a text's keys and values."""

    def __init__(self, tokens: int | None) -> None:
        """`tokens`: the most tokens of all texts together; a single text may have more."""
        self._most = math.inf if tokens is None else tokens
        self._known: dict[tuple[int, int | None], Computed] = {}

    def keep(self, row: RunningSequence, content: KeysValues) -> None:
        """Keep the prompt of a row for further questions; drop the oldest prompts if there is no room for it."""
        length = len(row.prompt)
        while self._known and (len(self._known) >= _MOST_TEXTS or self._tokens() + length > self._most):
            self._known.pop(next(iter(self._known)))
        kept = [(keys[:, :length].clone(), values[:, :length].clone()) for keys, values in content]
        self._known[row.run, row.text] = Computed(row.prompt, kept)

    def _tokens(self) -> int:
        return sum(len(known.tokens) for known in self._known.values())

    def of(self, rows: list[RunningSequence]) -> Computed | None:
        """Return the kept text for a single row; None for several rows, or if no text was kept."""
        row = rows[0]
        is_known = len(rows) == 1 and row.follows and row.image_inputs is None
        return self._known.get((row.run, row.text)) if is_known else None

    def drop(self, is_unwanted: Callable[[int], bool]) -> None:
        """Drop the texts of unwanted runs."""
        self._known = {key: known for key, known in self._known.items() if not is_unwanted(key[0])}

    def clear(self) -> None:
        """Drop all texts."""
        self._known.clear()


def _same(one: list[int], other: list[int]) -> int:
    """Return the number of equal first tokens of two sequences. The last token of `other` does not count."""
    pairs = enumerate(zip(one, other[:-1], strict=False))
    return next((place for place, (own, its) in pairs if own != its), min(len(one), len(other) - 1))


class GenerateLoop(DecodeLoop):
    """The loop for models whose rows cannot join a running batch, because of recurrent states or special caches.

    A batch runs until its longest answer is complete. If another call waits, the batch ends earlier, and its rows later
    continue after the tokens they already have.
    """

    def __init__(self, model: LanguageModel, schedule: Schedule, channel: Channel, rows: int, tokens: int) -> None:
        """`tokens`: the limit for the total length of prompts that are computed together."""
        super().__init__(model, schedule, channel, rows)
        self._tokens = tokens
        self._rows: list[RunningSequence] = []
        model.network.generation_config = GenerationConfig()  # empty: each row applies the model's defaults itself

    def _running(self) -> list[RunningSequence]:
        return self._rows

    def _discard_batch(self) -> list[RunningSequence]:
        rows, self._rows = self._rows, []
        return rows

    def _turn(self) -> None:
        rows = self._rows = self._schedule.take(1 if self._model.batching.alone else self._places, self._tokens, {})
        if not rows:
            return
        for row in rows:
            row.turns = 0
            row.started = row.started or time.monotonic()
        self._generate()
        for row in reversed([row for row in self._discard_batch() if not row.answered]):
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
                max_new_tokens=max(row.ending.limit - len(row.tokens) for row in rows),
            ),
            logits_processor=LogitsProcessorList([self._choose]),
            stopping_criteria=StoppingCriteriaList([self._ended]),
        )

    def _choose(self, tokens: Any, scores: Any) -> Any:
        """Make `generate` use the tokens that the rows choose, by excluding all other tokens."""
        del tokens
        positions = [position for position, row in enumerate(self._rows) if not row.answered]
        advance = self._advance_rows([self._rows[position] for position in positions], scores[positions])
        self._count_step()
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 0] = 0.0
        for position, token in zip(positions, advance.tokens, strict=True):
            forced[position, 0] = float("-inf")
            forced[position, token or 0] = 0.0
        return forced

    def _ended(self, tokens: Any, scores: Any) -> Any:
        """Return for each row whether `generate` should stop."""
        del scores
        waits = self._schedule.fewest_running({row.run: 1 for row in self._rows}) == 0
        leaves = waits and max(row.turns for row in self._rows) >= _QUANTUM
        # the computed keys are invalid beyond the border
        leaves = leaves or self._model.batching.border in {len(row.sequence) - 1 for row in self._rows}
        ended = [leaves or row.answered or self._schedule.is_cancelled(row.run) for row in self._rows]
        return torch.tensor(ended, device=tokens.device)


def _free_unused_memory() -> None:
    """Return unused memory to the system, because the allocators would keep it."""
    for devices in (torch.cuda, torch.mps):
        if devices.is_available():
            devices.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # other C libraries than GNU's lack this function
            ctypes.CDLL(None).malloc_trim(0)


def _searched(row: RunningSequence, search: ChoiceSearch, logprobs: Any) -> bool:
    """Continue the search of a row with the `logprobs` of its next token. Return whether the search has ended."""
    assert search.asked is not None
    tokens, permitted = search.asked
    if len(row.tokens) == len(tokens):
        found = dict(zip(permitted, logprobs[permitted].tolist(), strict=True))
        if row.searched(search, found, lambda token: _logprobs(row, token, logprobs)):
            return True
    row.go_to(search.asked.tokens)
    return False


def _logprobs(row: RunningSequence, token: int, logprobs: Any) -> TokenLogprob:
    values, tokens = logprobs.topk(min(row.top_logprobs, len(logprobs)))
    likeliest = zip(tokens.tolist(), values.tolist(), strict=True)
    return logprob_entry(row.form.texts.tokens, token, float(logprobs[token]), likeliest)


def _add_chances(row: RunningSequence, token: int, logprobs: Any) -> None:
    """Update the choices' probabilities with an answer's next token; `logprobs` is -inf for excluded tokens."""
    values, tokens = logprobs.topk(min(_MOST_LEADING, len(logprobs)))
    ranked = zip(tokens.tolist(), values.tolist(), strict=True)
    others = [(other, value) for other, value in ranked if other != token and value > -math.inf]
    chosen = token, float(logprobs[token])
    row.form.add_chances(row.tokens, [chosen, *others])


def _is_out_of_memory(error: Exception) -> bool:
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _not_a_number() -> PromptmillError:
    return PromptmillError(
        Code.INTERNAL,
        "The model's scores became NaN, as happens in float16.",
        "Set `dtype: bfloat16` or `dtype: float32`.",
    )


def _item_error(error: Exception, *, shared: bool = False) -> PromptmillError:
    """Return the error of a row. Raises `error` if memory ran out for several rows: it may suffice for fewer."""
    if isinstance(error, PromptmillError):
        return error
    if _is_out_of_memory(error):
        if shared:
            raise error
        return PromptmillError(Code.OUT_OF_MEMORY, "This prompt and its answer do not fit into the device's memory.")
    return PromptmillError(
        Code.INTERNAL,
        f"The model failed on this prompt: {type(error).__name__}: {first_line(error)}",
        "Check that the model's files belong together, and try another `dtype` or `device`.",
    )
