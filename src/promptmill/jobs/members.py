"""Tables inside of files: `labels.xlsx#Sheet2` is a sheet of a workbook, `mails.db#inbox` a table of a database.

Such a path is valid wherever the path of a file is.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import quote

from promptmill.core.errors import PromptmillError, input_error

WORKBOOKS = MappingProxyType({".xlsx": "xlsx", ".xlsm": "xlsx", ".xlsb": "xlsx", ".xls": "xlsx", ".ods": "xlsx"})
DATABASES = MappingProxyType({".db": "sql", ".sqlite": "sql", ".sqlite3": "sql", ".duckdb": "sql"})
Stamp: TypeAlias = tuple[int, int]
"""Two numbers that change with an output. Of a file: its size in bytes, and the time of its last change in ns. Of a
table: its number of rows, and their digest, because its file also changes with other tables."""
_MARK = "#"


def split(path: Path) -> tuple[Path, str]:
    """Return the file of a path, and the name of the table in it; `""` if the path names none.

    >>> split(Path("data/labels.xlsx#Sheet2"))
    (PosixPath('data/labels.xlsx'), 'Sheet2')
    """
    name, mark, member = path.name.partition(_MARK)
    if not mark or not member or Path(name).suffix.lower() not in {*WORKBOOKS, *DATABASES} or path.exists():
        return path, ""
    return path.with_name(name), member


def file_of(path: Path) -> Path:
    """Return the file of a path."""
    return split(path)[0]


def is_table(path: Path) -> bool:
    """Return whether a path names a table of a database."""
    file, member = split(path)
    return bool(member) and file.suffix.lower() in DATABASES


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of the output at `path`, None if there is no output."""
    file, member = split(path)
    if not is_table(path):
        try:
            status = file.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns
    return table_stamp(file, member) if file.exists() else None


def table_stamp(file: Path, table: str) -> Stamp | None:
    """Return the number of rows and the digest of a table of a SQLite database, None if it is missing."""
    digest, count = hashlib.blake2b(digest_size=7), 0
    try:
        with contextlib.closing(connected(file)) as connection:
            for row in connection.execute(all_of(table)):
                digest.update(repr(row).encode("utf-8", "surrogatepass"))
                count += 1
    except sqlite3.Error:
        return None
    return count, int.from_bytes(digest.digest())


def taken(target: Path) -> PromptmillError:
    """Return the error for an output whose name another program has taken since the job began."""
    return input_error(f"{target} was made by another program meanwhile; move it away and run the job again.")


def connected(file: Path) -> sqlite3.Connection:
    """Return a connection that reads a SQLite database, and no other file. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # VACUUM INTO attaches, too
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
