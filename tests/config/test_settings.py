"""The typed form of the configuration: defaults of the contract, and what people write."""

from __future__ import annotations

import sys

import pytest
from pydantic import ValidationError

from promptmill.config.backends import BACKENDS
from promptmill.config.settings import (
    BackendConfigs,
    HFSettings,
    ModelSettings,
    OpenAISettings,
    Settings,
    VLLMSettings,
)


def _has(block, defaults):
    found = block.model_dump()
    assert {name: found[name] for name in defaults} == defaults


def test_the_defaults_are_those_of_the_contract():
    settings = Settings()
    _has(
        settings,
        {
            "backend": "openvino",
            "extra_params": {},
            "system_prompt": "",
            "image_tag": None,
            "on_error": "report",
            "unsupported": "warn",
            "call_timeout": None,
            "allowed_roots": None,
            "max_image_pixels": 89_000_000,
            "client_limits": {"max_tokens": None, "models": None, "tokens": {}},
            "max_result_bytes": None,
            "max_image_memory": 1 << 30,
        },
    )
    _has(
        settings.backend_configs.openai,
        {
            "model_name": None,
            "base_url": [],
            "api_key": None,
            "api_key_env": None,
            "headers": {},
            "trust_env": True,
            "concurrency": 64,
            "adaptive": True,
            "rpm": None,
            "tpm": None,
            "retries": 5,
            "base_delay": 1.0,
            "max_delay": 30,
            "timeout": (10, 600),
            "item_timeout": None,
            "patience": 120,
            "max_connections": None,
            "stream": False,
            "dedupe": False,
            "enable_thinking": None,
        },
    )
    _has(
        settings.backend_configs.hf,
        {
            "model_name_or_path": None,
            "gpu_ids": None,
            "trust_remote_code": False,
            "batch_size": None,
            "dtype": "auto",
            "device": "auto",
            "gguf_file": None,
        },
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2,3", (2, 3)),
        (" 2 , 3 ", (2, 3)),
        ("2", (2,)),
        (2, (2,)),
        (0, (0,)),
        ([2, 3], (2, 3)),
        ("", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("block", [HFSettings, VLLMSettings])
def test_gpu_ids_are_read_in_every_spelling(block, written, read):
    assert block(gpu_ids=written).gpu_ids == read


@pytest.mark.parametrize("wrong", ["a", "-1", [-1], True, {"a": 1}])
def test_gpu_ids_that_are_none_are_refused(wrong):
    with pytest.raises(ValidationError):
        HFSettings(gpu_ids=wrong)


def test_one_base_url_is_a_list_of_one():
    assert OpenAISettings(base_url="http://h/v1").base_url == ["http://h/v1"]
    assert OpenAISettings(base_url=["http://a", "http://b"]).base_url == ["http://a", "http://b"]


def test_a_single_timeout_is_the_longest_silence():
    assert OpenAISettings(timeout=60).timeout == (10, 60)
    assert OpenAISettings(timeout=3).timeout == (3, 3)
    assert OpenAISettings(timeout=[1, 2]).timeout == (1, 2)


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_concurrency_is_a_positive_whole_number(value):
    with pytest.raises(ValidationError):
        OpenAISettings(concurrency=value)


def test_every_engine_argument_of_vllm_goes_through():
    assert VLLMSettings(max_model_len=4096).model_extra == {"max_model_len": 4096}


def test_a_key_is_not_shown():
    settings = OpenAISettings(api_key="sk-very-secret-key", headers={"X-Token": "other-secret"})
    assert "secret" not in repr(settings)
    assert "secret" not in str(settings.model_dump(mode="json"))


def test_a_key_without_a_value_keeps_the_default():
    settings = Settings.model_validate({"backend_configs": {"openai": None}, "sampling_params": None, "backend": None})
    assert settings == Settings()


def test_every_key_says_what_it_means():
    undescribed = [
        f"{block.__name__}.{name}"
        for block in (OpenAISettings, HFSettings, VLLMSettings)
        for name, field in block.model_fields.items()
        if not field.description
    ]
    assert not undescribed


@pytest.mark.parametrize(
    ("name", "value"), [("concurrency", True), ("rpm", False), ("timeout", [True, 5]), ("retries", True)]
)
def test_a_boolean_is_not_a_number(name, value):
    with pytest.raises(ValidationError, match="should be a number, not true or false"):
        OpenAISettings.model_validate({name: value})


@pytest.mark.parametrize("name", ["temperature", "top_k", "seed", "max_tokens", "n"])
def test_a_boolean_is_not_a_number_of_the_sampling(name):
    with pytest.raises(ValidationError, match="should be a number, not true or false"):
        Settings.model_validate({"sampling_params": {name: True}})


def test_a_key_without_a_value_keeps_its_default():
    block = OpenAISettings.model_validate({"retries": None, "headers": None, "base_url": None, "rpm": None})
    assert (block.retries, block.headers, block.base_url, block.rpm) == (5, {}, [], None)


def test_every_backend_has_its_block_for_the_file_and_for_one_of_several_models():
    assert BackendConfigs.model_fields.keys() == BACKENDS.keys()
    assert BACKENDS.keys() <= ModelSettings.model_fields.keys()


# The program of a key


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("gcloud auth print-access-token", ("gcloud", "auth", "print-access-token")),
        (["az", "account", "get-access-token"], ("az", "account", "get-access-token")),
        ("print-key --for 'a b' --to \"c d\"", ("print-key", "--for", "a b", "--to", "c d")),
        ("  print-key  ", ("print-key",)),
        ("print-key a#b '$HOME' *", ("print-key", "a#b", "$HOME", "*")),
        (["sh", "-c", "cat key | tr -d x > /dev/stdout"], ("sh", "-c", "cat key | tr -d x > /dev/stdout")),
        (None, None),
    ],
)
def test_a_program_is_a_list_or_is_split_as_a_shell_would(written, words):
    assert OpenAISettings(api_key_command=written).api_key_command == words


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("", "is empty"),
        ([], "is empty"),
        ([""], "is empty"),
        ("print-key 'a", "a quote that is not closed"),
        ("print-key | head", "without a shell"),
        ("a && b", "without a shell"),
        ("print-key > x", "without a shell"),
        ("print-key $(date)", "without a shell"),
        ("print-key `date`", "without a shell"),
        (["a\0b"], "NUL"),
        ([1], "valid string"),
        ({"a": 1}, "valid tuple"),
        (True, "valid tuple"),
    ],
)
def test_another_program_is_refused_with_the_reason(written, problem):
    with pytest.raises(ValidationError, match=problem):
        OpenAISettings(api_key_command=written)


def test_on_windows_a_backslash_separates_folders(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    words = OpenAISettings(api_key_command=r'"C:\Program Files\key.exe" --file C:\keys\a.txt').api_key_command
    assert words == (r"C:\Program Files\key.exe", "--file", r"C:\keys\a.txt")


@pytest.mark.parametrize("other", [{"api_key": "k"}, {"api_key_env": "K"}, {"api_key": ["k"]}])
def test_a_key_has_one_source(other):
    with pytest.raises(ValidationError, match="leave one of them out"):
        OpenAISettings(api_key_command="print-key", **other)
    OpenAISettings(api_key_command="print-key", **dict.fromkeys(other))
