"""Decides which waiting rows are computed next, and how many rows fit into the batch.

`Schedule` shares places fairly: each place goes to the run (call) with the fewest rows in the batch and, among equal
runs, to the run that was served longest ago. With three free places and these rows,

    run 1   waiting: a b c   running: none
    run 2   waiting: d e     running: x

the places go to a (run 1 has fewer rows), d (equal, and run 1 was served last) and b. Rows that are taken together have
similar lengths, so that padding stays small; a row that does not fit waits for the next turn. `Capacity` limits the
batch by the model's speed and by memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from promptmill.backends.engines import hardware
from promptmill.backends.engines.channel import WaitingRows
from promptmill.backends.engines.hf.language_model import LanguageModel
from promptmill.backends.engines.hf.sequence import RunningSequence

_SIMILAR = 1.5  # the largest ratio of the lengths of prompts that are computed together: it keeps padding small
_SHORT = 128  # tokens; a shorter prompt is computed completely with others, not alone from its changed end on
_STATIC_ROWS = 8  # max rows of a batch that no row can join and that runs as long as its longest row
_CACHE_SHARE = 3  # the cache gets 1/3 of free memory, because it exists twice while it is moved


class Schedule(WaitingRows[RunningSequence]):
    """Waiting rows by run. It takes rows of similar lengths together."""

    def __init__(self, border: int | None = None) -> None:
        """`border`: a row that may exceed this number of tokens is computed alone."""
        super().__init__()
        self._border = border

    def fewest_running(self, running: Mapping[int, int]) -> int | None:
        """Return the fewest running rows that any waiting run has; None if no run waits."""
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

        Each place goes to the run with the fewest running or taken rows; among equals, to the one served longest ago.
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
        """Return whether a row runs alone: it failed with others, has images, resumes, may cross the border, or has a
        long text that was computed before."""
        is_known = row.follows and len(row.prompt) > _SHORT
        crosses = self._border is not None and len(row.prompt) + row.ending.limit > self._border
        return crosses or is_known or row.kept is not None or bool(row.mishaps) or row.image_inputs is not None


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of a batch: `rows` rows, and `tokens` tokens in the cache (None: unknown)."""

    rows: int
    tokens: int | None = None

    def more(self, rows: int, longest: int) -> int:
        """Return how many rows may join `rows` rows, if each row takes `longest` tokens."""
        by_memory = self.rows if self.tokens is None or not longest else self.tokens // longest
        return min(self.rows, by_memory) - rows


def capacity_for(model: LanguageModel, wanted: int | None) -> Capacity:
    """Return the limits for a loaded model. `wanted`: the number of rows that the operator configured."""
    if wanted is not None:
        return Capacity(wanted)
    if not model.batching.joins:
        return Capacity(_STATIC_ROWS)
    free, token = _free_memory(model.device), _bytes_per_token(model)
    tokens = None if free is None or token is None else free // _CACHE_SHARE // token
    return Capacity(hardware.batch_rows(model.device.type, model.parameters), tokens)


def _free_memory(device: torch.device) -> int | None:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else hardware.free_memory()


def _bytes_per_token(model: LanguageModel) -> int | None:
    """Return the bytes of a token's keys and values; None if the model's configuration does not give them."""
    config = model.config
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * width * model.network.dtype.itemsize)
    except (AttributeError, TypeError, ZeroDivisionError):
        return None
