"""The search for a better prompt for a call of a server.

    the file ─▶ child process: the gold rows ─▶ thread: the search ─▶ this server's jobs, one per step

The child process has limited memory and time, because an agent that has read a poisoned page may have named the file
and written the prompt. Each step is a job: a repeated call resumes the search and pays for no answer twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import orjson

from promptmill.backends import registry
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import LONGEST_SHOWN
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict
from promptmill.core.wording import cut
from promptmill.features.improve import Again
from promptmill.features.improve.gold import GoldRow, GoldRows
from promptmill.features.improve.improvement import gold_in, system_of
from promptmill.features.improve.search import search
from promptmill.features.improve.search_jobs import JobSteps, longest_of
from promptmill.jobs.caller import Caller, CallModels
from promptmill.jobs.door import OpenJob
from promptmill.jobs.inputs.row_secrets import check_encoding
from promptmill.jobs.inputs.short_forms import Labels
from promptmill.jobs.manage.job_series import JobSeries, StepModel
from promptmill.jobs.manage.server_jobs import Approve, ServerJobs
from promptmill.jobs.store import progress
from promptmill.system.call_files import FileRule

_LOOK_S = 0.2  # seconds between polls; a poll takes a millisecond, and a search has at most eight jobs
_RESUMES = "The same call resumes the search, and pays for no answer again."


class SearchModel(NamedTuple):
    """A model of the search: its configuration, and a function that is called with the cost of each of its jobs."""

    config: ModelConfig
    approve: Approve | None


@dataclass(frozen=True, slots=True)
class SearchOrder:
    """The options of a call's search."""

    input_file: str
    gold: str
    prompt: str
    labels: Labels
    model: SearchModel
    strong: SearchModel
    system_prompt: str = ""
    encoding: str | None = None
    again: Again | None = None
    max_cost: float | None = None


def strong_config(config: ModelConfig, model: ModelConfig, max_cost: float | None) -> ModelConfig:
    """Return the configuration of the strong model: its replies, prompts, may be longer than labels of `model`."""
    limit = longest_of(model, max_cost)
    return (config if limit is None else config.with_sampling({"max_tokens": limit})).capped


class ServerSearch:
    """A search for which a call waits."""

    def __init__(self, jobs: ServerJobs, caller: Caller, order: SearchOrder) -> None:
        self._jobs, self._caller, self._order = jobs, caller, order
        self._loop = asyncio.get_running_loop()
        self._step = "reading the rows with right labels"
        self._counts = ""
        self._job_id = ""
        self._job: asyncio.Task[None] | None = None
        self._is_late = self._is_cancelled = False

    @property
    def words(self) -> str:
        """The progress as text."""
        return f"{self._step}{self._counts}"

    async def figures(self, limit_s: float | None) -> JsonDict:
        """Return the search's figures with the state `finished`; after `limit_s`, return the state `running`.

        The state is `running` only if the job of an unfinished step still runs, so each repeated call makes progress.
        If this call is cancelled, the job ends. Raises `PromptmillError`.
        """
        order = self._order
        check_encoding(order.encoding)
        path = self._jobs.paths.allowed(order.input_file, "input_file")
        for model in (order.model, order.strong):
            registry.check_key(model.config)
        call = partial(
            _gold,
            path=path,
            column=order.gold,
            prompt=order.prompt,
            labels=list(order.labels.texts),
            encoding=order.encoding,
            rule=self._jobs.paths.rule,
        )
        gold = await self._jobs.apart(call, path.name)
        searching = asyncio.ensure_future(asyncio.to_thread(self._search, gold))
        searching.add_done_callback(lambda done: done.cancelled() or done.exception())  # the client may have left
        try:
            await asyncio.wait({searching}, timeout=limit_s)
            self._is_late = True
            await asyncio.wait({searching})
        except asyncio.CancelledError:
            self._is_cancelled = True
            if self._job is not None:
                self._job.cancel()
            with contextlib.suppress(PromptmillError):  # the step may not have its job yet
                await self._jobs.cancel(self._job_id, self._caller, is_call=True)
            raise
        if not searching.cancelled():
            return {"state": progress.FINISHED, **searching.result()}
        message = f"The search takes longer than a call may. {_RESUMES}"
        return {"state": progress.RUNNING, "message": message, "step": self.words, "job_id": self._job_id}

    def _search(self, gold: GoldRows) -> JsonDict:
        order = self._order
        series = JobSeries(self._jobs.folders, "improve", order.max_cost, self._caller)
        steps = JobSteps(
            series,
            StepModel(CallModels(order.model.config), partial(self._run, order.model)),
            StepModel(CallModels(order.strong.config), partial(self._run, order.strong)),
            order.system_prompt,
            order.again,
        )
        system = system_of(order.system_prompt, order.labels)
        found = search(gold, order.prompt, steps, system=system, tell=self._tell)
        found["candidates"] = [one | {"prompt": cut(one["prompt"], LONGEST_SHOWN)} for one in found["candidates"]]
        return found | series.spent

    def _tell(self, text: str) -> None:
        self._step, self._counts = text, ""

    def _run(self, model: SearchModel, job: OpenJob) -> None:
        asyncio.run_coroutine_threadsafe(self._ran(model, job), self._loop).result()

    async def _ran(self, model: SearchModel, job: OpenJob) -> None:
        """Run the job of a step until it ends."""
        if self._is_cancelled:
            raise asyncio.CancelledError
        self._job, self._job_id = asyncio.current_task(), job.order.output.parent.name
        now = await self._jobs.start(job, self._caller, model.approve)
        while now["alive"] or now["state"] in progress.ALIVE:  # afterwards, the search opens the job's database
            if self._is_late:
                raise asyncio.CancelledError
            await asyncio.sleep(_LOOK_S)
            now = await asyncio.to_thread(self._jobs.status, self._job_id, caller=self._caller)
            self._counts = f": {now.get('done', 0):,} of {now['total']:,} requests" if now.get("total") else ""
        if now["state"] != progress.FINISHED:
            reason = now.get("reason") or f"The job {self._job_id} is {now['state']}."
            code = Code(now.get("code", Code.SHUTDOWN))
            raise PromptmillError(code, f"The search has stopped. {reason}", _RESUMES)


def _gold(*, path: Path, column: str, prompt: str, labels: list[str], encoding: str | None, rule: FileRule) -> GoldRows:
    found = gold_in(path, column, prompt, labels, encoding=encoding, rule=rule)
    rows = [*found.seen, *found.held_out]
    plain = [GoldRow(row.key, orjson.loads(orjson.dumps(row.cells, default=str)), row.label) for row in rows]
    seen = len(found.seen)
    return GoldRows(labels, found.header, plain[:seen], plain[seen:], found.repeated, found.without)
