"""Other APIs than chat completions: what they get, and what becomes of their replies, over real connections."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict
from PIL import Image

from dialect_replies import speaks
from driving import ask, echoes, opened
from fakes import KEY, openai_config, without_rest
from promptmill.answers.response_format import asking_for
from promptmill.backends.openai.chat_completion import StreamPreview
from promptmill.backends.openai.diagnosis import diagnose
from promptmill.backends.openai.dialects import DIALECTS
from promptmill.backends.openai.discovery import connected, read_models
from promptmill.backends.openai.endpoint import Endpoint, endpoints
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.providers import PLAIN, profile_named
from promptmill.backends.openai.reply import ReplyRequest, read_other_response, read_response
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.backends.openai.schema_forms import closed_form, google_form, openapi_form
from promptmill.backends.protocol import Call, Completion, Facts, Growing, Usage
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_messages
from replies import attempts, raw

NAMES = ("anthropic", "gemini", "responses")
_PATHS = {"anthropic": "/messages", "gemini": "/models", "responses": "/responses"}
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look it up.", "parameters": {"type": "object", "properties": {}}},
}
DATA = b'"data:image/png;base64,AAAA"'


def _endpoint(name: str, provider: str = "") -> Endpoint:
    usual = {"anthropic": "anthropic", "gemini": "google", "responses": "openai"}
    profile = PLAIN if provider == "plain" else profile_named(provider or usual[name])
    return Endpoint(f"http://x/v1{_PATHS[name]}", "x", {}, (), profile, dialect=name)


def written(
    name: str,
    *messages: Any,
    model: str = "m",
    images: dict[str, bytes] | None = None,
    extra: Any = None,
    stream: bool = False,
    **sampling: Any,
) -> tuple[dict[str, Any], list[str], str]:
    """Return the body of a request, the parameters that were refused, and its URL."""
    turns = list(messages) or ["Hi"]
    turns = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]
    request = Request(0, conversation_from_messages(turns, "it"), Sampling(**sampling), extra or {})
    encoder = RequestEncoder(_endpoint(name), model, enable_thinking=None, stream=stream)
    head = encoder.head(request)
    body = encoder.encode(head, request.conversation, images or {})
    return orjson.loads(body), head.refused, head.endpoint.url


def read(name: str, body: Any, status: int = 200, headers: Any = None, **options: Any) -> Completion | RetryDecision:
    """Return what a response means."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return read_response(status, CIMultiDict(headers or {}), data, _endpoint(name), ReplyRequest(**options))


def answered(name: str, body: Any, **options: Any) -> Completion:
    """Return the answer in a response."""
    found = read(name, body, **options)
    assert isinstance(found, Completion), found
    return found


# Where requests go, and with which key


@pytest.mark.parametrize(
    ("block", "dialect", "url", "key_header"),
    [
        ({"provider": "anthropic"}, "anthropic", "https://api.anthropic.com/v1/messages", "x-api-key"),
        ({"base_url": "https://api.anthropic.com"}, "anthropic", "https://api.anthropic.com/v1/messages", "x-api-key"),
        (
            {"provider": "claude", "dialect": "openai"},
            "openai",
            "https://api.anthropic.com/v1/chat/completions",
            "Authorization",
        ),
        (
            {"provider": "gemini"},
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta/models",
            "x-goog-api-key",
        ),
        (
            {"base_url": "https://generativelanguage.googleapis.com"},
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta/models",
            "x-goog-api-key",
        ),
        (
            {"base_url": "https://generativelanguage.googleapis.com/v1beta/openai/"},
            "openai",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
            "Authorization",
        ),
        (
            {"provider": "gemini", "dialect": "openai"},
            "openai",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
            "Authorization",
        ),
        ({"provider": "openai"}, "openai", "https://api.openai.com/v1/chat/completions", "Authorization"),
        (
            {"provider": "openai", "dialect": "responses"},
            "responses",
            "https://api.openai.com/v1/responses",
            "Authorization",
        ),
        ({"base_url": "http://h:1/v1/responses"}, "responses", "http://h:1/v1/responses", "Authorization"),
        ({"base_url": "http://h:1/v1/messages"}, "anthropic", "http://h:1/v1/messages", "x-api-key"),
        (
            {"base_url": "https://api.deepseek.com/anthropic", "dialect": "anthropic"},
            "anthropic",
            "https://api.deepseek.com/anthropic/v1/messages",
            "x-api-key",
        ),
        ({"base_url": "http://h:1", "dialect": "gemini"}, "gemini", "http://h:1/v1beta/models", "x-goog-api-key"),
        ({"base_url": "http://h:1/x/responses"}, "responses", "http://h:1/x/responses", "Authorization"),
        (
            {"base_url": "http://h:1/v1/messages", "dialect": "openai"},
            "openai",
            "http://h:1/v1/chat/completions",
            "Authorization",
        ),
        ({"base_url": "http://h:1/models"}, "openai", "http://h:1/models/chat/completions", "Authorization"),
    ],
)
def test_each_provider_is_spoken_to_in_its_own_api_unless_told_otherwise(block, dialect, url, key_header):
    config = Configuration(
        {"backend": "openai", "backend_configs": {"openai": {"model_name": "m", "api_key": KEY, **block}}}
    ).config
    (endpoint,) = endpoints(config, {})
    assert (endpoint.dialect, endpoint.url) == (dialect, url)
    assert endpoint.headers[key_header].removeprefix("Bearer ") == KEY
    assert ("anthropic-version" in endpoint.headers) == (dialect == "anthropic")


_FIFTH = {
    "writes": """
from promptmill.backends.openai.dialects.responses import *
NAME, PATH = "fifth", "/fifth"
def base(base):
    return base
""",
    "decides": """
from promptmill.backends.openai.dialects.systemone import DIALECT
class _Fifth(type(DIALECT)):
    NAME, PATH = "fifth", "/fifth"
    def base(self, base):
        return base
DIALECT = _Fifth()
""",
}
_WITH_IT = """
import sys
from importlib.util import find_spec, module_from_spec
spec = find_spec("promptmill.backends.openai.dialects")
spec.submodule_search_locations.append(sys.argv[1])
package = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(package)
from promptmill.backends.openai.endpoint import endpoints
from promptmill.config.configuration import Configuration
for base_url in ("http://h", "http://h/", "http://h/v1", "http://h/v1/fifth", "http://h/v1/chat/completions"):
    block = {"model_name": "m", "base_url": base_url, "dialect": "fifth"}
    (found,) = endpoints(Configuration({"backend": "openai", "backend_configs": {"openai": block}}).config, {})
    print(found.url, found.base_url)
"""


@pytest.mark.parametrize("kind", _FIFTH)
def test_a_dialect_is_one_file(tmp_path, kind):
    (tmp_path / "fifth.py").write_text(_FIFTH[kind])
    command = [sys.executable, "-c", _WITH_IT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    bare, versioned = "http://h/fifth http://h", "http://h/v1/fifth http://h/v1"
    assert done.stdout.splitlines() == [bare, bare, versioned, versioned, versioned], done.stderr


def test_a_server_that_speaks_anthropics_api_gets_the_key_in_both_ways_that_servers_know():
    config = openai_config("http://127.0.0.1:1/v1", dialect="anthropic")
    headers = endpoints(config, {})[0].headers
    assert headers["x-api-key"] == KEY
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_gemini_has_the_model_and_the_way_in_the_url():
    assert written("gemini", model="gemini-x")[2] == "http://x/v1/models/gemini-x:generateContent"
    streamed = written("gemini", model="models/gemini-x", stream=True)
    assert streamed[2] == "http://x/v1/models/gemini-x:streamGenerateContent?alt=sse"
    assert "stream" not in streamed[0]
    assert written("gemini", extra={"model": "tunedModels/a"})[2] == "http://x/v1/tunedModels/a:generateContent"


# Requests


def test_system_messages_become_the_systems_place_of_each_api():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    body, _, _ = written("anthropic", *messages)
    assert body["system"] == "Be brief."
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    body, _, _ = written("anthropic", *messages, {"role": "developer", "content": "In English."})
    assert body["system"] == [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "In English."}]
    body, _, _ = written("gemini", *messages)
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "Hi"}]}]
    body, _, _ = written("responses", *messages)
    assert body["input"] == messages
    assert body["store"] is False


