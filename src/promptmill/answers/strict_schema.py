"""JSON Schema → the subset that OpenAI's strict mode accepts: all fields required, no open objects.

Rules: platform.openai.com/docs/guides/structured-outputs#supported-schemas; the keywords that bring an error were
compared with pydantic-ai's and openai-python's translations (November 2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SILENT = frozenset(
    {"title", "$schema", "$id", "$comment", "default", "examples", "discriminator", "readOnly", "writeOnly"}
)
# Described to the model in words; promptmill checks them in the answer.
_IN_WORDS = frozenset(
    {
        "minLength",
        "maxLength",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
    }
)
_INEXPRESSIBLE = frozenset(
    {
        "not",
        "if",
        "then",
        "else",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
        "prefixItems",
        "additionalItems",
        "unevaluatedProperties",
        "unevaluatedItems",
        "$dynamicRef",
        "$recursiveRef",
    }
)
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_SAYS_WHAT = frozenset({"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"})
_DEFINITIONS = ("$defs", "definitions")


class _InexpressibleError(Exception):
    """Strict mode cannot express the schema."""


def strict_form(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `schema` in the form of strict mode; None if strict mode cannot express it.

    An answer that satisfies the result satisfies `schema`, with two exceptions: optional fields may be null, and
    keywords that strict mode lacks are only described in words.
    """
    try:
        found = _node(_with_root(schema))
    except (_InexpressibleError, RecursionError):
        return None
    return found if found.get("type") == "object" and "anyOf" not in found else None


def _with_root(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `schema` with the reference at its root replaced: strict mode requires an object there."""
    reference = schema.get("$ref")
    for name in _DEFINITIONS:
        if isinstance(reference, str) and reference.startswith(f"#/{name}/"):
            root = (schema.get(name) or {}).get(reference.removeprefix(f"#/{name}/"))
            if isinstance(root, Mapping):
                return {**root, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _node(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or _INEXPRESSIBLE & schema.keys():
        raise _InexpressibleError
    node: dict[str, Any] = {}
    words = []
    for key, value in schema.items():
        if key in _IN_WORDS or (key == "format" and value not in _FORMATS) or (key == "pattern" and "(?" in value):
            words.append(f"{key}: {value}")
        elif key in {"anyOf", "oneOf", "allOf"}:
            node["anyOf"] = _options(key, value, taken="anyOf" in node)
        elif key in _DEFINITIONS:
            node[key] = {name: _node(inner) for name, inner in value.items()}
        elif key not in _SILENT:
            node[key] = value
    if "$ref" in node and len(node) > 1 and not (node.keys() <= {"$ref", *_DEFINITIONS}):
        node["anyOf"] = [{"$ref": node.pop("$ref")}]  # `$ref` may have no siblings, `anyOf` may
    if words:
        node["description"] = f"{node.get('description', '')} ({', '.join(words)})".strip()
    if "properties" in node or node.get("type") == "object":
        _close(node)
    if "items" in node or node.get("type") == "array":
        node["items"] = _node(node.get("items"))
        if not _SAYS_WHAT & node["items"].keys():
            raise _InexpressibleError
    return node


def _options(key: str, value: Any, *, taken: bool) -> list[dict[str, Any]]:
    if taken or (key == "allOf" and len(value) != 1):
        raise _InexpressibleError
    return [_node(option) for option in value]


def _close(node: dict[str, Any]) -> None:
    """Require all fields of an object and allow no others; an optional field may be null."""
    properties = node.get("properties")
    if not properties or node.get("type", "object") != "object":
        raise _InexpressibleError  # an object with arbitrary names would always be empty
    required = node.get("required") or ()
    if not set(required) <= properties.keys():
        raise _InexpressibleError
    fields = {name: _node(inner) for name, inner in properties.items()}
    if not all(_SAYS_WHAT & inner.keys() for inner in fields.values()):
        raise _InexpressibleError
    node["type"] = "object"
    node["properties"] = {name: inner if name in required else _or_null(inner) for name, inner in fields.items()}
    node["required"] = list(properties)
    node["additionalProperties"] = False


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    description = {name: node.pop(name) for name in ("description",) if name in node}
    return {"anyOf": [node, {"type": "null"}], **description}
