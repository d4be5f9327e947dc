"""The steps of a job that read files: its input becomes rows, and rows become its output.

They need the path of the job's database and nothing else. So a server has another process do them for a call
(`manage.detached`): a template, or a file of another person, may take any amount of memory and time.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from promptmill.jobs import ingest
from promptmill.jobs.export import join, output
from promptmill.jobs.inputs import row_secrets
from promptmill.jobs.inputs.files import InputFiles
from promptmill.jobs.run import admission
from promptmill.jobs.run.admission import Job
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.spec import JobSpec, OutputRecord

T = TypeVar("T")


class InThread(Protocol):
    """Runs blocking work in a thread."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return the result of the work."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """The run that a step belongs to."""

    in_thread: InThread
    halt: threading.Event
    """Set when the run ends."""
    note: Callable[[int], None]
    """Gets the number of rows so far, in any thread."""


class Steps(Protocol):
    """Does the steps."""

    async def ingest(self, job: Job, files: InputFiles, context: Context) -> Bound:
        """Read the input. Raises as `Change.read`."""
        ...

    async def check_secrets(self, job: Job, context: Context) -> None:
        """Look for secrets in the rows. Raises as `row_secrets.check`."""
        ...

    async def export(self, job: Job, context: Context) -> output.Written:
        """Write the output to a temporary file. Raises as `output.write_output`."""
        ...


def write(store: JobDatabase, spec: JobSpec, rules: output.Rules, own: OutputRecord | None) -> output.Written:
    """Write the output or the shard's part of it to a temporary file. Blocks. Raises as `output.write_output`."""
    return join.write_part(store, spec) if spec.output.shard else output.write_output(store, spec, rules, own)


class _Here:
    """Does the steps in this process."""

    async def ingest(self, job: Job, files: InputFiles, context: Context) -> Bound:
        rules = ingest.Rules(context.note, context.halt, job.disk_share)
        return await context.in_thread(lambda: admission.read(job, files, rules))

    async def check_secrets(self, job: Job, context: Context) -> None:
        store, source, rule = job.folder.store, job.spec.input, job.plan.file_rule
        await context.in_thread(lambda: row_secrets.check(store, source, rule, context.note, context.halt))

    async def export(self, job: Job, context: Context) -> output.Written:
        rules = output.Rules(job.order.limits.rows, context.note, context.halt)
        return await context.in_thread(lambda: write(job.folder.store, job.spec, rules, job.folder.result))


HERE: Steps = _Here()
