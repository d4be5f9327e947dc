"""`promptmill jobs --watch`: a board of the jobs that run, until Ctrl-C.

A job's database is read only when its files have changed, so the board costs next to nothing while it waits.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmill.cli.job_display import title
from promptmill.cli.terminal import OK
from promptmill.core.errors import without_controls
from promptmill.core.money import dollars
from promptmill.core.wording import duration
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.status_record import Status

_EVERY_S = 2.0  # a redraw takes some milliseconds, and the board may use one percent of a core
_LISTED_EVERY = 5  # rounds between two looks for new jobs
_BAR = 20  # characters
_STYLES = {"finished": "green", "running": "cyan", "stopped": "red", "interrupted": "yellow"}


@dataclass(slots=True)
class _Seen:
    """A job as it was read last."""

    stamp: object
    status: Status


class Board:
    """The jobs that run now, and those that have ended since the board began."""

    def __init__(self, folders: JobFolders) -> None:
        self._folders = folders
        self._began = time.time()
        self._seen: dict[Path, _Seen] = {}
        self._listed: list[Folder] = []
        self._rounds = 0

    def look(self) -> list[Status]:
        """Return the status of each job, the newest first."""
        if self._rounds % _LISTED_EVERY == 0:
            self._listed = list(self._folders.all())
        self._rounds += 1
        shown = []
        for folder in self._listed:
            stamp = folder.stamp
            seen = self._seen.get(folder.path)
            if seen is None or seen.stamp != stamp or seen.status.get("alive"):
                seen = self._seen[folder.path] = _Seen(stamp, self._read(folder))
            if seen.status.get("alive") or seen.status.get("updated", 0.0) >= self._began:
                shown.append(seen.status)
        return sorted(shown, key=lambda job: -job["created"])

    @staticmethod
    def _read(folder: Folder) -> Status:
        spec, last = folder.spec_and_status()
        return {} if spec is None else status.of(folder, spec, last)


def watch(folders: JobFolders) -> int:
    """Show the board until Ctrl-C: on a terminal in place, else a line for each job that has changed."""
    board = Board(folders)
    try:
        if sys.stdout.isatty():
            _show(board)
        else:
            _print(board)
    except KeyboardInterrupt:
        pass
    return OK


def _show(board: Board) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            live.update(_table(board.look(), console.width), refresh=True)
            time.sleep(_EVERY_S)


def _print(board: Board) -> None:
    told: dict[str, str] = {}
    while True:
        for job in board.look():
            line = f"{job['job_id']}: {job['state']}, {status.line(job)}"
            if told.get(job["job_id"]) != line:
                told[job["job_id"]] = line
                print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
        time.sleep(_EVERY_S)


def _table(jobs: Sequence[Status], width: int) -> Any:
    from rich.table import Table
    from rich.text import Text

    if not jobs:
        return Text("no job is running; Ctrl-C ends this board", "dim")
    table = Table(box=None, pad_edge=False, width=width)
    table.add_column("job", no_wrap=True, ratio=3)
    table.add_column("", no_wrap=True)
    table.add_column("rows", no_wrap=True, justify="right")
    table.add_column("now", no_wrap=True, ratio=4)
    for job in jobs:
        done, total = job.get("done", 0), job.get("total")
        filled = 0 if not total else _BAR * done // total
        state = job["state"] if not job.get("paused") else "paused"
        cells = (
            f"{title(job)} ({job['job_id']})",
            "━" * filled + "╌" * (_BAR - filled),
            f"{done:,}" if total is None else f"{done:,}/{total:,}",
            f"{state}, {_now(job)}",
        )
        style = _STYLES.get(state, "")
        table.add_row(*(Text(without_controls(cell), style if at == 3 else "") for at, cell in enumerate(cells)))
    return table


def _now(job: Status) -> str:
    """Return the activity of a job in a few words."""
    parts = [f"{job['failed']:,} failed"] if job.get("failed") else []
    if job.get("waiting"):
        parts.insert(0, job["waiting"])
    elif job["state"] == "running":
        parts.insert(0, f"{job['rows_per_second']:,.1f} rows/s, {status.in_flight(job)}")
        if (eta_s := job.get("eta_s")) is not None:
            parts.append(f"{duration(eta_s)} left")
    if job.get("round") not in {None, "", "first"}:
        parts.append(f"round: {job['round']}")
    if (cost := job.get("cost")) is not None:
        parts.append(dollars(cost))
    return ", ".join(parts)
