"""Error bodies are read within bounds."""

from __future__ import annotations

import json

import pytest

from promptmill.backends.openai import error_body
from promptmill.backends.openai.error_body import read_error


@pytest.mark.parametrize(
    "payload",
    [
        "<script" * 14_000,
        {"error": {"message": "sk-" * 30_000}},
        {"error": [{"message": "a" * 900, "detail": ["'" + "b" * 900] * 50} for _ in range(50)]},
        {"errors": json.dumps({"message": "x" * 90_000})},
        {f"k{n}": "x" * 900 for n in range(100_000)},
    ],
    ids=["page", "keys", "many leaves", "nested text", "many fields"],
)
def test_only_the_start_of_a_long_error_is_read(payload):
    body = read_error(payload)
    assert max(len(body.shown), len(body.text), len(body.words)) <= 16 * 1024


def test_a_page_with_an_unclosed_script_is_read_up_to_the_script():
    body = read_error("<html><title>Busy</title><p>rate limit</p><script>var wait = 5;")
    assert body.shown == "Busy"
    assert body.words.split() == ["busy", "rate", "limit"]


def test_each_level_of_a_nested_error_is_read_once(monkeypatch):
    calls = []
    read = error_body._message
    monkeypatch.setattr(error_body, "_message", lambda value: calls.append(value) or read(value))
    payload: dict[str, object] = {"message": "the cause"}
    for _ in range(40):
        payload = {"inner": payload}
    assert read_error(payload).shown == "the cause"
    assert len(calls) < 40 * 20