def test_a_conversation_of_a_system_message_alone_is_still_a_request():
    body, _, _ = written("anthropic", {"role": "system", "content": "Say hi."})
    assert body["messages"] == [{"role": "user", "content": "Say hi."}]
    assert "system" not in body


def test_images_are_sent_inside_or_as_urls():
    url = "https://example.com/a.webp"
    content = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    turn = {"role": "user", "content": content}
    images = {"a.png": DATA, url: orjson.dumps(url)}
    assert written("anthropic", turn, images=images)[0]["messages"][0]["content"][1:] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": url}},
    ]
    assert written("gemini", turn, images=images)[0]["contents"][0]["parts"][1:] == [
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"fileData": {"mimeType": "image/webp", "fileUri": url}},
    ]
    assert written("responses", turn, images=images)[0]["input"][0]["content"][1:] == [
        {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AAAA"},
        {"type": "input_image", "detail": "auto", "image_url": url},
    ]


_CALLED = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "look", "arguments": '{"at":"Rome"}'},
                "extra_content": {"google": {"thought_signature": "s1"}},
            },
            {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    {"role": "tool", "tool_call_id": "c2", "content": '{"sky": "grey"}'},
]


def test_tool_calls_and_their_results_keep_their_places():
    body, _, _ = written("anthropic", *_CALLED, extra={"tools": [TOOL], "tool_choice": "required"})
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "Rome"}},
                {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sun"}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c2", "content": '{"sky": "grey"}'}]},
    ]
    schema = TOOL["function"]["parameters"]  # type: ignore[index]
    assert body["tools"] == [{"name": "look", "description": "Look it up.", "input_schema": schema}]
    assert body["tool_choice"] == {"type": "any"}
    body, _, _ = written("gemini", *_CALLED, extra={"tools": [TOOL], "tool_choice": TOOL})
    assert body["contents"][1:] == [
        {
            "role": "model",
            "parts": [
                {"functionCall": {"name": "look", "args": {"at": "Rome"}}, "thoughtSignature": "s1"},
                {"functionCall": {"name": "look", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "look", "response": {"output": "sun"}}},
                {"functionResponse": {"name": "look", "response": {"sky": "grey"}}},
            ],
        },
    ]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["look"]}}
    body, _, _ = written("responses", *_CALLED, extra={"tools": [TOOL], "tool_choice": TOOL})
    assert [item.get("type", item.get("role")) for item in body["input"]] == [
        "user",
        "function_call",
        "function_call",
        "function_call_output",
        "function_call_output",
    ]
    assert body["tools"][0]["name"] == "look"
    assert body["tool_choice"] == {"type": "function", "name": "look"}


def test_sampling_has_each_apis_names_and_what_has_none_is_reported():
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "max_tokens": 9,
        "stop": ["X"],
        "seed": 2**40 + 1,
    }
    body, refused, _ = written("anthropic", model="claude-sonnet-4-5", **given)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "stop_sequences")} == {
        **{name: given[name] for name in ("temperature", "top_p", "top_k", "max_tokens")},
        "stop_sequences": ["X"],
    }
    assert refused == ["seed"]
    body, refused, _ = written("gemini", **given, extra={"logprobs": True, "top_logprobs": 3})
    assert body["generationConfig"] == {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 5,
        "maxOutputTokens": 9,
        "stopSequences": ["X"],
        "seed": (2**40 + 1) % 2**31,
        "responseLogprobs": True,
        "logprobs": 3,
    }
    assert refused == []
    body, refused, _ = written("responses", **given, extra={"logprobs": True, "top_logprobs": 3})
    assert (body["max_output_tokens"], body["temperature"]) == (9, 0.5)
    assert (body["include"], body["top_logprobs"]) == (["message.output_text.logprobs"], 3)
    assert sorted(refused) == ["seed", "stop", "top_k"]


def test_the_apis_own_parameters_pass_unchanged():
    body, _, _ = written("anthropic", extra={"thinking": {"type": "between_tools"}, "service_tier": "standard_only"})
    assert (body["thinking"], body["service_tier"]) == ({"type": "between_tools"}, "standard_only")
    extra = {"safetySettings": [{"category": "X", "threshold": "OFF"}], "generationConfig": {"candidateCount": 1}}
    body, _, _ = written("gemini", extra={**extra, "service_tier": "flex"})
    assert body["safetySettings"] == extra["safetySettings"]
    assert body["generationConfig"] == {"candidateCount": 1}
    assert body["serviceTier"] == "flex"
    assert written("responses", extra={"store": True, "instructions": "Be."})[0]["store"] is True


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("anthropic", "system"),
        ("anthropic", "messages"),
        ("gemini", "contents"),
        ("gemini", "systemInstruction"),
        ("responses", "input"),
        ("responses", "background"),
    ],
)
def test_no_parameter_takes_the_place_of_the_conversation(name, field):
    body, refused, _ = written(name, "Mine", extra={field: "Another"})
    assert refused == [field]
    assert "Another" not in str(body)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("anthropic", {"thinking": "yes"}),
        ("anthropic", {"top_k": "5"}),
        ("anthropic", {"output_config": 3, "reasoning_effort": "low"}),
        ("anthropic", {"metadata": 5, "user": "me"}),
        ("gemini", {"generationConfig": [1]}),
        ("gemini", {"top_k": "5"}),
        ("responses", {"include": 5, "logprobs": True}),
        ("responses", {"text": [], "response_format": {"type": "json_schema", "json_schema": 3}}),
    ],
)
async def test_a_parameter_of_another_type_fails_its_item_alone(upstream, drive, name, extra):
    upstream.reply = speaks()
    plain = conversation_from_messages([{"role": "user", "content": "x"}], "it")
    async with opened(upstream.url, dialect=name, model_name="claude-opus-5-5") as backend:
        wrong = Request(0, plain, Sampling(), extra)
        result = await ask(backend, ["x"], source=_One(wrong))
    assert result.failures[0].error.code is Code.INVALID_INPUT
    assert not upstream.seen


def _turn_with_calls(*calls: tuple[str, str, str]) -> dict[str, Any]:
    asked = [{"id": id_, "type": "function", "function": {"name": n, "arguments": a}} for id_, n, a in calls]
    return {"role": "assistant", "content": "", "tool_calls": asked}


def _result(identity: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "content": text}


def test_results_for_gemini_are_in_the_order_of_their_calls():
    called = _turn_with_calls(("a", "weather", '{"at":"Rome"}'), ("b", "weather", '{"at":"Oslo"}'))
    body, _, _ = written("gemini", "Weather?", called, _result("b", "snow"), _result("a", "sun"))
    _, turn, answered = body["contents"]
    assert [part["functionCall"]["args"]["at"] for part in turn["parts"]] == ["Rome", "Oslo"]
    assert [part["functionResponse"]["response"]["output"] for part in answered["parts"]] == ["sun", "snow"]


def test_a_result_for_gemini_has_the_name_of_the_call_before_it():
    first, second = _turn_with_calls(("call_0", "weather", "{}")), _turn_with_calls(("call_0", "time", "{}"))
    body, _, _ = written("gemini", "Go.", first, _result("call_0", "sun"), second, _result("call_0", "noon"))
    parts = [part for content in body["contents"] if content["role"] == "user" for part in content["parts"][-1:]]
    assert [part["functionResponse"]["name"] for part in parts if "functionResponse" in part] == ["weather", "time"]


