"""Mistakes in a schema are named with the place and the remedy."""

import json
from typing import Any

import pytest

from promptmill.answers.schema import compile_schema
from promptmill.answers.schema_mistakes import why_no_schema, why_not_json
from promptmill.core.errors import PromptmillError


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        *(("str", "string"), ("int", "integer"), ("float", "number"), ("double", "number"), ("bool", "boolean")),
        *(("list", "array"), ("dict", "object"), ("none", "null"), ("text", "string"), ("DICT", "object")),
        *(("strng", "string"), ("Integer", "integer"), ("ARRAYS", "array")),
    ],
)
def test_the_name_of_a_type_in_another_language_is_answered_with_that_of_json(kind, meant):
    for schema in ({"type": kind}, {"properties": {"a": {"type": kind}}}, {"type": ["null", kind]}):
        with pytest.raises(PromptmillError, match=f"{kind!r}; did you mean {meant}?"):
            compile_schema(schema)


@pytest.mark.parametrize("kind", [5, None, [], ["string", "string"], [5]])
def test_a_type_that_is_no_text_is_an_error_without_a_guess(kind):
    with pytest.raises(PromptmillError, match="is not a usable JSON Schema") as caught:
        compile_schema({"type": kind})
    assert "did you mean" not in caught.value.message


def test_a_wrong_keyword_is_named_with_its_place():
    with pytest.raises(PromptmillError, match=r"JSON Schema: properties\.a\.minimum: it is not of type"):
        compile_schema({"properties": {"a": {"minimum": "x"}}})
    with pytest.raises(PromptmillError, match=r"JSON Schema: anyOf\[1\]\.minimum: it is not of type"):
        compile_schema({"anyOf": [{}, {"minimum": "x"}]})


def test_a_mistake_without_a_place_is_named_alone():
    with pytest.raises(PromptmillError) as caught:
        compile_schema({"pattern": "(("})
    assert caught.value.message == "schema is not a usable JSON Schema: '((' is not a \"regex\"."


@pytest.mark.parametrize("field", ["string", {"minimum": "text"}])
def test_a_field_of_the_name_type_is_not_the_type_of_its_object(field):
    with pytest.raises(PromptmillError, match=r"JSON Schema: properties\.type.*: it is not of type"):
        compile_schema({"properties": {"type": field}})


def test_an_unknown_type_is_answered_with_all_types():
    with pytest.raises(PromptmillError) as caught:
        compile_schema({"properties": {"a": {"type": "qqq"}}}, "the schema of 'x'")
    assert caught.value.message.startswith("the schema of 'x' is not a usable JSON Schema: ")
    assert "'qqq'; types: string, number, integer, boolean, object, array, null" in caught.value.message


SAYING = [
    *("properties", "required", "items", "enum", "const", "allOf", "anyOf", "oneOf", "not", "if", "then"),
    *("else", "additionalProperties", "patternProperties", "propertyNames", "prefixItems", "contains"),
    *("minProperties", "maxProperties", "minItems", "maxItems", "uniqueItems", "minLength", "maxLength"),
    *("pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("dependentRequired", "dependentSchemas", "definitions", "json_schema", "schema"),
]


ABOUT = [
    *("type", "title", "description", "default", "examples", "example", "deprecated", "readOnly"),
    *("writeOnly", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties"),
    *("additionalItems", "dependencies", "contentEncoding", "contentMediaType", "contentSchema", "nullable"),
    *("discriminator", "propertyOrdering", "name", "strict", "id", "enumDescriptions", "enumNames"),
]


@pytest.mark.parametrize("keyword", [*SAYING, "$ref", "$defs"])
def test_an_object_with_a_keyword_that_constrains_answers_is_a_schema(keyword):
    assert why_no_schema({keyword: {}}) == ""


@pytest.mark.parametrize("keyword", [*ABOUT, "x-propertis", "$propertis", "whatever"])
def test_a_known_keyword_is_no_misspelling(keyword):
    assert why_no_schema({"type": "object", keyword: "string"} | {"type": "object"}) == ""


@pytest.mark.parametrize(
    "example", [{"name": "Ada"}, {"type": "person"}, {"type": {"a": 1}}, {"title": "x", "name": "y"}]
)
def test_an_example_of_an_answer_is_no_schema(example):
    problem = why_no_schema(example)
    (first, *_) = example
    assert problem.startswith("is an example, not a JSON Schema.")
    assert f'"properties": {{"{first}": {{"type": "string"}}}}, "required": ["{first}"]' in problem


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"type": "str"}, {"type": ["string", "null"]}, {"type": "arrays"}]
)
def test_an_empty_object_and_one_with_a_type_are_schemas(schema):
    assert why_no_schema(schema) == ""
    assert why_no_schema({"minimum": 5, "name": "x"}) == ""


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "object", "propertis": {}}, "the schema: 'propertis'; did you mean properties?"),
        ({"properties": {"a": {"type": "array", "itms": {}}}}, "properties.a: 'itms'; did you mean items?"),
        ({"items": {"items": {"enumm": []}}}, "items.items: 'enumm'; did you mean enum?"),
        ({"properties": {"city": {}}, "required": ["citty"]}, "required: 'citty'; did you mean city?"),
        (
            {"items": {"properties": {"city": {}}, "required": ["x", "citty"]}},
            "items.required: 'citty'; did you mean city?",
        ),
    ],
)
def test_a_misspelt_keyword_or_field_is_named_with_the_right_one(schema, problem):
    assert why_no_schema(schema) == f"has a mistake: {problem}"


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"city": {}}, "required": ["city", "another", 5]},
        {"properties": ["city"], "required": ["citty"]},
        {"properties": {"city": True}, "required": "citty", "items": False},
        {"properties": {"propertis": {"type": "string"}}},
    ],
)
def test_other_names_in_a_schema_are_no_mistakes(schema):
    assert why_no_schema(schema) == ""


def test_keys_of_a_schema_are_texts():
    schema: dict[Any, Any] = {"type": "object", 5: 1}
    assert why_no_schema(schema) == "has a number as a key; keys are texts."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1', "line 1, column 8: it ends too early, perhaps without a closing bracket"),
        ('{"a": 1,}', "remove the comma before the }"),
        ("[1, ]", "remove the comma before the ]"),
        ("{'a': 1}", "write names and texts in double quotes"),
        ("{\"a\": 'b'}", "write names and texts in double quotes"),
        ('{"a": 1 "b": 2}', "a comma or a closing bracket is missing"),
        ('{"a" 1}', "a colon is missing"),
        ('{\n"a": b}', "line 2, column 6: expecting value"),
        ('{"a": }', "line 1, column 7: expecting value"),
        ("[1, x]", "line 1, column 5: expecting value"),
    ],
)
def test_a_mistake_in_json_is_named_with_its_place_and_its_remedy(text, problem):
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    assert why_not_json(caught.value).endswith(problem)


@pytest.mark.parametrize(("text", "place"), [('{"a": 1,}', 7), ('{"a": 1 , }', 8), ("[1,  ]", 2), ('{"a": 1 , }', 9)])
def test_a_comma_too_many_is_named_wherever_python_reports_it(text, place):
    """Python 3.13 reports the comma; 3.12, the bracket behind it."""
    problem = why_not_json(json.JSONDecodeError("Illegal trailing comma", text, place))
    assert problem.endswith(f": remove the comma before the {text[-1]}")
