"""Bodies become requests, and outcomes bodies."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import orjson
import pytest

from promptmill.backends.protocol import Completion, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.features.openai_server.api_errors import ApiError, error_of
from promptmill.features.openai_server.bodies import CHAT, EMBEDDINGS, RESPONSES, reply_body, request_of
from promptmill.features.openai_server.choices import NOTED
from promptmill.features.openai_server.streams import ResponseEvents

HI = [{"role": "user", "content": "hi"}]


def _refused(path: str, body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as refused:
        request_of(path, body)
    assert refused.value.status == 400
    return refused.value


def test_a_chat_becomes_a_request_with_its_parameters():
    body = {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, *HI],
        "max_tokens": 9,
        "max_completion_tokens": 5,
        "stop": "END",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "temperature": 0.5,
    }
    request = request_of(CHAT, body)
    assert request.sampling.given() == {"max_tokens": 5, "stop": ["END"], "temperature": 0.5}
    assert request.extra == {"tools": body["tools"]}
    assert request.conversation.as_messages() == body["messages"]


def test_fields_of_no_effect_nulls_and_defaults_change_nothing():
    ignored = dict.fromkeys(("user", "safety_identifier", "prompt_cache_key", "service_tier", "verbosity"), "x")
    nulls = dict.fromkeys(("tools", "stop", "seed", "functions", "audio", "max_completion_tokens"))
    defaults = {
        "logit_bias": {},
        "tools": [],
        "response_format": {"type": "text"},
        "tool_choice": "auto",
        "n": 1,
        "functions": [],
        "best_of": 1,
        "typical_p": 1.0,
        "mirostat": 0,
        "early_stopping": False,
        "plugins": [],
        "suffix": "",
        "reasoning": {"exclude": True},
    }
    body = {"messages": HI, "metadata": {"a": "b"}, "store": True, "stream": False, **ignored, **nulls}
    for more in ({}, defaults):
        request = request_of(CHAT, body | more)
        assert (request.sampling.given(), request.extra) == ({}, {})


@pytest.mark.parametrize("functions", [{}, {"functions": None}, {"functions": []}])
@pytest.mark.parametrize("choice", ["none", "auto", None])
def test_the_choice_of_a_function_changes_nothing_without_functions(choice, functions):
    request = request_of(CHAT, {"messages": HI, "function_call": choice, **functions})
    assert (request.sampling.given(), request.extra) == ({}, {})


@pytest.mark.parametrize(
    ("path", "text"), [(CHAT, {"messages": HI}), (RESPONSES, {"input": "hi"}), (EMBEDDINGS, {"input": "hi"})]
)
def test_fields_of_no_effect_change_nothing_at_any_path(path, text):
    names = ("user", "safety_identifier", "service_tier", "verbosity", "prediction", "client_metadata", "cache_salt")
    ignored = dict.fromkeys(names, "x") | {"stream": False, "stream_options": {}, "priority": 0, "request_id": "1"}
    if path != CHAT:
        ignored |= {"truncation": "auto"} if path == RESPONSES else {"temperature": 0.7, "max_tokens": 9, "top_p": 1}
    plain, request = request_of(path, text), request_of(path, text | ignored)
    assert (request.sampling.given(), request.extra) == (plain.sampling.given(), plain.extra)


@pytest.mark.parametrize(
    ("path", "text"), [(CHAT, {"messages": HI}), (RESPONSES, {"input": "hi"}), (EMBEDDINGS, {"input": "hi"})]
)
@pytest.mark.parametrize("name", sorted(NOTED))
def test_a_field_that_changes_no_answer_is_left_out_with_a_note(path, text, name):
    body = text | {name: {"include": True}}
    plain, request = request_of(path, text), request_of(path, body)
    assert (request.sampling.given(), request.extra) == (plain.sampling.given(), plain.extra)
    vectors = (b"1234",) if path == EMBEDDINGS else ()
    reply = reply_body(path, body, Completion("hi", "stop", vectors=vectors), "m")
    assert reply["x_note"] == f"Left out, because no answer depends on it: {name}."


@pytest.mark.parametrize("more", [{}, {"user": "u", "keep_alive": None}])
def test_a_reply_has_no_note_without_such_a_field(more):
    assert "x_note" not in reply_body(CHAT, {"messages": HI, **more}, Completion("hi", "stop"), "m")


@pytest.mark.parametrize("name", ["provider", "think", "options", "guardrails", "mock_response", "num_ctx"])
def test_a_field_that_may_change_the_answer_is_refused(name):
    assert _refused(CHAT, {"messages": HI, name: {"a": 1}}).param == name


@pytest.mark.parametrize("encoding", ["int8", [], {}])
def test_an_unknown_encoding_of_embeddings_is_refused(encoding):
    assert _refused(EMBEDDINGS, {"input": "hi", "encoding_format": encoding}).param == "encoding_format"


def test_embeddings_are_not_streamed():
    assert _refused(EMBEDDINGS, {"input": "hi", "stream": True}).param == "stream"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("given", "sampling", "extra"),
    [
        ({"guided_choice": ["a", "b"]}, {"choices": ["a", "b"]}, {}),
        ({"structured_outputs": {"choice": ["a", "b"], "regex": None}}, {"choices": ["a", "b"]}, {}),
        ({"guided_json": json.dumps(SCHEMA)}, {"response_format": FORM}, {}),
        ({"structured_outputs": {"json": SCHEMA}}, {"response_format": FORM}, {}),
        ({"structured_outputs": {"json_object": True}}, {"response_format": {"type": "json_object"}}, {}),
        ({"guided_regex": "a+"}, {}, {"structured_outputs": {"regex": "a+"}}),
        ({"structured_outputs": {}}, {}, {}),
        ({"logit_bias": {"7": -100}}, {}, {"logit_bias": {"7": -100}}),
        ({"chat_template_kwargs": {"date": "today"}}, {}, {"chat_template_kwargs": {"date": "today"}}),
        ({"top_k": 3, "seed": 1}, {"top_k": 3, "seed": 1}, {}),
    ],
)
def test_parameters_of_vllm_are_taken_at_both_paths(given, sampling, extra):
    for path, text in ((CHAT, {"messages": HI}), (RESPONSES, {"input": "hi"})):
        request = request_of(path, text | given)
        assert (request.sampling.given(), request.extra) == (sampling, extra)


def test_several_forms_of_an_answer_are_refused():
    error = _refused(CHAT, {"messages": HI, "response_format": {"type": "json_object"}, "guided_choice": ["a", "b"]})
    assert "response_format, choices" in error.message


def test_thinking_is_switched_as_vllm_does_it():
    """UltraRAG sends this with each request."""
    asked = {"chat_template_kwargs": {"enable_thinking": False}}
    assert request_of(CHAT, {"messages": HI} | asked).sampling.given() == {"enable_thinking": False}


def test_thinking_is_switched_as_openrouter_does_it():
    def sampling(**reasoning):
        return request_of(CHAT, {"messages": HI, "reasoning": reasoning}).sampling.given()

    assert sampling(effort="low", exclude=True) == {"reasoning_effort": "low"}
    assert sampling(enabled=False, effort=None) == {"enable_thinking": False}
    assert _refused(CHAT, {"messages": HI, "reasoning": {"max_tokens": 9}}).param == "reasoning.max_tokens"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("structured_outputs", "a+"),
        ("logit_bias", [7]),
        ("chat_template_kwargs", "date"),
        ("structured_outputs", {"json": [1]}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("function_call", "required"),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
        ("colour", "red"),
        ("temperature", "warm"),
        ("top_p", 3),
        ("n", 0),
        ("messages", []),
        ("messages", "hi"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused_by_its_name(field, value):
    assert _refused(CHAT, {"messages": HI, field: value}).param == field


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (CHAT, {}, "messages", "missing_required_parameter"),
        (CHAT, {"messages": "hi"}, "messages", "invalid_type"),
        (CHAT, {"messages": HI, "max_tokens": "many"}, "max_tokens", "invalid_type"),
        (CHAT, {"messages": HI, "temperature": True}, "temperature", "invalid_type"),
        (CHAT, {"messages": HI, "n": 129}, "n", "integer_above_max_value"),
        (CHAT, {"messages": HI, "max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        (CHAT, {"messages": HI, "top_p": 3}, "top_p", "decimal_above_max_value"),
        (RESPONSES, {}, "input", "missing_required_parameter"),
        (RESPONSES, {"input": [{"role": "user", "content": 5}]}, "input", None),
    ],
)
def test_a_wrong_value_has_the_code_of_openai(path, body, param, code):
    error = _refused(path, body)
    assert (error.param, error.code) == (param, code)


def test_a_wrong_message_is_named_by_its_place():
    error = _refused(CHAT, {"messages": [*HI, {"role": "wizard", "content": "hi"}]})
    assert error.param == "messages[1]"


def test_cache_marks_of_parts_arrive():
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    turns = [{"role": "developer", "content": [{"type": "input_text", "text": "rules", **mark}]}]
    turns += [{"role": "user", "content": [{"type": "input_text", "text": "a document", **mark}]}]
    messages = request_of(RESPONSES, {"instructions": "be brief", "input": turns}).conversation.as_messages()
    assert messages[0]["content"] == [
        {"type": "text", "text": "be brief"},
        {"type": "text", "text": "\n\nrules", **mark},
    ]
    assert messages[1]["content"] == [{"type": "text", "text": "a document", **mark}]
    again = request_of(CHAT, {"messages": messages}).conversation.as_messages()
    assert again == messages


def test_a_response_becomes_the_same_request_as_a_chat():
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    request = request_of(
        RESPONSES,
        {
            "instructions": "be brief",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
                {"type": "message", "role": "user", "content": "and?"},
            ],
            "max_output_tokens": 7,
            "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}},
            "tools": [{"type": "function", "name": "f", "parameters": schema}],
            "tool_choice": {"type": "function", "name": "f"},
            "store": True,
            "previous_response_id": None,
        },
    )
    calls = [
        {"id": call, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for call, name in (("c1", "f"), ("c2", "g"))
    ]
    assert request.conversation.as_messages() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
        {"role": "user", "content": "and?"},
    ]
    assert request.sampling.given() == {
        "max_tokens": 7,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
    }
    assert request.extra == {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", {"format": "json"}),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("tools", [{"type": "web_search"}]),
        ("truncation", "middle"),
    ],
)
def test_the_parts_of_responses_that_need_state_are_refused(field, value):
    assert _refused(RESPONSES, {"input": "hi", field: value}).param == field


def test_token_ids_are_refused_with_the_option_of_the_client_that_sends_them():
    for tokens in ([1, 2], [[1, 2], [3]]):
        assert "check_embedding_ctx_length" in _refused(EMBEDDINGS, {"input": tokens}).message


def test_embeddings_come_as_base64_if_the_client_asks_for_it():
    data = [{"embedding": [0.5, -2.0], "index": 0}]
    answer = Completion("", "stop", Usage(3), details={"payload": {"data": data}})
    floats = reply_body(EMBEDDINGS, {"input": "a"}, answer, "m")
    assert floats["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, -2.0]}]
    assert floats["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = reply_body(EMBEDDINGS, {"input": "a", "encoding_format": "base64"}, answer, "m")["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -2.0)


def test_a_completion_becomes_a_whole_reply():
    call = {"function": {"name": "f", "arguments": "{}"}}
    answer = Completion("", "stop", Usage(3, 4, 1, 2), reasoning="hm", tool_calls=(call,), logprobs={"content": []})
    body = reply_body(CHAT, {"messages": HI}, answer, "org/name")
    (choice,) = body["choices"]
    made = choice["message"].pop("tool_calls")[0]
    assert made.pop("id").startswith("call_")
    assert made == {"type": "function", **call}
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "reasoning_content": "hm",
            "reasoning": "hm",
        },
        "finish_reason": "tool_calls",
        "logprobs": {"refusal": None, "content": []},
    }
    assert (body["object"], body["model"]) == ("chat.completion", "org/name")
    assert body["usage"]["total_tokens"] == 7
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_arguments_that_are_an_object_become_their_text():
    calls = ({"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}},)
    body = reply_body(CHAT, {"messages": HI}, Completion("", "tool_calls", tool_calls=calls), "m")
    assert body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'


def test_a_cut_answer_is_an_incomplete_response():
    body = reply_body(RESPONSES, {"input": "hi"}, Completion("hal", "length"), "m")
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["content"][0]["text"] == "hal"


CALL = {"id": "c1", "function": {"name": "f", "arguments": '{"a'}}


@pytest.mark.parametrize(
    ("answer", "statuses"),
    [
        (Completion("hal", "length"), {"message": "incomplete"}),
        (Completion("hal", "content_filter"), {"message": "incomplete"}),
        (Completion("hal", "length", reasoning="hm"), {"reasoning": "completed", "message": "incomplete"}),
        (Completion("", "length", reasoning="hm"), {"reasoning": "incomplete"}),
        (Completion("x", "length", tool_calls=(CALL,)), {"message": "completed", "function_call": "incomplete"}),
        (Completion("all", "stop", reasoning="hm"), {"reasoning": "completed", "message": "completed"}),
    ],
)
def test_the_item_at_which_a_response_was_cut_is_incomplete(answer, statuses):
    output = reply_body(RESPONSES, {"input": "hi"}, answer, "m")["output"]
    assert {item["type"]: item["status"] for item in output} == statuses
    events = b"".join(ResponseEvents({"input": "hi"}, "m", 1).end(answer)).split(b"data: ")[1:]
    found = [orjson.loads(event.partition(b"\n")[0]) for event in events]
    ended = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    for items in (ended, found[-1]["response"]["output"]):
        assert {item["type"]: item["status"] for item in items} == statuses


@pytest.mark.parametrize(
    ("code", "status", "name", "retry"),
    [
        (Code.CONTEXT_LENGTH, 400, "context_length_exceeded", None),
        (Code.NOT_FOUND, 404, "model_not_found", None),
        (Code.INVALID_ANSWER, 422, "invalid_answer", None),
        (Code.RATE_LIMITED, 429, "rate_limit_exceeded", "retry-after"),
        (Code.BUDGET, 429, "insufficient_quota", "x-should-retry"),
        (Code.UNREACHABLE, 500, "unreachable", "x-should-retry"),
        (Code.SHUTDOWN, 503, None, "retry-after"),
    ],
)
def test_an_error_has_the_status_and_code_that_clients_look_at(code, status, name, retry):
    error = error_of(PromptmillError(code, "It failed."))
    assert (error.status, error.code) == (status, name)
    assert list(error.headers or ()) == ([retry] if retry else [])


@pytest.mark.parametrize(
    ("code", "said", "path", "expected"),
    [
        (Code.NOT_FOUND, None, CHAT, ("model", "model_not_found")),
        (Code.CONTEXT_LENGTH, None, CHAT, ("messages", "context_length_exceeded")),
        (Code.CONTEXT_LENGTH, None, RESPONSES, ("input", "context_length_exceeded")),
        (
            Code.BAD_REQUEST,
            {"param": "temperature", "code": "unsupported_value"},
            CHAT,
            ("temperature", "unsupported_value"),
        ),
        (Code.BAD_REQUEST, {"param": "body", "code": 400}, CHAT, (None, None)),
    ],
)
def test_an_error_of_the_endpoint_has_its_parameter(code, said, path, expected):
    failed = PromptmillError(code, "api.openai.com refused it.")
    failed.said = None if said is None else {"status_code": 400, "error": said}
    error = error_of(failed, path)
    assert (error.param, error.code) == expected


def test_every_code_makes_an_error_of_openai():
    for code in Code:
        body = error_of(PromptmillError(code, "It failed.")).body()
        assert body["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (RESPONSES, {"input": "hi", "instructions": ["x"]}, "input"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": ["x"], "text": "y"}]}]}, "input"),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": []}}, "response_format"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(path, body, param):
    assert _refused(path, body).param == param


def _embeddings(*data):
    """Return the reply for two inputs, of an endpoint that sent `data`."""
    answer = Completion("", "stop", Usage(3), details={"payload": {"data": [*data]}})
    return reply_body(EMBEDDINGS, {"input": ["a", "b"]}, answer, "m")["data"]


def test_each_vector_stands_at_the_index_that_the_endpoint_gave_it():
    found = _embeddings({"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]})
    assert [(one["index"], one["embedding"]) for one in found] == [(0, [1.0]), (1, [2.0])]


@pytest.mark.parametrize(
    "indices", [[0], [1], [None, None], [0, 0], [0, 2], [1, 2], [0, 1, 1], [0, 1, 2], [False, True], []]
)
def test_vectors_that_are_not_one_for_each_input_are_an_error_of_the_endpoint(indices):
    with pytest.raises(ApiError, match="one embedding for each of the 2 inputs") as raised:
        _embeddings(*({"index": index, "embedding": [1.0]} for index in indices))
    assert raised.value.status == 502


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("vector", [[1.0, None], [None], ["1.0"], [True, 1.0]])
def test_an_embedding_without_all_its_numbers_is_an_error_of_the_endpoint(vector, encoding):
    answer = Completion("", details={"payload": {"data": [{"embedding": vector}]}})
    with pytest.raises(ApiError) as raised:
        reply_body(EMBEDDINGS, {"input": "x", "encoding_format": encoding}, answer, "m")
    assert raised.value.status == 502


def test_embeddings_of_different_lengths_are_an_error_of_the_endpoint():
    with pytest.raises(ApiError, match="all of one length") as raised:
        _embeddings({"embedding": [1.0]}, {"embedding": [1.0, 2.0]})
    assert raised.value.status == 502


def test_embeddings_of_other_dimensions_than_requested_are_an_error_of_the_endpoint():
    answer = Completion("", details={"payload": {"data": [{"embedding": [1.0, 2.0]}]}})
    with pytest.raises(ApiError, match="embeddings of 2 numbers, although `dimensions` is 3") as raised:
        reply_body(EMBEDDINGS, {"input": "x", "dimensions": 3}, answer, "m")
    assert raised.value.status == 502
    assert reply_body(EMBEDDINGS, {"input": "x", "dimensions": 2}, answer, "m")["data"][0]["embedding"] == [1.0, 2.0]


@pytest.mark.parametrize("vector", [[1e40], ["x"], "AAA", "", None, [0.0, 0.0]])
def test_embeddings_that_are_none_are_an_error_of_the_endpoint(vector):
    answer = Completion("", details={"payload": {"data": [{"embedding": vector}]}})
    encoding = "float" if isinstance(vector, str) else "base64"
    with pytest.raises(ApiError) as raised:
        reply_body(EMBEDDINGS, {"input": "x", "encoding_format": encoding}, answer, "m")
    assert raised.value.status == 502
