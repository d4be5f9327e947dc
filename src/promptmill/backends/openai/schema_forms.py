"""The formats in which providers accept a request for JSON: `response_format`, and the subsets of JSON Schema.

`asked_of` chooses the format for a chat completion. `strict_form`, `closed_form`, `google_form` and `grammar_form`
convert a schema to the subsets of OpenAI, Anthropic, Google and llama.cpp. Keywords that a subset lacks are described
to the model in words, if the subset has descriptions. promptmill checks every answer against the whole schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from promptmill.answers.response_format import schema_of
from promptmill.backends.openai.providers import JsonSupport
from promptmill.core.values import JsonDict, JsonObject

_ANY_OBJECT: JsonObject = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}


def asked_of(support: JsonSupport, wanted: JsonObject) -> tuple[JsonObject | None, str]:
    """Return the `response_format` for a provider, and the instructions for the prompt.

    Raises `PromptmillError` (`invalid_input`) if a `json_schema` has no schema.
    """
    schema, form = schema_of(wanted), support.form
    if wanted.get("type") == "json_object" and not support.has_json_mode:
        return _ANY_OBJECT, ""
    if schema is None or form == "schema" or (form in {"strict", "grammar"} and wanted["type"] == "json_object"):
        return wanted, ""
    if form == "strict":
        return _strictly(wanted), ""
    if form == "grammar":
        possible = grammar_form(schema)
        if possible == schema:
            return wanted, ""
        if possible is not None:
            return {**wanted, "json_schema": {**wanted["json_schema"], "schema": possible}}, in_words(wanted)
    return ({"type": "json_object"} if form == "object" else None), in_words(wanted)


def in_words(wanted: JsonObject) -> str:
    """Return instructions for a model whose provider does not enforce `wanted`, a request for JSON."""
    words = "Answer with JSON alone, without any other words or code fences."
    if wanted["type"] == "json_schema":
        words += f" It must satisfy this JSON schema:\n{orjson.dumps(schema_of(wanted)).decode()}"
    return words


def _strictly(wanted: JsonObject) -> JsonObject:
    block = wanted["json_schema"]
    if not block.get("strict"):
        return wanted
    schema = strict_form(block["schema"])
    # a schema that strict mode cannot represent only guides the model; promptmill validates every answer
    block = {**block, "strict": False} if schema is None else {**block, "schema": schema}
    return {**wanted, "json_schema": block}


# JSON Schema → the subset of OpenAI's strict mode: all fields required, no additional fields. Rules:
# platform.openai.com/docs/guides/structured-outputs#supported-schemas; the keywords that cause an error were compared
# with the translations of pydantic-ai and openai-python (November 2026).

_SILENT = frozenset(
    {"title", "$schema", "$id", "$comment", "default", "examples", "discriminator", "readOnly", "writeOnly"}
)
# Keywords that are described to the model in words; promptmill checks them in the answer.
_IN_WORDS = frozenset({
    "minLength", "maxLength", "propertyNames", "minProperties", "maxProperties", "contains", "minContains",
    "maxContains", "uniqueItems",
})  # fmt: skip
_INEXPRESSIBLE = frozenset({
    "not", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas", "patternProperties",
    "prefixItems", "additionalItems", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
})  # fmt: skip
_STRICT_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_ANNOTATIONS = _SILENT | {"description", "deprecated"}
_SAYS_WHAT = frozenset({"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"})
_DEFINITIONS = ("$defs", "definitions")
# No subset can represent two of these keywords in one schema: each may forbid the other's fields, or replace the other.
_EXCLUSIVE = frozenset({"$ref", "anyOf", "oneOf", "allOf", "properties"})


class _InexpressibleError(Exception):
    """Strict mode cannot represent the schema."""


def strict_form(schema: JsonObject) -> JsonDict | None:
    """Return `schema` in the form for strict mode; None if strict mode cannot represent it.

    Every answer that matches the returned schema also matches `schema`, with two exceptions: optional fields may be
    null, and keywords that strict mode lacks are only described to the model in words.
    """
    try:
        node = _node(_with_root(schema))
    except (_InexpressibleError, RecursionError):
        return None
    return node if node.get("type") == "object" and "anyOf" not in node else None


def _with_root(schema: JsonObject) -> JsonObject:
    """Return `schema` with a reference at its root resolved, because strict mode requires an object there."""
    reference = schema.get("$ref")
    for name in _DEFINITIONS:
        if isinstance(reference, str) and reference.startswith(f"#/{name}/"):
            root = (schema.get(name) or {}).get(reference.removeprefix(f"#/{name}/"))
            if isinstance(root, Mapping):
                return {**root, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _node(schema: Any) -> JsonDict:
    if not isinstance(schema, Mapping) or _INEXPRESSIBLE & schema.keys() or len(_EXCLUSIVE & schema.keys()) > 1:
        raise _InexpressibleError
    node: JsonDict = {}
    words = []
    for key, value in schema.items():
        if (
            key in _IN_WORDS
            or (key == "format" and value not in _STRICT_FORMATS)
            or (key == "pattern" and "(?" in value)
        ):
            words.append(f"{key}: {value}")
        elif key in {"anyOf", "oneOf", "allOf"}:
            node["anyOf"] = _options(key, value)
        elif key in _DEFINITIONS:
            node[key] = {name: _node(inner) for name, inner in value.items()}
        elif key not in _SILENT:
            node[key] = value
    if "$ref" in node and len(node) > 1 and not (node.keys() <= {"$ref", *_DEFINITIONS}):
        node["anyOf"] = [{"$ref": node.pop("$ref")}]  # `$ref` may have no sibling keywords, but `anyOf` may
    if words:
        node["description"] = f"{node.get('description', '')} ({', '.join(words)})".strip()
    if "properties" in node or node.get("type") == "object":
        _close(node)
    if "items" in node or node.get("type") == "array":
        node["items"] = _node(node.get("items"))
        if not _SAYS_WHAT & node["items"].keys():
            raise _InexpressibleError
    return node


def _options(key: str, value: Any) -> list[JsonDict]:
    if key == "allOf" and len(value) != 1:
        raise _InexpressibleError
    return [_node(option) for option in value]


def _close(node: JsonDict) -> None:
    """Require all fields of an object and forbid others. Optional fields may be null."""
    properties = node.get("properties")
    is_open = isinstance(node.get("additionalProperties"), Mapping)
    if not properties or is_open or node.get("type", "object") != "object":
        raise _InexpressibleError  # a closed object has no additional fields, and without fields it is empty
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


def _or_null(node: JsonDict) -> JsonDict:
    description = {name: node.pop(name) for name in ("description",) if name in node}
    return {"anyOf": [node, {"type": "null"}], **description}


# The subsets of Anthropic's `output_config.format` and Google's `responseJsonSchema`. Rules: `transform_schema` of the
# package anthropic 2.13.0 and platform.claude.com/docs/en/build-with-claude/structured-outputs; `response_json_schema`
# of the package google-genai 3.6.1.

_ALWAYS = frozenset({"type", "description", "title", "required"})


@dataclass(frozen=True, slots=True)
class _Subset:
    """A subset of JSON Schema. `kept`: keywords that contain no schemas. `formats`: permitted values of `format`."""

    kept: frozenset[str]
    formats: frozenset[str]
    closes: bool
    """Whether objects must name all their fields, and schemas may not refer to themselves."""
    has_tuples: bool
    """Whether the subset has `prefixItems`, and objects with arbitrary field names."""


_ANTHROPIC = _Subset(_ALWAYS | {"enum", "const"}, _STRICT_FORMATS | {"uri"}, closes=True, has_tuples=False)
# Google also accepts `maxItems`, but may refuse a schema that has several of them: googleapis/python-genai#2170.
_GOOGLE = _Subset(
    _ALWAYS | {"enum", "minItems", "minimum", "maximum", "propertyOrdering"},
    frozenset({"date-time", "date", "time"}),
    closes=False,
    has_tuples=True,
)


def closed_form(schema: JsonObject) -> JsonDict | None:
    """Return `schema` in Anthropic's subset; None if the subset cannot represent it.

    Answers that satisfy the returned schema satisfy `schema`. Keywords that the subset lacks are described in words.
    """
    return _in_subset(schema, _ANTHROPIC)


def google_form(schema: JsonObject) -> JsonDict | None:
    """Return `schema` in Google's subset; None if the subset cannot represent it. See also `closed_form`."""
    return _in_subset(schema, _GOOGLE)


