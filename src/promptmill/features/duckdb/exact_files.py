"""The files of a query, read without loss: DuckDB guesses the types of texts, mostly from the first rows.

Each call that reads a file gets options: all rows decide the types. After the query, the values with types are compared
with the texts of the file. They differ if 1.10 is read as 1.1, or 01/02/24 as 2001-02-24. Then the columns of the
result that repeat the file's column get the texts, and a note names the other columns.
"""

# ruff: noqa: S608 (the SQL is of names in quotes and of calls in the user's own query)

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Any

from promptmill.core.request import nested
from promptmill.features.duckdb.duckdb_tables import literal
from promptmill.files.databases import quoted
from promptmill.files.path_formats import reading

READERS = MappingProxyType(
    {"parquet": "read_parquet", "csv": "read_csv", "tsv": "read_csv", "json": "read_json", "jsonl": "read_json"}
)
"""By format: DuckDB's function that reads files of this format."""
_FUNCTION = re.compile(r"(?i)(?:read_(csv|json|ndjson|parquet)(?:_auto)?|(parquet)_scan)\s*\(")
_NAME = re.compile(r"""(?:'(?:[^']|'')*'|"(?:[^"]|"")*"|[^\s'"(),;])+""")
_BRACKETS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|([()])""")
_WRITING = re.compile(
    r"(?i)\|\||concat\w*|string_agg|group_concat|listagg|format|printf|list\w*|array_agg|struct_pack|to_json|OPERATOR_CAST"
)
"""The functions of a query in which texts of numbers count."""
_MANY = re.compile(r"\[|'[^']*[*?{]")
_TIMES = ("DATE", "TIMESTAMP")
"""The beginnings of the types whose format DuckDB guesses."""
_TYPED = re.compile(r"(?i)\b(columns|auto_detect|ignore_errors|store_rejects)\s*:?=")
"""Finds options with which the user decides the types, or with which DuckDB skips rows of other types."""
_OPTIONS = MappingProxyType(
    {
        "csv": {"comment": "''", "sample_size": "-1"},  # by default, rows that begin with # may be comments
        "json": {"sample_size": "-1"},
        "parquet": {},
    }
)
_OPTIONS_OF_MANY = MappingProxyType(
    {
        "csv": {"union_by_name": "true"},  # by default, DuckDB takes the columns and the types of the first file
        "json": {"union_by_name": "true", "maximum_sample_files": "1000000"},
        "parquet": {"union_by_name": "true"},
    }
)


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file that a query reads, or the files of a pattern."""

    name: str
    """The name in notes, as the query writes it."""
    call: str
    """The SQL that reads the rows with types, such as `read_csv('a.csv', sample_size = -1)`."""
    kind: str
    """`csv`, `json` or `parquet`."""

    @classmethod
    def of(cls, name: str, call: str, kind: str) -> ReadFile:
        """Return a file that `call` reads, with our options where the call has none."""
        options = _OPTIONS[kind] | (_OPTIONS_OF_MANY[kind] if _MANY.search(call) else {})
        added = [f"{key} = {value}" for key, value in options.items() if not re.search(rf"(?i)\b{key}\s*:?=", call)]
        return cls(name, f"{', '.join([call[:-1], *added])})", kind)

    def compared(self, kinds: Mapping[str, str]) -> str:
        """Return the SQL for the rows with types (`t`) beside their texts (`x`). `kinds`: the types of the columns."""
        if self.kind == "json":
            columns = ", ".join(f"{literal(name)}: 'JSON'" for name in kinds)
            return f"FROM {self.call} t POSITIONAL JOIN {self.call[:-1]}, columns = {{{columns}}}) x"
        call = self.call.replace(", sample_size = -1", "")[:-1]  # all rows were looked at for `kinds`
        types = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in kinds.items())
        has_formats = any(kind.startswith(_TIMES) for kind in kinds.values()) or "types" in call.lower()
        typed = self.call if has_formats else f"{call}, types = {{{types}}})"
        return f"FROM {typed} t POSITIONAL JOIN {call}, all_varchar = true) x"

    def pair(self, name: str, kind: str) -> tuple[str, str]:
        """Return the SQL for a column's text in the file, and for the text of its value with a type."""
        column = quoted(name)
        if self.kind == "csv":
            return f"x.{column}::VARCHAR", f"t.{column}::VARCHAR"
        if _is_nested(kind):  # without members that are null, which every object gets that lacks them
            text, value = f"x.{column}", f"to_json(t.{column})"
            return f"json_merge_patch('{{}}', {text})::VARCHAR", f"json_merge_patch('{{}}', {value})::VARCHAR"
        text, value = f"(x.{column}->>'$')", f"t.{column}::VARCHAR"
        if kind != "DOUBLE":
            return text, value
        return text, f"CASE WHEN length({text}) < 16 AND {text}::DOUBLE = t.{column} THEN {text} ELSE {value} END"

    def remedy(self, name: str) -> str:
        """Return the option of DuckDB's function that keeps the texts of a column."""
        kinds = f"{literal(name)}: 'VARCHAR'"
        return f"types = {{{kinds}}} of read_csv" if self.kind == "csv" else f"columns = {{{kinds}, …}} of read_json"


