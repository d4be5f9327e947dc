"""The text of an answer while its events arrive, for live displays."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from promptmill.answers.reasoning import answer_so_far
from promptmill.backends.openai.message_text import read_message


class StreamPreview:
    """Reads the pieces of a stream as they come. Unreadable ones are skipped: the full body is read again later."""

    def __init__(self, show: Callable[[str], None], *, inline: bool) -> None:
        """`show` is told the text so far; with `inline` reasoning is part of it."""
        self._show = show
        self._inline = inline
        self._rest = b""
        self._text = ""

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the body."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        text = "".join(map(_delta, lines))
        if text:
            self._text += text
            self._show(self._text if self._inline else answer_so_far(self._text))


def _delta(line: bytes) -> str:
    """Return what the event in a line adds to the answer."""
    try:
        event = orjson.loads(line.strip().removeprefix(b"data:"))
        choice = event["choices"][0]
        if choice.get("index", 0):
            return ""
        return read_message(choice["delta"])[0]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return ""
