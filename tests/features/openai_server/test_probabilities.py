"""The probabilities of choices and fields in replies, which OpenAI's API has no field for."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from likely_choices import likely
from openai_clients import ended, line, results, started
from replies import answer

pytestmark = pytest.mark.http
HI = [{"role": "user", "content": "Is it late?"}]
SHARES = {"yes": 0.75, "no": 0.25}
ASKED: dict[str, Any] = {"choices": [*SHARES], "top_choices": 2}


def _fields(shares):
    """Return a reply with one field, whose value has this probability."""
    text, share = shares
    tokens = [{"token": '{"late": ', "logprob": 0.0}, {"token": f"{text}}}", "logprob": math.log(share)}]
    return answer(f'{{"late": {text}}}', logprobs={"content": tokens})


def test_a_chat_has_them_beside_its_message(client, upstream):
    upstream.reply = likely(SHARES)
    reply = client.chat.completions.create(model="default", messages=HI, extra_body=ASKED)
    assert (reply.choices[0].message.content, reply.choices[0].probabilities) == ("yes", SHARES)
    reply = client.chat.completions.create(model="default", messages=HI, extra_body={"choices": [*SHARES]})
    assert "probabilities" not in reply.choices[0].model_extra


def test_a_chat_with_a_closed_schema_has_those_of_its_fields(client, upstream):
    upstream.reply = _fields(("true", 0.75))
    schema = {"type": "object", "properties": {"late": {"type": "boolean"}}, "required": ["late"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    reply = client.chat.completions.create(
        model="default", messages=HI, response_format=form, extra_body={"top_choices": 1}
    )
    assert reply.choices[0].probabilities == {"late": {"true": 0.75}}


def test_the_last_piece_of_a_stream_has_them(client, upstream):
    upstream.reply = likely(SHARES)
    *others, last = client.chat.completions.create(model="default", messages=HI, stream=True, extra_body=ASKED)
    assert last.choices[0].probabilities == SHARES
    assert all("probabilities" not in chunk.choices[0].model_extra for chunk in others)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_response_has_them_beside_its_output(client, upstream, is_stream):
    upstream.reply = likely(SHARES)
    reply = client.responses.create(model="default", input="Is it late?", stream=is_stream, extra_body=ASKED)
    response = [*reply][-1].response if is_stream else reply
    assert (response.output_text, response.probabilities) == ("yes", SHARES)


def test_lines_of_a_batch_have_them(client, upstream):
    upstream.reply = likely(SHARES)
    batch = ended(client, started(client, [line("a", "Is it late?", model="default", **ASKED)]))
    found = results(client, batch.output_file_id)["a"]["response"]["body"]
    assert json.dumps(found["choices"][0]["probabilities"]) == json.dumps(SHARES)
