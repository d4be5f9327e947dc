"""Outputs of Parquet and Arrow. Columns of a Parquet input keep types and metadata; other columns get the type of their
values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from promptmill.backends.vectors import floats_of
from promptmill.core import values
from promptmill.core.bounds import DEEPEST
from promptmill.core.values import JsonDict, JsonObject
from promptmill.files import table_paths
from promptmill.files.parquet import unit_of, unpacked_schema, without_nanoseconds
from promptmill.jobs.columns.column_names import PROBABILITY, check_width
from promptmill.jobs.columns.schema_columns import PROBABILITY_OF, SCORE_OF
from promptmill.jobs.export.answered import AnsweredRow
from promptmill.jobs.export.text import AnswerValues, OutputForm, cell
from promptmill.jobs.store.database import Row
from promptmill.jobs.store.plan import JobSpec

if TYPE_CHECKING:
    from promptmill.jobs.columns.schema_columns import SchemaColumns

_GROUP_BYTES = 4 << 20
_NUMBERS = ("cost", PROBABILITY, "score")
_PLAIN = frozenset({"error", "usage", *_NUMBERS})
_ROWS_AT_ONCE = 4096
_VALUES_AT_ONCE = 32  # number of values between checks of a page's size: 1,024, the default, makes pages of images huge
_INTEGER, _LONG, _MIXED = "integer", "long", "mixed"
_DECIMAL = "decimal "
_PRECISION = 38  # max digits of a decimal in Arrow and in databases
_SCALARS = MappingProxyType(
    {str: "string", values.SheetDate: "string", bool: "boolean", int: _INTEGER, float: "number", bytes: "bytes"}
)
_WIDER = MappingProxyType({frozenset((_INTEGER, _LONG)): _LONG, frozenset((_INTEGER, "number")): "number"})
_EXACT = 1 << 53  # a float holds every whole number up to this
_MOST_PARTS = 100  # max fields of an object type; in a larger object, the names are probably data


def write_parquet(out: IO[bytes], form: OutputForm, answered: Iterable[AnsweredRow], target: Path | None = None) -> str:
    """Write rows with their answers as a Parquet file, which may be copied into a table of a database. Return `""`:
    there is no warning. Raises `OSError`, and the errors of `answered`."""
    from pyarrow import parquet

    schema, tables = _tables(form, answered, is_for_database=target is not None and table_paths.is_table(target))
    with parquet.ParquetWriter(out, schema, write_batch_size=_VALUES_AT_ONCE) as writer:
        for table in tables:
            writer.write_table(table)
        writer.write_table(schema.empty_table())
    return ""


def write_arrow(out: IO[bytes], form: OutputForm, answered: Iterable[AnsweredRow], target: Path | None = None) -> str:
    """Write rows with their answers as an Arrow file, which programs can map into memory. Return `""`: there is no
    warning. Raises as `write_parquet` does."""
    import pyarrow as pa

    del target
    schema, tables = _tables(form, answered, is_for_database=False)
    with pa.ipc.new_file(out, schema) as writer:
        for table in tables:
            writer.write_table(table)
    return ""


def _tables(form: OutputForm, answered: Iterable[AnsweredRow], *, is_for_database: bool) -> tuple[Any, Iterator[Any]]:
    """Return the schema of the rows with their answers, and an iterator of Arrow tables, each with a group of rows."""
    import pyarrow as pa

    answers = form.answers
    if answers.schema is not None:
        for values_ in form.fields_to_measure():
            answers.schema.widen(answers.schema.in_table(values_))
    kinds = _arrow_types(answers)
    if form.dimensions is not None and "answer" in kinds:
        kinds["answer"] = pa.list_(pa.float32(), form.dimensions or -1)
    own = (
        _ArrowColumns(form.spec, is_for_database=is_for_database)
        if form.spec.input.style.arrow_schema
        else _TypedColumns(form)
    )
    fields = [*own.schema, *(pa.field(answers.names[key], kind) for key, kind in kinds.items())]
    schema = pa.schema(fields, metadata=own.schema.metadata)

    def tables() -> Iterator[Any]:
        for group in _groups(answered):
            records = [answers.in_table(each) for each in group]
            if answers.schema is not None:
                records = list(map(answers.schema.with_losses, records))
            ours = [
                _vectors([each.record.vector for each in group], kind)
                if form.dimensions is not None and key == "answer"
                else pa.array([_arrow_value(answers.schema, key, one.get(key)) for one in records], kind)
                for key, kind in kinds.items()
            ]
            batch = own.batch([each.row for each in group])
            yield pa.Table.from_batches([pa.record_batch([*batch.columns, *ours], schema=schema)])

    return schema, tables()


def _groups(answered: Iterable[AnsweredRow]) -> Iterator[list[AnsweredRow]]:
    """Yield the rows in groups of a few megabytes, which become the row groups of Parquet."""
    group: list[AnsweredRow] = []
    size = 0
    for each in answered:
        group.append(each)
        size += len(each.row.cells or b"") + len(each.record.text) + len(each.record.vector or b"")
        if size >= _GROUP_BYTES or len(group) >= _ROWS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _vectors(vectors: Sequence[bytes | None], kind: Any) -> Any:
    """Return vectors as an Arrow array of lists of 32-bit floats, without making a Python float for each number."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(kind):
        return pa.array([None if one is None else floats_of(one) for one in vectors], kind)
    empty = bytes(4 * kind.list_size)
    data = pa.py_buffer(b"".join(empty if one is None else one for one in vectors))
    floats = pa.Array.from_buffers(pa.float32(), len(vectors) * kind.list_size, [None, data])
    mask = pa.array([one is None for one in vectors])
    return pa.FixedSizeListArray.from_arrays(floats, type=kind, mask=mask)


