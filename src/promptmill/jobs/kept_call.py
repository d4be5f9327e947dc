"""A call that is over, kept as a finished job: for answers that are too large for the call's own result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from promptmill.backends.protocol import CallStats
from promptmill.config.loading import ResolvedConfig
from promptmill.core.conversation import Conversation
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Failure, Outcome
from promptmill.jobs import call_handoff
from promptmill.jobs.ledger import Ledger
from promptmill.jobs.running_jobs import RunningJobs
from promptmill.jobs.sink import JournalSink


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
    job_id = call_handoff.new_id()
    rows = [
        (index, item, outcome)
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
        if isinstance(item, Conversation) and _is_settled(outcome)
    ]
    lines = [(index, item) for index, item, _ in rows]
    writing = asyncio.ensure_future(asyncio.to_thread(running_jobs.spool, job_id, lines, system_prompt, plan))
    job = await asyncio.shield(writing)
    await running_jobs.go_on(job, _FinishedCall([outcome for _, _, outcome in rows]))
    return job_id


def _is_settled(outcome: Outcome) -> bool:
    return not (isinstance(outcome, Failure) and outcome.error.code is Code.DEFERRED)


class _FinishedCall:
    """The outcomes of a call that has ended, in the place of one that still runs."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.stats = CallStats(total=len(outcomes))
        self._outcomes = outcomes

    def end(self) -> None:
        """Nothing runs."""

    async def journal(self, ledger: Ledger, give_up: Callable[[PromptmillError], None]) -> int:
        """Journal the outcomes; returns how many there are."""
        journal = JournalSink(ledger.journal, ledger.index, ledger.tally, give_up)
        for row, outcome in enumerate(self._outcomes):
            await journal.put(row, outcome)
        journal.flush()
        ledger.index.flush()
        return len(self._outcomes)
