"""The questions of the option `ask`: each has a name (that of its column), the form of its answer, and a prompt.

Tone:positive|negative=Is it praise? {{text}} ─▶ name, field (a JSON Schema), prompt
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.values import JsonDict, read_json
from promptmill.core.wording import counted, cut, shape
from promptmill.jobs.inputs.short_forms import labels_of, schema_of_fields
from promptmill.jobs.rows.template import places_in
from promptmill.jobs.store.description import Stored

ASK = Named("ask")
SIGN = "\u2063"
"""An invisible sign that a user's prompt may not contain. It marks positions in the prompt of a row."""
EXAMPLE = "'Tone:positive|negative=Is it praise or a complaint? {{text}}'"
_TEXT = ({"type": "string"}, {"type": ["string", "null"]})
_SHOWN = 40


class AskedQuestion(Stored):
    """A question about each row."""

    name: str
    prompt: str
    """The words of the question, with the columns and the answers that it uses in double braces."""
    field: Mapping[str, Any]
    """The JSON Schema of the answer."""
    definitions: Mapping[str, str] = {}
    """The definitions of the possible answers, each under its answer."""

    @property
    def places(self) -> frozenset[str]:
        """The texts in double braces: columns, and names of questions."""
        return frozenset(places_in(self.prompt))

    @property
    def is_text(self) -> bool:
        """Whether the answer may be any text."""
        return self.field in _TEXT


def questions_of(value: object) -> tuple[AskedQuestion, ...]:
    """Return the questions in the value of the option `ask`. Raises `PromptmillError` (`invalid_input`).

    `value`: texts `NAME=PROMPT`, or prompts by name. The form of the answer may follow a name, as in `fields`:
    `Tone:positive|negative`. A prompt may also be a pair: the prompt, and its labels with or without definitions.

    >>> (tone,) = questions_of({"Tone": ("Is it praise? {{text}}", ["yes", "no"])})
    >>> tone.field
    {'enum': ['yes', 'no', None]}
    """
    if isinstance(value, Mapping):
        pairs = [*value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        pairs = [_divided(text) for text in value]
    else:
        raise input_error(
            ASK, f" is {shape(value)}; write prompts by name, such as {{'Topic': 'Which topic? {{{{text}}}}'}}."
        )
    questions = tuple(_question(name, asked) for name, asked in pairs)
    names = [question.name for question in questions]
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise input_error(ASK, f" has two questions with the name {twice[0][:_SHOWN]}; give each its own.")
    return questions


def _divided(text: str) -> tuple[str, str]:
    """Divide `NAME=PROMPT` at the first `=`, so that a prompt may contain the sign, too."""
    name, sign, prompt = text.partition("=")
    if not sign or "{{" in name:
        raise input_error(ASK, f": {cut(text, _SHOWN)!r} has no name; write NAME=PROMPT, such as {EXAMPLE}.")
    return name, prompt


def _question(name: object, asked: object) -> AskedQuestion:
    prompt, labels = asked if isinstance(asked, tuple | list) and len(asked) == 2 else (asked, None)
    if not isinstance(name, str) or not isinstance(prompt, str):
        wrong = shape(prompt) if isinstance(name, str) else f"named by {shape(name)}"
        raise input_error(ASK, f": a question is {wrong}; write its prompt, or (prompt, labels).")
    if not prompt.strip() or SIGN in prompt:
        wrong = "has the invisible sign U+2063 in its prompt; remove it" if prompt.strip() else "has no prompt"
        raise input_error(ASK, f": {cut(name, _SHOWN)} {wrong}; write NAME=PROMPT, such as {EXAMPLE}.")
    name, field = _field(name)
    if labels is None:
        return AskedQuestion(name=name, prompt=prompt, field=field)
    if not isinstance(labels, Mapping | list | tuple) or field not in _TEXT:
        raise input_error(
            ASK, f": {name} has labels that are {shape(labels)}; write a list, or an object that defines them."
        )
    known = labels_of(labels)
    values = [*known.texts, *([] if field == _TEXT[0] else [None])]
    return AskedQuestion(name=name, prompt=prompt, field={"enum": values}, definitions=known.definitions)


def _field(text: str) -> tuple[str, JsonDict]:
    """Return the name and the schema of a field that is written in the short form."""
    try:
        fields: JsonDict = schema_of_fields(text)["properties"]
    except PromptmillError as error:
        raise input_error(ASK, ": ", *error.parts, f" A question is written {EXAMPLE}.") from None
    if len(fields) > 1:
        many = counted(len(fields), "column")
        raise input_error(ASK, f": {cut(text, _SHOWN)!r} names {many}; write a question for each.")
    ((name, field),) = fields.items()
    return name, field


def schema_of(questions: Iterable[AskedQuestion]) -> JsonDict:
    """Return the JSON Schema of the answers to questions. The words of a question without columns describe its field.

    >>> schema_of(questions_of(["Good:boolean!=Is it good?"]))["properties"]
    {'Good': {'type': 'boolean', 'description': 'Is it good?'}}
    """
    fields = {one.name: one.field if one.places else {**one.field, "description": one.prompt} for one in questions}
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def definitions_of(questions: Iterable[AskedQuestion]) -> dict[str, str]:
    """Return the definitions of the labels in one request. Raises `PromptmillError` (`invalid_input`) for a label that
    has two definitions."""
    known = all_definitions(questions)
    if twice := next((label for label, definitions in known.items() if definitions[1:]), None):
        raise input_error(
            ASK,
            f" defines {cut(twice, _SHOWN)} in two ways in one request; use two labels, or a column in each prompt.",
        )
    return {label: definition for label, (definition,) in known.items()}


def joined_definitions(questions: Iterable[AskedQuestion]) -> dict[str, str]:
    """Return one text for each label, which contains all its definitions."""
    return {label: "; ".join(each) for label, each in all_definitions(questions).items()}


def all_definitions(questions: Iterable[AskedQuestion]) -> dict[str, list[str]]:
    """Return the definitions of each label; several requests may define a label differently."""
    known: dict[str, list[str]] = {}
    for question in questions:
        for label, definition in question.definitions.items():
            if definition not in known.setdefault(label, []):
                known[label].append(definition)
    return known


def values_of(text: str) -> JsonDict:
    """Return the fields of an answer; `{}` without any."""
    values = read_json(text) if text else {}
    return values if isinstance(values, dict) else {}
