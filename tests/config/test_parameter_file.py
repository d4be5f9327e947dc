"""A YAML file that cannot be read is told in words, with the line that is wrong."""

from __future__ import annotations

import pytest
import yaml

from promptmill.config.parameter_file import _yaml_problem, parsed


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


@pytest.mark.parametrize(
    "text",
    ["01067", "010", "12:30", "190:20:30", "1_000", "0b11", "0x1F", "+49", "-0", "2024-01-05", "2024-01-05 10:00:00"],
)
def test_what_only_old_yaml_takes_for_a_number_or_a_date_is_a_text(text):
    assert parsed(f"a: [{text}]") == {"a": [text]}


@pytest.mark.parametrize("number", [0, -5, 12345678901234567890, 1.5, 0.1])
def test_a_number_is_a_number(number):
    assert parsed(f"a: {number}") == {"a": number}


@pytest.mark.parametrize("key", ["choices", "enum", "required", "examples"])
@pytest.mark.parametrize("label", ["yes", "no", "on", "Off", "1.10", ".5", "1.", "1_0.5", "1:30.5", ".inf"])
def test_a_label_is_as_it_is_written(key, label):
    assert parsed(f"{key}: [{label}]") == {key: [label]}


def test_a_constant_is_as_it_is_written():
    assert parsed("const: no") == {"const": "no"}


def test_labels_may_be_numbers_and_booleans():
    assert parsed("enum: [1, 2.5, true, null]") == {"enum": [1, 2.5, True, None]}


def test_a_value_elsewhere_may_be_yes():
    assert parsed("thinking: yes") == {"thinking": True}


def test_a_key_is_as_it_is_written():
    assert list(parsed("{yes: a, 1.10: b, 01: c, 5: d, null: e}")) == ["yes", "1.10", "01", 5, "null"]


def test_keys_of_a_merged_block_are_kept():
    assert parsed("{a: &a {on: 1}, b: {<<: *a, off: 2}}")["b"] == {"on": 1, "off": 2}
