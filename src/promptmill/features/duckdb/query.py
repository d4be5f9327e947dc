"""Rows from a query that DuckDB runs over INPUT and over the files and URLs in the query.

    a .duckdb file, postgres://…, files of tables ─┐
    'mails.parquet', 's3://…' in the query ────────┴─ query ─▶ rows.duckdb (temporary) ─▶ row

Each run evaluates the query once. If the job has already read the same rows, in any order, it does not read them again:
the order may vary without ORDER BY. Changed rows keep their answers if their questions are unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from promptmill.core.errors import Code, Named, PromptmillError, input_error, redact
from promptmill.core.feature import Format
from promptmill.core.request import nested
from promptmill.features.duckdb.duckdb_tables import CLOSED, SUFFIX, alone, connected, literal, stamp
from promptmill.features.duckdb.exact_files import READERS, ReadFile, Texts, shown, with_options
from promptmill.files.databases import quoted
from promptmill.files.files import InputFile, missing
from promptmill.files.format_table import all_formats
from promptmill.files.path_formats import check_installed, is_url, reading
from promptmill.files.table_paths import file_of
from promptmill.jobs.inputs import remote_files
from promptmill.jobs.inputs.input_rows import InputRows, temporary_folder
from promptmill.jobs.store.index import JobFolders
from promptmill.system.safe_open import home_expanded

_POSTGRES = ("postgres://", "postgresql://")
_READ = re.compile(r"(?i)\b(?:from\s*|join\s*|(?:read_|glob|parquet_)\w*\s*\(\s*\[?\s*)'([a-z][a-z0-9+.-]*)://")
"""Finds URLs that the query reads, but not URLs in comparisons."""
_OF_DUCKDB = frozenset({"http", "https", "file", "postgres", "postgresql"})
"""The URL schemes that DuckDB reads without fsspec."""
_NOT_INSTALLED = re.compile(r"(?i)failed to download extension|install the required extension")
_EXTENSION = re.compile(r"extension [\"'](\w+)")
_GLOB = re.compile(r"[*?\[{]")
_ROWS = '"rows"."main"."rows"'


@contextlib.contextmanager
def queried(folders: JobFolders, sql: str, sources: Sequence[str], warn: Callable[[str], None]) -> Iterator[InputRows]:
    """Evaluate a query and yield its rows. `sources`: the INPUT, which may be empty. `warn`: is called with a sentence
    about each column whose texts in a file changed. Blocks.

    Raises `PromptmillError` (`invalid_input`, `missing_dependency`, `storage`).
    """
    check_installed(Path("rows.duckdb"))
    with temporary_folder(folders) as place:
        file = place / "rows.duckdb"
        with _errors(), contextlib.closing(connected(file, read_only=False, memory="")) as connection:
            query = _select(connection, sql)
            if len(sources) > 1 and any(map(_is_database, sources)):
                raise input_error(Named("sql"), " reads one database; name only one.")
            for scheme in dict.fromkeys([*_READ.findall(sql), *map(_scheme_of, sources)]):
                if scheme and scheme.lower() not in _OF_DUCKDB:  # uses the same credentials as an INPUT by URL
                    connection.register_filesystem(remote_files.filesystem(scheme.lower()))
            nodes = shown(connection, query)
            files = [opened for name in sources if (opened := _open(connection, name)) is not None]
            if any(_is_duckdb(Path(name)) for name in sources):
                _confine(connection, _named(nodes))
            query, named = with_options(connection, query, nodes)
            connection.execute(f"CREATE TABLE {_ROWS} AS {query}")
            Texts(connection, _ROWS, nodes, warn).restore([*files, *named])
            columns = connection.execute(f"DESCRIBE {_ROWS}").fetchall()
            key = hashlib.sha256(repr([sql, sources, columns, stamp(connection, _ROWS)]).encode()).hexdigest()
        yield InputRows([InputFile(file)], key, "query")


def _select(connection: Any, sql: str) -> str:
    """Return the only statement in `sql`. Raises `PromptmillError` (`invalid_input`) if it is not a query."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type.name != "SELECT":
        raise input_error(Named("sql"), " is one query: ", Named("sql", "select id, body from 'mails.parquet'"), ".")
    return str(statements[0].query).rstrip().rstrip(";")


