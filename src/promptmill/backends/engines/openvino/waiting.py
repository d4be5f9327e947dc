"""Rows that wait for a place, by run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from promptmill.backends.engines.openvino.row import Row


class WaitingRows:
    """Filled by the thread that prepares prompts, emptied by the one that computes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[int, deque[Row]] = {}
        self._cancelled: set[int] = set()

    def add(self, row: Row, /) -> None:
        """Put a new row behind the others of its run."""
        with self._changed:
            if row.run not in self._cancelled:
                self._waiting.setdefault(row.run, deque()).append(row)
                self._changed.notify()

    def put_back(self, row: Row) -> None:
        """Put a row that ran already before the others of its run."""
        with self._changed:
            if row.run not in self._cancelled:
                self._waiting.setdefault(row.run, deque()).appendleft(row)

    def cancel(self, run: int) -> None:
        """Forget the run's rows, now and later."""
        with self._changed:
            self._cancelled.add(run)
            self._waiting.pop(run, None)
            self._changed.notify()

    def is_cancelled(self, run: int) -> bool:
        """Return whether nobody waits for this run any more."""
        return run in self._cancelled

    def wait(self) -> None:
        """Return when there may be something to do."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()

    def take(self, running: Mapping[int, int], free: int) -> Row | None:
        """Return the next row of the run that has the fewest `running`; None when there is none, or no place.

        `free` places are for all; a run that has nothing running gets one beyond them.
        """
        with self._changed:
            run = min(self._waiting, key=lambda run: running.get(run, 0), default=None)
            if run is None or (free <= 0 and running.get(run, 0)):
                return None
            rows = self._waiting.pop(run)
            row = rows.popleft()
            if rows:
                self._waiting[run] = rows  # behind runs that have as few
            return row
