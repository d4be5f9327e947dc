"""A parameter that the backend of the model cannot take, such as `top_k` at OpenAI's own API."""

from __future__ import annotations

import contextlib

import openai
import pytest

from openai_clients import client_of, ended, line, results, started, text_of
from promptmill.core.request import required_of
from served import TOKEN, Served
from server_process import written

pytestmark = pytest.mark.http
HI = {"model": "default", "messages": [{"role": "user", "content": "hi there"}]}


@pytest.fixture
def openais(tmp_path, upstream):
    """Yield a function that returns a client; its endpoint takes what OpenAI's API takes."""
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    with contextlib.ExitStack() as started:

        def start(top=None):
            file = written(tmp_path, upstream.url, top, provider="openai")
            return client_of(started.enter_context(Served(file, environ=environ)))

        yield start


@pytest.mark.parametrize("stream", [False, True])
def test_a_parameter_that_the_backend_cannot_take_is_refused_before_anything_is_sent(openais, upstream, stream):
    client = openais()
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**HI, stream=stream, extra_body={"top_k": 5})
    assert (refused.value.param, refused.value.code) == ("top_k", "unsupported_parameter")
    assert upstream.seen == []


def test_a_parameter_of_the_operator_or_without_effect_is_left_out(openais, upstream):
    client = openais({"sampling_params": {"top_k": 5}})
    reply = client.chat.completions.create(**HI, extra_body={"repetition_penalty": 1, "min_p": 0.0})
    assert reply.choices[0].message.content == "echo: hi there"
    assert upstream.seen[-1].json.keys().isdisjoint({"top_k", "repetition_penalty", "min_p"})


def test_a_line_of_a_batch_with_such_a_parameter_fails_alone(openais, upstream):
    client = openais({"sampling_params": {"top_k": 5}})
    batch = ended(client, started(client, [line("good", "hi there"), line("bad", "hi", top_k=3)]))
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    assert text_of(results(client, batch.output_file_id)["good"]) == "echo: hi there"
    response = results(client, batch.error_file_id)["bad"]["response"]
    assert (response["status_code"], response["body"]["error"]["param"]) == (400, "top_k")
    assert [seen.prompt for seen in upstream.seen] == ["hi there"]


def test_only_parameters_that_change_the_answer_are_required():
    given = {"seed": 1, "n": 1, "top_p": 1.0, "temperature": 0, "user": "me", "logprobs": False, "stop": None}
    assert required_of(given) == {"seed", "temperature"}
    assert required_of({"top_choices": 2}) == {"top_choices", "logprobs"}
