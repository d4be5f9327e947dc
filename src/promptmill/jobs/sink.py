"""Outcomes into the journal. What is no outcome of the row itself stops the job instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Completion, Failure, Outcome
from promptmill.jobs.disk import why
from promptmill.jobs.index import AGAIN, Index
from promptmill.jobs.job_request import FailureLimit
from promptmill.jobs.journal import Journal, encode
from promptmill.jobs.tally import JobCounts

_LARGEST_BATCH = 16
# While a job runs, one latency of so many is enough; the merge counts every one.
_SAMPLED = 8
# Never a row's own: the key, the account, the way to the host, the end of the process.
_ENDS_ALL = frozenset(
    {
        Code.INVALID_CONFIG,
        Code.DEADLINE,
        Code.REPLACED,
        Code.SHUTDOWN,
    }
)
# The same when the row was not even sent: then the endpoint was given up as a whole.
_ENDS_UNSENT = frozenset(
    {
        Code.UNREACHABLE,
        Code.CONNECTION_LOST,
        Code.RATE_LIMITED,
        Code.SERVER_ERROR,
        Code.BAD_RESPONSE,
        Code.TIMEOUT,
        Code.NAME_RESOLUTION,
        Code.NO_FILE_DESCRIPTORS,
        Code.ENGINE_DIED,
        Code.NOT_FOUND,
    }
)


class JournalSink:
    """Writes what has come within one turn of the event loop at its end, in one write, or when 16 outcomes wait.

    So a killed process pays twice for what was in flight and for at most 16 outcomes of that very turn. If `put` waited
    for its write it would be the former alone, at twice the cost (9 µs a row instead of 4; a write each: 10).
    """

    def __init__(
        self,
        journal: Journal,
        index: Index,
        tally: JobCounts,
        give_up: Callable[[PromptmillError], None],
        failure_limit: FailureLimit | None = None,
    ) -> None:
        """`give_up` is told why the job cannot go on; whoever is told cancels the run."""
        self._journal = journal
        self._index = index
        self._tally = tally
        self._give_up = give_up
        self._failure_limit = failure_limit
        self._failed = self._settled = self._answers = 0
        self._batch: list[tuple[int, Outcome]] = []
        self._broken = False
        self._call_soon = asyncio.get_running_loop().call_soon

    async def put(self, key: int, outcome: Outcome) -> None:
        """Journal the outcome of row `key`. Never returns once the job was given up for this outcome's sake."""
        if self._broken or (isinstance(outcome, Failure) and self._concerns_all(key, outcome)):
            await asyncio.Event().wait()
        self.record(key, outcome)

    def record(self, key: int, outcome: Outcome) -> None:
        """Journal the outcome of row `key`, whatever it is."""
        batch = self._batch
        if not batch:
            self._call_soon(self.flush)
        batch.append((key, outcome))
        self._settled += 1
        if isinstance(outcome, Failure):
            self._failed += 1
            self._tally.fail(str(outcome.error.code))
            self._check(outcome)
        if len(batch) >= _LARGEST_BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what was put, now."""
        batch, self._batch = self._batch, []
        if self._broken or not batch:
            return
        # all of a batch at once: encoding each when it comes costs half as much again, for its code is cold then
        lines = [encode(row, outcome) for row, outcome in batch]
        try:
            offset = self._journal.write(lines)
            for (row, _), line in zip(batch, lines, strict=True):
                self._index.set(row, offset)
                offset += len(line)
        except OSError as error:
            self._broken = True
            self._give_up(PromptmillError(Code.STORAGE, f"The job's journal cannot be written: {why(error)}."))
            return
        self._tally.done += len(batch)
        for _, outcome in batch:
            if isinstance(outcome, Completion):
                self._note(outcome)

    def _note(self, answer: Completion) -> None:
        self._answers += 1
        if not self._answers % _SAMPLED:
            self._tally.sample(answer.latency_s)
        if answer.reasoning is not None:
            self._tally.reasoning = True
        if answer.tool_calls:
            self._tally.tool_calls = True
        if answer.logprobs is not None:
            self._tally.logprobs = True

    def _check(self, failure: Failure) -> None:
        limit = self._failure_limit
        if limit is not None and limit.exceeded(self._failed, self._settled):
            said = f"{self._failed} of {self._settled} rows failed, more than --max-failures allows."
            self._give_up(PromptmillError(failure.error.code, f"{said} The last one: {failure.error}", ""))

    def _concerns_all(self, row: int, failure: Failure) -> bool:
        """Return whether the job is to stop instead of counting this failure, having said so."""
        code = failure.error.code
        if code in _ENDS_UNSENT and not failure.concerns_all:
            entry = self._index.get(row)
            before = self._journal.head(entry & ~AGAIN, row) if entry & AGAIN else None
            concerns_all = failure.attempts == (before.attempts if before else 0)
        else:
            concerns_all = failure.concerns_all or code in _ENDS_ALL
        if concerns_all:
            self._give_up(failure.error)
        return concerns_all
