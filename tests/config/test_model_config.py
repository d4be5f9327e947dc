"""Models by name in `parameter.yaml`: what each of them is, and what is said of mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from promptmill.config import model_config
from promptmill.config.configuration import Configuration, Overrides
from promptmill.core.errors import PromptmillError

FAST = {"openai": {"base_url": "http://127.0.0.1:1/v1", "model_name": "small", "api_key": "k"}}
LOCAL = {"hf": {"model_name_or_path": "/models/own"}}


def test_a_file_without_models_is_the_one_model_default():
    configuration = Configuration({"backend": "hf", "backend_configs": {"hf": {"model_name_or_path": "a"}}})
    assert configuration.names == ("default",)
    assert configuration.config.name == "default"
    assert configuration.config.fallback == []


def test_a_model_has_a_block_of_its_own_and_the_rest_of_the_file():
    configuration = Configuration(
        {
            "backend": "openai",
            "backend_configs": {
                "openai": {"base_url": "http://127.0.0.1:2/v1", "model_name": "big", "api_key": "other"}
            },
            "sampling_params": {"temperature": 0.5, "top_p": 0.9, "max_tokens": 10},
            "extra_params": {"best_of": 2},
            "system_prompt": "Be kind.",
            "price": {"input": 1, "output": 2},
            "models": {"fast": {**FAST, "sampling_params": {"temperature": 0, "top_p": None}, "fallback": ["default"]}},
        }
    )
    config = configuration.config_of("fast")
    assert configuration.names == ("default", "fast")
    assert (config.backend, config.model, config.fallback) == ("openai", "small", ["default"])
    assert config.settings.backend_configs.openai.api_key == SecretStr("k")
    assert config.settings.sampling_params.given() == {"temperature": 0, "max_tokens": 10}
    assert config.settings.system_prompt == "Be kind."
    assert (config.settings.extra_params, config.settings.price) == ({}, None), "those of another model"
    assert configuration.config.model == "big"


def test_where_the_file_names_no_backend_the_first_model_answers():
    configuration = Configuration({"models": {"fast": FAST, "local": LOCAL}})
    assert configuration.names == ("fast", "local")
    assert configuration.config.model == "small"
    overlaid = configuration.overlaid(Overrides("openai", {}, {"temperature": 0}))
    assert (overlaid.name, overlaid.model) == ("fast", "small")


def test_default_model_chooses_which_one_answers():
    configuration = Configuration({"models": {"fast": FAST, "local": LOCAL}, "default_model": "local"})
    assert (configuration.default, configuration.config.model) == ("local", "/models/own")


@pytest.mark.parametrize("block", [{"base_url": "${NOT_SET_HERE}"}, {"timeout": [5, "${NOT_SET_HERE}"]}])
def test_a_model_whose_variable_is_not_set_costs_the_others_nothing(block):
    raw = {"models": {"local": LOCAL, "fast": {"openai": {**block, "model_name": "x"}}}}
    configuration = Configuration.load(Path("file"), content=raw)
    assert configuration.config.name == "local"
    with pytest.raises(PromptmillError, match=r"models\.fast: .*NOT_SET_HERE is not set"):
        configuration.config_of("fast")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"models": {"f": {"openai": {"modl_name": "x"}}}}, r"models\.f\.openai\.modl_name: .* model_name\?"),
        ({"models": {"f": {"hf": {}, "fallbak": []}}}, r"models\.f\.fallbak: .* fallback\?"),
        ({"models": {"f": {}}}, r"models\.f: needs the block of one backend \(.*hf.*\); it has none"),
        ({"models": {"f": {"hf": {}, "vllm": {}}}}, r"models\.f: .* it has hf and vllm"),
        (
            {"models": {"f": {"hf": {}, "fallback": ["g"]}, "gg": {"hf": {}}}},
            r"fallback\[0\]: .*'g'; models here: gg, f",
        ),
        ({"models": {"f": {"hf": {"batch_size": "x"}}}}, r"models\.f\.hf\.batch_size"),
        ({"models": 3}, r"models: "),
        ({"default_model": "q"}, r"default_model: there is no model 'q'"),
    ],
)
def test_mistakes_are_told_with_their_path(raw, said):
    with pytest.raises(PromptmillError, match=said):
        Configuration(raw)


def test_a_model_that_the_file_does_not_name_is_refused_where_it_names_some() -> None:
    def chosen(raw: Mapping[str, Any], model: str, **endpoint: str) -> dict[tuple[str, ...], Any]:
        return model_config.settings_of(raw, backend=None, endpoint=endpoint, model=model, sampling={})

    raw = {"models": {"fast": {"hf": {}}, "strong": {"hf": {}}}}
    with pytest.raises(PromptmillError, match=r"`model`: there is no model 'strng'; models here: strong, fast"):
        chosen(raw, "strng")
    assert chosen(raw, "strong") == {("default_model",): "strong"}
    elsewhere = chosen(raw, "strng", base_url="http://127.0.0.1:1/v1")
    assert elsewhere["backend_configs", "openai", "model_name"] == "strng"
    assert chosen({}, "strng")


CORP = {"base_url": "https://api.corp.example/v1", "api_key_env": "CORP_API_KEY", "headers": {"X-Team": "a"}}


@pytest.mark.parametrize(
    ("own", "given", "meant"),
    [
        (CORP, {"provider": "ollama"}, ("ollama", [], None, {})),
        (CORP, {"provider": "ollama", "base_url": "http://b/v1"}, ("ollama", ["http://b/v1"], "CORP_API_KEY", CORP)),
        (CORP, {"base_url": "http://b/v1"}, (None, ["http://b/v1"], "CORP_API_KEY", CORP)),
        ({"provider": "mistral", "api_key_env": "K"}, {"base_url": "http://b/v1"}, (None, ["http://b/v1"], None, {})),
        ({"provider": "mistral", "api_key_env": "K"}, {"provider": "mistral"}, ("mistral", [], "K", {})),
        ({"provider": "mistral", "api_key_env": "K"}, {"concurrency": 2}, ("mistral", [], "K", {})),
    ],
)
@pytest.mark.parametrize("by_a_call", [False, True])
def test_another_provider_has_its_own_address_and_takes_no_key_of_the_files(own, given, meant, by_a_call):
    """Else `--provider ollama` would ask the endpoint of the file, with prompts that are to stay on this machine."""
    raw = {"backend": "openai", "backend_configs": {"openai": own}}

    def values(raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
        return model_config.settings_of(raw, backend=None, endpoint=given, model=None, sampling={})

    if by_a_call:
        config = Configuration(raw).overlaid(Overrides(backend_configs={"openai": given}))
    else:
        config = Configuration.load(Path("parameter.yaml"), content=raw, values=values).config
    block = config.settings.backend_configs.openai
    provider, base_url, api_key_env, headers = meant
    assert (block.provider, block.base_url, block.api_key_env) == (provider, base_url, api_key_env)
    assert block.headers.keys() == headers.get("headers", {}).keys()


def test_an_address_that_is_set_in_full_counts_beside_a_provider():
    configuration = Configuration.load(
        Path("parameter.yaml"),
        content={"backend": "openai", "backend_configs": {"openai": CORP}},
        assignments={"backend_configs.openai.base_url": "http://b/v1"},
        values=lambda raw: model_config.settings_of(
            raw, backend=None, endpoint={"provider": "ollama"}, model=None, sampling={}
        ),
    )
    assert configuration.config.settings.backend_configs.openai.base_url == ["http://b/v1"]


@pytest.mark.parametrize("blocks", [None, [], {"openai": "localhost:11434"}, {"openai": None}])
def test_an_endpoint_may_be_chosen_above_a_file_whose_blocks_are_empty_or_wrong(blocks):
    raw = {"backend": "openai", "backend_configs": blocks}
    chosen = model_config.settings_of(raw, backend=None, endpoint={"provider": "ollama"}, model=None, sampling={})
    assert chosen["backend_configs", "openai", "provider"] == "ollama"
