"""Fireworks' batch inference jobs: datasets for requests and results, and job ids that we choose.

Facts: docs.fireworks.ai/guides/batch-inference, fireworks-ai 1.2.30. The API of an account has another path than
inference. Our key is the id of the job and of both datasets, so a job cannot be created twice. Cancelling is not in the
API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any

from promptmill.backends.batches import BatchLimits, BatchState, PlannedBatch, Reply
from promptmill.backends.openai.batches.connection import BatchConnection, FailedRequestError
from promptmill.backends.openai.batches.openai import check_path
from promptmill.backends.openai.batches.reading import (
    batch_problem,
    count,
    is_ended,
    is_full,
    reply_of,
    state_word,
    unix_time,
)
from promptmill.backends.openai.batches.uploaded_files import form_of
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonObject


class FireworksBatches:
    """A `BatchApi` of Fireworks'."""

    def __init__(self, connection: BatchConnection, limits: BatchLimits) -> None:
        self._connection, self.limits = connection, limits
        self._account = ""

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line of a request."""
        return b'{"custom_id":"%b","body":%b}\n' % (custom_id.encode(), body)

    async def check(self) -> None:
        """Raise `unsupported` if the endpoint has no Batch API."""
        await check_path(self._connection, "/accounts", limit="pageSize")
        await check_path(self._connection, await self._path("batchInferenceJobs"), limit="pageSize")

    async def _path(self, rest: str) -> str:
        """Return a path below the account of the key."""
        if not self._account:
            payload = await self._connection.call("GET", "/accounts")
            accounts = payload.get("accounts") if isinstance(payload, dict) else None
            if not accounts:
                text = f"{self._connection.endpoint.name} names no account for this key, so it runs no batches."
                raise PromptmillError(Code.UNSUPPORTED, text, "Use a key of an account.")
            self._account = str(accounts[0]["name"])
        return f"/{self._account}/{rest}"

    async def upload(self, batch: PlannedBatch) -> str:
        """Create the dataset and upload its file; return its id."""
        name, failures = _id(batch), 0
        while True:
            try:
                about = {"datasetId": name, "dataset": {"userUploaded": {}}}
                await self._connection.once("POST", await self._path("datasets"), about)
            except FailedRequestError as failed:
                if failed.status != 409:  # else it exists: an earlier attempt made it
                    failures += 1
                    await self._connection.wait(failed, failures)
                    continue
            try:
                await self._connection.once("POST", await self._path(f"datasets/{name}:upload"), form_of(batch, {}))
            except FailedRequestError as failed:
                failures += 1
                await self._connection.wait(failed, failures)
                if failed.is_unclear and await self.find_file(batch):
                    return name
            else:
                return name

    async def find_file(self, batch: PlannedBatch) -> str:
        """Return the id of the dataset if its file is whole; empty without one."""
        payload = await self._found(f"datasets/{_id(batch)}")
        return _id(batch) if payload and state_word(payload.get("state")) == "ready" else ""

    async def _found(self, rest: str) -> JsonObject | None:
        try:
            payload = await self._connection.call("GET", await self._path(rest))
        except PromptmillError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        return payload if isinstance(payload, dict) else None

    async def create(self, batch: PlannedBatch) -> BatchState:
        """Create the job under our key."""
        account = (await self._path("")).strip("/")
        about = {
            "displayName": batch.key,
            "model": batch.model,
            "inputDatasetId": f"{account}/datasets/{batch.file_id}",
            "outputDatasetId": f"{account}/datasets/{_id(batch)}-out",
        }
        path = f"/{account}/batchInferenceJobs"
        return self._read(await self._connection.create(path, about, query={"batchInferenceJobId": _id(batch)}))

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the job with our key."""
        payload = await self._found(f"batchInferenceJobs/{_id(batch)}")
        state = self._read(payload) if payload else None
        return state if state is not None and state.id not in known else None

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""
        return self._read(await self._connection.call("GET", f"/{batch_id}"))

    async def cancel(self, batch_id: str) -> BatchState:
        """Raise `unsupported`: its API cannot cancel."""
        text = f"{self._connection.endpoint.name} cannot cancel batch {batch_id}; it ends by itself within a day."
        raise PromptmillError(Code.UNSUPPORTED, text, "")

    async def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the lines of the files of results and of errors."""
        for dataset in state.results:
            payload = await self._connection.call("GET", f"/{dataset}:getDownloadEndpoint")
            urls = payload.get("filenameToSignedUrls") if isinstance(payload, dict) else None
            for url in (urls or {}).values():
                async for line in self._connection.lines(str(url)):
                    yield reply_of(line)

    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete both datasets."""
        await self._connection.delete(await self._path(f"datasets/{_id(batch)}"))
        for dataset in state.results if state else ():
            await self._connection.delete(f"/{dataset}")

    def _read(self, payload: Any) -> BatchState:
        job: JsonObject = payload if isinstance(payload, dict) else {}
        said = state_word(job.get("state"))
        counts = job.get("jobProgress") or {}
        failed, problem = said == "failed", {"error": job.get("status") or {}}
        begun, output = unix_time(job.get("createTime")), job.get("outputDatasetId")
        return BatchState(
            id=str(job.get("name") or ""),
            is_ended=is_ended(said),
            said=said,
            done=count(counts.get("successfullyProcessedRequests")),
            failed=count(counts.get("failedRequests")),
            total=count(counts.get("totalInputRequests")),
            created=begun,
            expires=None if begun is None else begun + self.limits.window_s,
            key=str(job.get("displayName") or ""),
            results=(str(output),) if output and is_ended(said) else (),
            problem=batch_problem(problem, self._connection.endpoint) if failed else None,
            is_full=failed and is_full(problem),
        )


def _id(batch: PlannedBatch) -> str:
    """Return our key as an id: lower case, with a letter first."""
    return f"pm-{batch.key.lower()}"
