"""What a client and the model behind it read of the server before they call it."""

import base64
import hashlib
import io
import json
import re
from typing import Any

import pytest
from mcp import MCPError
from mcp_types import INVALID_PARAMS, EmptyResult, Request, Result, SetLevelRequest, SetLevelRequestParams
from PIL import Image
from pydantic import ConfigDict

from fakes import openai_configuration
from piped import Piped
from promptmill.server import create_server
from promptmill.server.listed_tools import SKILL
from promptmill.server.tasks import EXTENSION as TASKS
from promptmill.service.service import Service
from server_process import written
from sure import sure

SKILLS = "io.modelcontextprotocol/skills"


@pytest.fixture
async def tools(talk):
    """The tools by name, as a client lists them."""
    return {tool.name: tool for tool in await talk.client.list_tools()}


async def test_prompts_are_published_as_plain_texts(tools):
    for name in ("generate", "multimodal_generate"):
        assert tools[name].input_schema["properties"]["prompt_ls"]["items"] == {"type": "string"}


async def test_a_tool_that_sends_images_away_is_not_called_read_only(tools):
    assert tools["generate"].annotations.read_only_hint
    assert not tools["multimodal_generate"].annotations.read_only_hint


async def test_nothing_is_announced_that_is_not_there(talk):
    announced = talk.client.server_capabilities.model_dump(exclude_none=True)
    lists = {"tools": {}, "prompts": {}, "resources": {}}
    assert announced == lists | {"extensions": {SKILLS: {}, TASKS: {}}}, "the lists never change while the server runs"
    with pytest.raises(MCPError, match="Method not found"):
        await talk.client.session.send_request(SetLevelRequest(params=SetLevelRequestParams(level="info")), EmptyResult)


async def test_the_skill_is_a_resource_and_listed_with_its_digest(talk):
    class Skills(Result):
        model_config = ConfigDict(extra="allow")

    async def ask(method, **params):
        class Asked(Request[dict[str, Any], str]):
            pass

        return (await talk.client.session.send_request(Asked(method=method, params=params), Skills)).model_extra

    (skill,) = (await ask("skills/list"))["skills"]
    assert (await ask("skills/get", uri=skill["uri"]))["skill"] == skill
    with pytest.raises(MCPError, match="Unknown skill"):
        await ask("skills/get", uri="skill://other/SKILL.md")
    assert skill["frontmatter"]["name"] == "promptmill", "the last part of its path"
    (file,) = skill["resources"]
    (read,) = await talk.client.read_resource(file["uri"])
    assert read.mime_type == "text/markdown"
    assert file["digest"] == f"sha256:{hashlib.sha256(read.text.encode()).hexdigest()}"
    assert file["size"] == len(read.text.encode())
    (listed,) = [found for found in await talk.client.list_resources() if str(found.uri) == file["uri"]]
    assert {"name": listed.name, "description": listed.description} == skill["frontmatter"]


@pytest.mark.thorough
def test_a_client_of_2025_finds_the_skill_too(upstream, tmp_path):
    with Piped(written(tmp_path, upstream.url)) as server:
        assert server.initialize()["capabilities"]["extensions"] == {SKILLS: {}}
        assert server.result(server.request("skills/list"))["skills"]


async def test_the_slash_commands_lead_to_an_estimate_and_then_a_job(talk, tools):
    arguments = {prompt.name: prompt.arguments for prompt in await talk.client.list_prompts()}
    assert all(one.required and len(one.description) < 60 for listed in arguments.values() for one in listed)
    prompts = {name: [one.name for one in listed] for name, listed in arguments.items()}
    compare = {"compare_models": ["file", "question", "models"]} if "compare" in tools else {}
    assert prompts == {"bulk": ["file", "question"], **compare}
    for name, wanted in prompts.items():
        found = await talk.client.get_prompt(name, {argument: f"my {argument}" for argument in wanted})
        (message,) = found.messages
        assert all(f"my {argument}" in message.content.text for argument in wanted)
        assert "as {{column}}" in message.content.text
        assert message.content.text.index("validate: true") < message.content.text.index("without `validate`")
        assert set(re.findall(r"`(bulk_\w+)`", message.content.text)) <= tools.keys()


async def test_wrong_arguments_of_prompts_and_resources_are_named(talk, caplog):
    for asked, said in (
        (talk.client.get_prompt("bulk", {"file": "a.csv"}), "The prompt bulk needs `question`."),
        (talk.client.get_prompt("bulk"), "needs `file` and `question`."),
        (talk.client.read_resource("promptmill://jobs/a-1234567890/answers?offset=abc"), "`offset` is 'abc'"),
        (talk.client.read_resource("promptmill://jobs/a-1234567890/answers?offset="), "`offset` is ''"),
    ):
        with pytest.raises(MCPError, match=said) as raised:
            await asked
        assert raised.value.error.code == INVALID_PARAMS
    assert not caplog.records, "no stack trace on stderr"


