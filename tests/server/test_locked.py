"""A locked server: the operator's configuration alone counts, and what would change it is not there."""

import pytest
import yaml
from fastmcp import Client

from fakes import openai_configuration
from piped import Piped
from promptmill.core.errors import PromptmillError
from promptmill.server import create_server
from promptmill.service.service import Service
from sure import sure
from talk import Talk, text

HIDDEN = {"generation_init", "vllm_shutdown"}


@pytest.fixture
async def locked(upstream, closing):
    """A client of a locked server in front of `upstream`."""
    service = closing(Service(openai_configuration(upstream.url)))
    async with Client(create_server(service, locked=True)) as client:
        yield Talk(client)


async def _names(talk):
    return {tool.name for tool in await talk.client.list_tools()}


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_it_lists_no_tool_that_changes_what_runs(locked, talk):
    names = await _names(locked)
    assert await _names(talk) - names == HIDDEN
    assert "generate" in names


@pytest.mark.parametrize("tool", sorted(HIDDEN))
@pytest.mark.usefixtures("protocol")
async def test_what_it_hides_is_refused_like_a_tool_that_never_was(locked, tool):
    refused = await locked(tool, backend_configs={}, sampling_params={})
    unknown = await locked("no_such_tool", backend_configs={}, sampling_params={})
    assert refused.is_error
    assert text(refused) == text(unknown).replace("no_such_tool", tool)
    assert await locked.answers("hi") == ["echo: hi"]


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_nothing_that_it_says_of_itself_mentions_what_it_hides(locked, upstream):
    said = "".join([tool.model_dump_json() for tool in await locked.client.list_tools()])
    said += sure(create_server(Service(openai_configuration(upstream.url)), locked=True).instructions)
    assert "bulk_generate" in said
    assert not {name for name in HIDDEN if name in said}


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
def test_serve_locked_is_how_to_start_one(upstream, tmp_path):
    file = tmp_path / "parameter.yaml"
    file.write_text(yaml.safe_dump(openai_configuration(upstream.url)._raw))
    with Piped(file, "--locked") as server:
        server.initialize()
        tools = server.result(server.request("tools/list"))["tools"]
        assert not HIDDEN & {tool["name"] for tool in tools}
        assert server.result(server.call("vllm_shutdown"))["isError"]
        assert server.answers("hi") == ["echo: hi"]


async def test_only_the_named_tools_are_served(upstream):
    server = create_server(Service(openai_configuration(upstream.url)), tools=["generate", "bulk_status"])
    assert [tool.name for tool in await server.list_tools()] == ["generate", "bulk_status"]
    with pytest.raises(PromptmillError, match=r"tools: there is no tool 'generat'; did you mean generate\?"):
        create_server(Service(openai_configuration(upstream.url)), tools=["generat"])
