"""Merges the answers about pieces into one answer, by the types in the schema.

    lists        joined: an object in the text that two pieces share becomes one item, as do equal texts and numbers
    one value    the value, if all pieces with a value agree
    several      a conflict: a last request decides it, or the first value or the sum of numbers is used
    objects      merged field by field

If no piece has a value for a field, the field is null or an empty list. `Merged.sources` has the place of each value.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

from promptmill.core.sources import Sources, leaves
from promptmill.core.values import JsonDict, JsonObject, says_nothing

_NUMBER = re.compile(r"\d(?:[\d.,\u202f\u00a0']*\d)?")
Path: TypeAlias = tuple[str, ...]
"""The names of a field and of the objects that contain it; `()` for a value that is not an object."""


class Found(NamedTuple):
    """A value from the answer about a piece."""

    piece: int
    value: Any
    source: Sources = None
    """The sources in the answer. If `value` is a list or an object, this is a list or an object of sources."""


class PieceTexts(NamedTuple):
    """Two functions that look into the texts of the pieces."""

    of: Callable[[Found], Any]
    """A function that returns the location of a value."""
    shared: Callable[[int, int], str] = lambda _one, _other: ""
    """A function that returns the text that two pieces share."""


@dataclass(slots=True)
class Merged:
    """The values of the pieces, merged by a schema."""

    value: Any = None
    sources: Any = None
    """The location of the value, of each item of a list, or of each field of an object; None if there is no value."""
    conflicts: dict[Path, list[Found]] = field(default_factory=dict)
    """The conflicting values of fields. Such a field is None in `value`."""
    different: dict[Path, list[Found]] = field(default_factory=dict)
    """The values of each field with several values, even if one of them was chosen as the final value."""
    repeated: int = 0
    """The number of items that were left out because a list of an earlier piece has an equal item."""


def nullable(schema: JsonObject) -> JsonDict:
    """Return the schema for the answer about a piece: like `schema`, but each field may be null.

    >>> nullable({"type": "object", "properties": {"n": {"type": "number"}, "l": {"type": "array"}}})
    {'type': 'object', 'properties': {'n': {'anyOf': [{'type': 'number'}, {'type': 'null'}]}, 'l': {'type': 'array'}}}
    """
    if (fields := schema.get("properties")) and _is(schema, "object"):
        return {**schema, "properties": {name: nullable(each) for name, each in fields.items()}}
    if _is(schema, "array"):
        return {name: value for name, value in schema.items() if name != "minItems"}
    may_be_null = "null" in _types(schema) or (not _types(schema) and "enum" in schema)
    if may_be_null and None in schema.get("enum", [None]):
        return dict(schema)
    return {"anyOf": [dict(schema), {"type": "null"}]}


def merged(
    schema: JsonObject,
    found: Sequence[Found],
    how: str,
    places: PieceTexts,
    path: Path = (),
) -> Merged:
    """Merge the values of the pieces. `how`: `ask`, `first`, `sum` or `distinct`.

    `path`: the field to which the values belong.
    """
    fields = schema.get("properties")
    if fields and (_is(schema, "object") or all(isinstance(one.value, Mapping) for one in found)):
        objects = [one for one in found if isinstance(one.value, Mapping)]
        parts = {
            name: merged(
                own,
                [Found(one.piece, one.value[name], _field(one.source, name)) for one in objects if name in one.value],
                how,
                places,
                (*path, name),
            )
            for name, own in fields.items()
        }
        return Merged(
            {name: part.value for name, part in parts.items()},
            {name: part.sources for name, part in parts.items() if part.sources is not None},
            {at: values for part in parts.values() for at, values in part.conflicts.items()},
            {at: values for part in parts.values() for at, values in part.different.items()},
            sum(part.repeated for part in parts.values()),
        )
    if _is(schema, "array") or (found and all(isinstance(one.value, list) for one in found)):
        if how != "distinct" and any(isinstance(item.value, Mapping) for one in found for item in _items(one)):
            return _all_items(found, places)
        return _distinct(schema, found, places.of)
    return _one(path, schema, found, how, places.of)


def _field(sources: Sources, name: str) -> Sources:
    return sources.get(name) if isinstance(sources, Mapping) else None


def _items(one: Found) -> Sequence[Found]:
    """Return the items of a list."""
    if not isinstance(one.value, list):
        return ()
    sources = one.source if isinstance(one.source, list) and len(one.source) == len(one.value) else []
    return [Found(one.piece, *each) for each in itertools.zip_longest(one.value, sources)]


def _all_items(found: Sequence[Found], places: PieceTexts) -> Merged:
    """Join lists of objects. Equal objects, such as two equal lines of an invoice, stay several items; but an object in
    the text that two pieces share was read twice, and becomes one item."""
    items: list[Found] = []
    before, earlier = -1, Counter[str]()
    for one in found:
        shared = _plain(places.shared(before, one.piece)) if before >= 0 else ""
        present = Counter(_key(item.value) for item in _items(one) if not says_nothing(item.value))
        for item in _items(one):
            key = _key(item.value)
            if says_nothing(item.value):
                continue
            if shared and earlier[key] and _stands_in(item.value, shared):
                earlier[key] -= 1
                continue
            items.append(item)
        before, earlier = one.piece, present
    return Merged([one.value for one in items], [places.of(one) for one in items] or None)


def _stands_in(item: Any, text: str) -> bool:
    """Return whether a text contains an object: the object's longest value, and the digits of its whole numbers."""
    values = item.values() if isinstance(item, Mapping) else [item]
    texts = [_plain(str(value)) for value in values if isinstance(value, str | int | float)]
    longest, numbers = max(texts, key=len, default=""), {*_NUMBER.findall(text)}
    whole = {str(value) for value in values if isinstance(value, int) and not isinstance(value, bool)}
    return bool(longest) and longest in text and whole <= {re.sub(r"\D", "", number) for number in numbers}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _distinct(schema: JsonObject, found: Sequence[Found], place: Callable[[Found], Any]) -> Merged:
    allowed = of_items.get("enum", ()) if isinstance(of_items := schema.get("items"), Mapping) else ()
    items: dict[str, Found] = {}
    repeated = 0
    for one in found:
        for item in _items(one):
            if item.value in allowed or not says_nothing(item.value):
                known = items.setdefault(key := _key(item.value), item)
                repeated += known.piece != one.piece
                items[key] = _supported(known, item)
    values = [one.value for one in items.values()]
    return Merged(values, [place(one) for one in items.values()] or None, repeated=repeated)


