"""vLLM calls tools, and tells how likely its tokens were."""

import json

import pytest

from promptmill.core.errors import Code

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def host(start, caller):
    return start(caller, dtype="float32", max_num_seqs=4)


def test_a_model_calls_a_tool_and_goes_on_with_its_result(desk, host, tools):
    rome, both, none = desk.ask(host, ["Rome?", "Both?", "Hi?"], {"tools": tools}, max_tokens=200)
    (call,) = rome.tool_calls
    assert (rome.text, rome.finish_reason) == ("", "tool_calls")
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "Rome"})
    assert (both.text, len(both.tool_calls)) == ("Both.", 2)
    assert (none.text, none.finish_reason, none.tool_calls) == ("Hello.", "stop", ())
    assert desk.last_call.warnings == {}
    turns = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "25 degrees"},
    ]
    (told,) = desk.ask(host, [turns], {"tools": tools}, max_tokens=200)
    assert (told.text, told.finish_reason, told.tool_calls) == ("It is 25.", "stop", ())


def test_an_answer_that_must_be_a_call_is_one(desk, host, tools):
    asked = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (said,) = desk.ask(host, ["Hi?"], asked, max_tokens=200)
    if said.finish_reason == "tool_calls":
        assert said.tool_calls[0]["function"]["name"] == "weather"
    else:  # a model that small may not come to an end
        assert said.text.startswith("[")


def test_how_likely_each_token_was(desk, host, tools):
    (said,) = desk.ask(host, ["Hi?"], {"tools": tools, "logprobs": True, "top_logprobs": 2}, max_tokens=50)
    content = said.logprobs["content"]
    assert "".join(one["token"] for one in content) == said.text == "Hello."
    for one in content:
        assert one["logprob"] <= 0
        assert one["top_logprobs"][0]["token"] == one["token"]
        assert len(one["top_logprobs"]) == 2
    (said,) = desk.ask(host, ["Hi?"], {"tools": tools}, max_tokens=50)
    assert said.logprobs is None


def test_a_model_whose_template_knows_no_tools_says_so(desk, vllm, tools):
    (outcome,) = desk.ask(vllm, ["Hi!"], {"tools": tools})
    assert outcome.error.code is Code.UNSUPPORTED
