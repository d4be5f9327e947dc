"""A `response_format` is made from a schema, and its schema is compiled once."""

import json

import pytest
from pydantic import BaseModel

from promptmill.answers.response_format import SchemaCache, asking_for, schema_of, with_schema
from promptmill.core.errors import PromptmillError
from sure import sure

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def test_a_response_format_says_which_schema_it_asks_for():
    assert schema_of(asking_for(CITY)) == CITY
    assert schema_of({"type": "json_object"}) == {"type": "object"}
    assert schema_of({"type": "text"}) is schema_of(None) is schema_of({"type": "structural_tag"}) is None
    for wrong in ({"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": "x"}}):
        with pytest.raises(PromptmillError, match="json_schema"):
            schema_of(wrong)


async def test_a_schema_is_compiled_once_however_often_it_comes():
    cache = SchemaCache()
    shared = asking_for(CITY)
    found = sure(await cache.of(shared))
    assert found.check("{}").problem
    assert found is await cache.of(shared) is await cache.of(json.loads(json.dumps(shared)))
    assert await cache.of({"type": "text"}) is None


async def test_large_schemas_that_each_come_once_are_not_all_kept():
    cache, asked = SchemaCache(), []
    for number in range(20):
        large = {"title": str(number), "properties": {f"field {n}": {} for n in range(8_000)}}
        asked.append(asking_for(large))
        assert await cache.of(asked[-1]) is await cache.of(asked[-1])
    assert len(cache._by_id) < 20


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"choices": ["a"]}, "exclude each other"),
        ({}, ""),
    ],
)
def test_a_schema_is_sent_as_a_response_format_unless_choices_are_set(given, problem):
    if problem:
        with pytest.raises(PromptmillError, match=problem):
            with_schema(given, CITY)
        assert with_schema(given, None) is with_schema(given, {}) is given
    else:
        assert with_schema(given, CITY) == {"response_format": asking_for(CITY)}
    assert with_schema({"choices": None}, CITY)["response_format"] == asking_for(CITY)


@pytest.mark.parametrize(("schema", "problem"), [({"a": 1}, "is an example"), (5, "is a number; give a JSON Schema")])
def test_what_is_no_schema_is_an_error(schema, problem):
    with pytest.raises(PromptmillError, match=problem):
        with_schema({}, schema)
    with pytest.raises(PromptmillError, match="is not a usable"):
        with_schema({}, {"minimum": "x"})


def test_a_class_of_pydantic_is_a_schema():
    class City(BaseModel):
        city: str

    assert with_schema({}, City)["response_format"] == asking_for(City.model_json_schema())
    assert asking_for(CITY)["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"type": "json_schema"}, "response_format.json_schema is null"),
        ({"type": "json_schema", "json_schema": {"schema": "x"}}, "response_format.json_schema.schema is a text"),
    ],
)
def test_a_response_format_without_a_schema_is_an_error_that_shows_the_form(wanted, problem):
    with pytest.raises(PromptmillError) as caught:
        schema_of(wanted)
    assert caught.value.message.startswith(problem)
    assert '; send {"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}.' in caught.value.message
