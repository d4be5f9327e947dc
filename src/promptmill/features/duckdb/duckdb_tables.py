"""DuckDB databases: their tables as inputs and outputs.

A database can act like a program of its author: a view may read any file, and a macro may replace a function. So a
connection to a user's file can open only this file.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from promptmill.core.errors import input_error
from promptmill.files.databases import Database, Stamp, all_of, quoted, taken

SUFFIX = ".duckdb"
CLOSED = "disabled by configuration"
"""The words of DuckDB's errors about a file that a connection may not open."""
_MEMORY_MB, _COLUMN_MB = 256, 0.5
"""The memory that DuckDB may use, and what is added for each column of a table that it writes: a column takes up to two
blocks of 256 KiB until it is committed. DuckDB's default is 80 % of the machine's memory."""
_TABLES = "SELECT table_name FROM information_schema.tables ORDER BY table_name"
_OTHER = """
    SELECT 'view' FROM duckdb_views() WHERE lower(view_name) = lower(?) AND NOT internal
    UNION ALL SELECT 'sequence' FROM duckdb_sequences() WHERE lower(sequence_name) = lower(?)
"""
_SETTINGS = {"python_enable_replacements": "false"}
_ZONED = "TIMESTAMP WITH TIME ZONE"
_TYPES = f"DATE|INTERVAL|TIME_NS|TIMESTAMP(?:_MS|_NS|_S)?|{_ZONED}|FLOAT"
_KIND = re.compile(rf"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\b({_TYPES})(?=[],)\[]|$)""")
"""Finds the types whose values look different in Python than in DuckDB, also in lists and structures. It skips names of
fields."""


class DuckDb(Database):
    """Reads and writes DuckDB databases."""

    form: ClassVar[Literal["sql", "parquet"]] = "parquet"
    log: ClassVar[str] = ".wal"
    most_columns: ClassVar[int] = 2_000  # these take 1.3 GB of memory while they are written, see `_COLUMN_MB`

    def connected(self, file: Path) -> Any:
        """Return a connection that reads a database, and no other file. Raises `duckdb.Error`."""
        return alone(connected(file))

    def why(self, error: Exception) -> str:
        """Return the reason why the database cannot be read."""
        said = super().why(error)
        return f"a view reads another file; copy what it returns into a table ({said})" if CLOSED in said else said

    def tables(self, connection: Any) -> list[str]:
        """Return the names of the tables and views."""
        return [row[0] for row in connection.execute(_TABLES).fetchall()]

    def whole(self, connection: Any, table: str) -> str:
        """Return the query for all rows. Months, nanoseconds and infinity become texts; a `FLOAT` keeps its digits."""
        query = all_of(table)
        kinds = {quoted(name): kind for name, kind, *_ in connection.execute(f"DESCRIBE {query}").fetchall()}
        texts = [f"{shown} AS {name}" for name, kind in kinds.items() if (shown := _shown(name, kind)) != name]
        return query.replace("*", f"* REPLACE ({', '.join(texts)})", 1) if texts else query

    def stamp(self, file: Path, table: str) -> Stamp | None:
        """Return the stamp of a table; None if the table is missing."""
        with _errors(file), contextlib.closing(self.connected(file)) as connection:
            return stamp(connection, quoted(table)) if _has_table(connection, table) else None

    def stamp_of_rows(self, source: Path, table: str) -> Stamp | None:
        """Return the stamp that a table will have after the rows of a Parquet file are copied into it."""
        del table
        with _errors(source), contextlib.closing(connected(None, memory=_memory(source))) as connection:
            return stamp(connection, _parquet(source))

    def check_names(self, file: Path, table: str, columns: Sequence[str]) -> None:
        """Do nothing, because DuckDB accepts any name in quotes."""

    def other(self, file: Path, table: str) -> str:
        """Return `view` or `sequence` if such an object has the table's name; else `""`."""
        with _errors(file), contextlib.closing(connected(file)) as connection:
            found = connection.execute(_OTHER, (table, table)).fetchone()
        return "" if found is None else str(found[0])

    def copy(self, source: Path, file: Path, table: str, *, may_replace: bool) -> None:
        """Copy the rows of a Parquet file into a table in one transaction. Raises `PromptmillError`."""
        memory = _memory(source)
        with _errors(file), contextlib.closing(connected(file, read_only=False, memory=memory)) as connection:
            alone(connection, [str(source)])
            if not may_replace and _has_table(connection, table):
                raise taken(f"{file}#{table}")
            connection.execute(f"CREATE OR REPLACE TABLE {quoted(table)} AS FROM {_parquet(source)}")


