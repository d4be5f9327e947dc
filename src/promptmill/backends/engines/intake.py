"""From messages to waiting rows, outside the thread that computes.

pipe ──reads──▶ Intake ──prepares, run by run──▶ WaitingRows ──next_row──▶ decode loop
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, NoReturn, TypeVar

from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.growing_answer import GrowingAnswer
from promptmill.backends.engines.load_errors import first_line
from promptmill.core.errors import Code, PromptmillError
from promptmill.system.frames import Frame, packed_error

R = TypeVar("R", bound=GrowingAnswer)


class WaitingRows(Generic[R]):
    """Waiting rows by run. One thread prepares and adds them, another takes and computes them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[int, deque[R]] = {}
        """In the order of service: the run that was served longest ago comes first."""
        self._cancelled: set[int] = set()

    def add(self, row: R) -> None:
        """Add a new row after the others of its run."""
        with self._changed:
            if row.run not in self._cancelled:
                self._waiting.setdefault(row.run, deque()).append(row)
                self._changed.notify()

    def put_back(self, row: R) -> None:
        """Add a row that ran already before the others of its run."""
        with self._changed:
            if row.run not in self._cancelled:
                self._waiting.setdefault(row.run, deque()).appendleft(row)

    def next_row(self, running: Mapping[int, int], free: int) -> R | None:
        """Take the next row of the run with the fewest `running`; None if no row waits or no place is free.

        A run without running rows gets a place even if `free` is 0.
        """
        with self._changed:
            run = self._next_run(running)
            if run is None or (free <= 0 and running.get(run, 0)):
                return None
            row = self._waiting[run].popleft()
            self._served(run)
            return row

    def _next_run(self, running: Mapping[int, int]) -> int | None:
        return min(self._waiting, key=lambda run: running.get(run, 0), default=None)

    def _served(self, run: int) -> None:
        """Move a run to the end of the order of service."""
        if rows := self._waiting.pop(run):
            self._waiting[run] = rows

    def cancel(self, run: int) -> None:
        """Drop the run's rows, present and future."""
        with self._changed:
            self._cancelled.add(run)
            self._waiting.pop(run, None)
            self._changed.notify()

    def is_cancelled(self, run: int) -> bool:
        """Return whether the run was cancelled."""
        return run in self._cancelled

    def wait(self, most_s: float | None = None) -> bool:
        """Wait for a row; return false if no row waits after `most_s` seconds (None: no limit)."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._waiting), most_s)


class Intake(Generic[R]):
    """Prepares submitted requests as rows and adds them to `WaitingRows`, one request of each run in turn.

    A separate thread prepares, so that a cancellation takes effect while a prompt of megabytes is tokenized.
    """

    def __init__(self, prepare: Callable[[Frame], R], waiting: WaitingRows[R], channel: Channel) -> None:
        self._prepare = prepare
        self._waiting = waiting
        self._channel = channel
        self._changed = threading.Condition()
        self._submitted: dict[int, deque[Frame]] = {}
        threading.Thread(target=self._work, name="prepare", daemon=True).start()

    def handle(self, message: Frame) -> None:
        """Take a message from the server."""
        with self._changed:
            if message["type"] == "submit":
                self._submitted.setdefault(message["run"], deque()).append(message)
                self._changed.notify()
            elif message["type"] == "cancel":
                self._submitted.pop(message["run"], None)
                self._waiting.cancel(message["run"])

    def _work(self) -> NoReturn:
        while True:
            message = self._next()
            try:
                self._waiting.add(self._prepare(message))
            except Exception as error:
                if not isinstance(error, PromptmillError):
                    error = PromptmillError(
                        Code.INTERNAL, f"The prompt could not be prepared: {type(error).__name__}: {first_line(error)}"
                    )
                self._channel.send(
                    {"type": "outcome", "run": message["run"], "id": message["id"], "error": packed_error(error)}
                )

    def _next(self) -> Frame:
        """Wait for a message; return the next message of the run whose turn it is."""
        with self._changed:
            while not self._submitted:
                self._changed.wait()
            run, queue = next(iter(self._submitted.items()))
            del self._submitted[run]
            message = queue.popleft()
            if queue:
                self._submitted[run] = queue  # after the others
            return message
