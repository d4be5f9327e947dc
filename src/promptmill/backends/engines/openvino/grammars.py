"""The grammars of OpenVINO's constrained answers: of JSON schemas, and of choices."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from promptmill.answers.schema import Choices
from promptmill.backends.engines.openvino.strict_json import NotWritableError, StrictJson, literal
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import PromptmillError, input_error

# OpenVINO compiles a grammar inside a step; all rows wait for it, and it cannot be interrupted. Measured on one core
# with a vocabulary of 49,152 tokens: a length or counted repeat that unrolls to 100 places takes 1.1 s, to 500 or more
# 3.5 s; 800 optional properties take 6 s, 2,500 take 77 s; 240 KB of required properties take 0.8 s. In the grammars of
# `StrictJson`, any length takes 0.3 to 0.4 s, and 300 optional properties take 6 s.
_MOST_WORK = 100  # hundredths of a second of one core
_CHARACTERS_PER_WORK = 3000
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_VALUES = frozenset({"enum", "const", "default", "examples"})


class _Costs(NamedTuple):
    """The work of compiling a schema in one of two forms."""

    most_of_a_length: int
    squares_per_work: int
    """The number of optional properties whose square takes one unit of work."""


_STRICT = _Costs(most_of_a_length=40, squares_per_work=150)
_OWN = _Costs(most_of_a_length=350, squares_per_work=1000)


class Grammar(NamedTuple):
    """A constraint in one of OpenVINO's forms."""

    form: str
    """The keyword argument of `StructuredOutputConfig`."""
    text: str


def grammar_of_schema(wanted: Mapping[str, Any], warnings: list[str]) -> Grammar:
    """Return the grammar of a JSON schema, without lengths and patterns that take too long to compile.

    A warning names these; complete answers are validated against all of `wanted`. Raises `PromptmillError`
    (`invalid_input`) for a schema that still takes more than about a second.
    """
    grammar, is_whole = _of_schema(json.dumps(wanted))
    if not is_whole:
        warnings.append(
            "The openvino backend generates answers without the longest `minLength`, `maxLength` and `pattern` of "
            "this schema, whose grammar takes too long to compile; the answers are checked against them."
        )
    return grammar


def grammar_of_choices(choices: Choices) -> Grammar:
    """Return the grammar of the rest of an answer whose beginning is `choices.OPENING`."""
    return Grammar("grammar", f"root ::= {' | '.join(map(literal, choices.endings))}")


@functools.lru_cache(maxsize=MOST_KEPT)
def _of_schema(text: str) -> tuple[Grammar, bool]:
    """Return the grammar of the schema `text`, and whether it is the grammar of the whole schema."""
    try:
        schema, is_whole = _within_reach(text, _STRICT)
        return Grammar("grammar", StrictJson(schema).text), is_whole
    except (NotWritableError, PromptmillError):
        schema, is_whole = _within_reach(text, _OWN)
        return Grammar("json_schema", text if is_whole else json.dumps(schema)), is_whole


def _within_reach(text: str, costs: _Costs) -> tuple[Any, bool]:
    """Return the part of the schema `text` that compiles in time, and whether it is the whole schema."""
    schema = json.loads(text)
    work = len(text) / _CHARACTERS_PER_WORK
    limits: dict[tuple[Any, ...], list[dict[str, Any]]] = {}  # equal limits are compiled once
    for node in _schemas(schema):
        properties, required = node.get("properties"), node.get("required")
        if isinstance(properties, dict):
            names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else ()
            optional = len(properties.keys() - names)
            work += optional**2 / costs.squares_per_work
            if work > _MOST_WORK:
                raise _too_much(f"{optional:,} optional properties")
        if isinstance(named := node.get("patternProperties"), dict):
            work += sum(map(_repeats, named))
        for keywords in (("minLength", "maxLength"), ("pattern",)):
            if any(word in node for word in keywords):
                limits.setdefault(tuple(str(node.get(word)) for word in keywords), []).append(node)
    if work > _MOST_WORK:
        raise _too_much(f"{len(text):,} characters, or long patterns of property names")
    is_whole = True
    for limit, nodes in sorted(limits.items(), key=lambda entry: _work_of(entry[0], costs)):
        work += _work_of(limit, costs)
        if work > _MOST_WORK:
            is_whole = False
            for node in nodes:
                for word in ("minLength", "maxLength") if len(limit) == 2 else ("pattern",):
                    node.pop(word, None)
    return schema, is_whole


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    left = [schema]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            yield node
            for key, value in node.items():
                if key in _MAPS_OF_SCHEMAS and isinstance(value, dict):
                    left += value.values()
                elif key not in _VALUES:
                    left.append(value)


def _work_of(limit: tuple[str, ...], costs: _Costs) -> int:
    if len(limit) == 1:
        return _repeats(limit[0])
    return min(costs.most_of_a_length, max((int(number) for number in limit if number.isdecimal()), default=0))


def _repeats(pattern: str) -> int:
    """Return the number of places to which a pattern's counted repeats unroll; nested repeats multiply."""
    groups, last, in_class = [0], 0, False
    for piece in re.findall(r"\\.|\{\d+(?:,\d*)?\}|.", pattern, re.DOTALL):
        if in_class:
            in_class, last = piece != "]", 0
        elif piece == "[":
            in_class = True
        elif piece == "(":
            groups.append(0)
        elif piece == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif len(piece) > 2 and piece[0] == "{":
            count = max(int(number[:10]) for number in piece[1:-1].split(",") if number)
            unrolled = min(count * max(1, last), 10**9)
            groups[-1] += unrolled - last
            last = unrolled
        else:
            last = 0
    return sum(groups)


def _too_much(what: str) -> PromptmillError:
    return input_error(
        f"This JSON schema takes too long to prepare on the openvino backend: it has {what}.",
        hint="Name properties in `required`, or split the schema.",
    )
