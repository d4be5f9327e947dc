"""From messages to sequences that wait for their turn, off the thread that computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, NoReturn, Protocol, TypeVar

from promptmill.backends.engines.channel import Channel
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.system.frames import Frame, packed_error

_Sequence = TypeVar("_Sequence")
_Sequence_contra = TypeVar("_Sequence_contra", contravariant=True)


class Waiting(Protocol[_Sequence_contra]):
    """Where sequences wait."""

    def add(self, sequence: _Sequence_contra, /) -> None:
        """Put a new sequence behind the others of its run."""
        ...

    def cancel(self, run: int) -> None:
        """Forget the run's sequences, now and later."""
        ...


class Intake(Generic[_Sequence]):
    """Messages in, sequences out to those that wait: one thread reads, another prepares, run by run in turn.

    Two, so that a cancellation is heard while a prompt of megabytes is tokenized.
    """

    def __init__(self, prepare: Callable[[Frame], _Sequence], waiting: Waiting[_Sequence], channel: Channel) -> None:
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
            except Exception as error:  # noqa: BLE001 (this item's alone)
                if not isinstance(error, PromptmillError):
                    reason = redact((str(error).splitlines() or [""])[0])[:200]
                    error = PromptmillError(
                        Code.INTERNAL, f"The prompt could not be prepared: {type(error).__name__}: {reason}"
                    )
                self._channel.send(
                    {"type": "outcome", "run": message["run"], "id": message["id"], "error": packed_error(error)}
                )

    def _next(self) -> Frame:
        """Return the next message of the run whose turn it is, waiting for one."""
        with self._changed:
            while not self._submitted:
                self._changed.wait()
            run, queue = next(iter(self._submitted.items()))
            del self._submitted[run]
            message = queue.popleft()
            if queue:
                self._submitted[run] = queue  # behind the others
            return message