def _named(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Return words of a query, among them all tables, files and URLs that it names."""
    names = list[str]()
    for node in nodes:
        if node.get("type") == "BASE_TABLE":
            names.append(str(node.get("table_name", "")))
        elif node.get("type") == "TABLE_FUNCTION":
            names += [inner for inner in nested(node) if isinstance(inner, str)]
    return names


def _confine(connection: Any, named: Sequence[str]) -> None:
    """Let a query read only its database, the files that it names, and the folders of its patterns. Otherwise, a view
    by the database's author could read any file."""
    if any(_scheme_of(name) in {"http", "https"} for name in named):  # DuckDB loads no extension afterwards
        connection.execute("INSTALL httpfs")
        connection.execute("LOAD httpfs")
    files, folders = list[str](), list[str]()
    for name in filter(None, named):
        start = _GLOB.split(name, maxsplit=1)[0]
        if start == name and not name.endswith("/"):
            files.append(name if is_url(name) else str(home_expanded(name)))
        elif (folder := start.rpartition("/")[0]) or "/" not in start:
            folders.append(f"{folder}/" if is_url(folder) else f"{home_expanded(folder or '.').absolute()}/")
    alone(connection, files, folders)


def _scheme_of(name: str) -> str:
    return name.partition("://")[0] if is_url(name) else ""


def _is_database(name: str) -> bool:
    return _is_duckdb(Path(name)) or name.lower().startswith(_POSTGRES)


def _is_duckdb(path: Path) -> bool:
    return file_of(path).suffix.lower() == SUFFIX


def _reader_of(known: Format | None) -> str:
    return "" if known is None else READERS.get(known.key, "")


def _open(connection: Any, name: str) -> ReadFile | None:
    """Make the tables of an INPUT available to the query. Return the INPUT if it is no database."""
    path = home_expanded(name)
    known = reading(path)
    if not is_url(name) and (_is_duckdb(path) or _reader_of(known)) and not path.is_file():
        raise missing(path)
    place = literal(name if is_url(name) else str(path))
    if _is_database(name):
        kind = "READ_ONLY" if _is_duckdb(path) else "TYPE postgres, READ_ONLY"
        connection.execute(f"ATTACH {place} AS source ({kind})")
        connection.execute("USE source")
        return None
    reader = _reader_of(known)
    if not reader:
        usable = [suffix for each in all_formats() if _reader_of(each) for suffix in each.names]
        raise input_error(
            Named("sql"),
            f" reads databases and {', '.join(usable)}, not {path.name}; several files are named in the query: "
            "… from 'data/*.parquet'.",
        )
    table = quoted(path.name.partition(".")[0])
    file = ReadFile.of(path.name, f"{reader}({place})", reader.removeprefix("read_"))
    connection.execute(f"CREATE TEMP VIEW {table} AS FROM {file.call}")
    return file


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Convert the errors of DuckDB to `PromptmillError`."""
    try:
        yield
    except PromptmillError:
        raise
    except Exception as error:  # noqa: BLE001 (errors of DuckDB, of fsspec and of the stores)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if lines and lines[0].startswith("Traceback"):  # a traceback of a store's package, whose last line is the error
            lines = lines[-1:]
        extension = _EXTENSION.search(str(error))
        if extension is not None and _NOT_INSTALLED.search(str(error)):
            raise PromptmillError(
                Code.MISSING_DEPENDENCY,
                f"DuckDB needs its extension {extension[1]}, and could not download it.",
                f"Run, where extensions.duckdb.org can be reached: {sys.executable} -c "
                f"\"import duckdb; duckdb.sql('INSTALL {extension[1]}')\"",
            ) from None
        if CLOSED in str(error):
            said = redact(" ".join(_before_quote(lines)))[:300].rstrip(".")
            reads = "reads its database, and files that it names after FROM or in a function such as read_csv"
            raise input_error(Named("sql"), f" {reads}, and no view of the database reads others: {said}.") from None
        text = redact(" ".join(_before_quote(lines)) or type(error).__name__)[:300]
        raise input_error(Named("sql"), f": {text}{'' if text.endswith(('.', '?')) else '.'}") from None


def _before_quote(lines: Sequence[str]) -> Sequence[str]:
    """Return the lines of an error message that precede DuckDB's quote of the query."""
    end = next((at for at, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
    return lines[:end]