class _ArrowColumns:
    """The output's columns that come from a Parquet input."""

    def __init__(self, spec: JobSpec, *, is_for_database: bool) -> None:
        """`is_for_database`: if True, durations and large decimals become texts, because databases misread them."""
        import pyarrow as pa

        self.schema = unpacked_schema(spec.input.style.arrow_schema)
        self._texts = set[int]()
        for at, field in enumerate(self.schema):
            if is_for_database and (pa.types.is_duration(field.type) or pa.types.is_decimal256(field.type)):
                self._texts.add(at)
                self.schema = self.schema.set(at, field.with_type(pa.string()))

    def batch(self, stored: Sequence[Row]) -> Any:
        import pyarrow as pa

        cells = [values.loads(row.cells or b"[]") for row in stored]
        columns = []
        for at, field in enumerate(self.schema):
            column = [row[at] for row in cells]
            if at in self._texts:
                column = [None if value is None else values.plain_text(value) for value in column]
            columns.append(_arrow_array(column, field.type))
        return pa.record_batch(columns, schema=self.schema)


class _TypedColumns:
    """The output's columns from an input that is not Parquet. A column has the type of its values in all rows."""

    def __init__(self, form: OutputForm) -> None:
        self._own, self._types = form.own, ColumnTypes()
        if form.spec.input.format == "batch" or form.spec.input.kind.rows == "texts":
            self._types.include({name: [""] if name == self._own.surplus else "" for name in form.names})
        else:
            self._types.include(dict.fromkeys(form.spec.input.header and form.names))  # columns exist even without rows
            for row in form.stored():
                self._types.include(self._own.of(row))
                check_width(len(self._types))
        self.schema = self._types.schema()

    def batch(self, stored: Sequence[Row]) -> Any:
        return self._types.batch([self._own.of(row) for row in stored])


