"""Forms as data: how a question is asked, and how the answers make a row's answer."""

from __future__ import annotations

import pytest

from promptmill.core.form import NOT_STATED, Choice, Form, Given, Question, Scale, Value, YesNo

TEAM = Question("team", "", Choice(("billing", "tech"), ("money", "")))


def test_a_question_has_its_options_with_definitions() -> None:
    (asked,) = Form((TEAM,)).asked
    assert [(one.text, one.definition) for one in asked.options] == [("billing", "money"), ("tech", "")]


def test_an_optional_question_may_have_no_answer() -> None:
    form = Form((Question("team", "", Choice(("billing", "tech"), is_optional=True)),))
    assert [one.text for one in form.asked[0].options] == ["billing", "tech", NOT_STATED]
    answer = form.answer({"team": Given(NOT_STATED, {"billing": 0.25, "": 0.75})})
    assert answer.text == '{"team":null}'
    assert answer.probabilities == {"team": {"billing": 0.25, "": 0.75}}


@pytest.mark.parametrize(
    ("least", "most", "labels", "share"),
    [(0, None, '["b","c"]', 0.336), (0, 1, '["c"]', 0.224), (3, None, '["a","b","c"]', 0.144), (0, 0, "[]", 0.056)],
)
def test_too_few_or_too_many_labels_are_the_likeliest(least: int, most: int | None, labels: str, share: float) -> None:
    form = Form((Question("t", "", Choice(("a", "b", "c"), many=True, least=least, most=most)),))
    shares = {"a": 0.3, "b": 0.6, "c": 0.8}
    given = {
        f"t: {label}": Given("yes" if yes > 0.5 else "no", {"true": yes, "false": 1 - yes})
        for label, yes in shares.items()
    }
    answer = form.answer(given)
    assert (answer.text, answer.probabilities["t"]) == (f'{{"t":{labels}}}', {labels: share})


def test_each_of_many_labels_is_a_yes_or_no() -> None:
    form = Form((Question("labels", "", Choice(("a", "b"), ("first", ""), many=True)),))
    assert [(one.name, one.options[0].definition) for one in form.asked] == [("labels: a", "first"), ("labels: b", "")]
    yes, no = Given("yes", {"true": 0.75, "false": 0.25}), Given("no", {"true": 0.5, "false": 0.5})
    answer = form.answer({"labels: a": yes, "labels: b": no})
    assert answer.text == '{"labels":["a"]}'
    assert answer.probabilities["labels"] == {'["a"]': 0.375}
    assert answer.probabilities["labels: b"] == {"true": 0.5, "false": 0.5}


def test_a_field_without_an_answer_is_left_out() -> None:
    labels = Question("labels", "", Choice(("a", "b"), many=True))
    form = Form((TEAM, Question("urgent", "", YesNo()), labels))
    answer = form.answer({"urgent": Given("no", {}), "labels: a": Given("yes", {})})
    assert answer == ('{"urgent":false}', {})


def test_an_answer_that_is_a_label_is_its_text() -> None:
    form = Form((Question("", "", Choice(("true", "5"))),))
    assert form.answer({"": Given("true", {"true": 1.0})}) == ("true", {"": {"true": 1.0}})


@pytest.mark.parametrize(
    ("scale", "shares", "level"),
    [
        (Scale((1, 2, 3)), {"1": 0.25, "3": 0.75}, 2.5),
        (Scale(("calm", "annoyed", "furious")), {"calm": 0.5, "furious": 0.5}, 1.0),
        (Scale((1, 2), is_optional=True), {"1": 0.25, "2": 0.25, "": 0.5}, 1.5),
        (Scale((1, 2)), {}, None),
    ],
)
def test_the_expected_level_of_a_scale(scale: Scale, shares: dict[str, float], level: float | None) -> None:
    assert scale.expected(shares) == level


def test_a_scale_answers_with_its_value() -> None:
    form = Form((Question("stars", "", Scale((1, 2, 3))),))
    assert form.answer({"stars": Given("3", {"3": 0.5})}) == ('{"stars":3}', {"stars": {"3": 0.5}})


def test_open_fields_are_named() -> None:
    assert Form((TEAM, Question("reason", "", Value({"type": "string"})))).open_fields == ["reason"]
