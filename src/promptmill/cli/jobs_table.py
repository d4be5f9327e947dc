"""The list of jobs as a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from promptmill.core.errors import without_controls
from promptmill.jobs.store import status

_WIDE = 1000  # where a program reads, nothing is cut off
_COLUMNS: dict[str, Literal["left", "right"]] = {
    "job": "left",
    "state": "left",
    "rows": "right",
    "failed": "right",
    "begun": "left",
    "output": "left",
}
_PATH, _SHORTEST_PATH = "output", 10
_ALWAYS = 4  # columns that are shown on the narrowest terminal, too
_STYLES = {status.FINISHED: "green", status.RUNNING: "cyan", status.STOPPED: "red", status.INTERRUPTED: "yellow"}


def print_jobs(found: Iterable[Mapping[str, Any]], target: TextIO | None = None) -> None:
    """Print a row for each job to `target`, else to stdout; in colour and as wide as the screen on a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    target = target or sys.stdout
    console = Console(file=target, width=None if target.isatty() else _WIDE)
    rows = [_row(one) for one in found]
    table = Table(box=None, pad_edge=False, header_style="bold")
    widths = {name: max(len(name), *(len(row[place][0]) for row in rows)) for place, name in enumerate(_COLUMNS)}
    widths[_PATH] = min(
        widths[_PATH], _SHORTEST_PATH
    )  # the only column that may be cut: a name that is cut is of no use
    names = list(_COLUMNS)
    while len(names) > _ALWAYS and sum(widths[name] + 2 for name in names) - 2 > console.width:
        names.pop()
    left = console.width - sum(widths[name] + 2 for name in names if name != _PATH)
    for name in names:
        is_path = name == _PATH
        table.add_column(
            name, justify=_COLUMNS[name], no_wrap=True, overflow="ellipsis", max_width=left if is_path else None
        )
    for row in rows:
        table.add_row(*(Text(*cell) for cell in row[: len(names)]))
    if target.isatty():
        console.print(table)
        return
    with console.capture() as shown:
        console.print(table)
    target.writelines(f"{line.rstrip()}\n" for line in shown.get().splitlines())


def _row(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each column's text and its style."""
    total, done, failed = one.get("total"), one.get("done", 0), one.get("failed", 0)
    return [
        (one["job_id"], ""),
        (one["state"], _STYLES.get(one["state"], "")),
        (f"{done:,}" if total in {None, done} else f"{done:,}/{total:,}", ""),
        (f"{failed:,}", "red" if failed else "dim"),
        (time.strftime("%m-%d %H:%M", time.localtime(one["created"])), ""),
        (without_controls(_relative(one["output_file"])), ""),
    ]


def _relative(path: str) -> str:
    """Return a path from the working directory on, where it lies in there."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
