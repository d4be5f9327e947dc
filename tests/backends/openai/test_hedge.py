"""`hedge: true`: twins for stragglers."""

from __future__ import annotations

import pytest

from driving import ask, echoes, opened
from promptmill.backends.protocol import Call, Facts
from replies import choose, hang, late, status

pytestmark = pytest.mark.simulated

PROMPTS = [str(i) for i in range(600)]


@pytest.mark.thorough
async def test_stragglers_are_answered_by_their_twins(upstream, drive):
    upstream.reply = choose(lambda seen: hang() if seen.attempt == 1 and seen.prompt.endswith("50") else late(0.05))
    assert (await drive(PROMPTS, concurrency=64, hedge=True)).texts == echoes(PROMPTS)


async def test_twins_are_counted_and_at_most_one_in_twenty(upstream):
    upstream.reply = choose(lambda seen: late(0.2 if seen.number % 4 == 0 else 0.01))
    async with opened(upstream.url, concurrency=16, hedge=True) as backend:
        stats = Call(Facts(total=len(PROMPTS)))
        result = await ask(backend, PROMPTS, stats)
    assert result.texts == echoes(PROMPTS)
    assert stats.counts.requests == len(upstream.seen) == sum(outcome.attempts for outcome in result.outcomes)
    assert len(PROMPTS) <= stats.counts.requests <= 1.05 * len(PROMPTS) + 1


async def test_the_loser_is_cancelled(upstream, drive):
    upstream.reply = choose(lambda seen: hang() if seen.prompt == "300" and seen.attempt == 1 else late(0.01))
    assert (await drive(PROMPTS, concurrency=16, hedge=True)).texts == echoes(PROMPTS)
    first, _ = [seen for seen in upstream.seen if seen.prompt == "300"]
    assert first.left is not None


async def test_a_twin_goes_to_another_endpoint_where_there_is_one(upstreams, drive):
    slow, quick = upstreams(), upstreams()
    slow.reply = choose(lambda seen: hang() if seen.prompt == "300" else late(0.01))
    quick.reply = choose(lambda seen: late(0.01))
    prompts = PROMPTS[:400]
    result = await drive(prompts, base_url=[slow.url, quick.url], concurrency=16, hedge=True)
    assert result.texts == echoes(prompts)
    assert quick.attempts["300"] == 1


@pytest.mark.parametrize("fault", [status(500), status(429)])
async def test_failures_are_tried_again_as_without_twins(upstream, drive, fault):
    upstream.reply = choose(lambda seen: fault if seen.attempt == 1 and seen.prompt.endswith("7") else late(0.01))
    result = await drive(PROMPTS[:200], concurrency=16, hedge=True, base_delay=0.01)
    assert result.texts == echoes(PROMPTS[:200])
