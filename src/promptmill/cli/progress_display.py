"""Progress bars of a running job on a terminal; elsewhere a line every few seconds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

from promptmill.jobs import status
from promptmill.jobs.progress_text import progress_lines
from promptmill.jobs.runner import Watch
from promptmill.jobs.status import Progress


@contextlib.contextmanager
def watching(job_id: str, stream: TextIO = sys.stderr) -> Iterator[Watch]:
    """Give what shows a job's progress on `stream`."""
    if stream.isatty():
        with _bars(stream) as watch:
            yield watch
    else:
        yield progress_lines(job_id, stream)


@contextlib.contextmanager
def _bars(stream: TextIO) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    console = Console(file=stream)
    looks = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=min(24, max(4, console.width - 96)), table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[said]}", table_column=Column()),  # has a second line where there is no room
    )
    with Bars(*looks, console=console, transient=True) as bars:
        bar = bars.add_task("starting", total=None, said="")

        def watch(progress: Progress) -> None:
            said = status.line(progress.as_dict()).partition(" done, ")[2]
            bars.update(
                bar,
                description=progress.activity or progress.state,
                total=progress.total,
                completed=progress.counts.done,
                said=said,
            )

        yield watch
