"""Tables inside of files: `labels.xlsx#Sheet2` is a sheet of a workbook, `mails.db#inbox` a table of a database.

Such a path stands for the table wherever a file is named. `file_of` returns the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

WORKBOOKS = MappingProxyType({".xlsx": "xlsx", ".xlsm": "xlsx", ".xlsb": "xlsx", ".xls": "xlsx", ".ods": "xlsx"})
DATABASES = MappingProxyType({".db": "sql", ".sqlite": "sql", ".sqlite3": "sql", ".duckdb": "sql"})
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


def stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when the output at `path` changes, None if it is missing.

    Of a file this is `(size in bytes, time of the last change in ns)`, of a table `(rows, digest of its rows)`: other
    programs may change other tables of the database.
    """
    file, member = split(path)
    if not member or file.suffix.lower() not in DATABASES:
        try:
            status = file.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns
    return table_stamp(file, member) if file.exists() else None


def table_stamp(file: Path, table: str) -> tuple[int, int] | None:
    """Return the number of rows and the digest of a table of a SQLite database, None if it is missing."""
    digest, count = hashlib.blake2b(digest_size=7), 0
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            for row in connection.execute(f"SELECT * FROM {quoted(table)}"):  # noqa: S608 (a quoted name)
                digest.update(repr(row).encode("utf-8", "surrogatepass"))
                count += 1
    except sqlite3.Error:
        return None
    return count, int.from_bytes(digest.digest())


def quoted(name: str) -> str:
    """Return a name as SQL writes it.

    >>> quoted('my "own" table')
    '"my ""own"" table"'
    """
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