@pytest.mark.parametrize("name", ["anthropic", "gemini", "responses"])
def test_whole_numbers_of_tools_are_exact(name):
    digits = "12345678901234567890123"
    called = _turn_with_calls(("a", "find", f'{{"id":{digits}}}'))
    conversation = conversation_from_messages([called, _result("a", f'{{"id":{digits}}}')], "it")
    assert b"".join(DIALECTS[name].conversation(conversation, {})).count(digits.encode()) == 2


def _calls(body: Any) -> list[tuple[str, Any]]:
    """Return the names and arguments of the tool calls in a request's body."""
    if isinstance(body, list):
        return [call for part in body for call in _calls(part)]
    match body:
        case {"type": "tool_use", "name": name, "input": arguments} | {
            "functionCall": {"name": name, "args": arguments}
        }:
            return [(name, arguments)]
        case {"type": "function_call", "name": name, "arguments": arguments}:
            return [(name, orjson.loads(arguments))]
    return [call for part in body.values() for call in _calls(part)] if isinstance(body, dict) else []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("call", "sent"),
    [
        *[(shape, []) for shape in (3, "x", None, {}, {"function": "x"}, {"function": 3}, {"function": None})],
        ({"function": {"arguments": "{"}}, []),
        ({"function": {"name": "f", "arguments": [1]}}, [("f", {})]),
        ({"function": {"name": "f", "arguments": "{"}}, [("f", {"arguments": "{"})]),
        ({"function": {"name": "f", "arguments": '{"a": 1}'}}, [("f", {"a": 1})]),
        ({"function": {"name": "f", "arguments": {"a": 1}}}, [("f", {"a": 1})]),
        ({"function": {"name": "f"}}, [("f", {})]),
    ],
)
def test_a_tool_call_of_any_shape_is_no_crash(name, call, sent):
    body, _, _ = written(name, {"role": "assistant", "content": "a", "tool_calls": [call]}, "And?")
    assert _calls(body) == sent
    assert b'"And?"' in orjson.dumps(body)


async def test_other_paths_of_google_are_those_of_its_openai_layer(upstream):
    upstream.other_posts = raw(orjson.dumps({"data": [], "usage": {"prompt_tokens": 1, "total_tokens": 1}}))
    async with opened(upstream.url, dialect="gemini") as backend:
        request = Request(0, conversation_from_messages([{"role": "user", "content": "x"}], "it"), Sampling())
        request = request.changed(path="/embeddings", extra={"input": "x"})
        result = await ask(backend, ["x"], source=_One(request))
    assert result.answered == 1
    (seen,) = upstream.seen
    assert seen.target == "/v1/openai/embeddings"
    assert seen.headers["authorization"] == f"Bearer {KEY}"


class _One:
    """A source of one request."""

    def __init__(self, request: Request) -> None:
        self._left = [request]

    async def take(self, n: int) -> list[Request]:
        taken, self._left = self._left[:n], self._left[n:]
        return taken


@pytest.mark.parametrize(
    ("model", "asked", "longest"),
    [
        ("claude-sonnet-4-5", {}, 16_384),
        ("claude-opus-5-5", {}, 32_768),
        ("claude-3-haiku-20240307", {}, 4096),
        ("claude-sonnet-4-20250514", {"enable_thinking": True}, 32_768),
        ("claude-opus-5-5", {"max_tokens": 7}, 7),
    ],
)
def test_anthropic_requires_a_longest_answer_so_there_is_a_default(model, asked, longest):
    assert written("anthropic", model=model, **asked)[0]["max_tokens"] == longest


_ADAPTIVE = {"type": "adaptive", "display": "summarized"}


@pytest.mark.parametrize(
    ("model", "asked", "thinking", "config", "refused"),
    [
        ("claude-sonnet-4-5", {"enable_thinking": True}, {"type": "enabled", "budget_tokens": 8192}, None, []),
        (
            "claude-haiku-4-5-20251001",
            {"enable_thinking": True, "max_tokens": 4000},
            {"type": "enabled", "budget_tokens": 2000},
            None,
            [],
        ),
        ("claude-haiku-4-5", {"enable_thinking": True, "max_tokens": 100}, None, None, ["enable_thinking"]),
        ("claude-opus-4-6", {"enable_thinking": True}, _ADAPTIVE, None, []),
        ("claude-opus-4-7", {"reasoning_effort": "xhigh"}, _ADAPTIVE, {"effort": "xhigh"}, []),
        ("claude-opus-4-7", {"enable_thinking": False}, None, None, []),
        ("claude-opus-5", {"enable_thinking": False}, {"type": "disabled"}, None, []),
        ("claude-sonnet-5-5", {"reasoning_effort": "none"}, {"type": "between_tools"}, None, []),
        ("claude-opus-5-5", {"enable_thinking": False}, None, None, ["enable_thinking"]),
        ("claude-fable-5-1", {"reasoning_effort": "minimal"}, _ADAPTIVE, {"effort": "low"}, []),
        ("claude-3-haiku-20240307", {"enable_thinking": True}, None, None, ["enable_thinking"]),
    ],
)
def test_anthropics_models_think_as_each_of_them_can(model, asked, thinking, config, refused):
    body, left_out, _ = written("anthropic", model=model, **asked)
    assert (body.get("thinking"), body.get("output_config"), left_out) == (thinking, config, refused)


def test_newer_models_of_anthropic_take_no_sampling_parameters():
    body, refused, _ = written("anthropic", model="claude-sonnet-5-5", temperature=0.0, top_k=3)
    assert not {"temperature", "top_k"} & body.keys()
    assert sorted(refused) == ["temperature", "top_k"]


@pytest.mark.parametrize(
    ("model", "asked", "thinking", "refused"),
    [
        ("gemini-2.5-flash", {"enable_thinking": False}, {"thinkingBudget": 0}, []),
        ("gemini-2.5-flash-lite", {"enable_thinking": True}, {"thinkingBudget": -1, "includeThoughts": True}, []),
        ("gemini-2.5-pro", {"enable_thinking": False}, None, ["enable_thinking"]),
        ("gemini-2.5-pro", {"reasoning_effort": "low"}, {"thinkingBudget": 1024}, []),
        ("gemini-3.8-flash", {"reasoning_effort": "low"}, {"thinkingLevel": "LOW"}, []),
        ("gemini-3-pro", {"enable_thinking": True}, {"includeThoughts": True}, []),
        ("gemma-3", {"enable_thinking": True}, None, ["enable_thinking"]),
        ("gemini-2.0-flash", {"enable_thinking": False}, None, []),
    ],
)
def test_googles_models_think_as_each_of_them_can(model, asked, thinking, refused):
    body, left_out, _ = written("gemini", model=model, **asked)
    assert (body.get("generationConfig", {}).get("thinkingConfig"), left_out) == (thinking, refused)


# Requests for JSON


def test_a_schema_is_enforced_by_each_provider_in_its_own_place():
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    wanted = asking_for(schema)
    body, _, _ = written("anthropic", model="claude-sonnet-4-5", response_format=wanted)
    form = body["output_config"]["format"]
    assert form["type"] == "json_schema"
    assert form["schema"]["additionalProperties"] is False
    assert form["schema"]["properties"]["n"] == {"type": "integer", "description": "(minimum: 3)"}
    body, _, _ = written("gemini", response_format=wanted)
    assert body["generationConfig"]["responseMimeType"] == "application/json"
    assert body["generationConfig"]["responseJsonSchema"]["properties"] == schema["properties"]
    body, _, _ = written("responses", response_format=wanted)
    assert (body["text"]["format"]["type"], body["text"]["format"]["strict"]) == ("json_schema", True)
    assert body["text"]["format"]["schema"]["required"] == ["n"]


