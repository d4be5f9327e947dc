"""Errors when the model hub refuses a model: a hub on loopback responds as the real one does."""

from __future__ import annotations

import pytest

from hub import Mirror, environment, refusing_hub
from promptmill.backends.engines.host import create
from promptmill.core.errors import PromptmillError

pytestmark = [pytest.mark.engine, pytest.mark.thorough]


@pytest.fixture(scope="module")
def hub():
    with refusing_hub() as hub:
        yield hub


@pytest.fixture
def refusal(desk, make_config, hub, tmp_path):
    """Return the error of a hub name that does not load."""

    def load(name, **keys) -> PromptmillError:
        host = create(make_config(name, **keys))
        host._environment.update(environment(hub.url, tmp_path), HF_TOKEN="hf_abcdefghijklmnopqrstuvwxyz")
        hub.asked.clear()
        with pytest.raises(PromptmillError) as caught:
            desk.wait(host.load(lambda text: None))
        error = caught.value
        assert error.code == "engine_load_failed"
        assert "hf_" not in str(error)
        assert "\n" not in error.message
        assert error.message.count(". ") == 0, "one sentence"
        assert len(hub.asked) < 10, "the hub's client would try for minutes"
        return error

    return load


@pytest.mark.parametrize("name", ["gated/without-token", "gated/not-accepted"])
def test_a_gated_model_says_whose_terms_to_accept(refusal, hub, name):
    error = refusal(name)
    assert f"{name} is gated" in error.message
    assert f"{hub.url}/{name}" in error.hint
    assert "HF_TOKEN" in error.hint


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/with-token"])
def test_a_name_that_the_hub_does_not_know_is_said(refusal, name):
    error = refusal(name)
    assert f"knows no model {name}" in error.message
    assert "Check the name" in error.hint


@pytest.mark.parametrize("name", ["wrong/token", "mirror/unknown"])
def test_a_refusal_without_a_reason_says_what_it_may_be(refusal, name):
    error = refusal(name)
    assert f"refused {name}" in error.message
    assert "HF_TOKEN" in error.hint


def test_a_repository_without_the_file_is_said(refusal):
    assert "holds no config.json" in refusal("other/format").message
    assert "holds no m.gguf" in refusal("other/format", gguf_file="m.gguf").message


def test_a_hub_that_has_trouble_is_said(refusal):
    error = refusal("hub/tired")
    assert "did not answer for hub/tired" in error.message
    assert "later" in error.hint


def test_a_hub_that_was_asked_too_often_is_said(refusal):
    error = refusal("hub/busy")
    assert "too many requests" in error.message
    assert "HF_TOKEN" in error.hint


def test_a_model_comes_from_the_hub_and_afterwards_from_its_cache(desk, make_config, tiny, tmp_path):
    async def answered(url):
        host = create(make_config("we/model"))
        host._environment.update(environment(url, tmp_path))
        try:
            await host.load(lambda text: None)
            (outcome,) = await desk.call(host, ["a"], {"ignore_eos": True}, max_tokens=5).run()
        finally:
            await host.aclose()
        return outcome.text

    with Mirror(tiny()) as mirror:
        first = desk.wait(answered(mirror.url))
    assert any("model.safetensors" in path for path in mirror.asked)
    assert desk.wait(answered(mirror.url)) == first
