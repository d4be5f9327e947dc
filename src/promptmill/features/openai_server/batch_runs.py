"""The batches of `/v1/batches`. Each batch is run as a job.

    create ─▶ row in `objects.db` ─▶ validating ─▶ job batch-… ─▶ finalizing ─▶ output file, error file
                                    │ input.jsonl, refused.jsonl      ▲
                                    └─▶ failed                        └ its rows, answered as those of every job

The id of a batch names its job and is stored before the job starts. So after a kill, the next server finds the batch
and repeats the interrupted step; each step may be repeated:

* The validation writes two files: one with the valid lines as rows for the job, and one with an error line for each
  refused line.
* The job resumes as every job does: only the requests in flight are sent again.
* The results go to files with fixed ids; one transaction makes them visible and stores the batch's final state.

A batch waits while `MOST_RUNNERS` jobs run. If its job has stopped (a dead endpoint, an exhausted budget), the job is
resumed after pauses until the batch's time is over.

Only `objects.db` has the state. The server that holds a batch's lock runs the batch; any server can cancel it.

**Repeated POSTs.** If a reply is lost, OpenAI's clients repeat the POST, without a key but with a count in the header
`x-stainless-retry-count`. Such a repeat gets the existing batch of the same token and parameters if that batch is at
most 20 minutes old. A request without the header gets such a batch if it is at most a minute old. A first attempt (`0`)
and a request after a cancel create a new batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptmill.core.bounds import LARGEST_BATCH, MOST_BATCHES
from promptmill.core.errors import PromptmillError, redact
from promptmill.core.values import JsonDict
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.batch_objects import BEFORE, BatchObject, BatchRequest, LineCounts, State
from promptmill.features.openai_server.batch_rows import INPUT, BatchResults, FileCheck
from promptmill.features.openai_server.endpoints import Endpoints
from promptmill.features.openai_server.object_store import Listing, StoredObject
from promptmill.features.openai_server.stored_files import MONTH, OUTPUT, FileObject, StoredFiles, checked, listed
from promptmill.files import disk
from promptmill.files.files import InputFile
from promptmill.jobs.caller import Caller, CallModels
from promptmill.jobs.door import Rows
from promptmill.jobs.inputs.input_rows import InputRows
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.store import progress, status
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.lock import Lock, is_held

_log = logging.getLogger(__name__)
_WINDOW_S = 86_400
_REPEAT_S, _RETRY_S = 60, 1200  # the oldest batches that repeats get; 1200: two retries, each at most 600 s later
_POLL_S = 0.25  # seconds between polls; a poll takes 1 ms
_WAITING_POLL_S = 1.0
_PAUSES_S = (1.0, 5.0, 30.0)
_PRUNE_S = 60.0
_END_S = 60.0  # an upper bound: a cancelled job ends within about a second


class BatchRuns:
    """Creates, runs and cancels the batches of all tokens."""

    def __init__(self, files: StoredFiles, endpoints: Endpoints, jobs: Callable[[], ServerJobs]) -> None:
        """`endpoints` converts lines to requests; `jobs` returns the server's jobs."""
        self._files, self._endpoints, self._jobs = files, endpoints, jobs
        self._store = files.store
        self._folder = files.store.folder / "batches"
        disk.make_private_folder(self._folder)
        self._tasks: set[asyncio.Task[None]] = set()
        """The tasks that run batches whose locks this server holds."""
        self._creating = asyncio.Lock()

    async def tend(self) -> None:
        """Periodically resume batches of servers that have ended, and delete expired files. Never returns."""
        while True:
            try:
                for identity in await asyncio.to_thread(self._left):
                    await self._adopt(identity)
                await asyncio.to_thread(self._files.prune)
            except (OSError, sqlite3.Error) as error:  # for example, a full disk
                _log.warning("files and batches wait: %s", redact(str(error)))
            await asyncio.sleep(_PRUNE_S)

    def _left(self) -> list[str]:
        """Return the batches that have not ended, or that have files left to remove. Blocks."""
        places = (each.name for each in self._folder.glob("batch_*"))
        return list(dict.fromkeys([*(each.id for each in self._store.open()), *places]))

    async def _adopt(self, identity: str) -> None:
        """Run a batch to its end, and remove its job and temporary files, unless another server holds its lock."""
        if (lock := await asyncio.to_thread(self._lock, identity)) is None:
            return

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            lock.release()
            if not task.cancelled():
                task.result()  # raises the exception of a bug, which the event loop reports

        task = asyncio.ensure_future(self._run_to_end(identity, lock))
        self._tasks.add(task)
        task.add_done_callback(ended)

    def _lock(self, identity: str) -> Lock | None:
        """Take and return the lock of a batch; None if a server holds it. Blocks."""
        place = self._place(identity)
        disk.make_private_folder(place)
        return None if is_held(place / "lock") else Lock.take(place / "lock")

    async def create(self, body: JsonDict, owner: str, attempt: int | None) -> BatchObject:
        """Return a new batch; for a repeated request, the batch of the first request.

        `attempt`: the number of earlier attempts that the client reports; None if it reports none. Raises `ApiError`.
        """
        asked = checked(BatchRequest, body)
        async with self._creating:  # one after another, because a client may repeat a POST before it is answered
            earlier = await asyncio.to_thread(self._store.repeated, owner, asked.digest())
            if earlier is not None and attempt != 0:
                batch = await asyncio.to_thread(self._seen, earlier)
                age = self._files.now() - batch.created_at
                if batch.cancelling_at is None and age <= (_REPEAT_S if attempt is None else _RETRY_S):
                    return batch
            batch = await asyncio.to_thread(self._new, asked, owner)
            await asyncio.to_thread(self._store.put, batch.stored(owner, asked.digest()))
            with contextlib.suppress(OSError):  # `tend` tries again
                await self._adopt(batch.id)
            return batch

    def _new(self, asked: BatchRequest, owner: str) -> BatchObject:
        file = self._files.find(asked.input_file_id, owner, "input_file_id")
        if file.purpose != "batch":
            raise ApiError(400, "The file must have the purpose `batch`.", "input_file_id")
        if file.bytes > LARGEST_BATCH:
            raise ApiError(400, f"A batch file has at most {LARGEST_BATCH >> 20} MiB.", "input_file_id")
        self._files.check_room(owner)  # raises if there is no room for the results of the batch
        if self._store.amount("batch", owner, of_open=True)[0] >= MOST_BATCHES:
            message = f"{MOST_BATCHES} batches have not ended; wait for one of them, or cancel it."
            raise ApiError(429, message, None, "too_many_batches", {"retry-after": "60"})
        identity, now = f"batch_{secrets.token_hex(12)}", self._files.now()
        return BatchObject(**asked.model_dump(), id=identity, created_at=now, expires_at=now + _WINDOW_S)

    def find(self, identity: str, owner: str) -> BatchObject:
        """Return an owner's batch. Blocks. Raises `ApiError` 404."""
        found = self._store.get("batch", identity, owner)
        if found is None:
            raise ApiError(404, f"No such Batch object: {identity[:60]}", "id", "not_found")
        return self._seen(found)

    def page(self, owner: str, listing: Listing) -> JsonDict:
        """Return the listed batches. Blocks."""
        found = self._store.page("batch", owner, listing, self._files.now())
        return listed([self._seen(each).model_dump() for each in found], listing.limit)

    def cancel(self, identity: str, owner: str) -> BatchObject:
        """Start to cancel a batch, but keep its answers. Blocks. Raises `ApiError` 404, or 409 if it has ended."""
        self.find(identity, owner)
        batch = self._enter(identity, "cancelling")
        if batch.status != "cancelling":
            # Without this header, the client would repeat the request.
            no_retry = {"x-should-retry": "false"}
            message = f"Cannot cancel a batch with status '{batch.status}'."
            raise ApiError(409, message, None, "conflict", no_retry)
        return batch

    def _seen(self, stored: StoredObject) -> BatchObject:
        """Return a stored batch with the present counts of its job. Blocks."""
        batch = BatchObject.model_validate_json(stored.body)
        if not batch.has_ended:
            with contextlib.suppress(PromptmillError):  # its job has not begun
                job = status.read(self._job(batch.id))
                batch.request_counts.completed = job.get("done", 0) - job.get("failed", 0)
                batch.request_counts.failed += job.get("failed", 0)
        return batch

    # ---- the run

    async def _run_to_end(self, identity: str, lock: Lock) -> None:
        while True:
            try:
                for stored in await asyncio.to_thread(self._store.open, identity):  # one batch, or none if it has ended
                    await self._run(BatchObject.model_validate_json(stored.body), stored.owner)
                return await asyncio.to_thread(self._clean, identity, lock)
            except (OSError, sqlite3.Error, PromptmillError, DamagedError) as error:  # for example, a full disk
                _log.warning("%s waits: %s", identity, redact(str(error)))
                await asyncio.sleep(_PAUSES_S[-1])

    async def _run(self, batch: BatchObject, owner: str) -> None:
        if batch.status == "validating":
            batch = await self._validate(batch, owner)
        if batch.status in {"in_progress", "cancelling"}:
            batch = await self._answer(batch, owner)
        if not batch.has_ended:
            await self._finalize(batch, owner)

    def _batch(self, identity: str) -> BatchObject:
        """Return the stored batch, which has not ended. Blocks."""
        (stored,) = self._store.open(identity)
        return BatchObject.model_validate_json(stored.body)

    def _enter(self, identity: str, state: State, *also: StoredObject, **changes: Any) -> BatchObject:
        """Store the next state of a batch with its time, other changes and new objects; return the batch. Blocks.

        If the batch already has a state after `state`, nothing is changed.
        """

        def changed(stored: StoredObject) -> StoredObject:
            batch = BatchObject.model_validate_json(stored.body)
            if batch.status not in BEFORE[state]:
                return stored
            entered = batch.model_copy(update={"status": state, f"{state}_at": self._files.now(), **changes})
            return entered.stored(stored.owner, stored.request)

        return BatchObject.model_validate_json(self._store.change(identity, changed, *also).body)

    async def _validate(self, batch: BatchObject, owner: str) -> BatchObject:
        identity, check = batch.id, FileCheck(batch.endpoint, self._endpoints, owner)
        try:
            await check.run(
                self._files.path(batch.input_file_id),
                self._place(identity),
                lambda: self._batch(identity).status == "cancelling",
            )
        except FileNotFoundError:
            check.note("invalid_file", "The input file was deleted.", None)
        if check.errors:
            errors = {"object": "list", "data": check.errors}
            return await asyncio.to_thread(self._enter, identity, "failed", errors=errors)
        counts = LineCounts(total=check.count, failed=check.refused)
        model = check.models[0] if len(check.models) == 1 else None
        return await asyncio.to_thread(self._enter, identity, "in_progress", model=model, request_counts=counts)

    async def _answer(self, batch: BatchObject, owner: str) -> BatchObject:
        """Return the batch when its job is finished, or must end because the batch is cancelled or its time is over."""
        folder, tries, due = self._job(batch.id), 0, 0.0
        if batch.request_counts.failed == batch.request_counts.total:  # all lines were refused
            return batch
        while batch.status == "in_progress" and self._files.now() < batch.expires_at:
            state = await asyncio.to_thread(_state, folder)
            if state == progress.FINISHED:
                return batch
            if state not in progress.ALIVE and time.monotonic() >= due:
                due = time.monotonic() + _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
                tries += 1
                try:
                    await self._resume(batch, owner)
                except (PromptmillError, ApiError) as error:  # for example, no free place, or an unconfigured model
                    _log.warning("%s waits: %s", batch.id, redact(str(error)))
            await asyncio.sleep(_POLL_S if state in progress.ALIVE else _WAITING_POLL_S)
            batch = await asyncio.to_thread(self._batch, batch.id)
        return batch

    async def _resume(self, batch: BatchObject, owner: str) -> None:
        folder, lines = self._job(batch.id), self._place(batch.id) / INPUT
        config = await self._endpoints.resolved_config(batch.model or "")
        jobs, caller = self._jobs(), Caller("", owner)
        source = InputRows([InputFile(lines)] if lines.exists() else [], batch.id, "batch")
        rows = Rows(given=source, name="batch", job_id=folder.job_id)
        async with jobs.opened(rows, None, {}, CallModels(config), caller) as job:
            await jobs.start(job, caller)
        lines.unlink(missing_ok=True)  # the job has read the rows

    async def _finalize(self, batch: BatchObject, owner: str) -> None:
        """End the job of a batch. Store the results and the final state."""
        batch = await asyncio.to_thread(self._enter, batch.id, "finalizing")
        folder, counts = self._job(batch.id), batch.request_counts
        if await asyncio.to_thread(_state, folder) != progress.FINISHED and folder.request_cancel(at_once=True):
            await asyncio.to_thread(folder.wait_for_end, _END_S)
        last: State = "completed"
        if batch.status == "cancelling":
            last = "cancelled"
        elif counts.failed < counts.total and await asyncio.to_thread(_state, folder) != progress.FINISHED:
            last = "expired"
        await asyncio.to_thread(self._store_results, batch, owner, last)

    def _store_results(self, batch: BatchObject, owner: str, last: State) -> None:
        results = BatchResults(batch.endpoint, self._place(batch.id), self._job(batch.id), last, self._endpoints.files)
        expiry, found = batch.output_expires_after or MONTH, dict[str, FileObject]()
        with self._files.partial() as (good, out), self._files.partial() as (bad, errors):
            if batch.request_counts.total:  # it is 0 if the batch was cancelled before its file was read completely
                results.write(out, errors)
            for path, what, count in ((good, "output", results.completed), (bad, "error", results.failed)):
                if count:
                    now = self._files.now()
                    file = found[f"{what}_file_id"] = FileObject(
                        id=f"file-{batch.id.removeprefix('batch_')}-{what}",
                        bytes=path.stat().st_size,
                        created_at=now,
                        expires_at=now + expiry.seconds,
                        filename=f"{batch.id}_{what}.jsonl",
                        purpose=OUTPUT,
                    )
                    self._files.rename(path, file)
            counts = LineCounts(
                total=results.completed + results.failed, completed=results.completed, failed=results.failed
            )
            files = [file.stored(owner) for file in found.values()]
            ids = {name: file.id for name, file in found.items()}
            self._enter(batch.id, last, *files, request_counts=counts, usage=results.usage, **ids)

    def _clean(self, identity: str, lock: Lock) -> None:
        """Remove the job and the temporary files of an ended batch. Blocks."""
        job = self._job(identity)
        job.wait_for_end(_END_S)
        shutil.rmtree(job.path, ignore_errors=True)
        lock.release()  # released first, because Windows does not remove open files
        shutil.rmtree(self._place(identity), ignore_errors=True)

    def _job(self, identity: str) -> Folder:
        return self._jobs().folders.loose(identity.replace("_", "-"))

    def _place(self, identity: str) -> Path:
        return self._folder / identity


def _state(folder: Folder) -> str:
    """Return the state of a job; `""` if it has not begun. Blocks."""
    try:
        return str(status.read(folder)["state"])
    except PromptmillError:
        return ""
