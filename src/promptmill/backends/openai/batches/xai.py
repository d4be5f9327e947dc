"""xAI's batches: OpenAI's files and lines, counters in place of a state, results in pages.

Facts: xai-sdk 1.21.0, docs.x.ai/docs/guides/batch-api. Batches read by ourselves over REST were not available, so its
paths are those that litellm 1.109.1 uses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any

import orjson
from typing_extensions import override

from promptmill.backends.batches import BatchApi, BatchLimits, BatchState, PlannedBatch, Reply
from promptmill.backends.openai.batches.connection import BatchConnection, Paging
from promptmill.backends.openai.batches.openai import check_path, created
from promptmill.backends.openai.batches.profile import BatchProfile
from promptmill.backends.openai.batches.reading import batch_problem, count, rpc_status, unix_time
from promptmill.backends.openai.batches.uploaded_files import ProviderFiles, is_older
from promptmill.core.values import JsonObject


def _next_token(payload: JsonObject, _: int) -> dict[str, str] | None:
    token = payload.get("pagination_token")
    return {"pagination_token": str(token)} if token else None


_PAGES = Paging({"limit": 100}, _next_token)


class XAIBatches(BatchApi):
    """A `BatchApi` of xAI's."""

    def __init__(self, connection: BatchConnection, profile: BatchProfile, limits: BatchLimits) -> None:
        self._connection, self.limits = connection, limits
        self._files = ProviderFiles(connection, profile, _PAGES)

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line of a request."""
        url = b"/v1/chat/completions"
        return b'{"custom_id":"%b","method":"POST","url":"%b","body":%b}\n' % (custom_id.encode(), url, body)

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
        body = {"name": batch.key, "input_file_id": batch.file_id}
        return created(self._read(await self._connection.create("/batches", body)), self._connection)

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the batch with our key or our file."""
        async for page in self._connection.pages("/batches", "batches", _PAGES):
            for job in page:
                state = self._read(job)
                is_ours = state.key == batch.key or (batch.file_id and job.get("input_file_id") == batch.file_id)
                if is_ours and state.id not in known:
                    return state
            # a time may be only a date
            if is_older(page, batch, "create_time", 86_400.0):
                return None
        return None

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""
        return self._read(await self._connection.call("GET", f"/batches/{batch_id}"))

    async def cancel(self, batch_id: str) -> BatchState:
        """Cancel the batch."""
        await self._connection.cancel(f"/batches/{batch_id}:cancel")
        return await self.state(batch_id)

    async def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the results, page by page."""
        for path in state.results:
            async for page in self._connection.pages(path, "results", _PAGES):
                for result in page:
                    yield _reply(result)

    @override
    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete the uploaded file. The results have no file."""
        await self._files.delete(batch, ())

    def _read(self, payload: Any) -> BatchState:
        job: JsonObject = payload if isinstance(payload, dict) else {}
        counts = job.get("state") or {}
        total, pending = count(counts.get("num_requests")) or 0, count(counts.get("num_pending")) or 0
        stopped = job.get("cancel_by_xai_message")
        cancelling = bool(stopped or job.get("cancel_time"))
        ended = not pending and (total > 0 or cancelling)
        final = "failed" if stopped else "cancelled" if cancelling else "completed"
        running = "cancelling" if cancelling else "in_progress" if total else "validating"
        name = str(job.get("batch_id") or "")
        return BatchState(
            id=name,
            is_ended=ended,
            said=final if ended else running,
            done=count(counts.get("num_success")),
            failed=count(counts.get("num_error")),
            total=total or None,
            created=unix_time(job.get("create_time")),
            expires=unix_time(job.get("expire_time")),
            key=str(job.get("name") or ""),
            results=(f"/batches/{name}/results",) if ended else (),
            problem=batch_problem({"error": {"message": stopped}}, self._connection.endpoint) if stopped else None,
        )


def _reply(line: JsonObject) -> Reply | None:
    match line:
        case {"batch_request_id": str(custom_id), "batch_result": {"response": dict(response)}} if response:
            return Reply(custom_id, 200, orjson.dumps(next(iter(response.values()))))
        case {"batch_request_id": str(custom_id), "batch_result": {"error": dict(error)}}:
            status = rpc_status(error.get("code"))
            return Reply(custom_id, status, orjson.dumps({"error": error}) if status else b"")
    return None
