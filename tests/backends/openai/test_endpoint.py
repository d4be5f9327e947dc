"""`base_url` and keys as users write them: the intended URL, and the message for each mistake."""

from __future__ import annotations

import pytest

from fakes import openai_config
from promptmill.backends.openai.endpoint import endpoints, parsed
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
    (endpoint,) = endpoints(openai_config(written), {})
    assert endpoint.url == (asked or f"{written}/chat/completions")


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
