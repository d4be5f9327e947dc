"""The models of an endpoint and the name of its server, read from the responses of real servers.

Bodies: vLLM's and SGLang's `/v1/models`, llama.cpp's `/v1/models` and `/props` (tools/server/README.md), Ollama's
`/api/version`, `/api/tags` and `/api/ps` (docs/api.md), LM Studio's `/api/v0/models` (lmstudio.ai/docs/api/rest-api),
text-generation-inference's `/info`.
"""

from __future__ import annotations

import pytest

from fakes import KEY, openai_config
from promptmill.backends.openai.discovery import ListedModel, connected, read_models, with_model
from promptmill.backends.openai.endpoint import endpoints
from promptmill.core.errors import Code, PromptmillError

VLLM = {
    "object": "list",
    "data": [
        {"id": "Qwen/Qwen3-8B", "object": "model", "owned_by": "vllm", "root": "Qwen/Qwen3-8B", "parent": None,
         "max_model_len": 40960},
        {"id": "sql-lora", "object": "model", "owned_by": "vllm", "root": "/loras/sql", "parent": "Qwen/Qwen3-8B",
         "max_model_len": None},
    ],
}  # fmt: skip
SGLANG = {"object": "list", "data": [{"id": "default", "object": "model", "owned_by": "sglang", "max_model_len": 8192}]}
LLAMA_CPP = {
    "models": [{"name": "qwen.gguf", "model": "qwen.gguf", "type": "model"}],
    "object": "list",
    "data": [{"id": "qwen.gguf", "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx_train": 40960}}],
}
PROPS = {"default_generation_settings": {"id": 0, "n_ctx": 4096}, "total_slots": 4, "model_path": "qwen.gguf"}
OLLAMA = {"object": "list", "data": [{"id": "llama3.2:latest", "object": "model", "owned_by": "library"}]}
TAGS = {
    "models": [
        {"name": "llama3.2:latest", "model": "llama3.2:latest", "details": {"family": "llama"}},
        {"name": "nomic-embed-text:latest", "details": {"family": "nomic-bert"}},
    ]
}
STUDIO = {
    "object": "list",
    "data": [
        {"id": "text-embedding-nomic", "object": "model", "type": "embeddings", "state": "not-loaded"},
        {"id": "qwen2-vl-7b", "object": "model", "type": "vlm", "state": "not-loaded", "max_context_length": 32768},
        {"id": "llama-3.1-8b", "object": "model", "type": "llm", "state": "loaded", "max_context_length": 131072,
         "loaded_context_length": 4096},
    ],
}  # fmt: skip
PLAIN = {"object": "list", "data": [{"id": "llama-3.1-8b", "object": "model", "owned_by": "organization_owner"}]}
TGI = {"model_id": "teknium/OpenHermes-2.5", "max_total_tokens": 8192, "version": "3.0.0"}

SERVERS = {
    "vLLM": ({"/v1/models": VLLM}, "Qwen/Qwen3-8B", 40960),
    "SGLang": ({"/v1/models": SGLANG}, "default", 8192),
    "llama.cpp": ({"/v1/models": LLAMA_CPP, "/props": PROPS}, "qwen.gguf", 4096),
    "Ollama 0.9.0": (
        {"/v1/models": OLLAMA, "/api/version": {"version": "0.9.0"}, "/api/tags": TAGS, "/api/ps": {"models": []}},
        "llama3.2:latest",
        None,
    ),
    "LM Studio": ({"/v1/models": PLAIN, "/api/v0/models": STUDIO}, "llama-3.1-8b", 4096),
    "text-generation-inference": ({"/v1/models": None, "/info": TGI}, "teknium/OpenHermes-2.5", 8192),
    "": ({}, "test-model", None),
}


async def _models(config):
    async with connected(config) as pool:
        return await read_models(pool, endpoints(config)[0])


@pytest.mark.parametrize("server", SERVERS)
async def test_a_local_server_is_recognized_by_its_responses(server, upstream):
    upstream.gets, model, context = SERVERS[server]
    found = await _models(openai_config(upstream.url))
    assert found.server == server
    only = found.only()
    assert only is not None
    assert (only.name, only.context) == (model, context)


