"""The form of answers, from choices and JSON Schemas."""

from __future__ import annotations

from typing import Any

import pytest

from promptmill.answers.form import IN_ORDER, form_of, form_of_schema
from promptmill.core.form import Choice, Form, Kind, Question, Scale, Value, YesNo
from promptmill.core.request import Sampling


def test_choices_are_one_question_without_a_name() -> None:
    sampling = Sampling(choices=["a", "b"], definitions={"b": "the second"})
    assert form_of(sampling) == Form((Question("", "", Choice(("a", "b"), ("", "the second"))),))


@pytest.mark.parametrize("wanted", [None, {"type": "json_object"}, {"type": "json_schema"}])
def test_texts_and_any_json_have_no_form(wanted: dict[str, Any] | None) -> None:
    assert form_of(Sampling(response_format=wanted)) is None


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ({"enum": ["a", "b"]}, Choice(("a", "b"), ("the first", ""))),
        ({"enum": ["a", "b", None]}, Choice(("a", "b"), ("the first", ""), is_optional=True)),
        ({"enum": ["x", "y"], "$comment": IN_ORDER}, Scale(("x", "y"))),
        ({"type": "array", "items": {"enum": ["x", "y"]}}, Choice(("x", "y"), many=True)),
        (
            {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 1},
            Choice(("x", "y"), many=True, least=1, most=1),
        ),
        (
            {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": "1", "maxItems": 2},
            Choice(("x", "y"), (), True),
        ),
        ({"type": "boolean", "title": "Urgent"}, YesNo()),
        ({"type": ["boolean", "null"]}, YesNo(is_optional=True)),
        ({"type": "integer", "minimum": 1, "maximum": 5}, Scale((1, 2, 3, 4, 5))),
    ],
)
def test_closed_fields(field: dict[str, Any], kind: Kind) -> None:
    schema = {"type": "object", "properties": {"one": field}, "required": ["one"]}
    assert form_of_schema(schema, {"a": "the first"}) == Form((Question("one", "", kind),))


@pytest.mark.parametrize(
    "field",
    [
        {},
        {"type": "string"},
        {"enum": [1, 2]},
        {"enum": ["a"]},
        {"enum": ["a", "a"]},
        {"enum": ["a", "b"], "pattern": "a"},
        {"type": "integer", "minimum": 0, "maximum": 100},
        {"type": "integer", "minimum": 0, "maximum": 4, "multipleOf": 2},
        {"type": "boolean", "const": True},
        {"type": ["boolean", "string"]},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"enum": []}},
        {"type": "array", "items": {"enum": ["a", "a"]}},
        {"type": {"a": 1}},
        {"type": [["boolean"]]},
    ],
)
def test_open_fields(field: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"one": field}, "required": ["one"]}
    assert form_of_schema(schema, {}) == Form((Question("one", "", Value(field)),))


def test_questions_with_the_same_name_are_open() -> None:
    fields = {"a": {"type": "array", "items": {"enum": ["b"]}}, "a: b": {"type": "boolean"}, "": {"type": "boolean"}}
    form = form_of_schema({"type": "object", "properties": fields | {"c": {"type": "boolean"}}}, {})
    assert form is not None
    assert (form.open_fields, [asked.name for asked in form.asked]) == (["a", "a: b", ""], ["c"])


def test_required_names_may_be_anything() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": [{"a": 1}, "a"]}
    assert form_of_schema(schema, {}) == Form((Question("a", "", YesNo()),))


def test_a_field_that_is_not_required_is_optional() -> None:
    schema = {"type": "object", "properties": {"one": {"type": "boolean", "description": "Is it one?"}}}
    assert form_of_schema(schema, {}) == Form((Question("one", "Is it one?", YesNo(is_optional=True)),))
