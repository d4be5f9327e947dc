"""Text outputs: CSV, TSV, lines of JSON, arrays of JSON, and lines of Batch files."""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import orjson

from promptmill.config import backends
from promptmill.core import values
from promptmill.core.errors import Code, PromptmillError, words_of
from promptmill.core.feature import Format, part
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import mended
from promptmill.files import json_values
from promptmill.files.delimited import readable
from promptmill.files.path_formats import plain
from promptmill.jobs.columns import column_names
from promptmill.jobs.columns.column_names import ANSWER_FIELDS, MODEL, PROBABILITY, VARIANT, check_width, usual_name
from promptmill.jobs.columns.column_values import answer_fields
from promptmill.jobs.columns.schema_columns import FIELD, PROBABILITY_OF, SCORE_OF, LabelList
from promptmill.jobs.export.answered import AnsweredRow, divided
from promptmill.jobs.export.batch_output import batch_output
from promptmill.jobs.inputs.question_columns import distinct
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase, Row
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SCORES, SLOT

CUSTOM_ID, INDEX = "custom_id", "index"
_INFINITE = b"Infinity"  # as `values.dumps` writes infinite numbers
_QUOTE, _TWO = '"', '""'
_OF_FIELDS = ((FIELD, "answer"), (PROBABILITY_OF, PROBABILITY), (SCORE_OF, SCORES))
_HAS_LONG_NUMBER = f"{statistics.DELIVERED} AND (text GLOB '*{16 * '[0-9]'}*' OR text GLOB '*[0-9][eE][0-9+]*')"
"""The SQL condition for answers that have an exponent, or 16 digits in a row, which a float may not hold exactly."""


class OwnValues:
    """The values of a row that come from the input, by column name."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._names = distinct(list(map(readable, spec.input.header)))
        self.surplus = (spec.output.names or {}).get("surplus_cells", "surplus_cells")
        """The name of the column for surplus cells, which a row has if it has more cells than the header."""
        forms = {"batch": self._of_batch, "messages": self._of_call}
        others = self._of_cells if spec.input.kind.is_table else json_object
        self._are_texts = spec.input.kind.rows == "texts"
        self.of: Callable[[Row], JsonDict] = forms.get(spec.input.format, others)
        """Returns the values of a row; `{}` for an unreadable row of JSON, whose record has the error."""

    def in_json(self, row: Row) -> JsonDict:
        """Return the values of a row with infinite numbers as texts, as in CSV. (In JSON, they would become null.)"""
        own = self.of(row)
        return {name: _finite(value) for name, value in own.items()} if _INFINITE in (row.cells or b"") else own

    def names_in(self, stored: Iterable[Row]) -> list[str]:
        """Return the columns of all rows. Raises `PromptmillError` (`invalid_input`) if there are too many."""
        if self._spec.input.format == "batch":
            return [CUSTOM_ID]
        if self._spec.of_call:
            return [INDEX]
        names = dict.fromkeys(self._names)
        for row in stored:
            if not self._names or row.line is not None:  # a row of a table has surplus cells only if it has an error
                names |= dict.fromkeys(self.of(row))
                check_width(len(names) - len(self._names))
        return list(names)

    def possible_names(self, stored: Iterable[Row]) -> list[str]:
        """Return the columns that `names_in` may return, including the one for surplus cells, without reading the rows
        of a table. Raises as `names_in`."""
        if not self._names:
            return self.names_in(stored)
        return [*self._names, self.surplus] if self._are_texts else self._names

    def _of_cells(self, row: Row) -> JsonDict:
        cells = values.loads(row.cells or b"[]")
        if self._are_texts:
            cells = list(map(readable, cells))
        fields = dict(zip(self._names, cells, strict=False))
        if len(cells) > len(self._names):
            fields[self.surplus] = cells[len(self._names) :]
        return fields

    @staticmethod
    def _of_call(row: Row) -> JsonDict:
        return {INDEX: row.n}

    @staticmethod
    def _of_batch(row: Row) -> JsonDict:
        """Return the only value that a table takes from a Batch line: the line's id."""
        asked = json_object(row)
        value = asked.get(CUSTOM_ID)
        return {CUSTOM_ID: value if isinstance(value, str | None) else cell(value)}


