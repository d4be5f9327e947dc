"""Converts rows of a Python program to lines of JSON, and adds the answers to a table of the same kind as the rows.

Tables and columns of pandas, polars, pyarrow, numpy and `datasets` are recognized by their methods, so that these
libraries need not be imported.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime as dt
import functools
import html
import io
import itertools
import re
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from promptmill.answers.response_format import AnswerType, json_schema_of
from promptmill.backends.vectors import words_of
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.money import dollars
from promptmill.core.values import JsonObject, plain_text, short_float
from promptmill.core.wording import counted, cut, shape
from promptmill.files import json_values
from promptmill.jobs.columns.column_names import EXTRA_FIELDS, OURS, PROBABILITY, VARIANT
from promptmill.jobs.inputs import input_rows as given
from promptmill.jobs.inputs.question_columns import distinct
from promptmill.jobs.store.records import SCORES
from promptmill.jobs.store.status_record import shares_of
from promptmill.system.safe_open import home_expanded

if TYPE_CHECKING:
    from promptmill.jobs.columns.schema_columns import SchemaColumns

_AT_ONCE = 1024
_ANSWERS = ("answer", "error", "finish_reason")
_LISTING = ("to_pylist", "tolist", "to_list", "as_py")
_SHORT_FLOAT = re.compile(r"(?i)\b(?:(half_?float|float16)|float32|float|f)\b")
_ZEROS = re.compile(r"(?<=:\d\d)\.0+$|(?<=\.\d{6})000$")


@dataclass(frozen=True, repr=False)
class BulkResult:
    """All rows and their answers, in the order of the input."""

    status: Mapping[str, Any]
    """Counts, tokens, seconds and cost of the whole job, as in `promptmill jobs`."""
    rows: list[dict[str, Any]]
    """Each row with `answer`, `error`, `usage`, `finish_reason`; empty if rows and output are files."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The new names of the columns whose usual names are already fields of the rows, by usual name."""
    output: Path | None = None
    given: Any = None
    answer_schema: AnswerType | None = None
    numbers: Sequence[int] = ()
    """The index of each row in the input. `skip_empty`, `limit` and `sample` leave rows out, and variants repeat
    rows."""
    variants: Sequence[str] = ()
    """If each row has several answers, the names of the variants (models and prompts), as in the field `variant`."""

    @cached_property
    def answers(self) -> list[Any]:
        """The answers without their rows; `""` for a failed row. With an `answer_schema`, they are objects, or
        instances of the schema's class."""
        name = self.columns.get("answer", "answer")
        return [answer_of(row[name], self.answer_schema) for row in self.rows]

    @cached_property
    def vectors(self) -> Any:
        """The vectors of `embed`, as one numpy array of 32-bit floats: one vector for each row, in order.

        The vector of a failed row is NaN. Raises `ImportError` without numpy, `ValueError` if vectors differ in length.
        """
        import numpy as np

        found = [answer if isinstance(answer, array) else None for answer in self.answers]
        length = next((len(one) for one in found if one is not None), 0)
        nothing: Any = np.full(length, np.nan, "f")
        return np.stack([nothing if one is None else np.frombuffer(one, "f") for one in found]) if found else nothing

    @property
    def failed(self) -> int:
        """The number of rows that failed."""
        return int(self.status.get("failed", 0))

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of all runs of the job."""
        return {name: self.status.get(name, 0) for name in ("prompt_tokens", "completion_tokens")}

    @property
    def cost(self) -> float | None:
        """The cost of all runs of the job; None if the price is unknown."""
        return self.status.get("cost")

    @property
    def shares(self) -> Mapping[str, Any]:
        """The estimated share of each label among all rows, corrected for wrong labels, with its 95 % interval:
        `share`, `low` and `high`. With a schema, shares are grouped by field. Without an estimate, there are none."""
        by_field: Mapping[str, Mapping[str, Any]] = shares_of(self.status)
        return by_field.get("", by_field)

    def table(self) -> Any:
        """Return the caller's table (of pandas, polars, pyarrow or `datasets`) with the answer columns added.

        If the rows are one column, it becomes the table's first column. With a schema, each field of the answers is a
        column. With several models or prompts, each row is repeated for each variant; column `variant` names it.
        """
        answers = self.columns.get("answer", "answer")
        columns: dict[str, _Column] = {}
        if self.variants:
            called = self.columns.get(VARIANT, VARIANT)
            columns[called] = _Column([row[called] for row in self.rows])
        as_text = any(row[answers] and isinstance(row[answers], str) for row in self.rows)  # `fields` is False
        of_schema = None
        if self.answer_schema is not None and not as_text:
            from promptmill.jobs.columns.schema_columns import SchemaColumns  # imported on use: few results need it

            of_schema = SchemaColumns(json_schema_of(self.answer_schema), by_field=True)
            objects = [row[answers] if isinstance(row[answers], Mapping) else {} for row in self.rows]
            for one in objects:
                of_schema.widen({key: one.get(name) for key, name in of_schema.names.items()})
            for key, name in of_schema.names.items():
                values = [of_schema.arrow_value(key, one.get(name)) for one in objects]
                columns[self.columns.get(key, name)] = _Column(values, functools.partial(of_schema.arrow_type, key))
            columns = self._with_numbers(of_schema, objects, columns)
        for name in _ANSWERS[1:] if of_schema is not None else _ANSWERS:
            called = self.columns.get(name, name)
            cells = [row.get(called) for row in self.rows]
            columns[called] = _Column([one.tolist() if isinstance(one, array) else _cell(one) for one in cells])
            if name == "answer" and any(chances := self._cells(PROBABILITY)):
                columns[self.columns.get(PROBABILITY, PROBABILITY)] = _Column(chances, _float)
        return _joined(self.given, columns, self.numbers)

    def _cells(self, key: str) -> list[Any]:
        return [row.get(self.columns.get(key, key)) for row in self.rows]

    def _with_numbers(
        self, of_schema: SchemaColumns, answers: Sequence[JsonObject], columns: Mapping[str, _Column]
    ) -> dict[str, _Column]:
        """Return the columns of fields, each followed by its probability and its expected level, if it has them."""
        beside = [
            of_schema.beside(*one)
            for one in zip(answers, self._cells("probabilities"), self._cells(SCORES), strict=True)
        ]
        own = {self.columns.get(key, name) for key, name in of_schema.names.items()}
        found = {name: column for name, column in columns.items() if name not in own}
        for key, name in of_schema.columns(EXTRA_FIELDS).items():
            called = self.columns.get(key, name)
            if key in of_schema.names:
                found[called] = columns[called]
            elif any(values := [one.get(key) for one in beside]):
                found[called] = _Column(values, _float)
        return found

    def _repr_html_(self) -> str:
        """Return the result as HTML for a notebook: counts and first rows, without external resources."""
        elements = [f"<p>{html.escape(self._summary)}</p>"]
        ours = [self.columns.get(name, name) for name in _ANSWERS]
        # a notebook shows only these rows
        shown = self.rows[:10]
        inner = dict.fromkeys(name for row in shown for name in row if name in ours or not self._is_ours(name))
        names = [
            name for name in inner if name not in ours[1:] or any(row.get(name) not in (None, "stop") for row in shown)
        ]
        if shown:
            elements.append(f"<table><thead><tr>{_cells(names, 'th')}</tr></thead><tbody>")
            elements += [f"<tr>{_cells([row.get(name) for name in names], 'td')}</tr>" for row in shown]
            elements.append("</tbody></table>")
        if len(self.rows) > len(shown):
            elements.append(f"<p>… and {counted(len(self.rows) - len(shown), 'more row')} in <code>rows</code></p>")
        return "".join(elements)

    def __repr__(self) -> str:
        return f"<BulkResult: {self._summary}>"

    @property
    def _summary(self) -> str:
        answered = self.status.get("answered", len(self.rows) - self.failed)
        parts = [counted(answered, "answer") if self.variants else f"{counted(answered, 'row')} answered"]
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [dollars(self.cost)] if self.cost is not None else []
        return ", ".join(parts + ([f"in {self.output}"] if self.output is not None else []))

    def _is_ours(self, name: str) -> bool:
        return name in {self.columns.get(one, one) for one in OURS}


def answer_of(answer: Any, answer_schema: AnswerType | None) -> Any:
    """Return a row's answer; `""` if it has none. With a schema, return an object or an instance of the schema's class.

    Raises the errors of the class's validators, see `refusal_of`.
    """
    if answer is None or answer == "":
        return ""
    if isinstance(answer_schema, type):
        return answer_schema.model_validate_json(answer if isinstance(answer, str) else json_values.json_line(answer))
    if answer_schema is not None and isinstance(answer, str):
        with contextlib.suppress(PromptmillError):
            return json_values.load(answer.encode(), "")
    return answer


def refusal_of(answer: Any, answer_schema: AnswerType | None) -> dict[str, Any] | None:
    """If a validator of the schema's class refuses an answer, return the row's error, with the answer in it; else None.

    Validators may check more than the schema does, and some answers of the job may be older than the class.
    """
    if not isinstance(answer_schema, type):
        return None
    try:
        answer_of(answer, answer_schema)
    except Exception as error:  # noqa: BLE001 (a validator of the caller's class may raise anything)
        why = type(error).__name__
        if isinstance(error, ValidationError):
            first = error.errors(include_input=False)[0]
            why = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        refused = f"A validator of {answer_schema.__name__} refuses the answer: {why.rstrip('.')}."
        return {"code": str(Code.INVALID_ANSWER), "message": refused, "retryable": False, "attempts": 0, "text": answer}
    return None


def lines_of(rows: Any, name: str = "prompt") -> Iterator[bytes]:
    """Return `rows` (texts, dicts, lists of messages, a column or a table) as lines of JSON.

    A text becomes an object with the field `name`. Values become those of a file; Pillow images become base64.

    Raises `PromptmillError` (`invalid_input`).
    """
    return given.lines_of(_rows(rows, name), name, "rows", _as_json)


@contextlib.contextmanager
def file_of(rows: Any) -> Iterator[Path]:
    """Yield the path of a file with `rows`: `rows` itself if it is a path, or else a temporary file. Raises as
    `lines_of`."""
    if isinstance(rows, str | Path):
        yield home_expanded(rows)
        return
    with tempfile.TemporaryDirectory(prefix="promptmill-") as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("wb") as file:
            file.writelines(lines_of(rows, "text"))
        yield path


def _rows(rows: Any, name: str) -> Iterable[Any]:
    if isinstance(rows, bytes | Mapping):
        raise input_error("rows is one row; send a list of rows, a table, or the path of a file.")
    if _is_column(rows):
        if name == "text" and isinstance(rows.name, str) and rows.name:
            name = rows.name
        return _with_short_floats(({name: value} for value in rows), {name: rows.dtype})
    if hasattr(rows, "features") and hasattr(rows, "with_format"):  # `datasets`, whose Arrow tables have the images
        return _of_arrow(rows.with_format("arrow").iter(_AT_ONCE))
    if hasattr(rows, "to_batches"):  # pyarrow
        return _of_arrow(rows.to_batches(_AT_ONCE))
    if hasattr(rows, "iter_rows"):  # polars
        return _with_short_floats(rows.iter_rows(named=True), rows.schema)
    if hasattr(rows, "to_dict") and hasattr(rows, "iloc"):  # pandas
        if not getattr(getattr(rows, "columns", None), "is_unique", True):  # repeated names would lose fields
            rows = rows.set_axis(distinct([str(name) for name in rows.columns]), axis=1)
        pages = (rows.iloc[at : at + _AT_ONCE].to_dict("records") for at in range(0, len(rows), _AT_ONCE))
        return _with_short_floats(itertools.chain.from_iterable(pages), dict(rows.dtypes))
    if (values := _listed(rows)) is not rows:  # a column of pyarrow, an array of numpy
        return ({name: value} if value is None or isinstance(value, int | float) else value for value in values)
    if not isinstance(rows, Iterable):
        raise input_error(f"rows is {shape(rows)}; send a list of rows or a table.")
    return rows


def _is_column(rows: Any) -> bool:
    return hasattr(rows, "to_frame") and hasattr(rows, "name")


def _of_arrow(tables: Iterable[Any]) -> Iterator[JsonObject]:
    from promptmill.files.parquet import python_values

    for table in tables:
        columns = (getattr(column, "combine_chunks", lambda column=column: column)() for column in table.columns)
        names = distinct(table.schema.names)
        yield from (dict(zip(names, row, strict=True)) for row in zip(*map(python_values, columns), strict=True))


def _with_short_floats(rows: Iterable[Any], kinds: Mapping[Any, Any]) -> Iterable[Any]:
    """Return rows whose floats of 16 and 32 bits have few digits, as in files: 0.1, not 0.10000000149011612. `kinds`:
    the type of each column."""
    forms = {name: form for name, kind in kinds.items() if (form := _form_of(kind))}
    return (row | {name: _short(row[name], form) for name, form in forms.items()} for row in rows) if forms else rows


def _form_of(kind: object) -> str:
    """Return the form of the short floats in a column of this type, as in `struct`; `""` if it has none.

    >>> _form_of("List(Float32)"), _form_of("halffloat[pyarrow]"), _form_of("float64")
    ('f', 'e', '')
    """
    found = _SHORT_FLOAT.search(str(kind))
    return "" if found is None else "e" if found[1] else "f"


def _short(value: Any, form: str) -> Any:
    match value:
        case float() if form:
            return short_float(value, form)
        case list() | tuple():
            return [_short(inner, form) for inner in value]
        case dict():
            return {name: _short(inner, form) for name, inner in value.items()}
    return value


def _listed(values: Any) -> Any:
    """Return the values of an array, a column or a scalar of numpy, pandas, polars, pyarrow or torch; else `values`."""
    read = next((getattr(values, name) for name in _LISTING if hasattr(values, name)), None)
    kind = next((getattr(values, name) for name in ("dtype", "typecode", "type") if hasattr(values, name)), "")
    if read is None:
        return values
    if str(kind).startswith("datetime64"):  # `tolist` would return numbers of nanoseconds
        return _moments(values.astype(str).tolist())
    if str(kind).startswith("timedelta64"):
        return values.astype("timedelta64[us]").tolist()
    if hasattr(values, "to_pylist"):
        import pyarrow as pa

        return [row["v"] for row in _of_arrow([pa.table({"v": values})])]
    listed = read()
    if (names := getattr(kind, "names", None)) and isinstance(listed, list):
        return [{name: _short(row[at], _form_of(kind[name])) for at, name in enumerate(names)} for row in listed]
    return values if type(listed) is type(values) else _short(listed, _form_of(kind))


def _moments(texts: Any) -> Any:
    """Return the texts of numpy's times without needless zeros; None for a missing time."""
    if isinstance(texts, list):
        return list(map(_moments, texts))
    return None if texts == "NaT" else _ZEROS.sub("", texts)


