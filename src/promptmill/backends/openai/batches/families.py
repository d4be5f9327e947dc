"""The Batch APIs that differ from OpenAI's, with one class for each."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import orjson
from typing_extensions import override

from promptmill.backends.batches import BatchState, PlannedBatch, Reply
from promptmill.backends.openai.batches import openai_batches, reading
from promptmill.backends.openai.batches.connection import FailedRequestError, Paging, Query
from promptmill.backends.openai.batches.profile import Family
from promptmill.backends.openai.route import FileBody
from promptmill.backends.openai.schema_forms import openapi_form
from promptmill.core.bounds import MOST_SHARED
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict, JsonObject


def _following(field: str, parameter: str) -> Callable[[JsonObject, int], Query | None]:
    """Return a `Paging.following` for lists whose pages have the token of the next page in `field`."""
    return lambda page, _: {parameter: str(page[field])} if page.get(field) else None


def _after_last(page: JsonObject, _: int) -> Query | None:
    """Return the query parameters for the next page, in Anthropic's format."""
    last = page.get("last_id")
    return {"after_id": str(last)} if page.get("has_more") and last else None


def _requests(batch: PlannedBatch, before: bytes) -> FileBody:
    """Return the body of the request that creates a batch, with the batch's requests in the list `requests`."""
    return FileBody(
        batch.file, reading.file_size(batch), "application/json", before + b'"requests":[', b"]}", is_list=True
    )


def _coded(custom_id: str, error: JsonObject) -> Reply:
    """Return the reply for a failed request whose error has a code of google.rpc."""
    status = reading.rpc_status(error.get("code"))
    return Reply(custom_id, status, orjson.dumps({"error": error}) if status else b"")


class TogetherBatches(openai_batches.Batches):
    """Together (together 3.1.1) names an address for each upload, and checks a file if another request asks for it."""

    PLACES = openai_batches.RecordPaths(expires="expires_at|job_deadline")

    @override
    async def _upload(self, batch: PlannedBatch) -> str:
        connection, boundary = self._connection, openai_batches.boundary_of_form()
        fields = {"purpose": self._profile.purpose, "file_name": reading.file_name(batch), "file_type": "jsonl"}
        form = f"{openai_batches.form_fields(fields, boundary)}--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        headers: Mapping[str, str]
        try:
            _, headers = await connection.once("POST", self.FILES, form, headers=kind)
        except FailedRequestError as failed:
            if failed.status not in {302, 307}:
                raise
            headers = failed.headers
        body = FileBody(batch.file, reading.file_size(batch), "application/octet-stream")
        await connection.once("PUT", headers.get("Location", ""), body)
        return await self._checked(self._id_in({"id": headers.get("X-Together-File-Id")}))

    async def _checked(self, file_id: str) -> str:
        if file_id:
            await self._connection.call("POST", f"{self._place_of_file(file_id)}/preprocess")
        return file_id

    @override
    async def find_file(self, batch: PlannedBatch) -> str:
        # the check is requested again: the process that uploaded the file may have ended before requesting it
        return await self._checked(await super().find_file(batch))

    @override
    def _read(self, job: Any) -> BatchState:
        return super()._read(reading.at(job, "job") or job)  # the reply to `create` wraps the batch


