"""The batches of `/v1/batches`: each is a job.

    create ─▶ row in `objects.db` ─▶ validating ─▶ job batch-… ─▶ finalizing ─▶ output file, error file
                                    │ input.jsonl, refused.jsonl      ▲
                                    └─▶ failed                        └ its rows, by the chain of every job

The id of a batch names its job, and it is stored before the job begins, so after a kill at any point the next server
finds the batch and repeats the step that was cut off; each step may be done twice:

* The validation writes the good lines as rows into a file, which the job reads, and an error line for each refused
  line into another.
* The job resumes as every job does: only the requests in flight are sent again.
* The results replace files with fixed ids, and become visible with the last state of the batch, in one transaction.

A batch waits while `MOST_RUNNERS` jobs run, and after its job has stopped (a dead endpoint, a spent budget) it is
resumed after a pause, until its time is over.

**Repeated POSTs.** OpenAI's clients repeat a POST whose reply was lost, without a key, but with a count in the header
`x-stainless-retry-count`. Such a repeat finds the batch of the same token and parameters that is at most 20 minutes
old; a request without the header, one of at most a minute; a first attempt (`0`) makes a new batch. A client may also
send its own `idempotency_key` in the body: then the same parameters find the batch at any time, others are a 409.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptmill.core.bounds import LARGEST_BATCH, MOST_BATCHES
from promptmill.core.errors import PromptmillError, redact
from promptmill.core.values import JsonDict
from promptmill.jobs import disk
from promptmill.jobs.caller import Caller
from promptmill.jobs.inputs.files import Part
from promptmill.jobs.inputs.given import Given
from promptmill.jobs.manage.running_jobs import RunningJobs
from promptmill.jobs.store import progress, status
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.lock import Lock, is_held
from promptmill.jobs.store.order import JobOrder
from promptmill.openai_server.api_errors import ApiError
from promptmill.openai_server.batch_rows import INPUT, REFUSED, FileCheck, Results, line_count
from promptmill.openai_server.endpoints import Endpoints
from promptmill.openai_server.object_store import Listing, Stored
from promptmill.openai_server.stored_files import BATCH_S, OUTPUT, FileObject, StoredFiles, lifetime_s, listed

_log = logging.getLogger(__name__)
ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings", "/v1/responses")
_WINDOW_S = 86_400
_REPEAT_S, _RETRY_S = 60, 1200  # two retries, each after 600 s at most
_POLL_S = 0.25  # one look takes 1 ms
_PAUSES_S = (1.0, 5.0, 30.0, 120.0)
_PRUNE_S = 60.0
_END_S = 60.0  # a job ends within about a second


class Counts(BaseModel):
    """The numbers of lines."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(BaseModel):
    """A batch as clients see it (platform.openai.com/docs/api-reference/batch/object)."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: JsonDict | None = None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ] = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Field(default_factory=Counts)
    usage: JsonDict | None = None
    metadata: dict[str, str] | None = None
    output_expires_after: JsonDict | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the state is a last one."""
        return self.status in {"failed", "completed", "expired", "cancelled"}

    @property
    def job_id(self) -> str:
        """The id of its job."""
        return _job_id(self.id)


def _job_id(identity: str) -> str:
    return identity.replace("_", "-")


