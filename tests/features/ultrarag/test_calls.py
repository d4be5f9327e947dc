"""What the middleware of the launch path writes for people, whose client shows the answers alone."""

from __future__ import annotations

import io
import json

import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from promptmill.config.configuration import Configuration
from promptmill.features.ultrarag.pipeline_server import PipelineCalls
from promptmill.server import create_server
from promptmill.service.service import Service
from replies import answer, by_prompt, html, late, raw, reset, status


@pytest.fixture
def ask(upstream, closing):
    """Call a tool of a pipeline's server; return the answers and what was written."""

    async def caller(*calls, every_s=60.0, **raw):
        stream = io.StringIO()
        block = {"model_name": "m", "base_url": upstream.url, "retries": 1, "patience": 0.1}
        configuration = Configuration({"backend": "openai", "backend_configs": {"openai": block}, **raw})

        service = closing(Service(configuration))
        server = create_server(service)
        server.add_middleware(PipelineCalls(service, stream, every_s))
        async with Client(server) as client:
            results = [await client.call_tool(tool, arguments) for tool, arguments in calls]
        found = [result.structured_content for result in results if result.structured_content]
        texts = [json.loads(result.content[0].text)["ans_ls"] for result in results if result.structured_content]
        assert texts == [one["ans_ls"] for one in found], "a pipeline's client reads the text"
        return texts, stream.getvalue()

    return caller


async def test_failures_are_one_line_with_the_commonest_reason_first(ask, upstream):
    upstream.reply = by_prompt({"b": status(400, "no such thing"), "c": status(400, "no such thing")}, answer("yes"))
    answers, said = await ask(("generate", {"prompt_ls": ["a", " b ", "c"]}))
    assert answers == [["yes", "", ""]]
    (line,) = said.splitlines()
    assert line.startswith("generation: generate: 2 of 3 not answered: bad_request x2 (item 1: ")
    assert "no such thing" in line


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (status(500), "server_error"),
        (status(400, "maximum context length is 4 tokens", code="context_length_exceeded"), "context_length"),
        (status(400, "blocked", code="content_filter"), "content_filter"),
        (answer(""), ""),
    ],
)
async def test_a_call_without_any_answer_does_not_end_the_run(ask, upstream, reply, code):
    upstream.reply = reply
    answers, written = await ask(("generate", {"prompt_ls": ["a", "b"]}))
    assert answers == [["", ""]]
    assert ("not answered" in written) == bool(code)
    assert (f"2 of 2 not answered: {code} x2" if code else "empty") in written


async def test_a_missing_image_does_not_end_the_run(ask):
    call = {"prompt_ls": ["Which?"], "multimodal_path": [["nowhere.png"]]}
    answers, written = await ask(("multimodal_generate", call))
    assert answers == [[""]]
    assert "1 of 1 not answered: invalid_image x1" in written


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (status(401), "unauthorized"),
        (status(404, "The model `m` does not exist", code="model_not_found"), "not_found"),
        (status(429, "You exceeded your current quota", code="insufficient_quota"), "insufficient_quota"),
        (status(429), "rate_limited"),
    ],
)
async def test_a_failure_of_key_or_model_ends_the_run(ask, upstream, reply, code):
    upstream.reply = reply
    with pytest.raises(ToolError, match=code):
        await ask(("generate", {"prompt_ls": ["a"]}))


async def test_an_endpoint_that_is_not_there_ends_the_run(ask, upstream):
    upstream.vanish()
    with pytest.raises(ToolError, match="unreachable"):
        await ask(("generate", {"prompt_ls": ["a"]}))


@pytest.mark.thorough
@pytest.mark.parametrize("reply", [status(400, "top_k: extra inputs are not permitted"), html(), raw(b"{}"), reset()])
async def test_a_refused_request_ends_the_run_only_before_the_first_answer(ask, upstream, reply):
    upstream.reply = by_prompt({"b": reply}, answer())
    good, bad = ("generate", {"prompt_ls": ["a"]}), ("generate", {"prompt_ls": ["b"]})
    with pytest.raises(ToolError):
        await ask(bad)
    answers, written = await ask(good, bad, good)
    assert answers == [["echo: a"], [""], ["echo: a"]]
    assert "1 of 1 not answered" in written
    changed = ("generation_init", {"backend_configs": {}, "sampling_params": {"top_k": 5}, "backend": "openai"})
    with pytest.raises(ToolError):
        await ask(good, changed, bad)


async def test_arguments_of_another_shape_are_logged_as_invalid_input(ask, caplog):
    with pytest.raises(ToolError, match="prompt_ls"):
        await ask(("generate", {"prompt_ls": 7}))
    assert "code=invalid_input" in caplog.text


async def test_on_error_raise_ends_the_run_at_any_failure(ask, upstream):
    upstream.reply = status(500)
    with pytest.raises(ToolError, match="server_error"):
        await ask(("generate", {"prompt_ls": ["a"]}), on_error="raise")


async def test_a_warning_is_told_once(ask):
    call = ("generate", {"prompt_ls": ["a"]})
    answers, said = await ask(call, call, sampling_params={"min_tokens": 1})
    assert answers == [["echo: a"], ["echo: a"]]
    assert said.count("min_tokens is unknown") == len(said.splitlines()) == 1


@pytest.mark.thorough
async def test_nothing_to_tell_is_nothing_written(ask):
    assert (await ask(("generate", {"prompt_ls": ["a"]})))[1] == ""


async def test_progress_is_a_line_every_few_seconds(ask, upstream):
    upstream.reply = late(0.3, answer())
    _, said = await ask(("generate", {"prompt_ls": ["a", "b"]}), every_s=0.05)
    assert "generation: generate: 0 of 2 done" in said


async def test_a_conversation_without_a_turn_to_answer_has_no_answer(ask, upstream):
    assert (await ask(("multiturn_generate", {"messages": []})))[0] == [[]]
    assert not upstream.seen