class MistralBatches(openai_batches.Batches):
    """Mistral (docs.mistral.ai/studio-api/batch-processing, mistralai 3.7.0) keeps results for 24 hours."""

    JOBS, ORDER = "/batch/jobs", MappingProxyType({"order_by": "-created"})
    PAGES = Paging({"page_size": 100}, lambda _, number: {"page": number})
    PLACES = openai_batches.RecordPaths(
        done="succeeded_requests",
        failed="failed_requests",
        total="total_requests",
        expires="",
        file="input_files.0",
        error="errors.0",
        results=("output_file", "error_file"),
    )

    @override
    def _order(self, batch: PlannedBatch) -> tuple[str, JsonObject]:
        return self.JOBS, {
            "endpoint": self._path,
            "input_files": [batch.file_id],
            "model": batch.model,
            "metadata": {"promptmill": batch.key},
            "timeout_hours": int(self.limits.window_s // 3600),
        }


class AnthropicBatches(openai_batches.Batches):
    """Anthropic's Batch API (platform.claude.com/docs/en/build-with-claude/batch-processing, anthropic 2.12.0).

    Until a batch has ended, the count `processing` contains all its requests. `ended` is the only final state.
    """

    JOBS, FILES = "/messages/batches", ""
    LINE = b'{"custom_id":"%b","params":%b}\n'
    PAGES = Paging({"limit": 100}, _after_last)
    PLACES = openai_batches.RecordPaths(said="processing_status", key="", results=())

    @override
    def _order(self, batch: PlannedBatch) -> tuple[str, FileBody]:
        return self.JOBS, _requests(batch, b"{")

    @override
    def _read(self, job: Any) -> BatchState:
        state = super()._read(job)
        counts = {name: reading.count(value) or 0 for name, value in (reading.at(job, "request_counts") or {}).items()}
        state = replace(state, total=sum(counts.values()) or None)
        if not state.is_ended:
            return state
        # the path is not taken from `results_url`, because a gateway may name Anthropic's host there
        results = (f"{self._place(state.id)}/results",)
        return replace(state, done=counts.get("succeeded"), failed=counts.get("errored"), results=results)

    @override
    def _results(self, name: str) -> AsyncIterator[JsonDict]:
        return self._connection.lines(name)

    @override
    def _reply(self, line: JsonObject) -> Reply | None:
        match line:
            case {"custom_id": str(custom_id), "result": {"type": "succeeded", "message": dict(message)}}:
                return Reply(custom_id, 200, orjson.dumps(message))
            case {"custom_id": str(custom_id), "result": {"type": "errored", "error": dict(error)}}:
                return Reply(custom_id, reading.error_status(error.get("error") or error), orjson.dumps(error))
            case {"custom_id": str(custom_id), "result": {"type": "expired" | "canceled"}}:
                return Reply(custom_id, 0, b"")
        return None


class OpenRouterBatches(openai_batches.Batches):
    """OpenRouter returns all results of a batch in one body, the batch's record, so batches are kept small.

    Facts: openrouter.ai/docs/guides/features/batch-api, openrouter 1.3.84.
    """

    FILES, LARGEST = "", MOST_SHARED
    PLACES = openai_batches.RecordPaths(error="error", key="", results=())

    @override
    def _order(self, batch: PlannedBatch) -> tuple[str, FileBody]:
        about = {"endpoint": self._path, "model": batch.model, "completion_window": "24h"}
        return self.JOBS, _requests(batch, orjson.dumps(about)[:-1] + b",")

    @override
    def _read(self, job: Any) -> BatchState:
        state = super()._read(job)
        return replace(state, results=(state.id,)) if state.is_ended else state

    @override
    async def _results(self, name: str) -> AsyncIterator[JsonDict]:
        job = await self._connection.call("GET", self._place(name), largest=self.LARGEST)
        for line in reading.at(job, "results") or ():
            yield line if isinstance(line, dict) else {}


class GeminiBatches(openai_batches.Batches):
    """Gemini has resumable uploads and long-running operations. Ids are names such as `batches/123` and `files/abc`.

    Facts: ai.google.dev/gemini-api/docs/batch-api, google-genai 3.4.0. Requests are never sent inline: each poll of an
    inline batch's operation returns all results twice, so the results of a large batch could not be read.
    """

    FIELD, CANCEL, QUOTA_IS_QUEUE = "operations", ":cancel", True
    LINE = b'{"key":"%b","request":%b}\n'
    PAGES = Paging({"pageSize": 100}, _following("nextPageToken", "pageToken"))
    SKEW_S = math.inf  # lists are read to the end, because the provider does not sort them by time
    PLACES = openai_batches.RecordPaths(
        id="name",
        said="metadata.state|state",
        done="metadata.batchStats.successfulRequestCount|batchStats.successfulRequestCount",
        failed="metadata.batchStats.failedRequestCount|batchStats.failedRequestCount",
        total="metadata.batchStats.requestCount|batchStats.requestCount",
        created="metadata.createTime|createTime",
        expires="expires_at",
        key="metadata.displayName|displayName",
        error="error|metadata.error",
    )
    FILE_PLACES = openai_batches.FilePlaces("files", "name", "displayName", "sizeBytes")
    _KIND = "application/jsonl"
    _VERSION = re.compile(r"/(v\d[^/?]*)$")

    @override
    def line(self, custom_id: str, body: bytes) -> bytes:
        # batches support a schema only in Gemini's older form, `responseSchema`
        if b'"responseJsonSchema"' in body:
            request = orjson.loads(body)
            config = request.get("generationConfig", {})
            if form := openapi_form(config.get("responseJsonSchema")):
                del config["responseJsonSchema"]
                config["responseSchema"] = form
                body = orjson.dumps(request)
        return super().line(custom_id, body)

    def _beside(self, place: str) -> str:
        """Return the endpoint's URL with `place` (`upload` or `download`) inserted before the API version."""
        return self._VERSION.sub(rf"/{place}/\1", self._connection.endpoint.url)

    @override
    async def _upload(self, batch: PlannedBatch) -> str:
        size = reading.file_size(batch)
        about = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
            "X-Goog-Upload-Header-Content-Type": self._KIND,
        }
        named = {"file": {"displayName": reading.file_name(batch), "mimeType": self._KIND}}
        _, headers = await self._connection.once("POST", f"{self._beside('upload')}/files", named, headers=about)
        address = headers.get("X-Goog-Upload-URL", "")
        if not address:
            raise PromptmillError(Code.BAD_RESPONSE, f"{self._name} named no address for a file.")
        command = {"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"}
        body = FileBody(batch.file, size, self._KIND)
        return self._id_in(reading.at((await self._connection.once("POST", address, body, headers=command))[0], "file"))

    @override
    def _place_of_file(self, file_id: str) -> str:
        return f"/{file_id}"

    @override
    def _place(self, batch_id: str) -> str:
        return f"/{batch_id}"

    @override
    def _order(self, batch: PlannedBatch) -> tuple[str, JsonObject]:
        about = {"batch": {"displayName": batch.key, "inputConfig": {"fileName": batch.file_id}}}
        return f"/models/{batch.model.removeprefix('models/')}:batchGenerateContent", about

    @override
    def _read(self, job: Any) -> BatchState:
        state, error = super()._read(job), reading.at(job, self.PLACES.error)
        output = reading.at(job, "response|metadata.output|output|metadata.dest|dest")
        file = reading.at(output, "responsesFile")
        if error and not file and state.problem is None and reading.rpc_status(error.get("code")) != 0:
            state = replace(state, problem=reading.batch_problem({"error": error}, self._connection.endpoint))
        return replace(
            state, is_ended=bool(reading.at(job, "done")) or state.is_ended, results=(str(file),) if file else ()
        )

    @override
    def _results(self, name: str) -> AsyncIterator[JsonDict]:
        return self._connection.lines(f"{self._beside('download')}/{name}:download", {"alt": "media"})

    @override
    def _reply(self, line: JsonObject) -> Reply | None:
        match line:
            case {"key": str(key), "response": dict(response)} if response:
                return Reply(key, 200, orjson.dumps(response))
            case {"key": str(key), "error": dict(error)}:
                return _coded(key, error)
        return None


