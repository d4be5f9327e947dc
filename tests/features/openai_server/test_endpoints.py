"""A parameter that the backend of the model cannot take, such as `top_k` at OpenAI's own API."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from openai_clients import client_of, ended, line, results, started, text_of
from promptmill.core.errors import PromptmillError
from promptmill.core.request import check_left_out, required_of
from promptmill.features.openai_server import bodies, endpoints
from renewed import ChangingKey
from replies import answer, late
from served import TOKEN, ServedHere
from server_process import written

pytestmark = pytest.mark.http
HI = {"model": "default", "messages": [{"role": "user", "content": "hi there"}]}


@pytest.fixture(scope="module")
def _started(lasting, tmp_path_factory):
    """Yield a function that returns a client of a server with these settings, which the tests of the module share."""
    with contextlib.ExitStack() as started:

        @functools.cache
        def start(top_k=None):
            folder = tmp_path_factory.mktemp("openais")
            environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN}
            top = {} if top_k is None else {"sampling_params": {"top_k": top_k}}
            return client_of(
                started.enter_context(ServedHere(written(folder, lasting.url, top, provider="openai"), environ=environ))
            )

        yield start


@pytest.fixture
def openais(_started, upstream):
    """A function that returns a client; its endpoint takes what OpenAI's API takes."""
    return _started


@pytest.mark.parametrize("stream", [False, True])
def test_a_parameter_that_the_backend_cannot_take_is_refused_before_anything_is_sent(openais, upstream, stream):
    client = openais()
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**HI, stream=stream, extra_body={"top_k": 5})
    assert (refused.value.param, refused.value.code) == ("top_k", "unsupported_parameter")
    assert upstream.seen == []


def test_a_parameter_with_a_similar_name_is_suggested(openais):
    with pytest.raises(openai.BadRequestError, match="`max_token` is not supported here; did you mean max_tokens"):
        openais().chat.completions.create(**HI, extra_body={"max_token": 5})
    with pytest.raises(openai.BadRequestError, match="`max_tokens` is not supported here, and leaving it out"):
        asked(openais(), "responses", max_tokens=5)  # a parameter of chats


@pytest.mark.parametrize("path", ["chat", "responses"])
def test_a_parameter_that_only_some_backends_take_is_sent_on_or_refused(openais, upstream, path):
    client = openais()
    for name, value in (("chat_template_kwargs", {"date": "today"}), ("structured_outputs", {"regex": "a+"})):
        with pytest.raises(openai.BadRequestError) as refused:
            asked(client, path, **{name: value})
        assert (refused.value.param, upstream.seen) == (name, [])
    assert asked(client, path, logit_bias={"7": -100}) == "echo: hi there"
    assert upstream.seen[-1].json["logit_bias"] == {"7": -100}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_before_its_first_word_is_empty_as_at_openai(openais, upstream, stream):
    upstream.reply = answer("", message={"reasoning_content": "hm"}, finish_reason="length")
    reply = openais().chat.completions.create(**HI, max_tokens=1, stream=stream)
    chunks = [*reply] if stream else [reply]
    said = [choice.delta if stream else choice.message for chunk in chunks for choice in chunk.choices]
    assert "".join(each.content or "" for each in said) == ""
    assert "".join(getattr(each, "reasoning_content", None) or "" for each in said) == "hm"
    assert [each.finish_reason for chunk in chunks for each in chunk.choices if each.finish_reason] == ["length"]


