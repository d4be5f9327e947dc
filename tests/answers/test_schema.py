"""Answers checked against their schema, and repaired only where there is no doubt."""

import json
import re

import pytest

from promptmill.answers.schema import SchemaCache, asking_for, compile_schema, schema_of
from promptmill.core.errors import Code, PromptmillError
from shapes import SHAPES

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "n": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def city():
    return compile_schema(CITY)


def test_there_are_two_hundred_shapes_whose_examples_are_told_apart():
    assert len(SHAPES) == 200
    for shape in SHAPES:
        schema = compile_schema(shape.schema)
        good, bad = json.dumps(shape.good, ensure_ascii=False), json.dumps(shape.bad)
        assert schema.check(good) == (good, "", False), shape.name
        assert schema.check(bad).problem, shape.name


def test_an_answer_that_satisfies_its_schema_stays_as_it_was_written(city):
    text = '\n{ "city" : "Paris" }\n'
    assert city.check(text) == (text, "", False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('```json\n{"city": "Paris"}\n```', {"city": "Paris"}),
        ('```\n{"city": "Paris"}\n```', {"city": "Paris"}),
        ('Sure! Here it is:\n\n{"city": "Paris", "n": 3}\n\nI hope this helps.', {"city": "Paris", "n": 3}),
        ('Here:\n```json\n{"city": "Paris",}\n```\nDone.', {"city": "Paris"}),
        ('{"city": "Paris", "tags": ["a", "b",],}', {"city": "Paris", "tags": ["a", "b"]}),
        ("{'city': 'Paris', 'tags': ['a']}", {"city": "Paris", "tags": ["a"]}),
        ('{city: "Paris"}', {"city": "Paris"}),
        ('{"city": "x" "n": 5}', {"city": "x", "n": 5}),
        ('{"city": "He said "hi" to me"}', {"city": 'He said "hi" to me'}),
        ('{"city": "Paris", "n": null}', {"city": "Paris"}),  # what strict endpoints write for a field left out
        ('{"city": "a"} or, again, {"city": "a"}', {"city": "a"}),
        ('"{\\"city\\": \\"a\\"}"', {"city": "a"}),  # JSON as a text of JSON
        ('{"city": "Paris"}}', {"city": "Paris"}),
        ('```json\n{"city": "Paris"}', {"city": "Paris"}),
        ('As [1] says {see below} of [0, 1) [sic]: {"city": "Paris"} (from [2]).', {"city": "Paris"}),
        ('The result is {"city": "Paris"}, as requested.\n1. Paris is large.', {"city": "Paris"}),
        ('I could not find a number.\n\n{"city": "Paris"}\n\nNote: the tags are not given.', {"city": "Paris"}),
    ],
)
def test_what_leaves_no_doubt_is_repaired(city, text, value):
    checked = city.check(text)
    assert (json.loads(checked.text), checked.problem, checked.repaired) == (value, "", True)


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Par',
        '{"city": "Paris", "n": 5',
        '{"city": "a"} or {"city": "b"}',
        '{"city": "a", "n": - 5,}',
        '{"city": "a", "n": NaN}',
        '{"city": "P" /* not sure */}',
        '{"city": "a", "n": 1.5.2,}',
        '[{"city": "a"}]',
        "Paris",
        "",
        "[" * 100_000,
    ],
)
def test_what_leaves_a_doubt_is_not_repaired(city, text):
    checked = city.check(text)
    assert checked.problem
    assert checked.text == text


ITEMS = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"type": "object", "required": ["a"]}},
        "b": {"type": "integer"},
    },
    "required": ["items"],
}


@pytest.mark.parametrize(
    "text",
    [
        '{"items": [{"a": 1}, {"a": 2}, {"a":',
        '{"items": [{"a": 1}, {"a": 2}',
        '{"items": [{"a": 1}, {"a": 2}]',
        '{"items": [{"a": 1}, {"a": 2}, ',
        "{'items': [{'a': 1}, {'a': 2}",
        '```json\n{"items": [{"a": 1}, {"a": 2}\n```',
        '{"items": [{"a": 1}]}\nCorrected: {"items": [{"a": 1}, {"a": 2}',
        '```json\n{"items": [{"a": 1}]}\n```\n```json\n{"items": [{"a": 2}',
        '{"items": [{"a": "}]}", "b": 5',
    ],
)
def test_an_answer_that_ends_in_the_middle_is_not_repaired_to_a_shorter_one(text):
    assert compile_schema(ITEMS).check(text).problem


@pytest.mark.parametrize(
    "text",
    [
        '{"items": [{"a": 1}]}, "b": 2}',
        '{"items": [{"a": 1}]}, b: 2}',
        '{"items": [{"a": 1}]} "b": 2}',
        '{"items": [{"a": 1}]}, {"a": 2}]}',
        "{'items': [{'a': 'x } y'}], 'b': 1}",
        '{"items": [{"a": 1}]}\n{"items": [{"a": - 5}]}',
        '{"items": [{"a": 1}]} and {"a": 2}',
        '{"items": [{"a": 1}]} ...',
        '{"items": [{"a": 1}]}, … 2',
    ],
)
def test_an_answer_that_goes_on_behind_the_json_is_not_repaired(text):
    assert compile_schema(ITEMS).check(text).problem


