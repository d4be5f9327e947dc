"""A YAML file that cannot be read is told in words, with the line that is wrong."""

from __future__ import annotations

import pytest
import yaml

from promptmill.config.parameter_file import _yaml_problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openai:\n  model_name: m\n    base_url: x\n", "Line 3 has a colon at a wrong place"),
        (
            "openai:\n    model_name: m\n  base_url: x\n",
            "Line 3 does not fit the block from line 1: correct its indent",
        ),
        ("openai: {model_name: m\nsystem_prompt: x\n", "The { or [ in line 1 is not closed"),
        ("a: [1, 2", "[ in line 1 is not closed"),
        ("a: {b: ${C}}", "inside {…}, put `${…}` between quotes"),
        ('a: "x\nb: y\n', "A quotation mark in line 1 is not closed"),
        ("a: 1\n\tb: 2\n", "Line 2 is indented with a tab"),
        ("a: @x", "A value in line 1 begins with a character"),
        ("a: *x", "A value in line 1 begins with a character"),
        ("a: Say: yes", "put a value with a colon between quotes"),
        ("backend openai\na: x", "the line above lacks a colon with a space after it"),
        ("a: b\nc d\ne: f", "Line 2 is not `key: value`"),
        ("a: 'it's'", "the whole of a value between quotes"),
        ("a:\n  b: 1\n  model_name:qwen3:8b\n", "Line 3 is not `key: value`: the colon with a space after it"),
        ("a: !foo x", "Line 1, column 4, is not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, said):
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load(text)
    told = _yaml_problem(caught.value)
    assert said in told
    assert told.endswith(".")
