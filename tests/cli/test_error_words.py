"""Errors on the command line name options, and the place of a wrong setting."""

import argparse

import pytest

from promptmill.cli.error_words import explained, option_of
from promptmill.config import parameter_file
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, Named, PromptmillError


@pytest.mark.parametrize(
    ("field", "option"),
    [
        (Named("max_body"), "--max-body"),
        (Named("again", "all"), "--again all"),
        (Named("settings"), "--set"),
        (Named("backend_configs.openai.model_name", "NAME"), "--model NAME"),
        (Named("sampling_params.top_p", 0.5), "--set sampling_params.top_p=0.5"),
        (Named("sampling_params.top_p", None), "--set sampling_params.top_p=null"),
        (Named("price", {"input": 1}), """--set 'price={"input": 1}'"""),
        (Named("unsupported"), "`unsupported`"),
    ],
)
def test_an_error_names_options_instead_of_arguments_and_keys(field, option):
    assert PromptmillError(Code.UNSUPPORTED, "It failed.", ("Use ", field, ".")).worded(option_of) == (
        f"It failed. Use {option}."
    )


def test_the_error_of_an_engine_names_other_ways_to_get_answers():
    configuration = Configuration({"backend": "hf"})
    other = "--backend says hf; instead: --base-url URL"
    for hint, start, end in (
        ("Run: pip install x", f"x is missing. {other}", "here. Run: pip install x"),
        (("Use ", Named("base_url"), "."), f"x is missing. Use --base-url. {other}", "here."),
    ):
        error = PromptmillError(Code.MISSING_DEPENDENCY, "x is missing.", hint)
        shown = explained(error, argparse.Namespace(backend="hf", set=[]), configuration).worded(option_of)
        assert shown.startswith(start)
        assert shown.endswith(end)


@pytest.mark.parametrize(
    ("model", "said"),
    [("gpt5", "--provider openai, with your key in OPENAI_API_KEY"), ("Qwen/Qwen3-8B", "--base-url URL or --provider")],
)
def test_a_model_that_is_named_alone_names_its_provider(model, said):
    configuration = Configuration({"backend": "hf", "backend_configs": {"hf": {"model_name_or_path": model}}})
    error = PromptmillError(Code.ENGINE_LOAD_FAILED, "It is not here.", "")
    shown = explained(error, argparse.Namespace(backend="hf", set=[]), configuration).worded(option_of)
    assert f"instead: {said}" in shown


def test_without_a_configuration_file_no_error_names_the_shipped_one():
    shipped = next(place for place in parameter_file._shipped() if place.is_file())
    configuration = Configuration.load(shipped, backend="openai")
    arguments = argparse.Namespace(backend="openai", set=[])
    error = PromptmillError(Code.INVALID_CONFIG, "backend_configs.openai.base_url: is missing.", "")
    assert explained(error, arguments, configuration).worded(option_of) == "--base-url: is missing."
    lacking = PromptmillError(Code.MISSING_DEPENDENCY, "It lacks x.", "Use y. Run: pip install x")
    arguments = argparse.Namespace(backend=None, set=[])
    shown = explained(lacking, arguments, Configuration.load(shipped)).worded(option_of)
    assert "There is no configuration file: openvino is the default; instead: --base-url URL" in shown
    assert "parameter.yaml" not in shown
    assert shown.endswith("Run: pip install x")
