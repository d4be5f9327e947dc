"""Describes the mistakes in a user's JSON Schema in words, with the location and the remedy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from promptmill.core.values import JsonObject
from promptmill.core.wording import close_matches, shape

_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
# Names of types in programming languages.
_OTHER_NAMES = {"str": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean"}
_OTHER_NAMES |= {"list": "array", "dict": "object", "none": "null", "text": "string"}

# Keywords of json-schema.org, draft 2020-12, without annotations; and the keys of a `response_format`.
_SAYING = frozenset(
    {"properties", "required", "items", "enum", "const"}
    | {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "additionalProperties", "patternProperties"}
    | {"propertyNames", "prefixItems", "contains", "minProperties", "maxProperties", "minItems", "maxItems"}
    | {"uniqueItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum"}
    | {"exclusiveMaximum", "multipleOf", "dependentRequired", "dependentSchemas", "definitions"}
    | {"json_schema", "schema"}
)
_ABOUT = frozenset(
    {"type", "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
    | {"minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties", "additionalItems", "dependencies"}
    | {"contentEncoding", "contentMediaType", "contentSchema", "nullable", "discriminator", "propertyOrdering"}
    | {"name", "strict", "id", "enumDescriptions", "enumNames"}
)
"""Further keywords that tools support."""
_ALIKE = 0.8


def why_no_schema(schema: JsonObject) -> str:
    """Return the problem if `schema` is an example answer or has a misspelt keyword; `""` otherwise."""
    if strange := [name for name in schema if not isinstance(name, str)]:
        return f"has {shape(strange[0])} as a key; keys are texts."
    if not _is_example(schema):
        return _misspelt(schema)
    name = f"{next(iter(schema)):.40}"
    fields = f'{{"{name}": {{"type": "string"}}}}'
    return (
        "is an example, not a JSON Schema. A schema states the type of each field: "
        f'{{"type": "object", "properties": {fields}, "required": ["{name}"]}}.'
    )


def _misspelt(schema: JsonObject) -> str:
    """Return the problem if a keyword or a required field of a schema looks like a misspelling of another.

    JSON Schema ignores unknown keywords, so the misspelt schema would be valid, and every answer or none would match.
    """
    # Only the first 50 unknown names are compared, because comparing names takes time.
    for path, name, known in itertools.islice(_unknown(schema), 50):
        if near := close_matches(name, itertools.islice(known, 50), cutoff=_ALIKE):
            return f"has a mistake: {_dotted(path)[:100]}: {name!r:.40}; did you mean {near[0]:.40}?"
    return ""


def _unknown(schema: JsonObject) -> Iterator[tuple[list[str | int], str, Collection[str]]]:
    """Yield unknown keywords and undefined required fields, each with its path, its name, and the known names."""
    waiting: list[tuple[list[str | int], Any]] = [([], schema)]
    while waiting:
        path, here = waiting.pop()
        if not isinstance(here, Mapping):
            continue
        fields, required = here.get("properties"), here.get("required")
        fields = fields if isinstance(fields, Mapping) else {}
        for name in required if isinstance(required, list) else ():
            if isinstance(name, str) and name not in fields:
                yield [*path, "required"], name, fields
        for name in here:
            if name not in _SAYING and name not in _ABOUT and not name.startswith(("$", "x-")):
                yield path or ["the schema"], name, _SAYING
        waiting += [([*path, "properties", name], inner) for name, inner in fields.items()]
        waiting.append(([*path, "items"], here.get("items")))


def _is_example(schema: JsonObject) -> bool:
    """Return whether `schema` is an example answer: it has fields, but no keyword that constrains answers.

    `name` and `title` do not count as keywords, because many answers have such fields.
    """
    kind = schema.get("type")
    if isinstance(kind, list) or (isinstance(kind, str) and _meant_type(kind)):
        return False
    return bool(schema) and not any(name in _SAYING or name.startswith("$") for name in schema)


def why_not_usable(error: Exception, schema: JsonObject) -> str:
    """Return the reason why a schema is invalid, from the `error` that compiling it raised."""
    path = list(getattr(error, "instance_path", []))
    if wrong := _wrong_type(path, schema):
        return wrong
    # Only the first line is kept, because the others quote the schema.
    reason = str(error).splitlines()[0]
    place = f"{_dotted(path)}: " if path else ""
    return f"{place}{reason[:200].rstrip('.')}."


def _wrong_type(path: list[str | int], schema: JsonObject) -> str:
    """Return the problem of a `type` that names an unknown type; `""` for other problems."""
    value: Any = schema
    for part in path:
        value = value[part]
    unknown = next((one for one in (value if isinstance(value, list) else [value]) if one not in _TYPES), None)
    if path[-1:] != ["type"] or not isinstance(unknown, str):
        return ""
    near = _meant_type(unknown)
    return f"{_dotted(path)}: {unknown[:40]!r}; {f'did you mean {near}?' if near else 'types: ' + ', '.join(_TYPES)}"


def _meant_type(name: str) -> str:
    near = close_matches(name, _TYPES)
    return _OTHER_NAMES.get(name.lower()) or (near[0] if near else "")


def _dotted(path: list[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def why_not_json(error: json.JSONDecodeError) -> str:
    """Explain why a text is not valid JSON, with the line, the column and the remedy."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if rest.startswith(","):  # newer Python versions report the position of the comma
        before, rest = f"{before},", rest[1:].lstrip()
    what = error.msg[:1].lower() + error.msg[1:]
    if not rest:
        what = "it ends too early, perhaps without a closing bracket"
    elif before.endswith(",") and rest[0] in "}]":
        what = f"remove the comma before the {rest[0]}"
    elif rest[0] == "'":
        what = "write names and texts in double quotes"
    elif "delimiter" in error.msg:
        what = "a comma or a closing bracket is missing" if "," in error.msg else "a colon is missing"
    return f"line {error.lineno}, column {error.colno}: {what}"
