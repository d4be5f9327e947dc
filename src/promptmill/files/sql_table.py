"""Tables and query results of databases as rows.

The `InputFile` of an input names a table, such as `mails.db#inbox`, or has a query for a SQLite file.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from promptmill.core import values
from promptmill.core.bounds import LONGEST_ROW
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.wording import did_you_mean, listed
from promptmill.files.databases import all_of, connected, database_of, is_sqlite
from promptmill.files.delimited import is_utf8, readable
from promptmill.files.encodings import NOT_UTF8
from promptmill.files.files import InputFiles
from promptmill.files.row import WHOLE, Extent, InputRow, Stretch, Style, Window
from promptmill.files.table_paths import split

_AT_ONCE = 1024  # rows of a page
_ONE_QUERY = (Named("sql"), " is one query, such as: select id, body from inbox")
_STORED = "SELECT name FROM sqlite_master WHERE type = 'table'"


def is_query(sql: str | None, sources: Sequence[str]) -> bool:
    """Return whether a feature runs the query `sql` over `sources`. Over SQLite files, SQLite itself runs it."""
    names = [split(Path(name)) for name in sources]
    is_for_files = names and all(is_sqlite(file) or table for file, table in names)
    return sql is not None and not is_for_files


def blocks_of_tables(path: Path) -> Iterator[bytes]:
    """Yield the rows of all tables of a SQLite database as bytes. Raises `sqlite3.Error`."""
    with contextlib.closing(connected(path)) as connection:
        for (table,) in connection.execute(_STORED).fetchall():
            cursor = connection.execute(all_of(table))
            while page := cursor.fetchmany(_AT_ONCE):
                yield b"".join(b"%b\n" % b"\t".join(map(_bytes_of, row)) for row in page)


def columns_of_tables(path: Path) -> list[str]:
    """Return the names of the columns of all tables of a SQLite database. Raises `sqlite3.Error`."""
    with contextlib.closing(connected(path)) as connection:
        tables = connection.execute(_STORED).fetchall()
        return [str(column[0]) for (table,) in tables for column in connection.execute(all_of(table)).description]


def _bytes_of(cell: Any) -> bytes:
    return cell if isinstance(cell, bytes) else str(cell).encode("utf-8", "replace")


class SqlTable:
    """The rows of a table, or of a query's result."""

    style = Style()

    def __init__(self, files: InputFiles) -> None:
        """Read the names of the columns. Raises `PromptmillError` (`invalid_input`)."""
        if len(files.parts) > 1:
            raise input_error("Several databases are not read together; name one of them.")
        (part,) = files.parts
        self._path, self._database, self._most_rows = part.path, database_of(part.path), part.most_rows
        with self._connected() as connection:
            self._query = part.query or self._of_table(connection, part.member)
            cursor = connection.execute(self._query)
            if cursor.description is None:  # no query, but a command or a comment
                raise input_error(*_ONE_QUERY)
            self.header = [str(column[0]) for column in cursor.description]

    def stretches(self, columns: Sequence[tuple[int, str]], window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`. A query is always read from the beginning."""
        del window
        n, most = 0, sys.maxsize if self._most_rows is None else self._most_rows
        with self._connected() as connection:
            cursor = connection.execute(self._query)
            while n < most and (page := list(cursor.fetchmany(min(_AT_ONCE, most - n)))):
                input_rows = []
                for row in page:
                    cells = [*row] if all(type(cell) in _PLAIN for cell in row) else [*map(_value, row)]
                    problem = ""
                    if not all(type(cell) is not str or is_utf8(cell) for cell in cells):
                        wrong = (name for place, name in columns if not is_utf8(str(cells[place])))
                        problem = next((f"its {name} {NOT_UTF8}" for name in wrong), "")
                        cells = [readable(cell) if type(cell) is str else cell for cell in cells]
                    fields = {name: cells[place] for place, name in columns}
                    finite = all(map(_is_finite, cells))
                    input_rows.append(InputRow(n, values.dumps(cells, finite=finite), fields, problem))
                    n += 1
                yield Stretch(input_rows, Extent(rows=len(input_rows)))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        """Yield a connection. Convert every database error in the `with` block to a `PromptmillError`."""
        try:
            with contextlib.closing(self._connection()) as connection:
                yield connection
        except (PromptmillError, GeneratorExit):
            raise
        except Exception as error:  # noqa: BLE001 (each database package has its own exceptions)
            said = self._database.why(error)
            if "one statement at a time" in said:
                raise input_error(*_ONE_QUERY) from None
            if "too big" in said:
                leave = Named("sql", "select …", "leave its column out: {}")
                raise input_error(
                    f"{self._path.name} has a value of more than {LONGEST_ROW >> 20} MiB; ", leave, "."
                ) from None
            if "attached databases" in said:
                raise input_error(Named("sql"), f" reads {self._path.name} alone, without ATTACH and VACUUM.") from None
            raise input_error(f"{self._path.name} cannot be read: {said}.") from None

    def _connection(self) -> Any:
        return self._database.connected(self._path)

    def _of_table(self, connection: Any, name: str) -> str:
        file = self._path.name
        tables = self._database.tables(connection)
        if not name and len(tables) != 1:
            if not tables:
                raise input_error(f"{file} has no table.")
            query = Named("sql", "select …", ", or give a query: {}")
            raise input_error(
                f"{file} has the tables {listed(tables)}; name one of them: '{file}#{tables[0]}'", query, "."
            )
        if name and name not in tables:
            meant = did_you_mean(name, tables, f"it has {listed(tables) or 'none'}.")
            raise input_error(f"{file} has no table {name[:60]!r}; {meant}")
        return self._database.whole(connection, name or tables[0])


_PLAIN = frozenset({str, int, float, bool, type(None), bytes})


def _is_finite(cell: Any) -> bool:
    """Return whether a value is neither NaN nor infinity."""
    if isinstance(cell, float):
        return math.isfinite(cell)
    inner = cell.values() if isinstance(cell, dict) else cell if isinstance(cell, list) else ()
    return all(map(_is_finite, inner))


def _value(cell: Any) -> Any:
    """Return a database value for JSON: a time becomes ISO text; a decimal without a fraction becomes an integer."""
    match cell:
        case dt.datetime():
            return cell.isoformat(" ")
        case dt.date() | dt.time():
            return cell.isoformat()
        case decimal.Decimal():
            return int(cell) if cell.as_tuple().exponent == 0 else cell
        case dict():
            return {str(name): _value(inner) for name, inner in cell.items()}
        case list() | tuple():
            return [_value(inner) for inner in cell]
    return cell if type(cell) in _PLAIN else values.plain_text(cell)
