"""One answer on a terminal, printed while it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from promptmill.core.errors import without_controls


class LiveAnswer:
    """Prints what an answer has grown by. One that begins anew, after an attempt that failed, begins a new line."""

    def __init__(self, target: TextIO) -> None:
        """`target` is a terminal."""
        self._target = target
        self._shown = ""
        self.begins: Callable[[], None] | None = None
        """Called before the first text, to make way for it."""

    def show(self, text: str) -> None:
        """Print what is new in `text`, the answer so far."""
        text = without_controls(text)
        if self._shown and not text.startswith(self._shown):
            self._target.write("\n")
            self._shown = ""
        if len(text) == len(self._shown):
            return
        if self.begins is not None:
            self.begins()
            self.begins = None
        self._target.write(text[len(self._shown) :])
        self._target.flush()
        self._shown = text

    def end(self, text: str | None) -> None:
        """Print the rest of the whole answer, None where there is none."""
        if text is not None:
            self.show(text)
        if text is not None or self._shown:
            self._target.write("\n")