def _arrow_array(column: list[Any], kind: Any) -> Any:
    """Return the values of a column, which `ParquetTable` has read, as an array of the column's Arrow type."""
    import pyarrow as pa

    kinds, plain = pa.types, without_nanoseconds(kind)
    if kinds.is_dictionary(kind):
        return _arrow_array(column, kind.value_type).cast(kind)
    if kinds.is_map(kind):
        column = [value and [tuple(pair) for pair in value] for value in column]
    if plain == kind or kinds.is_duration(kind):
        with suppress(pa.ArrowException):  # a time that Python cannot represent is a text
            return pa.array(column, kind)
    if plain == kind and kinds.is_temporal(kind):
        return pa.array([unit_of(value, kind) if isinstance(value, str) else value for value in column], kind)
    if kinds.is_struct(kind):
        inner = [_arrow_array([value and value[field.name] for value in column], field.type) for field in kind]
        return pa.StructArray.from_arrays(inner, fields=list(kind), mask=pa.array([value is None for value in column]))
    if kinds.is_nested(kind):
        values_ = _arrow_array(list(itertools.chain.from_iterable(filter(None, column))), kind.value_type)
        ends = itertools.accumulate(len(value or ()) for value in column)
        starts = [None if value is None else at for value, at in zip(column, (0, *ends), strict=False)]
        of_kind = pa.LargeListArray if kinds.is_large_list(kind) else pa.ListArray
        return of_kind.from_arrays([*starts, len(values_)], values_).cast(kind)
    if kinds.is_time(kind):  # converted by hand, because Arrow casts texts to timestamps, but not to times
        return pa.array([None if value is None else unit_of(value, kind) for value in column], pa.int64()).cast(kind)
    return pa.array(column, plain).cast(kind)