@pytest.mark.thorough
async def test_the_calls_that_the_skill_shows_are_calls_of_its_tools(serve, tools, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with serve() as talk:
        await _check_the_calls_of_the_skill(talk, tools, tmp_path)


async def _check_the_calls_of_the_skill(talk, tools, tmp_path):
    (read,) = await talk.client.read_resource("skill://promptmill/SKILL.md")
    properties = tools["bulk_generate"].input_schema["properties"]
    calls = [json.loads(text) for text in re.findall(r"```json\n(.*?)\n```", read.text, re.DOTALL)]
    assert len(calls) == 2
    for call in calls:
        assert call.keys() <= properties.keys()
        (column,) = re.findall(r"\{\{(\w+)\}\}", call["prompt"])
        row = f"{column}\nIt is good\n" if call["input_file"].endswith(".csv") else json.dumps({column: "Two pens"})
        (tmp_path / call["input_file"]).write_text(row)
        result = await talk("bulk_generate", **(call | {"validate": True}))
        assert (result.structured_content["rows"], result.structured_content["problems"]) == (1, [])


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


async def test_no_schema_refers_to_itself(tools):
    """@mastra/mcp 0.14 leaves out a tool with such a schema."""
    for tool in tools.values():
        assert "$ref" not in json.dumps([tool.input_schema, tool.output_schema]), tool.name


@pytest.mark.thorough
async def test_no_name_is_that_of_two_things(talk, tools):
    """Semantic Kernel leaves out a prompt with the name of a tool."""
    client = talk.client
    lists = await client.list_prompts(), await client.list_resources(), await client.list_resource_templates()
    names = [*tools, *(listed.name for found in lists for listed in found)]
    assert sorted(names) == sorted({*names})


async def test_a_short_tool_is_described_by_a_longer_one(tools):
    described, short = (tools[name].output_schema["properties"] for name in ("generate", "multiturn_generate"))
    assert described.keys() == short.keys()
    assert "description" not in str(short)


@pytest.mark.thorough
@pytest.mark.parametrize("locked", [True, False])
async def test_no_client_cuts_a_description_or_the_instructions(upstream, locked):
    """Claude Code cuts each at 2 KB."""
    server = create_server(Service(openai_configuration(upstream.url)), locked=locked)
    told = {tool.name: tool.description for tool in await server.list_tools()}
    assert max(len(sure(text).encode()) for text in [server.instructions, *told.values()]) <= 2048
    named = set(
        re.findall(
            r"`(\w*generate|bulk_\w+|compare|review|improve|generation_init|vllm_shutdown)`",
            sure(server.instructions),
        )
    )
    assert named == told.keys(), "the instructions say when to use each tool"


async def test_long_results_reach_the_model_of_claude_code_and_not_a_file(tools):
    limits = {name: (tool.meta or {}).get("anthropic/maxResultSizeChars") for name, tool in tools.items()}
    long = {"generate", "multimodal_generate", "bulk_status", "compare", "review", "improve"}
    assert {name for name, limit in limits.items() if limit} == long & tools.keys()
    assert {limit for limit in limits.values() if limit} == {500_000}


async def test_a_model_reads_little_before_it_does_anything(tools):
    """Counted over the wire: name, description and input schema of each tool, as JSON."""
    read = {
        name: len(json.dumps([name, tool.description, tool.input_schema], ensure_ascii=False, separators=(",", ":")))
        for name, tool in tools.items()
    }
    assert sum(read.values()) + 40 * len(read) <= 12_000, read  # 40: the names of the three
    reference = ["generation_init", "generate", "multimodal_generate", "multiturn_generate", "vllm_shutdown"]
    assert sum(read[name] + 40 for name in reference) <= 5_500, read


async def test_rare_arguments_are_keys_of_options_which_the_skill_lists(talk, tools):
    (skill,) = await talk.client.read_resource(SKILL)
    for tool in tools.values():
        words = tool.input_schema["properties"].get("options", {}).get("description", "")
        for key in re.findall(r"(\w+)(?: \{[^}]*\})?[,.]", words.partition(": ")[2]):
            assert f"* `{key}`: " in skill.text, (tool.name, key)


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ({"options": {"dedup": True}}, "did you mean dedupe"),
        ({"validate": True, "options": {"validate": True}}, "`validate` is also in `options`"),
        ({"options": ["dedupe"]}, "`options` is an object"),
        ({"options": {"dedupe": "perhaps"}}, "dedupe"),
    ],
)
async def test_a_wrong_key_of_options_is_named(talk, sent, problem):
    assert problem in await talk.error("bulk_generate", prompts=["a"], **sent)


async def test_options_may_be_a_text_or_stand_beside_the_others(talk):
    for sent in ({"options": '{"dedupe": true}'}, {"options": {"dedupe": True}}, {"dedupe": True}, {"options": None}):
        result = await talk("bulk_generate", prompts=["a", "a"], validate=True, **sent)
        assert not result.is_error, result
