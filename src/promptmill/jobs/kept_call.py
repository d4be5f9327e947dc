"""A call that is over, kept as a finished job: for answers that are too large for the call's own result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from promptmill.config.models import ResolvedConfig
from promptmill.core.conversation import Conversation
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Failure, Outcome
from promptmill.jobs import call_job, disk
from promptmill.jobs.admission import Job
from promptmill.jobs.records import record_of
from promptmill.jobs.running_jobs import RunningJobs


async def keep(
    running_jobs: RunningJobs,
    items: Sequence[Conversation | PromptmillError],
    outcomes: Sequence[Outcome],
    system_prompt: str,
    plan: ResolvedConfig,
) -> str:
    """Return the id of a job with the settled `outcomes` of `items`; it is finished, and its rows can be read.

    Raises `PromptmillError` (`storage`).
    """
    rows = [
        (index, item, outcome)
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
        if isinstance(item, Conversation) and _is_settled(outcome)
    ]

    def written() -> Job:
        job = call_job.write([(index, item) for index, item, _ in rows], system_prompt, plan, running_jobs.folders)
        try:
            job.folder.store.write([record_of(row, outcome) for row, (_, _, outcome) in enumerate(rows)])
        except OSError as error:
            call_job.discard(job)
            raise PromptmillError(Code.STORAGE, f"The answers cannot be kept: {disk.why(error)}.", "") from None
        return job

    job = await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(written)))
    await asyncio.wait({running_jobs.run_here(job)})  # which finds every row answered, and writes the output
    return job.spec.job_id


def _is_settled(outcome: Outcome) -> bool:
    return not (isinstance(outcome, Failure) and outcome.error.code is Code.DEFERRED)
