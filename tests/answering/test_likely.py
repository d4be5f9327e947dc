"""How long an answer will probably be, from the form that its request asks for."""

from __future__ import annotations

import pytest

from promptmill.answering.likely import ASSUMED, LikelyLengths
from promptmill.answers.response_format import asking_for
from promptmill.core.request import Request, Sampling, conversation_from_prompt

TREE = {"type": "object", "properties": {"name": {"type": "string"}, "below": {"$ref": "#/$defs/tree"}}}
NAMES = {"type": "array", "items": {"type": "string"}, "maxItems": 2}


def likely(extra=None, path="", **sampling):
    asked = Request(0, conversation_from_prompt("a", "a prompt"), Sampling(**sampling), extra or {}, path=path)
    return LikelyLengths().of(asked)


def tokens_of(**fields):
    return likely(response_format=asking_for({"type": "object", "properties": fields})).tokens


def test_the_longest_choice_in_its_json_counts():
    short, long = likely(choices=("yes", "no")), likely(choices=("no", "very probably"))
    assert short == (7, "as the longest choice has")
    assert long.tokens == 10


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


def test_a_definition_that_contains_itself_counts_once():
    whole = likely(response_format=asking_for({"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}))
    assert 20 < whole.tokens < 30


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
