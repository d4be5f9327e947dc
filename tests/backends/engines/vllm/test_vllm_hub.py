"""vLLM and the model hub: errors when it refuses, a token in the configuration, a cached model."""

import pytest

from hub import Mirror, environment, refusing_hub
from promptmill.backends.engines.host import create
from promptmill.core.errors import PromptmillError

pytestmark = pytest.mark.engine
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("name", "said", "advice"),
    [
        ("gated/without-token", "The model gated/without-token is gated", "Accept its terms at http://127.0.0.1:"),
        ("gated/not-accepted", "The model gated/not-accepted is gated", "set HF_TOKEN"),
        ("nobody/nothing", "The model hub knows no model nobody/nothing, or it is private", "Check the name"),
        ("wrong/token", "refused wrong/token", "HF_TOKEN"),
        ("other/format", "other/format on the model hub holds no config.json", "transformers' format"),
        ("hub/busy", "too many requests", "try again later"),
        ("hub/tired", "did not answer for hub/tired", "Try again later"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(refusal, tmp_path, name, said, advice):
    with refusing_hub() as hub:
        error = refusal(name, environment(hub.url, tmp_path) | {"HF_TOKEN": TOKEN})
    assert error.code == "engine_load_failed"
    assert said in error.message
    assert advice in error.hint
    assert TOKEN not in str(error)


@pytest.mark.parametrize(
    ("offline", "why"),
    [
        ({}, "http://127.0.0.1:9 cannot be reached from here"),
        ({"HF_HUB_OFFLINE": "1"}, "may not be used (`HF_HUB_OFFLINE`)"),
    ],
)
def test_without_a_network_that_is_said(refusal, tmp_path, offline, why):
    error = refusal("nobody/nothing", environment("http://127.0.0.1:9", tmp_path) | offline)
    assert f"{why}, and nobody/nothing is not in its cache." in error.message
    assert "Give the path of a model folder, use smollm2-135m-instruct" in error.hint


def test_a_gated_model_comes_with_the_token_of_the_configuration_and_later_from_the_cache(
    desk, make_vllm_config, small, refusal, tmp_path
):
    async def answered(url, **keys):
        host = create(make_vllm_config("we/model", dtype="float32", max_num_seqs=4, **keys))
        host._environment.update(environment(url, tmp_path))
        try:
            await host.load(lambda text: None)
            (outcome,) = await desk.call(host, ["a"], {"ignore_eos": True}, max_tokens=5).run()
        except PromptmillError as error:
            pytest.fail(str(error))
        finally:
            await host.aclose()
        return outcome.text

    with Mirror(small, token=TOKEN) as mirror:
        assert "is gated" in refusal("we/model", environment(mirror.url, tmp_path)).message
        first = desk.wait(answered(mirror.url, hf_token=TOKEN))
    assert any("model.safetensors" in path for path in mirror.asked)
    assert desk.wait(answered(mirror.url)) == first
