"""Reads the input of a job once into the table `row` of its database, and binds the job's answers to the rows.

    input ─▶ rows ─▶ questions, digests ─▶ row_next ─ bind ─▶ row

After that, the job uses only its database, so the input may be edited or deleted. A column of the input keeps its name:
if the input has a column `answer`, the answers are in `answer_1`. The names are chosen here once for the whole input,
so every output and page of a job has the same names.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from promptmill.core.bounds import LONGEST_QUERY_S
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.values import JsonObject, holds_base64
from promptmill.files import encodings, json_values
from promptmill.files.delimited import readable
from promptmill.files.files import InputFiles, check_ratio
from promptmill.files.json_lines import is_array
from promptmill.files.path_formats import row_kind
from promptmill.files.row import WHOLE, Extent, Input, InputRow, Stretch, Style, Window, digest_of
from promptmill.jobs.columns import column_names
from promptmill.jobs.columns.column_names import check_width
from promptmill.jobs.inputs.question_columns import columns_of, distinct, questions_in
from promptmill.jobs.rows import row_lines
from promptmill.jobs.rows.row_questions import Questions, cells_of, joined, question_json
from promptmill.jobs.rows.template import check_names, special_columns
from promptmill.jobs.store import binding, statistics
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.order import Shard
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SLOT

_DatabaseRow: TypeAlias = tuple[int, bytes, bytes | None, bytes]
"""The columns of table `row`."""
_NO_QUESTION = bytes(16)
_PROBLEM = f'{{"{row_lines.PROBLEM}":'.encode()
_BYTES = b'"promptmill:bytes"'  # the tag of bytes in the cells of a row
_QUOTES = 4  # as JSON, a row may be this many times longer than in CSV, because of quotes and commas
_SEED = 0  # the same for all jobs, so that two jobs with a sample of the same input get the same rows
CALL_DISK_SHARE = 0.5
"""The share of the free disk space that the rows of a call may take."""
_LOOKED_AT = 100  # this many first rows are searched for wrong letters, and for each column of the prompt


def ingest(
    store: JobDatabase,
    spec: JobSpec,
    source: Input,
    work: Work,
    files: InputFiles | None = None,
    *,
    bind: Callable[..., Bound] = binding.bind,
    disk_share: float = 1.0,
) -> tuple[JobSpec, Bound]:
    """Read the rows of `source` into the database; return the job with its columns, and the counts of the binding.

    `files`: the files of the source, if it has any. Stretches at their beginning and end are not parsed again if they
    are unchanged since the last reading. `bind`: `binding.bind`, or a `partial` of it. `disk_share`: the share of the
    free disk that the rows may take; below 1 for a call, whose query may return any number of rows. Blocks.

    Raises `PromptmillError`: `invalid_input` if a file does not have its format or lacks a column, `storage` if the
    rows take more than `disk_share`; `OSError`; `DamagedError`; `HaltedError`; the errors of `bind`.
    """
    binding.begin(store)
    try:
        free = None if disk_share >= 1.0 else shutil.disk_usage(store.path.parent).free
        reader = _Reader(spec, source, work, files, None if free is None else int(free * disk_share))
        known = _Known.of(store, spec, source, files)
        stretches = [*known.head]
        for page, stretch in reader.pages(known.window):
            store.change(("INSERT INTO row_next VALUES (?, ?, ?, ?)", page))
            stretches.append((stretch.extent, stretch.digest))
        replaced = known.replaced(store, _total(stretches).rows)
        spec = reader.finished()
        parts = [[*extent, digest.hex()] for extent, digest in (*stretches, *known.tail)]
        if spec.question.sample is not None:
            _draw(store, spec.question.sample)
            parts = []  # no stretch is known, so that the next reading starts from the beginning
        store.put(stretches_next={"of": parts})
        bound = bind(store, spec, replaced=replaced, halt=work.halt)
    except BaseException:
        store.change(("DROP TABLE IF EXISTS row_next", [()]), ("DELETE FROM job WHERE name = ?", [("stretches_next",)]))
        raise
    return spec.model_copy(update={"to_bind": None}), bound


def _draw(store: JobDatabase, count: int) -> None:
    """Of the rows that were read, draw `count` at random, and delete the others."""
    numbers = [n for (n,) in store.read("SELECT n FROM row_next ORDER BY n")]
    if count < len(numbers):
        drawn = set(statistics.chance(_SEED).sample(numbers, count))
        store.change(("DELETE FROM row_next WHERE n = ?", [(n,) for n in numbers if n not in drawn]))


@dataclass(frozen=True, slots=True)
class _Known:
    """The unchanged stretches at the beginning (head) and the end (tail) of an input that was already read."""

    head: Sequence[tuple[Extent, bytes]] = ()
    tail: Sequence[tuple[Extent, bytes]] = ()
    window: Window = WHOLE
    """The part of the input between head and tail, which is parsed again."""
    first_of_tail: int = 0
    """The number that the first row of the tail had at the last reading."""

    @classmethod
    def of(cls, store: JobDatabase, spec: JobSpec, source: Input, files: InputFiles | None) -> _Known:
        """Return the unchanged stretches; none if the options for reading have changed. Raises `OSError`."""
        if files is None or not files.is_plain or not spec.is_read:  # all is read again
            return cls()
        if (stored := store.get("stretches")) is None or tuple(source.header) != spec.input.header:
            return cls()
        known = [(Extent(*extent), bytes.fromhex(digest)) for *extent, digest in stored["of"]]
        if not known or spec.question.sample is not None:
            return cls()
        head = tail = 0
        with files.stream() as stream:
            if is_array(files.parts[0].path, stream):
                return cls()
            stream.seek(0)
            for extent, digest in known:
                data = stream.read(extent.size)
                if digest_of(data) != digest or not data.endswith(b"\n"):  # changed, or the last line may have grown
                    break
                head += 1
            end = stream.seek(0, os.SEEK_END)
            before = _total(known[:head])
            while tail < len(known) - max(head, 1):  # without the first stretch, which may have the header
                extent, digest = known[-1 - tail]
                if not extent.size or end - extent.size < max(before.size, 1):
                    break
                stream.seek(end - extent.size - 1)
                if stream.read(1) != b"\n" or digest_of(stream.read(extent.size)) != digest:
                    break
                end, tail = end - extent.size, tail + 1
        first = _total(known[: len(known) - tail]).rows
        # Rows with an error are read again, because the error names a line number, which may have changed.
        names_lines = "SELECT 1 FROM row WHERE n >= ? AND substr(line, 1, ?) = ? LIMIT 1"
        if spec.output.shard is not None or (tail and store.read(names_lines, first, len(_PROBLEM), _PROBLEM)):
            return cls(known[:head], (), Window(before))  # the rows of a shard may have other numbers now
        return cls(known[:head], known[len(known) - tail :], Window(before, end), first)

    def replaced(self, store: JobDatabase, first: int) -> range:
        """Return the numbers of the rows that `row_next` replaces. `first`: the new number of the tail's first row.

        If the numbers of the tail's rows have changed, these rows are copied into `row_next` too.
        """
        begin = self.window.before.rows
        if self.tail and first == self.first_of_tail:
            return range(begin, first)
        if self.tail:
            query = "INSERT INTO row_next SELECT n + ?, asked, line, cells FROM row WHERE n >= ?"
            store.change((query, [(first - self.first_of_tail, self.first_of_tail)]))
        return range(begin, SLOT)


def _total(stretches: Sequence[tuple[Extent, bytes]]) -> Extent:
    return functools.reduce(Extent.__add__, (extent for extent, _ in stretches), Extent())


class _Reader:
    def __init__(
        self, spec: JobSpec, source: Input, work: Work, files: InputFiles | None, most_bytes: int | None
    ) -> None:
        """`most_bytes`: the most bytes that the rows of a call may take; None if the rows are not from a call."""
        self._spec, self._source, self._work = spec, source, work
        self._size = None if files is None else files.stamp()[0]
        self._kind = row_kind(spec.input.format)
        self._fields: tuple[str, ...] = spec.input.fields
        self._questions: Sequence[Questions] = ()
        self._columns: Sequence[tuple[int, str]] = ()
        self._stores_questions = False
        self._shard = None if spec.output.shard is None else Shard.parse(spec.output.shard)
        self._is_table = spec.input.kind.is_table
        if self._is_table:
            self._prepare(())
        self._blank: Counter[str] = Counter()
        self._packed: Counter[str] = Counter()
        self._twice = 0
        self._names = _Names(spec, source.header)
        self._most_bytes, self._is_whole = most_bytes, True
        is_query = any(part.query for part in spec.input.parts)
        self._is_of_call = is_query and most_bytes is not None
        self._began = time.monotonic()

    def _prepare(self, first: Sequence[InputRow]) -> None:
        """Make the questions. `first`: the first rows, if they are objects; a template may name any of their fields."""
        spec = self._spec
        seen = {name for row in first[:_LOOKED_AT] if isinstance(value := _value(row), dict) for name in value}
        fields = {name for text in spec.question.templates for name in special_columns(text, seen)}
        self._fields = tuple(sorted(fields.union(self._fields)))
        self._questions = questions_in(spec.question, spec.input.format, self._source, self._fields)
        self._columns = columns_of(self._questions)
        self._stores_questions = bool(spec.question.prompt_only) or not all(one.is_plain for one in self._questions)

    def pages(self, window: Window) -> Iterator[tuple[list[_DatabaseRow], Stretch]]:
        """Yield the rows in the form for the database, one stretch at a time."""
        total, size, self._is_whole = 0, 0, window == WHOLE
        row_of = self._table_row if self._is_table else self._object_row
        for stretch in self._source.stretches(self._columns, window):
            self._work.check()
            if not self._questions:
                self._prepare(stretch.rows)
            if self._size is not None:
                size += sum(len(row.cells) for row in stretch.rows)
                check_ratio(size // _QUOTES, self._size)
            page = [row_of(row) for row in stretch.rows if self._has(row)]
            if self._most_bytes is not None:
                total += sum(len(cells) + len(line or b"") for _, _, line, cells in page)
                if total > self._most_bytes:
                    raise _too_large(self._most_bytes)
            yield page, stretch
            if stretch.rows:
                if self._is_of_call:
                    self._check_query()
                self._work.note(stretch.rows[-1].n + 1)

    def _check_query(self) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the query of a call takes too long."""
        less = Named("limit", text="; {} reads the first ones")
        if time.monotonic() - self._began > LONGEST_QUERY_S:
            raise input_error(Named("sql"), f" takes more than {LONGEST_QUERY_S:,} s, the most of a call", less, ".")

    def finished(self) -> JobSpec:
        """Return the job with its columns. Call it after all rows were read."""
        if self._is_whole:  # a row outside of the window may have the column
            self._names.check_templates(self._questions)
        return self._names.named().with_input(
            fields=self._fields,
            style=self._spec.input.style if self._source.style == Style() else self._source.style,
            blank=dict(self._blank),
            packed=dict(self._packed),
            twice=self._twice,
        )

    def _has(self, row: InputRow) -> bool:
        """Return whether a row belongs to the job. Rows of other shards only affect the names of the columns."""
        if self._shard is None or self._shard.has(row.n):
            return True
        if not self._is_table:
            self._object(row)
        return False

    def _object(self, row: InputRow) -> Any:
        """Record the fields of a JSON row, and return the row's value; None if the row is unreadable."""
        value = _value(row)
        if isinstance(value, dict):
            self._names.see(value)
            if row.n < _LOOKED_AT:
                self._check_letters(row.n, value)
        return value

    def _check_letters(self, n: int, fields: JsonObject) -> None:
        """Record the first row with a text that was encoded twice. Usually, such texts occur in the first rows."""
        if not self._twice:
            texts = (value for value in fields.values() if isinstance(value, str) and not value.isascii())
            self._twice = n + 1 if any(map(encodings.is_encoded_twice, texts)) else 0

    def _table_row(self, row: InputRow) -> _DatabaseRow:
        n, cells, fields, problem = row
        if n < _LOOKED_AT:
            self._check_letters(n, fields or {})
        asked, line, blank = [], [], set[str]()
        for one in self._questions:
            try:
                if problem or fields is None:
                    raise input_error(problem)
                text = question_json(one.of(fields, blank))
            except PromptmillError as error:
                problem = error.message
                text = question_json({row_lines.PROBLEM: problem})
            asked.append(row_lines.digest("table", text) or _NO_QUESTION)
            line.append(cells_of({}, ()) if one.is_plain and not problem else text)
        self._blank.update(blank)
        if _BYTES in cells and fields and not problem:
            packed = (name for name, value in fields.items() if holds_base64(value))
            self._packed.update(name for name in packed if name not in self._spec.question.sourced_columns.values())
        stores = problem or self._stores_questions
        return n, b"".join(asked), joined(line) if stores else None, cells

    def _object_row(self, row: InputRow) -> _DatabaseRow:
        n, cells, _, problem = row
        question, count = self._spec.question, len(self._questions)
        if problem:
            return n, _NO_QUESTION * count, joined([question_json({row_lines.PROBLEM: problem})] * count), cells
        value = self._object(row)
        if not question.templates or not isinstance(value, dict):
            line = joined([cells] * count) if question.templates else None
            digest = row_lines.digest(self._kind, cells, question.column, row_settings=question.rows_set, value=value)
            return n, (digest or _NO_QUESTION) * count, line, cells
        asked, lines, is_stored, blank = [], [], self._stores_questions, set[str]()
        for one in self._questions:
            try:
                text = json_values.json_line(one.of(value, blank))[:-1]
                lines.append(cells_of(value, question.prompt_only) if one.is_plain else text)
            except PromptmillError as error:
                is_stored, text = True, question_json({row_lines.PROBLEM: error.message})
                lines.append(text)
            asked.append(row_lines.digest("jsonl", text, row_settings=question.rows_set) or _NO_QUESTION)
        self._blank.update(blank)
        if question.prompt_only:
            cells = json_values.json_line({name: value[name] for name in value if name not in question.prompt_only})[
                :-1
            ]
        return n, b"".join(asked), joined(lines) if is_stored else None, cells


