"""Two hundred schemas of the shapes that people ask for, each with an instance that satisfies it and one that does not.

Leaves and containers as in tool calls, extraction and JSON-Schema-Test-Suite: nesting, enums, unions, `$ref`, patterns,
ranges, unicode.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """A schema, an instance of it, and something else."""

    name: str
    schema: dict[str, Any]
    good: Any
    bad: Any


_LEAVES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "string": ({"type": "string", "maxLength": 20}, "Paris", 5),
    "integer": ({"type": "integer"}, -3, "three"),
    "number": ({"type": "number"}, 2.5, "2.5"),
    "boolean": ({"type": "boolean"}, True, "yes"),
    "enum": ({"type": "string", "enum": ["red", "green", "blue"]}, "green", "yellow"),
    "mixed enum": ({"enum": ["auto", 0, None]}, None, "off"),
    "const": ({"const": "order"}, "order", "offer"),
    "nullable": ({"type": ["string", "null"], "maxLength": 9}, None, 1),
    "any of": ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, 7, "7"),
    "range": ({"type": "integer", "minimum": 1, "maximum": 5}, 5, 6),
    "exclusive": ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5, 1),
    "pattern": ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}, "AB-123", "ab-123"),
    "long enough": ({"type": "string", "minLength": 3, "maxLength": 8}, "four", "no"),
    "unicode": ({"type": "string", "enum": ["Zürich", "東京", "🙂"]}, "東京", "Tokyo"),
    "short list": ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}, [1, 2], []),
    "list of enums": ({"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 4}, ["a", "b"], ["c"]),
    "date": ({"type": "string", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}, "2026-11-20", "tomorrow"),
    "null": ({"type": "null"}, None, 0),
    "quotes": ({"enum": ['say "hi"', "back\\slash", "line\nbreak"]}, "line\nbreak", "line break"),
    "one of": ({"oneOf": [{"const": "a"}, {"const": "b"}]}, "b", "ab"),
}


def _object(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    required = list(properties) if required is None else required
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        **more,
    }


def _contained(leaf: dict[str, Any], good: Any, bad: Any) -> Iterator[tuple[str, dict[str, Any], Any, Any]]:
    word = {"type": "string", "maxLength": 12}
    yield "field", _object({"value": leaf}), {"value": good}, {"value": bad}
    yield "two fields", _object({"name": word, "value": leaf}), {"name": "x", "value": good}, {"value": good}
    yield "optional", _object({"id": word, "value": leaf}, ["id"]), {"id": "x", "value": good}, {"id": 1}
    nested = _object({"outer": _object({"inner": _object({"value": leaf})})})
    yield "nested", nested, {"outer": {"inner": {"value": good}}}, {"outer": {"value": good}}
    rows = {"type": "array", "items": _object({"value": leaf}), "minItems": 1, "maxItems": 3}
    yield "rows", _object({"rows": rows}), {"rows": [{"value": good}] * 2}, {"rows": [{"value": bad}]}
    referred = _object({"value": {"$ref": "#/$defs/leaf"}}) | {"$defs": {"leaf": leaf}}
    yield "reference", referred, {"value": good}, {"value": bad}
    union = _object({"item": {"anyOf": [_object({"kind": {"const": "v"}, "value": leaf}), {"type": "null"}]}})
    yield "union", union, {"item": {"kind": "v", "value": good}}, {"item": {"kind": "w", "value": good}}
    call = _object({"name": {"enum": ["get_value", "stop"]}, "arguments": _object({"value": leaf})})
    yield "tool call", call, {"name": "stop", "arguments": {"value": good}}, {"name": "go", "arguments": {}}
    unicode = _object({"größe": leaf, "名前": word})
    yield "unicode names", unicode, {"größe": good, "名前": "x"}, {"grösse": good, "名前": "x"}
    list_of = {"type": "array", "items": _object({"value": leaf}), "minItems": 1, "maxItems": 2}
    yield "list", list_of, [{"value": good}], {"value": good}


SHAPES = [
    Shape(f"{container} of {leaf}", schema, well, wrong)
    for leaf, (inner, good, bad) in _LEAVES.items()
    for container, schema, well, wrong in _contained(inner, good, bad)
]
