"""Rows that wait for their turn, by run; shared by the engines that choose among them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Protocol, TypeVar


class _Row(Protocol):
    @property
    def run(self) -> int:
        """The call that the row belongs to."""
        ...


R = TypeVar("R", bound=_Row)


class WaitingRows(Generic[R]):
    """Filled by the thread that prepares prompts, emptied by the one that computes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[int, deque[R]] = {}
        self._cancelled: set[int] = set()

    def add(self, row: R, /) -> None:
        """Put a new row behind the others of its run."""
        with self._changed:
            if row.run not in self._cancelled:
                self._waiting.setdefault(row.run, deque()).append(row)
                self._changed.notify()

    def put_back(self, row: R, /) -> None:
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
