"""Answers checked against their schema, and repaired only where there is no doubt."""

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel

from promptmill.answers.schema import (
    SchemaCache,
    asking_for,
    compile_schema,
    schema_of,
    why_no_schema,
    why_not_json,
    with_schema,
)
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


DENIALS = [
    *("not", "never", "cannot", "nor", "neither", "wrong", "incorrect", "invalid", "instead of", "rather than"),
    *("nicht", "kein", "keine", "falsch", "falsche", "statt", "pas", "jamais", "faux", "fausse"),
    *("no es", "no son", "nunca", "incorrecta", "não", "errado", "non", "sbagliato"),
    *("не", "нет", "неверно", "неправильно", "isn't", "isn\u2019t"),
]


@pytest.mark.parametrize(
    "word", [*DENIALS, "不", "没", "沒", "非", "错", "錯", "ない", "ません", "違う", "間違い", "아니", "않"]
)
def test_each_word_of_denial_before_an_object_denies_it(city, word):
    assert city.check(f'x {word} {{"city": "Rome"}}').problem == "its words deny the JSON value in it"
    assert city.check(f'x {word.upper()} {{"city": "Rome"}}').problem == "its words deny the JSON value in it"


@pytest.mark.parametrize(
    "words",
    [
        *(
            "?",
            "\uff1f",
            "no,",
            "nein.",
            "non!",
            "não:",
            "нет;",
            "不\uff0c",
            "wait",
            "actually",
            "sorry",
            "correction",
            "oops",
            "hmm",
        ),
        *("that is wrong", "this is wrong", "it is wrong", "which is wrong", "das ist falsch", "dies ist falsch"),
        *("ce n'est pas", "c'est faux", "eso no es", "esto no es", "this is the one that is not"),
    ],
)
def test_words_behind_an_object_take_it_back(city, words):
    assert city.check(f'{{"city": "Rome"}}\n{words}').problem == "its words deny the JSON value in it"


@pytest.mark.parametrize("words", ["no", "notable", "that is right", "waiting", "x. It is wrong", "x it is wrong"])
def test_other_words_behind_an_object_leave_it(city, words):
    assert city.check(f'{{"city": "Rome"}}\n{words}').repaired


@pytest.mark.parametrize("end", [". ", "! ", "? ", ".\n", "。", "\n"])
def test_a_denial_in_the_sentence_before_denies_nothing(city, end):
    assert city.check(f'I did not look{end}Here: {{"city": "Rome"}}').repaired


@pytest.mark.parametrize(
    "words",
    [
        *("and", "plus", "und", "sowie", "et", "y", "e"),
    ],
)
def test_an_object_that_is_joined_to_another_value_is_in_doubt(city, words):
    for value in ('"Paris"', "'Paris'", "5", "more than 5"):
        assert city.check(f'{{"city": "Rome"}} {words} {value}').problem
    assert city.check(f'{{"city": "Rome"}} {words} so on.').repaired


@pytest.mark.parametrize(
    "behind",
    [
        *(
            ' "n": 5',
            ', "n": 5',
            ", n: 5",
            ", 'n",
            ", 5",
            ", {",
            ", [",
            '", more',
            "', more",
            '": more',
            '"}',
            '"]',
            '"n": 5',
        ),
        *("...", " ...", "…", "; 5", ", -5", ' "5', " -5"),
        *(" more }", " more ]"),
    ],
)
def test_an_object_that_goes_on_behind_its_end_is_in_doubt(city, behind):
    assert city.check(f'Here: {{"city": "Rome"}}{behind}').problem


@pytest.mark.parametrize("command", ["frac", "forall", "fbox", "flat", "frown", "beta", "bar"])
def test_each_command_of_latex_that_json_reads_as_a_control_character_is_kept(command):
    schema = compile_schema({"properties": {"formula": {"type": "string"}}, "required": ["formula"]})
    checked = schema.check(f'{{"formula": "$\\{command} x$"}}')
    assert json.loads(checked.text) == {"formula": f"$\\{command} x$"}


