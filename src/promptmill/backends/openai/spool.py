"""Payloads in a file that worker processes map into memory, instead of copies in every process."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import orjson

from promptmill.backends.protocol import Request, Source
from promptmill.backends.rows import RowReader
from promptmill.core.errors import Code, PromptmillError
from promptmill.images.load import HeldImage, encoded

Refuse: TypeAlias = Callable[[Request], Awaitable[None]]


_ENCODED_AT_ONCE = 64


class Ref(NamedTuple):
    """Where one payload lies: `key` is the caller's, `offset` and `length` are bytes in the file."""

    key: int
    offset: int
    length: int
    attempts: int = 0


@runtime_checkable
class MappedSource(Protocol):
    """A source whose payloads lie in a file, one row each, which workers read by themselves as `reading` says."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def reading(self) -> RowReader:
        """How its lines become requests."""
        ...

    @property
    def held(self) -> str:
        """The prefix of the names of images stored in the file itself; `""` for none."""
        ...

    async def take_refs(self, n: int) -> list[tuple[int, int, int]]:
        """Return `(key, offset, length)` of up to `n` rows, `[]` at the end and from then on."""
        ...

    def attempts(self, key: int) -> int:
        """Return how often the row was sent by earlier runs."""
        ...


class Refs:
    """The references of a mapped source as tasks."""

    def __init__(self, source: MappedSource) -> None:
        self._source = source

    async def take(self, n: int) -> list[Ref]:
        """Return up to `n` references."""
        return [Ref(*row, self._source.attempts(row[0])) for row in await self._source.take_refs(n)]


class Spool:
    """A source in memory as a mapped one: what is taken is written to a private file first.

    Requests whose sampling or extra parameters are not those of the first, as all of one call have them, bring theirs.
    """

    def __init__(self, source: Source, first: list[Request], refuse: Refuse) -> None:
        """`first` is what was taken already; `refuse` takes what cannot be written.

        Raises `PromptmillError` (`storage`), as taking does.
        """
        try:
            handle, name = tempfile.mkstemp(prefix="promptmill-", suffix=".spool")  # readable by us alone
        except OSError as error:
            raise _no_room(error) from None
        self._file = os.fdopen(handle, "wb", buffering=1 << 20)
        self.path = _unnamed(Path(name), handle)
        if first:
            self.reading = RowReader("messages", first[0].sampling, first[0].extra, keep_raw=source.keep_raw)
        else:
            self.reading = RowReader("messages", keep_raw=source.keep_raw)
        self._source = source
        self._first = first
        self._refuse = refuse
        self._end = 0
        self._before: dict[int, int] = {}
        self.held = f"spool-{secrets.token_hex(8)}:"
        """The prefix of the names of images stored in the file itself; offset and length follow."""
        self._stored: dict[str, str] = {}

    async def take_refs(self, n: int) -> list[tuple[int, int, int]]:
        """Take up to `n` requests and write them."""
        while requests := self._first or await self._source.take(n):
            self._first = []
            try:
                await self._store_images(requests)
                refs = [ref for request in requests if (ref := await self._write(request)) is not None]
                self._file.flush()
            except OSError as error:
                raise _no_room(error) from None
            if refs:
                return refs
        return []

    async def _store_images(self, requests: list[Request]) -> None:
        """Write the images in memory that are not in the file yet, encoded by several threads."""
        images = {image.source: image.source for request in requests for image in request.conversation.images}
        held = [source for source in images if isinstance(source, HeldImage) and source not in self._stored]
        for start in range(0, len(held), _ENCODED_AT_ONCE):
            some = held[start : start + _ENCODED_AT_ONCE]
            files = await asyncio.gather(*(asyncio.to_thread(_encoded, source) for source in some))
            for source, data in zip(some, files, strict=True):
                self._file.write(data)
                self._stored[source] = f"{self.held}{self._end}:{len(data)}"
                self._end += len(data)

    async def _write(self, request: Request) -> tuple[int, int, int] | None:
        conversation = request.conversation.with_sources(lambda source: self._stored.get(source, source))
        value: dict[str, Any] = {"messages": conversation.as_messages()}
        if request.path:
            value = {"path": request.path, "extra": dict(request.extra)}
        elif request.sampling is not self.reading.sampling or request.extra is not self.reading.extra:
            value |= {"sampling": request.sampling.given(), "extra": dict(request.extra)}
        try:
            row = orjson.dumps(value) + b"\n"
        except TypeError:
            await self._refuse(request)
            return None
        self._file.write(row)
        offset, self._end = self._end, self._end + len(row)
        if request.attempts:
            self._before[request.key] = request.attempts
        return request.key, offset, len(row)

    def attempts(self, key: int) -> int:
        """Return how often a request was sent by earlier runs; to be asked once."""
        return self._before.pop(key, 0)

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # what is not on a full disk yet
            self._file.close()
        if self.path.suffix:
            with contextlib.suppress(PermissionError):  # Windows, while a worker that is just ending still maps it
                self.path.unlink(missing_ok=True)


def _encoded(image: HeldImage) -> bytes:
    try:
        return encoded(image.image)
    except Exception:  # noqa: BLE001 (Pillow's encoders raise nearly anything; the worker says what is not an image)
        return b"?"


def _no_room(error: OSError) -> PromptmillError:
    return PromptmillError(
        Code.STORAGE,
        f"The prompts of so large a call cannot be written into a temporary file: {error.strerror or error}.",
        "Free space there, or name a folder on another disk in TMPDIR.",
    )


def _unnamed(path: Path, descriptor: int) -> Path:
    """Unlink the file and reach it through /proc (Linux): it is gone when this process ends, even if it is killed.

    Linux alone has such a place; the workers, of the same user, open it there.
    """
    without_name = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    if not sys.platform.startswith("linux") or not without_name.exists():
        return path
    path.unlink()
    return without_name


class MappedFile:
    """A growing file, read through a memory map: pages are shared with every other process that maps it."""

    def __init__(self, path: Path) -> None:
        """Open the file; it may be removed afterwards."""
        self._file = path.open("rb")
        self._map: mmap.mmap | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, mapping what was written since."""
        if self._map is None or offset + length > len(self._map):
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map[offset : offset + length]

    def close(self) -> None:
        """Unmap and close."""
        if self._map is not None:
            self._map.close()
        self._file.close()
