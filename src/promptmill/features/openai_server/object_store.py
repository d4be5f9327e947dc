"""The database of the files and batches that clients have created, in the state folder.

| column | content |
|---|---|
| `number` | increases with each new object; lists are sorted by it |
| `kind`, `id`, `owner` | `file` or `batch`; its id; a digest of its token |
| `purpose`, `size`, `expires` | for files only |
| `is_open`, `request` | for batches only: whether it has not ended; a digest of its parameters, to find repeats |
| `body` | the object as a client sees it, as JSON |
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from promptmill.features.openai_server.api_errors import ApiError
from promptmill.files import disk

Kind = Literal["file", "batch"]
_TABLE = """
CREATE TABLE IF NOT EXISTS object (
    id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, owner TEXT NOT NULL, purpose TEXT NOT NULL, size INTEGER NOT NULL,
    expires INTEGER, is_open INTEGER NOT NULL, request TEXT NOT NULL, body BLOB NOT NULL,
    number INTEGER PRIMARY KEY AUTOINCREMENT
);
CREATE INDEX IF NOT EXISTS object_owner ON object (owner, kind, number);
CREATE INDEX IF NOT EXISTS object_open ON object (kind, is_open);
"""
_PUT = """
INSERT INTO object VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET size = excluded.size, expires = excluded.expires, is_open = excluded.is_open,
    body = excluded.body
"""
_PAGE = """
SELECT * FROM object
WHERE owner = :owner AND kind = :kind AND :purpose IN ('', purpose) AND coalesce(expires > :now, 1)
    AND (:after = '' OR number * :sign > (SELECT number * :sign FROM object WHERE id = :after AND owner = :owner))
ORDER BY number * :sign LIMIT :limit
"""
_REPEATED = "SELECT * FROM object WHERE owner = ? AND kind = 'batch' AND request = ? ORDER BY number DESC LIMIT 1"
_OPEN = "SELECT * FROM object WHERE kind = 'batch' AND is_open AND (? = '' OR id = ?) ORDER BY number"
_AMOUNT = "SELECT count(*), coalesce(sum(size), 0) FROM object WHERE kind = ? AND owner = ? AND (is_open OR ?)"
_WAIT_S = 5.0  # the longest wait for a write of another process; a write of this server takes milliseconds


class StoredObject(NamedTuple):
    """One object, with the columns of the table."""

    id: str
    kind: Kind
    owner: str
    purpose: str
    size: int
    expires: int | None
    is_open: bool
    request: str
    body: bytes
    number: int | None = None
    """The object's number; None until it is in the table."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The part of a list that a client requests."""

    limit: int
    after: str = ""
    """The id after which the list starts."""
    is_newest_first: bool = True
    purpose: str = ""
    """List only files with this purpose; `""`: all files."""


class ObjectStore:
    """The objects of all owners. The methods block; any thread may call them."""

    def __init__(self, folder: Path) -> None:
        """Open the database in `folder`; create both if missing. Raises `OSError` and `sqlite3.Error`."""
        disk.make_private_folder(folder)
        self.folder = folder
        self._writes = threading.Lock()
        self._database = self._connected()
        # FULL, so that a client's batch survives a power loss
        self._database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + _TABLE)

    def put(self, new: StoredObject) -> None:
        """Store a new object."""
        with self._transaction() as database:
            database.execute(_PUT, new)

    def get(self, kind: Kind, identity: str, owner: str) -> StoredObject | None:
        """Return an owner's object; None if there is none."""
        found = self._read("SELECT * FROM object WHERE id = ? AND kind = ? AND owner = ?", (identity, kind, owner))
        return next(iter(found), None)

    def ids(self, kind: Kind) -> set[str]:
        """Return the ids of all objects of a kind."""
        with self._reading() as database:
            return {identity for (identity,) in database.execute("SELECT id FROM object WHERE kind = ?", (kind,))}

    def change(
        self, identity: str, changed: Callable[[StoredObject], StoredObject], *also: StoredObject
    ) -> StoredObject:
        """Store the object that `changed` returns, with the objects in `also`; store nothing if it is unchanged."""
        with self._transaction() as database:
            (row,) = database.execute("SELECT * FROM object WHERE id = ?", (identity,))
            stored = StoredObject._make(row)
            if (found := changed(stored)) is not stored:
                database.executemany(_PUT, (*also, found))
        return found

    def remove(self, identity: str) -> None:
        """Remove an object, if it exists."""
        with self._transaction() as database:
            database.execute("DELETE FROM object WHERE id = ?", (identity,))

    def page(self, kind: Kind, owner: str, listing: Listing, now: int) -> list[StoredObject]:
        """Return the listed objects that have not expired, plus one if there are more.

        Raises `ApiError` 400 if `after` no longer exists, as a program that deletes page by page would miss objects.
        """
        if listing.after and self.get(kind, listing.after, owner) is None:
            raise ApiError(400, f"No such object: {listing.after[:60]}; list without `after`.", "after", "not_found")
        asked = {"owner": owner, "kind": kind, "now": now, "sign": -1 if listing.is_newest_first else 1}
        asked |= {"purpose": listing.purpose, "after": listing.after, "limit": listing.limit + 1}
        return self._read(_PAGE, asked)

    def repeated(self, owner: str, request: str) -> StoredObject | None:
        """Return an owner's newest batch whose parameters have this digest."""
        return next(iter(self._read(_REPEATED, (owner, request))), None)

    def open(self, identity: str = "") -> Sequence[StoredObject]:
        """Return the batches that have not ended; with `identity`, only the object with this id."""
        return self._read(_OPEN, (identity, identity))

    def expired(self, now: int) -> Sequence[StoredObject]:
        """Return the files that have expired."""
        return self._read("SELECT * FROM object WHERE kind = 'file' AND expires <= ?", (now,))

    def amount(self, kind: Kind, owner: str, *, of_open: bool = False) -> tuple[int, int]:
        """Return the number and total bytes of an owner's objects. `of_open`: only of objects that have not ended."""
        with self._reading() as database:
            count, size = database.execute(_AMOUNT, (kind, owner, not of_open)).fetchone()
        return count, size

    def _connected(self) -> sqlite3.Connection:
        path = self.folder / "objects.db"
        return sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writes:
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:  # commits or rolls back
                yield self._database

    def _reading(self) -> contextlib.closing[sqlite3.Connection]:
        """Return a separate connection for reading, which waits for no writer."""
        return contextlib.closing(self._connected())

    def _read(self, query: str, values: Mapping[str, object] | Sequence[object] = ()) -> list[StoredObject]:
        with self._reading() as database:
            return [*map(StoredObject._make, database.execute(query, values))]
