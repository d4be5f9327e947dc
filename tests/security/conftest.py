"""`rule("K1")` says which sentence of SECURITY.md a test proves; `test_sentences` holds the two together.

Fixtures: `drive` runs prompts through the openai backend, `talk` gives a server in front of `upstream`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from driving import Result, ask, opened
from fakes import openai_configuration
from promptmill.config.loading import Configuration
from talk import serving
from upstream import Upstream


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rule(name): the sentence of SECURITY.md that the test proves")


@pytest.fixture
def drive(upstream: Upstream, run: Any) -> Callable[..., Result]:
    """Run prompts through a fresh backend with `block` over the usual settings."""

    def driver(prompts: Sequence[Any], **block: Any) -> Result:
        async def work() -> Result:
            async with opened(block.pop("base_url", upstream.url), **block) as backend:
                return await ask(backend, prompts)

        return run(work())

    return driver


@pytest.fixture
def talk(run: Any, upstream: Upstream) -> Callable[..., Any]:
    """Run `work(talk)` in front of `upstream`; `top` lies over the configuration's top level, `block` over openai's."""

    def runner(work: Any, *, top: Any = None, **block: Any) -> Any:
        async def whole() -> Any:
            configuration = openai_configuration(**{"base_url": upstream.url} | block)
            configuration = Configuration({**configuration._raw, **(top or {})})
            async with serving(configuration) as talking:
                return await work(talking)

        return run(whole())

    return runner
