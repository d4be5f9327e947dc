"""One row for each group of rows with equal values in some columns, in the order in which the groups begin.

    rows ─▶ groups.db: the group of each row, the row's cells ─▶ {"hotel": …, "row_count": 40, "rows": "- …\\n- …"}

The rows are in a database on disk, so the memory depends on the largest group, not on the input.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from promptmill.core.bounds import LONGEST_ROW, TOO_LONG
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.values import JsonDict, JsonObject, dumps, loads, with_whole_numbers
from promptmill.features.groups.group_text import entry_of_cell, entry_of_cells, joined
from promptmill.files import json_values
from promptmill.files.row import Input
from promptmill.jobs.inputs.question_columns import distinct, text_column
from promptmill.jobs.rows import row_lines
from promptmill.jobs.rows.plain_template import PROMPT
from promptmill.jobs.rows.template import (
    ROW,
    check_names,
    mistyped_names_named,
    places_in,
    special_columns,
    template_of,
)
from promptmill.jobs.store.description import JobPrompts

ROWS, COUNT = "rows", "row_count"
_OPTION = Named("group_by")
_OF_ROWS = f"{ROWS}."
_LOOP = re.compile(r"\{%-?\s*for\b[^%]*\bin\s+rows\b")
_BEFORE_LIST = re.compile(r"(?<=\S)[ \t]*(?=\{\{-?\s*rows\b)")
_AFTER_LIST = re.compile(r"(\{\{-?\s*rows\b[^{}]*\}\})[ \t]*(?=\S)")
_LOOKED_AT = 100  # the first rows, whose fields become the columns, as for a job
_AT_ONCE = 1_000  # rows in one SQL statement
_TABLES = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -16384;
    CREATE TABLE known (id INTEGER PRIMARY KEY, key BLOB UNIQUE, own BLOB);
    CREATE TABLE member (known INTEGER, line BLOB);
"""
"""The groups, numbered in the order in which they begin, and their rows. There is no journal, because a kill leaves
nothing to resume; at most 16 MB of pages are in memory."""
_BEGIN_GROUP = "INSERT OR IGNORE INTO known (key, own) VALUES (?, ?)"
_ADD = "INSERT INTO member SELECT id, ? FROM known WHERE key = ?"
_MEMBERS = "SELECT rowid, line FROM member WHERE known = ? ORDER BY rowid"


class _Row(NamedTuple):
    """A row of the input."""

    line: bytes
    """The row as JSON: its cells, or an object."""
    cells: JsonObject


def grouped(
    source: Input, question: JobPrompts, by: str | Sequence[str], folder: Path
) -> tuple[JobPrompts, Iterator[bytes]]:
    """Return the question about groups of rows with equal values in the columns `by`, and a JSON line for each group.

    All rows are read now, into a database in `folder`; the lines are made later. Raises `PromptmillError`
    (`invalid_input`, `storage`), `OSError`.
    """
    header = distinct(source.header)
    rows = _rows_of(source, header)
    first = list(itertools.islice(rows, _LOOKED_AT))
    columns: Sequence[str] = header or list(dict.fromkeys(name for row in first for name in row.cells))
    wanted = _Wanted.of(question, [by] if isinstance(by, str) else list(dict.fromkeys(by)), columns, first)
    groups = _Groups(folder / "groups.db", wanted)
    columns = groups.read(itertools.chain(first, rows))
    lines = groups.lines(partial(_cells_of, header=header), columns)
    templates = tuple(map(_with_lines, question.templates))
    return question.model_copy(update={"templates": templates, "prompt_only": wanted.prompt_only}), lines


def _with_lines(prompt: str) -> str:
    """Return a prompt whose lists of rows are on separate lines.

    >>> _with_lines("Guests say: {{rows}} Summarise it.")
    'Guests say:\\n{{rows}}\\nSummarise it.'
    """
    return _AFTER_LIST.sub(r"\1\n", _BEFORE_LIST.sub("\n", prompt))


