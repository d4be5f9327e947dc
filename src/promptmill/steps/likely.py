"""Estimates the likely and the highest length of an answer before it exists, from the requested form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from promptmill.answers.choices import choices_of
from promptmill.answers.response_format import schema_of
from promptmill.config.model_config import TOKEN_LIMITS, whole_number
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Request, Sampling
from promptmill.core.values import JsonObject

ASSUMED = "an assumption"
"""The source of a length that is only assumed, because the request asks for a text."""
_CHOICE, _FIELDS = "as the longest choice has", "by the names and types of the fields"
_TEXT = 200  # tokens: a paragraph of about 150 English words
_BYTES_PER_TOKEN = 3  # bytes of JSON per token: quotes and braces are separate tokens
_BYTES_PER_TOKEN_OF_CHOICE = 4  # `{"answer":"positive"}` has 5 or 6 tokens; a schema has longer names, too
_BYTES_OF = {"boolean": 5, "null": 4, "integer": 4, "number": 7}
_BYTES_OF_TEXT = 40  # a name, a title or a short phrase
_ITEMS = 3
_DEEPEST = 50
_DEEPEST_CLOSED = 8  # max levels of a form that bounds an answer; a form that refers to itself has more
_AROUND = 16  # tokens of a code fence and of the turn's marks, which some endpoints count
_INDENTED = 8  # bytes around a field or an item: the end of a line, spaces, a colon, a comma
_LONGEST_FLOAT = 24  # -2.2250738585072014e-308
_FIXED, _NUMBERS = frozenset({"boolean", "null"}), frozenset({"integer", "number", "null"})


class Likely(NamedTuple):
    """The likely number of tokens of an answer, and the source of this number, in words."""

    tokens: int
    source: str


class LikelyLengths:
    """Returns the likely length of the answers to requests. A job's requests usually share their `sampling`."""

    def __init__(self) -> None:
        self._last: tuple[Sampling, Likely] | None = None

    def of(self, request: Request) -> Likely:
        """Return the likely length of an answer to `request`, but at most the smallest limit of the request."""
        if self._last is None or self._last[0] is not request.sampling:
            self._last = request.sampling, _by_form(request.sampling)
        likely = self._last[1]
        if request.texts:
            return likely._replace(tokens=0)
        limits = [request.sampling.max_tokens, *map(request.extra.get, TOKEN_LIMITS)]
        known = [limit for limit in map(whole_number, limits) if limit is not None]
        return likely._replace(tokens=min(likely.tokens, *known)) if known else likely


