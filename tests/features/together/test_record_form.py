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
        (items(("k22a", "a"), ("k33a", "b")), ["a", "b"]),
        (items(("k33a", "b"), ("k22a", "a"), ("zzzz", "a")), ["a", "b"]),
        (items(("k22a", "a"), ("k33a", "b"), ("k22a", "b")), [None, "b"]),
        (items(("k22a", "a"), ("k22a", "a")), [None, None]),
        (items(("k22a", None), ("k33a", ["b"])), [None, None]),
        (items(("k22a", " "), (2, "b")), [None, None]),
        (f"Here you are: {items(('k22a', 'a'), ('k33a', 'b'))} Anything else?", ["a", "b"]),
        (items(("k22a", "a"), ("k33a", "b"))[:-12], ["a", None]),
        ('[{"id": "k22a", "answer": "a"}, {"id": "k33a", "answer": "b"}]', ["a", "b"]),
        ('{"answers": [{"id": "k22a"}, {"id": "k33a", "answer": "b"}, 7]}', [None, "b"]),
        ('{"answers": "k22a"}', [None, None]),
        ("7", [None, None]),
        ("", [None, None]),
        ('[{"id": "k22a", "answer": "' + "[" * 100_000, [None, None]),
    ],
)
def test_an_answer_counts_by_its_id_if_it_is_there_once(text, found):
    assert form().answers(text, ["k22a", "k33a"]) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"r1": "a", "r2": "b"}', ["a", "b"]),
        ('{"r1": "a", "r2": "b", "r3": "a"}', ["a", "b"]),
        ('{"r1": "a", "r1": "b", "r2": "b"}', [None, "b"]),
        ('{"r1": "a", "r2": "b', ["a", None]),
        ('```json\n{"r1": "a",\n "r2": "b"}\n```', ["a", "b"]),
        ('{"r\\u0031": "a"}', ["a", None]),
        ("[]", [None, None]),
    ],
)
def test_an_answer_counts_by_its_field_if_it_is_there_once(text, found):
    assert form(is_object=True).answers(text, ["r1", "r2"]) == found


BOTH = items(("k22a", "a"), ("k33a", "b"))
OTHERS = items(("k22a", "b"), ("k33a", "b"))


@pytest.mark.parametrize(
    "text",
    [
        '{"k22a": "a", "k33a": "b"}',
        '{"answers": {"k22a": "a", "k33a": "b"}}',
        '{"k22a": "a"}\n{"k33a": "b"}',
        '{"answers": [{"k22a": "a"}, {"k33a": "b"}]}',
        BOTH.replace("answers", "results"),
        json.dumps({"data": {"list": json.loads(BOTH)}}),
        json.dumps({"answers": json.dumps(json.loads(BOTH)["answers"])}),
        items(("k22a", {"answer": "a"}), ("k33a", {"answer": "b"})),
        str(json.loads(BOTH)),
        f"```json\n{BOTH}\n```",
        f"{BOTH}\n{BOTH}",
        f'As {{"answers": [{{"id": "x", "answer": "y"}}]}}: {BOTH}',
        f'As {{"answers": [{{"id": …, "answer": …}}, …]}}: {BOTH}',
        f"k22a is about a, [sic] and k33a {{about b}}: {BOTH}",
        '{"id": "k22a", "answer": "a"}\n{"id": "k33a", "answer": "b"}\n',
        '{"id": "k22a", "text": "{}"}\n{"id": "k33a", "text": "[]"}\n' + BOTH,
        f"{BOTH[:-2]},]}}",
    ],
)
def test_a_form_whose_meaning_is_beyond_doubt_is_read(text):
    assert form().answers(text, ["k22a", "k33a"]) == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        f"Draft:\n{OTHERS}\nFinal:\n{BOTH}",
        f"```json\n{OTHERS}\n```\n```json\n{BOTH}\n```",
        f"{json.dumps(json.loads(OTHERS)['answers'])}\nFinal: {BOTH}",
        f"{OTHERS}\nCorrection: {items(('k22a', 'a'))}",
        f'{OTHERS}\nFinal: {{"k22a": "a", "k33a": "b"}}',
        json.dumps({"draft": json.loads(OTHERS)["answers"], "answers": json.loads(BOTH)["answers"]}),
        json.dumps({"thoughts": {"k22a": "late", "k33a": "b"}, "answers": json.loads(BOTH)["answers"]}),
        OTHERS[1:-1] + BOTH,
        f"{OTHERS[:50]}\nAgain:\n{BOTH}",
        f"{OTHERS}\nFinal: {BOTH[:-40]}",
        f"{OTHERS}\nFinal: {BOTH[:34]}",
        f'{OTHERS}\nFinal: {{"answers": [',
        f"{OTHERS}\nFinal: k22a: a",
        f"{OTHERS[:-2]}\nFinal: {BOTH[:-2]}",
        f"{OTHERS}\n{'[1, ' * 200}",
        '{"id": "k22a", "answer": "b"}\n{"id": "k22a", "answer": "a"}',
    ],
)
def test_a_draft_beside_other_answers_is_no_answer(text):
    assert form().answers(text, ["k22a", "k33a"])[0] is None


