"""A call that returns in time: it runs as a job from its start, and what is not done by then goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from promptmill.backends.protocol import Call
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.conversation import Conversation
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Failure, Outcome
from promptmill.jobs.manage import call_job
from promptmill.jobs.manage.running_jobs import RunningJobs
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.runner import Runner
from promptmill.service.driver import settle
from promptmill.service.list_call import ListSink
from promptmill.service.service import Service, too_long

# The time before the tool is called, and from the last look to the result on the wire; measured: half of it.
_LEAST_MARGIN_S = 1.0
_MARGIN_SHARE = 0.05
_ITEM_S = 4e-5  # read from the database, then an entry in the result


class DeadlineCall:
    """One call with a limit after which it returns. `outcomes`, then `go_on`; `abandon` in any case."""

    def __init__(  # noqa: PLR0917 (all that a call is)
        self,
        service: Service,
        running_jobs: RunningJobs,
        items: Sequence[Conversation | PromptmillError],
        stats: Call,
        system_prompt: str,
        plan: ResolvedConfig,
    ) -> None:
        """The time began with `stats`, as far as this call is concerned; `plan` is the call's own."""
        self._service = service
        self._running_jobs = running_jobs
        self._items = items
        self._asked = [index for index, item in enumerate(items) if isinstance(item, Conversation)]
        self._sink = ListSink(len(items))
        self._stats = stats
        self._plan = plan
        self._system_prompt = system_prompt or plan.settings.system_prompt
        self._job: Job | None = None
        self._runner: Runner | None = None
        self._run: asyncio.Task[object] | None = None
        self._answered = asyncio.Event()
        self._goes_on = asyncio.Event()

    async def outcomes(self) -> list[Outcome]:
        """Return an outcome per item, before the time is over; items that go on have failed with code `deferred`.

        Cancelling ends the work. Raises `PromptmillError` when the backend cannot be loaded.
        """
        if not self._asked:
            return await self._service.generate(self._items, self._stats, plan=self._plan)
        conversations = [(at, item) for at, item in enumerate(self._items) if isinstance(item, Conversation)]
        folders = self._running_jobs.folders
        writing = asyncio.ensure_future(
            asyncio.to_thread(call_job.write, conversations, self._system_prompt, self._plan, folders)
        )
        try:
            self._job = await asyncio.shield(writing)
        except PromptmillError as error:
            self._stats.warn(f"The call could not be bounded by `max_call_s`, which needs a job: {error}")
            return await self._service.generate(
                self._items, self._stats, system_prompt=self._system_prompt, plan=self._plan
            )
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            if not writing.exception():
                self._job = writing.result()
            raise
        for index, item in enumerate(self._items):
            if isinstance(item, PromptmillError):
                await settle(index, Failure(item), self._sink, self._stats)
        self._runner = Runner(self._job, self._service, stats=self._stats, before_output=self._before_output)
        self._run = asyncio.ensure_future(self._runner.run())
        return await self._until_limit(self._job, self._runner, self._run)

    def go_on(self) -> tuple[str | None, Call]:
        """Let the job have what is left; return its id, None when all is done, and what the call itself has cost."""
        job, run = self._job, self._run
        if job is None or run is None or not self._goes_on.is_set():
            return None, self._stats
        self._job = self._run = None
        self._running_jobs.adopt(job, run)
        return job.spec.job_id, replace(self._stats, codes=dict(self._stats.codes), warnings=dict(self._stats.warnings))

    def abandon(self) -> None:
        """End the work and forget its job, unless it goes on."""
        job, run, self._job, self._run = self._job, self._run, None, None
        if job is None:
            return
        if run is None or run.done():
            call_job.discard(job)
        else:
            run.cancel()
            run.add_done_callback(lambda _: call_job.discard(job))

    async def _before_output(self) -> None:
        """Wait until the call returns without its answers: else no file with them is needed."""
        self._answered.set()
        await self._goes_on.wait()

    async def _until_limit(self, job: Job, runner: Runner, run: asyncio.Task[object]) -> list[Outcome]:
        settings, began = self._plan.settings, self._stats.started
        assert settings.max_call_s is not None
        limit = began + settings.max_call_s - self._margin_s(settings.max_call_s)
        end = None if settings.call_timeout is None else began + settings.call_timeout
        answered = asyncio.ensure_future(self._answered.wait())
        try:
            await asyncio.wait(
                {run, answered},
                timeout=max(0.0, min(limit, end or limit) - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            answered.cancel()
        if run.done() or self._answered.is_set():
            left = runner.error or PromptmillError(Code.SHUTDOWN, "The server is shutting down.")
        elif end is not None and end < limit:
            left = too_long(settings.call_timeout)
        else:
            await asyncio.to_thread(call_job.make_durable, job)
            self._goes_on.set()
            left = PromptmillError(Code.DEFERRED, f"Goes on as job {job.spec.job_id}.", "")
        for record in await asyncio.to_thread(job.folder.store.all_records):
            await self._sink.put(self._asked[record.row], record.outcome())  # the job's run counted it
        if left.code is not Code.DEFERRED:
            self._service.calls.unanswered(left.code, len(self._sink.missing))
        return self._sink.result(left)

    def _margin_s(self, limit_s: float) -> float:
        """Return how long before the limit to begin with what takes time then."""
        return min(max(_LEAST_MARGIN_S, limit_s * _MARGIN_SHARE) + len(self._items) * _ITEM_S, limit_s / 2)
