"""Backend names → where they are made."""

import importlib

import pytest

from promptmill.backends import registry
from promptmill.config.backends import BACKENDS
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError


@pytest.mark.parametrize("name", BACKENDS)
def test_every_known_name_has_a_factory(name):
    assert callable(importlib.import_module(BACKENDS[name].module).create)
    registry.check_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("opnai", "did you mean openai?"),
        ("vlm", "did you mean vllm?"),
        ("HF", "did you mean hf?"),
        ("transformers", "did you mean hf?"),
        ("groqq", "{provider: groq,"),
        ("deepseek", "{provider: deepseek,"),
        ("litellm", "backend_configs: {openai: {provider:"),
        ("zzz", "known backends: openai"),
        ("", "known backends"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_or_all_known_ones(name, said):
    with pytest.raises(PromptmillError) as caught:
        registry.check_name(name)
    assert caught.value.code is Code.INVALID_CONFIG
    assert str(caught.value).startswith("backend: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["openai", "vllm", "hf", "openvino"])
async def test_a_block_that_cannot_work_is_refused_before_anything_is_loaded(name):
    config = Configuration({"backend": name}).config
    with pytest.raises(PromptmillError) as caught:
        await registry.create(config)
    assert caught.value.code is Code.INVALID_CONFIG
    assert f"backend_configs.{name}." in str(caught.value)


def _config(**block):
    return Configuration({"backend": "openai", "backend_configs": {"openai": {"model_name": "m", **block}}}).config


def test_a_provider_that_wants_a_key_is_told_before_it_is_asked():
    with pytest.raises(PromptmillError, match="groq needs a key, and GROQ_API_KEY is not set") as caught:
        registry.check_key(_config(provider="groq"), {"GROQ_KEY": "sk-1", "PATH": "x"})
    assert '`api_key_env: "GROQ_KEY"`' in str(caught.value)
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("block", "environ"),
    [
        ({"provider": "groq"}, {"GROQ_API_KEY": "k"}),
        ({"provider": "groq"}, {"OPENAI_API_KEY": "k"}),
        ({"provider": "groq", "api_key": "k"}, {}),
        ({"provider": "groq", "api_key_env": "MINE"}, {}),
        ({"provider": "groq", "base_url": "localhost:1"}, {}),
        ({"provider": "ollama"}, {}),
        ({"base_url": "localhost:1"}, {}),
    ],
)
def test_where_a_key_is_there_or_not_needed_nothing_is_said(block, environ):
    registry.check_key(_config(**block), environ)


@pytest.mark.parametrize("scheme", ["https://", ""])
def test_a_provider_is_known_by_its_address_as_people_write_it(scheme):
    def config(url):
        block = {"model_name": "m", "base_url": f"{scheme}{url}"}
        return Configuration({"backend": "openai", "backend_configs": {"openai": block}}).config

    assert registry.provider_of(config("api.deepseek.com")) == "deepseek"
    assert registry.account_decides_tier(config("api.openai.com"))
    assert not registry.account_decides_tier(config("api.deepseek.com"))
    assert registry.provider_of(config("api.example.com:99999")) == "openai", "no URL, which the load reports"