def _one(path: Path, schema: JsonObject, found: Sequence[Found], how: str, place: Callable[[Found], Any]) -> Merged:
    different: dict[str, Found] = {}
    stated = [one for one in found if one.value is not None]
    found = [one for one in stated if one.value in schema.get("enum", ()) or not says_nothing(one.value)] or stated
    for one in found:
        key = _key(one.value)
        different[key] = _supported(different.get(key, one), one)
    values = list(different.values())
    if not values:
        return Merged()
    numbers = [one.value for one in found if isinstance(one.value, int | float) and not isinstance(one.value, bool)]
    if how == "sum" and numbers and all(isinstance(one.value, int | float) for one in values):
        return Merged(_sum(numbers), [place(one) for one in found])
    if len(values) == 1:
        return Merged(values[0].value, place(values[0]))
    if how == "first":
        return Merged(values[0].value, place(values[0]), different={path: values})
    return Merged(None, [place(one) for one in values], {path: values}, {path: values})


def _supported(known: Found, other: Found) -> Found:
    """Return the one of two equal values whose quote is in the text; if both quotes are in the text, or neither is,
    return the first value."""
    are_missing = [any("is_missing" in its for _, its in leaves(one.source)) for one in (known, other)]
    return known._replace(source=other.source, piece=other.piece) if are_missing == [True, False] else known


def _sum(numbers: Sequence[int | float]) -> int | float:
    """Return the sum of numbers as decimals, so that the sum of 0.1 and 0.2 is 0.3."""
    if all(isinstance(number, int) for number in numbers):
        return sum(numbers)
    return float(sum(Decimal(str(number)) for number in numbers))


def may_conflict(schema: JsonObject, how: str) -> bool:
    """Return whether pieces may have conflicting values for a field. `how`: see `merged`.

    >>> may_conflict({"type": "array"}, "ask"), may_conflict({"type": "number"}, "sum"), may_conflict({}, "ask")
    (False, False, True)
    """
    if fields := schema.get("properties"):
        return any(may_conflict(own, how) for own in fields.values())
    is_summed = how == "sum" and bool(kinds := {*_types(schema)} - {"null"}) and kinds <= {"integer", "number"}
    return how != "first" and not is_summed and not _is(schema, "array")


def schema_of_conflicts(schema: JsonObject, paths: Iterable[Path]) -> JsonDict:
    """Return the schema of an object with only the fields at `paths`, each under its `name_of`."""
    fields = {name_of(path): functools.reduce(lambda at, name: at["properties"][name], path, schema) for path in paths}
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return {**shared, "type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def name_of(path: Path) -> str:
    """Return the name of a field in the last request, such as `party.name`."""
    return ".".join(path) or "value"


def decided(merged_: Merged, decisions: JsonObject) -> Any:
    """Return the merged value, with the values that the last request decided."""
    whole = json.loads(json.dumps({"value": merged_.value}))
    for path in merged_.conflicts:
        if (name := name_of(path)) in decisions:
            *parents, last = ("value", *path)
            functools.reduce(dict.__getitem__, parents, whole)[last] = decisions[name]
    return whole["value"]


def _types(schema: JsonObject) -> Sequence[Any]:
    kind = schema.get("type", ())
    return [kind] if isinstance(kind, str) else kind


def _is(schema: JsonObject, kind: str) -> bool:
    return kind in _types(schema)


def _key(value: Any) -> str:
    """Return a text that is equal for values with the same meaning: spaces, case and `1.0` make no difference."""
    if isinstance(value, str):
        return "text " + " ".join(value.split()).casefold()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Mapping):
        return json.dumps({name: _key(each) for name, each in value.items()}, sort_keys=True)
    return json.dumps(value)
