"""Batch files in the formats of the providers' documentation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from promptmill.backends import batch_lines, rows
from promptmill.config.backends import OTHER_PATHS
from promptmill.core.errors import Code, PromptmillError

USER = {"role": "user", "content": "Is water wet?"}
AZURE = {"custom_id": "a", "method": "POST", "url": "/chat/completions", "body": {"model": "gpt", "messages": [USER]}}
MISTRAL = {"custom_id": "0", "body": {"max_tokens": 100, "messages": [USER]}}
ANTHROPIC = {
    "custom_id": "first",
    "params": {
        "model": "claude",
        "max_tokens": 64,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "stop_sequences": ["END"],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBOR"}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"x": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "a cat"}]},
        ],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
        "metadata": {"user_id": "u"},
    },
}
GEMINI = {
    "key": "request_1",
    "request": {
        "system_instruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}, {"inlineData": {"mimeType": "image/png", "data": "iVBOR"}}]},
            {"role": "model", "parts": [{"text": "Hello."}]},
            {"role": "user", "parts": [{"text": "List colours."}]},
        ],
        "generationConfig": {
            "temperature": 0.7,
            "maxOutputTokens": 50,
            "responseMimeType": "application/json",
            "responseSchema": {"type": "ARRAY", "items": {"type": "STRING"}},
            "thinkingConfig": {"thinkingBudget": 0},
        },
        "safetySettings": [],
    },
}


def body(line: dict[str, Any]) -> dict[str, Any]:
    """Return the request of the line in OpenAI's form."""
    path, found = batch_lines.read(line, "line 1")
    assert path == batch_lines.CHAT
    return dict(found)


def test_azures_and_mistrals_lines_are_openais_with_another_or_no_url():
    assert body(AZURE) == AZURE["body"]
    assert body(MISTRAL) == MISTRAL["body"]
    assert batch_lines.is_batch(MISTRAL)


def test_a_line_of_anthropics_is_read_whole():
    assert batch_lines.is_batch(ANTHROPIC)
    found = body(ANTHROPIC)
    system, seen, called, result = found.pop("messages")
    assert system == {"role": "system", "content": "Be brief."}
    assert seen["content"][0] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}}
    assert called["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"x":1}'}
    assert result == {"role": "tool", "tool_call_id": "t1", "content": "a cat"}
    function = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
    assert found == {
        "model": "claude",
        "max_tokens": 64,
        "stop": ["END"],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
    }


def test_a_line_of_geminis_is_read_whole():
    assert batch_lines.is_batch(GEMINI)
    found = body(GEMINI)
    messages = found.pop("messages")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"][1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}}
    schema = {"type": "array", "items": {"type": "string"}}
    assert found == {
        "temperature": 0.7,
        "max_tokens": 50,
        "enable_thinking": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    }


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ({**AZURE, "url": "/v1/files"}, Code.UNSUPPORTED, "line 1: only POST to /v1/chat/completions, "),
        ({**AZURE, "custom_id": 7}, Code.INVALID_INPUT, "line 1: custom_id is a number"),
        ({"custom_id": "a", "params": {"mcp_servers": []}}, Code.UNSUPPORTED, "params.mcp_servers is not supported"),
        ({"custom_id": "a", "params": {"messages": [5]}}, Code.INVALID_INPUT, "line 1 does not have the format"),
        ({"key": "k", "request": {"contents": [], "cachedContent": "c"}}, Code.UNSUPPORTED, "request.cachedContent"),
        (
            {"key": "k", "request": {"contents": [], "tools": [{"googleSearch": {}}]}},
            Code.UNSUPPORTED,
            "'googleSearch' runs only at its provider",
        ),
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
    asked = rows.RowReader("batch", paths=OTHER_PATHS).request(3, json.dumps(line).encode(), 1)
    assert (asked.key, asked.attempts, asked.path, asked.extra) == (3, 1, "/embeddings", line["body"])
    with pytest.raises(PromptmillError, match="only the openai and vllm backends can run"):
        rows.RowReader("batch", model="local").request(3, json.dumps(line).encode())