def _as_json(value: Any) -> Any:
    """Return a value that orjson cannot write as one that it can. Raises `TypeError`."""
    if type(value).__name__ in {"NAType", "NaTType"} or (isinstance(value, Decimal) and value.is_nan()):
        return None  # the missing values of pandas
    match value:
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode() if bytes(value[:4]) == b"%PDF" else plain_text(value)
        case dt.timedelta() | Decimal():
            return plain_text(value)
        case set() | frozenset():
            return sorted(value, key=str)
        case Mapping():
            return dict(value)
    if hasattr(value, "save") and hasattr(value, "getbands"):  # an image of Pillow
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    for name in ("model_dump", "_asdict"):  # an object of pydantic, a named tuple
        if hasattr(value, name):
            return getattr(value, name)()
    if (listed := _listed(value)) is not value:
        return listed
    if isinstance(value, Sequence):
        return list(value)
    text = str(value)
    if callable(value) or " at 0x" in text:
        raise TypeError(f"{shape(value)} has no value; send a text or a number")
    return text


def _float() -> Any:
    import pyarrow as pa

    return pa.float64()


class _Column(NamedTuple):
    """A column of answers. `arrow_type` returns the Arrow type of its values; None if they are texts."""

    values: list[Any]
    arrow_type: Callable[[], Any] | None = None


