"""Anthropic's Message Batches: requests in the body of `create`, results as JSON Lines.

Facts: platform.claude.com/docs/en/build-with-claude/batch-processing, anthropic 2.12.0. A batch has no label. Its
counts are all in `processing` until it ends; `ended` is its only final state.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any

import orjson
from typing_extensions import override

from promptmill.backends.batches import BatchApi, BatchLimits, BatchState, PlannedBatch, Reply
from promptmill.backends.openai.batches.connection import BatchConnection, Paging
from promptmill.backends.openai.batches.openai import check_path, created
from promptmill.backends.openai.batches.reading import (
    count,
    error_status,
    file_size,
    is_ended,
    only_match,
    state_word,
    unix_time,
)
from promptmill.backends.openai.transport import FileBody
from promptmill.core.values import JsonObject

_BATCHES = "/messages/batches"


def _after_last(payload: JsonObject, _: int) -> dict[str, str] | None:
    last = payload.get("last_id")
    return {"after_id": str(last)} if payload.get("has_more") and last else None


_PAGES = Paging({"limit": 100}, _after_last)


class AnthropicBatches(BatchApi):
    """A `BatchApi` of Anthropic's."""

    def __init__(self, connection: BatchConnection, limits: BatchLimits) -> None:
        self._connection, self.limits = connection, limits

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line of a request."""
        return b'{"custom_id":"%b","params":%b}\n' % (custom_id.encode(), body)

    async def check(self) -> None:
        """Raise `unsupported` if the endpoint has no Batch API."""
        await check_path(self._connection, _BATCHES)

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
        body = FileBody(batch.file, file_size(batch), "application/json", b'{"requests":[', b"]}", is_list=True)
        return created(self._read(await self._connection.create(_BATCHES, body)), self._connection)

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the only unknown batch with as many requests since it was planned."""
        return await only_match(self._connection.pages(_BATCHES, "data", _PAGES), self._read, batch, known)

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""
        return self._read(await self._connection.call("GET", f"{_BATCHES}/{batch_id}"))

    async def cancel(self, batch_id: str) -> BatchState:
        """Cancel the batch."""
        await self._connection.cancel(f"{_BATCHES}/{batch_id}/cancel")
        return await self.state(batch_id)

    async def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the results. The path is our own, because `results_url` of a gateway may name Anthropic's host."""
        for path in state.results:
            async for line in self._connection.lines(path):
                yield _reply(line)

    @override
    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete the batch with its results."""
        if state is not None:
            await self._connection.delete(f"{_BATCHES}/{state.id}")

    def _read(self, payload: Any) -> BatchState:
        job: JsonObject = payload if isinstance(payload, dict) else {}
        said = state_word(job.get("processing_status"))
        counts = {name: count(value) for name, value in (job.get("request_counts") or {}).items()}
        name, ended = str(job.get("id") or ""), is_ended(said)
        return BatchState(
            id=name,
            is_ended=ended,
            said=said,
            done=counts.get("succeeded") if ended else None,
            failed=counts.get("errored") if ended else None,
            total=sum(value or 0 for value in counts.values()) or None,
            created=unix_time(job.get("created_at")),
            expires=unix_time(job.get("expires_at")),
            results=(f"{_BATCHES}/{name}/results",) if ended else (),
        )


def _reply(line: JsonObject) -> Reply | None:
    custom_id, result = line.get("custom_id"), line.get("result")
    match result if isinstance(custom_id, str) else None:
        case {"type": "succeeded", "message": dict(message)}:
            return Reply(str(custom_id), 200, orjson.dumps(message))
        case {"type": "errored", "error": dict(error)}:
            return Reply(str(custom_id), error_status(error.get("error") or error), orjson.dumps(error))
        case {"type": "expired" | "canceled"}:
            return Reply(str(custom_id), 0, b"")
    return None
