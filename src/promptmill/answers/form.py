"""Makes the form of answers from the parameters of their requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from promptmill.answers.response_format import schema_of
from promptmill.core.errors import PromptmillError
from promptmill.core.form import Choice, Form, Kind, Question, Scale, Value, YesNo
from promptmill.core.request import Sampling
from promptmill.core.values import JsonObject

IN_ORDER = "from the lowest to the highest"
"""In a JSON Schema, the `$comment` of an `enum` whose values are the levels of a scale."""
_MOST_LEVELS = 10  # the most levels of a scale of numbers; no model that decides takes as many in one question
_OF_VALUES = frozenset({"enum", "const", "type", "description", "title", "default", "examples", "$comment"})
_OF_NUMBERS = _OF_VALUES | {"minimum", "maximum"}


def form_of(sampling: Sampling) -> Form | None:
    """Return the form of the answers to requests with these parameters; None for texts, and for JSON without fields."""
    defined = sampling.definitions or {}
    if sampling.choices is not None:
        return Form((Question("", "", Choice(tuple(sampling.choices), _definitions(sampling.choices, defined))),))
    try:
        schema = schema_of(sampling.response_format)
    except PromptmillError:  # the answer's check reports it
        return None
    return None if schema is None else form_of_schema(schema, defined)


def form_of_schema(schema: JsonObject, defined: Mapping[str, str]) -> Form | None:
    """Return the form of the objects that a JSON Schema describes; None if it does not name the objects' fields.

    `defined`: the definitions of values of the schema's `enum`s.
    """
    fields = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(fields, Mapping) or not fields:
        return None
    required = schema.get("required")
    optional = fields.keys() - _texts(required if isinstance(required, list) else ())
    questions = (_question(str(name), field, defined, is_optional=name in optional) for name, field in fields.items())
    return _with_open(Form(tuple(questions)), fields)


def _with_open(form: Form, fields: JsonObject) -> Form:
    """Return a form whose questions have different names: fields with colliding names become open.

    The field `a: b` collides with the label `b` of the field `a`. (The name `""` means that a form has no fields.)
    """
    named = Counter(asked.name for asked in form.asked)
    if named[""] == 0 and len(named) == named.total():
        return form
    alike = {"", *(name for name, times in named.items() if times > 1)}
    pairs = zip(form.fields, fields.values(), strict=True)
    return Form(
        tuple(
            one if alike.isdisjoint(asked.name for asked in every) else one._replace(kind=Value(field))
            for (one, every), field in pairs
        )
    )


def _question(name: str, field: Any, defined: Mapping[str, str], *, is_optional: bool) -> Question:
    if not isinstance(field, Mapping):
        return Question(name, "", Value({}))
    words = field.get("description")
    return Question(name, words if isinstance(words, str) else "", _kind(field, defined, is_optional=is_optional))


def _kind(field: JsonObject, defined: Mapping[str, str], *, is_optional: bool) -> Kind:
    named = field.get("type")
    types = _texts(named if isinstance(named, list) else [named])
    is_optional = is_optional or "null" in types
    match field:
        case {"enum": [*values]} if field.keys() <= _OF_VALUES:
            texts = tuple(one for one in values if isinstance(one, str))
            optional = is_optional or None in values
            if len(texts) + (None in values) == len(values) > 1 and len(set(texts)) == len(texts) > 1:
                said = _definitions(texts, defined)
                if field.get("$comment") == IN_ORDER:
                    return Scale(texts, said, optional)
                return Choice(texts, said, is_optional=optional)
        case {"type": "array", "items": {"enum": [_, *_] as values}} if all(isinstance(one, str) for one in values):
            least, most = _count(field, "minItems", 0), _count(field, "maxItems", len(values))
            most_of_few = most if most < len(values) else None
            return Choice(tuple(values), _definitions(values, defined), many=True, least=least, most=most_of_few)
        case {"minimum": int(least), "maximum": int(most)} if field.keys() <= _OF_NUMBERS:
            if types - {"null"} == {"integer"} and 0 < most - least < _MOST_LEVELS:
                return Scale(tuple(range(least, most + 1)), is_optional=is_optional)
        case _ if types - {"null"} == {"boolean"} and field.keys() <= _OF_VALUES - {"enum", "const"}:
            return YesNo(is_optional)
    return Value(field)


def _count(field: JsonObject, name: str, without: int) -> int:
    value = field.get(name)
    return value if isinstance(value, int) and value >= 0 else without


def _texts(values: Iterable[Any]) -> set[str]:
    return {one for one in values if isinstance(one, str)}


def _definitions(options: Iterable[str], defined: Mapping[str, str]) -> tuple[str, ...]:
    found = tuple(defined.get(one, "") for one in options)
    return found if any(found) else ()
