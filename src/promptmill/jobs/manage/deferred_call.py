"""A call as a job. The job's prompts are on disk, so that any process can resume it; ended jobs keep their answers.

A call with a time limit (`DeadlineCall`) is a job from its start, and the job continues after the limit. If there is no
free place (see `call_limits`), the job waits. If the client supports tasks (`server.tasks`), the job is also a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Counts, Failure, Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Shown
from promptmill.files import disk
from promptmill.files.row import Lines
from promptmill.jobs import door
from promptmill.jobs.caller import CallModels, CallWork, new_job_id
from promptmill.jobs.door import Rows, open_job
from promptmill.jobs.ingest import ingest
from promptmill.jobs.manage import prune
from promptmill.jobs.manage.call_limits import JobPlace
from promptmill.jobs.manage.call_paths import resolved_image
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.run.job import Job
from promptmill.jobs.store import progress
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.records import record_of
from promptmill.service.driver import record_outcome
from promptmill.service.list_call import ListSink
from promptmill.service.service import Service, too_long
from promptmill.system.call_files import FileRule

# The time that a call takes outside of the tool (dispatch, sending the result): twice the measured values.
_LEAST_MARGIN_S = 1.0
_MARGIN_SHARE = 0.05
_ITEM_S = 4e-5  # seconds to read an item from the database and add it to the result


class DeadlineCall:
    """A part of a call with a time limit. Use `outcomes`; if it sets `work.job_id`, use `go_on` or `abandon`."""

    def __init__(self, service: Service, server_jobs: ServerJobs, work: CallWork, limit_s: float) -> None:
        """`limit_s`: the time that `work.call` may take."""
        self._service = service
        self._server_jobs = server_jobs
        self._work = work
        self._is_task_required = work.task is not None and work.task.is_required
        margin_s = max(_LEAST_MARGIN_S, limit_s * _MARGIN_SHARE) + len(work.items) * _ITEM_S
        self._limit = work.call.started + limit_s - min(margin_s, limit_s / 2)
        """The time at which the call must return, even if its job is not finished."""
        most_s = work.config.settings.call_timeout
        self._end = math.inf if most_s is None else work.call.started + most_s
        """The time at which all work of the call must end."""
        self._held = contextlib.ExitStack()
        """Leaves the job's place and removes the job, unless the job is to continue without the call."""
        self._run: asyncio.Task[object] | None = None
        self._continue: Callable[[], object] | None = None
        """A function that lets the job continue without the call, if items are left to the job."""

    async def outcomes(self) -> list[Outcome]:
        """Return the outcomes of all items, before the time limit. An item that is left to the job fails as `deferred`.

        Cancelling ends the work. Raises `PromptmillError` if the backend cannot be loaded or too many jobs are in
        progress (`rate_limited`).
        """
        work = self._work
        if not any(isinstance(item, Conversation) for item in work.items):
            return await self._service.generate_part(work)
        place = self._server_jobs.places.take(work.caller.session)
        self._held.callback(place.leave)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._left_s):
                await place.entry.wait()
        try:
            job = await self._written()
        except PromptmillError as error:
            if self._is_task_required:
                raise
            work.call.warn(f"The call could not become a job, which `max_call_s` and tasks need: {error}")
            return await self._service.generate_part(work)
        sink = ListSink(len(work.items))
        for index, item in enumerate(work.items):
            if isinstance(item, PromptmillError):
                record_outcome(index, Failure(item), sink, work.call)
        unanswered = await self._run_of(job, place) if place.entry.is_set() else await self._put_off(job, place)
        if self._run is not None:
            for record in await asyncio.to_thread(job.folder.store.sound_records):
                sink.put(record.key, record.outcome())  # not counted here: the run of the job has already counted it
        if unanswered.code is not Code.DEFERRED:
            self._service.calls.unanswered(work.config, unanswered.code, len(sink.missing))
        return sink.result(unanswered)

    async def _written(self) -> Job:
        writing = asyncio.ensure_future(asyncio.to_thread(write, self._work, self._server_jobs.folders))
        try:
            return await asyncio.shield(writing)
        finally:
            await asyncio.wait({writing})
            if not writing.exception():
                self._held.callback(discard, writing.result())

    async def _run_of(self, job: Job, place: JobPlace) -> PromptmillError:
        """Run the job until its end or the time limit. Return the error for items without an outcome."""
        run = self._run = asyncio.ensure_future(door.run(job, self._service, call=self._work.call))
        await asyncio.wait({run}, timeout=self._left_s)
        if run.done() and not self._is_task_required:
            error = None if run.cancelled() or run.exception() else run.result()
            return error or PromptmillError(Code.SHUTDOWN, "The server is shutting down.")
        return await self._deferred(job, lambda: _make_durable(job), lambda: self._server_jobs.adopt(job, run, place))

    async def _put_off(self, job: Job, place: JobPlace) -> PromptmillError:
        """Close the job, which got no place in time. Return the error for the job's items."""

        def close() -> None:
            job.folder.put(status={"state": progress.INTERRUPTED})  # else, the job would look killed
            _make_durable(job)
            job.close()

        later = partial(self._server_jobs.run_later, job.spec.job_id, self._work.config, place)
        return await self._deferred(job, close, later)

    async def _deferred(self, job: Job, make_ready: Callable[[], None], go_on: Callable[[], object]) -> PromptmillError:
        """Prepare the job to continue without the call. Return the error for the items without an outcome."""
        if self._end < self._limit:
            return too_long(self._work.config.settings.call_timeout)
        await asyncio.to_thread(make_ready)
        self._work.job_id, self._continue = job.spec.job_id, go_on
        return PromptmillError(Code.DEFERRED, f"Continues as job {job.spec.job_id}.", "")

    @property
    def _left_s(self) -> float:
        return max(0.0, min(self._limit, self._end) - time.monotonic())

    def go_on(self) -> None:
        """Leave the remaining items to the job. `work.call` becomes a copy, which does not change any more."""
        assert self._continue is not None
        self._held.pop_all()
        self._run = None
        self._continue()
        call = self._work.call
        self._work.call = replace(call, counts=call.counts + Counts(), warnings=dict(call.warnings))

    async def abandon(self) -> None:
        """End the work and remove its job, unless `go_on` has left items to the job."""
        if self._run is None or self._run.done():
            self._held.close()
        else:
            self._run.cancel()
            self._run.add_done_callback(lambda _: self._held.close())
            await asyncio.wait({self._run})