# The fields of Google's `Schema` object (ai.google.dev/api/caching#Schema). With a JSON Schema, Google's batches give
# degenerate answers (crmne/ruby_llm#894).
_OPENAPI = frozenset({
    "anyOf", "description", "enum", "format", "items", "maximum", "maxItems", "minimum", "minItems", "nullable",
    "properties", "propertyOrdering", "required", "type",
})  # fmt: skip


def openapi_form(form: JsonObject | None) -> JsonDict | None:
    """Convert a schema in Google's subset to the older `Schema` object; None if the object cannot represent it."""
    try:
        return _as_openapi(form)
    except (_InexpressibleError, RecursionError, AttributeError, TypeError):
        return None


def _as_openapi(form: Any) -> JsonDict:
    node = {key: value for key, value in _without(form, "additionalProperties").items() if key not in _SILENT}
    is_open = form.get("additionalProperties", False) is not False
    if is_open or node.keys() - _OPENAPI or not all(isinstance(value, str) for value in node.get("enum", ())):
        raise _InexpressibleError
    if "type" in node:
        node["type"] = str(node["type"]).upper()
    if "items" in node:
        node["items"] = _as_openapi(node["items"])
    if "properties" in node:
        node["properties"] = {name: _as_openapi(inner) for name, inner in node["properties"].items()}
        if len(node["properties"]) > 1:  # without this field, the model writes fields in alphabetical order
            node.setdefault("propertyOrdering", [*node["properties"]])
    if "anyOf" in node:
        parts = [_as_openapi(inner) for inner in node["anyOf"]]
        node["anyOf"] = [part for part in parts if part != {"type": "NULL"}]
        node |= {"nullable": True} if node["anyOf"] != parts else {}
    return node


