"""Labels of a person for single fields of an answer that is an object."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from promptmill.answers.schema_kinds import kind_of, resolved
from promptmill.core.values import JsonDict, JsonObject, json_text


def with_fields(schema: JsonObject, answer: str, label: str, fields: JsonObject) -> str:
    """Return the whole answer, changed by a label that has some of its fields, and by the values of single `fields`.

    Without `fields`, a label that is no object, or has all fields, is returned as it is. A name such as `party.name` is
    a field within a field. For a field that is no text, a text is parsed as a number or another JSON value. Raises
    `KeyError` for a field that the answer does not have, and `ValueError` for `fields` with a label that is no object.

    >>> schema = {"properties": {"total": {"type": "number"}}}
    >>> with_fields(schema, '{"number": "R-7", "total": null}', "", {"total": "80"})
    '{"number":"R-7","total":80}'
    """
    whole, own = _object(answer), _object(label)
    if not fields and (not own or whole is None or whole.keys() <= own.keys()):
        return label
    if label and own is None:
        raise ValueError("the label is no object")
    if whole is None:
        raise KeyError(next(iter(fields)))
    changes: JsonDict = {**(own or {}), **fields}
    for name, value in changes.items():
        at, its = whole, resolved(schema, schema)
        *parents, last = [name] if name in whole else name.split(".")
        for parent in parents:
            at, its = at[parent], _field(its, parent, schema)
            if not isinstance(at, dict):
                raise KeyError(name)
        if last not in at:
            raise KeyError(name)
        at[last] = _typed(value, _field(its, last, schema), schema)
    return json_text(whole)


def _object(text: str) -> JsonDict | None:
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        return value if isinstance(value, dict) else None
    return None


def _field(schema: JsonObject, name: str, root: JsonObject) -> JsonObject:
    fields = schema.get("properties")
    return resolved(fields[name], root) if isinstance(fields, Mapping) and name in fields else {}


def _typed(value: Any, schema: JsonObject, root: JsonObject) -> Any:
    if isinstance(value, str) and kind_of(schema, root) not in {"string", ""}:
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value