def test_what_a_provider_cannot_enforce_is_asked_for_in_words():
    for model, schema in (
        ("claude-3-haiku-20240307", {"type": "object", "properties": {"n": {"type": "integer"}}}),
        ("claude-opus-5", {"type": "object", "additionalProperties": {"type": "integer"}}),
    ):
        body, _, _ = written("anthropic", model=model, response_format=asking_for(schema))
        assert "output_config" not in body
        assert "Answer with JSON alone" in body["system"]
    body, _, _ = written("gemini", response_format=asking_for({"type": "object", "not": {"required": ["a"]}}))
    assert "responseJsonSchema" not in body["generationConfig"]
    assert "JSON schema" in body["systemInstruction"]["parts"][0]["text"]


@pytest.mark.parametrize(
    ("schema", "closed", "google"),
    [
        (
            {"type": ["string", "null"], "description": "x"},
            {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "x"},
            {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "x"},
        ),
        ({"enum": ["a", "b"]}, {"enum": ["a", "b"]}, {"enum": ["a", "b"], "type": "string"}),
        ({"const": 1}, {"const": 1}, {"enum": [1], "type": "number"}),
        (
            {"type": "array", "items": {"type": "string", "format": "uri"}, "minItems": 2},
            {"type": "array", "items": {"type": "string", "format": "uri"}, "description": "(minItems: 2)"},
            {"type": "array", "items": {"type": "string", "description": "(format: uri)"}, "minItems": 2},
        ),
        (
            {"$ref": "#/definitions/A", "definitions": {"A": {"type": "object", "properties": {"a": {"const": "b"}}}}},
            {
                "type": "object",
                "properties": {"a": {"const": "b"}},
                "additionalProperties": False,
                "$defs": {"A": {"type": "object", "properties": {"a": {"const": "b"}}, "additionalProperties": False}},
            },
            {
                "type": "object",
                "properties": {"a": {"enum": ["b"], "type": "string"}},
                "$defs": {"A": {"type": "object", "properties": {"a": {"enum": ["b"], "type": "string"}}}},
            },
        ),
        ({"type": "object"}, None, {"type": "object"}),
        (
            {"type": "array", "prefixItems": [{"type": "string"}]},
            None,
            {"type": "array", "prefixItems": [{"type": "string"}]},
        ),
        ({"if": {}, "then": {}}, None, None),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/T"}},
                "$defs": {"T": {"items": {"$ref": "#/$defs/T"}}},
            },
            None,
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/T"}},
                "$defs": {"T": {"items": {"$ref": "#/$defs/T"}}},
            },
        ),
    ],
)
def test_a_schema_is_translated_to_the_subset_of_each_provider(schema, closed, google):
    assert closed_form(schema) == closed
    assert google_form(schema) == google


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


_INTEGER, _STRING = {"type": "integer"}, {"type": "string"}
_NAMED = {"$defs": {"B": _object(b=_STRING)}}


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(
            {**_object(a={"$ref": "#/$defs/A/properties/x"}), "$defs": {"A": _object(x=_INTEGER), "x": _STRING}},
            id="a path that ends with the name of another definition",
        ),
        pytest.param(
            {
                **_object(a={"$ref": "#/$defs/T"}, b={"$ref": "#/definitions/T"}),
                "$defs": {"T": _INTEGER},
                "definitions": {"T": _STRING},
            },
            id="two definitions of one name",
        ),
        pytest.param(
            {**_object(p={**_object(a=_STRING), "allOf": [{"$ref": "#/$defs/B"}]}), **_NAMED}, id="inherited fields"
        ),
        pytest.param({**_object(p={**_object(a=_STRING), "$ref": "#/$defs/B"}), **_NAMED}, id="fields and a reference"),
        pytest.param(
            _object(p={**_object(a=_STRING), "allOf": [{"properties": {"b": _STRING}}]}), id="fields in two places"
        ),
        pytest.param(_object(p={"oneOf": [_STRING], "anyOf": [_STRING, _INTEGER]}), id="two choices"),
        pytest.param(
            _object(p={"type": ["string", "number", "null"], "anyOf": [{"type": ["string", "number"]}]}),
            id="alternatives of several types, of which each level would multiply the next",
        ),
    ],
)
def test_a_schema_of_which_a_subset_would_lose_a_part_is_sent_in_words(schema):
    assert closed_form(schema) is None
    assert google_form(schema) is None


class _Counted(dict[str, Any]):
    """A part of a schema that counts how often it is looked into."""

    looks = 0

    def values(self) -> Any:
        type(self).looks += 1
        return super().values()


def test_a_definition_to_which_many_refer_is_searched_once_for_itself():
    shared = _Counted(_object(b=_STRING))
    named = {f"n{at}": {"anyOf": [{"$ref": "#/$defs/shared"}]} for at in range(50)}
    assert closed_form({**_object(a={"$ref": "#/$defs/n0"}), "$defs": {**named, "shared": shared}}) is not None
    assert _Counted.looks == 1


def test_a_reference_keeps_its_description():
    payer = {"$ref": "#/$defs/B", "description": "the payer", "minLength": 2, "title": "P"}
    for form in (closed_form, google_form):
        translated = form({**_object(p=payer), "$defs": {"B": _STRING}}) or {}
        described = {"anyOf": [{"$ref": "#/$defs/B"}], "description": "the payer (minLength: 2)"}
        assert translated["properties"]["p"] == described


def test_a_text_or_an_object_may_still_be_a_text():
    either = {"type": ["string", "object"], "properties": {"a": _STRING}, "required": ["a"]}
    translated = closed_form(_object(p=either)) or {}
    assert translated["properties"]["p"]["anyOf"] == [_STRING, _object(a=_STRING)]


# Replies


def _message(**changes: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 4}
    whole = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": [], "usage": usage}
    return {**whole, "stop_reason": "end_turn", **changes}


def _texts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "length"),
    ],
)
def test_anthropics_stop_reasons_become_finish_reasons(reason, finish):
    assert answered("anthropic", _message(content=_texts("a", "b"), stop_reason=reason)).finish_reason == finish


def test_a_refusal_of_anthropic_is_a_filtered_answer_with_its_reason_and_usage():
    details = {"type": "refusal", "category": "bio", "explanation": "It could help to make a pathogen."}
    found = read("anthropic", _message(stop_reason="refusal", stop_details=details, content=_texts("I")))
    assert isinstance(found, RetryDecision)
    assert (found.kind, found.error.code) == (FailureKind.ITEM, Code.CONTENT_FILTER)
    assert "It could help to make a pathogen" in found.error.message
    assert found.usage == Usage(10, 4)