class AnswerValues:
    """The columns that the job adds to an output, and their values for a row."""

    def __init__(self, spec: JobSpec, extra: Iterable[str] = (), chosen: Collection[str] = ()) -> None:
        """`extra`: the optional fields that at least one answer has. `chosen`: the columns to keep; `()` keeps all."""
        self._chosen = frozenset(chosen)
        self._spec, self._renamed = spec, spec.output.names or {}
        self.schema = schema = column_names.schema_columns(spec)
        self._variants = column_names.variant_fields(spec)
        keys = column_names.keys_in_order(spec, {*extra}, schema)
        if schema is not None and schema.names and "probabilities" not in self._chosen:
            keys = [key for key in keys if key != "probabilities"]  # each field's probability is next to the field
        self.names = {key: self._renamed.get(key, usual_name(key)) for key in keys if self._has(key)}
        """The names of the columns in a table, by key."""
        self._is_usual = schema is None and not self._variants and not spec.plan.fields
        """Whether all values for a row come from its record alone."""

    def _has(self, key: str) -> bool:
        """Return whether the output has a column. Columns that distinguish several answers to a row are always kept."""
        if not self._chosen or key in self._variants:
            return True
        usual = next((name for prefix, name in _OF_FIELDS if key.startswith(prefix)), key)
        return not self._chosen.isdisjoint((key, usual))

    @property
    def names_in_json(self) -> list[str]:
        """The names of the fields that the job adds to each row of JSON."""
        order = [*self._variants, *ANSWER_FIELDS, *self._spec.plan.fields]
        return [self._renamed.get(name, name) for name in order if self._has(name)]

    def in_json(self, answered: AnsweredRow) -> JsonDict:
        """Return the fields that the job adds to a row of JSON, by their names in the output."""
        if self._is_usual and not self._chosen:
            return answer_fields(answered.record, self._renamed)
        fields = answer_fields(answered.record)
        if self.schema is not None:
            fields = self.schema.in_json(fields)
        fields = {**self._variant(answered), **fields, **self._marks(answered)}
        return {self._renamed.get(name, name): value for name, value in fields.items() if self._has(name)}

    def in_table(self, answered: AnsweredRow) -> JsonDict:
        """Return the values that the job adds to a row of a table, by the keys of their columns."""
        record = answered.record
        fields = answer_fields(record)
        if not fields["answer"] and (payload := record.extras.get("details", {}).get("payload")) is not None:
            fields["answer"] = cell(payload)  # the vectors that the Batch line requested
        if self.schema is not None:
            fields = self.schema.in_table(fields)
        return fields if self._is_usual else {**self._variant(answered), **fields, **self._marks(answered)}

    def _marks(self, answered: AnsweredRow) -> dict[str, Any]:
        return self._spec.plan.marks(self._spec, answered.record, answered.beside)

    def in_order(self, answered: AnsweredRow) -> list[Any]:
        """Return the values of `in_table` in the order of `names`. An error becomes the text `code: message`."""
        fields = self.in_table(answered)
        error = fields["error"]
        fields["error"] = f"{error['code']}: {error['message']}" if error else None
        return [fields.get(key) for key in self.names]

    def in_cells(self, answered: AnsweredRow) -> list[str]:
        """Return the values of `in_order` as cells of CSV."""
        record = answered.record
        if self._is_usual and record.code is None and record.more is None and record.vector is None:
            texts = {
                "answer": record.text,
                "usage": _usage_cell(record.prompt_tokens, record.completion_tokens),
                "finish_reason": record.finish_reason or "",
                "reasoning": record.reasoning or "",
            }
            return [texts.get(name, "") for name in self.names]
        return list(map(cell, self.in_order(answered)))

    def _variant(self, answered: AnsweredRow) -> dict[str, str]:
        if not self._variants:
            return {}
        target = self._spec.targets[answered.slot]
        values_ = {MODEL: target.model, VARIANT: target.name}
        return {name: values_[name] for name in self._variants}