@pytest.mark.parametrize(
    "text",
    [
        '{"r1": "b", "r2": "b"}\n{"r1": "a", "r2": "b"}',
        '{"r1": "b", "r2": "b"}\nFinal: {"r1": "a", "r',
        '{"r1": "b", "r2": "b"}\nFinal: {"r',
        '{"r1": "b", "r2": "b\nAgain: {"r1": "a", "r2": "b"}',
        '{"r1": "b", "r2": "b"} - no, r1 is a',
        '{"answer": {"r1": "b"}}',
    ],
)
def test_a_draft_beside_another_object_is_no_answer(text):
    assert form(is_object=True).answers(text, ["r1", "r2"])[0] is None


@pytest.mark.parametrize("behind", ["", "\n```\n", "  \n"])
def test_a_whole_list_counts_although_the_reply_is_cut_off_behind_it(behind):
    assert form().answers(BOTH + behind, ["k22a", "k33a"], is_cut=True) == ["a", "b"]


def test_a_whole_list_before_other_words_that_are_cut_off_may_be_a_draft():
    assert form().answers(f"{BOTH}\nOn reflection", ["k22a", "k33a"], is_cut=True) == [None, None]


def test_a_row_of_a_batch_reads_no_draft_of_its_answer():
    cut = items(("k22a", "a"), ("k33a", "a"))[:-20]
    assert form().answers(f"{OTHERS}\nFinal: {cut}", ["k33a"]) == [None]
    assert form().answers(f"{OTHERS}\nFinal: {BOTH}", ["k33a"]) == ["b"]


@pytest.mark.parametrize(
    ("value", "found"), [(2, "2"), (2.5, "2.5"), (True, "true"), (False, "false"), ("2", "2"), ({"answer": 2}, "2")]
)
def test_a_number_or_truth_value_is_its_text(value, found):
    said = items(("k22a", value))
    assert form().answers(said, ["k22a"]) == [found]
    wanted = Sampling(choices=["2", "2.5", "true", "false"])
    assert form(wanted).answers(said, ["k22a"]) == [f'{{"answer": "{found}"}}']
    assert form(wanted, is_object=True).answers(json.dumps({"r1": value}), ["r1"]) == [f'{{"answer": "{found}"}}']


def test_a_number_keeps_its_digits():
    assert form().answers('[{"id": "k22a", "answer": 1.50}, {"id": 2345, "answer": 007}]', ["k22a"]) == ["1.50"]
    assert form().answers('[{"id": 2345, "answer": 1e999}]', ["2345"]) == ["1e999"]


@pytest.mark.parametrize("value", [None, [], [1], {"label": "a"}, {"answer": None}])
def test_what_is_no_text_is_no_answer_in_text(value):
    assert form().answers(items(("k22a", value)), ["k22a"]) == [None]


def test_a_field_with_the_name_of_an_answer_is_renamed():
    asked = form().text([Fields(("Is it right? ", "answer", ""), ("mine",))], ["k22a"])
    assert asked.endswith('\n{"id":"k22a","answer_field":"mine"}')
    assert "Is it right? {{answer_field}}" in asked
    repeated = '{"answers": [{"id": "k22a", "answer_field": "mine", "correct": "yes"}]}'
    assert form().answers(repeated, ["k22a"]) == [None]


def test_an_answer_with_a_schema_is_json():
    assert form(OBJECTS).answers(items(("k22a", {"x": 1})), ["k22a"]) == ['{"x": 1}']
    assert form(OBJECTS, is_object=True).answers('{"r1": {"x": "}"}}', ["r1"]) == ['{"x": "}"}']


@pytest.mark.parametrize("is_object", [False, True])
def test_a_whole_number_of_any_length_is_kept(is_object):
    number = 10**20 + 7
    name = "r1" if is_object else "k22a"
    said = f'{{"r1": {{"x": {number}}}}}' if is_object else items((name, {"x": number}))
    assert form(OBJECTS, is_object=is_object).answers(said, [name]) == [f'{{"x": {number}}}']


def test_a_choice_is_in_the_form_of_a_choice_alone():
    assert form(Sampling(choices=["a", "b"])).answers(items(("k22a", "a")), ["k22a"]) == ['{"answer": "a"}']


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
    asked = form().text([Fields(("About {x}: ", "text", " - ", "from", "!"), ('a\n"b"', "{c}"))] * 2, ["k22a", "k33a"])
    assert asked.count("About {x}: {{text}} - {{from}}!") == 1
    lines = asked.partition("Records:\n")[2].split("\n")
    assert [json.loads(line) for line in lines] == [
        {"id": name, "text": 'a\n"b"', "from": "{c}"} for name in ("k22a", "k33a")
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
