"""The files of `/v1/files`: bytes in a folder, one file each, and their objects in the `ObjectStore`.

A file belongs to the token that uploaded it; other tokens do not learn that it exists. It is `processed` at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

import orjson
from pydantic import BaseModel
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from promptmill.core.bounds import LARGEST_UPLOAD, LARGEST_UPLOADS, LONGEST_FIELD, MOST_UPLOADS
from promptmill.core.values import JsonDict
from promptmill.jobs import disk
from promptmill.openai_server.api_errors import ApiError
from promptmill.openai_server.object_store import Listing, ObjectStore, Stored

PURPOSES = frozenset({"assistants", "batch", "fine-tune", "vision", "user_data", "evals"})
OUTPUT = "batch_output"
_SHORTEST_S, _LONGEST_S = 3600, 2_592_000
BATCH_S = _LONGEST_S
"""The time after which files of batches are deleted unless a client sets another one: 30 days, as at OpenAI."""
_PARTIAL = ".partial"
_UNTOUCHED_S = 3600.0  # longer than any upload is silent


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
        """Return the object for a reply."""
        return self.model_dump(exclude_none=True)

    def stored(self, owner: str) -> Stored:
        """Return the object for the store."""
        body = orjson.dumps(self.shown())
        return Stored(self.id, "file", owner, self.purpose, self.bytes, self.expires_at, False, "", body)


class StoredFiles:
    """The files of all tokens."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self.store, self._clock = store, clock
        self._coming = Counter[str]()
        """The uploads of each owner that have not ended."""
        self.folder = store.folder / "files"
        disk.make_private_folder(self.folder)

    def now(self) -> int:
        """Return the time in seconds."""
        return int(self._clock())

    def path(self, identity: str) -> Path:
        """Return the place of the bytes of a file with this id of ours."""
        return self.folder / identity

    async def upload(self, content_type: str, body: AsyncIterator[bytes], owner: str) -> FileObject:
        """Store the file in the body of a request, which comes in pieces. Raises `ApiError`."""
        count, size = await asyncio.to_thread(self.store.amount, "file", owner)
        coming = self._coming[owner]  # they all may become as large as a file can be
        if count + coming >= MOST_UPLOADS or size + coming * LARGEST_UPLOAD >= LARGEST_UPLOADS:
            limit = f"{MOST_UPLOADS:,} files and {LARGEST_UPLOADS >> 30} GiB, uploads that have not ended included"
            raise ApiError(400, f"A token may store {limit}; delete some files.", "file", "too_many_files")
        with self._arriving(owner), self.partial() as (partial, out):
            form = _Form(content_type, out)
            async for chunk in body:
                await asyncio.to_thread(form.take, chunk)
            expires = form.expires_s(BATCH_S if form.purpose == "batch" else None)
            form.check()
            created = self.now()
            return await asyncio.to_thread(
                self.keep,
                partial,
                FileObject(
                    id=f"file-{secrets.token_hex(12)}",
                    bytes=form.size,
                    created_at=created,
                    expires_at=None if expires is None else created + expires,
                    filename=form.filename,
                    purpose=form.purpose,
                ),
                owner,
            )

    @contextlib.contextmanager
    def _arriving(self, owner: str) -> Iterator[None]:
        self._coming[owner] += 1
        try:
            yield
        finally:
            self._coming -= Counter([owner])  # without entries of zero

    @contextlib.contextmanager
    def partial(self) -> Iterator[tuple[Path, IO[bytes]]]:
        """Yield a new file, which is removed after the block unless `keep` has given it its name."""
        path = self.folder / f"{secrets.token_hex(12)}{_PARTIAL}"
        try:
            with os.fdopen(disk.created(path), "wb") as out:
                yield path, out
        finally:
            path.unlink(missing_ok=True)

    def keep(self, partial: Path, file: FileObject, owner: str) -> FileObject:
        """Give a written file its name, and store its object. Blocks."""
        self.rename(partial, file)
        self.store.put(file.stored(owner))
        return file

    def rename(self, partial: Path, file: FileObject) -> None:
        """Give a written file its name, also if it has one from an attempt that was killed. Blocks."""
        disk.sync_path(partial)
        disk.replace(partial, self.path(file.id))
        disk.sync_folder(self.folder)

    def find(self, identity: str, owner: str, param: str | None = None) -> FileObject:
        """Return an owner's file. Blocks. Raises `ApiError` 404; `param` is the field that names the file."""
        found = self.store.get("file", identity, owner)
        if found is None or (found.expires is not None and found.expires <= self.now()):
            raise ApiError(404, f"No such File object: {identity[:60]}", param or "id", "not_found")
        return FileObject.model_validate_json(found.body)

    def page(self, owner: str, listing: Listing) -> JsonDict:
        """Return the listed files. Blocks."""
        return listed(self.store.page("file", owner, listing, self.now()), listing.limit)

    def delete(self, identity: str, owner: str) -> JsonDict:
        """Delete a file. Blocks. Raises `ApiError` 404."""
        self._remove(self.find(identity, owner).id)
        return {"id": identity, "object": "file", "deleted": True}

    def prune(self) -> None:
        """Delete the files that have expired, and what killed uploads have left. Blocks."""
        for found in self.store.expired(self.now()):
            self._remove(found.id)
        for path in self.folder.glob(f"*{_PARTIAL}"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _UNTOUCHED_S:
                    path.unlink()

    def _remove(self, identity: str) -> None:
        self.store.remove(identity)  # first: a file without an object is garbage, an object without a file an error
        self.path(identity).unlink(missing_ok=True)


def listed(found: list[Stored], limit: int) -> JsonDict:
    """Return a page of objects, of which there may be one too many."""
    data = [orjson.loads(each.body) for each in found[:limit]]
    ids = [each["id"] for each in data] or [None]
    return {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": len(found) > limit}


def lifetime_s(given: Mapping[str, object], param: str, default: int | None) -> int | None:
    """Return the seconds of an `expires_after`; `default` if it is empty. Raises `ApiError` 400."""
    if not given:
        return default
    anchor, seconds = given.get("anchor"), str(given.get("seconds"))
    if anchor != "created_at":
        raise ApiError(400, f"{param}.anchor must be `created_at`.", f"{param}.anchor")
    is_number = seconds.isascii() and seconds.isdigit() and len(seconds) < 9
    if not (is_number and _SHORTEST_S <= int(seconds) <= _LONGEST_S):
        raise ApiError(400, f"{param}.seconds must be from {_SHORTEST_S} to {_LONGEST_S}.", f"{param}.seconds")
    return int(seconds)


class _Form:
    """Reads a multipart body piece by piece: the part `file` goes to the disk, the other parts are short."""

    def __init__(self, content_type: str, out: IO[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise ApiError(400, "Send the file as multipart/form-data.", None)
        self.filename, self.size = "", 0
        self._out, self._fields = out, dict[str, bytearray]()
        self._name, self._header, self._disposition = "", b"", b""
        self._has_file, self._is_whole, self._taken = False, False, 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_name,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_data,
                "on_part_data": self._add_data,
                "on_end": self._end,
            },
        )
        self._value = b""

    @property
    def purpose(self) -> str:
        """The field `purpose`."""
        return self._text("purpose")

    def take(self, chunk: bytes) -> None:
        """Read a piece of the body. Blocks. Raises `ApiError`."""
        self._taken += len(chunk)
        if self._taken > LARGEST_UPLOAD + LONGEST_FIELD:  # boundaries and short parts
            raise ApiError(413, f"A file has at most {LARGEST_UPLOAD >> 20} MiB.", "file", "request_too_large")
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            raise ApiError(400, "The body is not valid multipart/form-data.", None) from None

    def check(self) -> None:
        """Raise `ApiError` unless the body is whole."""
        if not self._is_whole:
            raise ApiError(400, "The body is not valid multipart/form-data.", None)
        if not self._has_file:
            raise ApiError(400, "The part `file` is missing.", "file")
        if self.purpose not in PURPOSES:
            raise ApiError(400, f"purpose must be one of {', '.join(sorted(PURPOSES))}.", "purpose")
        self._out.flush()

    def expires_s(self, default: int | None) -> int | None:
        """Return the seconds after which the file expires. Raises `ApiError` 400."""
        given = {
            name: text
            for name in ("anchor", "seconds")
            # Azure's clients send a dot
            if (text := self._text(f"expires_after[{name}]") or self._text(f"expires_after.{name}"))
        }
        return lifetime_s(given, "expires_after", default)

    def _text(self, name: str) -> str:
        return bytes(self._fields.get(name, b"")).decode("utf-8", "replace")

    def _begin_part(self) -> None:
        self._name = ""
        self._disposition = b""

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self._has_file:
                raise ApiError(400, "Send one part `file`.", "file")
            self._has_file = True
            self.filename = options.get(b"filename", b"upload").decode("utf-8", "replace")[-255:]
        else:
            self._fields[self._name] = bytearray()
            self._check_length()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._out.write(memoryview(data)[start:end])
            self.size += end - start
            return
        self._fields[self._name] += data[start:end]
        self._check_length()

    def _check_length(self) -> None:
        if sum(map(len, self._fields.values())) + sum(map(len, self._fields)) > LONGEST_FIELD:
            raise ApiError(413, "The fields next to the file are too long.", None, "request_too_large")

    def _end(self) -> None:
        self._is_whole = True
