"""The comparison at the end of a job that has several answers to each row."""

from __future__ import annotations

import argparse

from promptmill.jobs.columns import VARIANT
from promptmill.jobs.store.folder import Folder


def show(arguments: argparse.Namespace, folder: Folder) -> None:
    """Print the comparison of a job's variants, if it has any and its output is there."""
    spec = folder.spec
    if arguments.json or spec is None or not spec.is_grid or not spec.output.format:
        return
    from promptmill.features.compare.command import show_variants  # other jobs do not need it

    show_variants(spec.output.path, (spec.output.names or {}).get(VARIANT, VARIANT))