def test_an_answer_of_anthropic_has_its_parts():
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        *_texts("It is "),
        {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "Rome"}},
        *_texts("sunny."),
    ]
    usage = {
        "input_tokens": 5,
        "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 3},
        "service_tier": "priority",
    }
    found = answered("anthropic", _message(content=blocks, stop_reason="tool_use", usage=usage), keep_raw=True)
    assert (found.text, found.reasoning, found.finish_reason, found.tier) == (
        "It is sunny.",
        "Hm.",
        "tool_calls",
        "priority",
    )
    assert found.tool_calls == (
        {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":"Rome"}'}},
    )
    assert found.usage == Usage(55, 9, 20, 3, 30, 20)
    assert found.details is not None
    assert found.details["message"]["thinking_blocks"] == blocks[:1]
    again = written("anthropic", {"role": "assistant", "content": "x", "thinking_blocks": blocks[:1]}, "And?")[0]
    assert again["messages"][0]["content"] == [blocks[0], {"type": "text", "text": "x"}]


_REPLY = {"type": "message", "input_tokens": 1000, "output_tokens": 50}
_COMPACTION = {
    "type": "compaction",
    "input_tokens": 5000,
    "cache_read_input_tokens": 3000,
    "cache_creation_input_tokens": 1000,
    "cache_creation": {"ephemeral_1h_input_tokens": 1000},
    "output_tokens": 500,
}


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        ([_COMPACTION, _REPLY], Usage(10_000, 550, 3000, 0, 1000, 1000)),
        ([_COMPACTION, _COMPACTION, _REPLY], Usage(19_000, 1050, 6000, 0, 2000, 2000)),
        ([_REPLY, {"type": "advisor_message", "input_tokens": 20, "output_tokens": 7}], Usage(1020, 57)),
        ([{**_COMPACTION, "type": "fallback_message"}, _REPLY], Usage(1000, 50)),  # a declined one is not billed
        ([_REPLY, _REPLY], Usage(1000, 50)),  # the counts at the top include replies
        (["compaction", {"type": "compaction"}, None], Usage(1000, 50)),
        (None, Usage(1000, 50)),
    ],
)
def test_compactions_of_a_conversation_are_counted_and_paid(iterations, expected):
    usage = {"input_tokens": 1000, "output_tokens": 50, "iterations": iterations}
    assert answered("anthropic", _message(content=_texts("a"), usage=usage)).usage == expected
    events = [
        {"type": "message_start", "message": _message(usage={"input_tokens": 1000, "output_tokens": 1})},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "a"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
    stream = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
    found = read("anthropic", stream, headers={"Content-Type": "text/event-stream"})
    assert isinstance(found, Completion)
    assert found.usage == expected


def _gemini_reply(*parts: Any, **changes: Any) -> dict[str, Any]:
    usage = {"promptTokenCount": 8, "candidatesTokenCount": 3, "totalTokenCount": 11}
    candidate = {"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP", **changes}
    return {"candidates": [candidate], "usageMetadata": usage}


def test_an_answer_of_gemini_has_its_parts():
    body = _gemini_reply(
        {"text": "Hm.", "thought": True},
        {"text": "It is "},
        {"functionCall": {"name": "look", "args": {"at": "Rome"}}, "thoughtSignature": "s"},
        {"text": "sunny."},
        logprobsResult={
            "chosenCandidates": [{"token": "It", "tokenId": 1, "logProbability": -0.1}],
            "topCandidates": [{"candidates": [{"token": "It", "logProbability": -0.1}]}],
        },
    )
    usage = {"promptTokenCount": 8, "toolUsePromptTokenCount": 2, "cachedContentTokenCount": 4}
    body["usageMetadata"] = usage | {"candidatesTokenCount": 3, "thoughtsTokenCount": 7, "totalTokenCount": 20}
    found = answered("gemini", body, headers={"x-gemini-service-tier": "flex"})
    assert (found.text, found.reasoning, found.finish_reason, found.tier) == (
        "It is sunny.",
        "Hm.",
        "tool_calls",
        "flex",
    )
    assert found.usage == Usage(10, 10, 4, 7)
    call = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at":"Rome"}'}}
    assert found.tool_calls == ({**call, "extra_content": {"google": {"thought_signature": "s"}}},)
    assert found.logprobs is not None
    assert found.logprobs["content"][0]["logprob"] == -0.1


@pytest.mark.parametrize("detail", [{"modality": "AUDIO"}, {"tokenCount": 3}, {}, None, "AUDIO"])
def test_an_answer_of_gemini_is_kept_if_a_detail_of_its_usage_is_incomplete(detail):
    body = _gemini_reply({"text": "fine"})
    audio = {"modality": "AUDIO", "tokenCount": 5}
    body["usageMetadata"] = {"promptTokenCount": 8, "candidatesTokenCount": 1, "promptTokensDetails": [detail, audio]}
    found = answered("gemini", body)
    assert (found.text, found.usage) == ("fine", Usage(8, 1, audio_tokens=5))


def test_gemini_without_text_at_the_longest_answer_is_a_cut_answer_that_is_paid():
    body = _gemini_reply(finishReason="MAX_TOKENS")
    del body["candidates"][0]["content"]
    body["usageMetadata"] = {"promptTokenCount": 8, "thoughtsTokenCount": 60, "totalTokenCount": 68}
    found = answered("gemini", body)
    assert (found.text, found.finish_reason, found.usage) == ("", "length", Usage(8, 60, 0, 60))


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, FailureKind.ITEM, Code.CONTENT_FILTER),
        ({"promptFeedback": {"blockReason": "OTHER"}}, FailureKind.ITEM, Code.CONTENT_FILTER),
        *((_gemini_reply(finishReason=word), FailureKind.ITEM, Code.CONTENT_FILTER)
          for word in ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY")),
        *((_gemini_reply(finishReason=word), FailureKind.TRANSIENT, Code.SERVER_ERROR)
          for word in ("MALFORMED_FUNCTION_CALL", "OTHER", "UNEXPECTED_TOOL_CALL")),
        ({"candidates": [], "usageMetadata": {"promptTokenCount": 3}}, FailureKind.TRANSIENT, Code.EMPTY_ANSWER),
        ({"usageMetadata": {"promptTokenCount": 3}}, FailureKind.TRANSIENT, Code.EMPTY_ANSWER),
    ],
)  # fmt: skip
def test_what_gemini_withholds_or_breaks_off_is_no_answer(body, kind, code):
    found = read("gemini", body)
    assert isinstance(found, RetryDecision)
    assert (found.kind, found.error.code) == (kind, code)


def _response(*items: Any, **changes: Any) -> dict[str, Any]:
    usage = {"input_tokens": 8, "output_tokens": 3, "total_tokens": 11}
    return {"object": "response", "status": "completed", "error": None, "output": list(items), "usage": usage} | changes


def test_an_answer_of_responses_has_its_parts():
    usage = {
        "input_tokens": 30,
        "input_tokens_details": {
            "cached_tokens": 10,
            "cache_write_tokens": 5,
            "cache_write_tokens_details": {"ttl_30m_tokens": 2, "ttl_12h_tokens": 3},
        },
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 39,
    }
    probability = {"token": "Sun", "logprob": -0.5, "bytes": [83, 117, 110], "top_logprobs": []}
    body = _response(
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {
            "type": "message",
            "content": [{"type": "output_text", "text": "Sun.", "annotations": [], "logprobs": [probability]}],
        },
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        usage=usage,
        service_tier="flex",
    )
    found = answered("responses", body)
    assert (found.text, found.reasoning, found.finish_reason, found.tier) == ("Sun.", "Hm.", "tool_calls", "flex")
    assert found.usage == Usage(30, 9, 10, 4, 5, 3)
    assert found.tool_calls[0]["id"] == "c1"
    assert found.logprobs == {"content": [probability]}


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([[{"type": "output_text", "text": None}, {"type": "output_text", "text": "Sun."}]], "Sun."),
        ([[{"type": "output_text", "text": None}], [{"type": "output_text", "text": "Sun."}]], "Sun."),
        ([[{"type": "output_text"}, {"type": "refusal", "refusal": None}]], ""),
        ([[None, {"type": "output_text", "text": "Sun."}]], "Sun."),
        ([["Sun."]], "Sun."),
    ],
)
def test_a_part_of_responses_with_null_is_an_empty_text(items, text):
    answer = answered("responses", _response(*({"type": "message", "content": parts} for parts in items)))
    assert (answer.text, answer.usage) == (text, Usage(8, 3))


def test_incomplete_and_failed_responses_are_told_apart():
    text = {"type": "message", "content": [{"type": "output_text", "text": "Su", "annotations": []}]}
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert answered("responses", _response(text, **cut)).finish_reason == "length"
    filtered = read("responses", _response(status="incomplete", incomplete_details={"reason": "content_filter"}))
    assert isinstance(filtered, RetryDecision)
    assert filtered.error.code is Code.CONTENT_FILTER
    error = {"code": "server_error", "message": "The model failed to generate a response."}
    failed = read("responses", _response(status="failed", error=error))
    assert isinstance(failed, RetryDecision)
    assert failed.kind is FailureKind.TRANSIENT
    assert failed.usage == Usage(8, 3)
    refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "I can't."}]}
    assert answered("responses", _response(refusal)).text == "I can't."