def write(
    work: CallWork,
    folders: JobFolders,
    outcomes: Mapping[int, Outcome] = MappingProxyType({}),
    *,
    all_answered: bool = False,
) -> Job:
    """Write a call as a job that only this user can read, and open the job. Blocks.

    `outcomes`: the outcomes so far, by item. Items that are errors are added as failures. `all_answered`: whether the
    job contains only the items with an outcome. The job survives the end of this process, but it survives a power loss
    only after `_make_durable`. If writing fails, removes the job's files and raises `PromptmillError` (`storage`).
    """
    about = {"prompts": len(work.items), "model": work.config.name, "chosen": work.config.chosen}
    job_id, note = (new_job_id(), None) if work.task is None else (work.task.job_id, {**work.task.note, **about})
    folder, budget, rows = folders.loose(job_id), work.call.ledger.budget, Rows(name="call", job_id=job_id)
    options = {"max_cost": None if budget is None else budget.limit}
    failed = {row: Failure(item) for row, item in enumerate(work.items) if isinstance(item, PromptmillError)}
    outcomes = failed | {**outcomes}
    job = None
    try:
        prune.make_room(folders)
        with open_job(rows, None, options, CallModels(work.config), folders, caller=work.caller) as opened:
            job = opened.admit()
        job.folder.put(status={"state": progress.STARTING}, task=note)
        items = outcomes if all_answered else range(len(work.items))
        spec, _ = ingest(job.folder.store, job.spec, Lines(_lines(work, items)), Work())
        job.put(spec)
        made = spec.targets[0].made(1)  # stored as outcomes of the first round, so that no failure is sent again
        job.folder.store.write([record_of(row, outcome, made=made) for row, outcome in outcomes.items()])
    except BaseException as error:
        if job is not None:
            job.close()
        shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, OSError):
            problem = f"The folder of jobs {folders.root} cannot be written: {disk.why(error)}."
            raise PromptmillError(Code.STORAGE, problem, "") from None
        raise
    return job


def _make_durable(job: Job) -> None:
    """Sync the job, so that it survives a power loss. Blocks. Raises `OSError`."""
    job.folder.store.sync()
    disk.sync_folder(job.folder.path)


def discard(job: Job) -> None:
    """Remove a job that is not needed. Blocks."""
    job.close()
    shutil.rmtree(job.folder.path, ignore_errors=True)


async def keep(server_jobs: ServerJobs, work: CallWork, outcomes: Sequence[Outcome]) -> str:
    """Store a call with its final `outcomes` as a finished job, whose rows can be read. Return the job's id.

    Raises `PromptmillError` (`storage`).
    """
    outcomes_of = {
        index: outcome
        for index, outcome in enumerate(outcomes)
        if not (isinstance(outcome, Failure) and outcome.error.code is Code.DEFERRED)
    }
    writing = asyncio.to_thread(write, work, server_jobs.folders, outcomes_of, all_answered=True)
    job = await asyncio.shield(asyncio.ensure_future(writing))
    await asyncio.to_thread(_make_durable, job)
    await asyncio.wait({server_jobs.run_here(job)})  # every row is answered already, so the run only writes the output
    return job.spec.job_id


def _lines(work: CallWork, rows: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    settings, shown = work.config.settings, registry.shown_by(work.config)
    shared = {"sampling": settings.sampling_params.given(), "extra": dict(settings.extra_params)}
    for row in rows:
        yield row, _line(work.items[row], work.system_prompt, shown, shared, work.config.file_rule)


def _line(
    item: Conversation | PromptmillError,
    system_prompt: str,
    shown: Shown,
    shared: Mapping[str, object],
    rule: FileRule,
) -> bytes:
    try:
        if isinstance(item, PromptmillError):
            raise item
        messages = _portable(item.composed(system_prompt, shown), rule)
    except PromptmillError as error:
        return orjson.dumps({"problem": str(error)})
    value = {"messages": messages, **shared}
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # for example because of a lone surrogate; the request will report it
        return json.dumps(value, default=str).encode()


def _portable(conversation: Conversation, rule: FileRule) -> list[dict[str, object]]:
    """Return messages with resolved paths of images, for a process with another folder but the same file rule."""
    messages = conversation.as_messages()
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url" and (path := resolved_image(part["image_url"]["url"], rule)) is not None:
                part["image_url"]["url"] = str(path)
    return messages
