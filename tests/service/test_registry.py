"""Backend names → where they are made."""

from __future__ import annotations

import importlib

import pytest

from promptmill.config.backends import BACKENDS
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.service import registry


@pytest.mark.parametrize("name", BACKENDS)
def test_every_known_name_has_a_factory(name):
    assert callable(importlib.import_module(BACKENDS[name].module).create)
    registry.check_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [("opnai", "did you mean openai?"), ("zzz", "known backends: openai"), ("", "known backends"), ("HF", "known")],
)
def test_an_unknown_name_is_an_error_with_the_nearest_or_all_known_ones(name, said):
    with pytest.raises(PromptmillError) as caught:
        registry.check_name(name)
    assert caught.value.code is Code.INVALID_CONFIG
    assert str(caught.value).startswith("backend: ")
    assert said in str(caught.value)


def test_a_backend_is_made_from_its_plan_and_not_loaded(run):
    block = {"model_name": "m", "base_url": "http://127.0.0.1:9/v1"}
    plan = Configuration({"backend": "openai", "backend_configs": {"openai": block}}).plan

    async def work():
        backend = await registry.create(plan)
        await backend.aclose()
        return type(backend).__name__

    assert run(work()) == "OpenAIBackend"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_block_that_cannot_work_is_refused_before_anything_is_loaded(run, name):
    plan = Configuration({"backend": name}).plan
    with pytest.raises(PromptmillError) as caught:
        run(registry.create(plan))
    assert caught.value.code is Code.INVALID_CONFIG
    assert f"backend_configs.{name}." in str(caught.value)