def test_a_chat_completion_is_read_at_any_endpoint():
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    for name in NAMES:
        assert answered(name, {"choices": [choice]}).text == "x"


def test_a_stream_that_reports_an_error_has_the_usage_until_then():
    start = {"type": "message_start", "message": _message(stop_reason=None)}
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    body = b"".join(b"event: x\ndata: %b\n\n" % orjson.dumps(event) for event in (start, error))
    found = read("anthropic", body, headers={"Content-Type": "text/event-stream"})
    assert isinstance(found, RetryDecision)
    assert found.kind is FailureKind.TRANSIENT
    assert found.usage.prompt_tokens == 10


# Over real connections


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stream", [False, True])
async def test_answers_come_whole_and_as_streams(upstream, drive, name, stream):
    upstream.reply = speaks(thought="Let me think.")
    prompts = ["one", "two words", "🙂 ü"]
    result = await drive(prompts, dialect=name, stream=stream, model_name="a-model")
    assert result.texts == echoes(prompts)
    assert [outcome.reasoning for outcome in result.outcomes] == ["Let me think."] * 3
    assert [outcome.usage.prompt_tokens for outcome in result.outcomes] == [1, 2, 2]
    assert len(upstream.seen) == 3
    if name != "gemini":
        assert all(seen.json["model"] == "a-model" for seen in upstream.seen)
    elif stream:
        assert upstream.seen[0].target == "/v1/models/a-model:streamGenerateContent?alt=sse"


@pytest.mark.parametrize("name", NAMES)
async def test_a_stream_that_ends_early_is_tried_again(upstream, drive, name):
    upstream.reply = attempts(speaks("a long enough answer", cut=True), speaks("whole"))
    result = await drive(["x"], dialect=name, stream=True, base_delay=0.01)
    assert result.texts == ["whole"]
    assert len(upstream.seen) == 2


@pytest.mark.parametrize("name", NAMES)
async def test_an_answer_is_shown_while_it_arrives(upstream, name):
    half, whole = (speaks("A fairly long answer.", thought="Hidden.", cut=cut) for cut in (True, False))
    upstream.reply = attempts(half, whole)
    shown: list[Growing] = []
    async with opened(upstream.url, dialect=name, base_delay=0.01) as backend:
        result = await ask(backend, ["x"], Call(Facts(total=1), preview=shown.append))
    assert result.texts == ["A fairly long answer."]
    assert len(shown[0].text) < len(shown[-1].text)
    assert shown[-1] == ("A fairly long answer.", "Hidden.", [])


_LOOKING = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
_STREAMED_CALLS = {
    "anthropic": [
        {"type": "message_start", "message": {"type": "message", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "I'll look."}},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ],
    "responses": [
        {"type": "response.output_text.delta", "output_index": 0, "delta": "I'll look."},
        {
            "type": "response.output_item.added",
            "output_index": 1,
            "item": {"type": "function_call", "call_id": "c1", "name": "look", "arguments": ""},
        },
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": '{"a"'},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": ": 1}"},
        {
            "type": "response.completed",
            "response": {
                "status": "completed",
                "output": [
                    {"type": "message", "content": [{"type": "output_text", "text": "I'll look."}]},
                    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'},
                ],
            },
        },
    ],
}


@pytest.mark.parametrize("name", _STREAMED_CALLS)
def test_a_tool_call_is_shown_while_its_arguments_arrive(name):
    body, shown = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in _STREAMED_CALLS[name]), list[Growing]()
    preview = StreamPreview(shown.append, DIALECTS[name].delta_in, inline=False, later=without_rest)
    for at in range(0, len(body), 9):
        preview.feed(body[at : at + 9])
    found = read(name, body, headers={"Content-Type": "text/event-stream"})
    assert isinstance(found, Completion)
    assert (found.text, *found.tool_calls) == ("I'll look.", _LOOKING)
    half = {**_LOOKING, "function": {"name": "look", "arguments": '{"a"'}}
    assert ("I'll look.", "", [half]) in shown
    assert shown[-1] == (found.text, "", [_LOOKING])


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
async def test_worker_processes_speak_it_too(upstream, drive, name):
    upstream.reply = speaks()
    prompts = [f"prompt {number}" for number in range(60)]
    result = await drive(prompts, dialect=name, bulk_threshold=1, num_workers=2, concurrency=8)
    assert result.texts == echoes(prompts)
    assert all(outcome.usage.prompt_tokens == 2 for outcome in result.outcomes)


@pytest.mark.parametrize("name", NAMES)
async def test_an_image_arrives_as_it_is(upstream, drive, tmp_path, name):
    Image.new("RGB", (3, 3), "red").save(tmp_path / "a.png")
    upstream.reply = speaks("red")
    content = [
        {"type": "text", "text": "Colour?"},
        {"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}},
    ]
    result = await drive([conversation_from_messages([{"role": "user", "content": content}], "it")], dialect=name)
    assert result.texts == ["red"]
    (seen,) = upstream.seen
    assert base64.b64encode((tmp_path / "a.png").read_bytes()) in seen.raw


@pytest.mark.parametrize("name", NAMES)
async def test_a_missing_key_is_reported_by_the_right_name(upstream, drive, name):
    upstream.reply = speaks()
    result = await drive(["x"], dialect=name, api_key=None, retries=1)
    assert result.failures[0].error.code is Code.UNAUTHORIZED
    assert "No key was sent" in str(result.failures[0].error)


async def test_the_end_of_a_limit_in_anthropics_headers_is_awaited(upstream, drive):
    body = orjson.dumps(_message(content=_texts("x")))
    used_up = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "0.4"}
    upstream.reply = raw(body, headers=used_up)
    result = await drive(["a", "b"], concurrency=1, dialect="anthropic")
    assert result.answered == 2
    assert upstream.seen[1].at - upstream.seen[0].at >= 0.399


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
async def test_check_tries_the_api_of_the_dialect(upstream, name):
    upstream.reply = speaks()
    steps: list[Any] = []
    await diagnose(openai_config(upstream.url, dialect=name, enable_thinking=True), steps.append)
    assert [(step.step, step.ok) for step in steps if not step.ok] == []
    assert not any(KEY in step.detail for step in steps)


@pytest.mark.parametrize(
    ("name", "page", "listed"),
    [
        (
            "anthropic",
            {"/v1/models?limit=1000": {"data": [{"type": "model", "id": "claude-x", "max_input_tokens": 9}]}},
            [("claude-x", 9)],
        ),
        (
            "gemini",
            {
                "/v1/models?pageSize=1000": {
                    "models": [
                        {
                            "name": "models/gemini-x",
                            "inputTokenLimit": 5,
                            "supportedGenerationMethods": ["generateContent", "countTokens"],
                        },
                        {"name": "models/embedding-x", "supportedGenerationMethods": ["embedContent"]},
                    ]
                }
            },
            [("gemini-x", 5)],
        ),
    ],
)
async def test_the_models_of_other_apis_are_listed(upstream, name, page, listed):
    upstream.gets = page
    config = openai_config(upstream.url, dialect=name)
    async with connected(config) as pool:
        models = await read_models(pool, endpoints(config)[0])
    assert [(model.name, model.context) for model in models.models] == listed
    header = {"anthropic": "x-api-key", "gemini": "x-goog-api-key"}[name]
    assert upstream.pages[-1].headers[header] == KEY


async def test_a_part_that_an_api_cannot_carry_fails_its_item_alone(upstream, drive):
    upstream.reply = speaks()
    sound = [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]
    prompts = [conversation_from_messages([{"role": "user", "content": sound}], "it"), "fine"]
    result = await drive(prompts, dialect="anthropic")
    assert result.failures[0].error.code is Code.UNSUPPORTED
    assert result.texts[1] == "echo: fine"


