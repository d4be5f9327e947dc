"""The engine's end of the pipe to the server: incoming and outgoing messages, and the rows that wait to be computed.

    pipe ──reads──▶ Intake ──prepares, run by run──▶ WaitingRows ──next_row──▶ decode loop ──send──▶ pipe

One thread reads, a second thread prepares, and the main thread computes. So a cancellation is read even while a long
prompt is tokenized. The engine ends when the server ends. Messages to the engine:

    {"type": "load", "engine", "options"}            first, once
    {"type": "submit", "run", "id", "messages", "sampling", "extra", "images", "live", "required", "marks",
     "field", "text", "follows"}
                                                     `live`: send previews of the growing answer
                                                     `required`: see `Request`
                                                     `marks`: cache marks that were left out
                                                     `field`: the name and the values of the requested field, each
                                                     value with its text among the `choices`
                                                     `text`: the number of the text that several questions are about
                                                     `follows`: an earlier question about this text was answered
    {"type": "submit", "run", "id", "path", "body"}  a request that is not a chat; only for vLLM
    {"type": "cancel", "run"}                        drop all requests of this run

Messages from the engine:

    {"type": "progress", "text"}                     a step of the load
    {"type": "loaded", "window", "images"}           `window`: the number of items that a run should keep submitted;
                                                     `images`: true when the model reads images
    {"type": "failed", "error"}                      loading failed
    {"type": "outcome", "run", "id", "warnings", …}  either "error", or "text", "finish_reason", "usage", …
    {"type": "preview", "run", "id", "text", "reasoning"}  the answer so far, if `live`
    {"type": "last_words", "text"}                   the reason why the engine is about to end

`error` is the result of `frames.packed_error`. The `content` of a turn is a text, null, or a list of `{"type": "text",
"text"}` and `{"type": "image", "index"}`; `images[index]` is the checked image in base64 (PNG, JPEG, WebP or GIF: see
`submission`). The indices count over all turns: 0, 1, 2, …; without images, the key `images` is missing.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, BinaryIO, Generic, NoReturn, TypeVar

from promptmill.core.errors import Code, PromptmillError, first_line
from promptmill.system import frames, subprocesses
from promptmill.system.frames import Frame

if TYPE_CHECKING:
    from promptmill.backends.engines.growing_answer import GrowingAnswer

R = TypeVar("R", bound="GrowingAnswer")


class Channel:
    """The messages from and to the server."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._writing = threading.Lock()
        self._handler: Callable[[Frame], None]

    def receive(self) -> Frame:
        """Wait for the first message and return it.

        From then on, a thread reads the pipe, even while the main thread imports or computes. On every system, the pipe
        is closed when the server dies; then this process ends its process group and itself.
        """
        if (message := frames.read(self._incoming)) is None:
            _end()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        return message

    def route(self, handler: Callable[[Frame], None]) -> None:
        """Pass every further message to `handler` on the reading thread. No message arrives before `loaded` is sent."""
        self._handler = handler

    def send(self, message: Frame) -> None:
        """Write one message. Several threads may send at the same time."""
        frame = frames.packed(message)
        try:
            with self._writing:
                self._outgoing.write(frame)
                self._outgoing.flush()
        except OSError:  # the server has ended
            subprocesses.end_own_group()

    def progress(self, text: str) -> None:
        """Report a step of loading the model."""
        self.send({"type": "progress", "text": text})

    def leave_to_parent(self) -> None:
        """In a forked child, close both pipes, and make the child end when its parent ends."""
        null = os.open(os.devnull, os.O_RDWR)
        for pipe in (self._incoming, self._outgoing):
            os.dup2(null, pipe.fileno(), inheritable=False)
        os.close(null)
        subprocesses.end_with_parent()

    def _listen(self) -> None:
        try:
            while (message := frames.read(self._incoming)) is not None:
                self._handler(message)
        finally:
            _end()


def _end() -> NoReturn:
    subprocesses.remove_scratch()  # the server, which usually removes it, has ended
    subprocesses.end_own_group()


class WaitingRows(Generic[R]):
    """The waiting rows of each run. One thread prepares and adds rows; another thread takes and computes them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[int, deque[R]] = {}
        """The rows of each run. The run that was served longest ago comes first."""
        self._cancelled: set[int] = set()

    def add(self, row: R) -> None:
        """Add a new row behind the other rows of its run, or in front of them if its text is already computed."""
        with self._changed:
            if row.run not in self._cancelled:
                rows = self._waiting.setdefault(row.run, deque())
                (rows.appendleft if row.follows else rows.append)(row)
                self._changed.notify()

    def put_back(self, row: R) -> None:
        """Put back a row that was taken earlier, in front of the other rows of its run."""
        with self._changed:
            if row.run not in self._cancelled:
                self._waiting.setdefault(row.run, deque()).appendleft(row)

    def next_row(self, running: Mapping[int, int], free: int) -> R | None:
        """Take the next row of the run with the fewest `running` rows; None if no row waits or no place is free.

        If a run has no running rows, its row is taken even if `free` is 0.
        """
        with self._changed:
            run = self._next_run(running)
            if run is None or (free <= 0 and running.get(run, 0)):
                return None
            row = self._waiting[run].popleft()
            self._move_to_end(run)
            return row

    def _next_run(self, running: Mapping[int, int]) -> int | None:
        return min(self._waiting, key=lambda run: running.get(run, 0), default=None)

    def _move_to_end(self, run: int) -> None:
        if rows := self._waiting.pop(run):
            self._waiting[run] = rows

    def cancel(self, run: int) -> None:
        """Drop all present and future rows of the run."""
        with self._changed:
            self._cancelled.add(run)
            self._waiting.pop(run, None)
            self._changed.notify()

    def is_cancelled(self, run: int) -> bool:
        """Return whether the run was cancelled."""
        return run in self._cancelled

    def wait(self, most_s: float | None = None) -> bool:
        """Wait for a row. Return False if no row is waiting after `most_s` seconds (None: no limit)."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._waiting), most_s)


class Intake(Generic[R]):
    """Prepares submitted requests as rows and adds them to `WaitingRows`, one request of each run in turn.

    It prepares in a separate thread, so that a cancellation takes effect even while a long prompt is tokenized.
    """

    def __init__(self, prepare: Callable[[Frame], R], waiting: WaitingRows[R], channel: Channel) -> None:
        self._prepare = prepare
        self._waiting = waiting
        self._channel = channel
        self._changed = threading.Condition()
        self._submitted: dict[int, deque[Frame]] = {}
        threading.Thread(target=self._work, name="prepare", daemon=True).start()

    def handle(self, message: Frame) -> None:
        """Handle a message from the server."""
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
                    {"type": "outcome", "run": message["run"], "id": message["id"], "error": frames.packed_error(error)}
                )

    def _next(self) -> Frame:
        with self._changed:
            while not self._submitted:
                self._changed.wait()
            run, queue = next(iter(self._submitted.items()))
            del self._submitted[run]
            message = queue.popleft()
            if queue:
                self._submitted[run] = queue  # put last, so that all other runs have their turns first
            return message
