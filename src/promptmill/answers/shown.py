"""The words at the end of a system prompt that tell the model which form its answer must have.

If the server shows the model the schema, these words are only definitions. If a server or an engine only constrains the
answer, the model also gets the names: labels, fields and their values, unless the prompt has all these names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from promptmill.answers.form import form_of
from promptmill.answers.response_format import schema_of
from promptmill.core.errors import PromptmillError
from promptmill.core.form import Choice, Form, Kind, Question, Scale, Value, YesNo
from promptmill.core.request import Sampling, Shown, nested
from promptmill.core.values import JsonObject, json_text, text_of

LONGEST = 16_000
"""The most characters of names that are shown, about 4,000 tokens: a small model has room for little more."""
_DEEPEST = 4
_TEXTS: Mapping[str, str] = MappingProxyType({"date": "date (YYYY-MM-DD)", "date-time": "date and time"})
_TYPES: Mapping[str, str] = MappingProxyType(
    {"number": "number", "integer": "whole number", "boolean": "true or false", "null": "null"}
)


def shown_of(sampling: Sampling, *, shows: bool) -> Shown:
    """Return the words about the form of answers to requests with these parameters.

    `shows`: whether the server shows the model the schema.

    >>> shown_of(Sampling(choices=["billing", "tech"]), shows=False).words
    'The labels:\\n- billing\\n- tech'
    """
    labels = dict.fromkeys(sampling.choices or (), "") | (sampling.definitions or {})
    defined = _labels(labels) if any(labels.values()) else ""
    if not shows:
        shown = _named(sampling, labels, defined)
        if len(shown.words) <= LONGEST:
            return shown
    return Shown(defined)


def _named(sampling: Sampling, labels: Mapping[str, str], defined: str) -> Shown:
    form = form_of(sampling)
    if sampling.choices is not None or (defined and form is not None and len(form.questions) == 1):
        return Shown(defined) if defined else Shown(_labels(labels), tuple(labels))
    try:
        schema = schema_of(sampling.response_format) or {}
    except PromptmillError:  # the answer's check reports it
        return Shown(defined)
    if form is None or any(isinstance(one, Mapping) and "$ref" in one for one in nested(schema)):
        has_rules = not schema.keys() <= {"type"}
        return Shown(_joined(f"The schema of the answer:\n{json_text(schema)}" if has_rules else "", defined))
    words = _joined(
        "The fields of the answer:\n" + "\n".join(_line(one, schema["properties"][one.name]) for one in form.questions),
        defined,
    )
    is_more = defined or any(one.words for one in form.questions)
    return Shown(words, () if is_more else tuple(dict.fromkeys(_names(form))))


def _joined(*words: str) -> str:
    return "\n\n".join(filter(None, words))


def _labels(labels: Mapping[str, str]) -> str:
    lines = (f"- {label}: {definition}" if definition else f"- {label}" for label, definition in labels.items())
    return "The labels:\n" + "\n".join(lines)


def _line(question: Question, field: Any) -> str:
    words = f" ({' '.join(question.words.split())})" if question.words else ""
    return f"- {question.name}{words}: {_values(question.kind)}{'; or null' if _takes_null(field) else ''}"


def _values(kind: Kind) -> str:
    match kind:
        case Choice(options, many=is_many):
            return f"{'any' if is_many else 'one'} of {', '.join(options)}"
        case YesNo():
            return "true or false"
        case Scale((int(), *_) as levels):
            return f"{levels[0]} to {levels[-1]}"
        case Scale(levels):
            return f"one of {', '.join(map(str, levels))}, from the lowest to the highest"
        case Value(schema):
            return _type(schema, _DEEPEST)


def _takes_null(field: Any) -> bool:
    match field:
        case {"enum": [*values]}:
            return None in values
        case {"type": [*types]}:
            return "null" in types
    return False


def _type(schema: Any, depth: int) -> str:
    """Return a JSON Schema in words. Objects and lists that are nested deeper than `depth` have no fields."""
    match schema:
        case {"enum": [*values]}:
            return f"one of {', '.join(json_text(one) if one is None else text_of(one) for one in values)}"
        case {"type": "array", "items": items} if depth:
            return f"list of {_type(items, depth - 1)}"
        case {"type": "object", "properties": {**fields}} if depth:
            inner = (f"{name} ({_type(field, depth - 1)})" for name, field in fields.items())
            return f"object with {', '.join(inner)}"
        case {"type": "string"}:
            return _TEXTS.get(str(schema.get("format")), "text")
        case {"type": str(name)} if name in _TYPES:
            return _TYPES[name]
        case {"type": [name, "null"] | ["null", name]} if depth:
            return _type({**schema, "type": name}, depth - 1)
    return "any JSON"


def _names(form: Form) -> Iterator[str]:
    """Yield the names of the fields and values of a form."""
    for question in form.questions:
        yield question.name
        match question.kind:
            case Choice(options):
                yield from options
            case Scale(levels):
                yield from map(str, levels if isinstance(levels[0], str) else {levels[0], levels[-1]})
            case Value(schema):
                yield from _names_in(schema)


def _names_in(schema: JsonObject) -> Iterator[str]:
    for one in nested(schema):
        match one:
            case {"properties": {**fields}}:
                yield from map(str, fields)
            case {"enum": [*values]}:
                yield from (value for value in values if isinstance(value, str))
