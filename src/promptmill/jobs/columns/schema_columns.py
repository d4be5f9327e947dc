"""Outputs of answers that have a JSON Schema: in a table, each field has a column; in JSON, an answer is an object.

The database keeps each answer as the model wrote it. In an output, the fields have the schema's order, and white space
is left out, so equal answers become equal texts.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Collection, Mapping
from typing import Any

from promptmill.answers.form import form_of_schema
from promptmill.answers.reasoning import split_marked
from promptmill.answers.schema_kinds import kind_of, loaded, resolved
from promptmill.answers.text_formats import NAMES, date_of
from promptmill.core.bounds import DEEPEST
from promptmill.core.form import Scale
from promptmill.core.values import INT64, JsonDict, JsonObject, SheetDate, json_text, text_of
from promptmill.jobs.store.records import SCORES

FIELD = "answer."
"""The key of an answer field's column begins with this prefix, so that no other column has the same key."""
PROBABILITY_OF = "probability."
"""The prefix in the key of a column for the probability of a field's value."""
SCORE_OF = "score."
"""The prefix in the key of a column for the expected level of a field that is a scale."""
_SHOWN = 200
_DIGITS = 6
_KINDS = {"string": str, "integer": int, "number": float, "boolean": bool}


class UnreadableAnswerError(ValueError):
    """The answer is not JSON, because the model did not follow the schema."""


class LabelList(list[str]):
    """An answer with several labels. A cell shows them as `service; price`; JSON and Parquet have a list."""


