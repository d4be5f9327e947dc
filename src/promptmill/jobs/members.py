"""Tables inside of files: `labels.xlsx#Sheet2` is a sheet of a workbook, `mails.db#inbox` a table of a database.

Such a path is valid wherever the path of a file is.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import hashlib
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.parse import quote

from promptmill.core.bounds import DUCKDB_MEMORY, LONGEST_ROW
from promptmill.core.errors import PromptmillError, input_error

WORKBOOKS = MappingProxyType({".xlsx": "xlsx", ".xlsm": "xlsx", ".xlsb": "xlsx", ".xls": "xlsx", ".ods": "xlsx"})
DUCKDB = ".duckdb"
SQLITE = frozenset({".db", ".sqlite", ".sqlite3"})
DATABASES = MappingProxyType(dict.fromkeys((*sorted(SQLITE), DUCKDB), "sql"))
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


def is_duckdb(path: Path) -> bool:
    """Return whether a path is, or names a table of, a database of DuckDB."""
    return file_of(path).suffix.lower() == DUCKDB


def log_of(file: Path) -> Path | None:
    """Return the log of a database, which may exist and have rows that the file lacks; None for another file.

    >>> [log_of(Path(name)).name for name in ("mails.db", "mails.duckdb")]
    ['mails.db-wal', 'mails.duckdb.wal']
    """
    suffix = file.suffix.lower()
    if suffix not in DATABASES:
        return None
    return file.with_name(f"{file.name}{'.' if suffix == DUCKDB else '-'}wal")


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
    """Return the number of rows and the digest of a table of a database, None if it is missing.

    Raises `PromptmillError` (`invalid_input`) for a database of DuckDB that cannot be opened.
    """
    if is_duckdb(file):
        with duckdb_errors(file), contextlib.closing(duckdb_connected(file)) as connection:
            return duckdb_stamp(connection, quoted(table)) if has_duckdb_table(connection, table) else None
    digest, count = hashlib.blake2b(digest_size=7), 0
    try:
        with contextlib.closing(connected(file)) as connection:
            for row in connection.execute(all_of(table)):
                digest.update(repr(row).encode("utf-8", "surrogatepass"))
                count += 1
    except sqlite3.Error:
        return None
    return count, int.from_bytes(digest.digest())


def has_duckdb_table(connection: Any, name: str) -> bool:
    """Return whether the database of a connection has a table of this name."""
    query = "SELECT 1 FROM duckdb_tables() WHERE lower(table_name) = lower(?)"
    return connection.execute(query, (name,)).fetchone() is not None


def parquet(file: Path) -> str:
    """Return the rows of a Parquet file as a source of rows in DuckDB's SQL."""
    return f"read_parquet({literal(str(file))})"


def literal(text: str) -> str:
    """Return a text as SQL writes it.

    >>> literal("Ann's")
    "'Ann''s'"
    """
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def duckdb_stamp(connection: Any, source: str) -> Stamp:
    """Return the number of rows, and a digest of them in any order, of a table or of another source of rows."""
    count, digest = connection.execute(f"SELECT count(*), coalesce(sum(hash(t)), 0) FROM {source} t").fetchone()  # noqa: S608
    return count, digest % (1 << 53)


def taken(target: Path) -> PromptmillError:
    """Return the error for an output whose name another program has taken since the job began."""
    return input_error(f"{target} was made by another program meanwhile; move it away and run the job again.")


def connected(file: Path) -> sqlite3.Connection:
    """Return a connection that reads a SQLite database, and no other file. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # VACUUM INTO attaches, too
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_ROW)
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")  # any bytes can be a text there
    return connection


def duckdb_connected(file: Path | None, *, read_only: bool = True, memory: str = DUCKDB_MEMORY) -> Any:
    """Return a connection to a database of DuckDB; None: to an empty one in memory. Raises `duckdb.Error`.

    `memory`: how much its cache and its sorting take, such as "1GB" or "80%"; beyond that it uses the disk.
    """
    import duckdb

    atexit.register(gc.unfreeze)  # DuckDB reports objects that the last collection leaves as leaks
    place = (":memory:", False) if file is None else (str(file), read_only)
    connection = duckdb.connect(*place, config={"memory_limit": memory})
    connection.execute("SET enable_progress_bar = false")  # a notebook would show it
    return connection


@contextlib.contextmanager
def duckdb_errors(file: Path) -> Iterator[None]:
    """Turn the errors of DuckDB into `PromptmillError` (`invalid_input`)."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise input_error(f"{file.name} cannot be used: {text.rstrip('.')}.") from None


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