@pytest.mark.features("passes")
def test_a_list_that_stays_cut_has_its_complete_items(openais, upstream):
    upstream.reply = answer('{"names": ["Ada", "Al', finish_reason="length")
    schema = {"type": "object", "properties": {"names": {"type": "array", "items": {"type": "string"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    reply = openais().chat.completions.create(**HI, response_format=form)
    assert [(each.message.content, each.finish_reason) for each in reply.choices] == [('{"names":["Ada"]}', "length")]


@pytest.mark.parametrize(
    "path", ["./a.png", "~/x.png", "../up.png", "file:///etc/passwd", "scan.pdf#page=2", "b" * 200]
)
def test_an_error_names_a_path_as_the_client_wrote_it(openais, upstream, path):
    """A resolved path shows the folders of the server's machine and its user."""
    content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": path}}]
    with pytest.raises(openai.BadRequestError) as refused:
        openais().chat.completions.create(model="default", messages=[{"role": "user", "content": content}])
    said = str(refused.value)
    assert path[:80] in said
    for folder in (Path.cwd(), Path.home()):
        assert str(folder) not in said
        assert str(folder)[:20] not in said


def test_so_does_the_error_file_of_a_batch(openais):
    client = openais()
    content = [{"type": "image_url", "image_url": {"url": "./a.png"}}]
    bad = line("bad", "?")
    bad["body"]["messages"] = [{"role": "user", "content": content}]
    batch = ended(client, started(client, [line("good", "hi"), bad]))
    said = results(client, batch.error_file_id)["bad"]["response"]["body"]["error"]["message"]
    assert said.startswith("./a.png is outside")


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("max_output_tokens", 0, "max_output_tokens"),
        ("reasoning", {"effort": 5}, "reasoning.effort"),
        ("text", {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nope"}}}, "text.format"),
        ("input", [{"role": "alien", "content": "x"}], "input"),
    ],
)
def test_an_error_of_responses_names_the_field_of_its_own_body(openais, field, value, name):
    with pytest.raises(openai.BadRequestError) as refused:
        openais().responses.create(**{"model": "default", "input": "hi", field: value})
    assert refused.value.param == name
    assert refused.value.body["message"].startswith(name)


def asked(client, path, **more):
    """Return the answer to `HI` with `more` fields at a path."""
    if path == "chat":
        return client.chat.completions.create(**HI, extra_body=more).choices[0].message.content
    return client.responses.create(model="default", input="hi there", extra_body=more).output_text


def test_a_parameter_of_the_operator_or_without_effect_is_left_out(openais, upstream):
    client = openais(top_k=5)
    reply = client.chat.completions.create(**HI, extra_body={"repetition_penalty": 1, "min_p": 0.0, "top_k": -1})
    assert reply.choices[0].message.content == "echo: hi there"
    assert upstream.seen[-1].json.keys().isdisjoint({"top_k", "repetition_penalty", "min_p"})


def test_a_line_of_a_batch_with_such_a_parameter_fails_alone(openais, upstream):
    client = openais(top_k=5)
    batch = ended(client, started(client, [line("good", "hi there", logit_bias={"7": 1}), line("bad", "hi", top_k=3)]))
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    assert text_of(results(client, batch.output_file_id)["good"]) == "echo: hi there"
    response = results(client, batch.error_file_id)["bad"]["response"]
    assert (response["status_code"], response["body"]["error"]["param"]) == (400, "top_k")
    assert [(seen.prompt, seen.json["logit_bias"]) for seen in upstream.seen] == [("hi there", {"7": 1})]


def test_only_parameters_that_change_the_answer_are_required():
    given = {"seed": 1, "n": 1, "top_p": 1.0, "temperature": 0, "user": "me", "logprobs": False, "stop": None}
    assert required_of(given) == {"seed", "temperature"}
    assert required_of({"top_k": 0, "logit_bias": {}, "chat_template_kwargs": {"a": 1}}) == {"chat_template_kwargs"}
    with pytest.raises(PromptmillError, match=r"chat_template_kwargs\.tokenize: hf cannot take it"):
        check_left_out(["chat_template_kwargs.tokenize"], {"chat_template_kwargs"}, "hf")
    assert required_of({"top_choices": 2}) == {"top_choices", "logprobs"}


@pytest.mark.features("together")
def test_a_parameter_of_the_operator_is_refused(client, upstream):
    with pytest.raises(openai.BadRequestError, match="takes it only from its operator") as refused:
        client.chat.completions.create(**HI, extra_body={"together": 5})
    assert refused.value.param == "together"
    assert upstream.seen == []


def test_clients_notice_no_change_of_the_endpoints_key(upstream, tmp_path):
    keys = ChangingKey(tmp_path / "keys", every=3)
    upstream.reply = keys.guard(late(0.01))
    config = written(tmp_path, upstream.url, api_key=None, api_key_command=keys.command)
    with (
        ServedHere(config, environ={"PROMPTMILL_HTTP_TOKEN": TOKEN}) as server,
        contextlib.closing(client_of(server)) as client,
        ThreadPoolExecutor(4) as pool,
    ):

        def ask(at: int) -> str:
            messages = [{"role": "user", "content": f"prompt {at}"}]
            if at % 2:
                return client.chat.completions.create(model="default", messages=messages).choices[0].message.content
            chunks = client.chat.completions.create(model="default", messages=messages, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

        assert [*pool.map(ask, range(20))] == [f"echo: prompt {at}" for at in range(20)]
    assert set(keys.answered.values()) == {1}
    assert keys.refused
    assert keys.runs <= len(keys.all)


@pytest.mark.parametrize(("count", "is_in_loop"), [(1, True), (2000, False)])
def test_a_conversation_of_many_messages_is_read_outside_of_the_event_loop(
    openais, upstream, monkeypatch, count, is_in_loop
):
    seen = []

    def request_of(*given):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            seen.append(False)
        else:
            seen.append(True)
        return bodies.request_of(*given)

    monkeypatch.setattr(endpoints, "request_of", request_of)
    message = {"role": "user", "content": "hi there"}
    assert openais().chat.completions.create(model="default", messages=[message] * count).choices
    assert openais().responses.create(model="default", input=[message] * count).output
    assert seen == [is_in_loop, is_in_loop]
