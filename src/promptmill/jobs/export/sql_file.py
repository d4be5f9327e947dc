"""Tables of SQLite databases as outputs: written to a temporary database, then copied in one transaction."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from promptmill.core.errors import input_error
from promptmill.core.values import INT64
from promptmill.jobs import members
from promptmill.jobs.export.answered import AnsweredRow
from promptmill.jobs.export.text import Form, cell
from promptmill.jobs.members import quoted

_PLAIN = frozenset({str, int, float, type(None), bytes})
_TABLE = "SELECT 1 FROM main.sqlite_master WHERE name = ? COLLATE NOCASE"
_WAIT_S = 60.0  # for another writer of the user's database


def write_table(path: Path, table: str, form: Form, answered: Iterable[AnsweredRow]) -> None:
    """Write rows into a table of the new database at `path`. Raises `sqlite3.Error`, and the errors of `answered`."""
    columns = form.header
    if len({name.casefold() for name in columns}) < len(columns):
        raise input_error("Two columns have names that differ in capitals alone, which no table of SQLite has.")

    rows = ([_value(value) for value in form.values(each)] for each in answered)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("BEGIN")
        connection.execute(f"CREATE TABLE {quoted(table)} ({', '.join(map(quoted, columns))})")
        places = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {quoted(table)} VALUES ({places})", rows)  # noqa: S608 (a quoted name)
        connection.execute("COMMIT")


def copy_table(source: Path, target: Path, *, may_replace: bool) -> None:
    """Copy the table of the database `source` to `target` in one transaction, then delete `source`.

    Raises `OSError`, and `PromptmillError` (`invalid_input`) if a table has the name and may not be replaced.
    """
    file, table = members.split(target)
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_WAIT_S, isolation_level=None)) as connection:
            connection.execute("ATTACH ? AS made", (str(source),))
            connection.execute("BEGIN IMMEDIATE")
            if may_replace:
                connection.execute(f"DROP TABLE IF EXISTS main.{quoted(table)}")
            elif connection.execute(_TABLE, (table,)).fetchone():
                raise members.taken(target)
            name = quoted(table)
            connection.execute(f"CREATE TABLE main.{name} AS SELECT * FROM made.{name}")  # noqa: S608 (a quoted name)
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise OSError(None, str(error), str(file)) from None
    source.unlink()


def _value(value: Any) -> Any:
    """Return a value for SQLite: lists and objects become JSON; true and false become 1 and 0."""
    if type(value) is bool:
        return int(value)
    if type(value) not in _PLAIN or (type(value) is int and value not in INT64):
        return cell(value)
    return value
