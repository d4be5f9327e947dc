"""`promptmill yaml-fields FILE`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from acme.rows import read


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(unconfigured=_run)


def _run(arguments: argparse.Namespace) -> int:
    for name, count in Counter(name for row in read(arguments.file) for name in row).items():
        print(f"{name}: in {count} rows")
    return 0
