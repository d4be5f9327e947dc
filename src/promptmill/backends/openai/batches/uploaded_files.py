"""Files at a provider, as OpenAI's `/files` has them: upload, look-up by name, download, deletion."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping

from promptmill.backends.batches import CLOCK_SKEW_S, PlannedBatch
from promptmill.backends.openai.batches.connection import BatchConnection, FailedRequestError, Paging
from promptmill.backends.openai.batches.profile import BatchProfile
from promptmill.backends.openai.batches.reading import count, file_name, file_size, state_word, unix_time
from promptmill.backends.openai.transport import FileBody
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict, JsonObject

_FORM = "multipart/form-data; boundary="
_READY = frozenset({"processed", "completed", "active"})
_REFUSED = frozenset({"error", "failed", "deleted"})


class ProviderFiles:
    """The files of batches at one endpoint."""

    def __init__(self, connection: BatchConnection, profile: BatchProfile, paging: Paging) -> None:
        self._connection, self._profile, self._paging = connection, profile, paging

    async def upload(self, batch: PlannedBatch) -> str:
        """Upload a batch's file and return its id. A lost answer is repeated only if the file is not there."""
        if self._profile.upload == "presigned":
            return await self._upload_to_address(batch)
        failures = 0
        while True:
            try:
                payload, _ = await self._connection.once(
                    "POST", "/files", form_of(batch, {"purpose": self._profile.purpose})
                )
                return self._id(payload)
            except FailedRequestError as failed:
                failures += 1
                await self._connection.wait(failed, failures)
                if failed.is_unclear and (file_id := await self.find(batch)):
                    return file_id

    def _id(self, payload: object) -> str:
        file_id = payload.get("id") if isinstance(payload, dict) else None
        if not isinstance(file_id, str) or not file_id:
            raise PromptmillError(Code.BAD_RESPONSE, f"{self._connection.endpoint.name} sent no id for a file.")
        return file_id

    async def _upload_to_address(self, batch: PlannedBatch) -> str:
        """Together's way: it names an id and an address for the bytes, then checks the file (together 3.1.1)."""
        fields = {"purpose": self._profile.purpose, "file_name": file_name(batch), "file_type": "jsonl"}
        body = FileBody(batch.file, file_size(batch), "application/octet-stream")
        boundary = _boundary()
        form = f"{_fields(fields, boundary)}--{boundary}--\r\n".encode()
        kind = {"Content-Type": _FORM + boundary}
        headers: Mapping[str, str] = {}
        failures = 0
        while True:
            try:
                if not headers:
                    headers = (await self._connection.once("POST", "/files", form, headers=kind))[1]
                await self._connection.once("PUT", headers.get("Location", ""), body)
                break
            except FailedRequestError as failed:
                if failed.status in {302, 307} and not headers:
                    headers = failed.headers
                    continue
                failures += 1
                await self._connection.wait(failed, failures)
        file_id = self._id({"id": headers.get("X-Together-File-Id")})
        await self._connection.call("POST", f"/files/{file_id}/preprocess")
        return file_id

    async def wait_until_usable(self, file_id: str) -> None:
        """Wait until the provider has processed a file, where it does so after the upload. Raises its refusal."""
        if not self._profile.checks_files:
            return
        await self._connection.until_processed(f"/files/{file_id}", self._is_ready)

    def _is_ready(self, file: JsonObject) -> bool:
        word = state_word(file.get("status"))
        if word in _REFUSED:
            reason = file.get("status_details") or word
            text = f"{self._connection.endpoint.name} refused the file of a batch: {reason}."
            raise PromptmillError(Code.BAD_REQUEST, text)
        return word in _READY

    async def find(self, batch: PlannedBatch) -> str:
        """Return the id of the whole file that was uploaded for this batch; empty without one."""
        size = file_size(batch)
        for entry in await self._named(batch):
            if count(entry.get("bytes")) in {None, size}:
                if self._profile.upload == "presigned":  # perhaps the process ended before it could request this
                    await self._connection.call("POST", f"/files/{entry['id']}/preprocess")
                return str(entry["id"])
        return ""

    async def _named(self, batch: PlannedBatch) -> list[JsonDict]:
        """Return the files with the batch's name, whole or not; none where the endpoint lists no files."""
        name, found = file_name(batch), []
        purpose = {"purpose": self._profile.purpose}
        try:
            async for page in self._connection.pages("/files", "data", self._paging, purpose):
                found += [entry for entry in page if entry.get("filename") == name and "id" in entry]
                if is_older(page, batch):
                    break
        except PromptmillError as error:
            if error.code is not Code.NOT_FOUND:
                raise
        return found

    def lines(self, file_id: str) -> AsyncIterator[JsonDict]:
        """Yield the objects of a file, as `BatchConnection.lines`."""
        return self._connection.lines(f"/files/{file_id}/content")

    async def delete(self, batch: PlannedBatch, others: tuple[str, ...]) -> None:
        """Delete every file uploaded for the batch, and others. Files that are gone are fine."""
        known = {batch.file_id, *others} - {""}
        for file_id in known:
            await self._connection.delete(f"/files/{file_id}")
        for entry in await self._named(batch):
            if entry["id"] not in known:
                await self._connection.delete(f"/files/{entry['id']}")


def form_of(batch: PlannedBatch, fields: Mapping[str, str]) -> FileBody:
    """Return the form that uploads a batch's file, with more fields."""
    boundary = _boundary()
    before = _fields(fields, boundary) + (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name(batch)}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    end = f"\r\n--{boundary}--\r\n".encode()
    return FileBody(batch.file, file_size(batch), _FORM + boundary, before.encode(), end)


def _boundary() -> str:
    return f"promptmill-{secrets.token_hex(12)}"


def _fields(fields: Mapping[str, str], boundary: str) -> str:
    return "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )


def _after_last(payload: JsonObject, _: int) -> dict[str, str] | None:
    """Return the parameters of the page after this one, in OpenAI's way."""
    entries = payload.get("data") or payload.get("value") or [{}]
    last = payload.get("last_id") or entries[-1].get("id")
    return {"after": str(last)} if payload.get("has_more") and last else None


NEWEST_FIRST = Paging({"limit": 100, "order": "desc"}, _after_last)
"""OpenAI's way."""


def is_older(
    page: list[JsonDict], batch: PlannedBatch, field: str = "created_at", skew_s: float = CLOCK_SKEW_S
) -> bool:
    """Return whether all entries of a page were created before the batch was planned."""
    times = [unix_time(entry.get(field)) for entry in page]
    return bool(times) and all(time is not None and time < batch.planned - skew_s for time in times)