def like(table: Any, rows: Sequence[JsonObject]) -> Any:
    """Return `rows` as a table of the same kind as `table`; return them unchanged if `table` is no table."""
    if _is_column(table):
        table = table.to_frame()
    for function in ("from_pylist", "from_list"):  # of pyarrow and of `datasets`
        if hasattr(table, function):
            return getattr(type(table), function)(rows)
    return type(table)(rows) if hasattr(table, "columns") else rows


def _joined(
    rows: Any,
    columns: Mapping[str, _Column],
    numbers: Sequence[int],
) -> Any:
    """Take the rows `numbers` of the table `rows`, and add `columns`. Return a table of the same kind."""
    if _is_column(rows):
        rows = rows.to_frame()
    if hasattr(rows, "__len__") and [*range(len(rows))] != numbers:
        rows = _taken(rows, numbers)
    if hasattr(rows, "add_column") and hasattr(rows, "features"):
        for name, column in columns.items():
            rows = rows.add_column(name, column.values)
        return rows
    if hasattr(rows, "append_column"):
        import pyarrow as pa

        for name, column in columns.items():
            kind = pa.string() if column.arrow_type is None else column.arrow_type()
            rows = rows.append_column(name, pa.array(column.values, kind))
        return rows
    if hasattr(rows, "with_columns"):
        import polars as pl

        return rows.with_columns(*(pl.Series(name, column.values) for name, column in columns.items()))
    if hasattr(rows, "assign"):
        return rows.assign(**{name: _of_pandas(column.values) for name, column in columns.items()})
    raise input_error("The rows are not a table; `rows` of the result has them with their answers.")


