"""The comparison that is printed at the end of a job with several answers to each row."""

from __future__ import annotations

from promptmill.cli.job_run import EndedJob
from promptmill.jobs.columns import VARIANT


def show(ended: EndedJob) -> None:
    """Print the comparison of a job's variants, if it has variants and its output exists."""
    if ended.on_stderr or ended.code is None or ended.arguments.json:
        return
    spec = ended.folder.spec
    if spec is None or not spec.is_grid or not spec.output.format:
        return
    from promptmill.features.compare.command import show_variants  # other jobs do not need it

    show_variants(spec.output.path, (spec.output.names or {}).get(VARIANT, VARIANT))