def _by_form(sampling: Sampling) -> Likely:
    if (schema := _schema(sampling)) is None:
        return Likely(_TEXT, ASSUMED)
    source, each = (_FIELDS, _BYTES_PER_TOKEN) if sampling.choices is None else (_CHOICE, _BYTES_PER_TOKEN_OF_CHOICE)
    return Likely(-(-_Sizes(schema).of(schema) // each), source)


def _schema(sampling: Sampling) -> JsonObject | None:
    """Return the schema of the JSON that is requested; None for texts, and for JSON without a schema."""
    form = sampling.response_format
    if sampling.choices is not None:
        form = choices_of(tuple(sampling.choices)).response_format
    try:
        return schema_of(form) if form is not None and form.get("type") == "json_schema" else None
    except PromptmillError:  # the check of the answer reports it
        return None


def form_tokens(sampling: Sampling) -> int:
    """Estimate the tokens of the requested answer's schema, which endpoints count as prompt tokens."""
    schema = _schema(sampling)
    return 0 if schema is None else -(-_bytes(schema) // _BYTES_PER_TOKEN_OF_CHOICE)


def most_tokens_of(sampling: Sampling) -> int | None:
    """Return the maximum number of tokens of an answer in this form (one per byte). None if the form has no bound."""
    if (schema := _schema(sampling)) is None or (size := _most_bytes(schema, _definitions(schema), {})) is None:
        return None
    return size + _AROUND


def _most_bytes(
    schema: Any, definitions: JsonObject, known: dict[tuple[str, int], int | None], depth: int = 0
) -> int | None:
    """Return the most bytes of a value with this schema, as indented JSON without escapes; None without a bound.

    `known`: the sizes of definitions, by name and depth, so that definitions that name each other take little time.
    """
    if not isinstance(schema, Mapping) or depth > _DEEPEST_CLOSED:
        return None

    def of(part: Any) -> int | None:
        return _most_bytes(part, definitions, known, depth + 1)

    options = [schema["const"]] if "const" in schema else schema.get("enum")
    kinds = schema.get("type")
    kinds = {*kinds} if isinstance(kinds, list) else {kinds}
    match schema:
        case {"$ref": str(name)} if name in definitions:
            if (name, depth) not in known:
                known[name, depth] = of(definitions[name])
            return known[name, depth]
        case _ if isinstance(options, list) and options:
            return max(map(_bytes, options))
        case {"anyOf": [_, *_] as parts} | {"oneOf": [_, *_] as parts}:
            return _joined(map(of, parts), max)
        case {"properties": Mapping() as fields} if not schema.get("additionalProperties"):
            around = sum(_bytes(name) + _INDENTED + 2 * depth for name in fields)
            return _joined(map(of, fields.values()), lambda sizes: _INDENTED + around + sum(sizes))
        case {"type": "array", "items": items, "maxItems": int(most)}:
            return None if (size := of(items)) is None else _INDENTED + most * (size + _INDENTED + 2 * depth)
        case {"minimum": int() | float() as least, "maximum": int() | float() as most} if kinds <= _NUMBERS:
            return max(_LONGEST_FLOAT if "number" in kinds else 4, _bytes(least), _bytes(most))
    return max(_BYTES_OF[str(kind)] for kind in kinds) if kinds <= _FIXED else None


def _joined(sizes: Iterable[int | None], join: Callable[[list[int]], int]) -> int | None:
    """Return the result of `join` for the sizes; None if one of them is unbounded."""
    known = [*sizes]
    return None if None in known else join([size for size in known if size is not None])


def _definitions(schema: JsonObject) -> dict[str, Any]:
    return {
        f"#/{place}/{name}": value
        for place in ("$defs", "definitions")
        if isinstance(named := schema.get(place), Mapping)
        for name, value in named.items()
    }


class _Sizes:
    """The likely sizes, in bytes, of JSON values under the definitions of one schema."""

    def __init__(self, schema: JsonObject) -> None:
        self._definitions = _definitions(schema)
        self._known: dict[str, int] = {}

    def of(self, schema: Any, depth: int = 0) -> int:
        """Return the likely bytes of a value with this schema."""
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return _BYTES_OF_TEXT
        if (name := schema.get("$ref")) in self._definitions:
            return self._named(name, depth)
        options = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(options, list) and options:
            return max(map(_bytes, options))
        for parts in map(schema.get, ("anyOf", "oneOf", "allOf")):
            if isinstance(parts, list) and parts:
                return max(self.of(part, depth + 1) for part in parts)
        return self._of_type(schema, depth)

    def _named(self, name: str, depth: int) -> int:
        if name not in self._known:
            self._known[name] = 0  # the size where the definition refers to itself
            self._known[name] = self.of(self._definitions[name], depth + 1)
        return self._known[name]

    def _of_type(self, schema: JsonObject, depth: int) -> int:
        kinds = schema.get("type")
        kind = next((one for one in kinds if one != "null"), "null") if isinstance(kinds, list) else kinds
        if isinstance(fields := schema.get("properties"), Mapping):
            return 2 + sum(_bytes(name) + 4 + self.of(field, depth + 1) for name, field in fields.items())
        if kind == "array":
            least, most = (whole_number(schema.get(name)) for name in ("minItems", "maxItems"))
            items = max(least or 0, min(most or _ITEMS, _ITEMS))
            return 2 + items * (2 + self.of(schema.get("items"), depth + 1))
        longest = whole_number(schema.get("maxLength")) or _BYTES_OF_TEXT
        return _BYTES_OF.get(str(kind), min(_BYTES_OF_TEXT, longest + 2))


def _bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