def _in_subset(schema: JsonObject, subset: _Subset) -> JsonDict | None:
    try:
        node = _with_root(schema)
        groups = [node.get(group) or {} for group in _DEFINITIONS]
        definitions = {name: inner for group in groups for name, inner in group.items()}
        if any(definitions[name] != inner for group in groups for name, inner in group.items()):
            return None  # two definitions have the same name
        if subset.closes and _refers_to_itself(definitions):
            return None
        subset_form = _within({key: value for key, value in node.items() if key not in _DEFINITIONS}, subset)
        if definitions:
            subset_form["$defs"] = {name: _within(inner, subset) for name, inner in definitions.items()}
    except (_InexpressibleError, RecursionError, AttributeError, TypeError):
        return None
    return subset_form


def _refers_to_itself(definitions: JsonObject) -> bool:
    """Return whether a definition refers to itself, directly or through others. Each definition is searched once."""
    open_, done = set[str](), set[str]()

    def is_endless(node: Any) -> bool:
        if isinstance(node, list):
            return any(map(is_endless, node))
        if not isinstance(node, Mapping):
            return False
        reference = node.get("$ref")
        name = reference.rsplit("/", 1)[-1] if isinstance(reference, str) else ""
        return (name in definitions and has_opened(name)) or any(map(is_endless, node.values()))

    def has_opened(name: str) -> bool:
        if name in open_:
            return True
        if name not in done:
            open_.add(name)
            if is_endless(definitions[name]):
                return True
            open_.remove(name)
            done.add(name)
        return False

    return any(map(has_opened, definitions))


