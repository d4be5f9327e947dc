"""A call that is over lets go of its prompts and answers at once: circles would keep them until the collector comes."""

from __future__ import annotations

import asyncio
import gc

import pytest

from driving import ask, opened
from promptmill.backends.protocol import Completion, Failure
from promptmill.core.request import Request
from replies import answer, by_prompt, closed, reset, status, truncated

pytestmark = pytest.mark.usefixtures("either_way")

OF_A_CALL = Request | Completion | Failure
BAD = {"bad": status(400), "cut": truncated(), "reset": reset(), "closed": closed(), "broken": status(500)}


@pytest.mark.parametrize("block", [{}, {"dedupe": True}, {"stream": True}], ids=["plain", "dedupe", "stream"])
@pytest.mark.parametrize("prompts", [["a", "b"] * 20, ["a", *BAD]], ids=["answers", "failures"])
@pytest.mark.thorough
async def test_nothing_is_left_to_the_garbage_collector(upstream, prompts, block):
    upstream.reply = by_prompt(BAD, answer())

    async with opened(upstream.url, retries=2, base_delay=0.001, **block) as backend:
        await ask(backend, prompts)
        gc.collect()
        before = [one for one in gc.get_objects() if isinstance(one, OF_A_CALL)]
        gc.disable()
        try:
            result = await ask(backend, prompts)
            assert result.answered
            del result
            await asyncio.sleep(0.05)  # tasks that have just ended
            left = len([one for one in gc.get_objects() if isinstance(one, OF_A_CALL)]) - len(before)
        finally:
            gc.enable()
    assert left == 0
