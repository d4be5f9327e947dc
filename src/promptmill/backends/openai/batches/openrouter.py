"""OpenRouter's batches: requests in the body of `create`, results in the batch itself.

Facts: openrouter.ai/docs/guides/features/batch-api, openrouter 1.3.84. There is no label and no cancellation. The
results arrive in one body, so batches are kept small.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import Any

import orjson
from typing_extensions import override

from promptmill.backends.batches import BatchApi, BatchLimits, BatchState, PlannedBatch, Reply
from promptmill.backends.openai.batches.connection import BatchConnection
from promptmill.backends.openai.batches.openai import check_path, created
from promptmill.backends.openai.batches.reading import (
    batch_problem,
    count,
    file_size,
    is_ended,
    is_full,
    only_match,
    reply_of,
    state_word,
    unix_time,
)
from promptmill.backends.openai.batches.uploaded_files import NEWEST_FIRST
from promptmill.backends.openai.transport import FileBody
from promptmill.core.bounds import MOST_SHARED
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonObject

# 64 KB for each result within `MOST_SHARED`.
_MOST_REQUESTS = 1000


class OpenRouterBatches(BatchApi):
    """A `BatchApi` of OpenRouter's."""

    def __init__(self, connection: BatchConnection, limits: BatchLimits, path: str) -> None:
        """`path` is the path of the requests, such as `/v1/chat/completions`."""
        self._connection, self._path = connection, path
        self.limits = replace(limits, requests=min(limits.requests, _MOST_REQUESTS))

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line of a request."""
        return b'{"custom_id":"%b","body":%b}\n' % (custom_id.encode(), body)

    async def check(self) -> None:
        """Raise `unsupported` if the endpoint has no Batch API."""
        await check_path(self._connection, "/batches")

    @override
    async def upload(self, batch: PlannedBatch) -> str:
        """Do nothing: `create` sends the requests."""
        return ""

    @override
    async def find_file(self, batch: PlannedBatch) -> str:
        """Return an empty id: there are no files."""
        return ""

    async def create(self, batch: PlannedBatch) -> BatchState:
        """Create the batch, once."""
        about = {"endpoint": self._path, "model": batch.model, "completion_window": "24h"}
        before = orjson.dumps(about)[:-1] + b',"requests":['
        body = FileBody(batch.file, file_size(batch), "application/json", before, b"]}", is_list=True)
        return created(self._read(await self._connection.create("/batches", body)), self._connection)

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the only unknown batch with as many requests since it was planned."""
        return await only_match(self._connection.pages("/batches", "data", NEWEST_FIRST), self._read, batch, known)

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""
        return self._read(await self._job(batch_id))

    async def _job(self, batch_id: str) -> JsonObject:
        job = await self._connection.call("GET", f"/batches/{batch_id}", largest=MOST_SHARED)
        return job if isinstance(job, dict) else {}

    async def cancel(self, batch_id: str) -> BatchState:
        """Raise `unsupported`: its API cannot cancel."""
        text = f"{self._connection.endpoint.name} cannot cancel batch {batch_id}; it ends by itself within a day."
        raise PromptmillError(Code.UNSUPPORTED, text, "")

    async def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the results."""
        for name in state.results:
            for line in (await self._job(name)).get("results") or ():
                yield reply_of(line) if isinstance(line, dict) else None

    @override
    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete the batch with its results."""
        if state is not None:
            await self._connection.delete(f"/batches/{state.id}")

    def _read(self, payload: Any) -> BatchState:
        job: JsonObject = payload if isinstance(payload, dict) else {}
        said = state_word(job.get("status"))
        counts = job.get("request_counts") or {}
        failed, error = said == "failed", job.get("error") or {}
        name = str(job.get("id") or "")
        return BatchState(
            id=name,
            is_ended=is_ended(said),
            said=said,
            done=count(counts.get("completed")),
            failed=count(counts.get("failed")),
            total=count(counts.get("total")),
            created=unix_time(job.get("created_at")),
            expires=unix_time(job.get("expires_at")),
            results=(name,) if is_ended(said) else (),
            problem=batch_problem({"error": error}, self._connection.endpoint) if failed else None,
            is_full=failed and is_full({"error": error}),
        )