class OutputForm:
    """The columns and values of an output with the rows of one or several databases."""

    def __init__(self, stores: Sequence[JobDatabase], spec: JobSpec, output_format: Format) -> None:
        self.divided = divided(spec)
        """Takes a row of the input, and returns the output rows that are made from it."""
        self.spec = spec = spec.in_output
        self.format, self._stores = output_format, stores
        self.own = OwnValues(spec)
        # only the columns of a table depend on all rows
        extra = {name for store in stores for name in statistics.extra_fields(store)} if output_format.is_table else ()
        self.answers = AnswerValues(spec, extra, spec.output.form.columns)

    def stored(self) -> Iterator[Row]:
        """Yield all rows, without their answers."""
        return itertools.chain.from_iterable(store.rows() for store in self._stores)

    @cached_property
    def names(self) -> list[str]:
        """The columns of the input. Raises `PromptmillError` (`invalid_input`) if there are too many."""
        return self.own.names_in(self.stored())

    def fields_to_measure(self) -> Iterator[JsonDict]:
        """Yield the `answer_fields` of those output rows whose answers may not fit into the usual types. These are rows
        with a number that may need more than 64 bits or, if the schema has dates, all rows."""
        schema = self.answers.schema
        where = statistics.DELIVERED if schema is not None and schema.has_dates else _HAS_LONG_NUMBER
        for store in self._stores:
            for record in store.records(where=where):
                row = AnsweredRow(Row(record.key % SLOT, None, None, None), record.slot, record)
                yield from (answer_fields(each.record) for each in self.divided(row) if record.is_sound)

    @cached_property
    def dimensions(self) -> int | None:
        """The length of each vector, if answers are vectors; 0 if vectors differ in length; None for other answers."""
        lengths = {length for store in self._stores for length in statistics.vector_lengths(store)}
        return None if not lengths else lengths.pop() if len(lengths) == 1 else 0

    @property
    def folder(self) -> Path:
        """A folder on the disk of the job, for temporary files."""
        return self._stores[0].path.parent

    @property
    def header(self) -> list[str]:
        """All columns of a table, including the columns that the job adds."""
        return [*self.names, *self.answers.names.values()]

    def possible_columns(self, extra: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the columns of the input, and the columns that the job may add to a table. Raises as `names`.

        `extra`: the optional fields that answers may have.
        """
        answers = AnswerValues(self.spec, extra, self.spec.output.form.columns)
        return self.own.possible_names(self.stored()), [*answers.names.values()]

    def rows(self, answered: Iterable[AnsweredRow]) -> Iterator[AnsweredRow]:
        """Divide rows of the input into rows of the output, and return the latter."""
        return itertools.chain.from_iterable(map(self.divided, answered))

    def own_values(self, row: Row) -> list[Any]:
        """Return the values that a row has from the input, in the order of `names`."""
        return list(map(self.own.of(row).get, self.names))

    def values(self, answered: AnsweredRow) -> list[Any]:
        """Return the values of a row and its answer in the order of `header`."""
        return [*self.own_values(answered.row), *self.answers.in_order(answered)]


@dataclass(frozen=True, slots=True)
class TextForm:
    """The text form of an output: its header, and a function that converts a row to bytes."""

    row: Callable[[AnsweredRow], bytes]
    """Returns the bytes of a row, with a line end."""
    header: bytes = b""
    """The bytes before the first row."""


def text_form(form: OutputForm) -> TextForm:
    """Return the text form of an output."""
    spec, own, answers = form.spec, form.own, form.answers
    if delimiter := form.format.delimiter:
        style = spec.input.style
        mark, end = codecs.BOM_UTF8 if style.has_bom else b"", style.line_end
        if spec.input.kind.rows == "texts":
            delimiter = style.delimiter if form.format is spec.input.kind else delimiter
            header = mark + cells_line([*spec.input.header, *answers.names.values()], delimiter, end)
            return TextForm(functools.partial(_cells_of_cells, len(spec.input.header), answers, delimiter, end), header)
        if delimiter == "," and style.delimiter.strip():  # the rows come from a CSV file, such as groups
            delimiter = style.delimiter
        header = mark + cells_line(form.header, delimiter, end)
        return TextForm(lambda answered: cells_line(map(cell, form.values(answered)), delimiter, end), header)
    if spec.input.format == "batch":
        return TextForm(functools.partial(_batch_line, spec))
    if spec.input.kind.is_table or spec.input.kind.rows == "requests":
        return TextForm(lambda answered: json_values.json_line(own.in_json(answered.row) | answers.in_json(answered)))
    return TextForm(lambda answered: json_line(answered.row.cells or b"", answers.in_json(answered)))


def write_lines(out: IO[bytes], text: TextForm, answered: Iterable[AnsweredRow]) -> None:
    """Write a whole output. Raises `OSError`, and the errors of `answered`."""
    write, row = out.write, text.row
    write(text.header)
    for each in answered:
        write(row(each))


def write_array(out: IO[bytes], form: OutputForm, answered: Iterable[AnsweredRow], target: Path | None = None) -> str:
    """Write an array of JSON, with one row in each line. Return `""`: no warning. Raises as `write_lines`."""
    del target
    write, row, separator = out.write, text_form(form).row, b"[\n"
    for each in answered:
        write(separator + row(each).removesuffix(b"\n"))
        separator = b",\n"
    write(b"[]\n" if separator == b"[\n" else b"\n]\n")
    return ""


def write_mappings(
    out: IO[bytes], form: OutputForm, answered: Iterable[AnsweredRow], target: Path | None = None
) -> None:
    """Write an output with a feature's function `Format.write`, which takes the rows (as mappings) and a path.

    Raises `OSError`; the errors of `answered`; `PromptmillError` (`storage`) for other errors of the feature.
    """
    name = f"answers{form.format.names[0]}" if target is None else plain(target).name
    row, failed = text_form(form).row, list[Exception]()

    def rows_of() -> Iterator[JsonObject]:
        try:
            for each in answered:
                yield json_values.load(row(each), "")
        except Exception as error:
            failed.append(error)
            raise

    with tempfile.TemporaryDirectory(dir=form.folder) as folder:
        file = Path(folder, name)
        try:
            part(form.format.write)(rows_of(), file)
        except (PromptmillError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 (each package has its own exceptions)
            if failed:
                raise failed[0] from None
            said = f"{name} cannot be written ({words_of(error, 200)})."
            raise PromptmillError(Code.STORAGE, said, "") from None
        with file.open("rb") as written:
            shutil.copyfileobj(written, out)


def _cells_of_cells(width: int, answers: AnswerValues, delimiter: str, end: str, answered: AnsweredRow) -> bytes:
    """Return a row of a table with its answer as a line of text; surplus cells come last."""
    own = json_values.load(answered.row.cells or b"[]", "")
    surplus = own[width:]
    own[width:] = [""] * (width - len(own))
    line = [_joined(own, delimiter), _joined([*answers.in_cells(answered), *surplus], delimiter)]
    return f"{delimiter.join(line)}{end}".encode("utf-8", "surrogateescape")


def _batch_line(spec: JobSpec, answered: AnsweredRow) -> bytes:
    takes_model = backends.record(spec.backend).any_model  # if True, the line was answered by the model that it names
    line = batch_output(
        answered.row.cells or b"",
        answered.record,
        job_id=spec.job_id,
        model=spec.model,
        created=spec.created,
        takes_model=takes_model,
    )
    return json_values.json_line(line)


def cells_line(cells: Iterable[str], delimiter: str, end: str = "\n") -> bytes:
    """Return a row of two or more cells in the form that `csv.writer` writes, in less than half of the writer's time.

    `csv` is slow because it compares each letter with the line end. Before Python 3.13, if the line end is a line feed,
    `csv` does not quote a lone carriage return, which readers take for the end of the row.
    """
    return f"{_joined(list(cells), delimiter)}{end}".encode("utf-8", "surrogateescape")


def _joined(cells: list[str], delimiter: str) -> str:
    text = delimiter.join(cells)
    # one check of the joined text is faster than one per cell; in most rows no cell needs quotes
    if _QUOTE not in text and "\n" not in text and "\r" not in text and text.count(delimiter) == len(cells) - 1:
        return text
    quoted = [
        f'"{cell.replace(_QUOTE, _TWO)}"'
        if delimiter in cell or _QUOTE in cell or "\n" in cell or "\r" in cell
        else cell
        for cell in cells
    ]
    return delimiter.join(quoted)


@functools.lru_cache(maxsize=1024)
def _usage_cell(prompt_tokens: int, completion_tokens: int) -> str:
    return cell({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens})


def cell(value: Any) -> str:
    """Return a value as a CSV cell: a text is unchanged, labels are joined, bytes become base64, other values JSON."""
    if value is None:
        return ""
    if isinstance(value, LabelList):
        return "; ".join(value)
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    text = json_values.json_line(_finite(value))[:-1].decode()
    return text[1:-1] if text[0] == '"' else text  # dates, decimals and bytes lose their quotes


def _finite(value: Any) -> Any:
    """Return a value in which infinite numbers are texts and NaN is None."""
    match value:
        case float() if not math.isfinite(value):
            return None if math.isnan(value) else cell(value)
        case dict():
            return {name: _finite(inner) for name, inner in value.items()}
        case list():
            return list(map(_finite, value))
    return value


def json_line(line: bytes, fields: JsonObject) -> bytes:
    """Return an output line: the bytes of an input line of JSON, with the answer's `fields` added."""
    line = line.strip().removeprefix(codecs.BOM_UTF8).strip()  # joined files may have a byte order mark in the middle
    try:
        value = json_values.load(line, "")
    except PromptmillError:
        value = None
    if not isinstance(value, dict):  # the line is unreadable, and its record has the error
        return json_values.json_line(fields)
    if b"NaN" in line or b"Infinity" in line:
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError:  # only Python reads such numbers
            return json_values.json_line(_finite(value) | fields)
    return b"%b%b%b" % (line[:-1].rstrip(), b"," if value else b"", json_values.json_line(fields)[1:])


def json_object(row: Row) -> JsonDict:
    """Return the object in a row of JSON; `{}` if the row is unreadable (its record has the error)."""
    own = row.cells or b""
    try:
        value = json_values.load(own, "")
    except PromptmillError:
        return {}
    if not isinstance(value, dict):
        return {}
    fields: JsonDict = mended(value) if b"\\u" in own else value  # a text may have half a surrogate pair
    return fields