def shown(connection: Any, query: str) -> list[dict[str, Any]]:
    """Return the nodes of a query, as DuckDB's parser shows them; few for a query such as PIVOT."""
    ((text,),) = connection.execute("SELECT json_serialize_sql($1)", [query]).fetchall()
    return [node for node in nested(json.loads(text)) if isinstance(node, dict)]


def with_options(connection: Any, query: str, nodes: Sequence[dict[str, Any]]) -> tuple[str, list[ReadFile]]:
    """Return a query that reads its files with our options, and the files."""
    data, files = query.encode(), list[ReadFile]()
    for node in sorted(nodes, key=lambda node: -node.get("query_location", 0)):
        start = node.get("query_location", 0)
        source = data[start:].decode("utf-8", "replace")
        if node.get("type") == "BASE_TABLE":
            name = ".".join(filter(None, (node["schema_name"], node["table_name"])))
            reader, written = READERS.get(getattr(reading(Path(name)), "key", ""), ""), _NAME.match(source)
            if not reader:
                continue
            file = ReadFile.of(name, f"system.main.{reader}({literal(name)})", reader.removeprefix("read_"))
            old, alias = written[0] if written else "", Path(name).name.partition(".")[0]
            if not old:  # DuckDB does not know the place, such as in SUMMARIZE 'a.csv'
                connection.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS FROM {file.call}")
        elif node.get("type") == "TABLE_FUNCTION" and (found := _FUNCTION.match(source)):
            old, alias = _call(source), node["function"]["function_name"]
            file = ReadFile.of(old, old, (found[1] or found[2]).lower().removeprefix("nd"))
        else:
            continue
        files.append(file)
        new = file.call if node["alias"] else f"{file.call} AS {quoted(alias)}"
        data = data[:start] + new.encode() + data[start + len(old.encode()) :] if old else data
    return data.decode(), files


def _call(source: str) -> str:
    """Return the call at the start of a text.

    >>> _call("read_csv(['a).csv']) AS t (id)")
    "read_csv(['a).csv'])"
    """
    depth = 0
    for found in _BRACKETS.finditer(source):
        depth += {"(": 1, ")": -1}.get(found[1], 0)
        if found[1] == ")" and depth == 0:
            return source[: found.end()]
    return source


