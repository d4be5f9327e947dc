"""Prints text. On a terminal, control sequences are removed and long lines are broken between words."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from promptmill.core.errors import without_controls

if TYPE_CHECKING:  # imported on use: the import takes a tenth of a second
    from rich.progress import Progress

OK, SOME_FAILED, USAGE, TRY_AGAIN, TERMINATED = 0, 1, 2, 75, 143
"""Exit codes of the commands. 75 is EX_TEMPFAIL in sysexits.h; 143 means that SIGTERM ended the process."""

SHORTEST_BAR = 8
"""The shortest length of the bar, in characters: 80 columns then also have room for the reason of a wait."""
_COLUMNS = 80
_RUN = " Run: "  # marks the start of a command at the end of an error
_RED, _PLAIN = "\x1b[1;31m", "\x1b[0m"
_LABEL = re.compile(r" *(\S+ {2,})?")


class LostOutputError(Exception):
    """Stdout accepts no more output, for example because the disk is full."""


def say(text: str, stream: TextIO | None = None, *, wrap: bool = False) -> None:
    """Write `text` and a line feed to `stream` (default: stdout). If the stream is no terminal, the text is unchanged.

    `wrap`: on a terminal, break long lines between words. Raises `LostOutputError`.
    """
    stream = stream or sys.stdout
    if stream.isatty():
        text = without_controls(text)
        text = wrapped(text, columns(stream)) if wrap else text
    with _lost_in_words(stream):
        stream.write(text + "\n")


def complain(text: str) -> None:
    """Write an error to stderr, after `error:` (red on a terminal). The remedy's command gets a separate line."""
    stream = sys.stderr
    problem, run, command = f"error: {text}".partition(_RUN)
    if stream.isatty():
        shown = wrapped(without_controls(problem), columns(stream))
        problem = shown if os.environ.get("NO_COLOR") else shown.replace("error:", f"{_RED}error:{_PLAIN}", 1)
    if run:  # the command on one line, so that it can be copied
        problem += f"{_RUN.rstrip()}\n  {without_controls(command)}"
    stream.write(f"{problem}\n")


def progress_bar(stream: TextIO) -> Progress:
    """Return a progress bar on the terminal `stream`. The field `said` of its task is the text before the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    text = TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True))
    bar = BarColumn(bar_width=None, table_column=Column(no_wrap=True, ratio=1, min_width=SHORTEST_BAR))
    return Progress(text, bar, console=Console(file=stream), transient=True, expand=True)


def flush(stream: TextIO) -> None:
    """Write the buffered output. Raises `LostOutputError`."""
    with _lost_in_words(stream):
        stream.flush()


@contextlib.contextmanager
def _lost_in_words(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if stream is not sys.stdout:
            raise
        raise LostOutputError(
            f"stdout cannot be written: {error.strerror}. The rest is lost; write elsewhere and run it again."
        ) from None


def wrapped(text: str, width: int) -> str:
    """Return `text` broken between words into lines of at most `width`; continuation lines are indented."""
    lines = []
    for line in text.split("\n"):
        found = _LABEL.match(line)
        indent = found.end() if found and found[1] else len(line) - len(line.lstrip(" ")) + 2
        lines += textwrap.wrap(
            line, max(width, 40), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


def columns(stream: TextIO) -> int:
    """Return the width of the terminal behind `stream`, 80 if it is not a terminal."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS  # a terminal of unknown size reports 0
    except (OSError, ValueError):
        return _COLUMNS


def is_terminal() -> bool:
    """Return whether a user can answer questions on a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()