def _within(schema: Any, subset: _Subset) -> JsonDict:
    if not isinstance(schema, Mapping) or (_INEXPRESSIBLE - {"prefixItems"}) & schema.keys():
        raise _InexpressibleError
    if "allOf" in schema:
        (only,) = schema["allOf"] if len(schema["allOf"]) == 1 else (None,)
        own, inner = _without(schema, "allOf"), _without(only, "title")
        if any(own[key] != inner[key] for key in own.keys() & inner.keys() - _ANNOTATIONS):
            raise _InexpressibleError
        return _within({**inner, **own}, subset)
    exclusive = _EXCLUSIVE if subset.closes or "$ref" in schema else _EXCLUSIVE - {"properties"}
    if len(exclusive & schema.keys()) > 1:
        raise _InexpressibleError
    if "$ref" in schema:
        return _reference(schema, subset)
    if isinstance(schema.get("type"), list) or None in (schema.get("enum") or ()):
        return _of_several_types(schema, subset)
    node = _keywords(schema, subset)
    if "enum" in node or "const" in node:
        _close_literals(node, subset)
    if subset.closes:
        _close_fields(node)
    return node


def _reference(schema: JsonObject, subset: _Subset) -> JsonDict:
    """Return a reference to a definition. `$ref` may have no sibling keywords, but `anyOf` may have a description."""
    group, _, name = str(schema["$ref"]).removeprefix("#/").partition("/")
    beside = _keywords({key: value for key, value in schema.items() if key not in {"$ref", "type", "title"}}, subset)
    if group not in _DEFINITIONS or "/" in name or beside.keys() - {"description"}:
        raise _InexpressibleError
    reference = {"$ref": f"#/$defs/{name}"}
    return {"anyOf": [reference], **beside} if beside else reference


def _keywords(schema: JsonObject, subset: _Subset) -> JsonDict:
    """Return a schema with only the keywords of the subset. Keywords that the subset lacks are described in words."""
    node: JsonDict = {}
    words = []
    for key, value in schema.items():
        if (keywords := _keyword(key, value, subset)) is not None:
            node |= keywords
        elif key not in _SILENT:
            words.append(f"{key}: {value}")
    if words:
        node["description"] = f"{node.get('description', '')} ({', '.join(words)})".strip()
    return node


def _keyword(key: str, value: Any, subset: _Subset) -> JsonDict | None:
    """Return a keyword and its value in the subset; None if the subset lacks the keyword."""
    if key in {"anyOf", "oneOf"}:
        return {"anyOf": [_within(option, subset) for option in value]}
    if key == "properties":
        return {key: {name: _within(inner, subset) for name, inner in value.items()}}
    if key == "items" or (key == "additionalProperties" and isinstance(value, Mapping)):
        return {key: _within(value, subset)}
    if key == "prefixItems":
        if not subset.has_tuples:
            raise _InexpressibleError
        return {key: [_within(inner, subset) for inner in value]}
    if key == "const" and key not in subset.kept:
        return {"enum": [value]}
    known = key in subset.kept or key == "additionalProperties"
    known = known or (key == "format" and value in subset.formats) or (key == "minItems" and value in {0, 1})
    return {key: value} if known else None


def _without(schema: Any, name: str) -> JsonDict:
    if not isinstance(schema, Mapping):
        raise _InexpressibleError
    return {key: value for key, value in schema.items() if key != name}


_OF_KIND = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
}
"""The keywords that apply only to values of one type."""


def _of_several_types(schema: JsonObject, subset: _Subset) -> JsonDict:
    """Split a schema with several types, or with null among its values, into a choice of schemas with one type each."""
    named = schema.get("type")
    types = named if isinstance(named, list) else [named, "null"]
    if len(types) > 1 + ("null" in types) and not schema.keys().isdisjoint({"anyOf", "oneOf"}):
        raise _InexpressibleError  # each level of such a schema would multiply the next level
    values = schema.get("enum")
    options = []
    for kind in types:
        if kind == "null":
            options.append({"type": "null"})
            continue
        unfit = {key for name, keys in _OF_KIND.items() if kind is not None and name != kind for key in keys}
        option = {key: value for key, value in schema.items() if key != "type" and key not in unfit}
        if kind is not None:
            option["type"] = kind
        if values is not None:
            option["enum"] = [value for value in values if value is not None]
        option.pop("description", None)
        options.append(option)
    about = {"description": schema["description"]} if "description" in schema else {}
    return {"anyOf": [_within(option, subset) for option in options], **about}


