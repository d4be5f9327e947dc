"""`talk`: one server in front of one endpoint."""

from __future__ import annotations

import pytest

from fakes import openai_configuration
from promptmill.config.loading import Configuration
from talk import serving


@pytest.fixture
def talk(run, upstream):
    """Run `work(talk)` in front of `upstream`, configured with what `block` and `top` say."""

    def runner(work, *, top=None, **block):
        async def whole():
            configuration = openai_configuration(**{"base_url": upstream.url} | block)
            if top:
                configuration = Configuration({**configuration._raw, **top})
            async with serving(configuration) as talking:
                return await work(talking)

        return run(whole())

    return runner
