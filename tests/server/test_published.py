"""What a client and the model behind it read of the server before they call it."""

from __future__ import annotations

import base64
import io
import re

import pytest
from mcp import MCPError
from PIL import Image

from fakes import openai_configuration
from promptmill.server import create_server
from promptmill.service.service import Service
from sure import sure


@pytest.fixture
async def tools(talk):
    """The tools by name, as a client lists them."""
    return {tool.name: tool for tool in await talk.client.list_tools()}


async def test_descriptions_are_paragraphs_without_ragged_lines(tools):
    for tool in tools.values():
        assert not re.search(r"[^\n]\n[^\n]", tool.description), tool.name


async def test_prompts_are_published_as_plain_texts(tools):
    for name in ("generate", "multimodal_generate"):
        assert tools[name].input_schema["properties"]["prompt_ls"]["items"] == {"type": "string"}


async def test_a_tool_that_sends_images_away_is_not_called_read_only(tools):
    assert tools["generate"].annotations.read_only_hint
    assert not tools["multimodal_generate"].annotations.read_only_hint


async def test_nothing_is_announced_that_is_not_there(talk):
    announced = talk.client.server_capabilities.model_dump(exclude_none=True)
    assert announced == {"tools": {}, "resources": {}}, "the lists never change while the server runs"
    with pytest.raises(MCPError, match="Method not found"):
        await talk.client.list_prompts()


def test_the_server_has_an_icon_and_a_website(upstream):
    info = create_server(Service(openai_configuration(upstream.url)))._mcp_server.server_info
    assert sure(info.website_url).startswith("https://")
    (icon,) = sure(info.icons)
    data = base64.b64decode(icon.src.removeprefix("data:image/png;base64,"))
    image = Image.open(io.BytesIO(data))
    assert f"{image.width}x{image.height}" in sure(icon.sizes)


def test_lists_may_be_kept_but_not_what_is_read(upstream):
    server = create_server(Service(openai_configuration(upstream.url)))._mcp_server
    assert server.cache_hints["tools/list"].ttl_ms > 0
    assert "resources/read" not in server.cache_hints


async def test_each_default_is_said_in_words_too(tools):
    in_words = re.compile("(?i)left out|leave it out|unless given|the default|only when")
    for tool in tools.values():
        for name, argument in tool.input_schema["properties"].items():
            assert "default" not in argument or in_words.search(argument["description"]), (tool.name, name)


async def test_a_job_among_several_is_described_by_reference(tools):
    assert tools["bulk_status"].output_schema["properties"]["jobs"]["items"] == {"$ref": "#"}
    described, short = (tools[name].output_schema["properties"] for name in ("generate", "multiturn_generate"))
    assert described.keys() == short.keys()
    assert "description" not in str(short)
