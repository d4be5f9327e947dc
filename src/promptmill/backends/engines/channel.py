"""The engine's end of the pipe to the server. The engine ends when the server does.

To the engine:

    {"type": "load", "engine", "options"}            first, once
    {"type": "submit", "run", "id", "messages", "sampling", "extra", "images", "live"}
                                                     `live`: send previews of the growing answer
    {"type": "submit", "run", "id", "path", "body"}  another request than a chat; only for vLLM
    {"type": "cancel", "run"}                        drop all requests of this run

From the engine:

    {"type": "progress", "text"}                     while it loads
    {"type": "loaded", "window", "images"}           `window`: the number of items that a run should keep submitted;
                                                     `images`: true when the model reads images
    {"type": "failed", "error"}                      loading failed
    {"type": "outcome", "run", "id", "warnings", …}  either "error", or "text", "finish_reason", "usage", …
    {"type": "preview", "run", "id", "text"}         the answer so far, if `live`
    {"type": "last_words", "text"}                   the reason why it is about to end

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

    A thread reads from the start, even while the main thread imports or computes: on every system the end of the pipe
    shows that the server died, and then this process ends with its group.
    """

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._writing = threading.Lock()
        self._routing = threading.Lock()
        self._waiting: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._handler: Callable[[Frame], None] = self._waiting.put
        threading.Thread(target=self._listen, args=(incoming,), name="listen", daemon=True).start()

    def receive(self) -> Frame:
        """Wait for the next message and return it; only before `route`."""
        return self._waiting.get()

    def route(self, handler: Callable[[Frame], None]) -> None:
        """Pass every message, including those already received, to `handler` on the reading thread."""
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
        """Report a step of loading the model."""
        self.send({"type": "progress", "text": text})

    def leave_to_parent(self) -> None:
        """In a forked child: close both pipes, which it would keep open, and end when the parent ends."""
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
            subprocesses.remove_scratch()  # the server, which usually does this, is gone
            subprocesses.end_own_group()
