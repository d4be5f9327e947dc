"""JSON Schema of an answer: what `response_format` asks for, compiled once, checked for every answer."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from promptmill.answers import repair
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.wording import shape

_LONGEST_SCHEMA = 256 * 1024  # characters; larger ones are data
_MOST_PROBLEMS = 3
_MOST_KEPT = 256
_SHOWN = 60
_LONGEST_PROBLEM = 300
# `fancy-regex` looks around and back, as patterns of pydantic's `Decimal` do; the limit ends what never would
_BACKTRACKS = 100_000
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
# what other languages call them
_OTHER_NAMES = {"str": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean"}
_OTHER_NAMES |= {"list": "array", "dict": "object", "none": "null", "text": "string"}

# json-schema.org, draft 2020-12, less what only describes; `json_schema` is what `response_format` has one in
_SAYING = frozenset(
    {"properties", "required", "items", "enum", "const"}
    | {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "additionalProperties", "patternProperties"}
    | {"propertyNames", "prefixItems", "contains", "minProperties", "maxProperties", "minItems", "maxItems"}
    | {"uniqueItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum"}
    | {"exclusiveMaximum", "multipleOf", "dependentRequired", "dependentSchemas", "definitions"}
    | {"json_schema", "schema"}
)

# platform.openai.com/docs/guides/structured-outputs
_AN_OBJECT: Mapping[str, Any] = {"type": "object"}
_FORM = '{"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}'


class Checked(NamedTuple):
    """What an answer turned out to be: `text` satisfies the schema when `problem` is empty."""

    text: str
    problem: str = ""
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """A schema that answers must satisfy. Make one with `compile_schema`."""

    schema: Mapping[str, Any]
    _validator: Any

    def check(self, text: str, *, complete: bool = True) -> Checked:
        """Return the answer `text` as it is if it satisfies the schema, else repaired, else with its problem.

        Only what leaves no doubt is repaired (see `repair`), and nothing in an answer that is not `complete`.
        """
        try:
            value = repair.load(text)
        except ValueError:
            start = " ".join(text[:_SHOWN].split())
            problem = f"it is not JSON, it begins with {start!r}" if start else "it is not JSON, it is empty"
        else:
            if self._validator.is_valid(value):
                return Checked(text)
            problem = self._problem(value)
        if not complete:
            return Checked(text, problem)
        found: dict[str, str] = {}
        for value in repair.candidates(text):
            problem = self._problem(value)
            for kept in (value, *self._without_nulls(value)):
                if self._validator.is_valid(kept) and (written := repair.written(kept)):
                    found[json.dumps(kept, sort_keys=True)] = written
                    break
        if len(found) == 1:
            return Checked(found.popitem()[1], repaired=True)
        if found:
            problem = "it holds several JSON values, and each of them would do"
        return Checked(text, problem)

    def _problem(self, value: Any) -> str:
        problems = []
        for error in self._validator.iter_errors(value):
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
            problems.append(f"at ${place}: {error.message}"[:_LONGEST_PROBLEM])
            if len(problems) == _MOST_PROBLEMS:
                break
        return "; ".join(problems)

    def _without_nulls(self, value: Any) -> Iterator[Any]:
        """Yield `value` without the fields that are null and may be missing.

        Strict endpoints write null for a field that may be missing, because they let none be.
        """
        flagged = {tuple(error.instance_path) for error in self._validator.iter_errors(value)}
        pruned = _pruned(value, flagged, ())
        if pruned != value:
            yield pruned
            return
        pruned = _pruned(value, None, ())
        if pruned != value:
            yield pruned


def _pruned(value: Any, places: set[tuple[str | int, ...]] | None, here: tuple[str | int, ...]) -> Any:
    """Return `value` without the null fields at `places`, or without any where that is None."""
    if isinstance(value, dict):
        return {
            key: _pruned(inner, places, (*here, key))
            for key, inner in value.items()
            if inner is not None or (places is not None and (*here, key) not in places)
        }
    if isinstance(value, list):
        return [_pruned(inner, places, (*here, index)) for index, inner in enumerate(value)]
    return value


def compile_schema(schema: Mapping[str, Any], where: str = "answer_schema") -> AnswerSchema:
    """Return `schema`, ready to check answers; nothing is fetched for a `$ref` elsewhere.

    Raises `PromptmillError` (`invalid_input`) for what is not a JSON Schema; `where` names it.
    """
    import jsonschema_rs  # 20 ms, for those who ask for it

    try:
        if len(json.dumps(schema)) > _LONGEST_SCHEMA:
            raise input_error(f"{where} is longer than {_LONGEST_SCHEMA >> 10} KiB; send a shorter schema.")
        validator = jsonschema_rs.validator_for(
            dict(schema),
            offline=True,
            mask="it",
            pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS),
        )
    except PromptmillError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise input_error(f"{where} is not a usable JSON Schema: {_why_not_usable(error, schema)}") from None
    return AnswerSchema(schema, validator)


def why_no_schema(schema: Mapping[str, Any]) -> str:
    """Return that it is an answer as it might be, rather than a schema, and what to write; `""` for a schema."""
    if not _is_example(schema):
        return ""
    name = f"{next(iter(schema)):.40}"
    fields = f'{{"{name}": {{"type": "string"}}}}'
    return (
        "is an example, not a JSON Schema, which says what kind each field is: "
        f'{{"type": "object", "properties": {fields}, "required": ["{name}"]}}.'
    )


def _is_example(schema: Mapping[str, Any]) -> bool:
    """Return whether it is an answer as it might be, rather than a schema.

    It has fields, and none that says anything about an answer: `name` and `title` are fields of many an answer, and
    words of a schema only beside others.
    """
    kind = schema.get("type")
    if isinstance(kind, list) or (isinstance(kind, str) and (kind in _TYPES or _meant_type(kind))):
        return False
    return bool(schema) and not any(name in _SAYING or name.startswith("$") for name in schema)


def _why_not_usable(error: Exception, schema: Mapping[str, Any]) -> str:
    path = list(getattr(error, "instance_path", []))
    if path and (wrong := _wrong_type(path, schema)):
        return wrong
    # its first line: the others quote the schema
    reason = (str(getattr(error, "message", "")) or str(error) or type(error).__name__).splitlines()[0]
    return f"{_dotted(path)}: {reason[:200].rstrip('.')}." if path else f"{reason[:200].rstrip('.')}."


def _wrong_type(path: list[str | int], schema: Mapping[str, Any]) -> str:
    """Return what is wrong where a keyword `type` names a type that there is not, "" elsewhere."""
    value: Any = schema
    for part in path:
        value = value[part]
    if path[-1] == "type" and isinstance(value, list):
        value = next((one for one in value if one not in _TYPES), None)
    if "type" not in path[-2:] or not isinstance(value, str) or value in _TYPES:
        return ""
    near = _meant_type(value)
    return f"{_dotted(path)}: {value[:40]!r}; {f'did you mean {near}?' if near else 'types: ' + ', '.join(_TYPES)}"


def _meant_type(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), _TYPES, n=1)
    return _OTHER_NAMES.get(name.lower()) or (near[0] if near else "")


def _dotted(path: list[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def why_not_json(error: json.JSONDecodeError) -> str:
    """Return what is wrong with a text that is meant to be JSON, and where, in words."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if rest.startswith(","):  # where newer Pythons point
        before, rest = f"{before},", rest[1:].lstrip()
    what = error.msg[:1].lower() + error.msg[1:]
    if not rest:
        what = "it ends too early; is a closing bracket missing?"
    elif before.endswith(",") and rest[0] in "}]":
        what = f"remove the comma before the {rest[0]}"
    elif rest[0] == "'":
        what = "write names and texts in double quotes"
    elif "delimiter" in error.msg:
        what = "a comma or a closing bracket is missing" if "," in error.msg else "a colon is missing"
    return f"line {error.lineno}, column {error.colno}: {what}"


