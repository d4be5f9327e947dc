"""Ids that stand in a file twice. What was seen lies on disk: memory stays flat."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_AT_ONCE = 1024
# The table is thrown away with the run, so nothing about it needs to be safe.
_SETTINGS = ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-4096")


class CustomIds:
    """The ids of rows, such as the `custom_id`s of a Batch file, each of which is to stand there once."""

    def __init__(self, path: Path) -> None:
        """Begin with nothing, in a file of its own at `path`."""
        self._missing = 0
        # sorted at the end, within a few pages: an index of so many at random places is ten times slower
        self._table = Table(path, "ids (digest INTEGER, row INTEGER)")
        self._new: list[tuple[int, int]] = []

    def add(self, custom_id: str, row: int) -> None:
        """Note the id of line `row` (from 0); rows come in their order. Raises `OSError`."""
        text = custom_id.encode("utf-8", "surrogatepass")
        self._new.append((int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), signed=True), row))
        if len(self._new) >= _AT_ONCE:
            self._flush()

    def note(self, value: object, row: int) -> None:
        """Note the id of a row. Raises `OSError`."""
        if value is None or value == "":
            self._missing += 1
        else:
            self.add(value if isinstance(value, str) else str(value), row)

    def repeated(self, most: int) -> tuple[int, list[tuple[int, int]]]:
        """Return how many lines have the id of an earlier one, and of `most` of them `(row, first row)` with it."""
        self._flush()
        ((count,),) = self._table.read("SELECT COUNT(*) - COUNT(DISTINCT digest) FROM ids")
        if not count:
            return 0, []
        return count, self._table.read(
            "SELECT row, first FROM ids JOIN (SELECT digest AS again, MIN(row) AS first FROM ids "
            "GROUP BY digest HAVING COUNT(*) > 1) ON digest = again WHERE row != first ORDER BY row LIMIT ?",
            most,
        )

    @property
    def warning(self) -> str:
        """A sentence about repeated and missing ids, `""` when there are none."""
        count, examples = self.repeated(1)
        missing = f"{self._missing} row(s) have no `custom_id`." if self._missing else ""
        if not count:
            return missing
        row, first = examples[0]
        return missing + (
            f"{count} line(s) repeat the `custom_id` of an earlier one, line {row + 1} that of line {first + 1} "
            "first: their answers are told apart by their order alone."
        )

    def _flush(self) -> None:
        new, self._new = self._new, []
        self._table.write("INSERT INTO ids VALUES (?, ?)", new)

    def close(self) -> None:
        """Close and remove the table."""
        self._table.close()


class Table:
    """One table, in a file that is thrown away with it."""

    def __init__(self, path: Path, columns: str) -> None:
        """Make a table of `columns` at `path`, where nothing else belongs. Raises `OSError`."""
        path.unlink(missing_ok=True)
        self._path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for statement in (*_SETTINGS, "BEGIN", f"CREATE TABLE {columns}"):
                self._connection.execute(statement)
        except sqlite3.OperationalError as error:
            raise _storage(error) from None

    def write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run `statement` once for each of `rows`. Raises `OSError`."""
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.OperationalError as error:
            raise _storage(error) from None

    def read(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows that `statement` finds. Raises `OSError`."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            raise _storage(error) from None

    def close(self) -> None:
        """Close and remove the file."""
        self._connection.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def _storage(error: sqlite3.OperationalError) -> OSError:
    return OSError(errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO, str(error))
