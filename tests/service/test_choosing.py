"""`backend: auto`: what is chosen, in which order, what it may send there, and where it is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bulk_calls import cancelled
from promptmill.backends.openai import discovery
from promptmill.backends.openai.discovery import _ollama_url, choose
from promptmill.backends.openai.providers import profile_named
from promptmill.backends.protocol import AutoChoice, Call, Facts
from promptmill.config.configuration import Configuration
from promptmill.core.request import conversation_from_prompt
from promptmill.service import choosing
from promptmill.service.service import Service
from replies import late
from talk import serving
from waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Let servers answer as late as on a busy machine."""
    monkeypatch.setattr(discovery, "_LOCAL_S", PATIENCE_S)


def auto(**block):
    quick = {"base_delay": 0.01, "max_delay": 0.05}
    return Configuration({"backend": "auto", "backend_configs": {"openai": {**quick, **block}}})


def row(name, upstream, *, public=False):
    """The row of a server or provider, at `upstream`."""
    profile = profile_named(name)
    return replace(profile, site=replace(profile.site, base_url=upstream.url, more_hosts=(), public=public))


async def test_a_server_that_runs_here_is_chosen_with_its_model(upstream):
    choice = await choose(auto(), {}, [row("vllm", upstream)])
    assert choice.values["backend"] == "openai"
    assert choice.values["backend_configs.openai.model_name"] == "test-model"
    assert f"127.0.0.1:{upstream.port} has it" in choice.why


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080/v1"),
        (":9999", "http://127.0.0.1:9999/v1"),
        ("http://gpu-box:11434/", "http://gpu-box:11434/v1"),
        ("[::1]:5000", "http://[::1]:5000/v1"),
        ("[::1]", "http://[::1]:11434/v1"),
    ],
)
def test_ollamas_own_variable_says_where_it_is(named, url):
    assert _ollama_url(named) == url


async def test_a_server_with_several_models_is_passed_over_with_the_reason(upstreams):
    first, second = upstreams(), upstreams()
    first.models = ["a", "b"]
    choice = await choose(auto(), {}, [row("vllm", first), row("sglang", second)])
    assert choice.values["backend_configs.openai.base_url"] == [second.url]
    assert "vllm: " in choice.against[0]
    assert "it has a, b, and no `model_name` chooses one" in choice.against[0]


async def test_the_model_that_is_named_decides_between_servers(upstreams):
    first, second = upstreams(), upstreams()
    second.models = ["a", "wanted"]
    choice = await choose(auto(model_name="wanted"), {}, [row("vllm", first), row("sglang", second)])
    assert choice.values["backend_configs.openai.base_url"] == [second.url]
    assert choice.against == ("vllm: it has no wanted",)


async def test_a_provider_is_chosen_by_its_key_and_the_model(upstream):
    rows = [row("groq", upstream, public=True), row("deepseek", upstream, public=True)]
    environ = {"DEEPSEEK_API_KEY": "d"}
    choice = await choose(auto(model_name="test-model"), environ, rows)
    assert choice.values["backend_configs.openai.provider"] == "deepseek"
    assert not choice.keyless


async def test_a_key_without_a_model_chooses_nobody_and_is_told(upstream):
    choice = await choose(auto(), {"GROQ_API_KEY": "k"}, [row("groq", upstream, public=True)])
    assert not choice.values
    assert "groq: a key is set, but `backend_configs.openai.model_name` names no model" in choice.against


async def test_what_the_configuration_names_goes_before_all_that_is_found(upstreams):
    mine, other = upstreams(), upstreams()
    choice = await choose(auto(base_url=mine.url), {}, [row("vllm", other)])
    assert not other.seen
    assert str(mine.port) in choice.why


@pytest.mark.parametrize("model", [None, "my/model"])
async def test_without_an_endpoint_the_embedded_model_answers(model):
    async def nothing(_):
        return AutoChoice({}, "", ("ollama: it did not answer within 2 s",), keyless=False)

    block = {"model_name_or_path": model}
    configuration = Configuration({"backend": "auto", "backend_configs": {"openvino": block, "hf": block}})
    found = await choosing.decided(configuration, nothing)
    assert found.config.backend in {"openvino", "hf"}
    assert found.config.model == (model or "smollm2-135m-instruct")
    assert "no endpoint can be used" in found.config.chosen


async def test_what_was_chosen_is_said_and_never_changed(upstreams, monkeypatch, caplog):
    first, second = upstreams(), upstreams()
    first.gets = {"/api/version": {"version": "0.9.0"}, "/api/tags": {"models": [{"name": "tiny:1b"}]}}
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{first.port}")
    async with serving(auto()) as talk:
        result = await talk("generate", prompt_ls=["x"])
        assert result.structured_content == {"ans_ls": ["echo: x"]}
        assert "Ollama 0.9.0" in result.meta["chosen"]
        (resource,) = await talk.client.read_resource("promptmill://status")
        status = resource.model_dump()["text"]
        assert "Ollama 0.9.0" in status
        assert '"model": "tiny:1b"' in status
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{second.port}")
        await talk("generation_init", backend_configs={}, sampling_params={"max_tokens": 9})
        await talk.answers("y")
    assert first.seen[-1].json["model"] == "tiny:1b"
    assert first.seen[-1].json["max_tokens"] == 9
    assert not second.seen
    assert "backend auto: openai with tiny:1b" in caplog.text


@pytest.mark.thorough
async def test_a_call_that_changes_the_address_finds_that_ones_model(upstreams):
    first, second = upstreams(), upstreams()
    second.models = ["other"]
    configuration = Configuration(
        {"backend": "openai", "backend_configs": {"openai": {"base_url": first.url}}}, trust_client=True
    )
    async with serving(configuration) as talk:
        await talk.answers("x")
        await talk.init(backend_configs={"openai": {"base_url": second.url}})
        await talk.answers("y")
    assert [seen.json["model"] for seen in (first.seen[-1], second.seen[-1])] == ["test-model", "other"]


async def test_a_client_cannot_ask_for_auto_where_the_configuration_does_not(upstream):
    async with serving(
        Configuration({"backend": "openai", "backend_configs": {"openai": {"base_url": upstream.url}}})
    ) as talk:
        assert "`auto` is allowed only in the configuration" in await talk.error(
            "generation_init", backend_configs={}, sampling_params={}, backend="auto"
        )
        assert await talk.answers("x") == ["echo: x"]


@pytest.mark.thorough
async def test_a_call_that_goes_on_as_a_job_has_the_model_that_was_found(upstream, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path))
    upstream.reply = late(None)
    block = {"base_url": upstream.url}
    configuration = Configuration({"backend": "openai", "max_call_s": 2, "backend_configs": {"openai": block}})
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"], sampling_params={"max_tokens": 5})
        job_id = result.structured_content["job_id"]
        found = (await talk("bulk_status", job_id=job_id)).structured_content
        assert found["model"] == "test-model"
        await cancelled(talk, job_id)
    assert upstream.seen[-1].json["max_tokens"] == 5


async def test_a_model_that_cannot_be_found_out_is_asked_for_again_by_the_next_call(upstream, closing):
    upstream.models = ["a", "b"]
    configuration = Configuration({"backend": "openai", "backend_configs": {"openai": {"base_url": upstream.url}}})
    service = closing(Service(configuration))
    items = [conversation_from_prompt("x", "prompt 1")]
    with pytest.raises(Exception, match="has a, b: name one"):
        await service.generate(items, Call(Facts(total=1)))
    upstream.models = ["a"]
    (outcome,) = await service.generate(items, Call(Facts(total=1)))
    assert outcome.text == "echo: x"