@pytest.mark.parametrize("text", ["[1, 2] and 3", "[1, 2]; 3; 4", "[1, 2] 3", "[1, 2] und noch 3"])
def test_a_list_whose_numbers_go_on_behind_it_is_not_repaired(text):
    assert compile_schema({"type": "array", "items": {"type": "integer"}}).check(text).problem


@pytest.mark.parametrize("behind", ['{"total": 12}', "total: 12", "- **Total:** 12", '"total" = 12'])
def test_an_object_with_a_field_behind_it_is_not_repaired(behind):
    schema = {"type": "object", "properties": {"city": {}, "total": {}}, "required": ["city"]}
    assert compile_schema(schema).check(f'{{"city": "Rome"}}\n{behind}').problem.startswith("the field 'total' follows")


def test_a_number_in_a_code_fence_that_its_text_denies_is_not_the_answer():
    known = compile_schema({"type": "integer"})
    assert known.check("```\n5\n```\nThat is wrong.").problem == "its words deny the JSON value in it"
    assert known.check("The number:\n```\n5\n```").text == "5"


def test_an_example_in_a_code_fence_is_not_the_answer_behind_it(city):
    assert city.check('Example:\n```json\n{"city": "x"}\n```\nAnswer: {\'city\': "Paris"}').problem


@pytest.mark.parametrize(
    "text",
    [
        'The answer is not {"city": "Rome"}.',
        'It can\'t be {"city": "Rome"}',
        'This is wrong:\n```json\n{"city": "Rome"}\n```',
        '{"city": "Rome"} would be incorrect; I cannot tell.',
        '{"city": "Rome"}? I do not know.',
        '{"city": "Rome"}. No, that is another one.',
        '{"city": "Rome"}\n\nWait, I have to look again.',
        '```json\n{"city": "Rome"}\n```\nThat is not correct.',
        "It isn't {'city': 'Rome'}.",
        'Die Antwort ist nicht {"city": "Rome"}.',
        'Ce n\'est pas {"city": "Rome"}.',
        'No es {"city": "Rome"}.',
        '答案不是 {"city": "Rome"}',
    ],
)
def test_an_object_that_its_text_denies_is_not_the_answer(city, text):
    assert city.check(text).problem == "its words deny the JSON value in it"


@pytest.mark.parametrize(
    "text",
    [
        'I did not add a field. {"city": "Rome"}',
        '{"city": "Rome"}\nNo further comments.',
        '{"city": "Rome"}\nNot included: the country.',
    ],
)
def test_a_no_about_something_else_denies_nothing(city, text):
    assert city.check(text).repaired


def test_an_answer_of_many_brackets_is_read_in_time_in_proportion_to_its_length(city):
    assert city.check("[a " * 100_000).problem
    assert city.check("{'a " * 100_000).problem


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"$\frac{a}{\beta}$", r"$\frac{a}{\beta}$"),
        (r"$\\frac{a}{\\beta}$", r"$\frac{a}{\beta}$"),
        (r"\\\frac", r"\\frac"),
        (r"page 1\fPage 2\n\b", "page 1\fPage 2\n\b"),
    ],
)
def test_latex_with_one_backslash_is_no_control_character(written, read):
    text = f'{{"formula": "{written}"}}'
    schema = compile_schema({"type": "object", "properties": {"formula": {"type": "string"}}, "required": ["formula"]})
    checked = schema.check(text)
    assert (json.loads(checked.text), checked.problem) == ({"formula": read}, "")
    assert checked.repaired is (checked.text != text)
    assert schema.is_soon_valid(text) is not checked.repaired


@pytest.mark.parametrize("language", ["", "json", "JSON", " json", "json5", "JSON5", "jsonc", "JSONC"])
def test_a_number_in_a_code_fence_is_read_without_the_name_of_its_language(language):
    checked = compile_schema({"type": "integer"}).check(f"The number:\n```{language}\n5\n```")
    assert (checked.text, checked.problem) == ("5", "")


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ('{"a": {"b": null}}', {"a": {}}),  # the problem is reported of `a`, which has two forms
        ('{"a": {"b": null, "c": null}}', {"a": {}}),
        ('[{"b": null}, {"b": 2}]', [{}, {"b": 2}]),
        ('{"c": null, "d": null}', {"c": None}),  # only `d` may not be null
    ],
)
def test_optional_fields_that_are_null_are_left_out_wherever_they_are(text, repaired):
    inner = {"type": "object", "properties": {"b": {"type": "integer"}}, "additionalProperties": False}
    fields = {"a": {"anyOf": [inner, {"type": "string"}]}, "c": {"type": "null"}, "d": {"type": "string"}}
    schema = {"type": "array", "items": inner} if text.startswith("[") else {"type": "object", "properties": fields}
    checked = compile_schema(schema).check(text)
    assert (json.loads(checked.text), checked.problem, checked.repaired) == (repaired, "", True)


