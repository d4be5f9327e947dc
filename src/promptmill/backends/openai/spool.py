"""Payloads in a file that worker processes map into memory, instead of copies in every process."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from promptmill.backends.protocol import Request
from promptmill.core.conversation import check_encodable
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.images.load import HeldImage, encoded

_KEPT_SETTINGS = 1024


class Ref(NamedTuple):
    """The place of a payload, in bytes: in the call's input file, or in the spool together with its settings."""

    offset: int
    length: int
    settings_offset: int = 0
    settings_length: int = 0
    """0: it is a row of the input file."""


class Spool:
    """A private file of requests that stand in no input file, for worker processes to read.

    Each distinct pair of sampling and extra parameters is written once, as nearly all requests of a call share theirs.
    """

    def __init__(self) -> None:
        """Raises `PromptmillError` (`storage`)."""
        try:
            handle, name = tempfile.mkstemp(prefix="promptmill-", suffix=".spool")  # readable by us alone
        except OSError as error:
            raise _no_room(error) from None
        self._file = os.fdopen(handle, "wb", buffering=1 << 20)
        self.path = _unnamed(Path(name), handle)
        self._end = 0
        self.held = f"spool-{secrets.token_hex(8)}:"
        """The prefix of the names of images stored in the file itself; offset and length follow."""
        self._stored: dict[str, str] = {}
        self._settings: dict[tuple[int, int], tuple[object, object, int, int]] = {}

    async def write(self, request: Request) -> Ref:
        """Write a request and its images that are in memory. Raises `PromptmillError` (`storage`, `invalid_input`)."""
        try:
            for image in request.conversation.images:
                if isinstance(image.source, HeldImage) and image.source not in self._stored:
                    data = await asyncio.to_thread(_encoded, image.source)
                    self._stored[image.source] = f"{self.held}{self._append(data)}:{len(data)}"
            row, settings = self._packed(request)
            offset = self._append(row)
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from None
        return Ref(offset, len(row), *settings)

    def _packed(self, request: Request) -> tuple[bytes, tuple[int, int]]:
        conversation = request.conversation.with_sources(lambda source: self._stored.get(source, source))
        value: dict[str, Any] = {"messages": conversation.as_messages()}
        if request.path:
            value = {"path": request.path, "extra": dict(request.extra)}
        try:
            return orjson.dumps(value), self._settings_of(request)
        except TypeError:
            check_encodable(request.conversation)
            raise input_error("The request holds a value that JSON cannot carry, or is nested too deeply.") from None

    def _settings_of(self, request: Request) -> tuple[int, int]:
        sampling, extra = request.sampling, request.extra
        found = self._settings.get((id(sampling), id(extra)))
        if found is None:
            if len(self._settings) >= _KEPT_SETTINGS:  # rows that each bring their own
                self._settings.clear()
            data = orjson.dumps({"sampling": sampling.given(), "extra": {} if request.path else dict(extra)})
            # with the objects themselves: a number like theirs is not to be taken for them once they are gone
            found = self._settings[id(sampling), id(extra)] = sampling, extra, self._append(data), len(data)
        return found[2:]

    def _append(self, data: bytes) -> int:
        self._file.write(data)
        offset, self._end = self._end, self._end + len(data)
        return offset

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
