"""A call that returns in time: what is not done by then goes on as a job, and nothing of it is asked twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from promptmill.backends.protocol import CallStats
from promptmill.config.loading import ResolvedConfig
from promptmill.core.conversation import Conversation, TextPart
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Outcome
from promptmill.jobs import call_handoff
from promptmill.jobs.admission import Job
from promptmill.jobs.call_handoff import RunningCall
from promptmill.jobs.running_jobs import RunningJobs
from promptmill.service.lists import DivertedSink
from promptmill.service.service import Service, too_long

# What happens before the tool is called, and between the last look and the result on the wire; measured twice as fast.
_LEAST_MARGIN_S = 1.0
_MARGIN_SHARE = 0.05
_ITEM_S = 4e-5  # read, written once, then an entry in the result
_CHARACTERS_PER_S = 1.5e7


class DeadlineCall:
    """One call with a limit after which it returns. `outcomes`, then `go_on`; `abandon` in any case."""

    def __init__(  # noqa: PLR0917 (all that a call is)
        self,
        service: Service,
        running_jobs: RunningJobs,
        items: Sequence[Conversation | PromptmillError],
        stats: CallStats,
        system_prompt: str,
        plan: ResolvedConfig,
    ) -> None:
        """The time began with `stats`, as far as this call is concerned; `plan` is the call's own."""
        self._service = service
        self._board = running_jobs
        self._items = items
        self._scope = stats
        self._plan = plan
        self._system_prompt = system_prompt or plan.settings.system_prompt
        self._sink = DivertedSink(len(items))
        self._work: asyncio.Future[PromptmillError | None] | None = None
        self._left: list[int] = []
        self._job: Job | None = None

    async def outcomes(self) -> list[Outcome]:
        """Return an outcome per item, before the time is over; items that go on have failed with code `deferred`.

        Cancelling ends the work. Raises `PromptmillError` when the backend cannot be loaded.
        """
        work = asyncio.ensure_future(
            self._service.answer(
                self._items, self._sink, self._scope, system_prompt=self._system_prompt, plan=self._plan
            )
        )
        self._work = work
        try:
            return await self._until_limit(work)
        except BaseException:
            work.cancel()
            await asyncio.wait({work})
            raise

    def go_on(self) -> tuple[str | None, CallStats]:
        """Let the job have what is left; return its id, None when all is done, and what the call itself has cost."""
        job, work, self._job, self._work = self._job, self._work, None, None
        if job is None or work is None:
            return None, self._scope
        before = self._service.calls.split(self._scope, len(self._left))
        self._board.go_on(job, RunningCall(work, self._sink, self._left, self._scope))
        return job.spec.job_id, before

    def abandon(self) -> None:
        """End the work and forget its job, unless it goes on."""
        if self._work is not None:
            self._work.cancel()
        if self._job is not None:
            call_handoff.discard(self._job)
            self._job = None

    async def _until_limit(self, work: asyncio.Future[PromptmillError | None]) -> list[Outcome]:
        settings, began = self._plan.settings, self._scope.started
        assert settings.max_call_s is not None
        limit = began + settings.max_call_s - self._margin_s(settings.max_call_s)
        end = None if settings.call_timeout is None else began + settings.call_timeout
        if not await _done_by(work, limit if end is None else min(limit, end)) and (end is None or limit < end):
            found = await self._defer(work)
            if found is not None:
                return found
        if not await _done_by(work, end):
            unanswered: PromptmillError | None = too_long(settings.call_timeout)
            work.cancel()
            await asyncio.wait({work})
        else:
            unanswered = await work
        if unanswered is not None:
            self._service.calls.unanswered(unanswered.code, len(self._sink.missing))
        return self._sink.result(unanswered)

    async def _defer(self, work: asyncio.Future[PromptmillError | None]) -> list[Outcome] | None:
        """Put on disk what is left and return the outcomes; None when nothing is left by then, or no disk has room."""
        self._left = self._sink.missing
        if not self._left:
            return None
        job_id = call_handoff.new_id()
        found = self._sink.result(PromptmillError(Code.DEFERRED, f"Goes on as job {job_id}.", ""))
        items = [(key, item) for key in self._left if isinstance(item := self._items[key], Conversation)]
        writing = asyncio.ensure_future(
            asyncio.to_thread(self._board.spool, job_id, items, self._system_prompt, self._plan)
        )
        try:
            self._job = await asyncio.shield(writing)
        except PromptmillError as error:
            self._scope.warn(f"The call took longer than `max_call_s`, because what was left could not go on: {error}")
            return None
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            if not writing.exception():
                self._job = writing.result()
            raise
        if not work.done():
            return found
        call_handoff.discard(self._job)
        self._job = None
        return None

    def _margin_s(self, limit_s: float) -> float:
        """Return how long before the limit to begin with what takes time then."""
        work_s = len(self._items) * _ITEM_S + sum(map(_size, self._items)) / _CHARACTERS_PER_S
        return min(max(_LEAST_MARGIN_S, limit_s * _MARGIN_SHARE) + work_s, limit_s / 2)


async def _done_by(work: asyncio.Future[Any], when: float | None) -> bool:
    """Wait for `work` until `when` (of `time.monotonic`), None for ever; return whether it is done."""
    timeout_s = None if when is None else max(0.0, when - time.monotonic())
    await asyncio.wait({work}, timeout=timeout_s)
    return work.done()


def _size(item: Conversation | PromptmillError) -> int:
    if not isinstance(item, Conversation):
        return 0
    size = 0
    for message in item.messages:
        content = message.content
        parts = content if isinstance(content, tuple) else (TextPart(content or ""),)
        size += sum(len(getattr(part, "source", getattr(part, "text", getattr(part, "data", "")))) for part in parts)
    return size
