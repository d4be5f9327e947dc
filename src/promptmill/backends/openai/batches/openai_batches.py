"""OpenAI's Batch API, which Azure, Groq, Doubleword and gateways have, too. `families` has APIs that differ from it.

Facts: developers.openai.com/api/reference/resources/batches, openai 3.54.0. Azure's records differ: states have
capitals, times are texts, counts may be null, and lists are in `value`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from typing_extensions import override

from promptmill.backends import batches
from promptmill.backends.openai.batches import reading
from promptmill.backends.openai.batches.connection import BatchConnection, Paging, Query
from promptmill.backends.openai.batches.profile import BatchProfile
from promptmill.backends.openai.route import FileBody
from promptmill.core.bounds import LARGEST_BODY
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict, JsonObject

LABEL = "promptmill"
"""The name of promptmill's key in a batch's metadata."""
_FORM = "multipart/form-data; boundary="
_READY = frozenset({"processed", "completed", "active", ""})
_REFUSED = frozenset({"error", "failed", "deleted"})


class RecordPaths(NamedTuple):
    """The paths of values in a batch's record, for `reading.at`. A path is empty if the record lacks the value."""

    id: str = "id"
    said: str = "status"
    done: str = "request_counts.completed"
    failed: str = "request_counts.failed"
    total: str = "request_counts.total"
    created: str = "created_at"
    expires: str = "expires_at"
    key: str = f"metadata.{LABEL}"
    """The path of promptmill's label."""
    file: str = "input_file_id"
    error: str = "errors.data.0|errors.0|error"
    results: tuple[str, ...] = ("output_file_id", "error_file_id")


class FilePlaces(NamedTuple):
    """The name of a page's field with the list of files, and the paths of values in a file's record."""

    files: str = "data"
    id: str = "id"
    name: str = "filename"
    size: str = "bytes"


def _after_last(payload: JsonObject, _: int) -> dict[str, str] | None:
    """Return the query parameters for the next page."""
    entries = payload.get("data") or payload.get("value") or [{}]
    last = payload.get("last_id") or entries[-1].get("id")
    return {"after": str(last)} if payload.get("has_more") and last else None


