"""The files of `/v1/files`: their contents in a folder, and their objects in the `ObjectStore`.

A file belongs to the token that uploaded it, and is hidden from other tokens. Its status is always `processed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from promptmill.core.bounds import LARGEST_UPLOAD, LARGEST_UPLOADS, LONGEST_FIELD, MOST_FORM_FIELDS, MOST_UPLOADS
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.object_store import Listing, ObjectStore, StoredObject
from promptmill.files import disk
from promptmill.jobs.ingest import CALL_DISK_SHARE

PURPOSES = frozenset({"assistants", "batch", "fine-tune", "vision", "user_data", "evals"})
OUTPUT = "batch_output"
_PARTIAL = ".partial"
_UNTOUCHED_S = 3600.0  # longer than any file takes to be written
_AT_ONCE = 4  # max concurrent uploads per token
_SILENCE_S = 60.0  # max seconds without data: longer than a short network outage
_CHARSET = re.compile(r";\s*charset=[^;]*", re.IGNORECASE)
"""The charset in the header is removed: forms are UTF-8 (RFC 7578), but Starlette would use the named codec."""
Model = TypeVar("Model", bound=BaseModel)


class Expiry(BaseModel):
    """The time after which a file is deleted."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


MONTH = Expiry(anchor="created_at", seconds=2_592_000)
"""The expiry of batch files unless the client sets one; it is OpenAI's default."""


class FileObject(BaseModel):
    """A file as clients see it (platform.openai.com/docs/api-reference/files/object)."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"

    def shown(self) -> JsonDict:
        """Return the object as a reply shows it."""
        return self.model_dump(exclude_none=True)

    def stored(self, owner: str) -> StoredObject:
        """Return the object as the store keeps it."""
        body = orjson.dumps(self.shown())
        return StoredObject(self.id, "file", owner, self.purpose, self.bytes, self.expires_at, False, "", body)


class StoredFiles:
    """The files of all tokens."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self.store, self._clock = store, clock
        self._arriving = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(_AT_ONCE))
        self.folder = store.folder / "files"
        disk.make_private_folder(self.folder)

    def now(self) -> int:
        """Return the time in seconds."""
        return int(self._clock())

    def path(self, identity: str) -> Path:
        """Return the path of the content of the file with this id."""
        return self.folder / identity

    async def upload(self, content_type: str, body: AsyncGenerator[bytes], owner: str) -> FileObject:
        """Store the file from a form that arrives in pieces. An owner's fifth concurrent upload waits.

        Raises `ApiError`; `PromptmillError` (`storage`) if the file needs more than its share of the disk.
        """
        async with self._arriving[owner]:
            await asyncio.to_thread(self.check_room, owner)
            form = await _form(content_type, body)
            try:
                return await asyncio.to_thread(self._store_part, form, owner)
            finally:
                await form.close()

    def check_room(self, owner: str) -> None:
        """Check that an owner may store another file. Blocks. Raises `ApiError`."""
        count, size = self.store.amount("file", owner)
        if count >= MOST_UPLOADS or size >= LARGEST_UPLOADS:
            limit = f"{MOST_UPLOADS:,} files and {LARGEST_UPLOADS >> 30} GiB"
            raise ApiError(400, f"A token may store {limit}; delete some files.", "file", "too_many_files")

    def _store_part(self, form: FormData, owner: str) -> FileObject:
        part, purpose = form.get("file"), form.get("purpose")
        if not isinstance(part, UploadFile):
            raise ApiError(400, "The part `file` is missing.", "file")
        if purpose not in PURPOSES:
            raise ApiError(400, f"purpose must be one of {', '.join(sorted(PURPOSES))}.", "purpose")
        # Azure's clients send `expires_after.anchor` in place of `expires_after[anchor]`.
        given = {
            name: form.get(f"expires_after[{name}]") or form.get(f"expires_after.{name}")
            for name in Expiry.model_fields
        }
        expiry = checked(Expiry, given, "expires_after") if any(given.values()) else None
        if purpose == "batch":
            expiry = expiry or MONTH
        created = self.now()
        file = FileObject(
            id=f"file-{secrets.token_hex(12)}",
            bytes=part.size or 0,
            created_at=created,
            expires_at=None if expiry is None else created + expiry.seconds,
            filename=(part.filename or "upload")[-255:],
            purpose=str(purpose),
        )
        check_disk(self.folder, file.bytes)
        with self.partial() as (path, out):
            shutil.copyfileobj(part.file, out)
            out.close()
            self.rename(path, file)
        self.store.put(file.stored(owner))
        return file

    @contextlib.contextmanager
    def partial(self) -> Iterator[tuple[Path, IO[bytes]]]:
        """Yield a new temporary file. It is removed after the `with` block, unless `rename` was called."""
        path = self.folder / f"{secrets.token_hex(12)}{_PARTIAL}"
        try:
            with os.fdopen(disk.created(path), "wb") as out:
                yield path, out
        finally:
            path.unlink(missing_ok=True)

    def rename(self, partial: Path, file: FileObject) -> None:
        """Rename a written file to its final name, replacing a file of a killed attempt. Blocks."""
        disk.sync_path(partial)
        disk.replace(partial, self.path(file.id))
        disk.sync_folder(self.folder)

    def find(self, identity: str, owner: str, param: str | None = None) -> FileObject:
        """Return an owner's file. Blocks. Raises `ApiError` 404. `param`: the field that names the file."""
        found = self.store.get("file", identity, owner)
        if found is None or (found.expires is not None and found.expires <= self.now()):
            raise ApiError(404, f"No such File object: {identity[:60]}", param or "id", "not_found")
        return FileObject.model_validate_json(found.body)

    def page(self, owner: str, listing: Listing) -> JsonDict:
        """Return the listed files. Blocks."""
        found = self.store.page("file", owner, listing, self.now())
        return listed([orjson.loads(each.body) for each in found], listing.limit)

    def delete(self, identity: str, owner: str) -> JsonDict:
        """Delete a file. Blocks. Raises `ApiError` 404."""
        self._remove(self.find(identity, owner).id)
        return {"id": identity, "object": "file", "deleted": True}

    def prune(self) -> None:
        """Delete expired files, and contents without an object. Blocks."""
        for found in self.store.expired(self.now()):
            self._remove(found.id)
        known = self.store.ids("file")
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # already removed, or open on Windows
                if path.name not in known and path.stat().st_mtime < time.time() - _UNTOUCHED_S:
                    path.unlink()

    def _remove(self, identity: str) -> None:
        self.store.remove(identity)  # removed before the content, because only content without an object is pruned
        with contextlib.suppress(OSError):
            self.path(identity).unlink()