def test_nothing_is_repaired_in_an_answer_that_was_cut_off(city):
    assert city.check('```json\n{"city": "Paris"}\n``', complete=False).problem


def test_constants_that_json_does_not_know_never_pass_an_open_schema():
    assert compile_schema({"type": "object"}).check('Here: {"n": NaN}').problem


def test_the_problem_names_place_and_rule_for_whoever_answers_again(city):
    assert "$.n" in city.check('{"city": "Paris", "n": "three"}').problem
    assert "city" in city.check("{}").problem


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nope"},
        {"properties": {"a": {"pattern": "(("}}},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$schema": "http://127.0.0.1:9/meta"},
        {"enum": ["x" * 300_000]},
    ],
)
def test_what_is_not_a_usable_schema_is_refused_and_nothing_is_fetched_for_it(schema):
    with pytest.raises(PromptmillError) as caught:
        compile_schema(schema)
    assert caught.value.code is Code.INVALID_INPUT
    assert "schema is" in caught.value.message


def test_a_pattern_that_would_search_for_ever_ends():
    assert compile_schema({"type": "string", "pattern": r"^(a+)+(?!x)$"}).check('"' + "a" * 40 + 'b"').problem


def _branching(kind, levels):
    """Return a schema in which each of so many levels refers to the next one twice."""
    definitions = {f"n{level}": {kind: [{"$ref": f"#/$defs/n{level + 1}"}] * 2} for level in range(levels)}
    return {"$ref": "#/$defs/n0", "$defs": {**definitions, f"n{levels}": {"type": "integer"}}}


def test_a_schema_may_refer_to_itself_and_often_to_the_same():
    tree = {"$ref": "#/$defs/node", "$defs": {"node": {"properties": {
        "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        "right": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    }, "required": ["left"]}}}  # fmt: skip
    assert not compile_schema(tree).check('{"left": {"left": null, "right": {"left": null}}}').problem
    many = {"properties": {f"p{n}": {"$ref": "#/$defs/point"} for n in range(500)},
            "$defs": {"point": {"properties": {"x": {"type": "number"}, "y": {"type": "number"}}}}}  # fmt: skip
    assert compile_schema(many).check('{"p7": {"x": "1"}}').problem == 'at $.p7.x: it is not of type "number"'


def test_an_answer_that_is_wrong_in_many_ways_has_a_problem_with_a_few_places():
    problem = compile_schema({"items": {"type": "integer"}}).check(json.dumps(["x"] * 50_000)).problem
    assert problem.count("it is not of type") == 3


def test_an_answer_above_the_limit_is_not_read():
    assert compile_schema({"type": "string"}).why_not_read(json.dumps("x" * (1 << 20))) == "it is longer than 1 MiB"


def test_a_long_answer_with_slips_is_repaired():
    text = '{"rows": [' + '{"name": "Ada", "n": [1, 2, 3],},' * 3_000 + "]}"
    assert compile_schema({"type": "object"}).check(text).repaired


@pytest.mark.parametrize(
    "schema",
    [
        _branching("anyOf", 26),
        {"pattern": "^(?:a|b){1,900}$"},
        {"patternProperties": {"a": {}}},
        {"uniqueItems": True},
        {"multipleOf": 1e-300},
        {"properties": {f"field {n}": {} for n in range(2_000)}},
    ],
    ids=["references", "pattern", "names by pattern", "unique items", "fractions", "long"],
)
def test_only_what_takes_a_moment_is_checked_while_others_wait(schema):
    assert not compile_schema(schema).is_soon_valid(json.dumps("x" * 1_000))


def test_a_small_plain_schema_is_checked_at_once():
    schema = compile_schema({"minimum": 5})
    assert schema.is_soon_valid("5")
    assert schema.is_soon_valid(json.dumps("x" * 10_000))
    assert not schema.is_soon_valid("1" * 1_000)
    assert not schema.is_soon_valid(json.dumps("x" * 100_000))


def test_patterns_are_not_compiled_in_the_process_of_the_server():
    """Their automata would take gigabytes."""
    compile_schema({"allOf": [{"pattern": f"\\w{{{200 + n}}}"} for n in range(8_000)]})
    with pytest.raises(PromptmillError, match=re.escape("'((' is not a \"regex\"")):
        compile_schema({"patternProperties": {"((": {}}})


def test_patterns_may_look_ahead_as_those_of_pydantics_decimals_do():
    schema = compile_schema({"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"})
    assert not schema.check('"1.50"').problem
    assert schema.check('"one"').problem


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
    found = await cache.of(shared)
    assert found is await cache.of(shared) is await cache.of(json.loads(json.dumps(shared)))
    assert await cache.of({"type": "text"}) is None


async def test_large_schemas_that_each_come_once_are_not_all_kept():
    cache, asked = SchemaCache(), []
    for number in range(20):
        large = {"title": str(number), "properties": {f"field {n}": {} for n in range(8_000)}}
        asked.append(asking_for(large))
        assert await cache.of(asked[-1]) is await cache.of(asked[-1])
    assert len(cache._by_id) < 20
