"""Request bodies: the form in which each provider gets a request for JSON."""

from __future__ import annotations

import orjson
import pytest

from promptmill.answers.response_format import asking_for
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import PLAIN, profile_named
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.backends.openai.schema_forms import asked_of, grammar_form
from promptmill.core.request import Conversation, Message, Request, Sampling

pytestmark = pytest.mark.usefixtures("either_way")

OPEN = {"type": "object", "properties": {"n": {"type": "integer"}}}
ASKED = asking_for(OPEN)


def _sent(profile, *messages, wanted=ASKED):
    endpoint = Endpoint("http://127.0.0.1:1/v1/chat/completions", "here", {}, (), profile, "")
    encoder = RequestEncoder(endpoint, "m", enable_thinking=None, stream=False)
    turns = tuple(Message(role, text) for role, text in messages) or (Message("user", "Hi"),)
    request = Request(0, Conversation(turns), Sampling(response_format=wanted))
    return orjson.loads(encoder.encode(encoder.head(request), request.conversation, {}))


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
    for name in ("openai", "plain", "llama.cpp", "lmstudio", "deepseek", "anthropic"):
        assert asked_of(profile_named(name).json, {"type": "text"}) == ({"type": "text"}, "")


def _city(**more):
    return asking_for({"type": "object", "properties": {"city": {"type": "string", **more}}, "required": ["city"]})


@pytest.mark.parametrize("name", ["llama.cpp", "lmstudio", "ollama", "local"])
@pytest.mark.parametrize(
    "more",
    [
        {"maxLength": 4000},
        {"minLength": 2000},
        {"pattern": "[A-Z]"},
        {"pattern": r"^\d{4}$"},
        {"pattern": r"^[\w.]+$"},
        {"pattern": "^(?=.*a).*$"},
        {"pattern": "^(?P<year>[0-9]{4})$"},
        {"pattern": "^[a-z]{1,2500}$"},
    ],
)
def test_a_keyword_that_no_grammar_of_llama_cpp_takes_is_described_in_words(name, more):
    body = _sent(profile_named(name), wanted=_city(**more))
    assert body["response_format"]["json_schema"]["schema"] == _city()["json_schema"]["schema"]
    assert orjson.dumps(more)[1:-1].decode() in body["messages"][0]["content"]


@pytest.mark.parametrize(
    "more",
    [
        {"maxLength": 1999},
        {"pattern": "^[A-Z]{2}-(?:[0-9]{3}|x)$"},
        {"pattern": r"^a\.b$"},
        {"enum": ["a", "b"]},
        {"format": "date"},
    ],
)
def test_a_schema_that_a_grammar_takes_is_sent_unchanged(more):
    body = _sent(profile_named("llama.cpp"), wanted=_city(**more))
    assert body["response_format"] == _city(**more)
    assert [turn["role"] for turn in body["messages"]] == ["user"]


def test_a_reference_that_leaves_the_schema_is_described_in_words_alone():
    body = _sent(profile_named("llama.cpp"), wanted=asking_for({"type": "array", "items": {"$ref": "#"}}))
    assert "response_format" not in body
    assert '"$ref":"#"' in body["messages"][0]["content"]


def test_lists_tuples_and_free_values_have_the_form_of_a_grammar():
    kept = {"type": "array", "prefixItems": [{"type": "string"}]}
    found = grammar_form(
        {
            "type": "object",
            "properties": {
                "tuple": kept | {"items": False},
                "long": {"type": "array", "items": {"type": "integer"}, "maxItems": 700},
                "short": {"type": "array", "items": {"type": "integer"}, "maxItems": 100},
                "any": {"title": "Any"},
                "all": {"allOf": [{"type": "string", "maxLength": 5000}]},
            },
        }
    )
    assert found is not None
    fields = found["properties"]
    assert fields["tuple"] == kept
    assert "maxItems" not in fields["long"]
    assert fields["short"]["maxItems"] == 100
    assert "string" in fields["any"]["type"]
    assert fields["all"] == {"allOf": [{"type": "string"}]}


def test_lm_studio_gets_a_schema_in_place_of_json_mode():
    sent = _sent(profile_named("lmstudio"), wanted={"type": "json_object"})["response_format"]
    assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", {"type": "object"})
    assert _sent(profile_named("local"), wanted={"type": "json_object"})["response_format"] == {"type": "json_object"}
