"""The engine's end of the pipe to the server; when the server is gone, so is the engine.

To the engine:

    {"type": "load", "engine", "options"}            first, once
    {"type": "submit", "run", "id", "messages", "sampling", "extra", "images", "live"}
                                                     `live`: the answer so far is wanted while it grows
    {"type": "submit", "run", "id", "path", "body"}  a request that is none for a chat; to vLLM alone
    {"type": "cancel", "run"}                        nothing more is wanted for this run

From the engine:

    {"type": "progress", "text"}                     while it loads
    {"type": "loaded", "window", "images"}           `window`: how many items a run should keep submitted;
                                                     `images`: true when the model reads images
    {"type": "failed", "error"}                      it could not load
    {"type": "outcome", "run", "id", "warnings", …}  either "error", or "text", "finish_reason", "usage", …
    {"type": "preview", "run", "id", "text"}         the answer so far, where it is wanted
    {"type": "last_words", "text"}                   why it is about to end

`error` is `[code, message, hint]`. A turn's `content` is a text, null, or a list of `{"type": "text", "text"}` and
`{"type": "image", "index"}`; `images[index]` is that image, checked and in base64 (PNG, JPEG, WebP or GIF: see
`image_decoding`). Counted over the turns the indices are 0, 1, 2, …; without images the key is missing.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import BinaryIO

from promptmill.system import frames, subprocesses
from promptmill.system.frames import Frame


class Channel:
    """Messages from the server and to it.

    A thread reads from the start, also while the main thread imports or computes: the end of the pipe is the only
    sign that the server died which every system gives, and it ends this process, group and all.
    """

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._writing = threading.Lock()
        self._routing = threading.Lock()
        self._waiting: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._handler: Callable[[Frame], None] = self._waiting.put
        threading.Thread(target=self._listen, args=(incoming,), name="listen", daemon=True).start()

    def receive(self) -> Frame:
        """Return the next message, waiting for it; only before `route`."""
        return self._waiting.get()

    def route(self, handler: Callable[[Frame], None]) -> None:
        """Give every message, also those that wait already, to `handler`, on the reading thread."""
        with self._routing:
            while not self._waiting.empty():
                handler(self._waiting.get())
            self._handler = handler

    def send(self, message: Frame) -> None:
        """Write one message; threads may send at the same time."""
        frame = frames.packed(message)
        try:
            with self._writing:
                self._outgoing.write(frame)
                self._outgoing.flush()
        except OSError:  # the server is gone
            subprocesses.end_own_group()

    def progress(self, text: str) -> None:
        """Say what is being done while the model loads."""
        self.send({"type": "progress", "text": text})

    def leave_to_parent(self) -> None:
        """Let go of both pipes in a forked child, which would keep them open, and end with the parent."""
        null = os.open(os.devnull, os.O_RDWR)
        for pipe in (self._incoming, self._outgoing):
            os.dup2(null, pipe.fileno(), inheritable=False)
        os.close(null)
        subprocesses.end_with_parent()

    def _listen(self, incoming: BinaryIO) -> None:
        try:
            while (message := frames.read(incoming)) is not None:
                with self._routing:
                    self._handler(message)
        finally:
            subprocesses.remove_scratch()  # nobody else is left to do it
            subprocesses.end_own_group()
