"""OpenAI's files and batches, also those of Azure, Groq, Together, DeepInfra, Doubleword, and gateways.

Facts: developers.openai.com/api/reference/resources/batches, openai 3.54.0. Azure sends states with capitals, times as
texts, counts of null and lists in `value`; Together wraps a created batch in `job` and lists bare ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any
from urllib.parse import urlsplit

from promptmill.backends.batches import BatchLimits, BatchState, BatchUnclearError, PlannedBatch, Reply
from promptmill.backends.openai.batches.connection import BatchConnection
from promptmill.backends.openai.batches.profile import BatchProfile
from promptmill.backends.openai.batches.reading import (
    batch_problem,
    count,
    is_ended,
    is_full,
    reply_of,
    state_word,
    unix_time,
)
from promptmill.backends.openai.batches.uploaded_files import NEWEST_FIRST, ProviderFiles, is_older
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonObject

LABEL = "promptmill"
"""The name of our key in a batch's metadata."""


class OpenAIBatches:
    """A `BatchApi` of OpenAI's family."""

    def __init__(self, connection: BatchConnection, profile: BatchProfile, limits: BatchLimits, path: str) -> None:
        """`path` is the path of the requests, such as `/v1/chat/completions`."""
        self._connection, self._profile, self.limits, self._path = connection, profile, limits, path
        self._files = ProviderFiles(connection, profile, NEWEST_FIRST)

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line of a request."""
        path = b'"method":"POST","url":"%b",' % self._path.encode() if self._profile.names_path else b""
        return b'{"custom_id":"%b",%b"body":%b}\n' % (custom_id.encode(), path, body)

    async def check(self) -> None:
        """Raise `unsupported` if the endpoint has no Batch API."""
        for path in ("/files", "/batches"):
            await check_path(self._connection, path)

    async def upload(self, batch: PlannedBatch) -> str:
        """Upload the file and return its id."""
        return await self._files.upload(batch)

    async def find_file(self, batch: PlannedBatch) -> str:
        """Return the id of the uploaded file; empty without one."""
        return await self._files.find(batch)

    async def create(self, batch: PlannedBatch) -> BatchState:
        """Create the batch, once."""
        await self._files.wait_until_usable(batch.file_id)
        body: dict[str, Any] = {
            "input_file_id": batch.file_id,
            "endpoint": self._path,
            "completion_window": f"{self._profile.window_h}h",
        }
        if self._profile.label == "metadata":
            body["metadata"] = {LABEL: batch.key}
        return created(self._read(await self._connection.create("/batches", body)), self._connection)

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the batch with our key or our file."""
        async for page in self._connection.pages("/batches", "data", NEWEST_FIRST):
            for job in page:
                state = self._read(job)
                is_ours = state.key == batch.key or (batch.file_id and job.get("input_file_id") == batch.file_id)
                if is_ours and state.id not in known:
                    return state
            if is_older(page, batch):
                return None
        return None

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""
        return self._read(await self._connection.call("GET", f"/batches/{batch_id}"))

    async def cancel(self, batch_id: str) -> BatchState:
        """Cancel the batch."""
        await self._connection.cancel(f"/batches/{batch_id}/cancel")
        return await self.state(batch_id)

    def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the lines of the output file and of the error file."""
        return file_replies(self._files, state, self._connection)

    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete input, output and error files."""
        await self._files.delete(batch, state.results if state else ())

    def _read(self, payload: Any) -> BatchState:
        job: JsonObject = payload if isinstance(payload, dict) else {}
        if isinstance(job.get("job"), dict):
            job = job["job"]
        said = state_word(job.get("status"))
        counts, metadata = job.get("request_counts") or {}, job.get("metadata") or {}
        failed = said == "failed"
        errors = _first_error(job)
        results = (job.get("output_file_id"), job.get("error_file_id"))
        return BatchState(
            id=str(job.get("id") or ""),
            is_ended=is_ended(said),
            said=said,
            done=count(counts.get("completed")),
            failed=count(counts.get("failed")),
            total=count(counts.get("total")),
            created=unix_time(job.get("created_at")),
            expires=unix_time(job.get("expires_at") or job.get("job_deadline")),
            key=str(metadata.get(LABEL) or ""),
            results=tuple(str(name) for name in results if name),
            problem=batch_problem({"error": errors}, self._connection.endpoint) if failed else None,
            is_full=failed and is_full({"error": errors}),
        )


def _first_error(job: JsonObject) -> Any:
    errors = job.get("errors")
    found = errors.get("data") if isinstance(errors, dict) else errors
    return (found[0] if isinstance(found, list) and found else None) or job.get("error") or {}


def created(state: BatchState, connection: BatchConnection) -> BatchState:
    """Return the state of a new batch. Raises `BatchUnclearError` if it has no id."""
    if not state.id:
        raise BatchUnclearError(Code.BAD_RESPONSE, f"{connection.endpoint.name} sent no id for a batch.", "")
    return state


async def check_path(connection: BatchConnection, path: str, *, limit: str = "limit") -> None:
    """Raise `unsupported` if the endpoint has no list at this path."""
    try:
        await connection.call("GET", path, query={limit: 1})
    except PromptmillError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        place = f"{connection.endpoint.name} has no {urlsplit(connection.url(path)).path}"
        raise PromptmillError(
            Code.UNSUPPORTED, f"{place}, so it runs no batches.", "Leave out `batch`, or use another endpoint."
        ) from None


async def file_replies(
    files: ProviderFiles, state: BatchState, connection: BatchConnection
) -> AsyncIterator[Reply | None]:
    """Yield the replies of result files in OpenAI's form. A file that is gone is reported once the others are read."""
    gone: PromptmillError | None = None
    for file_id in state.results:
        try:
            async for line in files.lines(file_id):
                yield reply_of(line)
        except PromptmillError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            gone = error
    if gone is not None:
        text = f"{connection.endpoint.name} does not have all results of batch {state.id}."
        raise PromptmillError(Code.NOT_FOUND, text, "Providers keep them for days or weeks.")