class _Asked(BaseModel):
    """The body of a POST."""

    model_config = ConfigDict(strict=True)

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: dict[str, Any] | None = None
    idempotency_key: str | None = Field(None, min_length=1, max_length=512)

    def check(self) -> None:
        """Raise `ApiError` 400 for a value that no batch has."""
        if self.endpoint not in ENDPOINTS:
            raise ApiError(400, f"endpoint must be one of {', '.join(ENDPOINTS)}.", "endpoint", "invalid_endpoint")
        if self.completion_window != "24h":
            raise ApiError(400, "completion_window must be `24h`.", "completion_window")
        pairs = (self.metadata or {}).items()
        if len(pairs) > 16 or any(len(name) > 64 or len(text) > 512 for name, text in pairs):
            raise ApiError(400, "metadata has at most 16 pairs of 64 and 512 characters.", "metadata")
        lifetime_s(self.output_expires_after or {}, "output_expires_after", None)

    def digest(self) -> str:
        """Return the digest of all parameters but the key."""
        given = self.model_dump(exclude={"idempotency_key"})
        return hashlib.sha256(orjson.dumps(given, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(slots=True)
class _Run:
    """A batch that has not ended, in this process."""

    batch: Batch
    stored: Stored
    lock: Lock
    """Held while this process runs it."""
    refused: int = 0
    """The lines that the validation has refused."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    storing: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: asyncio.Task[None] | None = None


class BatchRuns:
    """The batches of all tokens."""

    def __init__(self, files: StoredFiles, endpoints: Endpoints, jobs: Callable[[], RunningJobs]) -> None:
        """`endpoints` reads lines as requests; `jobs` has the jobs of the server."""
        self._files, self._endpoints, self._jobs = files, endpoints, jobs
        self._store = files.store
        self._folder = files.store.folder / "batches"
        disk.make_private_folder(self._folder)
        self._runs: dict[str, _Run] = {}
        self._creating = asyncio.Lock()

    async def tend(self) -> None:
        """From time to time, resume the batches of servers that have ended, and delete expired files. Never returns."""
        while True:
            try:
                for identity in await asyncio.to_thread(self._left):
                    if identity not in self._runs:
                        await self._adopt(identity)
                await asyncio.to_thread(self._files.prune)
            except (OSError, sqlite3.Error) as error:  # such as a full disk
                _log.warning("files and batches wait: %s", redact(str(error)))
            await asyncio.sleep(_PRUNE_S)

    def _left(self) -> list[str]:
        """Return the batches that have not ended, and those that have left something. Blocks."""
        places = (each.name for each in self._folder.glob("batch_*"))
        return list(dict.fromkeys([*(each.id for each in self._store.open()), *places]))

    async def _adopt(self, identity: str) -> None:
        """Run a batch, unless a server that runs has it; or remove what one has left that has ended."""
        lock = await asyncio.to_thread(self._lock, identity)
        if lock is None:
            return
        for stored in await asyncio.to_thread(self._store.open, identity):
            self._start(Batch.model_validate_json(stored.body), stored, lock)
            return
        await asyncio.to_thread(self._clean, identity, lock)

    def _lock(self, identity: str) -> Lock | None:
        """Return the lock of a batch; None if a server has it. Blocks."""
        place = self._folder / identity
        disk.make_private_folder(place)
        return None if is_held(place / "lock") else Lock.take(place / "lock")

    async def create(self, body: Any, owner: str, attempt: int | None) -> Batch:
        """Return a new batch; for a repeated request, the batch that the first one has made.

        `attempt`: the number of earlier attempts that the client reports; None: unknown. Raises `ApiError`.
        """
        try:
            asked = _Asked.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            param = ".".join(map(str, first["loc"])) or None
            raise ApiError(400, f"{param or 'The body'}: {first['msg']}.", param) from None
        asked.check()
        async with self._creating:  # a client may repeat a POST that is still being answered
            return await self._found_or_new(asked, owner, attempt)

    async def _found_or_new(self, asked: _Asked, owner: str, attempt: int | None) -> Batch:
        given, key = asked.digest(), asked.idempotency_key
        request = given if key is None else f"key:{hashlib.sha256(key.encode()).hexdigest()}"
        if (earlier := await asyncio.to_thread(self._store.repeated, owner, request)) is not None:
            batch = self._seen(earlier)
            if key is not None:
                if _asked_of(batch).digest() != given:
                    raise conflict("This idempotency_key belongs to a batch with other parameters.", "idempotency_key")
                return batch
            age = self._files.now() - batch.created_at
            if attempt != 0 and age <= (_REPEAT_S if attempt is None else _RETRY_S):
                return batch
        batch = await asyncio.to_thread(self._new, asked, owner)
        stored = _stored(batch, owner, request)
        lock = await asyncio.to_thread(self._lock, batch.id)
        assert lock is not None  # the id is new
        try:
            await asyncio.to_thread(self._store.put, stored)
        except BaseException:
            lock.release()
            raise
        self._start(batch, stored, lock)
        return batch

    def _new(self, asked: _Asked, owner: str) -> Batch:
        file = self._files.find(asked.input_file_id, owner, "input_file_id")
        if file.purpose != "batch":
            raise ApiError(400, "The file must have the purpose `batch`.", "input_file_id")
        if file.bytes > LARGEST_BATCH:
            raise ApiError(400, f"A batch file has at most {LARGEST_BATCH >> 20} MiB.", "input_file_id")
        if self._store.amount("batch", owner, of_open=True)[0] >= MOST_BATCHES:
            message = f"{MOST_BATCHES} batches have not ended; wait for one of them, or cancel it."
            raise ApiError(429, message, None, "too_many_batches", {"retry-after": "60"})
        now = self._files.now()
        return Batch(
            **asked.model_dump(exclude={"idempotency_key"}),
            id=f"batch_{secrets.token_hex(12)}",
            created_at=now,
            expires_at=now + _WINDOW_S,
        )

    async def find(self, identity: str, owner: str) -> Batch:
        """Return an owner's batch. Raises `ApiError` 404."""
        found = await asyncio.to_thread(self._store.get, "batch", identity, owner)
        if found is None:
            raise ApiError(404, f"No such Batch object: {identity[:60]}", "id", "not_found")
        if (run := self._runs.get(identity)) is not None:
            await asyncio.to_thread(self._count, run)
        return self._seen(found)

    async def page(self, owner: str, listing: Listing) -> JsonDict:
        """Return the listed batches."""
        found = await asyncio.to_thread(self._store.page, "batch", owner, listing, self._files.now())
        for run in [self._runs[each.id] for each in found if each.id in self._runs]:
            await asyncio.to_thread(self._count, run)
        seen = [each._replace(body=self._seen(each).model_dump_json().encode()) for each in found]
        return listed(seen, listing.limit)

    async def cancel(self, identity: str, owner: str) -> Batch:
        """Begin to end a batch; its answers so far are kept. Raises `ApiError` 404, and 409 if it has ended."""
        batch = await self.find(identity, owner)
        run = self._runs.get(identity)
        if run is None or run.batch.has_ended or run.batch.status == "finalizing":
            raise conflict(f"Cannot cancel a batch with status '{batch.status}'.", None)
        if run.batch.status != "cancelling":
            await self._enter(run, "cancelling")
            run.wake.set()
        return run.batch

    def _seen(self, stored: Stored) -> Batch:
        """Return a batch as it is now."""
        run = self._runs.get(stored.id)
        return Batch.model_validate_json(stored.body) if run is None else run.batch

    # ---- the run

    def _start(self, batch: Batch, stored: Stored, lock: Lock) -> None:
        run = self._runs[batch.id] = _Run(batch, stored, lock)

        def ended(task: asyncio.Task[None]) -> None:
            del self._runs[batch.id]
            lock.release()
            if not task.cancelled():
                task.result()  # the loop reports a bug

        run.task = asyncio.ensure_future(self._run_to_end(run))
        run.task.add_done_callback(ended)

    async def _run_to_end(self, run: _Run) -> None:
        while True:
            try:
                return await self._run(run)
            except (OSError, sqlite3.Error, PromptmillError, DamagedError) as error:  # such as a full disk
                _log.warning("%s waits: %s", run.batch.id, redact(str(error)))
                await asyncio.sleep(_PAUSES_S[-1])

    async def _run(self, run: _Run) -> None:
        batch = run.batch
        if batch.status == "validating":
            await self._validate(run)
        if not batch.has_ended:
            run.refused = await asyncio.to_thread(line_count, self._place(batch) / REFUSED)
            if batch.status in {"in_progress", "cancelling"}:
                await self._answer(run)
            await self._finalize(run)
        await asyncio.to_thread(self._clean, batch.id, run.lock)

    async def _enter(self, run: _Run, state: str, *also: Stored, **changes: Any) -> None:
        """Store the next state of a batch, its time, other changes, and other objects."""
        batch = run.batch
        for name, value in {"status": state, f"{state}_at": self._files.now(), **changes}.items():
            setattr(batch, name, value)
        async with run.storing:  # a cancellation may overtake the state before it
            await asyncio.to_thread(self._store.put, *also, _stored(batch, run.stored.owner, run.stored.request))

    async def _validate(self, run: _Run) -> None:
        batch, check = run.batch, FileCheck(run.batch.endpoint, self._endpoints, run.stored.owner)
        try:
            await check.run(
                self._files.path(batch.input_file_id), self._place(batch), lambda: batch.status == "cancelling"
            )
        except FileNotFoundError:
            check.note("invalid_file", "The input file was deleted.", None)
        batch.request_counts = Counts(total=check.count, failed=check.refused)
        if batch.status == "cancelling":
            return
        if check.errors:
            await self._enter(run, "failed", errors={"object": "list", "data": check.errors})
        else:
            batch.model = check.models[0] if len(check.models) == 1 else None
            await self._enter(run, "in_progress")

    async def _answer(self, run: _Run) -> None:
        """Return when the job has finished, or when the batch is cancelled or its time is over."""
        batch, folder, tries = run.batch, self._job(run.batch), 0
        if run.refused == batch.request_counts.total:
            return
        while batch.status == "in_progress" and self._files.now() < batch.expires_at:
            now = await asyncio.to_thread(_state, folder)
            if now == progress.FINISHED:
                return
            if now in progress.ALIVE:
                await _pause(run, _POLL_S)
                continue
            if tries:
                await _pause(run, _PAUSES_S[min(tries, len(_PAUSES_S)) - 1])
            if batch.status == "in_progress":
                tries += 1
                # no place, another process still has the lock of the job, or the model is no longer configured
                with contextlib.suppress(PromptmillError, ApiError):
                    await self._resume(run)
        if folder.request_cancel():
            await asyncio.to_thread(folder.wait_for_end, _END_S)

    async def _resume(self, run: _Run) -> None:
        batch, folder, lines = run.batch, self._job(run.batch), self._place(run.batch) / INPUT
        plan = await self._endpoints.settled_plan(batch.model or "")
        order = JobOrder(inputs=(Path("batch"),), output=folder.answers)
        source = Given([Part(lines)] if lines.exists() else [], batch.id, "batch")
        await self._jobs().start_given(order, source, plan, None, Caller("", run.stored.owner))
        lines.unlink(missing_ok=True)  # the job has the rows

    def _count(self, run: _Run) -> None:
        """Update the counts of a batch that runs. Blocks."""
        batch = run.batch
        with contextlib.suppress(PromptmillError):  # the job has not begun
            if batch.status in {"in_progress", "cancelling"}:
                now = status.read(self._job(batch))
                done, failed = now.get("done", 0), now.get("failed", 0)
                batch.request_counts.completed = done - failed
                batch.request_counts.failed = failed + run.refused

    async def _finalize(self, run: _Run) -> None:
        batch, owner = run.batch, run.stored.owner
        if batch.status == "cancelling":
            last = "cancelled"
        elif run.refused == batch.request_counts.total or await self._is_finished(batch):
            last = "completed"
        else:
            last = "expired"
        if batch.status != "cancelling":
            await self._enter(run, "finalizing")
        results = Results(batch.endpoint, self._place(batch), self._job(batch), last)
        seconds = lifetime_s(batch.output_expires_after or {}, "", BATCH_S)
        assert seconds is not None
        with self._files.partial() as (good, out), self._files.partial() as (bad, errors):
            await asyncio.to_thread(results.write, out, errors)
            files = []
            for path, what, count in ((good, "output", results.completed), (bad, "error", results.failed)):
                if not count:
                    continue
                now = self._files.now()
                file = FileObject(
                    id=f"file-{batch.id.removeprefix('batch_')}-{what}",
                    bytes=path.stat().st_size,
                    created_at=now,
                    expires_at=now + seconds,
                    filename=f"{batch.id}_{what}.jsonl",
                    purpose=OUTPUT,
                )
                await asyncio.to_thread(self._files.rename, path, file)
                setattr(batch, f"{what}_file_id", file.id)
                files.append(file.stored(owner))
            batch.request_counts = Counts(
                total=batch.request_counts.total, completed=results.completed, failed=results.failed
            )
            batch.usage = results.usage
            await self._enter(run, last, *files)

    async def _is_finished(self, batch: Batch) -> bool:
        return await asyncio.to_thread(_state, self._job(batch)) == progress.FINISHED

    def _clean(self, identity: str, lock: Lock) -> None:
        """Remove the job and the temporary files of a batch that has ended. Blocks."""
        shutil.rmtree(self._jobs().folders.loose(_job_id(identity)).path, ignore_errors=True)
        lock.release()  # Windows removes no open file
        shutil.rmtree(self._folder / identity, ignore_errors=True)

    def _job(self, batch: Batch) -> Folder:
        return self._jobs().folders.loose(batch.job_id)

    def _place(self, batch: Batch) -> Path:
        return self._folder / batch.id


def conflict(message: str, param: str | None) -> ApiError:
    """Return a 409 that OpenAI's clients do not repeat."""
    return ApiError(409, message, param, "conflict", {"x-should-retry": "false"})


def _stored(batch: Batch, owner: str, request: str) -> Stored:
    body = batch.model_dump_json().encode()
    return Stored(batch.id, "batch", owner, "", 0, None, not batch.has_ended, request, body)


def _asked_of(batch: Batch) -> _Asked:
    return _Asked.model_validate(batch.model_dump(include=_Asked.model_fields.keys() - {"idempotency_key"}))


async def _pause(run: _Run, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(run.wake.wait(), seconds)


def _state(folder: Folder) -> str:
    """Return the state of a job; `""` if it has not begun. Blocks."""
    try:
        return str(status.read(folder)["state"])
    except PromptmillError:
        return ""
