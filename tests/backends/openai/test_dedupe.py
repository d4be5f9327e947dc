"""`dedupe: true`: identical requests of one call are sent once."""

from __future__ import annotations

from driving import ask, echoes, opened
from fakes import ListSource
from promptmill.core.errors import Code
from promptmill.core.request import Sampling, conversation_from_prompt
from promptmill.steps.flights import SameRequests
from replies import by_prompt, choose, late, status

PROMPTS = ["a", "b", "a", "a", "c", "b"] * 20


async def _drive(upstream, prompts, sampling, **block):
    async with opened(upstream.url, **block) as backend:
        return await ask(backend, prompts, source=ListSource(prompts, sampling), around=SameRequests)


async def test_each_is_sent_once_and_answers_all(upstream):
    upstream.reply = late(0.01)
    result = await _drive(upstream, PROMPTS, Sampling(temperature=0), concurrency=4)
    assert result.texts == echoes(PROMPTS)
    assert upstream.attempts == {"a": 1, "b": 1, "c": 1}
    assert result.call.counts.requests == 3
    assert result.call.counts.cached == len(PROMPTS) - 3
    assert result.call.counts.completion_tokens == sum(outcome.usage.completion_tokens for outcome in result.outcomes)


async def test_a_failure_is_shared_as_an_answer_is(upstream):
    upstream.reply = by_prompt({"a": status(400)}, late(0.01))
    result = await _drive(upstream, PROMPTS, Sampling(temperature=0))
    assert [text for text in result.texts if text is None] == [None] * PROMPTS.count("a")
    assert upstream.attempts["a"] == 1


async def test_what_is_left_to_chance_is_sent_each_time(upstream):
    result = await _drive(upstream, PROMPTS, Sampling(temperature=0.7))
    assert result.texts == echoes(PROMPTS)
    assert len(upstream.seen) == len(PROMPTS)


async def test_what_cannot_be_told_apart_fails_alone(upstream):
    image = conversation_from_prompt("look", "p").with_images(["\ud800.png"], None)
    result = await _drive(upstream, ["a", image, "a"], Sampling(temperature=0))
    assert result.texts == ["echo: a", None, "echo: a"]
    assert result.codes == {Code.INVALID_IMAGE}


async def test_a_failure_that_may_pass_is_not_shared(upstream):
    """Twins of what failed for good by chance are sent once more, together."""
    upstream.reply = choose(lambda seen: status(500) if seen.prompt == "a" and seen.attempt <= 2 else late(0.01))
    result = await _drive(upstream, PROMPTS, Sampling(temperature=0), retries=2, base_delay=0.01)
    assert list(result.failures) == [0]
    assert upstream.attempts["a"] == 3
