"""The form of an answer with quotes: each value, and each item of a list, is an object with its quote.

answer    {"number": "R-7", "items": [{"item": "screws", "count": 3}]}
reply     {"number": {"quote": "Invoice R-7", "value": "R-7"},
           "items": [{"quote": "3 screws", "value": {"item": "screws", "count": 3}}]}
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from promptmill.answers.json_in_text import DoubtError, candidates
from promptmill.answers.response_format import asking_for, schema_of
from promptmill.answers.schema_kinds import kind_of, resolved
from promptmill.core.bounds import LONGEST_FORM, MOST_PARTS
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.request import Sampling, nested
from promptmill.core.sources import Sources, ValueSource
from promptmill.core.values import JsonDict, JsonObject, json_text, read_json

NOTE = (
    "Each value of the answer is an object with a `quote` and a `value`. Into `quote`, copy the words of the text that "
    "say the value, exactly as they stand there, and no more than needed. If no words say it, leave `quote` empty."
)
_QUOTE, _VALUE = "quote", "value"
_DEFINITIONS = "$defs", "definitions"
_WITH_PARTS = "properties", *_DEFINITIONS
_LONG = 1 << 16  # characters of a reply; in a longer reply, only JSON without slips is read
_LONGEST = 600  # max characters of a quote; without a limit, a small model may write until `max_tokens`
_FURTHER = frozenset(
    ("anyOf", "oneOf", "allOf", "not", "if", "patternProperties", "dependentSchemas", "prefixItems", "contains")
)
"""Keywords whose schemas describe values without quotes: an object or list with such a keyword gets a single quote."""
Parts: TypeAlias = Mapping[str, Any] | str
"""What gets quotes in an answer: an object's parts by field; `"list"`: each item; `"value"`: the value as a whole."""
Place: TypeAlias = Callable[[str, Any], ValueSource | None]
"""A function that gets a quote and its value, and returns the source of the value."""


@dataclass(frozen=True, slots=True)
class QuotedForm:
    """The form of replies to requests with the same parameters."""

    sampling: Sampling
    """The parameters with the schema of replies."""
    parts: Parts
    is_choice: bool
    """Whether an answer is one of the request's choices instead of JSON."""

    @classmethod
    def of(cls, sampling: Sampling) -> QuotedForm:
        """Return the form. Raises `PromptmillError` (`invalid_input`) for parameters without a schema or choices, and
        for a schema that cannot become a part of another schema."""
        if sampling.choices is not None:
            schema: JsonObject | None = {"type": "string", "enum": [*sampling.choices]}
        else:
            wanted = sampling.response_format
            schema = schema_of(wanted) if wanted and wanted.get("type") == "json_schema" else None
        if schema is None:
            names = (Named("fields"), ", a ", Named("schema"), " or ", Named("choices"))
            raise input_error(Named("quote"), " needs answers with ", *names, ".")
        if any(_is_of_root(node) for node in nested(schema)):
            raise input_error(Named("quote"), " cannot take a schema that refers to itself as a whole, by `#`.")
        quoting = _Quoting(schema)
        try:
            if quoting.size(schema) > MOST_PARTS:
                raise _too_large()
            changed, parts = quoting.of(schema, frozenset())
        except RecursionError:  # a chain of a thousand references
            raise _too_large() from None
        changed |= {name: schema[name] for name in _DEFINITIONS if name in schema}
        update = {"choices": None, "response_format": asking_for(changed)}
        return cls(sampling.model_copy(update=update), parts, sampling.choices is not None)

    def answer(self, reply: str, place: Place) -> tuple[str, Sources] | None:
        """Return the answer in a reply, and its sources; None if the reply has no JSON.

        Words around the JSON are kept; other steps decide whether such words are allowed.
        """
        if (found := _json_in(reply, "[]" if self.parts == "list" else "{}")) is None:
            return None
        value, start, end = found
        value, sources = _divided(self.parts, value, place)
        text = value if self.is_choice and isinstance(value, str) else json_text(value)
        return reply[:start] + text + reply[end:], sources