class Texts:
    """The texts of the files of a query, for the columns of its result."""

    def __init__(
        self, connection: Any, rows: str, nodes: Sequence[dict[str, Any]], warn: Callable[[str], None]
    ) -> None:
        """`rows`: the table of the result, in SQL."""
        self._connection, self._rows, self._warn = connection, rows, warn
        self._columns = self._types(f"FROM {rows}")
        references = [node for node in nodes if node.get("class") == "COLUMN_REF"]
        self._sources = {node["alias"]: node["column_names"][-1] for node in references if node["alias"]}
        self._used = {name.lower() for node in references for name in node["column_names"]}
        writing = [node for node in nodes if _WRITING.fullmatch(str(node.get("function_name", node.get("type"))))]
        self._written = {str(name).lower() for name in nested(writing)} & self._used
        self._has_star = any(node.get("class") == "STAR" for node in nodes)
        self._computed = {str(node["key"]) for node in nodes if "key" in node} | {
            str(node["alias"]) for node in nodes if node.get("class", "COLUMN_REF") != "COLUMN_REF"
        }

    def restore(self, files: Iterable[ReadFile]) -> None:
        """Give the columns of the result the texts of the files, and report the columns that cannot have them."""
        for file in {file.call: file for file in files}.values():
            if file.kind == "parquet":
                self._report_types(file)
            if file.kind == "parquet" or _TYPED.search(file.call):
                continue
            kinds = self._types(f"FROM {file.call}")
            names = [name for name, kind in kinds.items() if kind != "VARCHAR" and self._is_used(name)]
            compared, pairs = file.compared(kinds), [file.pair(name, kinds[name]) for name in names]
            differ = [f"first([{text}, {value}]) FILTER ({text} <> {value})" for text, value in pairs]
            examples = self._one(f"SELECT {', '.join(differ)} {compared}") if differ else ()
            for name, (text, _), example in zip(names, pairs, examples, strict=True):
                texts = f"SELECT t.{quoted(name)} AS v, min({text}) AS text, count(DISTINCT {text}) AS n {compared}"
                if example and not self._is_right(name, kinds[name], f"{texts} GROUP BY ALL", example):
                    read = f"DuckDB reads {name} of {file.name} as {kinds[name]}: {example[0]} is {example[1]}."
                    self._warn(f"{read} The option {file.remedy(name)} keeps the texts.")
            if file.kind == "csv" and not _MANY.search(file.call):  # DuckDB describes one file alone
                self._report_lines(file)

    def _types(self, query: str) -> dict[str, str]:
        return {name: kind for name, kind, *_ in self._connection.execute(f"DESCRIBE {query}").fetchall()}

    def _one(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()

    def _is_used(self, name: str) -> bool:
        return self._has_star or name.lower() in self._used

    def _source(self, column: str) -> str:
        """Return the name of the column that a column of the result repeats, in small letters."""
        seen = {column}
        while (source := self._sources.get(column, column)) not in seen:
            seen.add(column := source)
        return column.lower()

    def _is_right(self, name: str, kind: str, texts: str, example: Sequence[str]) -> bool:
        """Give the columns of the result that repeat a file's column the `texts` of its values (SQL). Return False if
        they cannot have them, or if the query used a value that is not equal to its text, as in the `example`."""
        is_date, is_nested = kind.startswith(_TIMES), _is_nested(kind)
        repeats = [
            column
            for column, each in self._columns.items()
            if each == kind and self._source(column) == name.lower() and not is_nested and column not in self._computed
        ]
        if repeats:
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE texts AS {texts}")
        is_right = not is_nested and name.lower() not in self._written
        is_right &= bool(repeats and not is_date) or _is_equal(*example, is_date=is_date)
        for column in repeats:
            joined = f"{self._rows} r LEFT JOIN temp.texts x ON r.{quoted(column)} = x.v"
            found = "count_if(x.v IS NULL), max(x.n), bool_and(regexp_full_match(x.text, '0|-?[1-9][0-9]{0,37}'))"
            unknown, most, is_whole = self._one(f"SELECT {found} FROM {joined} WHERE r.{quoted(column)} IS NOT NULL")
            is_right &= unknown == 0 and (most or 0) < 2
            if unknown == 0:
                text = "x.text::HUGEINT" if is_whole and kind == "DOUBLE" else "x.text"
                rows = f"SELECT r.* REPLACE ({text} AS {quoted(column)}) FROM {joined} ORDER BY r.rowid"
                self._connection.execute(f"CREATE OR REPLACE TABLE {self._rows} AS {rows}")
                self._columns[column] = ""
        return is_right

    def _report_types(self, file: ReadFile) -> None:
        """Report the columns of Parquet files that have several types."""
        if not _MANY.search(file.call):
            return
        files = file.call.partition("(")[2].partition(", union_by_name")[0]
        kinds = f"SELECT name, list(duckdb_type) AS kinds FROM parquet_schema({files}) GROUP BY file_name, name"
        query = f"SELECT name FROM ({kinds}) GROUP BY name HAVING count(DISTINCT kinds) > 1 ORDER BY name"
        for (name,) in self._connection.execute(query).fetchall():
            if self._is_used(name):
                self._warn(f"The files of {file.name} have {name} in several types; DuckDB converts them to one.")

    def _report_lines(self, file: ReadFile) -> None:
        """Report the first lines of a CSV file that DuckDB skips, and signs that it takes for quotes."""
        call = file.call.replace(", sample_size = -1", "")
        sniffed = re.sub(r"(?i)read_csv(_auto)?", "sniff_csv", call, count=1)
        skipped, quote = self._one(f"SELECT SkipRows, Quote FROM {sniffed}")
        if skipped:
            self._warn(f"DuckDB reads {file.name} from line {skipped + 1} on.")
        if quote == "'":
            self._warn(f"DuckDB reads ' in {file.name} as quotes; the option quote = '\"' of read_csv keeps them.")


def _is_nested(kind: str) -> bool:
    return kind.endswith((")", "]")) and not kind.startswith(("DECIMAL", "ENUM"))


def _is_equal(text: str, value: str, *, is_date: bool) -> bool:
    """Return whether a value that DuckDB read from a text is certainly equal, so that only its form differs.

    >>> _is_equal("2.50", "2.5", is_date=False), _is_equal("01/02/24", "2001-02-24", is_date=True)
    (True, False)
    """
    if is_date:
        return text[:10] == value[:10]
    try:
        return Decimal(text) == Decimal(value)
    except InvalidOperation:
        return True  # a text that is no number: true and false, times, UUIDs
