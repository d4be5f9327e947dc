"""The tools as `tools/list` shows them. Their schemas are short, because a language model reads all of them first.

A call may also send rare arguments at its top level: the tool's own schema, which is not listed, has all arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from promptmill.core.errors import input_error
from promptmill.core.values import JsonDict, JsonObject

RARE = "rare"
"""In the schema of an argument that `tools/list` shows as a key of `options`: a description of the argument's value."""
OPTIONS = "options"
SKILL = "skill://promptmill/SKILL.md"
_UNREAD = frozenset({"default", "examples", "title"})


def listed(schemas: Mapping[str, JsonObject]) -> dict[str, JsonDict]:
    """Return the input schemas for `tools/list`: types and descriptions, with rare arguments in `options`.

    If several tools have the same argument, only the first of them describes it; the others show only its type.
    """
    seen = set[tuple[str, str]]()
    shown = {}
    for tool, schema in schemas.items():
        properties, rare = {}, [*rare_names(schema)]
        for name, argument in schema.get("properties", {}).items():
            if name in rare:
                continue
            properties[name] = _short(argument)
            words = name, argument.get("description", "")
            if words in seen:
                del properties[name]["description"]
            elif words[1]:
                seen.add(words)
        if rare:
            keys = ", ".join(f"{name} {schema['properties'][name][RARE]}".rstrip() for name in rare)
            properties[OPTIONS] = {"type": "object", "description": f"Rare, see {SKILL}: {keys}."}
        shown[tool] = {"type": "object", "properties": properties, "additionalProperties": False}
        if schema.get("required"):
            shown[tool]["required"] = schema["required"]
    return shown


def rare_names(schema: JsonObject) -> Iterator[str]:
    """Yield the names of the rare arguments in a tool's schema."""
    return (name for name, argument in schema.get("properties", {}).items() if RARE in argument)


def unpacked(arguments: JsonObject, schema: JsonObject) -> JsonDict:
    """Return the arguments of a call with the keys of `options` moved to the top level. Raises `PromptmillError`."""
    rare = next(rare_names(schema), "")
    if not rare:
        return dict(arguments)  # unchanged, so that `options` is refused like any unknown argument
    options = {} if arguments[OPTIONS] is None else arguments[OPTIONS]
    if not isinstance(options, dict):
        raise input_error(f'`options` is an object, such as {{"{rare}": …}}.')
    rest = {name: value for name, value in arguments.items() if name != OPTIONS}
    if twice := sorted(rest.keys() & options.keys()):
        raise input_error(f"`{twice[0]}` is also in `options`; send it once.")
    return rest | options


def _short(argument: JsonObject) -> JsonDict:
    short: JsonDict = {
        name: value
        for name, value in argument.items()
        if name not in _UNREAD and not (name == "additionalProperties" and value is True)
    }
    for name, inner in short.items():
        match name, inner:
            case "items", dict():
                short[name] = _short(inner)
            case "properties", dict():
                short[name] = {field: _short(of) for field, of in inner.items()}
    kinds = [_short(kind) for kind in short.pop("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        return {**kinds[0], **short}
    return short | ({"anyOf": kinds} if kinds else {})