class _Quoting:
    """Makes the schema of replies from the schema of answers."""

    def __init__(self, whole: JsonObject) -> None:
        self._whole = whole
        self._parts, self._characters = MOST_PARTS, LONGEST_FORM
        self._sizes = dict[int, int]()

    def size(self, schema: JsonObject) -> int:
        """Return the number of values of a schema with its references written out, in time linear in the schema's own
        length. A schema inside of itself counts once, and a number above `MOST_PARTS` may be too small."""
        own = resolved(schema, self._whole)
        if (key := id(own)) not in self._sizes:
            self._sizes[key], fields = 1, own.get("properties")
            inner = sum(map(self.size, fields.values())) if isinstance(fields, Mapping) else 0
            self._sizes[key] = min(1 + inner, MOST_PARTS + 1)
        return self._sizes[key]

    def of(self, schema: JsonObject, open_: frozenset[str]) -> tuple[JsonDict, Parts]:
        """For `schema`, a part of the whole, return the schema of replies and its `Parts`. `open_`: the references that
        led to this part. Raises `PromptmillError` (`invalid_input`) for too many parts."""
        own, references = resolved(schema, self._whole), _references(schema)
        kind, fields = kind_of(own, self._whole), own.get("properties")
        self._parts -= 1
        self._characters -= len(json_text({name: value for name, value in own.items() if name not in _WITH_PARTS}))
        if self._parts < 0 or self._characters < 0:
            raise _too_large()
        kept = {name: value for name, value in own.items() if name not in {"uniqueItems", *_DEFINITIONS}}
        changed: JsonDict
        parts: Parts
        if kind == "object" and isinstance(fields, Mapping) and fields and _is_plain(own) and not references & open_:
            inner = {str(name): self.of(each, open_ | references) for name, each in fields.items()}
            changed = {**kept, "properties": {name: each for name, (each, _) in inner.items()}}
            parts = {name: its for name, (_, its) in inner.items()}
        elif kind == "array" and isinstance(own.get("items"), Mapping) and _is_plain(own):
            changed, parts = {**kept, "items": _with_quote(own["items"])}, "list"
        else:
            return _with_quote({name: value for name, value in schema.items() if name not in _DEFINITIONS}), "value"
        if {"type": "null"} in (*_list_in(schema, "anyOf"), *_list_in(schema, "oneOf")):
            changed = {"anyOf": [changed, {"type": "null"}]}
        return changed, parts


def _too_large() -> PromptmillError:
    values = f"more than {MOST_PARTS:,} values or {LONGEST_FORM >> 20} MiB, its references written out"
    return input_error(Named("quote"), f" cannot take a schema of {values}; ask for fewer fields.")


def _references(schema: JsonObject) -> frozenset[str]:
    """Return the references in a schema that `resolved` may follow."""
    every = (schema, *(one for name in ("anyOf", "oneOf", "allOf") for one in _list_in(schema, name)))
    return frozenset(str(one["$ref"]) for one in every if isinstance(one, Mapping) and "$ref" in one)


def _list_in(schema: JsonObject, name: str) -> list[Any]:
    return value if isinstance(value := schema.get(name), list) else []


def _is_plain(schema: JsonObject) -> bool:
    """Return whether a schema describes its values only by their fields or items."""
    return not schema.keys() & _FURTHER


def _is_of_root(node: Any) -> bool:
    reference = node.get("$ref") if isinstance(node, dict) else None
    return isinstance(reference, str) and not reference.startswith(tuple(f"#/{name}/" for name in _DEFINITIONS))


def _with_quote(schema: JsonObject) -> JsonDict:
    return {
        "type": "object",
        "properties": {_QUOTE: {"type": "string", "maxLength": _LONGEST}, _VALUE: dict(schema)},
        "required": [_QUOTE, _VALUE],
        "additionalProperties": False,
    }


def _divided(parts: Parts, value: Any, place: Place) -> tuple[Any, Sources]:
    """Divide a value into the value without its quotes, and its sources."""
    if parts == "value":
        quote: Any = ""
        if isinstance(value, Mapping) and _VALUE in value and value.keys() <= {_QUOTE, _VALUE}:
            quote, value = value.get(_QUOTE), value[_VALUE]
        return value, place("" if quote is None or isinstance(quote, bool | list | dict) else str(quote), value)
    if parts == "list":
        if not isinstance(value, list):
            return value, None
        pairs = [_divided("value", each, place) for each in value]
        return [each for each, _ in pairs], [source for _, source in pairs] or None
    if not isinstance(value, Mapping) or isinstance(parts, str):
        return value, None
    inner = {
        name: _divided(parts[name], each, place) if name in parts else (each, None) for name, each in value.items()
    }
    return {name: each for name, (each, _) in inner.items()}, {name: source for name, (_, source) in inner.items()}


def _json_in(text: str, brackets: str) -> tuple[Any, int, int] | None:
    """Return the JSON from the first opening bracket to the last closing bracket, and its place. A short text may also
    have JSON with slips, or JSON in prose."""
    start, end = text.find(brackets[0]), text.rfind(brackets[1]) + 1
    if not 0 <= start < end:
        return None
    try:
        return read_json(text[start:end]), start, end
    except (ValueError, RecursionError):
        if len(text) > _LONG:
            return None
    kind = list if brackets == "[]" else dict
    with contextlib.suppress(DoubtError, ValueError, RecursionError):
        return next((found for found in candidates(text) if isinstance(found[0], kind)), None)
    return None