class SchemaColumns:
    """The columns for answers that have the JSON Schema `schema`."""

    def __init__(self, schema: JsonObject, *, by_field: bool) -> None:
        """`by_field`: if True, a table has a column for each field, and JSON has objects; if False, an answer is a JSON
        text."""
        self._schema = schema
        self._by_field = by_field
        properties = resolved(schema, schema).get("properties")
        schemas = properties if by_field and isinstance(properties, Mapping) else {}
        self._fields: JsonObject = {str(name): resolved(inner, schema) for name, inner in schemas.items()}
        self.names = {f"{FIELD}{name}": name for name in self._fields}
        """The usual names of the columns of a table, by their keys."""
        self.probability_names = {f"{PROBABILITY_OF}{name}": f"{name}_probability" for name in self._fields}
        """The usual names of the columns for the fields' probabilities, by key, in the order of `names`."""
        form = form_of_schema({"type": "object", "properties": self._fields}, {})
        self._scales = {one.name: one.kind for one in form.questions if isinstance(one.kind, Scale)} if form else {}
        self.score_names = {f"{SCORE_OF}{name}": f"{name}_score" for name in self._scales}
        """The usual names of the columns for the expected levels of the fields that are scales, by their keys."""
        self._formats = {key: self._format_of(self._fields[name]) for key, name in self.names.items()}
        """The format of a column's dates or times, by the column's key; `""` for a column of other values."""
        self._as_texts = set[str]()
        """The keys of columns of numbers, dates and times that become columns of texts in Arrow."""
        self._zones: dict[str, dt.tzinfo | None] = {}
        """The time zone of the values in each column of dates with times, by the column's key."""

    def _format_of(self, field: JsonObject) -> str:
        name = field.get("format", "")
        return name if name in NAMES and kind_of(field, self._schema) == "string" else ""

    @property
    def has_dates(self) -> bool:
        """Whether a field has dates or times."""
        return any(self._formats.values())

    def columns(self, extra: Collection[str]) -> dict[str, str]:
        """Return the usual names of the fields' columns. After a field, its probability and its expected level follow,
        if it has them and `extra` (the optional fields of answers) has `probabilities` or `scores`."""
        optional = [(PROBABILITY_OF, "probabilities"), (SCORE_OF, SCORES)]
        prefixes, every = [FIELD, *(prefix for prefix, source in optional if source in extra)], self.every
        keys = (f"{prefix}{field}" for field in self._fields for prefix in prefixes)
        return {key: every[key] for key in keys if key in every}

    @property
    def every(self) -> dict[str, str]:
        """The usual names of all columns, by their keys."""
        return self.names | self.probability_names | self.score_names

    def in_json(self, fields: JsonObject) -> JsonDict:
        """Convert the result of `column_values.answer_fields` to the fields of a row of JSON."""
        changed = dict(fields)
        if fields["error"] is not None and not fields["answer"]:
            return changed | {"answer": None if self._by_field else ""}
        try:
            value = self._read(fields["answer"]) if fields["answer"] else None
        except UnreadableAnswerError:
            return changed
        changed["answer"] = value if self._by_field else self._written(value)
        if scores := self._scores(value, fields.get("probabilities")):
            changed[SCORES] = scores
        if "answers" in fields:
            changed["answers"] = [self._one_of_several(text) for text in fields["answers"]]
        return changed

    def in_table(self, fields: JsonObject) -> JsonDict:
        """Convert the result of `column_values.answer_fields` to a row of a table, with one value for each column."""
        changed = self.in_json(fields)
        value = changed["answer"]
        if not self.names:
            if isinstance(fields["answer"], str) and not isinstance(value, str | None):
                changed["answer"] = self._written(value)
            return changed
        del changed["answer"]
        if isinstance(value, Mapping):
            changed |= {key: self.typed(key, value.get(name)) for key, name in self.names.items()}
            changed |= self.beside(value, fields.get("probabilities"), changed.pop(SCORES, {}))
        elif value is not None:
            problem = f"The answer was made without the schema, so its fields are not known: {str(value)[:_SHOWN]}"
            changed["error"] = {"code": "invalid_answer", "message": problem, "retryable": False, "attempts": 0}
        return changed

    def beside(self, answer: JsonObject, probabilities: Any, scores: Any) -> JsonDict:
        """Return the values that an answer has in the columns of `probability_names` and `score_names`."""
        shares: JsonObject = probabilities if isinstance(probabilities, Mapping) else {}
        known = {name: shares[name] for name in self._fields if isinstance(shares.get(name), Mapping)}
        own = {f"{PROBABILITY_OF}{name}": by_value.get(text_of(answer.get(name))) for name, by_value in known.items()}
        return own | {f"{SCORE_OF}{name}": score for name, score in (scores or {}).items()}

    def _scores(self, value: Any, probabilities: Any) -> dict[str, float]:
        """Return the expected level of each scale with a value, if it has the probabilities of several levels."""
        if not isinstance(value, Mapping) or not isinstance(probabilities, Mapping):
            return {}
        shares = {name: probabilities[name] for name in self._scales if name in probabilities}
        found = {name: self._scales[name].expected(own) for name, own in shares.items() if len(own) > 1}
        given = {name for name in found if value.get(name) is not None}
        return {name: round(score, _DIGITS) for name, score in found.items() if score is not None and name in given}

    def typed(self, key: str, value: Any) -> Any:
        """Return the value of a field in the form for a cell of a table. The text of a date or a time becomes a
        `SheetDate`; a list of choices becomes a `LabelList`, unless a choice contains the separator `;`."""
        if isinstance(value, str):
            return value if self._date(key, value) is None else SheetDate(value)
        choices = resolved(self._fields[self.names[key]].get("items"), self._schema).get("enum")
        if not isinstance(choices, list) or not isinstance(value, list) or not all(each in choices for each in value):
            return value
        is_clear = all(isinstance(each, str) and ";" not in each for each in choices)
        return LabelList(value) if is_clear else value

    def _date(self, key: str, value: Any) -> dt.date | dt.time | None:
        """Return the date or the time in a column; None for any other value."""
        name = self._formats[key]
        return date_of(value, name) if name and isinstance(value, str) else None

    def widen(self, fields: JsonObject) -> None:
        """Turn a column into texts if its Arrow type cannot hold the column's value in the row `fields` (from
        `in_table`): a number that needs more than 64 bits, or a time in another zone than the times of other rows.

        Call this for all rows that may have such values, before any Arrow type is used."""
        for key in self.names.keys() - self._as_texts:
            value = fields.get(key)
            if self._formats[key]:
                fits = value is None or self._holds(key, self._date(key, value))
            else:
                kind, inner = self._kinds_of(key)
                numbers = value if inner else [value]
                fits = not isinstance(numbers, list) or not any(_is_too_long(inner or kind, one) for one in numbers)
            if not fits:
                self._as_texts.add(key)

    def _holds(self, key: str, date: dt.date | dt.time | None) -> bool:
        """Return whether the Arrow type of a column can hold a date or a time as well as the column's other values."""
        match date:
            case dt.datetime(tzinfo=zone):
                return zone in {None, dt.UTC} and self._zones.setdefault(key, zone) == zone
            case dt.time():
                return date.tzinfo is None
        return date is not None

    def _kinds_of(self, key: str) -> tuple[str, str]:
        """Return the JSON type of a column's values and, for lists, of their items; `""` means several types."""
        field = self._fields[self.names[key]]
        kind = kind_of(field, self._schema)
        return kind, kind_of(resolved(field.get("items"), self._schema), self._schema) if kind == "array" else ""

    def arrow_type(self, key: str) -> Any:
        """Return the Arrow type of the column `key`. Values of several types become JSON texts."""
        import pyarrow as pa

        types = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
        kind, inner = self._kinds_of(key)
        if key in self._as_texts:
            return pa.string()
        if name := self._formats[key]:
            zone = "UTC" if self._zones.get(key) else None
            return {"date": pa.date32(), "date-time": pa.timestamp("us", zone), "time": pa.time64("us")}[name]
        return pa.list_(types[inner]) if inner in types else types.get(kind, pa.string())

    def arrow_value(self, key: str, value: Any) -> Any:
        """Return a value in the Arrow type of the column `key`; None if the type cannot hold it."""
        if self._formats[key] and key not in self._as_texts:
            return self._date(key, value)
        kind, inner = ("", "") if key in self._as_texts else self._kinds_of(key)
        if inner in _KINDS and isinstance(value, list):
            return [_scalar(inner, one) for one in value]
        if kind in _KINDS:
            return _scalar(kind, value)
        return value if isinstance(value, str | None) else self._written(value)

    def with_losses(self, fields: JsonDict) -> JsonDict:
        """Return a row from `in_table`. It gets an error if the Arrow type of a column cannot hold the row's value."""
        for key, name in self.names.items():
            value = fields.get(key)
            if not _is_lost(value, self.arrow_value(key, value)):
                continue
            what = f"{json_text(value):.60} of the field {name:.60}"
            message = f"A column of Parquet or of this database cannot hold {what}; name the output .jsonl or .csv."
            error = {"code": "invalid_answer", "message": message, "retryable": False, "attempts": 0}
            return {**fields, "error": fields["error"] or error}
        return fields

    def _read(self, text: str) -> Any:
        try:
            value = loaded(text)
        except ValueError:
            try:
                value = loaded(split_marked(text)[1])
            except ValueError:
                raise UnreadableAnswerError from None
        return _ordered(value, self._schema, self._schema, DEEPEST)

    def _one_of_several(self, text: str) -> Any:
        try:
            value = self._read(text) if text else None
        except UnreadableAnswerError:
            return text
        return value if self._by_field else self._written(value)

    @staticmethod
    def _written(value: Any) -> str:
        return "" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is_lost(value: Any, kept: Any) -> bool:
    if isinstance(value, list) and isinstance(kept, list):
        return any(map(_is_lost, value, kept))
    return value is not None and kept is None


