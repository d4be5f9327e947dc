"""The options of a report, for a new job and for an existing job."""

from __future__ import annotations

from pathlib import Path

from promptmill.options.option import Excluded, Flag, Option

OPTIONS = (
    Option(
        "report",
        Path,
        "write a report, one HTML file, at the end",
        flag=Flag(metavar="FILE", is_common=True),
        argument=None,
        keyword=None,
        check="promptmill.pages.page:check",
        excludes=[Excluded("detach", "; `promptmill jobs JOB --html` writes it later")],
    ),
)
CONTROL = Option("report", str, "write a report, an HTML page, to this file")
