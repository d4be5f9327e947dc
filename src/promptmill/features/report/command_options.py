"""The options of `promptmill jobs JOB --html`."""

from __future__ import annotations

import argparse
from pathlib import Path

BESIDE = Path()
"""The value of `--html` without a file: the report is written next to the output."""


def add_options(options: argparse._ActionsContainer) -> None:
    """Add the options to the command `jobs`."""
    options.add_argument(
        "--html",
        type=Path,
        nargs="?",
        const=BESIDE,
        metavar="FILE",
        help="write all of the job into one HTML file, to browse and search; else OUTPUT.report.html",
    )
    options.add_argument("--open", action="store_true", help="with --html, or alone: show the HTML file in the browser")
