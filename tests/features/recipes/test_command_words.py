"""The entries of a step as the words of its command."""

from __future__ import annotations

from typing import Any

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.features.recipes.recipe import Recipe


@pytest.fixture
def words(tmp_path):
    """Return the words of the first step of a recipe, without its files."""

    def read(options: str, command: str = "bulk: [in.csv, out.csv]", shared: str = "") -> list[str]:
        file = tmp_path / "recipe.yaml"
        file.write_text(f"{shared}\nsteps:\n  - {command}\n{options}")
        recipe = Recipe.read(file, {})
        step = recipe.steps[0]
        return [word for word in step.words[1:] if not word.endswith(".csv")]

    return read


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("choices: [yes, no, on, 1.0, 2026-01-01]", ["--choices=yes,no,on,1.0,2026-01-01"]),
        ("choices: ['a, b', c]", ['--choices=["a, b","c"]']),
        ("choices: {yes: is late, no: 3}", ['--choices={"yes":"is late","no":3}']),
        ("prompt: {short: 'a', long: 'b'}", ["--prompt=short=a", "--prompt=long=b"]),
        ("prompt: |\n      two\n      lines", ["--prompt=two\nlines"]),
        ("model: [a, b]", ["--model=a", "--model=b"]),
        ("columns: [answer, error]", ["--columns=answer,error"]),
        ("schema: {properties: {size: {enum: [yes, true]}, n: {maximum: 3}}}", None),
        (
            "schema: {properties: {on: {enum: [no, 010, 12:30, 1.10], const: 007}}}",
            ['--schema={"properties":{"on":{"enum":["no","010","12:30","1.10"],"const":"007"}}}'],
        ),
        ("max-tokens: 5", ["--max-tokens=5"]),
        ("skip_empty: yes", ["--skip-empty"]),
        ("skip_empty: false", []),
        ("student: true", ["--student"]),
        ("student: words", ["--student=words"]),
        ("recall: {praise: 90%}", ["--recall=praise=90%"]),
        ("set: {price: '{input: 1}'}", ["--set=price={input: 1}"]),
        ("limit: null", []),
    ],
)
def test_a_value_becomes_the_words_of_the_command_line(words, option, expected):
    schema = '--schema={"properties":{"size":{"enum":["yes",true]},"n":{"maximum":3}}}'
    assert words(f"    {option}\n") == ([schema] if expected is None else expected)


def test_an_option_of_a_step_replaces_those_of_all_steps_that_exclude_it(words):
    shared = "prompt: all\nmodel: a\nlimit: 3"
    assert words("    prompt_file: one.txt\n    model: b\n", shared=shared) == [
        "--limit=3",
        "--prompt-file=one.txt",
        "--model=b",
    ]
    assert words("    limit: null\n", shared=shared) == ["--prompt=all", "--model=a"]


def test_options_without_effect_are_not_passed_on(words):
    shared = "model: a\nmax_cost: 3"
    assert words("", "compare: [a.csv, b.csv]", shared) == []
    assert words("    criterion: is better\n", "compare: [a.csv, b.csv]", shared) == [
        "--model=a",
        "--max-cost=3",
        "--criterion=is better",
    ]


@pytest.mark.parametrize("value", ["{a: 1}", "[a]"])
def test_a_text_is_no_list(words, value):
    with pytest.raises(PromptmillError, match="line 4: system should be a text or a number"):
        words(f"    system: {value}\n")


def test_a_value_that_contains_itself_is_an_error(words: Any) -> None:
    with pytest.raises(PromptmillError, match="schema is nested too deeply"):
        words("    schema: &a {b: *a}\n")
