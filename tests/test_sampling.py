"""`Sampler.sample` takes and returns what FastMCP 3's `ctx.sample` did."""

from __future__ import annotations

import pytest
from fastmcp import Client, FastMCP
from mcp_types import ImageContent, SamplingMessage, TextContent
from pydantic import BaseModel

from fakes import KEY
from promptmill.config.loading import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.sampling import Sampler
from replies import answer, status

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class City(BaseModel):
    name: str
    people: int


@pytest.fixture
def configuration(upstream):
    block = {"model_name": "m", "base_url": upstream.url, "api_key": KEY, "retries": 1}
    return Configuration({"backend": "openai", "backend_configs": {"openai": block}})


@pytest.fixture
async def sample(configuration):
    async with Sampler(configuration) as sampler:
        yield sampler.sample


async def test_a_text_is_answered(sample, upstream):
    result = await sample("hi", system_prompt="Be brief.", temperature=0, max_tokens=7)
    assert (result.text, result.result) == ("echo: hi", "echo: hi")
    assert result.history[-1] == {"role": "assistant", "content": "echo: hi"}
    body = upstream.seen[0].json
    assert (body["temperature"], body["max_tokens"]) == (0, 7)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_turns_and_images_of_the_protocol_are_taken(sample, upstream):
    image = ImageContent(type="image", data=PIXEL, mimeType="image/png")
    turns = ["hi", SamplingMessage(role="assistant", content=TextContent(type="text", text="hello"))]
    await sample([*turns, SamplingMessage(role="user", content=image)])
    sent = upstream.seen[0].json["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "user"]
    assert sent[2]["content"][0]["type"] == "image_url"


@pytest.mark.parametrize(
    ("kind", "said", "result"),
    [
        (City, '{"name": "Paris", "people": 2}', City(name="Paris", people=2)),
        (list[int], '{"value": [1, 2]}', [1, 2]),
        (bool, '{"value": true}', True),
    ],
)
async def test_the_answer_becomes_the_type_that_is_asked_for(sample, upstream, kind, said, result):
    upstream.reply = answer(said)
    assert (await sample("x", result_type=kind)).result == result
    assert upstream.seen[0].json["response_format"]["type"] == "json_schema"


async def test_a_failure_is_raised_with_its_code(sample, upstream):
    upstream.reply = status(400, "no")
    with pytest.raises(PromptmillError) as caught:
        await sample("x")
    assert caught.value.code == "bad_request"


async def test_tools_are_refused_and_unknown_models_passed_over(sample):
    with pytest.raises(PromptmillError, match="tools"):
        await sample("x", tools=[print])
    assert (await sample("x", model_preferences=["claude-fable-5"])).text == "echo: x"


async def test_a_server_of_ones_own_samples_within_its_lifespan(configuration):
    sampler = Sampler(configuration)
    server = FastMCP("mine", lifespan=sampler.lifespan)

    @server.tool
    async def shout(text: str) -> str:
        return (await sampler.sample(text)).text.upper()

    async with Client(server) as client:
        result = (await client.call_tool("shout", {"text": "hi"})).data
    assert result == "ECHO: HI"
    with pytest.raises(PromptmillError, match="shutting down"):
        await sampler.sample("x")


async def test_the_configuration_file_can_be_named_and_overruled(tmp_path, upstream):
    file = tmp_path / "p.yaml"
    file.write_text(f"backend: openai\nbackend_configs: {{openai: {{base_url: '{upstream.url}', model_name: a}}}}\n")
    async with Sampler.load(file, backend_configs__openai__model_name="b") as sampler:
        await sampler.sample("x")
    assert upstream.seen[0].json["model"] == "b"