def _rows_of(source: Input, header: Sequence[str]) -> Iterator[_Row]:
    """Yield the rows of an input. An unreadable row raises `PromptmillError` (`invalid_input`) only after the last row,
    because the input itself may raise a better error before that."""
    problem = ""
    for stretch in source.stretches(list(enumerate(header))):
        for row in stretch.rows:
            where = f"{'Row' if header else 'Line'} {row.n + 1:,}"
            if row.problem:
                problem = problem or f"{where} cannot be read: {row.problem}"
                continue
            cells = row.fields if header else json_values.load(row.cells, where)
            if not isinstance(cells, Mapping):
                raise input_error(f"{where} is no object, so it has no column to group by.")
            yield _Row(row.cells, cells)
    if problem:
        raise input_error(problem)


def _cells_of(line: bytes, header: Sequence[str]) -> JsonDict:
    """Return the cells of a stored row by column."""
    cells: JsonDict = dict(zip(header, loads(line), strict=False)) if header else json_values.load(line, "")
    return cells


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The columns and lists in the prompts."""

    by: Sequence[str]
    equal: Sequence[str]
    listed: Sequence[str]
    """The fields that contain a group's rows: `rows`, or a field such as `rows.text`, which has only one column."""

    @classmethod
    def of(cls, question: JobPrompts, by: Sequence[str], columns: Sequence[str], first: Sequence[_Row]) -> _Wanted:
        """Return the columns and lists in the prompts. Raises `PromptmillError` (`invalid_input`) for an unknown
        column, and for a prompt without the rows; the error suggests a column that the prompt names, or that has the
        longest texts in the `first` rows."""
        if columns:
            check_names(by, columns, _OPTION)
        for name in (ROWS, COUNT):
            if name in by:
                raise input_error(_OPTION, f": {name} is the name of a column of the groups; rename this one.")
        lists = [ROWS, *(f"{_OF_ROWS}{name}" for name in columns)]
        known, used = [*columns, COUNT, *lists], set[str]()
        for text in question.templates:
            of_text = _names_in(text, known)
            if not of_text & {*lists}:
                others = [name for name in columns if name not in by]
                meant = [name for name in others if name in of_text] or others
                raise input_error(
                    PROMPT,
                    " has no {{rows}}, the rows of a group; {{rows.NAME}} has one of their columns alone, such as "
                    f"{{{{rows.{text_column(meant, [row.cells for row in first], 'text')}}}}}.",
                )
            used |= of_text
        if not question.templates:
            raise input_error(_OPTION, " needs ", PROMPT, " with {{rows}}.")
        equal = [name for name in columns if name in used and name not in {*by, *lists, COUNT}]
        return cls(by, equal, [name for name in lists if name in used])

    @property
    def prompt_only(self) -> tuple[str, ...]:
        """The fields that the output leaves out."""
        return (*self.equal, *self.listed)

    def fields(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Return the columns in each list. `columns`: the columns of all rows."""
        others = [name for name in columns if name not in {*self.by, *self.equal}]
        return {name: others if name == ROWS else [name.removeprefix(_OF_ROWS)] for name in self.listed}


def _names_in(text: str, known: Sequence[str]) -> set[str]:
    """Return the names that a prompt uses. Raises `PromptmillError` (`invalid_input`) for an unknown name."""
    if _LOOP.search(text):
        raise input_error(PROMPT, ": {{rows}} is a text, not a list; {{rows.NAME}} has one column of all rows.")
    with mistyped_names_named(text, known):
        names = {*template_of(text, known).names} | {*special_columns(text, known)}
    parts = (place.partition("|")[0].strip() for place in places_in(text))
    names |= {place for place in parts if place.startswith(_OF_ROWS)}
    check_names(names, known)
    return names - {ROW}


class _Groups:
    """The rows of an input in a database, by group."""

    def __init__(self, file: Path, wanted: _Wanted) -> None:
        self._wanted = wanted
        self._store = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._store.executescript(_TABLES)

    def read(self, rows: Iterable[_Row]) -> Sequence[str]:
        """Store all rows; return the columns that they have."""
        with _storage(), contextlib.ExitStack() as opened:
            opened.callback(self._store.close)
            columns = self._read(iter(rows))
            opened.pop_all()
        return columns

    def _read(self, rows: Iterator[_Row]) -> Sequence[str]:
        columns = dict[str, None]()
        self._store.execute("BEGIN")
        while some := list(itertools.islice(rows, _AT_ONCE)):
            own = [[_value(row.cells, name) for name in self._wanted.by] for row in some]
            keys = [dumps(_comparable(values)) for values in own]
            for row in some:
                columns |= dict.fromkeys(row.cells)
            begun = dict(zip(reversed(keys), reversed(own), strict=True))
            self._store.executemany(_BEGIN_GROUP, ((key, dumps(begun[key])) for key in dict.fromkeys(keys)))
            self._store.executemany(_ADD, zip((row.line for row in some), keys, strict=True))
        self._store.execute("CREATE INDEX by_group ON member (known)")
        self._store.execute("COMMIT")
        return list(columns)

    def lines(self, cells_of: Callable[[bytes], JsonObject], columns: Sequence[str]) -> Iterator[bytes]:
        """Yield a line of JSON for each group, and close the database. `cells_of` reads a stored row."""
        fields = self._wanted.fields(columns)
        with _storage(), contextlib.closing(self._store):
            for group, stored in self._store.execute("SELECT id, own FROM known ORDER BY id"):
                members = self._store.execute(_MEMBERS, (group,))
                rows = ((number, cells_of(line)) for number, line in members)
                own = dict(zip(self._wanted.by, loads(stored), strict=True))
                yield json_values.json_line(own | _fields_of(rows, self._wanted.equal, fields))


def _fields_of(
    rows: Iterable[tuple[int, JsonObject]], equal: Sequence[str], fields: Mapping[str, Sequence[str]]
) -> JsonDict:
    """Return the fields of a group. `rows`: the rows of the group, each with its number."""
    rows = iter(rows)
    number, first = next(rows)
    same = {name: _value(first, name) for name in equal}
    entries, count, size = {name: list[str]() for name in fields}, 0, 0
    group = f"the group that begins with row {number:,}"
    for _, cells in itertools.chain([(number, first)], rows):
        count += 1
        for name in equal:
            if _value(cells, name) != same[name]:
                problem = f": {{{{{name}}}}} has several values in {group}; write {{{{rows.{name}}}}}, or name it in "
                raise input_error(PROMPT, problem, _OPTION, ".")
        for field, columns in fields.items():
            if entry := _entry(cells, columns):
                entries[field].append(entry)
                size += len(entry)
        if size > LONGEST_ROW:
            remedy = "; {{rows.NAME}} has one column alone, and a further column makes smaller groups."
            raise input_error(_OPTION, f": {group} {TOO_LONG}{remedy}")
    return {COUNT: count, **same, **{field: joined(of_rows) for field, of_rows in entries.items()}}


def _entry(cells: JsonObject, columns: Sequence[str]) -> str:
    if len(columns) == 1:
        return entry_of_cell(cells.get(columns[0]))
    return entry_of_cells({name: cells.get(name) for name in columns})


def _value(cells: JsonObject, name: str) -> Any:
    """Return the value of a cell; None for an empty cell."""
    value = cells.get(name)
    return None if row_lines.emptiness(value) else value


def _comparable(value: Any) -> Any:
    """Return a value whose numbers are written alike if they are equal, as SQL and pandas compare them.

    >>> _comparable([1.0, Decimal("2.50"), "1.0", True]), _comparable([1, 2.5, "1", False])
    ([1, 2.5, '1.0', True], [1, 2.5, '1', False])
    """
    if isinstance(value, Decimal) and value.is_finite():
        exact = float(value)
        return _comparable(exact) if Decimal(str(exact)) == value else value.normalize()
    return [_comparable(inner) for inner in value] if isinstance(value, list) else with_whole_numbers(value)


@contextlib.contextmanager
def _storage() -> Iterator[None]:
    """Convert the errors of the database, such as a full disk, to `PromptmillError` (`storage`)."""
    try:
        yield
    except sqlite3.Error as error:
        raise PromptmillError(Code.STORAGE, f"The groups of rows cannot be stored: {error}.") from None