def connected(file: Path | None, *, read_only: bool = True, memory: str = f"{_MEMORY_MB}MB") -> Any:
    """Return a connection to the DuckDB database in `file`, or to an empty one in memory (None). Raises `duckdb.Error`.

    `memory`: the limit for cache and sorting, such as "1GB"; beyond the limit, DuckDB uses the disk. `""`: the default
    of DuckDB, 80 % of the machine's memory.
    """
    import duckdb

    atexit.register(gc.unfreeze)  # otherwise, DuckDB reports leaks: objects that the last garbage collection has left
    place = (":memory:", False) if file is None else (str(file), read_only)
    # Queries cannot use this process's Python objects as tables.
    connection = duckdb.connect(*place, config=({"memory_limit": memory} if memory else {}) | _SETTINGS)
    connection.execute("SET enable_progress_bar = false")  # off, because a notebook would show it
    return connection


def alone(connection: Any, files: Sequence[str] = (), folders: Sequence[str] = ()) -> Any:
    """Return a connection that from now on opens only `files`, and the files in `folders`."""
    connection.execute("SET allowed_paths = $1", ([*files],))
    connection.execute("SET allowed_directories = $1", ([*folders],))
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _memory(source: Path) -> str:
    """Return the memory that DuckDB may use for the rows of a Parquet file."""
    from pyarrow import parquet

    return f"{_MEMORY_MB + _COLUMN_MB * len(parquet.read_schema(source))}MB"


def stamp(connection: Any, source: str) -> Stamp:
    """Return the number of rows of a table or other source, and a digest of the rows that ignores their order."""
    count, digest = connection.execute(f"SELECT count(*), coalesce(sum(hash(t)), 0) FROM {source} t").fetchone()  # noqa: S608
    return count, digest % (1 << 53)


def literal(text: str) -> str:
    """Return a text as a literal of SQL.

    >>> literal("Ann's")
    "'Ann''s'"
    """
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def _shown(name: str, kind: str) -> str:
    """Return the SQL for a column's values as DuckDB shows them.

    >>> _shown("a", "DATE[]"), _shown("a", "STRUCT(DATE INTEGER)")
    ('a::VARCHAR[]::VARCHAR[]', 'a')
    """
    if kind == _ZONED:  # the zone is written with minutes, as Python writes it
        return f"regexp_replace({name}::VARCHAR, '([+-][0-9]{{2}})$', '\\1:00')"
    texts = _KIND.sub(lambda found: "VARCHAR" if found[1] else found[0], kind)
    final = _KIND.sub(lambda found: {None: found[0], "FLOAT": "DOUBLE"}.get(found[1], "VARCHAR"), kind)
    return name if texts == kind else f"{name}::{texts}::{final}"


def _parquet(file: Path) -> str:
    """Return the DuckDB SQL for the rows of a Parquet file. Vectors keep their length, which DuckDB would ignore."""
    import pyarrow as pa
    from pyarrow import parquet

    rows, vectors = f"system.main.read_parquet({literal(str(file))})", list[str]()
    for field in parquet.read_schema(file):
        if pa.types.is_fixed_size_list(field.type) and field.type.value_type == pa.float32():
            vectors.append(f"{quoted(field.name)}::FLOAT[{field.type.list_size}] AS {quoted(field.name)}")
    return f"(SELECT * REPLACE ({', '.join(vectors)}) FROM {rows})" if vectors else rows  # noqa: S608 (quoted names)


def _has_table(connection: Any, name: str) -> bool:
    query = "SELECT 1 FROM duckdb_tables() WHERE lower(table_name) = lower(?)"
    return connection.execute(query, (name,)).fetchone() is not None


@contextlib.contextmanager
def _errors(file: Path) -> Iterator[None]:
    """Convert the errors of DuckDB to `PromptmillError` (`invalid_input`)."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise input_error(f"{file.name} cannot be used: {text.rstrip('.')}.") from None
