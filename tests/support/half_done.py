"""A job as a run that was killed leaves it: begun, with some rows answered, and run by nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from promptmill.backends import rows
from promptmill.backends.protocol import Completion, Outcome, Usage
from promptmill.config.loading import Configuration
from promptmill.jobs.files import row_files
from promptmill.jobs.files.disk import Line, Lines
from promptmill.jobs.run import admission
from promptmill.jobs.run.admission import Job
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import JobFolders
from promptmill.jobs.store.records import record_of
from promptmill.jobs.store.spec import JobRequest


def answers(first: int, end: int) -> dict[int, Outcome]:
    """Return the upstream's answers to the rows from `first` to before `end`, with prompts "prompt 0" and so on."""
    return {
        row: Completion(f"echo: prompt {row}", "stop", Usage(2, 3), latency_s=0.0052 + row / 1e6)
        for row in range(first, end)
    }


def _lines(job: Job) -> Iterator[Line]:
    found = Lines(job.input.first)
    while block := found.read():
        yield from block


def leaving(outcomes: Mapping[int, Outcome]) -> Callable[..., int]:
    """Return what takes the place of `promptmill.cli.bulk.run`: it leaves the job with these outcomes."""

    def run(_arguments: Any, configuration: Configuration, order: JobRequest, **_: Any) -> int:
        job = admission.admit(order, configuration.plan, JobFolders.from_environ())
        try:
            admission.check_content(job, threading.Event())
            kind = row_files.row_kind(job.spec.input_format)
            lines = {line.row: rows.digest(kind, line.data or b"") for line in _lines(job)}
            made = job.spec.made
            job.folder.store.write([record_of(row, outcome, lines[row], made) for row, outcome in outcomes.items()])
            job.folder.put(status={**job.folder.status, "state": status.RUNNING})
        finally:
            job.close()
        return 0

    return run
