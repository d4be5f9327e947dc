"""`base_url` as a list: balanced, and what befalls one does not befall the answers."""

from __future__ import annotations

import asyncio

import pytest

from driving import ask, echoes, opened
from fakes import DictSink
from replies import at_most, choose, from_request, late, reset, status, vanishing
from waiting import until

pytestmark = pytest.mark.simulated

PROMPTS = [f"prompt {i}" for i in range(600)]


@pytest.mark.thorough
async def test_work_is_shared(upstreams, drive):
    ups = [upstreams(late(0.01)) for _ in range(3)]
    result = await drive(PROMPTS, base_url=[up.url for up in ups], concurrency=24)
    assert result.texts == echoes(PROMPTS)
    assert all(len(up.seen) > 100 for up in ups)
    assert sum(len(up.seen) for up in ups) == 600
    assert sum(up.peak for up in ups) <= 24


@pytest.mark.thorough
@pytest.mark.parametrize(
    "fault",
    [
        vanishing(50, None, late(0.01)),
        from_request(50, reset(), before=late(0.01)),
        from_request(50, status(503), before=late(0.01)),
        from_request(50, status(429), before=late(0.01)),
        from_request(50, status(401), before=late(0.01)),
        from_request(1, status(401)),
        vanishing(1, None),
    ],
    ids=["vanishes", "resets", "503", "429", "401", "401 from the start", "never there"],
)
async def test_one_that_dies_is_set_aside(upstreams, drive, fault):
    well, ill = upstreams(late(0.01)), upstreams(fault)
    result = await drive(PROMPTS, base_url=[ill.url, well.url], concurrency=16, retries=5)
    assert result.texts == echoes(PROMPTS)
    assert result.seconds < 3
    assert len(ill.seen) < 250


@pytest.mark.thorough
async def test_one_that_is_well_again_takes_part_again(upstreams, drive):
    well, ill = upstreams(late(0.01)), upstreams(vanishing(30, 0.5, late(0.01)))
    prompts = [f"prompt {i}" for i in range(2000)]
    result = await drive(prompts, base_url=[ill.url, well.url], concurrency=16, retries=5)
    assert result.texts == echoes(prompts)
    assert len(ill.seen) > 200


@pytest.mark.thorough
async def test_a_slow_one_does_not_hold_back_a_fast_one(upstreams, drive):
    fast, slow = upstreams(late(0.005)), upstreams(late(0.5))
    result = await drive(PROMPTS, base_url=[slow.url, fast.url], concurrency=16)
    assert result.texts == echoes(PROMPTS)
    assert len(fast.seen) > 5 * len(slow.seen)
    assert result.seconds < 3


async def test_each_finds_its_own_limit(upstreams, drive):
    narrow = upstreams(at_most(2, late(0.01), status(429)))
    wide = upstreams(late(0.01))
    result = await drive(PROMPTS, base_url=[narrow.url, wide.url], concurrency=32, retries=5)
    assert result.texts == echoes(PROMPTS)
    assert len(wide.seen) > len(narrow.seen)


@pytest.mark.parametrize("code", [429, 503])
async def test_what_one_asks_to_wait_is_not_waited_at_another(upstreams, drive, code):
    well, ill = upstreams(late(0.01)), upstreams(from_request(50, status(code, retry_after="30"), before=late(0.01)))
    result = await drive(PROMPTS, base_url=[ill.url, well.url], concurrency=16, retries=5, max_delay=30)
    assert result.texts == echoes(PROMPTS)
    assert result.seconds < 3


async def test_what_fails_at_one_while_the_other_is_out_holds_up_nobody(upstreams):
    """A failed item is better sent elsewhere, but elsewhere asks for half a minute."""
    stumbling = choose(lambda seen: status(500) if seen.attempt == 1 and seen.prompt.endswith("7") else late(0.005))
    well, ill = upstreams(stumbling), upstreams(from_request(5, status(503, retry_after="30"), before=late(0.005)))
    sink = DictSink()
    async with opened([ill.url, well.url], concurrency=8, retries=3, max_delay=30) as backend:
        call = asyncio.ensure_future(ask(backend, PROMPTS, sink=sink))
        await until(lambda: len(sink.outcomes) >= len(PROMPTS) - 8)  # but for those that the other refused
        call.cancel()
        await asyncio.wait({call})
    assert sum(seen.attempt > 1 for seen in well.seen) > 40
