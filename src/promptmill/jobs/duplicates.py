"""`--dedupe`: rows at temperature 0 that ask the same are sent once. What was asked lies on disk: memory stays flat."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import orjson

from promptmill.backends.protocol import Request
from promptmill.jobs.source import FileSource

# The table is thrown away with the run, so nothing about it needs to be safe.
_SETTINGS = ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-4096")


class Asked:
    """Which row asked what first."""

    def __init__(self, path: Path) -> None:
        """Begin with nothing, in a file of its own at `path`."""
        path.unlink(missing_ok=True)
        self._path = path
        self._table = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for setting in _SETTINGS:
            self._table.execute(setting)
        self._table.execute("CREATE TABLE asked (digest BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID")

    def first(self, request: Request) -> int:
        """Return the row that asked this first, which may be the request's own."""
        temperature = request.sampling.temperature  # which counts before one in the extra parameters
        if (request.extra.get("temperature") if temperature is None else temperature) != 0:
            return request.key
        try:
            asked = [request.conversation.as_messages(), request.sampling.given(), dict(request.extra)]
            text = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
        except TypeError:
            return request.key  # its own attempt says what is wrong
        digest = hashlib.blake2b(text, digest_size=16).digest()
        self._table.execute("INSERT OR IGNORE INTO asked VALUES (?, ?)", (digest, request.key))
        (row,) = self._table.execute("SELECT row FROM asked WHERE digest = ?", (digest,)).fetchone()
        return int(row)

    def close(self) -> None:
        """Close and remove the table."""
        self._table.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


class FirstOnly:
    """A source without the rows that ask what another row asks; `is_answered` says which need nothing at all.

    It has no `take_refs`: to know what a line asks, it has to be read here.
    """

    def __init__(self, source: FileSource, asked: Asked, is_answered: Callable[[int], bool]) -> None:
        """`source` brings all rows: those answered earlier were asked first as well."""
        self.reading = source.reading
        self._source = source
        self._asked = asked
        self._is_answered = is_answered

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests that nobody made before."""
        while requests := await self._source.take(n):
            new = [request for request in requests if self._is_new(request)]
            if new:
                return new
        return []

    def _is_new(self, request: Request) -> bool:
        return self._asked.first(request) == request.key and not self._is_answered(request.key)
