"""Fair scheduling of waiting rows between the calls they belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from promptmill.backends.engines import hardware
from promptmill.backends.engines.hf.language_model import LanguageModel
from promptmill.backends.engines.hf.sequence import RunningSequence
from promptmill.backends.engines.intake import WaitingRows

_SIMILAR = 1.5  # prompts computed together differ in length by less than this, so that padding stays small
_STATIC_ROWS = 8  # where rows cannot join a running batch: a batch takes as long as its longest
_CACHE_SHARE = 3  # of free memory one part in this many; what is being moved is there twice


class Schedule(WaitingRows[RunningSequence]):
    """Rows that wait, by run; chosen so that those computed together fit together."""

    def __init__(self, border: int | None = None) -> None:
        """A row that may come to more than `border` tokens is computed by itself."""
        super().__init__()
        self._border = border

    def fewest_running(self, running: Mapping[int, int]) -> int | None:
        """Return how many rows that run has running which waits with the fewest; None when no run waits."""
        with self._changed:
            return min((running.get(run, 0) for run in self._waiting), default=None)

    def kept(self) -> int:
        """Return how many waiting rows hold on to what they had computed."""
        with self._changed:
            return sum(row.kept is not None for queue in self._waiting.values() for row in queue)

    def drop_kept(self) -> None:
        """Let waiting rows give up what they had computed; they will compute it again."""
        with self._changed:
            for queue in self._waiting.values():
                for row in queue:
                    row.kept = None

    def take(self, most: int, most_tokens: int, running: Mapping[int, int]) -> list[RunningSequence]:
        """Return up to `most` rows to compute together, of similar length and `most_tokens` in all; at least one.

        Each goes to the run with the fewest rows running or taken, and among those to the one served longest ago.
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
                self._served(run)
        return taken

    def _fitting(
        self, queue: deque[RunningSequence], taken: list[RunningSequence], most_tokens: int
    ) -> RunningSequence | None:
        """Take the first row of `queue` that goes together with `taken`."""
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
        """Return whether no other is taken with it: it went wrong in company, has images, or nothing to compute."""
        crosses = self._border is not None and len(row.prompt) + row.limit > self._border
        return crosses or row.kept is not None or bool(row.mishaps) or row.image_inputs is not None


@dataclass(frozen=True, slots=True)
class Room:
    """At most `rows` rows, and together `tokens` tokens in the cache (None: nobody can tell)."""

    rows: int
    tokens: int | None = None

    def more(self, rows: int, longest: int) -> int:
        """Return how many may join `rows` rows when the longest of all takes `longest` tokens; each takes as many."""
        by_memory = self.rows if self.tokens is None or not longest else self.tokens // longest
        return min(self.rows, by_memory) - rows


def room_for(model: LanguageModel, wanted: int | None) -> Room:
    """Return the room of a loaded model; `wanted` are the rows that the operator named."""
    if wanted is not None:
        return Room(wanted)
    if not model.merges_rows:
        return Room(_STATIC_ROWS)
    free, token = _free_memory(model.device), _bytes_per_token(model)
    tokens = None if free is None or token is None else free // _CACHE_SHARE // token
    return Room(hardware.batch_rows(model.device.type, model.parameters), tokens)


def _free_memory(device: torch.device) -> int | None:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else hardware.free_memory()


def _bytes_per_token(model: LanguageModel) -> int | None:
    """Return the size of the keys and values of one token; None for models whose configuration does not say."""
    config = model.config
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * width * model.network.dtype.itemsize)
    except (AttributeError, TypeError, ZeroDivisionError):
        return None
