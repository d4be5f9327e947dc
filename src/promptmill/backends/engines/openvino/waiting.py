"""Rows that wait for a place, by run."""

from __future__ import annotations

from collections.abc import Mapping

from promptmill.backends.engines.openvino.row import Row
from promptmill.backends.engines.waiting_rows import WaitingRows


class FairRows(WaitingRows[Row]):
    """Rows that wait, by run; the run with the fewest rows running is next."""

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
