"""Mistral's batch jobs, with files as OpenAI has them.

Facts: docs.mistral.ai/studio-api/batch-processing, mistralai 3.7.0. Results are kept for 24 hours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any

from promptmill.backends.batches import BatchLimits, BatchState, PlannedBatch, Reply
from promptmill.backends.openai.batches.connection import BatchConnection, Paging
from promptmill.backends.openai.batches.openai import LABEL, check_path, created, file_replies
from promptmill.backends.openai.batches.profile import BatchProfile
from promptmill.backends.openai.batches.reading import (
    batch_problem,
    count,
    is_ended,
    is_full,
    state_word,
    unix_time,
)
from promptmill.backends.openai.batches.uploaded_files import ProviderFiles, is_older
from promptmill.core.values import JsonObject

_NUMBERED = Paging({"page_size": 100}, lambda _, number: {"page": number})
_JOBS = "/batch/jobs"


class MistralBatches:
    """A `BatchApi` of Mistral's."""

    def __init__(self, connection: BatchConnection, profile: BatchProfile, limits: BatchLimits) -> None:
        self._connection, self._profile, self.limits = connection, profile, limits
        self._files = ProviderFiles(connection, profile, _NUMBERED)

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line of a request."""
        return b'{"custom_id":"%b","body":%b}\n' % (custom_id.encode(), body)

    async def check(self) -> None:
        """Raise `unsupported` if the endpoint has no Batch API."""
        for path in ("/files", _JOBS):
            await check_path(self._connection, path, limit="page_size")

    async def upload(self, batch: PlannedBatch) -> str:
        """Upload the file and return its id."""
        return await self._files.upload(batch)

    async def find_file(self, batch: PlannedBatch) -> str:
        """Return the id of the uploaded file; empty without one."""
        return await self._files.find(batch)

    async def create(self, batch: PlannedBatch) -> BatchState:
        """Create the batch, once."""
        body = {
            "endpoint": "/v1/chat/completions",
            "input_files": [batch.file_id],
            "model": batch.model,
            "metadata": {LABEL: batch.key},
            "timeout_hours": self._profile.window_h,
        }
        return created(self._read(await self._connection.create(_JOBS, body)), self._connection)

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the batch with our key or our file."""
        async for page in self._connection.pages(_JOBS, "data", _NUMBERED, {"order_by": "-created"}):
            for job in page:
                state = self._read(job)
                is_ours = state.key == batch.key or (batch.file_id and batch.file_id in (job.get("input_files") or ()))
                if is_ours and state.id not in known:
                    return state
            if is_older(page, batch):
                return None
        return None

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""
        return self._read(await self._connection.call("GET", f"{_JOBS}/{batch_id}"))

    async def cancel(self, batch_id: str) -> BatchState:
        """Cancel the batch."""
        await self._connection.cancel(f"{_JOBS}/{batch_id}/cancel")
        return await self.state(batch_id)

    def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the lines of the output file and of the error file."""
        return file_replies(self._files, state, self._connection)

    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete input, output and error files."""
        await self._files.delete(batch, state.results if state else ())

    def _read(self, payload: Any) -> BatchState:
        job: JsonObject = payload if isinstance(payload, dict) else {}
        said = state_word(job.get("status"))
        begun = unix_time(job.get("created_at"))
        error: JsonObject = next(iter(job.get("errors") or ()), {})
        results = (job.get("output_file"), job.get("error_file"))
        failed = said == "failed"
        return BatchState(
            id=str(job.get("id") or ""),
            is_ended=is_ended(said),
            said=said,
            done=count(job.get("succeeded_requests")),
            failed=count(job.get("failed_requests")),
            total=count(job.get("total_requests")),
            created=begun,
            expires=None if begun is None else begun + self.limits.window_s,
            key=str((job.get("metadata") or {}).get(LABEL) or ""),
            results=tuple(str(name) for name in results if name),
            problem=batch_problem({"error": error}, self._connection.endpoint) if failed else None,
            is_full=failed and is_full({"error": error}),
        )
