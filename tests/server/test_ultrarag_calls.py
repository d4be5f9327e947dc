"""What the middleware of the launch path writes for people, whose client shows the answers alone."""

from __future__ import annotations

import io

import pytest
from fastmcp import Client

from promptmill.config.loading import Configuration
from promptmill.server import create_server
from promptmill.server.ultrarag_calls import PipelineCalls
from promptmill.service.service import Service
from replies import answer, by_prompt, late, status


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def ask(upstream, closing):
    """Call a tool of a pipeline's server; return the answers and what was written."""

    async def caller(*calls, stream=None, every_s=60.0, **raw):
        stream = stream or io.StringIO()
        block = {"model_name": "m", "base_url": upstream.url, "retries": 1}
        configuration = Configuration({"backend": "openai", "backend_configs": {"openai": block}, **raw})

        service = closing(Service(configuration))
        server = create_server(service)
        server.add_middleware(PipelineCalls(service, stream, every_s))
        async with Client(server) as client:
            found = [(await client.call_tool(tool, arguments)).structured_content for tool, arguments in calls]
        return [one["ans_ls"] for one in found], stream.getvalue()

    return caller


async def test_failures_are_one_line_with_the_commonest_reason_first(ask, upstream):
    upstream.reply = by_prompt({"b": status(400, "no such thing"), "c": status(400, "no such thing")}, answer("yes"))
    answers, said = await ask(("generate", {"prompt_ls": ["a", " b ", "c"]}))
    assert answers == [["yes", "", ""]]
    (line,) = said.splitlines()
    assert line.startswith("generation: generate: 2 of 3 not answered: bad_request x2 (item 1: ")
    assert "no such thing" in line


async def test_a_warning_is_told_once(ask):
    call = ("generate", {"prompt_ls": ["a"]})
    answers, said = await ask(call, call, sampling_params={"min_tokens": 1})
    assert answers == [["echo: a"], ["echo: a"]]
    assert said.count("min_tokens is not known here") == len(said.splitlines()) == 1


async def test_nothing_to_tell_is_nothing_written(ask):
    assert (await ask(("generate", {"prompt_ls": ["a"]})))[1] == ""


async def test_progress_is_a_line_every_few_seconds(ask, upstream):
    upstream.reply = late(0.3, answer())
    _, said = await ask(("generate", {"prompt_ls": ["a", "b"]}), every_s=0.05)
    assert "generation: generate: 0 of 2 done" in said


async def test_progress_is_a_bar_on_a_terminal_and_leaves_nothing_behind(ask, upstream):
    upstream.reply = late(0.5, answer())
    _, said = await ask(("generate", {"prompt_ls": ["a"]}), stream=_Terminal())
    assert "[........................] generate: 0 of 1 done" in said
    assert said.endswith("\r\x1b[K")


async def test_a_conversation_without_a_turn_to_answer_has_no_answer(ask, upstream):
    assert (await ask(("multiturn_generate", {"messages": []})))[0] == [[]]
    assert not upstream.seen
