"""Reads a JSON Schema: resolves references, and finds the type of a field and the answers that the schema lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from promptmill.core.bounds import DEEPEST, LONGEST_PATH
from promptmill.core.values import JsonObject, json_text, read_json, text_of
from promptmill.core.wording import mended


def answers_of_labels(schema: JsonObject) -> dict[str, str]:
    """Return the answers that a schema permits, by label. Labels are the listed values of the answer, or of its only
    field. Return `{}` for any other schema.

    >>> answers_of_labels({"properties": {"tone": {"enum": ["good", "bad", None]}}})
    {'good': '{"tone":"good"}', 'bad': '{"tone":"bad"}'}
    """
    whole = resolved(schema, schema)
    fields = whole.get("properties")
    names = [*fields] if isinstance(fields, Mapping) else []
    if len(names) > 1:
        return {}
    listed = resolved(fields[names[0]], schema) if isinstance(fields, Mapping) and names else whole
    values = [True, False] if listed.get("type") == "boolean" else listed.get("enum")
    texts = [value for value in values if value is not None] if isinstance(values, list) else []
    return {text_of(value): json_text({names[0]: value} if names else value) for value in texts}


def loaded(text: str) -> Any:
    try:
        value = read_json(text)
    except json.JSONDecodeError:  # also raised for a lone surrogate
        try:
            value = mended(json.loads(text))
        except RecursionError:
            raise ValueError("nested too deeply") from None
    return value


def resolved(schema: Any, root: JsonObject) -> JsonObject:
    """Follow the references of `schema`, and drop the alternative `null`. Return `{}` for a broken reference.

    A reference with more characters than `LONGEST_PATH`, or more than `2 * DEEPEST` names, counts as broken.
    """
    for _ in range(DEEPEST):
        if not isinstance(schema, Mapping):
            break
        if isinstance(reference := schema.get("$ref"), str):
            path = reference.removeprefix("#").strip("/")
            schema = root if len(path) <= LONGEST_PATH else None
            for part in path.split("/", 2 * DEEPEST) if schema and path else ():
                name = part.replace("~1", "/").replace("~0", "~")
                schema = schema.get(name) if isinstance(schema, Mapping) else None
            continue
        several: list[Any] = []
        for name in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(name), list):
                several = schema[name]
                break
        meant = [one for one in several if one != {"type": "null"}]
        if len(meant) != 1 or "properties" in schema:
            return schema
        schema = meant[0]
    return {}


def kind_of(schema: JsonObject, root: JsonObject) -> str:
    """Return the JSON type of the values of a resolved schema, or `""` if it allows several types."""
    return _kind_of(schema, root, {})


def _kind_of(schema: JsonObject, root: JsonObject, known: dict[int, str | None]) -> str:
    """`known`: the types of alternatives by the identity of their schemas; None while the type is being found."""
    kinds = schema.get("type")
    named = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()
    if not named:
        values = (
            schema["enum"] if isinstance(schema.get("enum"), list) else [schema[x] for x in ("const",) if x in schema]
        )
        names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
        named = {names.get(type(value), "object") for value in values}
    if not named and isinstance(several := schema.get("anyOf", schema.get("oneOf")), list):
        named = set()
        for inner in (resolved(one, root) for one in several):
            if id(inner) not in known:
                known[id(inner)] = None  # an alternative that contains itself adds no type
                known[id(inner)] = _kind_of(inner, root, known)
            if (kind := known[id(inner)]) is not None:
                named.add(kind)
    named -= {"null"}
    if named == {"integer", "number"}:
        return "number"
    return named.pop() if len(named) == 1 else ""
