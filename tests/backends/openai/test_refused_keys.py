"""A refused key, a refused account: everything stops at once, and what was answered stays."""

from __future__ import annotations

import asyncio

import pytest

from driving import ask, echoes, opened
from replies import answer, choose, from_request, late, quota, status

REFUSALS = {
    "401": (status(401, "Incorrect API key provided"), "unauthorized"),
    "403": (status(403, "Country not supported"), "unauthorized"),
    "402": (status(402, "Insufficient Balance"), "insufficient_quota"),
    "quota": (quota(), "insufficient_quota"),
}
THOUSAND = [f"prompt {i}" for i in range(1000)]


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_from_the_900th_request_on_stops_all_new_requests(upstream, drive, name):
    reply, code = REFUSALS[name]
    upstream.reply = late(0.005, from_request(900, reply))
    result = drive(THOUSAND, concurrency=32)
    assert result.answered == 899
    assert result.codes == {code}
    first = next(seen for seen in upstream.seen if seen.number == 900)
    later = [seen for seen in upstream.seen if seen.at > first.ended + 0.05]
    assert not later
    assert len(upstream.seen) <= 900 + 32
    for at, text in enumerate(result.texts):
        assert text in {None, f"echo: {THOUSAND[at]}"}
    assert sum(failure.attempts for failure in result.failures.values()) == len(upstream.seen) - 899


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_from_the_first_request_on_ends_the_run(upstream, drive, name):
    reply, code = REFUSALS[name]
    upstream.reply = late(0.01, reply)
    result = drive(THOUSAND, concurrency=32)
    assert result.codes == {code}
    assert result.answered == 0
    assert len(upstream.seen) <= 32
    assert result.seconds < 3


def test_a_refusal_stops_the_other_runs_too(upstream, run):
    upstream.reply = late(0.005, from_request(100, status(401)))

    async def work():
        async with opened(upstream.url, concurrency=8) as backend:
            return await asyncio.gather(ask(backend, THOUSAND), ask(backend, THOUSAND))

    results = run(work())
    assert sum(result.answered for result in results) == 99
    assert len(upstream.seen) <= 100 + 8


def test_answers_in_flight_while_the_key_is_refused_are_kept(upstream, drive):
    upstream.reply = choose(lambda seen: status(401) if seen.number == 8 else late(0.3))
    result = drive(THOUSAND[:50], concurrency=8)
    assert result.answered == 7
    assert result.codes == {"unauthorized"}
    assert len(upstream.seen) == 8


def test_a_later_run_tries_again(upstream, run):
    async def work():
        async with opened(upstream.url) as backend:
            upstream.reply = status(401)
            assert (await ask(backend, ["a", "b"])).answered == 0
            upstream.reply = answer()
            return await ask(backend, ["a", "b"])

    assert run(work()).texts == echoes(["a", "b"])


def test_no_key_at_all_is_said(upstream, drive):
    upstream.reply = status(401, "Missing bearer authentication in header")
    failure = drive(["a"], api_key=None).failures[0]
    assert "authorization" not in upstream.seen[0].headers
    assert "api_key_env" in failure.error.hint or "LLM_API_KEY" in failure.error.hint
