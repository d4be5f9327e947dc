"""How many of our own connections there are: kept, used again, no more than allowed."""

from __future__ import annotations

import pytest

from driving import ask, echoes, opened
from replies import late
from waiting import until


async def test_concurrency_of_one_sends_one_after_the_other(upstream, drive):
    upstream.reply = late(0.002)
    prompts = [str(i) for i in range(50)]
    assert (await drive(prompts, concurrency=1)).texts == echoes(prompts)
    assert upstream.peak == 1
    assert upstream.connections == 1


async def test_fewer_connections_than_requests_are_enough(upstream, drive):
    upstream.reply = late(0.002)
    prompts = [str(i) for i in range(100)]
    assert (await drive(prompts, concurrency=16, max_connections=2)).texts == echoes(prompts)
    assert upstream.peak <= 2
    assert upstream.connections <= 2


@pytest.mark.thorough
async def test_connections_are_kept_and_used_again(upstream):
    async with opened(upstream.url, concurrency=4) as backend:
        for _ in range(3):
            await ask(backend, [str(i) for i in range(100)])
    assert upstream.connections <= 4
    await until(lambda: not upstream.open)