def _is_too_long(kind: str, value: Any) -> bool:
    """Return whether a whole number has more digits than the Arrow type for this JSON type can hold."""
    if type(value) is not int:
        return False
    if kind == "integer":
        return value not in INT64
    try:
        return kind == "number" and float(value) != value
    except OverflowError:
        return True


def _scalar(kind: str, value: Any) -> Any:
    """Return `value` if it has the JSON type `kind` and fits the column's Arrow type; else None."""
    if _is_too_long(kind, value):
        return None
    if kind == "number" and type(value) is int:
        return float(value)
    return value if type(value) is _KINDS[kind] else None


def _ordered(value: Any, schema: Any, root: JsonObject, levels: int) -> Any:
    """Return `value` with the fields of its objects in the schema's order; fields not in the schema follow, by name."""
    if type(value) is float and value.is_integer() and kind_of(resolved(schema, root), root) == "integer":
        return int(value)
    if not levels or not isinstance(value, dict | list):
        return value
    schema = resolved(schema, root)
    if isinstance(value, list):
        return [_ordered(one, schema.get("items"), root, levels - 1) for one in value]
    properties = schema.get("properties")
    known: JsonObject = properties if isinstance(properties, Mapping) else {}
    names = [*(name for name in known if name in value), *sorted(value.keys() - known.keys())]
    return {name: _ordered(value[name], known.get(name), root, levels - 1) for name in names}
