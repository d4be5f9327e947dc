"""The option of a report."""

from __future__ import annotations

from pathlib import Path

from promptmill.options.option import Flag, Option, Without

OPTIONS = (
    Option(
        "report",
        Path,
        "write a report, one HTML file, at the end",
        flag=Flag(metavar="FILE"),
        argument=None,
        keyword=None,
        goes_without=[
            Without("detach", "; `promptmill report` writes one"),
            Without("validate", "; `promptmill report` writes one"),
        ],
    ),
)
