"""Decides which waiting rows are computed next, and how many rows fit into the batch.

`Schedule` shares places fairly: each place goes to the run (call) with the fewest rows in the batch and, among equal
runs, to the run that was served longest ago. With three free places and these rows,

    run 1   waiting: a b c   running: none
    run 2   waiting: d e     running: x

the places go to `a` (run 1 has fewer rows), `d` (now both have one, and run 1 was served last) and `b`. Rows that are
taken together have similar lengths, so that padding stays small; a row that does not fit waits for the next turn.
`Capacity` limits the batch by the model's speed and by memory. On a card, free memory is measured when a batch begins:
a tenth of the card is not used; 2/3 of the rest are for keys, values and scores. All rows count as long as the longest.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from promptmill.backends.engines import hardware
from promptmill.backends.engines.channel import WaitingRows
from promptmill.backends.engines.hf.language_model import LanguageModel
from promptmill.backends.engines.hf.sequence import RunningSequence

_SIMILAR = 1.5  # the largest ratio of the lengths of prompts that are computed together: it keeps padding small
_SHORT = 128  # a prompt of more tokens is computed alone if its beginning is already computed
_STATIC_ROWS = 8  # max rows of a batch that no row can join and that runs as long as its longest row; 64 on a card
_CACHE_SHARE = 3  # the cache gets 1/3 of free main memory, because it exists twice while it is moved
_RESERVE = 10  # 1/10 of a card, or 1/4 of its free memory, stays free for the values of a step and for other programs
_BATCH_SHARE = 2 / 3  # the batch's share of the rest; 1/3 is for paused rows, kept texts, and a layer that is moved
_SCORE_BYTES = 32  # bytes per row and token of the vocabulary: scores in 16 and 32 bits, four copies, and their sums
_IMAGE_ROWS = 64  # max rows of an image model, as memory holds the pixels of 128 prompts, some MB each


class Schedule(WaitingRows[RunningSequence]):
    """The waiting rows of each run. Rows of similar lengths are taken together."""

    def __init__(self, border: int | None = None) -> None:
        """`border`: a row that may exceed this number of tokens is computed alone."""
        super().__init__()
        self._border = border

    def fewest_running(self, running: Mapping[int, int]) -> int | None:
        """Return the smallest number of running rows of any run that has waiting rows; None if no row waits."""
        with self._changed:
            return min((running.get(run, 0) for run in self._waiting), default=None)

    def kept(self) -> int:
        """Return the number of waiting rows that keep their computed keys and values."""
        with self._changed:
            return sum(row.kept is not None for queue in self._waiting.values() for row in queue)

    def drop_kept(self) -> None:
        """Free the kept keys and values of waiting rows, which will be computed again."""
        with self._changed:
            for queue in self._waiting.values():
                for row in queue:
                    row.kept = None

    def take(self, most: int, most_tokens: int, running: Mapping[int, int]) -> list[RunningSequence]:
        """Take up to `most` rows of similar length with at most `most_tokens` in total, but at least one row.

        Each place goes to the run with the fewest running or taken rows; of equal runs, to the one served longest ago.
        """
        taken: list[RunningSequence] = []
        counts = dict(running)
        with self._changed:
            while len(taken) < most and (run := self._next_run(counts)) is not None:
                row = self._fitting(self._waiting[run], taken, most_tokens)
                if row is None:
                    break
                taken.append(row)
                counts[run] = counts.get(run, 0) + 1
                self._move_to_end(run)
        return taken

    def _fitting(
        self, queue: deque[RunningSequence], taken: list[RunningSequence], most_tokens: int
    ) -> RunningSequence | None:
        if not taken:
            return queue.popleft()
        if self._is_alone(taken[0]):
            return None
        lengths = [len(row.sequence) for row in taken]
        for row in queue:
            together = [*lengths, len(row.sequence)]
            if (
                not self._is_alone(row)
                and max(together) < _SIMILAR * min(together)
                and max(together) * len(together) <= most_tokens
            ):
                queue.remove(row)
                return row
        return None

    def _is_alone(self, row: RunningSequence) -> bool:
        """Return whether a row's prompt is computed alone: the row failed with others, has images, was paused, may
        cross the border, or has a long text that is already computed."""
        is_known = row.follows and len(row.prompt) > _SHORT
        crosses = self._border is not None and len(row.prompt) + row.ending.limit > self._border
        return crosses or is_known or row.kept is not None or bool(row.mishaps) or row.image_inputs is not None


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of a batch: `rows` rows, and `tokens` tokens in the cache. `tokens` is None if it is unknown."""

    rows: int
    tokens: int | None = None
    extra: int = 0  # a row's scores take as much memory as this many tokens
    renew: Callable[[], Capacity] | None = field(default=None, compare=False)  # returns the next batch's limits

    def more(self, rows: int, longest: int) -> int:
        """Return how many rows may join `rows` rows, if each row takes `longest` tokens."""
        by_memory = self.rows if self.tokens is None or not longest else self.tokens // (longest + self.extra)
        return min(self.rows, by_memory) - rows


def card_memory(device: torch.device) -> tuple[int, int]:
    """Return a card's free and total bytes. Memory that torch has reserved but does not use counts as free."""
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


def capacity_for(
    model: LanguageModel, wanted: int | None, memory: Callable[[torch.device], tuple[int, int]] | None = None
) -> Capacity:
    """Return the limits for a loaded model. `wanted`: the number of rows that the operator configured.

    `memory`: returns the free and the total bytes of a card; the default is `card_memory` for a model on a card.
    """
    if wanted is not None or not model.batching.joins:
        return Capacity(wanted or _STATIC_ROWS * (8 if model.device.type == "cuda" else 1))
    rows, token = hardware.batch_rows(model.device.type, model.parameters), model.token_bytes
    memory = card_memory if memory is None and model.device.type == "cuda" else memory
    if memory is None:
        free = hardware.free_memory()
        return Capacity(rows, free // _CACHE_SHARE // sum(token.values()) if free and token else None)
    found = zip(map(memory, token), token.values(), strict=True)
    tokens = [(free - min(total // _RESERVE, free // 4)) * _BATCH_SHARE // taken for (free, total), taken in found]
    return Capacity(
        rows if model.vision is None else min(rows, _IMAGE_ROWS),
        int(min(tokens)) if tokens else None,
        model.config.vocab_size * _SCORE_BYTES // max(token.values(), default=1),
        functools.partial(capacity_for, model, wanted, memory),
    )
