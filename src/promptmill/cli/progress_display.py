"""The progress bar of a running job on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TextIO

from promptmill.jobs.run.runner import Watch
from promptmill.jobs.store import status
from promptmill.jobs.store.status import Progress

_BAR = 12  # beside it, 80 columns have room for why a job waits


@contextlib.contextmanager
def bars(stream: TextIO) -> Iterator[Watch]:
    """Give what shows a job's progress as a bar on the terminal `stream`."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    console = Console(file=stream)
    looks = (
        BarColumn(bar_width=_BAR, table_column=Column(no_wrap=True)),
        TaskProgressColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True)),
    )
    with Bars(*looks, console=console, transient=True) as bars:
        bar = bars.add_task("", total=None, said="starting")

        def watch(progress: Progress) -> None:
            done = progress.written if progress.state == status.MERGING else progress.counts.done
            said = _line(progress, max(20, console.width - _BAR - 7))
            bars.update(bar, total=progress.total, completed=done, said=said)

        yield watch


def _line(progress: Progress, width: int) -> str:
    """Return how far a job is in at most `width` characters: the less important is left out."""
    found = progress.as_dict()
    elapsed = status.duration(found["seconds"])
    if progress.activity or progress.state != status.RUNNING:
        written = f", {found['written']} of {found['total']} rows" if "written" in found else ""
        return f"{elapsed} {progress.activity or progress.state}{written}"[:width]
    if waiting := found.get("waiting"):
        for shown in (f"{elapsed}, {waiting}, {found['done']} of {found['total']}", f"{elapsed}, {waiting}", waiting):
            if len(shown) <= width:
                return shown
        return f"{waiting[: width - 1]}…"
    left = "" if found["eta_s"] is None else f"{status.duration(found['eta_s'])} left"
    parts = {
        "elapsed": elapsed,
        "left": left,
        "failed": f"{found['failed']} failed" if found["failed"] else "",
        "done": f"{found['done']} of {found['total']}",
        "rate": f"{found['rows_per_second']:.1f} rows/s",
        "in flight": status.in_flight(found),
    }
    kept: list[str] = []
    for name, text in parts.items():
        if text and len(", ".join([*(parts[one] for one in kept), text])) <= width:
            kept.append(name)
    return ", ".join(parts[name] for name in kept)
