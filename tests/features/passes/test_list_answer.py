"""An answer with one list, whole or cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from promptmill.answers.response_format import asking_for
from promptmill.core.request import Sampling
from promptmill.features.passes.list_answer import ListAnswer, ListForm, key_of
from promptmill.jobs.inputs.short_forms import schema_of_fields

FORM = ListForm("items", ("number", "items", "total"))
ANSWER: dict[str, Any] = {
    "number": "R-7, {x}",
    "items": [{"item": 'scr"ews, ]', "n": 12}, {"item": "nails", "n": -3.5e2}, {"item": "", "n": None}],
    "total": 125,
}


def form_of(schema: Any) -> ListForm | None:
    return ListForm.of(Sampling(response_format=asking_for(schema)))


@pytest.mark.parametrize("indent", [None, 2])
def test_only_complete_values_of_a_cut_answer_are_read(indent):
    text = json.dumps(ANSWER, indent=indent)
    ends = [text.index(f'"n": {n}') for n in ("12", "-350.0", "null")]
    for at in range(1, len(text)):
        found = FORM.read(text[:at])
        assert found is not None
        assert found.items == ANSWER["items"][: len(found.items)]
        assert len(found.items) >= sum(at > end + 30 for end in ends), text[:at]
        assert found.others.items() <= ANSWER.items(), text[:at]
        assert not found.is_whole
        assert FORM.is_complete(found) == (text[at:].strip() == "}" and text[at - 1] != "5")
    assert FORM.read(text) == ListAnswer({"number": ANSWER["number"], "total": 125}, ANSWER["items"])


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[1, 2, 3", [1, 2]),
        ("[1, 2,", [1, 2]),
        ('["a", "b"', ["a", "b"]),
        ("[true, fal", [True]),
        ("[1, NaN", [1]),
        ("[[1], [2, 3", [[1]]),
        ("```json\n[1, 2\n", [1, 2]),
        ("[1 2]", []),
        ("no list", None),
    ],
)
def test_a_cut_list(text, items):
    found = ListForm(None).read(text)
    assert (None if found is None else found.items) == items


def test_a_text_of_another_form_has_no_list():
    assert FORM.read("[1]") is None
    assert FORM.read('"items"') is None
    assert FORM.read('{"number": "R-7"}') == ListAnswer({"number": "R-7"}, [])


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        (schema_of_fields("number,items:rows(item,tags:list)"), "items"),
        ({"properties": {"tags": {"anyOf": [{"type": "array"}, {"type": "null"}]}}}, "tags"),
        ({"$defs": {"all": {"type": "array"}}, "properties": {"tags": {"$ref": "#/$defs/all"}}}, "tags"),
    ],
)
def test_the_only_list_of_a_schema_is_found(schema, field):
    form = form_of(schema)
    assert form is not None
    assert form.field == field


def test_an_answer_may_be_the_list():
    assert form_of({"type": "array", "maxItems": 9}) == ListForm(None, most=9)


@pytest.mark.parametrize("fields", ["number", "one:list,other:list"])
def test_other_schemas_have_no_such_list(fields):
    assert form_of(schema_of_fields(fields)) is None


def test_json_mode_and_choices_have_no_list():
    assert ListForm.of(Sampling(response_format={"type": "json_object"})) is None
    assert ListForm.of(Sampling(choices=["a", "b"])) is None


def test_equal_items_have_one_key():
    same = [{"a": " Two\nwords", "b": [1.0]}, {"b": [1], "a": "two  WORDS"}]
    assert len({*map(key_of, same)}) == 1
    different = [1, "1", True, None, "", [], {}, {"a": None}]
    assert len({*map(key_of, different)}) == len(different)


def test_a_rest_leaves_out_what_was_there():
    begun = ListAnswer({"number": "R-7"}, ["a", "b"], is_closed=False, is_whole=False)
    rest = begun.followed_by(ListAnswer({"number": "R-8", "total": 3}, ["b", "c", "c"]))
    assert rest == ListAnswer({"number": "R-7", "total": 3}, ["a", "b", "c", "c"])


def test_a_list_with_equal_items_keeps_them():
    begun = ListAnswer({}, ["good", "bad", "good"], is_closed=False, is_whole=False)
    assert begun.followed_by(ListAnswer({}, ["good", "bad"])).items == ["good", "bad", "good", "good", "bad"]
    assert begun.followed_by(ListAnswer({}, ["good", "bad", "good", "bad"])).items == ["good", "bad", "good", "bad"]


def test_a_list_that_has_ended_gets_no_items():
    begun = ListAnswer({}, ["a"], is_closed=True, is_whole=False)
    assert begun.followed_by(ListAnswer({"total": 1}, ["b"])) == ListAnswer({"total": 1}, ["a"])


def test_an_answer_is_written_in_the_order_of_the_schema():
    text = FORM.text(ListAnswer({"total": 1, "number": "R"}, [2]))
    assert text == '{"number":"R","items":[2],"total":1}'
    assert ListForm(None, most=1).text(ListAnswer({}, [1, 2])) == "[1]"
