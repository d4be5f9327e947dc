"""Tee stderr and keep its tail for error messages.

vLLM's own processes report there, and only there, why they cannot start.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import deque

_KEPT = 400  # lines
_LONGEST = 64 << 10  # bytes of a line
_ERROR = re.compile(r"(?:^|\s|\])((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit))(?::\s+(.+))?$")
_EMPTY_WORDS = ("initialization failed", "See stack trace", "Failed core proc", "cancelled", "KeyboardInterrupt")


class StderrTee:
    """Redirects fd 1 and 2 for the life of the process."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._real = os.dup(2)
        read, write = os.pipe()
        for descriptor in (1, 2):
            os.dup2(write, descriptor)
        os.close(write)
        threading.Thread(target=self._pass_on, args=(read,), name="stderr", daemon=True).start()

    def _pass_on(self, read: int) -> None:
        rest = b""
        while chunk := os.read(read, 1 << 16):
            with contextlib.suppress(OSError):  # stderr is closed
                os.write(self._real, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_LONGEST:]
            self._lines.extend(line.decode("utf-8", "replace").rstrip() for line in lines)

    def reason(self) -> tuple[str, str] | None:
        """Return name and message of the last printed exception that is informative; None without one."""
        for line in reversed(list(self._lines)):
            if (found := _ERROR.search(line)) and not any(words in line for words in _EMPTY_WORDS):
                return found[1].rpartition(".")[2], found[2] or ""
        return None