def test_a_surrogate_is_reported_as_for_chats():
    for name in NAMES:
        with pytest.raises(PromptmillError, match="surrogate"):
            written(name, "\ud800")


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string", "enum": ["x"]}}, "required": ["a"],
             "additionalProperties": False},
            {"type": "OBJECT", "properties": {"a": {"type": "STRING", "enum": ["x"]}}, "required": ["a"]},
        ),
        ({"type": "object", "properties": {"why": {"type": "string"}, "label": {"type": "string"}}},
         {"type": "OBJECT", "properties": {"why": {"type": "STRING"}, "label": {"type": "STRING"}},
          "propertyOrdering": ["why", "label"]}),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}},
         {"type": "ARRAY", "items": {"type": "INTEGER", "minimum": 1}}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"anyOf": [{"type": "STRING"}], "nullable": True}),
        ({"type": "integer", "enum": [1, 2]}, None),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, None),
        ({"type": "object", "additionalProperties": {"type": "string"}}, None),
        (None, None),
    ],
)  # fmt: skip
def test_a_schema_in_a_batch_of_geminis_is_its_schema_object(schema, form):
    assert openapi_form(schema) == form


@pytest.mark.parametrize(
    ("later", "counts"),
    [
        ({}, (135, 100)),
        ({"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}, (135, 100)),
        ({"input_tokens": 5, "cache_read_input_tokens": 0}, (15, 0)),
    ],
    ids=["left out", "zeros", "others"],
)
def test_the_prompt_of_an_anthropic_stream_is_counted_once(later, counts):
    begun = {"input_tokens": 25, "output_tokens": 1, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 10}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"type": "message", "content": [], "usage": begun}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15} | later},
        {"type": "message_stop"},
    ]
    anthropic = DIALECTS["anthropic"]
    usage = (anthropic.completion(anthropic.assemble(iter(events)), {}) or {})["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == counts
    assert usage["completion_tokens"] == 15


def _anthropic_answer(*events: dict[str, Any], stop: str = "end_turn") -> Completion:
    usage = {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 100}
    later = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 0}
    whole = [
        {"type": "message_start", "message": {"type": "message", "content": [], "usage": usage}},
        *events,
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": later},
        {"type": "message_stop"},
    ]
    body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in whole)
    answer = read("anthropic", body, headers={"Content-Type": "text/event-stream"})
    assert isinstance(answer, Completion)
    assert answer.usage.cached_tokens == 100
    return answer


@pytest.mark.parametrize("begun", ["", "Paris", "Pa", None])
@pytest.mark.parametrize("pieces", [["Pa", "ris"], ["Paris"], []])
def test_a_block_whose_start_repeats_its_pieces_is_read_once(begun, pieces):
    if begun in {"Pa", "", None} and not pieces:
        pytest.skip("no whole text")
    pieces = ["ris"] if begun == "Pa" else pieces
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": begun}}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in pieces
    ]
    events = deltas if begun is None else [start, *deltas]
    assert _anthropic_answer(*events).text == "Paris"
    shown = list[str]()
    preview = StreamPreview(
        lambda now: shown.append(now.text), DIALECTS["anthropic"].delta_in, inline=False, later=without_rest
    )
    preview.feed(b"".join(b"data: %b\n" % orjson.dumps(event) for event in events))
    assert shown[-1] == "Paris"


@pytest.mark.parametrize("arguments", ['{"city": "Par', '{"city": nan}'])
def test_the_arguments_of_a_call_that_is_cut_off_are_kept_as_they_are(arguments):
    use = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": arguments}
    answer = _anthropic_answer(
        {"type": "content_block_start", "index": 0, "content_block": use},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        stop="max_tokens",
    )
    assert [call["function"]["arguments"] for call in answer.tool_calls] == [arguments]
    assert answer.finish_reason == "length"


def _said(text: str, phase: str | None = None) -> dict[str, Any]:
    return {"type": "message", "phase": phase, "content": [{"type": "output_text", "text": text}]}


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ([_said("I look.", "commentary"), _said("Paris", "final_answer")], "Paris"),
        ([_said("I look.", "commentary"), _said("Paris")], "Paris"),
        ([_said("Paris", "commentary"), _said("Paris", "final_answer")], "Paris"),
        ([_said("I look.", "commentary")], "I look."),
    ],
)
def test_what_a_model_says_between_its_steps_is_no_answer(output, text):
    whole = {"status": "completed", "output": output}
    events = [
        *(
            {"type": "response.output_item.added", "output_index": at, "item": item | {"content": []}}
            for at, item in enumerate(output)
        ),
        *(
            {"type": "response.output_text.delta", "output_index": at, "delta": item["content"][0]["text"]}
            for at, item in enumerate(output)
        ),
        {"type": "response.completed", "response": whole},
    ]
    body, shown = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events), list[str]()
    preview = StreamPreview(
        lambda now: shown.append(now.text), DIALECTS["responses"].delta_in, inline=False, later=without_rest
    )
    preview.feed(body)
    for answer in (
        read("responses", orjson.dumps(whole)),
        read("responses", body, headers={"Content-Type": "text/event-stream"}),
    ):
        assert isinstance(answer, Completion)
        assert answer.text == text
        assert all(text.startswith(part) for part in shown)


@pytest.mark.parametrize("output", [[], None, ...])
@pytest.mark.parametrize("kept", ["deltas", "items", "both"])
def test_a_response_whose_last_event_has_no_output_is_read_from_the_others(output, kept):
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    deltas = [
        *(
            {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": text}
            for text in ("Pa", "ris")
        ),
        {"type": "response.output_item.added", "output_index": 1, "item": {**call, "arguments": ""}},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
    ]
    items = [
        {"type": "response.output_item.done", "output_index": 0, "item": _said("Paris")},
        {"type": "response.output_item.done", "output_index": 1, "item": call},
    ]
    last = {"status": "completed"} | ({} if output is ... else {"output": output})
    events = [
        *(deltas if kept != "items" else ()),
        *(items if kept != "deltas" else ()),
        {"type": "response.completed", "response": last},
    ]
    body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
    answer = read("responses", body, headers={"Content-Type": "text/event-stream"})
    assert isinstance(answer, Completion)
    assert answer.text == "Paris"
    assert [one["function"] for one in answer.tool_calls] == [{"name": "look", "arguments": "{}"}]


@pytest.mark.parametrize("last", ["STOP", None, "MAX_TOKENS"])
def test_a_later_event_of_gemini_takes_no_cut_back(last):
    events = [
        {"candidates": [{"content": {"parts": [{"text": "Par"}]}, "finishReason": "MAX_TOKENS"}]},
        {"candidates": [{"finishReason": last}]},
    ]
    body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
    assert answered("gemini", body, headers={"Content-Type": "text/event-stream"}).finish_reason == "length"


def test_a_stream_of_anthropic_that_begins_again_is_its_second_answer():
    def begun(identity: str, text: str) -> list[dict[str, Any]]:
        message = {"type": "message", "id": identity, "content": [], "usage": {"input_tokens": 1}}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": text}}
        return [{"type": "message_start", "message": message}, block]

    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    events = [*begun("a", "Par"), *begun("b", "Paris"), end]
    body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
    assert answered("anthropic", body, headers={"Content-Type": "text/event-stream"}).text == "Paris"


@pytest.mark.parametrize(("ids", "text"), [("aab", "London"), ("abc", "PaLonLondon"), ("aaa", "PaLonLondon")])
def test_a_stream_of_gemini_begins_again_if_an_id_of_several_events_changes(ids, text):
    pieces = zip(ids, ("Pa", "Lon", "London"), strict=True)
    events = [
        {"responseId": identity, "candidates": [{"content": {"parts": [{"text": piece}]}, "finishReason": "STOP"}]}
        for identity, piece in pieces
    ]
    body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
    assert answered("gemini", body, headers={"Content-Type": "text/event-stream"}).text == text


@pytest.mark.parametrize("last", ["end_turn", None, "max_tokens"])
def test_a_later_event_of_anthropic_takes_no_cut_back(last):
    events = [
        {"type": "message_start", "message": {"type": "message", "content": [], "usage": {"input_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Par"}},
        *({"type": "message_delta", "delta": {"stop_reason": reason}} for reason in ("max_tokens", last)),
    ]
    body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
    assert answered("anthropic", body, headers={"Content-Type": "text/event-stream"}).finish_reason == "length"


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "completed", "incomplete_details": {"reason": "max_output_tokens"}},
        {"status": "incomplete", "incomplete_details": {"reason": "max_tokens"}},
        {"status": "completed", "output": [{**_said("Par"), "status": "incomplete"}]},
    ],
)
def test_a_response_that_is_cut_is_one_whatever_its_status(fields):
    assert answered("responses", {"output": [_said("Par")], **fields}).finish_reason == "length"


