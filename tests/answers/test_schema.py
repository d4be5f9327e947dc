"""Answers are checked against their schema."""

import json
import re
import socket

import pytest

from promptmill.answers.schema import compile_schema
from promptmill.core.bounds import LONGEST_SCHEMA
from promptmill.core.errors import Code, PromptmillError
from shapes import SHAPES


@pytest.mark.thorough
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


@pytest.mark.parametrize("behind", ['{"total": 12}', "total: 12", "- **Total:** 12", '"total" = 12'])
def test_an_object_with_a_field_behind_it_is_not_repaired(behind):
    schema = {"type": "object", "properties": {"city": {}, "total": {}}, "required": ["city"]}
    assert compile_schema(schema).check(f'{{"city": "Rome"}}\n{behind}').problem.startswith("the field 'total' follows")


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
    assert ": :" not in caught.value.message


def test_a_schema_at_another_address_is_not_fetched():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with pytest.raises(PromptmillError, match="is not a usable JSON Schema"):
            compile_schema({"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"})
        with pytest.raises(BlockingIOError):  # nobody has connected
            server.accept()


def test_a_pattern_that_would_search_for_ever_ends():
    assert compile_schema({"type": "string", "pattern": r"^(a+)+(?!x)$"}).check('"' + "a" * 40 + 'b"').problem


def test_a_pattern_that_takes_too_many_steps_matches_nothing():
    """With ten letters 1,000 steps, with 16 letters 65,000: each letter may begin a group, or not."""
    schema = compile_schema({"type": "string", "pattern": "^(?:(?:(?=a)a+)+b|a+c)$"})
    assert not schema.check('"' + "a" * 10 + 'c"').problem
    assert schema.check('"' + "a" * 16 + 'c"').problem


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


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            "date",
            ["2026-02-28", "2024-02-29"],
            ["2026-02-30", "2026-13-45", "2026-02-30-", "2026-2-3", "20260203", "2026-02-28T00:00:00Z", "2026-02-28\n"],
        ),
        (
            "date-time",
            ["2026-02-28T12:00:00Z", "2026-02-28t12:00:00.123456789+05:30", "2026-02-28 12:00"],
            ["2026-02-30T12:00:00Z", "2026-02-28T25:00:00Z", "2026-02-28", "20260228T120000Z"],
        ),
        ("time", ["12:00", "12:00:00Z"], ["24:30", "noon", "1200"]),
        ("email", ["anything"], []),
    ],
)
def test_a_date_must_be_one_of_the_calendar_and_the_problem_names_it(kind, good, bad):
    schema = compile_schema({"type": "object", "properties": {"due": {"type": ["string", "null"], "format": kind}}})
    for value in (*good, None):
        answer = json.dumps({"due": value})
        assert schema.is_soon_valid(answer)
        assert not schema.check(answer).problem
    for value in bad:
        answer = json.dumps({"due": value})
        assert not schema.is_soon_valid(answer)
        assert schema.check(answer).problem.startswith(f"at $.due: {value!r} is not a {kind.replace('-', ' and ')} (")


def test_an_answer_that_is_wrong_in_many_ways_has_a_problem_with_a_few_places():
    problem = compile_schema({"items": {"type": "integer"}}).check(json.dumps(["x"] * 500)).problem
    assert problem.count("it is not of type") == 3


def test_an_answer_above_the_limit_is_not_read():
    assert compile_schema({"type": "string"}).why_not_read(json.dumps("x" * (1 << 20))) == "it is longer than 1 MiB"


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
    assert not schema.is_soon_valid("4")
    assert not schema.is_soon_valid("five")
    assert schema.is_soon_valid(json.dumps("x" * 10_000))
    assert not schema.is_soon_valid("1" * 1_000)
    assert not schema.is_soon_valid(json.dumps("x" * 100_000))


def test_patterns_are_not_compiled_in_the_process_of_the_server():
    """Their automata would take gigabytes."""
    compile_schema({"allOf": [{"pattern": f"\\w{{{200 + n}}}"} for n in range(8_000)]})
    for schema in ({"patternProperties": {"((": {}}}, {"allOf": [{"pattern": "(("}]}):
        with pytest.raises(PromptmillError, match=re.escape("'((' is not a \"regex\"")):
            compile_schema(schema)


def test_patterns_may_look_ahead_as_those_of_pydantics_decimals_do():
    schema = compile_schema({"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"})
    assert not schema.check('"1.50"').problem
    assert schema.check('"one"').problem


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


def test_a_schema_has_a_longest_length():
    longest = {"title": "x" * (LONGEST_SCHEMA - len('{"title": ""}'))}
    assert not compile_schema(longest).check("5").problem
    for longer in ({"title": longest["title"] + "x"}, {"title": "x" * (2 * LONGEST_SCHEMA)}):
        with pytest.raises(PromptmillError, match=f"^schema is longer than {LONGEST_SCHEMA >> 10} KiB; send a shorter"):
            compile_schema(longer)


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
    for cut in ('{"city": "b', "{'city': 'b", '{city: "b', '["b', "[{"):
        assert city.check(f'{{"city": "a"}} Then: {cut}').problem == "a JSON value in it is cut or cannot be read"


def test_a_field_that_follows_an_object_is_in_doubt(city):
    assert city.check('{"city": "a"}\nn: 5').problem == "the field 'n' follows the JSON object"
    assert city.check('{"city": "a"}\n**n** = 5').problem == "the field 'n' follows the JSON object"
    assert city.check('{"city": "a", "n": 5}\nn: 5').repaired
    several = compile_schema({"type": ["array", "object"], "properties": {"n": {}}, "items": {"type": "string"}})
    assert several.check('Here: ["a"]\nn: 5').repaired


def test_an_answer_of_the_longest_length_is_read(city):
    assert city.why_not_read("x" * (1 << 20)) == ""
