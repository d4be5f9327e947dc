"""The shape of an output with a row for each item of a list in the answer.

answer    {"number": "R-7", "items": [{"item": "screws", "count": 3}, {"item": "nails", "count": 9}]}
rows      R-7, screws, 3, item_number 1, row 1
          R-7, nails,  9, item_number 2, row 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from promptmill.answers.response_format import schema_of
from promptmill.answers.schema_kinds import kind_of, resolved
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, input_error
from promptmill.core.values import JsonDict, JsonObject, json_text
from promptmill.core.wording import listed
from promptmill.features.items.item_counts import items_in, object_in
from promptmill.jobs.columns.column_names import SOURCES
from promptmill.jobs.inputs.short_forms import ListOfRows
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.shape import Shape

NUMBER, ROW = "item_number", "row"
_OPTION = Named("rows_from")
_OF_ONE = frozenset({"cost", "tokens"})
"""The columns that have values only in the row of the first item, so that their sums are the job's sums."""


class Items(Shape):
    """A row of the output for each item in the field `rows_from`."""

    rows_from: str

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> Self | None:
        """Return the shape for the options `rows_from` and `fields`, in which `items:rows(…)` names the list, too.

        Raises `PromptmillError` (`invalid_input`).
        """
        del models
        if (field := options.get("rows_from")) is not None:
            if not isinstance(field, str) or not field.strip():
                raise input_error(_OPTION, " is the name of a field of the answers.")
            return cls(rows_from=field.strip())
        schema = options.get("schema")
        fields = schema.get("properties", {}) if isinstance(schema, Mapping) else {}
        lists = [name for name, each in fields.items() if isinstance(each, ListOfRows)]
        if len(lists) > 1:
            raise input_error(
                Named("fields"), f" has several lists of rows, {listed(lists)}; choose one by ", _OPTION, "."
            )
        return cls(rows_from=lists[0]) if lists else None

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError` (`invalid_input`) if answers have no list `rows_from`."""
        del question
        wanted = config.settings.sampling_params.response_format
        schema = None if wanted is None else schema_of(wanted)
        if schema is None:
            raise input_error(_OPTION, " needs ", Named("schema"), " or ", Named("fields"), " with a list.")
        self.output_schema(schema)

    def output_schema(self, schema: JsonObject) -> JsonDict:
        """Return the schema of an output row: the fields outside of the list, the fields of an item, and two
        numbers."""
        columns, item = self._columns(schema), self._item(schema)
        fields = {name: each for name, each in _fields(schema).items() if name != self.rows_from}
        own = _fields(item) or {self.rows_from: item}
        fields |= {columns.fields[name]: each for name, each in own.items()}
        fields |= {name: {"type": ["integer", "null"]} for name in (columns.number, columns.row)}
        definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        return {**definitions, "type": "object", "properties": fields}

    def division(self, schema: JsonObject) -> Callable[[Record], Iterable[Record]]:
        """Return a function that divides a record into several records, one for each item. A row without items and a
        failed row keep one record."""
        return self._columns(schema).records

    def rows_in(self, store: JobDatabase) -> int:
        """Return the number of rows in the output for the records of a database. Blocks."""
        counts = items_in(store, self.rows_from)
        return counts.items + counts.without + counts.failed

    def remarks(self, schema: JsonObject) -> Sequence[str]:
        """Return a remark on other lists and objects, each of which stays in one cell."""
        item = self._item(schema)
        others = [name for name, each in _fields(schema).items() if name != self.rows_from and _has_parts(each, schema)]
        inner = [name for name, each in _fields(item).items() if _has_parts(each, schema)]
        if not (others or inner):
            return ()
        names = listed([*others, *(f"{self.rows_from}.{name}" for name in inner)])
        return (f"Only {self.rows_from} becomes rows: {names} stays JSON in a cell of each row.",)

    def _item(self, schema: JsonObject) -> JsonObject:
        """Return the schema of an item. Raises `PromptmillError` (`invalid_input`) if none or several are given."""
        fields = _fields(schema)
        field = fields.get(self.rows_from)
        lists = [name for name, each in fields.items() if kind_of(each, schema) == "array"]
        if field is None or kind_of(field, schema) != "array":
            what = "no field" if field is None else "no list in its field"
            known = f"its lists: {listed(lists)}" if lists else "it has no list"
            raise input_error(_OPTION, f": the schema has {what} {self.rows_from[:60]!r}; {known}.")
        item = resolved(field.get("items"), schema)
        several: list[Any] = next((item[name] for name in ("anyOf", "oneOf") if isinstance(item.get(name), list)), [])
        if len([one for one in several if _fields(resolved(one, schema))]) > 1:
            raise input_error(
                _OPTION, f": the items of {self.rows_from[:60]!r} have different shapes, which share no columns. Put "
                "all fields into one object, with null for those that an item lacks."
            )  # fmt: skip
        return item

    def _columns(self, schema: JsonObject) -> _Columns:
        """Return the columns of items, with names that no other field of the answers has."""
        taken = {name.casefold() for name in _fields(schema) if name != self.rows_from}  # SQL ignores case

        def free(name: str) -> str:
            while name.casefold() in taken:
                name = f"{self.rows_from}_{name}"
            taken.add(name.casefold())
            return name

        item = _fields(self._item(schema))
        fields = {name: free(name) for name in item or [self.rows_from]}
        return _Columns(self.rows_from, fields, free(NUMBER), free(ROW), has_objects=bool(item))


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of items. `records` divides a record into a record for each item."""

    field: str
    """The field with the list."""
    fields: Mapping[str, str]
    """The column of each field of an item, by the field's name."""
    number: str
    """The column of the item's number."""
    row: str
    """The column of the input row's number."""
    has_objects: bool

    def records(self, record: Record) -> Iterable[Record]:
        """Return a record for each item in the answer of a record."""
        failed, extras = record.code is not None, dict(record.extras)
        text = extras.get("part", "") if failed else record.text
        answer = object_in(text)
        if answer is None and (text or not failed):  # an answer that breaks the schema: the output reports it
            return (record,)
        whole = {name: value for name, value in (answer or {}).items() if name != self.field}
        items = (answer or {}).get(self.field)
        numbered: list[tuple[int | None, Any]] = [*enumerate(items, 1)] if isinstance(items, list) else []
        places = self._places(extras, len(numbered))
        return [
            self._record(
                record,
                {**extras, **places(at), **self._chances(extras, at)},
                whole | self._row(item, number, record),
                is_first=not at,
            )
            for at, (number, item) in enumerate(numbered or [(None, None)])
        ]

    def _places(self, extras: JsonObject, items: int) -> Callable[[int], JsonDict]:
        """Return a function that gets the index of an item, and returns extras with the item's place in a document."""
        sources = extras.get(SOURCES)
        if not isinstance(sources, dict) or not isinstance(of_items := sources.get(self.field), list):
            return lambda _at: {}
        if len(of_items) != items:
            return lambda _at: {}
        return lambda at: {SOURCES: {**sources, self.field: of_items[at]}}

    def _chances(self, extras: JsonObject, at: int) -> JsonDict:
        """Return the extra `probabilities`: those of an item's fields, by the names of their columns, and those of the
        fields outside of the list."""
        if not isinstance(shares := extras.get("probabilities"), dict):
            return {}
        others = {name: own for name, own in shares.items() if not name.startswith(f"{self.field}[")}
        named = {column: f"{self.field}[{at}].{name}" for name, column in self.fields.items()}
        return {"probabilities": others | {column: shares[key] for column, key in named.items() if key in shares}}

    def _row(self, item: Any, number: int | None, record: Record) -> JsonDict:
        own = {self.field: item}
        if self.has_objects:
            own = item if isinstance(item, dict) else {}
        columns = {column: own.get(name) for name, column in self.fields.items()}
        return {**columns, self.number: number, self.row: record.row + 1}

    @staticmethod
    def _record(record: Record, extras: JsonObject, row: JsonObject, *, is_first: bool) -> Record:
        more = {name: value for name, value in extras.items() if is_first or name not in _OF_ONE}
        changes: JsonDict = {} if is_first else {"prompt_tokens": 0, "completion_tokens": 0}
        if record.code is not None:
            more["part"] = json_text(row)
        else:
            changes["text"] = json_text(row)
        return record._replace(**changes, more=json_text(more) if more else None)


def _fields(schema: JsonObject) -> dict[str, JsonObject]:
    """Return the resolved fields of an object's schema; `{}` for another schema."""
    whole = resolved(schema, schema)
    fields = whole.get("properties")
    return {str(name): resolved(each, schema) for name, each in fields.items()} if isinstance(fields, Mapping) else {}


def _has_parts(field: JsonObject, schema: JsonObject) -> bool:
    """Return whether a value is an object, or a list of objects or lists."""
    kind = kind_of(field, schema)
    return kind == "object" or (
        kind == "array" and kind_of(resolved(field.get("items"), schema), schema) in {"object", "array"}
    )
