"""Parameters under other programs' names."""

from __future__ import annotations

import pytest

from promptmill.config.configuration import Configuration, Overrides
from promptmill.config.litellm import without_litellm
from promptmill.config.moved_parameters import move_parameters
from promptmill.core.errors import PromptmillError
from promptmill.core.request import BESIDE


def _moved(backend="openai", **raw):
    found, warnings = move_parameters(raw, backend)
    return found["sampling_params"], found["extra_params"], warnings


def test_parameters_that_are_not_ours_go_on_as_extra_parameters_and_are_told():
    sampling, extra, warnings = _moved(sampling_params={"temperature": 0.5, "best_of": 2, "logit_bias": {"1": 2}})
    assert sampling == {"temperature": 0.5}
    assert extra == {"best_of": 2, "logit_bias": {"1": 2}}
    assert warnings == ["sampling_params: best_of, logit_bias are unknown; sent on unchanged, as in `extra_params`."]


def test_extra_parameters_go_before_those_that_were_moved():
    _, extra, _ = _moved(sampling_params={"min_tokens": 1, "user": "a"}, extra_params={"min_tokens": 2})
    assert extra == {"min_tokens": 2, "user": "a"}


def test_an_extra_body_of_null_is_left_out():
    _, extra, warnings = _moved(sampling_params={"extra_body": None})
    assert (extra, warnings) == ({}, [])


def test_extra_body_stands_for_what_it_holds():
    _, extra, warnings = _moved(sampling_params={"extra_body": {"top_k": 5, "min_p": 0.1}}, extra_params={"top_k": 9})
    assert extra == {"top_k": 9, "min_p": 0.1}
    assert not warnings


def test_a_slip_of_the_pen_comes_with_the_word_that_was_meant():
    with pytest.raises(PromptmillError, match=r"sampling_params.temprature: .* did you mean temperature\?"):
        _moved(sampling_params={"temprature": 1})
    _, extra, _ = _moved(extra_params={"temprature": 1})
    assert extra == {"temprature": 1}


@pytest.mark.parametrize("backend", ["openai", "hf"])
@pytest.mark.parametrize("name", sorted(BESIDE))
def test_a_parameter_that_a_call_may_set_beside_ours_is_known_in_a_file_too(name, backend):
    assert _moved(backend, sampling_params={name: 3}, unsupported="error") == ({}, {name: 3}, [])


def test_a_slip_in_such_a_parameter_comes_with_the_word_that_was_meant():
    with pytest.raises(PromptmillError, match=r"sampling_params.top_choises: .* did you mean top_choices\?"):
        _moved(sampling_params={"top_choises": 1})


def test_options_of_a_client_are_left_out_with_their_place():
    _, extra, (warning,) = _moved(sampling_params={"timeout": 30})
    assert not extra
    assert "backend_configs.openai.timeout" in warning


def test_reasoning_that_is_an_object_is_the_endpoints():
    sampling, extra, _ = _moved(sampling_params={"reasoning": {"effort": "high"}})
    assert (sampling, extra) == ({}, {"reasoning": {"effort": "high"}})
    sampling, extra, _ = _moved(sampling_params={"reasoning": "inline"})
    assert (sampling, extra) == ({"reasoning": "inline"}, {})


def test_unsupported_error_refuses_what_is_not_known():
    with pytest.raises(PromptmillError, match="sampling_params: best_of is unknown"):
        _moved(sampling_params={"best_of": 2}, unsupported="error")


def test_an_engine_takes_sampling_from_the_extra_parameters_which_go_first():
    raw = {
        "sampling_params": {"temperature": 0.5, "top_k": 1},
        "extra_params": {"temperature": 0.1, "stop": "x", "u": 1},
    }
    sampling, extra, _ = _moved("vllm", **raw)
    assert (sampling, extra) == ({"temperature": 0.1, "top_k": 1, "stop": "x"}, {"u": 1})


@pytest.mark.parametrize("name", ["max_new_tokens", "num_predict"])
def test_what_other_programs_call_the_longest_answer_is_told_with_our_name(name):
    _, extra, warnings = _moved("openai", sampling_params={name: 100})
    assert extra == {name: 100}
    assert f"{name} (did you mean max_tokens?) is unknown" in warnings[0]


@pytest.mark.parametrize("name", ["OpenAI", "OPENAI", " openai "])
def test_a_backend_is_named_in_any_case_of_letters(name):
    assert Configuration({"backend": name}).config.backend == "openai"


FILE = {
    "backend": "openai",
    "backend_configs": {"openai": {"model_name": "m", "api_key": "placeholder", "base_url": "http://h/v1"}},
    "sampling_params": {"temperature": 0.7},
    "extra_params": {"chat_template_kwargs": {"enable_thinking": False}},
}


def test_what_a_pipeline_brings_replaces_what_the_file_says():
    configuration = Configuration(FILE, calls_replace=True)
    block = {"model_name": "n", "base_url": "http://i/v1"}
    config = configuration.overlaid(Overrides("openai", {"openai": block}, {}, {}))
    assert config.settings.backend_configs.openai.api_key is None
    assert config.settings.sampling_params.given() == {}
    assert config.settings.extra_params == {}


