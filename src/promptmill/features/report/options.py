"""The options of a report, for a new job and for an existing job."""

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
        check="promptmill.pages.page:check",
        goes_without=[
            Without("detach", "; `promptmill jobs JOB --html` writes one"),
            Without("validate", "; `promptmill jobs JOB --html` writes one"),
        ],
    ),
)
CONTROL = Option("report", str, "write a report, an HTML page, to this file")
