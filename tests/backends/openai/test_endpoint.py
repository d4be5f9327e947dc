"""`base_url` and keys as users write them: the intended URL, and the message for each mistake."""

from __future__ import annotations

import pytest

from promptmill.backends.openai.endpoint import is_placeholder_key, key_problem, parsed
from promptmill.core.errors import PromptmillError


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/chat/completions/", "http://localhost:8000/v1/chat/completions"),
        (" https://api.openai.com/v1\n", "https://api.openai.com/v1/chat/completions"),
        ("http://http:8000/v1", "http://http:8000/v1/chat/completions"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
        ("https://gateway.ai.cloudflare.com/v1/a/b/compat", None),
    ],
)
def test_a_base_url_as_users_write_it_becomes_the_url_of_chats(written, asked):
    assert parsed(written).geturl() == (asked or f"{written}/chat/completions")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("", "is empty; write the server's address"),
        ("http:/127.0.0.1:8000", "did you mean http://127.0.0.1:8000?"),
        ("http:localhost:8000", "did you mean http://localhost:8000?"),
        ("http//localhost:8000/v1", "did you mean http://localhost:8000/v1?"),
        ("https:///api.openai.com", "did you mean https://api.openai.com?"),
        ("http://http://localhost:8000", "did you mean http://localhost:8000?"),
        ("htp://localhost:8000", "did you mean http://localhost:8000?"),
        ("htps://api.openai.com/v1", "did you mean https://api.openai.com/v1?"),
        ("ws://localhost:8000", "should start with http:// or https://"),
        ("localhost:port/v1", "localhost:port/v1 has a port that is not a number"),
        ("http://localhost:80OO/v1", "localhost:80OO/v1 has a port that is not a number"),
        ("https://me:hunter2/v1", "base_url: has a port that is not a number"),
        ("http://localhost:800000", "port 800000 is above 65535"),
        ("8000", "did you mean localhost:8000?"),
        ("http://local host:8000", "did you mean http://localhost:8000?"),
        ('"http://localhost:8000"', "did you mean http://localhost:8000?"),
        ("<http://localhost:8000>", "did you mean http://localhost:8000?"),
        ("http://localhost:8000/v1/completions", "write http://localhost:8000/v1."),
        ("https://api.openai.com/v1/embeddings", "write https://api.openai.com/v1."),
        ("$BASE_URL", "in a file write ${BASE_URL}."),
    ],
)
def test_a_mistyped_url_is_refused_with_the_likely_intended_one(written, told):
    with pytest.raises(PromptmillError) as raised:
        parsed(written)
    assert raised.value.message.startswith("backend_configs.openai.base_url: ")
    assert told in raised.value.message


@pytest.mark.parametrize(
    "written",
    ["http:/u:hunter2@h", "http://u:hunter2/x@h", "htp://h/?key=hunter2", "http:/h/sk-hunter2hunter2hunter2"],
)
def test_no_password_is_shown(written):
    with pytest.raises(PromptmillError) as raised:
        parsed(written)
    assert "hunter2" not in str(raised.value)


def test_the_beginning_of_a_password_is_no_port():
    with pytest.raises(PromptmillError) as raised:
        parsed("http://user:1234567/ab@host/v1")
    assert "1234567" not in str(raised.value)


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