def test_the_last_event_of_a_cut_response_is_its_status():
    response = {"status": "completed", "output": [_said("Par")], "incomplete_details": {"reason": "max_output_tokens"}}
    body = b"data: %b\n\n" % orjson.dumps({"type": "response.incomplete", "response": response})
    assert answered("responses", body, headers={"Content-Type": "text/event-stream"}).finish_reason == "length"


_WEB = [{"web": {"uri": f"https://example.org/{number}", "title": f"T{number}"}} for number in (1, 2)]
_SUPPORTS = [{"segment": {"startIndex": at}, "groundingChunkIndices": [at]} for at in (0, 1)]
_PAGES = {"groundingChunks": _WEB, "groundingSupports": _SUPPORTS}
_QUERIES = {"webSearchQueries": ["q", "r"]}


@pytest.mark.parametrize(
    "grounding",
    [
        [{}, {**_PAGES, **_QUERIES}],
        [{**_PAGES, **_QUERIES}, {}],
        [{**_PAGES, **_QUERIES}, None],
        [{**_PAGES, **_QUERIES}, {**_PAGES, **_QUERIES}],
        [_QUERIES, _PAGES],
        [_PAGES, _QUERIES],
        [_PAGES, {**_QUERIES, "groundingChunks": []}],
        [{"groundingChunks": _WEB}, {"groundingSupports": _SUPPORTS, **_QUERIES}],
        [{"groundingChunks": _WEB[:1], "webSearchQueries": ["q"]}, {**_PAGES, **_QUERIES}],
        [
            {"groundingChunks": _WEB[:1], "webSearchQueries": ["q"]},
            {"groundingChunks": _WEB[1:], "webSearchQueries": ["r"]},
        ],
        [{**_PAGES, **_QUERIES}, {"groundingChunks": _WEB[1:], "searchEntryPoint": {"renderedContent": "x"}}],
        [{"retrievalMetadata": {}, "groundingChunks": None}, {**_PAGES, **_QUERIES}],
    ],
)
def test_the_grounding_of_a_stream_may_come_in_several_events(grounding):
    events = [
        {
            "candidates": [
                {"content": {"parts": [{"text": text}]}, "groundingMetadata": metadata, "finishReason": end}
            ],
            "modelVersion": "gemini-3-pro",
            "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2},
        }
        for text, metadata, end in zip(("A ", "B"), grounding, (None, "STOP"), strict=True)
    ]
    body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
    answer = answered("gemini", body, headers={"Content-Type": "text/event-stream"})
    assert [source["title"] for source in answer.sources or ()] == ["T1", "T2"]
    assert answer.usage.searches == 2


@pytest.mark.thorough
def test_many_events_with_grounding_are_read_in_linear_time():
    events = [
        {"candidates": [{"content": {"parts": []}, "groundingMetadata": {"webSearchQueries": [f"q{at}"]}}]}
        for at in range(20_000)
    ]
    began = time.process_time()
    whole = DIALECTS["gemini"].assemble(iter([*events, {"candidates": [{"finishReason": "STOP"}]}]))
    assert len(whole["candidates"][0]["groundingMetadata"]["webSearchQueries"]) == 20_000
    assert time.process_time() - began < 2.0


def test_a_count_that_the_last_event_of_gemini_leaves_out_is_kept():
    parts = [{"content": {"parts": [{"text": "Hi"}]}}, {"content": {"parts": []}, "finishReason": "STOP"}]
    counts = [
        {"promptTokenCount": 500, "thoughtsTokenCount": 10, "cachedContentTokenCount": 200},
        {"promptTokenCount": 500, "candidatesTokenCount": 2},
    ]
    events = [{"candidates": [part], "usageMetadata": count} for part, count in zip(parts, counts, strict=True)]
    gemini = DIALECTS["gemini"]
    usage = (gemini.completion(gemini.assemble(iter(events)), {}) or {})["usage"]
    assert (usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (12, 200)


def test_commentary_before_the_final_answer_of_a_response_is_no_part_of_it():
    phases = (("commentary", "Let me look."), ("final_answer", "Paris"))
    output = [
        {"type": "message", "phase": phase, "content": [{"type": "output_text", "text": text}]}
        for phase, text in phases
    ]
    response = {"id": "r", "status": "completed", "output": output, "usage": {"input_tokens": 3, "output_tokens": 2}}
    for read in (read_response, read_other_response):
        found = read(200, {}, orjson.dumps(response), _endpoint("responses"))
        assert isinstance(found, Completion)
        assert found.text == "Paris"
    found = read_response(200, {}, orjson.dumps(response | {"output": output[:1]}), _endpoint("responses"))
    assert isinstance(found, Completion)
    assert found.text == "Let me look."


def test_the_arguments_of_a_streamed_call_that_the_last_event_lacks_are_read():
    begun = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": ""}
    for more, output in (
        ({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": '{"a": 1}'}, [begun]),
        ({"type": "response.function_call_arguments.done", "output_index": 0, "arguments": '{"a": 1}'}, []),
        (
            {"type": "response.output_item.done", "output_index": 0, "item": {**begun, "arguments": '{"a": 1}'}},
            [{"type": "message", "id": "m", "content": [{"type": "output_text", "text": "I look."}]}],
        ),
    ):
        events = [
            {"type": "response.output_item.added", "output_index": 0, "item": begun},
            more,
            {"type": "response.completed", "response": {"status": "completed", "output": output}},
        ]
        body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
        found = read("responses", body, headers={"Content-Type": "text/event-stream"})
        assert isinstance(found, Completion)
        assert found.tool_calls == (_LOOKING,)


def test_messages_before_a_final_answer_are_no_answer_whatever_their_phase():
    messages = [
        {"type": "message", "phase": phase, "content": [{"type": "output_text", "text": text}]}
        for phase, text in (("analysis", "Let me think."), ("final_answer", "Paris"))
    ]
    found = read("responses", orjson.dumps({"status": "completed", "output": messages}))
    assert isinstance(found, Completion)
    assert (found.text, found.reasoning) == ("Paris", "Let me think.")


def test_blocks_of_anthropic_with_one_index_are_apart():
    begun = {"type": "message", "usage": {"input_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
    for name in ("look", "listen"):
        use = {"type": "tool_use", "id": name, "name": name, "input": {}}
        events.append({"type": "content_block_start", "index": 0, "content_block": use})
        piece = {"type": "input_json_delta", "partial_json": '{"a": 1}'}
        events.append({"type": "content_block_delta", "index": 0, "delta": piece})
    events.append({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}})
    body = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)
    found = read("anthropic", body, headers={"Content-Type": "text/event-stream"})
    assert isinstance(found, Completion)
    functions = [call["function"] for call in found.tool_calls]
    assert functions == [{"name": name, "arguments": '{"a": 1}'} for name in ("look", "listen")]