def _of_pandas(values: list[Any]) -> Any:
    """Return the values of a column for pandas. Dates become numpy's dates, because pandas offers `.dt` and comparisons
    with texts only for these."""
    dates = [value for value in values if value is not None]
    if not dates or not all(isinstance(value, dt.date) for value in dates):
        return values
    import numpy as np

    if isinstance(dates[0], dt.datetime) and dates[0].tzinfo is not None:
        return values  # times in UTC: pandas knows their zone
    return np.array(values, "datetime64[us]")


def _taken(rows: Any, numbers: Sequence[int]) -> Any:
    if hasattr(rows, "iloc"):
        return rows.iloc[numbers]
    if hasattr(rows, "features"):  # `datasets`
        return rows.select(numbers)
    if hasattr(rows, "append_column"):  # pyarrow
        return rows.take(numbers)
    return rows[numbers] if hasattr(rows, "with_columns") else rows  # polars, or no table


def _cells(values: Iterable[Any], tag: str) -> str:
    """Return the cells of a row of an HTML table; long texts are shortened."""
    texts = ("" if value is None else str(_cell(value)) for value in values)
    return "".join(f'<{tag} style="text-align: left">{html.escape(cut(text, 300))}</{tag}>' for text in texts)


def _cell(value: Any) -> str | None:
    if isinstance(value, array):
        return words_of(value)
    if isinstance(value, Mapping) and value.keys() >= {"code", "message"}:
        return f"{value['code']}: {value['message']}"
    return value if value is None else str(value)