def check_disk(folder: Path, size: int, written: int = 0) -> None:
    """Apply to a client's file the disk limit of a call's rows. `written`: the file's bytes that are in `folder`.

    Blocks. Raises `PromptmillError` (`storage`).
    """
    if size > CALL_DISK_SHARE * (shutil.disk_usage(folder).free + written):
        problem = f"The file takes more than {CALL_DISK_SHARE:.0%} of the free disk space at the server."
        raise PromptmillError(Code.STORAGE, problem, "Delete files that are not needed, or split this one.")


def listed(found: Sequence[JsonDict], limit: int) -> JsonDict:
    """Return a page of at most `limit` objects; one more object in `found` shows that there is a next page."""
    data = found[:limit]
    ids = [each["id"] for each in data] or [None]
    return {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": len(found) > limit}


def checked(model: type[Model], value: Any, field: str = "") -> Model:
    """Validate a value from a client as `model`. `field`: the value's name. Raises `ApiError` 400."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(filter(None, [field, *map(str, first["loc"][:2])]))[:60]
        raise ApiError(400, f"{param or 'The body'}: {first['msg']}.", param or None) from None


async def _form(content_type: str, body: AsyncGenerator[bytes]) -> FormData:
    """Return the parts of a form; its file is stored temporarily. Raises `ApiError` and `PromptmillError`."""

    async def limited() -> AsyncGenerator[bytes]:
        size, folder = 0, Path(tempfile.gettempdir())
        while chunk := await _next(body):
            if (size := size + len(chunk)) > LARGEST_UPLOAD + LONGEST_FIELD:  # room for boundaries and short parts
                raise ApiError(413, f"A file has at most {LARGEST_UPLOAD >> 20} MiB.", "file", "request_too_large")
            check_disk(folder, size, written=size)
            yield chunk

    if not content_type.startswith("multipart/form-data"):
        raise ApiError(400, "Send the file as multipart/form-data.", None)
    try:
        headers = Headers({"content-type": _CHARSET.sub("", content_type)})
        return await MultiPartParser(
            headers, limited(), max_files=1, max_fields=MOST_FORM_FIELDS, max_part_size=LONGEST_FIELD
        ).parse()
    except MultiPartException as error:
        raise ApiError(400, error.message, "file") from None


async def _next(body: AsyncGenerator[bytes]) -> bytes:
    """Return the next piece, `b""` at the end. Raises `ApiError` 408 after a long silence."""
    try:
        return await asyncio.wait_for(anext(body, b""), _SILENCE_S)
    except TimeoutError:
        raise ApiError(408, f"No bytes came for {_SILENCE_S:.0f} s.", "file", "request_timeout") from None