def _close_literals(node: JsonDict, subset: _Subset) -> None:
    """Add the type that Google requires for a list of values. (Anthropic accepts values without a type.)"""
    if subset.closes:
        node.pop("type", None)
        return
    values = node["enum"]
    if all(isinstance(value, str) for value in values):
        node["type"] = "string"
    elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        node.setdefault("type", "number")
    else:
        raise _InexpressibleError


def _close_fields(node: JsonDict) -> None:
    """Forbid an object's fields that the schema does not name."""
    if node.get("type") == "object" or "properties" in node:
        if not node.get("properties") and node.get("additionalProperties") is not False:
            raise _InexpressibleError  # without additional fields, such an object would always be empty
        if isinstance(node.get("additionalProperties"), Mapping):
            raise _InexpressibleError
        node |= {"type": "object", "additionalProperties": False}
    elif not _SAYS_WHAT & node.keys():
        raise _InexpressibleError


# JSON Schema → the keywords that llama.cpp (also in LM Studio and Ollama) converts to a grammar. Other keywords cause a
# 400, or an answer that ignores the schema. Rules: common/json-schema-to-grammar.cpp, src/llama-grammar.cpp (7/2026): a
# pattern needs both anchors and supports few escapes, a schema must not be a boolean, and references are kept.

# More than 2,000 repetitions of a rule are refused. An item of a list and its comma take up to four rules.
_REPETITIONS = 2000
_REPEATED = {"minLength": 1, "maxLength": 1, "minItems": 4, "maxItems": 4}
_GRAMMAR_PATTERN = re.compile(
    r"""\^(?:[^\\\[(]|\\[\^$.\[\](){}|*+?\\nrt"-]|\[(?:[^\\\]]|\\[\\nrt"\[\]-])*\]|\((?:\?:|(?!\?)))*\$"""
)
_COUNTS = re.compile(r"\{(\d*+),?(\d*+)\}")
# A schema for any value. llama.cpp reads `{}` as an object; earlier versions refuse a schema that has only annotations.
_ANYTHING: JsonObject = {"type": ["object", "array", "string", "number", "boolean", "null"]}


def grammar_form(schema: JsonObject) -> JsonObject | None:
    """Return `schema` without the keywords that llama.cpp's grammar refuses; None if no grammar can represent it."""
    try:
        return _in_grammar(schema)
    except (_InexpressibleError, RecursionError, AttributeError, TypeError):
        return None


def _in_grammar(schema: Any) -> JsonObject:
    if schema is True or (isinstance(schema, Mapping) and schema.keys() <= _ANNOTATIONS):
        return _ANYTHING
    if not isinstance(schema, Mapping):
        raise _InexpressibleError
    node: JsonDict = {}
    for key, value in schema.items():
        if key in {"properties", *_DEFINITIONS}:
            node[key] = {name: _in_grammar(inner) for name, inner in value.items()}
        elif key in {"allOf", "anyOf", "oneOf", "prefixItems"} or (key == "items" and isinstance(value, list)):
            node[key] = [_in_grammar(inner) for inner in value]
        elif key in {"items", "additionalProperties"} and isinstance(value, Mapping):
            node[key] = _in_grammar(value)
        elif key == "$ref" and not value.startswith("#/"):
            raise _InexpressibleError
        elif not _is_refused_by_grammar(key, value):
            node[key] = value
    return node


def _is_refused_by_grammar(key: str, value: Any) -> bool:
    if key == "pattern":
        counts = [int(count) for both in _COUNTS.findall(value) for count in both if count]
        return not _GRAMMAR_PATTERN.fullmatch(value) or any(count >= _REPETITIONS for count in counts)
    return key == "items" or (key in _REPEATED and _REPEATED[key] * value >= _REPETITIONS)
