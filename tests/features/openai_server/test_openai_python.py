"""OpenAI's own client for Python, and plain HTTP for what it hides, against a server in front of an endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json

import openai
import pytest
from pydantic import BaseModel

from openai_clients import client_of
from replies import answer, attempts, deltas, drip, hang, raw, sse, status
from served import BEARER, TOKEN, ServedHere
from server_process import written
from waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.http
HI = [{"role": "user", "content": "hi there"}]
EMBEDDED = json.dumps(
    {"data": [{"index": 0, "embedding": [0.5, -2.0]}], "usage": {"prompt_tokens": 2, "total_tokens": 2}}
).encode()


def _post(server, body, path="/v1/chat/completions", headers=BEARER):
    return server.ask("POST", path, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def test_models_are_listed_and_found_also_with_a_slash(client):
    assert [model.id for model in client.models.list()] == ["default", "org/name"]
    assert client.models.retrieve("org/name").id == "org/name"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("other")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
def test_an_unknown_model_is_refused_with_the_names_and_their_source(server, path):
    response = _post(server, {"model": "gone", "messages": HI, "input": "hi"}, path)
    assert response.status == 404
    assert json.loads(response.body)["error"]["message"] == (
        "There is no model 'gone'; models here: default, org/name, m, small. "
        "On the server, `models:` in parameter.yaml names them, and `promptmill models` lists them."
    )


def test_a_chat_is_answered_by_the_named_model(client, upstream):
    reply = client.chat.completions.create(model="org/name", messages=HI, max_completion_tokens=7, temperature=0)
    assert reply.choices[0].message.content == "echo: hi there"
    assert (reply.model, reply.choices[0].finish_reason) == ("org/name", "stop")
    assert reply.usage.total_tokens == 5
    assert reply._request_id.startswith("req_")
    sent = upstream.seen[-1].json
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("small", 7, 0)


def test_several_answers_keep_their_own_choices(client, upstream):
    reply = client.chat.completions.create(model="default", messages=HI, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"echo: hi there"}


def test_several_answers_are_streamed_whatever_the_form_of_their_number(tmp_path, server, upstream):
    body = {"messages": HI, "stream": True}
    with ServedHere(written(tmp_path, upstream.url, {"sampling_params": {"n": 2}})) as of_two:
        for asked, n in ((server, 2.0), (server, "2"), (of_two, None)):
            reply = _post(asked, body | {"n": n})
            assert reply.body.endswith(b"data: [DONE]\n\n")
            choices = [json.loads(text[6:])["choices"][0] for text in reply.body.decode().split("\n\n")[:-2]]
            for index in range(2):
                deltas = [choice["delta"] for choice in choices if choice["index"] == index]
                assert deltas[0]["role"] == "assistant"
                assert "".join(delta.get("content") or "" for delta in deltas) == "echo: hi there"


def test_a_stream_comes_in_pieces_with_usage_only_if_it_is_requested(client, upstream):
    upstream.reply = drip(0.02, 4)
    chunks = list(client.chat.completions.create(model="default", messages=HI, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "echo: hi there"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all("usage" not in chunk.model_dump(exclude_unset=True) for chunk in chunks)
    options = {"include_usage": True}
    *others, last = client.chat.completions.create(model="default", messages=HI, stream=True, stream_options=options)
    assert (last.choices, last.usage.total_tokens, last.model) == ([], 5, "default")
    assert last.id == others[0].id
    assert all(chunk.usage is None for chunk in others)


def test_the_text_of_a_stream_arrives_while_the_endpoint_still_answers(client, upstream):
    async def begins(exchange):
        chunk = {"choices": [{"index": 0, "delta": {"content": "once"}}]}
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        await exchange.write(head + b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await exchange.sleep(None)

    upstream.reply = begins
    with client.chat.completions.create(model="default", messages=HI, stream=True) as stream:
        texts = (chunk.choices[0].delta.content for chunk in stream)
        assert next(text for text in texts if text) == "once"
        assert upstream.in_flight == 1
    eventually(lambda: upstream.in_flight == 0)  # the client has left, and so has its request


def test_a_client_that_leaves_ends_its_request(server, upstream):
    upstream.reply = hang()
    client = client_of(server, timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="default", messages=HI)
    eventually(lambda: upstream.seen and upstream.in_flight == 0)


@pytest.mark.thorough  # it waits three seconds
def test_a_silent_stream_sends_comments(server, upstream):
    upstream.reply = hang()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps({"messages": HI, "stream": True}), BEARER)
        response = connection.getresponse()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert b": ping\n" in iter(response.readline, b"")


def test_an_error_before_the_first_piece_has_its_own_status_and_a_later_one_ends_the_stream(client, upstream):
    upstream.reply = status(400, "no such thing")
    with pytest.raises(openai.BadRequestError, match="no such thing"):
        client.chat.completions.create(model="default", messages=HI, stream=True)

    async def broken(exchange):
        chunk = {"choices": [{"index": 0, "delta": {"content": "once"}}]}
        fails = {"error": {"message": "it broke", "code": 400}}
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        await exchange.write(head + b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await exchange.sleep(0.05)
        await exchange.write(b"data: " + json.dumps(fails).encode() + b"\n\n")
        exchange.close()

    upstream.reply = broken
    with pytest.raises(openai.APIError) as failed:
        list(client.chat.completions.create(model="default", messages=HI, stream=True))
    assert not isinstance(failed.value, openai.APIStatusError)


def test_tool_calls_come_whole_and_as_deltas_with_an_index(client, upstream):
    function = {"name": "f", "arguments": '{"a": 1}'}
    calls = [{"index": n, "id": f"c{n}", "type": "function", "function": function} for n in range(2)]
    upstream.reply = answer(None, message={"tool_calls": calls}, finish_reason="tool_calls")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    asked = {"model": "default", "messages": HI, "tools": tools}
    reply = client.chat.completions.create(**asked)
    assert [call.id for call in reply.choices[0].message.tool_calls] == ["c0", "c1"]
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (None, "tool_calls")
    with client.chat.completions.stream(**asked) as stream:
        found = stream.get_final_completion().choices[0]
    assert [(call.id, call.function.arguments) for call in found.message.tool_calls] == [
        ("c0", '{"a": 1}'),
        ("c1", '{"a": 1}'),
    ]


def _called(place, name=None, arguments=""):
    begun = {"id": f"c{place}", "type": "function"} if name else {}
    function = {**({"name": name} if name else {}), "arguments": arguments}
    return {"tool_calls": [{"index": place, **begun, "function": function}]}


THOUGHT = [{"reasoning_content": "So "}, {"reasoning_content": "be it."}]
CALLS = [_called(0, "f"), _called(0, None, '{"a"'), _called(0, None, ": 1}"), _called(1, "g"), _called(1, None, "{}")]
FUNCTIONS = [{"name": name, "parameters": {"type": "object"}} for name in "fg"]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]


def test_reasoning_text_and_tool_calls_of_a_chat_arrive_while_the_endpoint_still_answers(client, upstream):
    pieces = [*THOUGHT, {"content": "Look."}, *CALLS[:2]]
    upstream.reply = deltas(*pieces, hangs=True)
    with client.chat.completions.create(model="default", messages=HI, tools=TOOLS, stream=True) as stream:
        found, told = {"reasoning": "", "reasoning_content": "", "content": ""}, []
        for chunk in stream:
            delta = chunk.choices[0].delta.to_dict()
            for name in found.keys() & delta.keys():
                found[name] += delta[name] or ""
            told += [name for name in ("reasoning", "content", "tool_calls") if delta.get(name)]
            if delta.get("tool_calls", [{}])[0].get("function", {}).get("arguments"):
                break
        assert upstream.in_flight == 1
    assert found == {"reasoning": "So be it.", "reasoning_content": "So be it.", "content": "Look."}
    assert list(dict.fromkeys(told)) == ["reasoning", "content", "tool_calls"]
    assert delta["tool_calls"] == [{"index": 0, "function": {"arguments": '{"a"'}}]


def test_a_streamed_chat_with_reasoning_and_tool_calls_is_whole_at_its_end(client, upstream):
    upstream.reply = deltas(*THOUGHT, {"content": "Look."}, *CALLS, finish_reason="tool_calls")
    with client.chat.completions.stream(model="default", messages=HI, tools=TOOLS) as stream:
        (choice,) = stream.get_final_completion().choices
    called = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert called == [("c0", "f", '{"a": 1}'), ("c1", "g", "{}")]
    assert (choice.message.content, choice.finish_reason) == ("Look.", "tool_calls")
    assert choice.message.reasoning_content == "So be it."


def test_marked_reasoning_comes_before_the_text(client, upstream):
    upstream.reply = deltas({"content": "<think>So be"}, {"content": " it.</thi"}, {"content": "nk>\n\nParis."})
    chunks = list(client.chat.completions.create(model="default", messages=HI, stream=True))
    said = [chunk.choices[0].delta.to_dict() for chunk in chunks]
    assert "".join(delta.get("reasoning", "") for delta in said) == "So be it."
    assert "".join(delta.get("content") or "" for delta in said) == "Paris."
    kinds = [name for delta in said for name in ("reasoning", "content") if delta.get(name)]
    assert kinds == sorted(kinds, reverse=True)


def test_reasoning_and_tool_calls_of_a_response_have_their_events(client, upstream):
    upstream.reply = deltas(*THOUGHT, {"content": "Look."}, *CALLS, finish_reason="tool_calls")
    tools = [{"type": "function", **function} for function in FUNCTIONS]
    with client.responses.stream(model="default", input="hi", tools=tools) as stream:
        events = list(stream)
        response = stream.get_final_response()
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert response.output[0].content[0].text == "So be it."
    assert response.output_text == "Look."
    called = [(item.call_id, item.name, item.arguments) for item in response.output[2:]]
    assert called == [("c0", "f", '{"a": 1}'), ("c1", "g", "{}")]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_text.delta", "output_text.done"),
        *("function_call_arguments.delta", "function_call_arguments.done", "completed"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for place, item in enumerate(response.output):
        own = [event for event in events if getattr(event, "output_index", None) == place]
        assert (own[0].type, own[-1].type) == ("response.output_item.added", "response.output_item.done")
        assert {own[0].item.id, own[-1].item.id} == {item.id}
        assert (own[0].item.status, own[-1].item.status) == ("in_progress", "completed")
        pieces = "".join(event.delta for event in own if event.type.endswith(".delta"))
        assert pieces == (item.arguments if item.type == "function_call" else item.content[0].text)


def test_the_events_of_a_response_arrive_while_the_endpoint_still_answers(client, upstream):
    upstream.reply = deltas(*THOUGHT, *CALLS[:2], hangs=True)
    tools = [{"type": "function", **function} for function in FUNCTIONS]
    with client.responses.create(model="default", input="hi", tools=tools, stream=True) as stream:
        kinds = []
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.function_call_arguments.delta":
                break
        assert upstream.in_flight == 1
    assert kinds.index("response.reasoning_text.delta") < kinds.index("response.reasoning_text.done")
    assert event.delta == '{"a"'


def test_a_stream_whose_repeated_answer_thinks_otherwise_ends_with_an_error(client, upstream):
    broken = sse(b'data: {"choices": [{"index": 0, "delta": {"reasoning": "So"}}]}', cut=True)
    upstream.reply = attempts(broken, deltas({"reasoning": "No"}, {"content": "Paris."}))
    with pytest.raises(openai.APIError) as failed:
        list(client.chat.completions.create(model="default", messages=HI, stream=True))
    assert "not the beginning" in failed.value.message


class City(BaseModel):
    name: str


def test_an_answer_follows_the_schema_of_parse(client, upstream):
    upstream.reply = answer('{"name": "Ulm"}')
    asked = {"model": "default", "messages": HI}
    parsed = client.chat.completions.parse(**asked, response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Ulm")
    upstream.reply = answer('{"nom": "Ulm"}')
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.parse(**asked, response_format=City)
    assert refused.value.code == "invalid_answer"


def test_a_response_is_answered_whole_and_streamed(client, upstream):
    reply = client.responses.create(model="default", input="hi there", instructions="be brief")
    assert (reply.output_text, reply.status, reply.usage.total_tokens) == ("echo: hi there", "completed", 5)
    assert upstream.seen[-1].json["messages"][0] == {"role": "system", "content": "be brief"}
    upstream.reply = drip(0.02, 4)
    with client.responses.stream(model="default", input="hi there") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "echo: hi there"
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="default", input="hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


def test_calls_of_a_custom_tool_and_of_a_namespace_are_streamed_as_their_items(client, upstream):
    functions = [{"name": "patch", "arguments": '{"input": "xx"}'}, {"name": "n__f", "arguments": "{}"}]
    calls = [{"index": n, "id": f"c{n}", "type": "function", "function": each} for n, each in enumerate(functions)]
    upstream.reply = answer("Look.", message={"tool_calls": calls}, finish_reason="tool_calls")
    inner = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    tools = [
        {"type": "custom", "name": "patch"},
        {"type": "namespace", "name": "n", "description": "", "tools": [inner]},
    ]
    events = list(client.responses.create(model="default", input="hi", tools=tools, stream=True))
    message, patch, called = events[-1].response.output
    assert (message.type, patch.type, patch.name, patch.input) == ("message", "custom_tool_call", "patch", "xx")
    assert (called.type, called.name, called.namespace, called.arguments) == ("function_call", "f", "n", "{}")
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert items == [message, patch, called]
    assert [event.input for event in events if event.type == "response.custom_tool_call_input.done"] == ["xx"]


def test_embeddings_pass_through_to_the_endpoint(client, upstream):
    upstream.other_posts = raw(EMBEDDED)
    reply = client.embeddings.create(model="org/name", input="hi there")
    assert (reply.data[0].embedding, reply.usage.prompt_tokens, reply.model) == ([0.5, -2.0], 2, "org/name")
    assert upstream.seen[-1].json == {"model": "small", "input": "hi there"}


@pytest.mark.parametrize(
    ("ask", "expected", "code"),
    [
        ({"path": "/v1/none"}, 404, "unknown_url"),
        ({"method": "DELETE", "path": "/v1/chat/completions"}, 405, "method_not_allowed"),
        ({"headers": {}}, 401, "invalid_api_key"),
        ({"method": "GET", "path": "/v1/models/"}, 404, "unknown_url"),
        ({"body": b"{"}, 400, None),
        ({"body": b'{"messages": [{"role": "user", "content": "hi"}], "stream": "no"}'}, 400, "invalid_type"),
        ({"body": b"[]"}, 400, None),
        ({"body": b'{"model": 3}'}, 400, "invalid_type"),
        ({"body": b'{"model": "gone", "messages": []}'}, 404, "model_not_found"),
        ({"body": b'{"messages": [' + b"1," * 400_000 + b"1]}"}, 413, "request_too_large"),
        ({"headers": {**BEARER, "Host": "evil.example"}}, 421, None),
        ({"headers": {**BEARER, "Origin": "https://evil.example"}}, 403, None),
    ],
)
def test_every_refusal_has_the_shape_of_openai_and_an_id(server, ask, expected, code):
    asked = {"method": "POST", "path": "/v1/chat/completions", "headers": BEARER, "body": b"{}"} | ask
    reply = server.ask(**asked)
    assert reply.status == expected
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.json["error"].keys() == {"message", "type", "param", "code"}
    assert reply.json["error"]["code"] == code


def test_a_refused_endpoint_is_not_asked_again_by_the_client(server, upstream):
    upstream.reply = status(401, "bad key")
    with pytest.raises(openai.InternalServerError):
        client_of(server, max_retries=2).chat.completions.create(model="default", messages=HI)
    assert len(upstream.seen) == 1


def test_the_client_s_system_prompt_takes_the_place_of_the_configured_one(tmp_path, upstream):
    with ServedHere(written(tmp_path, upstream.url, {"system_prompt": "ours"})) as server:
        for messages, expected in ((HI, "ours"), ([{"role": "system", "content": "mine"}, *HI], "mine")):
            assert _post(server, {"messages": messages}, headers={}).status == 200
            assert upstream.seen[-1].json["messages"][0] == {"role": "system", "content": expected}


def test_a_client_uses_only_the_models_and_tokens_that_the_operator_allows(tmp_path, upstream):
    def model(name):
        return {"openai": {"base_url": upstream.url, "model_name": name}}

    top = {
        "models": {"fast": model("small"), "dear": model("large")},
        "client_limits": {"models": ["fast"], "max_tokens": 50},
    }
    with ServedHere(written(tmp_path, upstream.url, top)) as server:
        listed = server.ask("GET", "/v1/models").json
        assert [model["id"] for model in listed["data"]] == ["default", "fast"]
        for name, expected in (("fast", 200), ("small", 200), ("dear", 404), ("large", 404)):
            assert _post(server, {"model": name, "messages": HI}, headers={}).status == expected
        refused = _post(server, {"model": "fast", "messages": HI, "max_tokens": 51}, headers={})
        assert (refused.status, refused.json["error"]["param"]) == (400, "max_tokens")
        assert {seen.json["model"] for seen in upstream.seen} == {"small"}


def test_the_api_can_be_switched_off(tmp_path, upstream):
    with ServedHere(written(tmp_path, upstream.url), "--no-openai") as server:
        assert server.ask("GET", "/v1/models").status == 404
        assert server.session().answers("hi") == ["echo: hi"]


@pytest.mark.thorough
def test_a_thousand_concurrent_streams_complete(server, upstream):
    upstream.reply = drip(0.05, 4)

    async def one(client, number):
        messages = [{"role": "user", "content": f"hi {number}"}]
        stream = await client.chat.completions.create(model="default", messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them():
        url = server.url.removesuffix("/mcp") + "/v1"
        http = openai.DefaultAsyncHttpxClient(limits=openai.DEFAULT_CONNECTION_LIMITS, timeout=120)
        async with openai.AsyncOpenAI(base_url=url, api_key=TOKEN, max_retries=0, http_client=http) as client:
            return await asyncio.gather(*(one(client, number) for number in range(1000)))

    assert asyncio.run(all_of_them()) == [f"echo: hi {number}" for number in range(1000)]