def _value(row: InputRow) -> Any:
    """Return the value of a JSON row; None if the row is unreadable. (The reader of the line reports the error.)"""
    try:  # `suppress` would take a tenth of the time for a row
        return json_values.load(row.cells, "")
    except PromptmillError:
        return None


class _Names:
    """Chooses unused names for the columns that the job adds, and finds the input's columns that are settings."""

    def __init__(self, spec: JobSpec, header: Sequence[str]) -> None:
        self._spec, self._header = spec, header
        self._wanted = column_names.wanted_names(spec)
        self._compared = column_names.compared_in(spec.output.kind, fills_sheet=spec.fills_input)
        self._watched = column_names.possible_names(self._wanted, self._compared) | row_lines.SETTINGS
        self._settings = {*spec.input.settings_read}
        self._seen: dict[str, None] = {}
        """The fields of the first rows that are objects."""
        self._count = 0
        self._fields = set[str]()
        """The fields of all rows that are objects, if the output has a column for each field."""
        self._taken = {*spec.input.taken}
        if header:
            self._taken = self._settings = {*header, *distinct(list(map(readable, header)))}
        self._is_open = not header and spec.input.kind.rows != "requests"
        self._has_columns = self._is_open and spec.output.kind.is_table

    def see(self, row: JsonObject) -> None:
        """Record the fields of a row that is an object. Raises `PromptmillError` (`invalid_input`) if they are too many
        for the output."""
        self._count += 1
        if self._count <= _LOOKED_AT:
            self._seen.update(dict.fromkeys(row))
        if self._has_columns and not self._fields.issuperset(row):
            self._fields.update(row)
            check_width(len(self._fields))
        own = row if self._compared is str else list(map(self._compared, row))
        if self._is_open and not self._watched.isdisjoint(own):
            names = {name for name, form in zip(row, own, strict=True) if form in self._watched}
            self._taken |= names
            self._settings.update(name for name in names & row_lines.SETTINGS if not row_lines.is_null(row[name]))

    def check_templates(self, questions: Sequence[Questions]) -> None:
        """Raise `PromptmillError` (`invalid_input`) if a template names a column that none of the first rows has."""
        if not self._header and self._count:
            for one in questions:
                check_names(() if one.template is None else one.template.names, self._seen)

    def named(self) -> JobSpec:
        """Return the job with the names of its columns."""
        question = self._spec.question
        read = sorted(self._settings & row_lines.SETTINGS - {question.column}) if question.rows_set else []
        taken = () if self._header else tuple(sorted(self._taken))
        spec = self._spec.with_input(header=tuple(self._header), settings_read=tuple(read), taken=taken)
        return spec.with_output(names=column_names.unusual_names(self._wanted, self._taken, self._compared))


def _too_large(most_bytes: int) -> PromptmillError:
    problem = f"The rows with their prompts take more than {most_bytes:,} bytes, the most that this job may write here."
    return PromptmillError(Code.STORAGE, problem, "Free disk space, shorten the template, or split the input.")
