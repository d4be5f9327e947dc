"""A choice is found in an answer, in whatever form it is written."""

from __future__ import annotations

import pytest

from promptmill.answers.choices import Choices


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
        (["[]", "{}"], "[]"),
        (['{"a": 1}', "b"], '{"a": 1}'),
        (["ne\u0301gatif", "positif"], "n\u00e9gatif"),
        (["n\u00e9gatif", "positif"], "Ne\u0301gatif."),
        (["正面", "负面"], "正面。"),
    ],
)
def test_a_choice_may_be_a_word_or_a_number_of_json(choices, written):
    assert Choices(choices).chosen(written) == choices[0]


@pytest.mark.parametrize("language", ["", "json", "JSON", " json", "json5", "JSON5", "jsonc", "JSONC"])
def test_a_choice_in_a_code_fence_is_read_without_the_name_of_its_language(language):
    assert Choices(["yes", "no"]).chosen(f'So:\n```{language}\n"no"\n```') == "no"


def test_two_code_fences_with_several_choices_are_in_doubt():
    assert Choices(["yes", "no"]).chosen("```\nno\n```\n```\nyes\n```") == ""
    assert Choices(["yes", "no"]).chosen("```\nno\n```\nSo:\n```\nno\n```") == "no"


def test_a_number_that_is_written_otherwise_is_not_the_choice():
    assert Choices(["1.5", "2.5"]).chosen("1.50") == ""
