"""Gemini's batches: a resumable upload, a long-running operation, a file of responses.

Facts: ai.google.dev/gemini-api/docs/batch-api, google-genai 3.4.0. Requests are never sent inline, because the
results of large inline batches cannot be read: each look at the operation carries all of them twice.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from typing import Any

import orjson

from promptmill.backends.batches import BatchLimits, BatchState, PlannedBatch, Reply
from promptmill.backends.openai.batches.connection import BatchConnection, FailedRequestError, Paging
from promptmill.backends.openai.batches.openai import check_path, created
from promptmill.backends.openai.batches.reading import (
    batch_problem,
    count,
    file_name,
    file_size,
    is_ended,
    is_full,
    rpc_status,
    state_word,
    unix_time,
)
from promptmill.backends.openai.schema_forms import openapi_form
from promptmill.backends.openai.transport import FileBody
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict, JsonObject

_VERSION = re.compile(r"/(v\d[^/?]*)$")
_KIND = "application/jsonl"


def _next_token(payload: JsonObject, _: int) -> dict[str, str] | None:
    token = payload.get("nextPageToken")
    return {"pageToken": str(token)} if token else None


_PAGES = Paging({"pageSize": 100}, _next_token)


class GeminiBatches:
    """A `BatchApi` of Gemini's. Ids are names of resources, such as `batches/123` and `files/abc`."""

    def __init__(self, connection: BatchConnection, limits: BatchLimits) -> None:
        self._connection, self.limits = connection, limits

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line of a request, with its schema in the form that works in batches."""
        if b'"responseJsonSchema"' in body:
            request = orjson.loads(body)
            config = request.get("generationConfig", {})
            if form := openapi_form(config.get("responseJsonSchema")):
                del config["responseJsonSchema"]
                config["responseSchema"] = form
                body = orjson.dumps(request)
        return b'{"key":"%b","request":%b}\n' % (custom_id.encode(), body)

    async def check(self) -> None:
        """Raise `unsupported` if the endpoint has no Batch API."""
        for path in ("/files", "/batches"):
            await check_path(self._connection, path, limit="pageSize")

    async def upload(self, batch: PlannedBatch) -> str:
        """Upload the file and return its name."""
        failures = 0
        while True:
            try:
                return await self._upload(batch)
            except FailedRequestError as failed:
                failures += 1
                await self._connection.wait(failed, failures)
                if failed.is_unclear and (name := await self.find_file(batch)):
                    return name

    async def _upload(self, batch: PlannedBatch) -> str:
        size = file_size(batch)
        about = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
            "X-Goog-Upload-Header-Content-Type": _KIND,
        }
        named = {"file": {"displayName": file_name(batch), "mimeType": _KIND}}
        _, headers = await self._connection.once("POST", f"{self._beside('upload')}/files", named, headers=about)
        address = headers.get("X-Goog-Upload-URL", "")
        if not address:
            raise PromptmillError(Code.BAD_RESPONSE, f"{self._connection.endpoint.name} named no address for a file.")
        command = {"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"}
        payload, _ = await self._connection.once("POST", address, FileBody(batch.file, size, _KIND), headers=command)
        file = payload.get("file") if isinstance(payload, dict) else None
        if not isinstance(file, dict) or not file.get("name"):
            raise PromptmillError(Code.BAD_RESPONSE, f"{self._connection.endpoint.name} sent no name for a file.")
        return str(file["name"])

    def _beside(self, place: str) -> str:
        """Return the URL that has `upload` or `download` before the version."""
        return _VERSION.sub(rf"/{place}/\1", self._connection.endpoint.url)

    async def find_file(self, batch: PlannedBatch) -> str:
        """Return the name of the uploaded file; empty without one."""
        size = file_size(batch)
        whole = (file for file in await self._named(batch) if count(file.get("sizeBytes")) in {None, size})
        return next((str(file["name"]) for file in whole), "")

    async def _named(self, batch: PlannedBatch) -> list[JsonDict]:
        wanted, found = file_name(batch), []
        async for page in self._connection.pages("/files", "files", _PAGES):
            found += [file for file in page if file.get("displayName") == wanted and "name" in file]
        return found

    async def create(self, batch: PlannedBatch) -> BatchState:
        """Create the batch, once, after its file is ready."""
        await self._connection.until_processed(f"/{batch.file_id}", self._is_ready)
        about = {"batch": {"displayName": batch.key, "inputConfig": {"fileName": batch.file_id}}}
        path = f"/models/{batch.model.removeprefix('models/')}:batchGenerateContent"
        payload = await self._connection.create(path, about, quota_is_queue=True)
        return created(self._read(payload), self._connection)

    def _is_ready(self, file: JsonObject) -> bool:
        word = state_word(file.get("state"))
        if word == "failed":
            raise batch_problem(file, self._connection.endpoint)
        return word != "processing"

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the batch with our key."""
        async for page in self._connection.pages("/batches", "operations", _PAGES):
            for state in map(self._read, page):
                if state.key == batch.key and state.id not in known:
                    return state
        return None

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""
        return self._read(await self._connection.call("GET", f"/{batch_id}"))

    async def cancel(self, batch_id: str) -> BatchState:
        """Cancel the batch."""
        await self._connection.cancel(f"/{batch_id}:cancel")
        return await self.state(batch_id)

    async def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the lines of the file of responses."""
        for name in state.results:
            path = f"{self._beside('download')}/{name}:download"
            async for line in self._connection.lines(path, {"alt": "media"}):
                yield _reply(line)

    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete the uploaded file and the file of responses."""
        known = {batch.file_id, *(state.results if state else ())} - {""}
        for name in known:
            await self._connection.delete(f"/{name}")
        for file in await self._named(batch):
            if file["name"] not in known:
                await self._connection.delete(f"/{file['name']}")

    def _read(self, payload: Any) -> BatchState:
        job: JsonObject = payload if isinstance(payload, dict) else {}
        about: JsonObject = job.get("metadata") or job
        said = state_word(about.get("state"))
        counts = about.get("batchStats") or {}
        output = job.get("response") or about.get("output") or about.get("dest") or {}
        file, error = output.get("responsesFile"), job.get("error") or about.get("error") or {}
        failed = said == "failed" or (bool(error) and not file and rpc_status(error.get("code")) != 0)
        return BatchState(
            id=str(job.get("name") or ""),
            is_ended=bool(job.get("done")) or is_ended(said),
            said=said,
            done=count(counts.get("successfulRequestCount")),
            failed=count(counts.get("failedRequestCount")),
            total=count(counts.get("requestCount")),
            created=unix_time(about.get("createTime")),
            key=str(about.get("displayName") or ""),
            results=(str(file),) if file else (),
            problem=batch_problem({"error": error}, self._connection.endpoint) if failed else None,
            is_full=failed and is_full({"error": error}),
        )


def _reply(line: JsonObject) -> Reply | None:
    match line:
        case {"key": str(key), "response": dict(response)} if response:
            return Reply(key, 200, orjson.dumps(response))
        case {"key": str(key), "error": dict(error)}:
            status = rpc_status(error.get("code"))
            return Reply(key, status, orjson.dumps({"error": error}) if status else b"")
    return None
