"""Print text; on a terminal, strip control sequences from it."""

from __future__ import annotations

import sys
from typing import TextIO

from promptmill.core.errors import without_controls


def say(text: str, stream: TextIO | None = None) -> None:
    """Write `text` and a line feed to `stream`, else to stdout; byte for byte where a program reads it."""
    stream = stream or sys.stdout
    stream.write((without_controls(text) if stream.isatty() else text) + "\n")
