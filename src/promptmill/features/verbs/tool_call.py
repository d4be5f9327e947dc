"""The call of a verb's tool.

    call ─▶ thread: the work ─▶ child process: the work's functions that read files
                             ─▶ this server's jobs, one per step

The child process has limited memory and time, because an agent that has read a poisoned page may have named the file
and written the prompt. Each step is a job: a repeated call resumes the work, and pays for no answer twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastmcp import Context

from promptmill.backends import registry
from promptmill.core.errors import Code, PromptmillError, Words, argument_name, worded
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.verbs.job_series import JobSeries
from promptmill.features.verbs.record import VerbCall, VerbRecord, VerbTool
from promptmill.jobs.caller import Caller, CallModels
from promptmill.jobs.door import OpenJob
from promptmill.jobs.inputs.short_forms import Labels
from promptmill.jobs.manage.server_jobs import Approve, ServerJobs
from promptmill.jobs.manage.step_model import StepModel
from promptmill.jobs.store import progress
from promptmill.server.tool_socket import ToolSocket
from promptmill.server.tools import config_of_call

T = TypeVar("T")
_LOOK_S = 0.2  # seconds between polls; a poll takes a millisecond, and a series has at most a dozen jobs
_SHOWN = ("job_id", "state", "reason", "done", "failed", "total", "message")


@dataclass(frozen=True, slots=True, kw_only=True)
class _CallModel(StepModel):
    """The model of a step, with the function that asks the user to approve the cost of each job of the step."""

    approve: Approve | None


class ToolCall(VerbCall):
    """The call of a verb's tool. Its work runs in a thread, which waits for coroutines on the event loop."""

    def __init__(
        self,
        verb: VerbRecord,
        *,
        about: VerbTool,
        options: JsonObject,
        caller: Caller,
        jobs: ServerJobs,
        socket: ToolSocket,
        ctx: Context,
    ) -> None:
        verb.check(options)
        self.options, self.folders, self.rule = options, jobs.folders, jobs.paths.rule
        self.caller = self._caller = caller
        self._verb, self._about, self._jobs, self._socket, self._ctx = verb, about, jobs, socket, ctx
        self._loop = asyncio.get_running_loop()
        self._waiting: concurrent.futures.Future[Any] | None = None
        """The coroutine on the event loop whose result the thread waits for."""
        self._step, self._counts = about.reading, ""
        self._job_id = ""
        self._has_series = self._is_late = self._is_cancelled = False

    @property
    def words(self) -> str:
        """The progress as text."""
        return f"{self._step}{self._counts}"

    @property
    def _remedy(self) -> str:
        return f"The same call resumes the {self._verb.noun}, and pays for no answer again."

    async def figures(self) -> JsonDict:
        """Return the figures of the work. If the work is a series, they include the state: `finished`, or `running` if
        the call has reached the operator's time limit.

        The state is `running` only if the job of an unfinished step still runs, so each repeated call makes progress.
        If this call is cancelled, the running job is cancelled, too. Raises `PromptmillError`.
        """
        working = asyncio.ensure_future(asyncio.to_thread(self._verb.done, self))
        working.add_done_callback(lambda done: done.cancelled() or done.exception())  # the client may have left
        try:
            await asyncio.wait({working}, timeout=self._socket.service.config.settings.max_call_s)
            self._is_late = True
            await asyncio.wait({working})
        except asyncio.CancelledError:
            self._is_cancelled = True
            if self._waiting is not None:
                self._waiting.cancel()
            if self._job_id:
                with contextlib.suppress(PromptmillError):  # the job of the step may not exist yet
                    await self._jobs.cancel(self._job_id, self._caller, is_call=True)
            raise
        if working.cancelled():
            message = f"The {self._verb.noun} takes longer than a call may. {self._remedy}"
            return {"state": progress.RUNNING, "message": message, "step": self.words, "job_id": self._job_id}
        return {"state": progress.FINISHED, **working.result()} if self._has_series else working.result()

    @contextlib.contextmanager
    def rows(self, option: str) -> Iterator[Sequence[Path]]:
        yield [self.options[option]]

    def model(self, option: str = "", **settings: Any) -> StepModel:
        return self._result(self._model(option or self._verb.model, **settings))

    async def _model(
        self, option: str, *, choices: Labels | None = None, schema: JsonObject | None = None, **sampling: Any
    ) -> StepModel:
        service, questions = self._socket.service, self._socket.questions
        config = await service.job_config(self.options[option], option)
        sampling = {name: each for name, each in sampling.items() if each is not None}
        if option == self._verb.model:
            own = {} if choices is None else choices.sampling
            given = {**(self.options.get("sampling_params") or {}), **sampling, **own}
            config = await config_of_call(service, config, schema, given, None if choices is None else choices.texts)
        else:
            config = config.with_sampling(sampling).capped
        config = await service.resolved_config(config)
        registry.check_key(config)
        models = await questions.for_files(self._ctx, CallModels(config))
        cost = questions.cost(self._ctx, [config], self.options.get("max_cost"), self._about.step)
        approve = None if cost is None else cost.approve
        return _CallModel(models, lambda job: self._result(self._finished(job, approve)), approve=approve)

    def series(self, max_cost: float | None) -> JobSeries:
        self._has_series = True
        return JobSeries(self.folders, self._verb.name, max_cost, self._caller)

    async def _finished(self, job: OpenJob, approve: Approve | None) -> None:
        """Run the job of a step until it ends."""
        self._job_id = job.order.output.parent.name
        now = await self._jobs.start(job, self._caller, approve)
        while now["alive"] or now["state"] in progress.ALIVE:  # the work then opens the job's database
            if self._is_late:
                raise asyncio.CancelledError
            await asyncio.sleep(_LOOK_S)
            now = await asyncio.to_thread(self._jobs.status, self._job_id, caller=self._caller)
            self._counts = f": {now.get('done', 0):,} of {now['total']:,} requests" if now.get("total") else ""
        if now["state"] != progress.FINISHED:
            reason = now.get("reason") or f"The job {self._job_id} is {now['state']}."
            code = Code(now.get("code", Code.SHUTDOWN))
            raise PromptmillError(code, f"The {self._verb.noun} has stopped. {reason}", self._remedy)

    def run(self, model: StepModel, job: OpenJob) -> JsonDict:
        assert isinstance(model, _CallModel)
        now = self._result(self._jobs.start(job, self._caller, model.approve))
        return {name: now[name] for name in _SHOWN if name in now}

    def apart(self, call: partial[T], name: str) -> T:
        return self._result(self._jobs.apart(call, name))

    def tell(self, text: str) -> None:
        self._step, self._counts = text, ""

    def warn(self, words: Words) -> None:
        self.tell(worded(words, argument_name))

    def _result(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop, wait in this thread until it ends, and return its result."""
        if self._is_cancelled:
            work.close()
            raise concurrent.futures.CancelledError
        self._waiting = waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        return waiting.result()
