"""Request bodies: the form in which each provider gets a request for JSON."""

from __future__ import annotations

import orjson
import pytest

from promptmill.answers.schema import asking_for
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import PLAIN, profile_named
from promptmill.backends.openai.request import RequestEncoder
from promptmill.backends.openai.schema_forms import asked_of
from promptmill.core.request import Conversation, Message, Request, Sampling

pytestmark = pytest.mark.usefixtures("either_way")

OPEN = {"type": "object", "properties": {"n": {"type": "integer"}}}
ASKED = asking_for(OPEN)


def _sent(profile, *messages, wanted=ASKED):
    endpoint = Endpoint("http://127.0.0.1:1/v1/chat/completions", "here", {}, (), profile, "")
    encoder = RequestEncoder(endpoint, "m", enable_thinking=None, stream=False)
    turns = tuple(Message(role, text) for role, text in messages) or (Message("user", "Hi"),)
    request = Request(0, Conversation(turns), Sampling(response_format=wanted))
    body = encoder.encode(encoder.head(request), request.conversation, {})
    assert isinstance(body, bytes)
    return orjson.loads(body)


def test_an_unlisted_host_gets_the_schema_unchanged():
    assert _sent(PLAIN)["response_format"] == ASKED


def test_openai_gets_the_strict_form():
    schema = _sent(profile_named("openai"))["response_format"]["json_schema"]["schema"]
    assert (schema["required"], schema["additionalProperties"]) == (["n"], False)


def test_a_schema_that_strict_mode_cannot_express_is_sent_without_strict():
    wanted = asking_for({"type": "object", "additionalProperties": {"type": "integer"}})
    sent = _sent(profile_named("openai"), wanted=wanted)["response_format"]["json_schema"]
    assert sent == {**wanted["json_schema"], "strict": False}


@pytest.mark.parametrize("name", ["deepseek", "groq", "dashscope"])
def test_providers_with_only_json_mode_get_it_and_the_schema_in_the_prompt(name):
    body = _sent(profile_named(name))
    assert body["response_format"] == {"type": "json_object"}
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
    assert '"integer"' in body["messages"][0]["content"]
    assert "JSON" in body["messages"][0]["content"]  # DeepSeek refuses JSON mode without the word


def test_anthropics_endpoint_which_ignores_response_format_gets_the_schema_in_the_prompt():
    body = _sent(profile_named("anthropic"), ("system", "Be brief."), ("user", "Hi"))
    assert "response_format" not in body
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"].startswith("Be brief.\n\nAnswer with JSON alone")


def test_a_response_format_for_text_is_unchanged():
    for form in ("strict", "schema", "object", "words"):
        assert asked_of(form, {"type": "text"}) == ({"type": "text"}, "")
