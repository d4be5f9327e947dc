"""A choice is found in an answer, in whatever form it is written."""

from __future__ import annotations

import json

import pytest

from promptmill.answers.choices import Choices, field_choices_of
from promptmill.core.bounds import LONGEST_ANSWER


@pytest.mark.parametrize(
    ("choices", "written"),
    [
        *(
            (["true", "false"], text)
            for text in ("true", "True", "TRUE.", '"true"', '{"answer": true}', "```\ntrue\n```")
        ),
        *((["null", "other"], text) for text in ("null", '{"answer": null}')),
        *((["1.5", "2.5"], text) for text in ("1.5", '{"answer": 1.5}')),
        *((["1e3", "2e3"], text) for text in ("1e3", '{"answer": 1e3}')),
        *((["1.0", "1"], text) for text in ("1.0", '{"answer": 1.0}')),
        *((["NaN", "0"], text) for text in ("NaN", '{"answer": NaN}')),
        (["36893488147419103233", "0"], '{"answer": 36893488147419103233}'),
        *((["[]", "{}"], text) for text in ("[]", " []\n", "```\n[] \n```")),
        (["```\na\n```", "a"], "```\na\n```"),
        (['{"a": 1}', "b"], '{"a": 1}'),
        (["ne\u0301gatif", "positif"], "n\u00e9gatif"),
        (["n\u00e9gatif", "positif"], "Ne\u0301gatif."),
        (["正面", "负面"], "正面。"),
        *((["```\na\n```", "b"], text) for text in ("```\na\n```", '{"answer": "```\\na\\n```"}')),
    ],
)
def test_a_choice_may_be_a_word_or_a_number_of_json(choices, written):
    assert Choices(choices).chosen(written) == choices[0]


@pytest.mark.parametrize(
    "choices",
    [
        *([" a", "a.", "A"], [" a", "a", "a "], ["```\na\n```", "a"], ['"a"', "a", "'a'"]),
        *(
            ["null", "None", "NULL"],
            ["true", "True", "1"],
            ["<think>a</think>", "a"],
            ["\u00e9", "e\u0301"],
            ["*a*", "a"],
        ),
    ],
)
def test_each_of_similar_choices_is_found_in_an_answer_of_the_schema(choices):
    known = Choices(choices)
    assert [known.chosen(json.dumps({"answer": choice})) for choice in choices] == choices


@pytest.mark.parametrize("language", ["", "json", "JSON", " json", "json5", "JSON5", "jsonc", "JSONC"])
def test_a_choice_in_a_code_fence_is_read_without_the_name_of_its_language(language):
    assert Choices(["yes", "no"]).chosen(f'So:\n```{language}\n"no"\n```') == "no"


def test_a_choice_in_a_code_fence_behind_another_object_is_read():
    assert Choices(["yes", "no"]).chosen('{"thought": "yes"} So:\n```json\n{"answer": "no"}\n```') == "no"


def test_two_code_fences_with_several_choices_are_in_doubt():
    assert Choices(["yes", "no"]).chosen("```\nno\n```\n```\nyes\n```") == ""
    assert Choices(["yes", "no"]).chosen("```\nno\n```\nSo:\n```\nno \n```") == "no"


def test_a_number_that_is_written_otherwise_is_not_the_choice():
    assert Choices(["1.5", "2.5"]).chosen("1.50") == ""


@pytest.mark.parametrize("written", ["pos", "Pos", '"pos', "**pos", "```\npos", "POS "])
def test_the_beginning_of_another_choice_is_in_doubt_if_the_answer_was_cut_off(written):
    choices = Choices(["pos", "positive", "neg"])
    assert choices.chosen(written) == "pos"
    assert choices.chosen(written, complete=False) == ""


def test_a_choice_that_begins_no_other_is_whole_in_an_answer_that_was_cut_off():
    choices = Choices(["pos", "positive", "neg"])
    for written, choice in (("Neg", "neg"), ("positive", "positive"), ('{"answer": "pos"}', "pos"), ("ne", "")):
        assert choices.chosen(written, complete=False) == choice


