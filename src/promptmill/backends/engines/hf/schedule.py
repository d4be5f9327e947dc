"""Fair scheduling of waiting rows between the calls they belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from promptmill.backends.engines.hf.sequence import RunningSequence
from promptmill.backends.engines.intake import WaitingRows

_SIMILAR = 1.5  # prompts computed together differ in length by less than this, so that padding stays small


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
