"""A refused key, a refused account: everything stops, and what was answered stays. One refused item is that item's."""

from __future__ import annotations

import asyncio

import pytest

from driving import ask, echoes, opened
from promptmill.backends.openai.limit.endpoint_state import SEVERAL
from replies import answer, by_prompt, choose, from_request, late, quota, status

pytestmark = pytest.mark.usefixtures("either_way")

REFUSALS = {
    "401": (status(401, "Incorrect API key provided"), "unauthorized"),
    "403": (status(403, "Country not supported"), "unauthorized"),
    "402": (status(402, "Insufficient Balance"), "insufficient_quota"),
    "quota": (quota(), "insufficient_quota"),
}
THOUSAND = [f"prompt {i}" for i in range(1000)]


@pytest.mark.thorough
@pytest.mark.parametrize("name", REFUSALS)
async def test_refusals_from_the_900th_request_on_stop_all_new_requests(upstream, drive, name):
    reply, code = REFUSALS[name]
    upstream.reply = late(0.005, from_request(900, reply))
    result = await drive(THOUSAND, concurrency=32)
    assert result.answered == 899
    assert result.codes == {code}
    assert len(upstream.seen) <= 900 + SEVERAL + 2 * 32
    assert all(failure.concerns_all for failure in result.failures.values())
    for at, text in enumerate(result.texts):
        assert text in {None, f"echo: {THOUSAND[at]}"}
    assert sum(failure.attempts for failure in result.failures.values()) == len(upstream.seen) - 899


@pytest.mark.thorough
@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_from_the_first_request_on_ends_the_run(upstream, drive, name):
    reply, code = REFUSALS[name]
    upstream.reply = late(0.01, reply)
    result = await drive(THOUSAND, concurrency=32)
    assert result.codes == {code}
    assert result.answered == 0
    assert len(upstream.seen) <= 32


@pytest.mark.thorough
async def test_a_refusal_stops_the_other_runs_too(upstream):
    upstream.reply = late(0.005, from_request(100, status(401)))
    async with opened(upstream.url, concurrency=8) as backend:
        results = await asyncio.gather(ask(backend, THOUSAND), ask(backend, THOUSAND))
    assert sum(result.answered for result in results) == 99
    assert len(upstream.seen) <= 100 + SEVERAL + 8


@pytest.mark.thorough
@pytest.mark.parametrize("name", REFUSALS)
async def test_one_refusal_amid_answers_is_that_items_own(upstream, drive, name):
    """Such as of a firewall before a gateway, or of a provider's moderation: the key works for all others."""
    reply, code = REFUSALS[name]
    upstream.reply = by_prompt({"prompt 30": reply})
    result = await drive(THOUSAND[:200], concurrency=8)
    assert result.answered == 199
    assert result.failures[30].error.code == code
    assert result.failures[30].attempts == 1
    assert not result.failures[30].concerns_all


@pytest.mark.simulated
async def test_the_very_first_refusal_waits_for_what_is_on_its_way(upstream, drive):
    upstream.reply = choose(lambda seen: status(403) if seen.number == 1 else late(0.3))
    result = await drive(THOUSAND[:50], concurrency=8)
    assert result.answered == 49
    assert [failure.concerns_all for failure in result.failures.values()] == [False]


async def test_a_key_that_never_worked_ends_the_run_once_all_on_their_way_are_refused(upstream, drive):
    upstream.reply = choose(lambda seen: late(0.01 * seen.number, status(401)))
    result = await drive(THOUSAND[:50], concurrency=8)
    assert result.codes == {"unauthorized"}
    assert all(failure.concerns_all for failure in result.failures.values())
    assert len(upstream.seen) <= SEVERAL


@pytest.mark.parametrize(
    "reply",
    [status(404, "The model `m` does not exist.", code="model_not_found"), status(400, "Unknown parameter: 'top_q'.")],
    ids=["model", "parameter"],
)
async def test_what_is_wrong_with_every_request_ends_the_run_after_a_few(upstream, drive, reply):
    upstream.reply = late(0.005, reply)
    result = await drive(THOUSAND, concurrency=4)
    assert result.answered == 0
    assert len(upstream.seen) <= SEVERAL + 4
    assert all(failure.concerns_all for failure in result.failures.values())


async def test_requests_that_are_each_too_long_end_no_run(upstream, drive):
    upstream.reply = choose(
        lambda seen: answer() if seen.number > 40 else status(400, "prompt is too long: 2 tokens > 1 maximum")
    )
    result = await drive(THOUSAND[:60], concurrency=4)
    assert result.answered == 20
    assert result.codes == {"context_length"}


async def test_a_later_run_tries_again(upstream):
    async with opened(upstream.url) as backend:
        upstream.reply = status(401)
        assert (await ask(backend, ["a", "b"])).answered == 0
        upstream.reply = answer()
        result = await ask(backend, ["a", "b"])

    assert result.texts == echoes(["a", "b"])


async def test_no_key_at_all_is_said(upstream, drive):
    upstream.reply = status(401, "Missing bearer authentication in header")
    failure = (await drive(["a"], api_key=None)).failures[0]
    assert "authorization" not in upstream.seen[0].headers
    assert "api_key_env" in failure.error.hint or "LLM_API_KEY" in failure.error.hint