def test_an_answer_with_latex_that_breaks_its_schema_or_is_cut_off_stays_as_it_was_written():
    schema = compile_schema({"properties": {"n": {"type": "integer"}}, "required": ["n"]})
    text = r'{"n": "\frac"}'.replace("\\\\", "\\")
    assert schema.check(text)[::2] == (text, False)
    assert schema.check(text).problem
    cut = '```json\n{"n": 5, "x": "\\frac"}\n``'
    assert schema.check(cut, complete=False).problem
    assert schema.check(cut).repaired


@pytest.mark.parametrize(
    "schema",
    [
        *({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a"}}}),
        *(
            {"$schema": "https://json-schema.org/draft/2019-09/schema", "items": {"$recursiveRef": "#"}},
            {"pattern": "a"},
        ),
        *({"patternProperties": {"a": {}}}, {"uniqueItems": True}, {"multipleOf": 1}, {"unevaluatedItems": False}),
    ],
)
def test_a_schema_whose_check_may_take_any_time_is_checked_in_another_process(schema):
    assert not compile_schema(schema).is_soon_valid('"a"')
    assert not compile_schema(schema).check('"a"').problem


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        *(("str", "string"), ("int", "integer"), ("float", "number"), ("double", "number"), ("bool", "boolean")),
        *(("list", "array"), ("dict", "object"), ("none", "null"), ("text", "string"), ("STR", "string")),
        *(("strng", "string"), ("Integer", "integer"), ("arrays", "array")),
    ],
)
def test_the_name_of_a_type_in_another_language_is_answered_with_that_of_json(kind, meant):
    for schema in ({"type": kind}, {"properties": {"a": {"type": kind}}}, {"type": ["null", kind]}):
        with pytest.raises(PromptmillError, match=f"{kind!r}; did you mean {meant}?"):
            compile_schema(schema)


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
    ],
)
def test_a_mistake_in_json_is_named_with_its_place_and_its_remedy(text, problem):
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    assert why_not_json(caught.value).endswith(problem)


def test_equal_objects_with_their_fields_in_another_order_are_one_answer(city):
    assert city.check('{"city": "a", "n": 1} or {"n": 1, "city": "a"}').repaired


def test_a_null_that_the_schema_allows_stays():
    schema = compile_schema({"type": "object", "properties": {"c": {"type": ["string", "null"]}}})
    assert json.loads(schema.check('Here: {"c": null}').text) == {"c": None}


def test_the_problem_of_an_answer_without_json_shows_its_beginning(city):
    assert city.check("").problem == "it is not JSON, it is empty"
    assert city.check("I  do\nnot know").problem == "it is not JSON, it begins with 'I do not know'"
    assert city.check('Here: {"city": "Par').problem == 'it is not JSON, it begins with \'Here: {"city": "Par\''
    assert city.check('{"tags": [1], "city": "x"}').problem.startswith("at $.tags[0]: ")
    assert city.check('{"city": "a"} or {"city": "b"}').problem.startswith("it contains several JSON values")
    assert city.check('{"city": "a"} Then: {"city": "b').problem == "a JSON value in it is cut or cannot be read"


def test_a_field_that_follows_an_object_is_in_doubt(city):
    assert city.check('{"city": "a"}\nn: 5').problem == "the field 'n' follows the JSON object"
    assert city.check('{"city": "a"}\n**n** = 5').problem == "the field 'n' follows the JSON object"
    assert city.check('{"city": "a", "n": 5}\nn: 5').repaired
    several = compile_schema({"type": ["array", "object"], "properties": {"n": {}}, "items": {"type": "string"}})
    assert several.check('Here: ["a"]\nn: 5').repaired


def test_an_answer_of_the_longest_length_is_read(city):
    assert city.why_not_read("x" * (1 << 20)) == ""


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
