"""The text of a key: mistakes are explained, and placeholders are recognized."""

from __future__ import annotations

import pytest

from promptmill.backends.openai.key_text import is_placeholder_key, key_problem


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("\u201csk-abc\u201d", "quotes of a web page"),
        ('"sk-abc"', "is enclosed in quotes"),
        ("'sk-abc", "is enclosed in quotes"),
        ("Bearer sk-abc", "`Bearer `"),
        ("export OPENAI_API_KEY=sk-abc", "NAME=KEY"),
        ("OPENAI_API_KEY=sk-abc", "NAME=KEY"),
        ("sk-abc\nsk-def", "more than one line"),
        ("sk\u2013abc", "a character that no key has"),
    ],
)
def test_a_badly_pasted_key_is_explained_and_not_shown(key, told):
    assert told in key_problem(key)
    assert "abc" not in key_problem(key)


@pytest.mark.parametrize(
    "key", ["sk-abc_DEF-123", "abc==", "gsk_x", "a.b.c", "token-abc123", "EMPTY", "not needed for a local LLM"]
)
def test_valid_keys_pass(key):
    assert key_problem(key) == ""


@pytest.mark.parametrize("key", ["sk-...", "<YOUR_KEY>", "your-api-key-here", "sk-xxxxx", "YOUR_API_KEY", "sk-…"])
def test_the_placeholder_of_an_example_is_recognized(key):
    assert is_placeholder_key(key)


@pytest.mark.parametrize(
    "key",
    ["sk-proj-4fR9aQ", "EMPTY", "hunter2", "my-prod-8f3a", "team-token", "sk-or-v1-0f1e2d3c4b5a69788796a5b4c3d2e1f0"],
)
def test_a_real_key_is_not_taken_for_a_placeholder(key):
    assert not is_placeholder_key(key)