class Batches(batches.BatchApi):
    """The batches of one endpoint. A subclass for another family sets the constants and overrides methods."""

    PLACES, FILE_PLACES = RecordPaths(), FilePlaces()
    JOBS, FILES = "/batches", "/files"
    """The paths of batches and files. If `FILES` is empty, `create` sends the requests, and batches have no label."""
    FIELD = "data"
    """The name of a page's field with the list of batches."""
    PAGES = Paging({"limit": 100, "order": "desc"}, _after_last)
    ORDER: Query = MappingProxyType({})
    """Further query parameters for a list of batches."""
    SKEW_S = batches.CLOCK_SKEW_S
    CANCEL = "/cancel"
    LINE = b""
    """The format of a file's line, with placeholders for id and body. If it is empty, lines have OpenAI's format."""
    LARGEST = LARGEST_BODY
    QUOTA_IS_QUEUE = False
    """Whether the provider reports a full queue as an exceeded quota."""

    def __init__(
        self, connection: BatchConnection, profile: BatchProfile, limits: batches.BatchLimits, path: str
    ) -> None:
        """`path`: the path of the requests, such as `/v1/chat/completions`."""
        self._connection, self._profile, self.limits, self._path = connection, profile, limits, path
        self._name = connection.endpoint.name
        named = b'"method":"POST","url":"%b",' % path.encode() if profile.names_path else b""
        self._line = self.LINE or b'{"custom_id":"%%b",%b"body":%%b}\n' % named

    @override
    def line(self, custom_id: str, body: bytes) -> bytes:
        return self._line % (custom_id.encode(), body)

    @override
    async def check(self) -> None:
        for path in filter(None, (self.FILES, self.JOBS)):
            await self._check_path(path)

    async def _check_path(self, path: str) -> None:
        """Raise `unsupported` if the endpoint does not have this path."""
        try:
            await self._connection.call("GET", path, query={next(iter(self.PAGES.first)): 1})
        except PromptmillError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            place = f"{self._name} has no {urlsplit(self._connection.url(path)).path}"
            raise PromptmillError(
                Code.UNSUPPORTED, f"{place}, so it runs no batches.", "Leave out `batch`, or use another endpoint."
            ) from None

    # files

    @override
    async def upload(self, batch: batches.PlannedBatch) -> str:
        if not self.FILES:
            return ""
        # if the response is lost, the upload is repeated only if the file is missing
        return await self._connection.repeated(lambda: self._upload(batch), lambda: self.find_file(batch))

    async def _upload(self, batch: batches.PlannedBatch) -> str:
        """Upload the file once; return its id. Raises `FailedRequestError`."""
        form = form_of(batch, {"purpose": self._profile.purpose})
        return self._id_in((await self._connection.once("POST", self.FILES, form))[0])

    def _id_in(self, file: object) -> str:
        file_id = reading.at(file, self.FILE_PLACES.id)
        if not isinstance(file_id, str):
            raise PromptmillError(Code.BAD_RESPONSE, f"{self._name} sent no id for a file.")
        return file_id

    def _place_of_file(self, file_id: str) -> str:
        return f"{self.FILES}/{file_id}"

    @override
    async def find_file(self, batch: batches.PlannedBatch) -> str:
        if not self.FILES:
            return ""
        size = reading.file_size(batch)
        whole = (
            self._id_in(file)
            for file in await self._named(batch)
            if reading.count(file.get(self.FILE_PLACES.size)) in {None, size}
        )
        return next(whole, "")

    async def _named(self, batch: batches.PlannedBatch) -> list[JsonDict]:
        """Return the files with the batch's name, including incomplete files; `[]` if the endpoint lists no files."""
        name, places, files = reading.file_name(batch), self.FILE_PLACES, list[JsonDict]()
        purpose = {"purpose": self._profile.purpose} if self._profile.purpose else {}
        try:
            async for page in self._connection.pages(self.FILES, places.files, self.PAGES, purpose):
                files += [file for file in page if file.get(places.name) == name and file.get(places.id)]
                if self._is_older(page, batch, "created_at"):
                    break
        except PromptmillError as error:
            if error.code is not Code.NOT_FOUND:
                raise
        return files

    def _is_older(self, page: list[JsonDict], batch: batches.PlannedBatch, field: str) -> bool:
        """Return whether all entries of a page were created before the batch was planned."""
        times = [reading.unix_time(reading.at(entry, field)) for entry in page]
        return bool(times) and all(time is not None and time < batch.planned - self.SKEW_S for time in times)

    def _is_usable(self, file: JsonObject) -> bool:
        """Return whether the provider has processed a file. Raises the provider's refusal."""
        word = reading.state_word(reading.at(file, "status|state"))
        if word in _REFUSED:
            reason = reading.at(file, "error.message|status_details") or word
            raise PromptmillError(Code.BAD_REQUEST, f"{self._name} refused the file of a batch: {reason}.")
        return word in _READY

    @override
    async def delete(self, batch: batches.PlannedBatch, state: batches.BatchState | None) -> None:
        if self.FILES:
            await self._delete_files({batch.file_id, *(state.results if state else ())} - {""}, batch)
        elif state is not None:
            await self._connection.delete(self._place(state.id))

    async def _delete_files(self, known: Collection[str], batch: batches.PlannedBatch) -> None:
        """Delete the known files and all files with the batch's name. Missing files are ignored."""
        for file_id in known:
            await self._connection.delete(self._place_of_file(file_id))
        for file in await self._named(batch):
            if (file_id := self._id_in(file)) not in known:
                await self._connection.delete(self._place_of_file(file_id))

    # batches

    @override
    async def create(self, batch: batches.PlannedBatch) -> batches.BatchState:
        if self._profile.checks_files:
            await self._connection.until_processed(self._place_of_file(batch.file_id), self._is_usable)
        path, body = self._order(batch)
        state = self._read(await self._connection.create(path, body, quota_is_queue=self.QUOTA_IS_QUEUE))
        if not state.id:
            raise batches.BatchUnclearError(Code.BAD_RESPONSE, f"{self._name} sent no id for a batch.", "")
        return state

    def _order(self, batch: batches.PlannedBatch) -> tuple[str, FileBody | JsonObject]:
        """Return the path and the body of the request that creates a batch."""
        body: JsonDict = {
            "input_file_id": batch.file_id,
            "endpoint": self._path,
            "completion_window": f"{self.limits.window_s // 3600:.0f}h",
        }
        return self.JOBS, body | ({"metadata": {LABEL: batch.key}} if self._profile.label == "metadata" else {})

    def _place(self, batch_id: str) -> str:
        return f"{self.JOBS}/{batch_id}"

    @override
    async def find(self, batch: batches.PlannedBatch, known: Collection[str] = ()) -> batches.BatchState | None:
        pages = self._connection.pages(self.JOBS, self.FIELD, self.PAGES, self.ORDER)
        if not self.FILES:
            return await reading.only_match(pages, self._read, batch, known)
        async for page in pages:
            for job in page:
                state = self._read(job)
                is_ours = state.key == batch.key or (
                    batch.file_id and reading.at(job, self.PLACES.file) == batch.file_id
                )
                if is_ours and state.id not in known:
                    return state
            if self._is_older(page, batch, self.PLACES.created):
                return None
        return None

    @override
    async def state(self, batch_id: str) -> batches.BatchState:
        return self._read(await self._connection.call("GET", self._place(batch_id), largest=self.LARGEST))

    @override
    async def cancel(self, batch_id: str) -> batches.BatchState:
        if not self._profile.can_cancel:
            text = f"{self._name} cannot cancel batch {batch_id}; it ends by itself within a day."
            raise PromptmillError(Code.UNSUPPORTED, text, "")
        await self._connection.cancel(self._place(batch_id) + self.CANCEL)
        return await self.state(batch_id)

    @override
    async def replies(self, state: batches.BatchState) -> AsyncIterator[batches.Reply | None]:
        gone = False  # missing results are an error, which is raised after the other results have been read
        for name in state.results:
            try:
                async for line in self._results(name):
                    yield self._reply(line)
            except PromptmillError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
                gone = True
        if gone:
            text = f"{self._name} no longer has all results of batch {state.id}."
            raise PromptmillError(Code.NOT_FOUND, text, "Providers delete them after days or weeks.")

    def _results(self, name: str) -> AsyncIterator[JsonDict]:
        """Yield the results under `name`, one of `BatchState.results`; `{}` for a result that is not an object."""
        return self._connection.lines(f"{self._place_of_file(name)}/content")

    def _reply(self, line: JsonObject) -> batches.Reply | None:
        """Return the reply in a result line; None if the line is damaged."""
        return reading.reply_of(line)

    def _read(self, job: Any) -> batches.BatchState:
        """Return the state in a batch's record."""
        places, said = self.PLACES, reading.state_word(reading.at(job, self.PLACES.said))
        error, failed = {"error": reading.at(job, places.error) or {}}, said == "failed"
        created = reading.unix_time(reading.at(job, places.created))
        after_window = None if created is None else created + self.limits.window_s
        return batches.BatchState(
            id=str(reading.at(job, places.id) or ""),
            is_ended=reading.is_ended(said),
            said=said,
            done=reading.count(reading.at(job, places.done)),
            failed=reading.count(reading.at(job, places.failed)),
            total=reading.count(reading.at(job, places.total)),
            created=created,
            expires=reading.unix_time(reading.at(job, places.expires)) if places.expires else after_window,
            key=str(reading.at(job, places.key) or ""),
            results=tuple(str(name) for place in places.results if (name := reading.at(job, place))),
            problem=reading.batch_problem(error, self._connection.endpoint) if failed else None,
            is_full=failed and reading.is_full(error),
        )


def form_of(batch: batches.PlannedBatch, fields: Mapping[str, str]) -> FileBody:
    """Return the multipart form that uploads a batch's file together with `fields`."""
    boundary = boundary_of_form()
    before = form_fields(fields, boundary) + (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{reading.file_name(batch)}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    end = f"\r\n--{boundary}--\r\n".encode()
    return FileBody(batch.file, reading.file_size(batch), _FORM + boundary, before.encode(), end)


def boundary_of_form() -> str:
    """Return a boundary text that no file contains."""
    return f"promptmill-{secrets.token_hex(12)}"


def form_fields(fields: Mapping[str, str], boundary: str) -> str:
    """Return `fields` as the parts of a multipart form."""
    return "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
