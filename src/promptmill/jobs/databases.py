"""Kinds of databases whose tables are inputs and outputs: SQLite, and those of features."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias
from urllib.parse import quote

from promptmill.core.bounds import LONGEST_ROW
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.feature import features, format_of, part

Stamp: TypeAlias = tuple[int, int]
"""Two numbers that change with an output. Of a file: its size in bytes, and the time of its last change in ns. Of a
table: its number of rows, and their digest, because its file also changes with other tables."""
SQLITE = frozenset({".db", ".sqlite", ".sqlite3"})
_OTHERS = [
    suffix for feature in features().values() for each in feature.formats if each.database for suffix in each.names
]
DATABASES = MappingProxyType(dict.fromkeys((*sorted(SQLITE), *_OTHERS), "sql"))
"""The format of each suffix of a database."""
_TABLES = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name"
_TABLE = "SELECT 1 FROM main.sqlite_master WHERE name = ? COLLATE NOCASE"
_WAIT_S = 60.0  # for another writer of the user's database


class Database:
    """A kind of database, by file: SQLite. A feature has a subclass for another kind."""

    form: ClassVar[Literal["sql", "parquet"]] = "sql"
    """The file that gets the rows of an output before they are copied: a database of SQLite, or Parquet."""
    log: ClassVar[str] = "-wal"
    """The end of the name of the log."""

    def connected(self, file: Path) -> Any:
        """Return a connection that reads a database, and no other file. Raises the errors of its package."""
        return connected(file)

    def tables(self, connection: Any) -> list[str]:
        """Return the names of the tables and views."""
        return [row[0] for row in connection.execute(_TABLES).fetchall()]

    def whole(self, connection: Any, table: str) -> str:
        """Return the query for all rows of a table, as values that Python has types for."""
        del connection
        return all_of(table)

    def stamp(self, file: Path, table: str) -> Stamp | None:
        """Return the stamp of a table, None if it is missing. Raises `PromptmillError`."""
        digest, count = hashlib.blake2b(digest_size=7), 0
        try:
            with contextlib.closing(connected(file)) as connection:
                for row in connection.execute(all_of(table)):
                    digest.update(repr(row).encode("utf-8", "surrogatepass"))
                    count += 1
        except sqlite3.Error:
            return None
        return count, int.from_bytes(digest.digest())

    def stamp_of_rows(self, source: Path, table: str) -> Stamp | None:
        """Return the stamp that a table will have that is copied from `source`."""
        return self.stamp(source, table)

    def copy(self, source: Path, file: Path, table: str, *, may_replace: bool) -> None:
        """Copy the rows of `source`, see `form`, into a table in one transaction.

        Raises `OSError`, and `PromptmillError` (`invalid_input`) if a table has the name and may not be replaced.
        """
        try:
            with contextlib.closing(sqlite3.connect(file, timeout=_WAIT_S, isolation_level=None)) as connection:
                connection.execute("ATTACH ? AS made", (str(source),))
                connection.execute("BEGIN IMMEDIATE")
                if may_replace:
                    connection.execute(f"DROP TABLE IF EXISTS main.{quoted(table)}")
                elif connection.execute(_TABLE, (table,)).fetchone():
                    raise taken(f"{file}#{table}")
                name = quoted(table)
                connection.execute(f"CREATE TABLE main.{name} AS SELECT * FROM made.{name}")  # noqa: S608 (a quoted name)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise OSError(None, str(error), str(file)) from None


def database_of(file: Path) -> Database:
    """Return the kind of the database in a file with a suffix of `DATABASES`."""
    file_format = format_of(file.name)
    if file_format is None or not file_format.database:
        return Database()
    database: Database = part(file_format.database)()
    return database


def taken(target: object) -> PromptmillError:
    """Return the error for an output whose name another program has taken since the job began."""
    return input_error(f"{target} was made by another program meanwhile; move it away and run the job again.")


def connected(file: Path) -> sqlite3.Connection:
    """Return a connection that reads a SQLite database, and no other file. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # VACUUM INTO attaches, too
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_ROW)
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")  # any bytes can be a text there
    return connection


def all_of(table: str) -> str:
    """Return the query for all rows of a table."""
    return f"SELECT * FROM {quoted(table)}"  # noqa: S608 (a quoted name)


def quoted(name: str) -> str:
    """Return a name as SQL writes it.

    >>> quoted('my "own" table')
    '"my ""own"" table"'
    """
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