def test_what_another_client_brings_lies_over_what_the_file_says():
    config = Configuration(FILE).overlaid(Overrides("openai", {"openai": {"model_name": "n"}}, {}, {}))
    assert config.settings.backend_configs.openai.api_key is not None
    assert config.settings.sampling_params.temperature == 0.7


def test_keys_of_a_pipeline_that_nobody_knows_are_left_out_and_told():
    block = {"model_name": "n", "gpu_ids": "0", "max_retires": 3}
    config = Configuration(FILE, calls_replace=True).overlaid(Overrides("openai", {"openai": block, "new": {}}, {}, {}))
    assert config.settings.backend_configs.openai.model_name == "n"
    assert any("openai.max_retires: unknown key; did you mean" in warning for warning in config.warnings)
    assert any("backend_configs.new" in warning for warning in config.warnings)
    with pytest.raises(PromptmillError, match="max_retires"):
        Configuration(FILE | {"unsupported": "error"}, calls_replace=True).overlaid(
            Overrides("openai", {"openai": block}, {}, {})
        )


def test_a_pipelines_response_format_is_passed_on_and_checks_no_answer():
    wanted = {"type": "json_object"}
    file = {**FILE, "sampling_params": {"response_format": wanted}}
    init = Overrides("openai", {"openai": {"model_name": "n"}}, {"response_format": wanted}, {})
    for config in (
        Configuration(file, calls_replace=True).config,
        Configuration(FILE, calls_replace=True).overlaid(init),
    ):
        assert config.settings.sampling_params.response_format is None
        assert config.settings.extra_params["response_format"] == wanted
    assert Configuration(file).config.settings.sampling_params.response_format == wanted


def test_names_of_transformers_are_ours():
    block = {"model_name_or_path": "m", "torch_dtype": "torch.float16", "device_map": "cuda:1"}
    found = Configuration({"backend": "hf", "backend_configs": {"hf": block}}).config.settings.backend_configs.hf
    assert (found.dtype, found.device) == ("float16", "cuda:1")


def test_inline_reasoning_of_the_file_counts_where_sampling_says_nothing():
    assert Configuration({"reasoning": "inline"}).config.settings.sampling_params.reasoning == "inline"
    raw = {"reasoning": "inline", "sampling_params": {"reasoning": "separate"}}
    assert Configuration(raw).config.settings.sampling_params.reasoning == "separate"
    init = Configuration({"reasoning": "inline"}).overlaid(Overrides(None, {}, {"temperature": 1}, {}))
    assert init.settings.sampling_params.reasoning == "inline"


def _openai_block(**block):
    found = without_litellm({"backend": "LiteLLM", "backend_configs": {"litellm": block, "hf": {}}})
    assert found["backend"] == "openai"
    assert found["backend_configs"].keys() == {"hf", "openai"}
    return found["backend_configs"]["openai"]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("openai/gpt-5-mini", {"provider": "openai", "model_name": "gpt-5-mini"}),
        ("openrouter/qwen/qwen3-8b", {"provider": "openrouter", "model_name": "qwen/qwen3-8b"}),
        ("gemini/gemini-3-flash", {"provider": "google", "model_name": "gemini-3-flash"}),
        ("moonshot/k3", {"provider": "kimi", "model_name": "k3", "base_url": "https://api.moonshot.ai/v1"}),
    ],
)
def test_a_litellm_block_is_an_openai_block_of_its_models_provider(name, block):
    given = {"api_key": "k", "concurrency": 8, "retries": 3, "base_delay": 1.0}
    assert _openai_block(model_name=name, drop_params=True, base_url=None, **given) == {**block, **given}
    # one that a plan can be made of
    Configuration({"backend": "openai", "backend_configs": {"openai": block}})


@pytest.mark.parametrize("prefix", ["openai", "hosted_vllm", "litellm_proxy", "custom_openai"])
def test_the_address_of_a_litellm_block_counts_more_than_its_models_provider(prefix):
    block = _openai_block(model_name=f"{prefix}/org/m", base_url="http://localhost:8000/v1")
    assert block == {"model_name": "org/m", "base_url": "http://localhost:8000/v1"}


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"model_name": "bedrock/m"}, "promptmill does not know bedrock.*`backend: openai`"),
        ({"model_name": "gpt-5-mini"}, "`provider/name`"),
        ({"model_name": "openai/"}, "`provider/name`"),
        ({}, "`provider/name`"),
        ({"model_name": "hosted_vllm/m"}, "base_url: is missing"),
    ],
)
def test_a_litellm_block_that_cannot_work_here_is_refused(block, problem):
    with pytest.raises(PromptmillError, match=problem) as caught:
        _openai_block(**block)
    assert caught.value.message.startswith("backend_configs.litellm")


def test_a_litellm_block_that_is_not_used_is_left_out():
    blocks = {"litellm": {"model_name": "bedrock/m"}, "hf": {}}
    assert without_litellm({"backend": "hf", "backend_configs": blocks})["backend_configs"] == {"hf": {}}


def test_a_file_for_litellm_loads(tmp_path):
    file = tmp_path / "parameter.yaml"
    file.write_text("backend: litellm\nbackend_configs: {litellm: {model_name: openai/m, base_url: http://h/v1}}\n")
    config = Configuration.load(file).config
    assert (config.backend, config.model, config.settings.backend_configs.openai.base_url) == (
        "openai",
        "m",
        ["http://h/v1"],
    )