@pytest.mark.parametrize("server", SERVERS)
async def test_base_url_alone_is_enough_if_there_is_one_model(server, upstream):
    upstream.gets, model, _ = SERVERS[server]
    config = await with_model(openai_config(upstream.url, model_name=None))
    assert config.model == config.operator_model == model
    assert model in config.chosen


@pytest.mark.parametrize(("date", "notes"), [("2026-11-01", ["m was switched off on 2026-11-01."]), ("2999-01-01", [])])
async def test_a_model_that_is_chosen_from_the_list_has_a_note_if_it_ends_soon(upstream, date, notes):
    upstream.gets = {"/v1/models": {"data": [{"id": "m", "shutdown_date": date}]}}
    config = await with_model(openai_config(upstream.url, model_name=None))
    assert list(config.warnings) == notes


async def test_an_older_ollama_lists_its_models_only_on_its_own_page(upstream):
    upstream.gets = {"/v1/models": None, "/api/version": {"version": "0.1.20"}, "/api/tags": TAGS}
    assert (await _models(openai_config(upstream.url))).only() == ListedModel("llama3.2:latest")


async def test_a_model_that_ollama_has_loaded_has_its_context_and_is_the_default(upstream):
    tags = {"models": [{"name": "a:1b"}, {"name": "b:2b"}]}
    running = {"models": [{"name": "b:2b", "context_length": 4096}]}
    upstream.gets = {"/api/version": {"version": "0.9.0"}, "/api/tags": tags, "/api/ps": running}
    assert (await _models(openai_config(upstream.url))).only() == ListedModel("b:2b", 4096, loaded=True)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "listed", [{"data": ["m1"]}, ["m1"], {"models": ["m1"]}, {"data": [{"id": "m1"}, {"id": "m1"}]}]
)
async def test_a_model_may_be_listed_by_its_name_alone_or_for_each_replica(upstream, listed):
    upstream.gets = {"/v1/models": listed}
    assert [model.name for model in (await _models(openai_config(upstream.url))).models] == ["m1"]


async def test_one_of_several_models_must_be_named(upstream):
    upstream.models = ["small", "large"]
    with pytest.raises(PromptmillError, match=r"model_name: none is named; .* has small, large: name one") as caught:
        await with_model(openai_config(upstream.url, model_name=None))
    assert caught.value.code is Code.INVALID_CONFIG


async def test_a_long_list_is_shortened_in_the_message(upstream):
    upstream.models = [f"m{number}" for number in range(300)]
    with pytest.raises(PromptmillError, match=r"m11 and 288 more: name one"):
        await with_model(openai_config(upstream.url, model_name=None))


@pytest.mark.thorough
async def test_a_list_that_arrives_in_several_pieces_is_read_to_its_end(upstream):
    upstream.models = [f"model-{number}" for number in range(30_000)]
    assert len((await _models(openai_config(upstream.url))).models) == 30_000


async def test_a_server_without_models_is_reported(upstream):
    upstream.gets = {"/api/version": {"version": "0.9.0"}, "/api/tags": {"models": []}, "/v1/models": {"data": []}}
    with pytest.raises(PromptmillError, match=r"Ollama 0\.9\.0 at .* has no model yet"):
        await with_model(openai_config(upstream.url, model_name=None))


async def test_an_endpoint_without_a_list_requires_a_model_name(upstream):
    upstream.gets = {"/v1/models": None}
    with pytest.raises(
        PromptmillError, match=r"model_name: none is named; name one \(`model_name`\)\. .* answered 404 for /v1/models"
    ):
        await with_model(openai_config(upstream.url, model_name=None))


async def test_an_unreachable_endpoint_is_not_a_configuration_error(upstream):
    upstream.vanish()
    with pytest.raises(PromptmillError) as caught:
        await with_model(openai_config(upstream.url, model_name=None))
    assert caught.value.code is Code.UNREACHABLE


async def test_the_list_is_requested_with_the_key(upstream):
    await with_model(openai_config(upstream.url, model_name=None))
    assert upstream.seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("localhost:11434", "http://localhost:11434/v1/chat/completions"),
        ("192.168.1.7:8000/v1", "http://192.168.1.7:8000/v1/chat/completions"),
        ("api.deepseek.com", "https://api.deepseek.com/v1/chat/completions"),
    ],
)
def test_an_address_without_a_scheme_gets_the_likely_one(written, meant):
    (endpoint,) = endpoints(openai_config(written), {})
    assert endpoint.url == meant
