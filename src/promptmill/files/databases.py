"""The kinds of databases whose tables can be inputs and outputs: SQLite, and the databases that features add."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias
from urllib.parse import quote

from promptmill.core.bounds import LONGEST_ROW
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.feature import part
from promptmill.files import format_table

Stamp: TypeAlias = tuple[int, int]
"""Two numbers that identify the content of an output. For a file: its size in bytes, and the time of its last change in
ns. For a table: its number of rows, and their digest, because other tables change the file's time and size, too."""
_TABLES = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name"
_TABLE = "SELECT 1 FROM main.sqlite_master WHERE name = ? COLLATE NOCASE"
_OTHER = "SELECT type FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type IN ('view', 'index')"
_ELSE = "name the output .csv, .jsonl or .parquet"
_WAIT_S = 60.0  # the longest wait while another program writes to the user's database


class Database:
    """Reads and writes SQLite files. A feature has a subclass for another kind of database."""

    form: ClassVar[Literal["sql", "parquet"]] = "sql"
    """The format of the temporary file whose rows are copied into the table: a SQLite database, or Parquet."""
    log: ClassVar[str] = "-wal"
    """The suffix of the database's log file."""
    most_columns: ClassVar[int] = 2_000  # SQLite's limit
    """The largest number of columns of a table."""

    def check(self, file: Path, table: str, columns: Sequence[str]) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the database cannot get a table of this name and these columns.

        This is called before the first request. The file need not exist yet.
        """
        if len(columns) > self.most_columns:
            raise input_error(
                f"A table of {file.name} holds {self.most_columns:,} columns, and this output may have "
                f"{len(columns):,}; {_ELSE}, or leave columns of the job out with ",
                Named("columns", "answer,error"),
                ".",
            )
        known: dict[str, str] = {}
        for name in columns:
            if (first := known.setdefault(alike(name), name)) != name:
                raise input_error(
                    f"The columns `{first[:60]}` and `{name[:60]}` differ only in capitals, which no table of "
                    f"{file.name} can have; rename one of them, or {_ELSE}."
                )
        self.check_names(file, table, columns)
        if other := self.other(file, table) if file.exists() else "":
            raise input_error(f"{file.name} has the {other} {table}, which is no table; name another table.")

    def check_names(self, file: Path, table: str, columns: Sequence[str]) -> None:
        """Raise `PromptmillError` (`invalid_input`) for names that the database refuses."""
        if alike(table).startswith("sqlite_"):
            raise input_error(f"SQLite keeps the names with sqlite_ for itself; name another table than {table}.")
        if (refused := next((name for name in columns if "\0" in name), None)) is not None:
            raise input_error(
                f"The column {refused[:60]!r} has a NUL in its name, which {file.name} cannot have; rename it, or "
                f"{_ELSE}."
            )

    def other(self, file: Path, table: str) -> str:
        """Return the kind of the object that has the name `table` but is no table, such as `view`; else `""`."""
        try:
            with contextlib.closing(connected(file)) as connection:
                found = connection.execute(_OTHER, (table,)).fetchone()
        except sqlite3.OperationalError:  # the file is locked by another program, perhaps not for long
            return ""
        except sqlite3.Error as error:
            raise input_error(f"{file.name} cannot be written: {error}; name another file.") from None
        return "" if found is None else str(found[0])

    def connected(self, file: Path) -> Any:
        """Return a connection that reads only this database. Raises the errors of the database's package."""
        return connected(file)

    def why(self, error: Exception) -> str:
        """Return the reason why the database cannot be read: the first line of an error of the database's package."""
        return str(error).splitlines()[0][:300].rstrip(".") if str(error) else type(error).__name__

    def tables(self, connection: Any) -> list[str]:
        """Return the names of the tables and views."""
        return [row[0] for row in connection.execute(_TABLES).fetchall()]

    def whole(self, connection: Any, table: str) -> str:
        """Return the query for all rows of a table. The query converts the values to types of Python."""
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
        """Return the stamp that a table will have after the rows of `source` are copied to it."""
        return self.stamp(source, table)

    def copy(self, source: Path, file: Path, table: str, *, may_replace: bool) -> None:
        """Copy the rows of `source` (in the format `form`) into a table, in one transaction.

        Raises `OSError`; `PromptmillError` (`invalid_input`) if the table exists and may not be replaced.
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


def alike(name: str) -> str:
    """Return a name in the form in which databases compare names: small letters are equal to capitals in ASCII.

    >>> alike("ID Ä")
    'id Ä'
    """
    return name.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def database_of(file: Path) -> Database:
    """Return the kind of the database in a file with this name."""
    database: Database = part(format_table.database(file))()
    return database


def is_sqlite(file: Path) -> bool:
    """Return whether a file with this name is a database of SQLite."""
    kind = format_table.database(file)
    return bool(kind) and part(kind) is Database


def taken(target: object) -> PromptmillError:
    """Return the error for an output whose name another program has taken since the start of the job."""
    return input_error(f"Another program made {target} during the job; move it away and repeat the command.")


def connected(file: Path) -> sqlite3.Connection:
    """Return a connection that reads a SQLite database, and no other file. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # forbids ATTACH, and VACUUM INTO, which needs it
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_ROW)
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")  # SQLite checks no encoding
    return connection


def all_of(table: str) -> str:
    """Return the query for all rows of a table."""
    return f"SELECT * FROM {quoted(table)}"  # noqa: S608 (a quoted name)


def quoted(name: str) -> str:
    """Return a name with quotes for SQL.

    >>> quoted('my "own" table')
    '"my ""own"" table"'
    """
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
