"""The state of one run of a job, for the modules that read the input, run the rounds and write the output."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TypeVar

from promptmill.backends.protocol import Call, Facts
from promptmill.jobs.run.ending import Ending
from promptmill.jobs.run.job import Apart, Hooks, Job
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.progress import Progress, StatusWriter
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import NEVER
from promptmill.jobs.store.statistics import JobCounts
from promptmill.service.service import Service

T = TypeVar("T")


class RunState:
    """One run of an admitted job: its progress, its end, and the threads that work for it."""

    def __init__(
        self, job: Job, service: Service, hooks: Hooks, *, call: Call | None, apart: Apart | None, leaving_s: float
    ) -> None:
        """The arguments are those of `Runner`."""
        self.job, self.service, self.hooks, self.apart = job, service, hooks, apart
        self.end = SLOT
        """The number of the first row beyond the order's limit."""
        self.progress = Progress(JobCounts(), Call(Facts(of_job=True)) if call is None else call, job.folder.status)
        self.progress.counts.skips_empty = job.spec.question.skip_empty
        self.work = Work(self.progress.pass_row)
        self.status = StatusWriter(self.progress, job.folder, hooks.watch, self._activity)
        self.ending = Ending(self.progress, leaving_s, self.status.show)

    @property
    def store(self) -> JobDatabase:
        """The job's database. Reading the input, or a repair, may replace it."""
        return self.job.folder.store

    async def do(self, step: functools.partial[T]) -> T:
        """Run a step that reads the input or writes the output; in a child process if the run was given `apart`."""
        if self.apart is not None:
            return await self.apart(step, self.job, self.work.note)
        return await self.in_thread(lambda: step(self.work, self.job.folder))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking work in a thread. If the run is cancelled, set `work.halt` and wait until the thread ends."""
        thread = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            self.work.halt.set()
            await asyncio.wait({thread})
            thread.cancelled() or thread.exception()  # retrieves the exception, so that asyncio logs none
            raise

    async def count(self) -> None:
        """Count the outcomes in the database."""
        self.status.enter(self.progress.state, "counting the answers")
        await self.in_thread(lambda: self.progress.count(self.store, NEVER, self.end))

    def _activity(self) -> str:
        """Return the activity of a running job."""
        if words := self.ending.words:
            return words
        return "" if self.progress.call.counts.done else self.service.activity
