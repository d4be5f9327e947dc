"""What a reply to several rows says about each, whatever else is in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from promptmill.answers.response_format import asking_for
from promptmill.core.request import Fields, Sampling
from promptmill.features.together.record_form import RecordForm

TEXTS = Sampling()
OBJECTS = Sampling(response_format=asking_for({"type": "object", "properties": {"x": {"type": "integer"}}}))


def form(sampling: Sampling = TEXTS, *, is_object: bool = False) -> RecordForm:
    made = RecordForm.of(sampling, is_object=is_object)
    assert isinstance(made, RecordForm)
    return made


def items(*pairs: tuple[Any, Any]) -> str:
    return json.dumps({"answers": [{"id": name, "answer": value} for name, value in pairs]})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (items(("k1", "a"), ("k2", "b")), ["a", "b"]),
        (items(("k2", "b"), ("k1", "a"), ("zz", "a")), ["a", "b"]),
        (items(("k1", "a"), ("k2", "b"), ("k1", "b")), [None, "b"]),
        (items(("k1", "a"), ("k1", "a")), [None, None]),
        (items(("k1", None), ("k2", ["b"])), [None, None]),
        (items(("k1", " "), (2, "b")), [None, None]),
        (f"Here you are: {items(('k1', 'a'), ('k2', 'b'))} Anything else?", ["a", "b"]),
        (items(("k1", "a"), ("k2", "b"))[:-12], ["a", None]),
        ('[{"id": "k1", "answer": "a"}, {"id": "k2", "answer": "b"}]', ["a", "b"]),
        ('{"answers": [{"id": "k1"}, {"id": "k2", "answer": "b"}, 7]}', [None, "b"]),
        ('{"answers": "k1"}', [None, None]),
        ("7", [None, None]),
        ("", [None, None]),
        ('[{"id": "k1", "answer": "' + "[" * 100_000, [None, None]),
    ],
)
def test_an_answer_counts_by_its_id_if_it_is_there_once(text, found):
    assert form().answers(text, ["k1", "k2"]) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"r1": "a", "r2": "b"}', ["a", "b"]),
        ('{"r1": "a", "r2": "b", "r3": "a"}', ["a", "b"]),
        ('{"r1": "a", "r1": "b", "r2": "b"}', [None, "b"]),
        ('{"r1": "a", "r2": "b', ["a", None]),
        ('```json\n{"r1": "a",\n "r2": "b"}\n```', ["a", "b"]),
        ('{"r\\u0031": "a"}', [None, None]),
        ("[]", [None, None]),
    ],
)
def test_an_answer_counts_by_its_field_if_it_is_there_once(text, found):
    assert form(is_object=True).answers(text, ["r1", "r2"]) == found


def test_an_answer_with_a_schema_is_json():
    assert form(OBJECTS).answers(items(("k", {"x": 1})), ["k"]) == ['{"x": 1}']
    assert form(OBJECTS, is_object=True).answers('{"r1": {"x": "}"}}', ["r1"]) == ['{"x": "}"}']


@pytest.mark.parametrize("is_object", [False, True])
def test_a_whole_number_of_any_length_is_kept(is_object):
    number = 10**20 + 7
    said = f'{{"r1": {{"x": {number}}}}}' if is_object else items(("r1", {"x": number}))
    assert form(OBJECTS, is_object=is_object).answers(said, ["r1"]) == [f'{{"x": {number}}}']


def test_a_choice_is_in_the_form_of_a_choice_alone():
    assert form(Sampling(choices=["a", "b"])).answers(items(("k", "a")), ["k"]) == ['{"answer": "a"}']


def test_names_of_a_list_follow_from_all_rows_and_are_not_alike():
    seeds = [b"%d" % at for at in range(256)]
    names = form().names(seeds)
    assert len({*names}) == 256
    assert {*map(len, names)} == {4}
    assert names == form().names(seeds)
    assert not {*names} & {*form().names([*seeds, b"more"])}


def test_names_of_an_object_are_numbers_in_an_order_of_their_own():
    first, second = (form(is_object=True).names([b"%d %d" % (vote, at) for at in range(20)]) for vote in range(2))
    assert sorted(first) == sorted(second) == sorted(f"r{at}" for at in range(1, 21))
    assert first != second


def test_a_record_is_a_line_of_json_and_the_task_stands_once():
    asked = form().text([Fields(("About {x}: ", "text", " - ", "from", "!"), ('a\n"b"', "{c}"))] * 2, ["k1", "k2"])
    assert asked.count("About {x}: {{text}} - {{from}}!") == 1
    lines = asked.partition("Records:\n")[2].split("\n")
    assert [json.loads(line) for line in lines] == [
        {"id": name, "text": 'a\n"b"', "from": "{c}"} for name in ("k1", "k2")
    ]


def test_the_room_for_answers_grows_with_the_rows():
    wanted = form(Sampling(max_tokens=10)).sampling_for(20)
    assert wanted.max_tokens == 20 * (10 + 24) + 24
    assert form().sampling_for(20).max_tokens is None
    assert form().sampling_for(3).choices is None


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": {"x": {"$ref": "#/properties/y"}}},
        {"$defs": {"a": {"$anchor": "a"}}},
        {"$id": "x"},
    ],
)
def test_a_schema_that_means_something_else_inside_another_is_not_moved(schema):
    wanted = Sampling(response_format=asking_for({"type": "object", **schema}))
    assert RecordForm.of(wanted, is_object=True) == "a schema that refers to itself"