@pytest.mark.parametrize(
    "written",
    ['{"a": "yes", "b": "no"}', '{"answer": ["yes"]}', "[1]", "[]", "{}", "5", "yes or no", "It is not yes.", ""],
)
def test_an_answer_that_names_no_choice_or_several_is_in_doubt(written):
    assert Choices(["yes", "no"]).chosen(written) == ""


def test_a_choice_among_other_fields_is_that_of_the_field_that_was_asked_for():
    assert Choices(["yes", "no"]).chosen('{"why": "yes", "answer": "no"}') == "no"


def test_choices_that_differ_by_case_are_told_apart():
    choices = Choices(["IT", "it"])
    assert choices.chosen("It") == ""
    assert choices.chosen('{"answer": " it"}') == "it"


def test_a_choice_of_json_is_read_with_blanks_around_it():
    assert Choices(["[]", "{}"]).chosen(" {}\n") == "{}"


def test_an_answer_of_the_longest_length_has_a_choice():
    choices = Choices(["yes", "no"])
    assert choices.chosen("no" + " " * (LONGEST_ANSWER - 2)) == "no"
    assert choices.chosen("no" + " " * (LONGEST_ANSWER - 1)) == ""


def test_choices_are_asked_for_as_an_object_with_one_field():
    choices = Choices(["n\u00e9gatif", 'say "a"'])
    assert choices.OPENING == '{"answer": "'
    assert [*choices.endings.values()] == ['n\u00e9gatif"}', 'say \\"a\\""}']
    assert choices.response_format["json_schema"]["schema"] == {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": ["n\u00e9gatif", 'say "a"']}},
        "required": ["answer"],
        "additionalProperties": False,
    }


def test_an_answer_is_complete_when_one_choice_is_possible():
    choices = Choices(["pos", "positive", "neg"])
    assert choices.possible("po") == ["pos", "positive"]
    assert choices.completed("po") is None
    assert choices.completed("posi") == '{"answer": "positive"}'
    assert choices.completed('pos"') == '{"answer": "pos"}'
    assert choices.completed("x") is None


def test_the_problem_of_an_answer_names_the_choices_and_its_beginning():
    assert Choices(["yes", "no"]).why_none("I  do\nnot know") == (
        "is none of the choices yes, no; it begins with 'I do not know'"
    )
    assert Choices(["yes", "no"]).why_none(" ") == "is none of the choices yes, no; it is empty"
    problem = Choices(["x" * 149, "y" * 149]).why_none("z" * 100)
    assert problem == f"is none of the choices {'x' * 149}, {'y' * 149}; it begins with '{'z' * 60}'"
    assert f"{'x' * 149}, {'y' * 149}…; it" in Choices(["x" * 149, "y" * 149, "z"]).why_none("a")


@pytest.mark.parametrize(("written", "choice"), [("**", "**"), ("***", ""), ("", ""), ("x.", "x")])
def test_a_choice_of_marks_alone_is_not_every_answer_of_marks(written, choice):
    assert Choices(["**", "x"]).chosen(written) == choice


def test_the_form_of_a_field_is_an_object_with_one_of_its_values_alone():
    form = field_choices_of("stars", (("1", 1), ("not stated", None))).response_format
    fields = {"stars": {"enum": [1, None]}}
    schema = {"type": "object", "properties": fields, "required": ["stars"], "additionalProperties": False}
    assert form["json_schema"]["schema"] == schema


def test_the_values_of_a_field_are_written_as_json():
    texts = field_choices_of('a "b"', (("low", "low"), ("", ""), ("ö", "ö")))
    assert (texts.opening, texts.endings) == ('{"a \\"b\\"": "', {"low": 'low"}', "": '"}', "ö": 'ö"}'})
    others = field_choices_of("stars", (("1", 1), ("yes", True), ("not stated", None), ("x", "x")))
    assert (others.opening, [*others.endings.values()]) == ('{"stars":', [" 1}", " true}", " null}", ' "x"}'])
    assert texts.decided(["low"]) == '{"a \\"b\\"": "low"}'
    for choices in (texts, others):
        for text, ending in choices.endings.items():
            assert choices.given(choices.opening + ending) == text
    assert others.given('{"stars":1}') == "1"
    for wrong in ('{"stars": "1"}', '{"stars": 1.0}', '{"other": 1}', "[1]", "1", "", "[" * 100_000):
        assert others.given(wrong) is None