def asking_for(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `response_format` that asks for answers that satisfy `schema`."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def schema_of(wanted: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the schema that answers must satisfy, None where `wanted` asks for no JSON.

    JSON mode asks for any object. Forms of other kinds (`structural_tag`, …) are the engine's or endpoint's own.
    Raises `PromptmillError` (`invalid_input`) for a `json_schema` without a schema.
    """
    kind = (wanted or {}).get("type")
    if wanted is None or kind not in {"json_object", "json_schema"}:
        return None
    if kind == "json_object":
        return _AN_OBJECT
    block = wanted.get("json_schema")
    if not isinstance(block, Mapping):
        raise input_error(f"response_format.json_schema is {shape(block)}; send {_FORM}.")
    schema = block.get("schema")
    if not isinstance(schema, Mapping):
        raise input_error(f"response_format.json_schema.schema is {shape(schema)}; send {_FORM}.")
    return schema


class SchemaCache:
    """Compiled schemas of `response_format` values, so that each is compiled once."""

    def __init__(self) -> None:
        # by identity, because a call's items share the object; kept with it, so that an id is never reused
        self._by_id: dict[int, tuple[Mapping[str, Any], AnswerSchema | None]] = {}
        self._by_content: dict[str, AnswerSchema] = {}

    def of(self, wanted: Mapping[str, Any]) -> AnswerSchema | None:
        """Return the schema that `wanted` asks for, None for none. Raises `PromptmillError` (`invalid_input`)."""
        known = self._by_id.get(id(wanted))
        if known is None:
            if len(self._by_id) >= _MOST_KEPT:  # rows that each bring their own
                self._by_id.clear()
            schema = schema_of(wanted)
            known = self._by_id[id(wanted)] = (wanted, None if schema is None else self._compiled(schema))
        return known[1]

    def _compiled(self, schema: Mapping[str, Any]) -> AnswerSchema:
        content = json.dumps(schema, sort_keys=True)
        found = self._by_content.get(content)
        if found is None:
            if len(self._by_content) >= _MOST_KEPT:
                self._by_content.clear()
            found = self._by_content[content] = compile_schema(schema, "response_format")
        return found
