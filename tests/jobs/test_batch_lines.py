"""Batch files in OpenAI's format, as providers' documentation has it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from promptmill.config.backends import OTHER_PATHS
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.rows import batch_lines
from promptmill.jobs.rows.row_lines import RowLimits, RowReader

USER = {"role": "user", "content": "Is water wet?"}
AZURE = {"custom_id": "a", "method": "POST", "url": "/chat/completions", "body": {"model": "gpt", "messages": [USER]}}
MISTRAL = {"custom_id": "0", "body": {"max_tokens": 100, "messages": [USER]}}


def body(line: dict[str, Any]) -> dict[str, Any]:
    """Return the request of the line in OpenAI's form."""
    path, found = batch_lines.read(line, "line 1")
    assert path == batch_lines.CHAT
    return dict(found)


def test_azures_and_mistrals_lines_are_openais_with_another_or_no_url():
    assert body(AZURE) == AZURE["body"]
    assert body(MISTRAL) == MISTRAL["body"]
    assert batch_lines.is_batch(MISTRAL)


def test_lines_of_other_apis_are_no_requests():
    assert not batch_lines.is_batch({"custom_id": "a", "params": {"messages": [USER]}})
    assert not batch_lines.is_batch({"key": "k", "request": {"contents": []}})


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ({**AZURE, "url": "/v1/files"}, Code.UNSUPPORTED, "line 1: only POST to /v1/chat/completions, "),
        ({**AZURE, "custom_id": 7}, Code.INVALID_INPUT, "line 1: custom_id is a number"),
        ({"custom_id": "a", "params": {}}, Code.INVALID_INPUT, "line 1: body is null"),
    ],
)
def test_an_unsupported_field_is_an_error(line, code, said):
    with pytest.raises(PromptmillError, match=said) as caught:
        batch_lines.read(line, "line 1")
    assert caught.value.code is code


def test_a_line_that_is_not_a_chat_goes_to_its_own_path():
    line = {
        "custom_id": "e",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "m", "input": '"url":"/chat/completions"'},
    }
    asked = RowReader("batch", limits=RowLimits(paths=OTHER_PATHS)).request(3, json.dumps(line).encode(), 1)
    assert (asked.key, asked.attempts, asked.path, asked.extra) == (3, 1, "/embeddings", line["body"])
    with pytest.raises(PromptmillError, match="the model's backend has no /v1/embeddings"):
        RowReader("batch", limits=RowLimits(only_model="local")).request(3, json.dumps(line).encode())
