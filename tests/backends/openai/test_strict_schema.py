"""Schemas translated into what OpenAI's strict mode takes."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from promptmill.answers.schema import compile_schema
from promptmill.backends.openai.schema_forms import strict_form
from shapes import SHAPES
from sure import sure


class Address(BaseModel):
    street: str
    zip_code: str | None = None


class Person(BaseModel):
    """A person."""

    name: str = Field(min_length=1, description="full name")
    age: int = Field(default=0, ge=0)
    kind: Literal["a", "b"] = "a"
    addresses: list[Address] = []
    home: Address | None = None


def _objects(node):
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        for inner in node.values():
            yield from _objects(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _objects(inner)


def test_in_strict_form_all_fields_are_required_and_no_object_is_open():
    strict = sure(strict_form(Person.model_json_schema()))
    found = list(_objects(strict))
    assert len(found) == 2
    for node in found:
        assert node["additionalProperties"] is False
        assert node["required"] == list(node["properties"])
    assert "default" not in str(strict)
    assert "minLength: 1" in strict["properties"]["name"]["description"]
    assert {"type": "null"} in strict["properties"]["age"]["anyOf"]


def test_what_satisfies_the_strict_form_satisfies_the_schema_once_nulls_are_left_out():
    schema = compile_schema(Person.model_json_schema())
    answer = '{"name": "Ada", "age": null, "kind": null, "addresses": null, "home": {"street": "x", "zip_code": null}}'
    compile_schema(sure(strict_form(Person.model_json_schema()))).check(answer)
    checked = schema.check(answer)
    assert not checked.problem
    assert Person.model_validate_json(checked.text).name == "Ada"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"p": {"properties": {"a": {"type": "string"}}, "allOf": [{"$ref": "#"}]}}},
        {"type": "object", "properties": {"p": {"properties": {"a": {"type": "string"}}, "$ref": "#"}}},
        {"type": "object", "properties": {"p": {"anyOf": [{"type": "string"}], "$ref": "#"}}},
        {"type": "object"},
        {"type": "array", "items": {"type": "string"}},
        {"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}}]},
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"a": {"type": "array"}}},
        {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
    ],
)
def test_what_strict_mode_cannot_say_has_no_strict_form(schema):
    assert strict_form(schema) is None


def test_a_recursive_schema_whose_root_is_a_reference_keeps_an_object_at_its_root():
    class Node(BaseModel):
        value: int
        children: list[Node] = []

    strict = sure(strict_form(Node.model_json_schema()))
    assert strict["type"] == "object"
    assert strict["properties"]["value"] == {"type": "integer"}


@pytest.mark.thorough
def test_examples_of_the_strict_form_are_examples_of_the_schema():
    for shape in SHAPES:
        if strict_form(shape.schema):
            _check_examples(shape)


def _check_examples(shape):
    strict, schema = compile_schema(sure(strict_form(shape.schema))), compile_schema(shape.schema)
    for instance in (shape.good, shape.bad):
        text = json.dumps(instance)
        assert bool(schema.check(text).problem) or not strict.check(text).problem or instance == shape.good