class FireworksBatches(openai_batches.Batches):
    """Fireworks stores requests and results as datasets of an account. Their URLs differ from the URL of inference.

    The ids of the job and of both datasets contain promptmill's key, so a job cannot be created twice. Facts:
    docs.fireworks.ai/guides/batch-inference, fireworks-ai 1.2.30.
    """

    PAGES = Paging({"pageSize": 100}, _following("nextPageToken", "pageToken"))
    PLACES = openai_batches.RecordPaths(
        id="name",
        said="state",
        done="jobProgress.successfullyProcessedRequests",
        failed="jobProgress.failedRequests",
        total="jobProgress.totalInputRequests",
        created="createTime",
        expires="",
        key="displayName",
        error="status",
        results=("outputDatasetId",),
    )
    _account = ""

    @override
    async def check(self) -> None:
        await self._check_path("/accounts")
        await self._check_path(await self._below("batchInferenceJobs"))

    async def _below(self, rest: str) -> str:
        """Return the path `rest`, placed below the account to which the key belongs."""
        if not self._account:
            self._account = str(reading.at(await self._connection.call("GET", "/accounts"), "accounts.0.name") or "")
            if not self._account:
                text = f"{self._name} names no account for this key, so it runs no batches."
                raise PromptmillError(Code.UNSUPPORTED, text, "Use a key of an account.")
        return f"/{self._account}/{rest}"

    @override
    def _place(self, batch_id: str) -> str:
        return f"/{batch_id}"

    @override
    async def _upload(self, batch: PlannedBatch) -> str:
        name = _id(batch)
        try:
            about = {"datasetId": name, "dataset": {"userUploaded": {}}}
            await self._connection.once("POST", await self._below("datasets"), about)
        except FailedRequestError as failed:
            if failed.status != 409:  # 409: an earlier attempt has created it
                raise
        await self._connection.once(
            "POST", await self._below(f"datasets/{name}:upload"), openai_batches.form_of(batch, {})
        )
        return name

    @override
    async def find_file(self, batch: PlannedBatch) -> str:
        dataset = await self._record(f"datasets/{_id(batch)}")
        return _id(batch) if reading.state_word(reading.at(dataset, "state")) == "ready" else ""

    async def _record(self, rest: str) -> Any:
        """Return the record at a path in the account; None if it does not exist."""
        try:
            return await self._connection.call("GET", await self._below(rest))
        except PromptmillError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise

    @override
    async def create(self, batch: PlannedBatch) -> BatchState:
        await self._below("")
        return await super().create(batch)

    @override
    def _order(self, batch: PlannedBatch) -> tuple[str, JsonObject]:
        name, account = _id(batch), self._account
        return f"/{account}/batchInferenceJobs?batchInferenceJobId={name}", {
            "displayName": batch.key,
            "model": batch.model,
            "inputDatasetId": f"{account}/datasets/{batch.file_id}",
            "outputDatasetId": f"{account}/datasets/{name}-out",
        }

    @override
    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        job = await self._record(f"batchInferenceJobs/{_id(batch)}")
        state = self._read(job) if job else None
        return state if state is not None and state.id not in known else None

    @override
    async def _results(self, name: str) -> AsyncIterator[JsonDict]:
        payload = await self._connection.call("GET", f"/{name}:getDownloadEndpoint")
        for url in (reading.at(payload, "filenameToSignedUrls") or {}).values():
            async for line in self._connection.lines(str(url)):
                yield line

    @override
    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        await self._connection.delete(await self._below(f"datasets/{_id(batch)}"))
        for dataset in state.results if state else ():
            await self._connection.delete(f"/{dataset}")

    @override
    def _read(self, job: Any) -> BatchState:
        state = super()._read(job)
        return state if state.is_ended else replace(state, results=())


