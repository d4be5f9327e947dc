"""How long an answer will probably be, from the form that its request asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from promptmill.answers.response_format import asking_for
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.steps.likely import ASSUMED, LikelyLengths, form_tokens, most_tokens_of

TREE = {"type": "object", "properties": {"name": {"type": "string"}, "below": {"$ref": "#/$defs/tree"}}}
NAMES = {"type": "array", "items": {"type": "string"}, "maxItems": 2}


def likely(extra=None, path="", **sampling):
    asked = Request(0, conversation_from_prompt("a", "a prompt"), Sampling(**sampling), extra or {}, path=path)
    return LikelyLengths().of(asked)


def tokens_of(**fields):
    return likely(response_format=asking_for({"type": "object", "properties": fields})).tokens


def test_the_longest_choice_in_its_json_counts():
    short, long = likely(choices=("yes", "no")), likely(choices=("no", "very probably"))
    assert short == (5, "as the longest choice has")
    assert long.tokens == 8
    assert likely(choices=("positive", "negative")).tokens == 6


def test_each_field_of_a_schema_counts_by_its_name_and_type():
    assert tokens_of(good={"type": "boolean"}) < tokens_of(good={"type": "string"})
    assert tokens_of(n={"type": "number"}) < tokens_of(a_longer_name={"type": "number"})
    assert (
        tokens_of(names=NAMES) < tokens_of(names=NAMES | {"maxItems": 3}) == tokens_of(names={**NAMES, "maxItems": 9})
    )
    assert tokens_of(kind={"enum": ["a", "bb"]}) == tokens_of(kind={"const": "bb"})
    assert tokens_of(name={"anyOf": [{"type": "null"}, {"type": "string"}]}) == tokens_of(
        name={"type": ["string", "null"]}
    )
    assert likely(response_format=asking_for({"type": "object"})).source == "by the names and types of the fields"


@pytest.mark.parametrize(
    ("schema", "size"),
    [
        *(({"type": kind}, size) for kind, size in (("boolean", 5), ("null", 4), ("integer", 4), ("number", 7))),
        *(({"type": "string", "maxLength": longest}, size) for longest, size in ((10, 12), (100, 40), (None, 40))),
        *(({}, 40), (True, 40), ({"type": ["null", "number"]}, 7), ({"type": ["string", "null"]}, 40)),
        *(({"type": ["null"]}, 4), ({"const": "\u00e9"}, 4), ({"enum": ["a", "bb"]}, 4), ({"const": None}, 4)),
        *(({"type": "integer", name: wrong}, 4) for name in ("enum", "anyOf") for wrong in ([], "abc", None)),
        *(({name: [{"type": "null"}, {"type": "number"}]}, 7) for name in ("anyOf", "oneOf", "allOf")),
        ({"properties": {"a": {"type": "boolean"}, "bc": {"type": "null"}}}, 2 + (3 + 4 + 5) + (4 + 4 + 4)),
        *(
            ({"type": "array", "items": {"type": "boolean"}, **bounds}, 2 + items * (2 + 5))
            for bounds, items in (
                *(({}, 3), ({"minItems": 5}, 5), ({"minItems": 2}, 3), ({"maxItems": 1}, 1), ({"maxItems": 9}, 3)),
                ({"minItems": 4, "maxItems": 6}, 4),
            )
        ),
    ],
)
def test_a_value_has_the_bytes_of_its_kind(schema, size):
    """With three fields of this schema, an object has 2 bytes, 7 for each name, and a token for three bytes."""
    assert tokens_of(a=schema, b=schema, c=schema) == 8 + size


def test_a_definition_that_contains_itself_counts_once():
    whole = likely(response_format=asking_for({"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}))
    assert whole.tokens == (2 + (6 + 4 + 40) + (7 + 4)) / 3


def _nested(kind: str, levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        of: dict[str, dict[str, Any]] = {
            "array": {"items": schema, "maxItems": 1},
            "object": {"properties": {"a": schema}},
        }
        schema = {"type": kind, **of[kind]} if kind in of else {kind: [schema]}
    return schema


@pytest.mark.parametrize(("kind", "size"), [("array", 4), ("object", 9), ("anyOf", 0)])
def test_a_schema_is_read_fifty_levels_deep(kind, size):
    for levels, depth, leaf in ((40, 40, 5), (50, 50, 5), (51, 51, 40), (60, 51, 40)):
        whole = likely(response_format=asking_for(_nested(kind, levels)))
        assert whole.tokens == -(-(depth * size + leaf) // 3)


def test_definitions_are_read_fifty_levels_deep():
    for levels, leaf in ((40, 5), (60, 40)):
        steps = {f"n{level}": {"$ref": f"#/$defs/n{level + 1}"} for level in range(levels)}
        whole = {"$ref": "#/$defs/n0", "$defs": {**steps, f"n{levels}": {"type": "boolean"}}}
        assert likely(response_format=asking_for(whole)).tokens == -(-leaf // 3)


def test_each_form_of_a_job_has_its_own_length():
    lengths, prompt = LikelyLengths(), conversation_from_prompt("a", "a prompt")
    forms = [Sampling(choices=("yes", "no")), Sampling(), Sampling(choices=("no", "very probably"))]
    assert [lengths.of(Request(0, prompt, form)).tokens for form in forms for _ in range(2)] == [5, 5, 200, 200, 8, 8]


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({}, 200),
        ({"max_tokens": 50}, 50),
        ({"max_tokens": 5000}, 200),
        ({"extra": {"max_completion_tokens": 30}}, 30),
        ({"response_format": {"type": "json_object"}}, 200),
        ({"response_format": {"type": "json_schema"}}, 200),
        ({"path": "/embeddings"}, 0),
    ],
)
def test_a_text_has_an_assumed_length_within_its_limits(given, tokens):
    assert likely(**given) == (tokens, ASSUMED)


CLOSED = {"mood": {"enum": ["good", "bad", None]}, "urgent": {"type": ["boolean", "null"]}}


@pytest.mark.parametrize(
    ("fields", "is_bounded"),
    [
        (CLOSED, True),
        (CLOSED | {"stars": {"type": "integer", "minimum": 1, "maximum": 5}}, True),
        (CLOSED | {"share": {"type": "number", "minimum": 0, "maximum": 1}}, True),
        (CLOSED | {"labels": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}}, True),
        (CLOSED | {"labels": {"type": "array", "items": {"enum": ["a", "b"]}}}, False),
        (CLOSED | {"count": {"type": "integer", "minimum": 0}}, False),
        (CLOSED | {"name": {"type": "string", "maxLength": 9}}, False),
        (CLOSED | {"any": {"anyOf": [{"type": "null"}, {"type": "string"}]}}, False),
        ({"one": {"$ref": "#/$defs/one"}}, False),
    ],
)
def test_a_closed_form_bounds_an_answer_and_an_open_one_does_not(fields, is_bounded):
    own = {"$defs": {"one": {"type": "object", "properties": {"next": {"$ref": "#/$defs/one"}}}}}
    schema = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False} | own
    longest = most_tokens_of(Sampling(response_format=asking_for(schema)))
    assert (longest is not None) == is_bounded


def test_the_bound_of_a_form_has_room_for_indented_json():
    values = {"mood": "good", "urgent": False, "labels": ["a", "b"]}
    schema = {"mood": {"enum": ["good", "bad"]}, "urgent": {"type": "boolean"}}
    schema["labels"] = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}
    wanted = asking_for({"type": "object", "properties": schema})
    longest = most_tokens_of(Sampling(response_format=wanted))
    assert longest is not None
    assert len(json.dumps(values, indent=2)) <= longest < 3 * len(json.dumps(values))
    assert most_tokens_of(Sampling(choices=("yes", "no"))) == most_tokens_of(Sampling(choices=("no", "yes")))
    assert most_tokens_of(Sampling()) is None


FLAG = {"type": "boolean"}
NUMBER = {"minimum": 1, "maximum": 5}


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


@pytest.mark.parametrize(
    ("schema", "size"),
    [
        (FLAG, 5),
        *(({"type": kinds}, size) for kinds, size in ((["null", "boolean"], 5), ("null", 4), ("string", None))),
        *(({"enum": options}, 6) for options in (["a", "good"], ["good", "a"])),
        *(({"const": "good"}, 6), ({"const": None}, 4), ({"enum": "abc"}, None), ({"enum": []}, None)),
        *(
            ({"anyOf": [FLAG, {"const": "a"}]}, 5),
            ({"oneOf": [{"const": "a"}, FLAG]}, 5),
            ({"anyOf": [FLAG, {}]}, None),
        ),
        *((NUMBER | {"type": kind}, size) for kind, size in (("integer", 4), ("number", 24), (["integer", "null"], 4))),
        *((NUMBER | {"type": kind}, size) for kind, size in ((["integer", "number", "null"], 24), ("string", None))),
        *(({"type": "integer", "minimum": least, "maximum": 12}, size) for least, size in ((-123_456, 7), (0, 4))),
        ({"type": "integer", "minimum": 0, "maximum": 12_345_678}, 8),
        (_object(a=FLAG), 8 + (3 + 8 + 5)),
        (_object(a=FLAG, b=_object(c=FLAG)), 8 + (3 + 8 + 5) + (3 + 8) + (8 + (3 + 8 + 2 + 5))),
        (_object(a=FLAG) | {"additionalProperties": {}}, 8 + (3 + 8 + 5)),
        (_object(a=FLAG) | {"additionalProperties": True}, None),
        ({"type": "array", "items": FLAG, "maxItems": 3}, 8 + 3 * (5 + 8)),
        (_object(a={"type": "array", "items": FLAG, "maxItems": 3}), 8 + (3 + 8) + (8 + 3 * (5 + 8 + 2))),
        ({"type": "array", "items": True, "maxItems": 3}, None),
        ({"$ref": "#/$defs/a", "$defs": {"a": FLAG}}, 5),
    ],
)
def test_a_bounded_value_has_at_most_the_bytes_of_its_longest_form(schema, size):
    """An indented line has 8 bytes around its value, and two more for each level; 16 tokens are around the answer."""
    assert most_tokens_of(Sampling(response_format=asking_for(schema))) == (None if size is None else size + 16)


def test_the_schema_of_an_answer_has_a_token_for_four_bytes():
    """`{"type": "boolean"}` has 19 bytes."""
    assert form_tokens(Sampling(response_format=asking_for(FLAG))) == 5
    assert form_tokens(Sampling()) == form_tokens(Sampling(response_format={"type": "json_object"})) == 0
    assert form_tokens(Sampling(choices=("yes", "no"))) > 10


def test_a_form_whose_definitions_name_each_other_is_measured_once():
    """Otherwise a call with such a schema would stop the server for minutes."""
    levels = {f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 500} for at in range(3)}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**levels, "d3": {"enum": ["x"]}}}
    assert most_tokens_of(Sampling(response_format=asking_for(schema))) is not None
