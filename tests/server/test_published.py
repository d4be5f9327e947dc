"""What a client and the model behind it read of the server before they call it."""

from __future__ import annotations

import re

from fakes import openai_configuration
from talk import serving


def _published(run, upstream):
    async def work():
        async with serving(openai_configuration(upstream.url)) as talk:
            return {tool.name: tool for tool in await talk.client.list_tools()}, talk.client

    return run(work())


def test_descriptions_are_paragraphs_without_ragged_lines(run, upstream):
    tools, _ = _published(run, upstream)
    for tool in tools.values():
        assert not re.search(r"[^\n]\n[^\n]", tool.description), tool.name


def test_prompts_are_published_as_plain_texts(run, upstream):
    tools, _ = _published(run, upstream)
    for name in ("generate", "multimodal_generate"):
        assert tools[name].input_schema["properties"]["prompt_ls"]["items"] == {"type": "string"}


def test_a_tool_that_sends_images_away_is_not_called_read_only(run, upstream):
    tools, _ = _published(run, upstream)
    assert tools["generate"].annotations.read_only_hint
    assert not tools["multimodal_generate"].annotations.read_only_hint


def test_nothing_is_announced_that_is_not_there(run, upstream):
    async def work():
        async with serving(openai_configuration(upstream.url)) as talk:
            return talk.client.initialize_result, talk.client.server_capabilities

    _, capabilities = run(work())
    assert capabilities.prompts is None
    assert capabilities.logging is None
    assert not capabilities.extensions
    assert capabilities.tools is not None
    assert capabilities.resources is not None