def _arrow_types(answers: AnswerValues) -> JsonDict:
    import pyarrow as pa

    error = pa.struct(
        [("code", pa.string()), ("message", pa.string()), ("retryable", pa.bool_()), ("attempts", pa.int64())]
    )
    usage = pa.struct([("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64())])
    schema = answers.schema
    numbers = _NUMBERS if schema is None else (*_NUMBERS, *schema.probability_names, *schema.score_names)
    types = {"error": error, "usage": usage, **dict.fromkeys(numbers, pa.float64())}
    return {
        key: schema.arrow_type(key) if schema is not None and key in schema.names else types.get(key, pa.string())
        for key in answers.names
    }


def _arrow_value(schema: SchemaColumns | None, key: str, value: Any) -> Any:
    """Return a value in the Arrow type of the column `key`. In a column of texts, lists and objects become JSON."""
    if schema is not None and key in schema.names:
        return schema.arrow_value(key, value)
    is_plain = isinstance(value, str | None) or key in _PLAIN or key.startswith((PROBABILITY_OF, SCORE_OF))
    return value if is_plain else values.json_text(value)


_Kind: TypeAlias = "str | list[_Kind] | dict[str, _Kind] | None"
"""The type of a field's values: None if all are null; for a list or an object, the types of its items or fields."""


class ColumnTypes:
    """The columns of a Parquet file for rows that are JSON objects. A column gets the type of its values.

    A column becomes texts (other values as JSON) if its values have several types, if a whole number exceeds 64 bits,
    or if it has floats and a whole number that no float represents exactly.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def include(self, row: JsonObject) -> None:
        """Add columns for the fields of `row`, and widen the columns' types to hold the row's values."""
        for name, value in row.items():
            known = self._kinds.setdefault(name, None)
            if known != _MIXED and (kind := _kind_of(value, DEEPEST)) != known:
                self._kinds[name] = _joined(known, kind)

    def schema(self) -> Any:
        """Return the Arrow schema of the columns."""
        import pyarrow as pa

        return pa.schema([(name, _arrow_type(kind)) for name, kind in self._kinds.items()])

    def batch(self, stored: Sequence[JsonObject]) -> Any:
        """Return rows as a record batch with the schema of the columns."""
        import pyarrow as pa

        schema = self.schema()
        columns = []
        for (name, kind), field in zip(self._kinds.items(), schema, strict=True):
            values = [row.get(name) for row in stored]
            columns.append(pa.array(values if _is_plain(kind) else [_value(kind, one) for one in values], field.type))
        return pa.record_batch(columns, schema=schema)


def _kind_of(value: Any, levels: int) -> _Kind:
    if isinstance(value, Decimal):
        return _decimal(*_digits_of(value))
    kind = _SCALARS.get(type(value))
    if kind == _INTEGER:
        return kind if abs(value) <= _EXACT else _LONG if value in values.INT64 else _MIXED
    if kind is not None or value is None:
        return kind
    if not levels:
        return _MIXED
    if isinstance(value, dict):
        kinds = {name: _kind_of(inner, levels - 1) for name, inner in value.items()}
        return kinds if len(kinds) <= _MOST_PARTS else _MIXED
    inner: _Kind = None
    for one in value:
        inner = _joined(inner, _kind_of(one, levels - 1))
    return _MIXED if inner == _MIXED else [inner]


def _joined(one: _Kind, other: _Kind) -> _Kind:
    """Return the kind of a column whose values are of the two kinds `one` and `other`."""
    if one is None or other is None or one == other:
        return other if one is None else one
    if isinstance(one, dict) and isinstance(other, dict):
        kinds = {name: _joined(one.get(name), other.get(name)) for name in {**one, **other}}
        return kinds if len(kinds) <= _MOST_PARTS else _MIXED
    if isinstance(one, list) and isinstance(other, list):
        inner = _joined(one[0], other[0])
        return _MIXED if inner == _MIXED else [inner]
    if isinstance(one, str) and isinstance(other, str):
        if one.startswith(_DECIMAL) and other.startswith(_DECIMAL):
            return _decimal(*map(max, _digits_in(one), _digits_in(other)))
        return _WIDER.get(frozenset((one, other)), _MIXED)
    return _MIXED


def _decimal(whole: int, fraction: int) -> str:
    """Return the kind for decimals with this number of digits before and after the decimal point."""
    return f"{_DECIMAL}{whole} {fraction}" if whole + fraction <= _PRECISION else _MIXED


def _digits_of(value: Decimal) -> tuple[int, int]:
    _, digits, exponent = value.as_tuple()
    fraction = -min(0, int(exponent))  # the exponent is a number: databases allow no NaN or infinity in a decimal
    return max(len(digits) - fraction, 1), fraction


def _digits_in(kind: str) -> tuple[int, int]:
    whole, fraction = kind.removeprefix(_DECIMAL).split()
    return int(whole), int(fraction)


def _arrow_type(kind: _Kind) -> Any:
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(_arrow_type(kind[0]))
    if isinstance(kind, dict) and kind:
        return pa.struct([(name, _arrow_type(inner)) for name, inner in kind.items()])
    types = {
        "boolean": pa.bool_(),
        _INTEGER: pa.int64(),
        _LONG: pa.int64(),
        "number": pa.float64(),
        "bytes": pa.binary(),
    }
    if isinstance(kind, str) and kind.startswith(_DECIMAL):
        return pa.decimal128(_PRECISION, _digits_in(kind)[1])
    return types.get(kind, pa.string()) if isinstance(kind, str) else pa.string()


def _is_plain(kind: _Kind) -> bool:
    """Return whether values of this kind are stored without conversion."""
    if isinstance(kind, dict):
        return bool(kind) and all(map(_is_plain, kind.values()))
    return _is_plain(kind[0]) if isinstance(kind, list) else kind != _MIXED


def _value(kind: _Kind, value: Any) -> Any:
    """Return a value as it is stored. In a column of texts, a value of another type becomes JSON."""
    if value is None or (kind != _MIXED and _is_plain(kind)):
        return value
    if isinstance(kind, list):
        return [_value(kind[0], one) for one in value]
    if isinstance(kind, dict) and kind:
        return {name: _value(inner, value.get(name)) for name, inner in kind.items()}
    return cell(value)
