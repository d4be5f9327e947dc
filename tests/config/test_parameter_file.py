"""A YAML file that cannot be read is told in words, with the line that is wrong."""

from __future__ import annotations

import pytest
import yaml

from promptmill.config.parameter_file import _yaml_problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openai:\n  model_name: m\n    base_url: x\n", "Line 3 is indented deeper than line 2"),
        ("openai:\n    model_name: m\n  base_url: x\n", "Line 3 is indented less than line 2, by 2 spaces"),
        ("openai: {model_name: m\nsystem_prompt: x\n", "The { in line 1 is not closed before line 2: a }"),
        ("a: [1, 2", "The [ in line 1 is not closed before the file's end"),
        ("a: {b: ${C}}", "inside {…}, put `${…}` between quotes"),
        ('a: "x\nb: y\n', "A quotation mark in line 1 is not closed"),
        ("a: 1\n\tb: 2\n", "Line 2 is indented with a tab"),
        ("a: @x", "begins with @"),
        ("a: *x", "begins with *"),
        ("a: Say: yes", "second colon followed by a space"),
        ("backend openai\na: x", "Line 1 has no colon after its key"),
        ("a: b\nc d\ne: f", "Line 2 is not `key: value`"),
        ("a: 'it's'", "has text after a closing quotation mark"),
        ("a:\n  - b: 1\n    c: 2\n  d: 3", "Line 4 mixes keys with the list from line 2"),
        ("a:\n  b: 1\n  model_name:qwen3:8b\n", "Line 3 needs a space after the colon: model_name: qwen3:8b."),
        ("a:\n  x:y\n  b: 1\n", "Line 2 needs a space after the colon: x: y."),
        ("a: !foo x", "Line 1, column 4, is not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, said):
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load(text)
    told = _yaml_problem(caught.value, text)
    assert said in told
    assert told.endswith(".")