class XAIBatches(openai_batches.Batches):
    """xAI takes files in OpenAI's format. It reports counts instead of a state, and returns results in pages of JSON.

    Facts: docs.x.ai/docs/guides/batch-api and its REST reference (/v1/batches, files of JSON Lines since March 2026),
    xai-sdk 1.21.0, litellm 1.109.1.
    """

    FIELD, CANCEL = "batches", ":cancel"
    PAGES = Paging({"limit": 100}, _following("pagination_token", "pagination_token"))
    SKEW_S = 86_400.0  # xAI may report a date without a time
    PLACES = openai_batches.RecordPaths(
        id="batch_id",
        done="state.num_success",
        failed="state.num_error",
        total="state.num_requests",
        created="create_time",
        expires="expire_time",
        key="name",
        error="error",
        results=(),
    )

    @override
    def _order(self, batch: PlannedBatch) -> tuple[str, JsonObject]:
        return self.JOBS, {"name": batch.key, "input_file_id": batch.file_id}

    @override
    def _read(self, job: Any) -> BatchState:
        requests, pending = (reading.count(reading.at(job, f"state.num_{name}")) for name in ("requests", "pending"))
        stopped = reading.at(job, "cancel_by_xai_message")
        is_cancelled = bool(stopped or reading.at(job, "cancel_time"))
        if not pending and (requests or is_cancelled):
            said = "failed" if stopped else "cancelled" if is_cancelled else "completed"
        else:
            said = "cancelling" if is_cancelled else "in_progress" if requests else "validating"
        state = super()._read({**job, "status": said, "error": {"message": stopped} if stopped else None})
        return replace(state, results=(f"{self._place(state.id)}/results",) if state.is_ended else ())

    @override
    async def _results(self, name: str) -> AsyncIterator[JsonDict]:
        async for page in self._connection.pages(name, "results", self.PAGES):
            for result in page:
                yield result

    @override
    def _reply(self, line: JsonObject) -> Reply | None:
        match line:
            case {"batch_request_id": str(custom_id), "batch_result": {"response": dict(response)}} if response:
                return Reply(custom_id, 200, orjson.dumps(next(iter(response.values()))))
            case {"batch_request_id": str(custom_id), "batch_result": {"error": dict(error)}}:
                return _coded(custom_id, error)
        return None

    @override
    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        await super().delete(batch, None)  # results are not files, so only the uploaded file is deleted


def _id(batch: PlannedBatch) -> str:
    """Return promptmill's key as an id: in lower case, starting with a letter."""
    return f"pm-{batch.key.lower()}"


FAMILIES: Mapping[Family, type[openai_batches.Batches]] = MappingProxyType(
    {
        "openai": openai_batches.Batches,
        "together": TogetherBatches,
        "mistral": MistralBatches,
        "anthropic": AnthropicBatches,
        "openrouter": OpenRouterBatches,
        "gemini": GeminiBatches,
        "fireworks": FireworksBatches,
        "xai": XAIBatches,
    }
)
