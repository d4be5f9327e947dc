"""How much is sent at a time: the endpoint's limits, ours, and what `Retry-After` asks for."""

from __future__ import annotations

import asyncio
import time

import pytest

from driving import ask, echoes, opened
from promptmill.backends.protocol import Call, Facts
from replies import answer, at_most, at_rate, attempts, by_prompt, html, http_date, late, raw, status
from waiting import until

pytestmark = [pytest.mark.simulated, pytest.mark.usefixtures("either_way")]
THOUSAND = [f"prompt {i}" for i in range(1000)]


# Their limits


@pytest.mark.thorough
@pytest.mark.parametrize("retry_after", [None, "0.05", "1"])
async def test_four_at_a_time_costs_1000_prompts_no_answer(upstream, drive, retry_after):
    upstream.reply = at_most(4, late(0.005), status(429, retry_after=retry_after))
    result = await drive(THOUSAND, concurrency=64, base_delay=0.05, max_delay=0.5)
    assert result.texts == echoes(THOUSAND)
    assert result.seconds < 3 * 1000 / 4 * 0.005
    assert max(outcome.attempts for outcome in result.outcomes) <= 15


@pytest.mark.parametrize("retry_after", [None, "0.2"])
@pytest.mark.thorough
async def test_50_in_a_fifth_of_a_second_costs_1000_prompts_no_answer(upstream, drive, retry_after):
    upstream.reply = at_rate(50, 0.2, answer(), status(429, retry_after=retry_after))
    prompts = THOUSAND[: 500 if retry_after else 1000]
    result = await drive(prompts, retries=5, concurrency=64, base_delay=0.05, max_delay=0.5)
    assert result.texts == echoes(prompts)
    assert result.seconds < 2 * len(prompts) / 50 * 0.2


async def test_the_limit_of_the_endpoint_is_found(upstream, drive):
    prompts = [str(i) for i in range(2000)]
    upstream.reply = at_most(40, late(0.02), status(429))
    result = await drive(prompts, concurrency=256)
    assert result.texts == echoes(prompts)
    refused = len(upstream.seen) - len(prompts)
    # with 256 in flight it would be five of six
    assert refused < 0.15 * len(upstream.seen), f"{refused} of {len(upstream.seen)} refused"
    assert result.seconds < 2 * 2000 / 40 * 0.02


async def test_a_limit_that_is_there_from_the_first_request_is_waited_out(upstream, drive):
    began = time.monotonic()

    async def reply(exchange):
        await (status(429) if time.monotonic() < began + 1.5 else answer())(exchange)

    upstream.reply = reply
    result = await drive(THOUSAND[:100], retries=3, base_delay=0.05, max_delay=0.5)
    assert result.texts == echoes(THOUSAND[:100])


@pytest.mark.thorough
async def test_one_prompt_that_is_always_refused_costs_no_other(upstream, drive):
    upstream.reply = by_prompt({"bad": status(429)}, late(0.005))
    result = await drive(["bad", *THOUSAND[:500]], concurrency=16)
    assert list(result.failures) == [0]
    assert result.failures[0].attempts < 15


async def test_429s_do_not_count_against_retries(upstream, drive):
    upstream.reply = attempts(*[status(429)] * 8, answer())
    result = await drive(["a", "b"], retries=2)
    assert result.texts == echoes(["a", "b"])
    assert [outcome.attempts for outcome in result.outcomes] == [9, 9]


async def test_attempts_are_one_ledger_over_all_kinds_of_failure(upstream, drive):
    upstream.reply = attempts(status(500), status(429), html(), status(429), raw(b""), status(429), answer())
    failure = (await drive(["a"], retries=3)).failures[0]
    assert failure.attempts == 5
    assert failure.error.code == "bad_response"


# What they ask for


def _gap(upstream):
    first, second = upstream.seen
    return second.at - first.ended


@pytest.mark.parametrize(
    ("code", "headers", "least", "most"),
    [
        (429, {"Retry-After": "1"}, 1, 1.9),
        (429, {"Retry-After": "0.3"}, 0.3, 1.2),
        (429, {"retry-after-ms": "300"}, 0.3, 1.2),
        (429, {"retry-after-ms": "300", "Retry-After": "90"}, 0.3, 1.2),
        (429, {"Retry-After": "0"}, 0, 0.6),
        (503, {"Retry-After": "1"}, 1, 1.9),
        (503, {"retry-after-ms": "300"}, 0.3, 1.2),
        (500, {"retry-after-ms": "300"}, 0.3, 1.2),
        (408, {"retry-after-ms": "300"}, 0.3, 1.2),
        (529, {"retry-after-ms": "300"}, 0.3, 1.2),
    ],
)
async def test_retry_after_is_honoured(upstream, drive, code, headers, least, most):
    upstream.reply = attempts(status(code, headers=headers), answer())
    result = await drive(["a"], max_delay=0.2)
    assert result.texts == ["echo: a"]
    assert least - 0.02 <= _gap(upstream) <= most


async def test_retry_after_as_a_date_is_honoured(upstream, drive):
    upstream.reply = attempts(status(429, retry_after=http_date(2)), answer())
    assert (await drive(["a"], max_delay=0.3)).answered == 1
    assert 0.9 <= _gap(upstream) <= 3


@pytest.mark.parametrize("headers", [{"Retry-After": "3600"}, {"retry-after-ms": "99999999999"}])
async def test_a_longer_wait_than_ten_times_max_delay_ends_the_endpoint_and_says_when_it_is_over(
    upstream, drive, headers
):
    upstream.reply = status(429, headers=headers)
    result = await drive([str(i) for i in range(100)], max_delay=0.03, concurrency=8)
    assert len(upstream.seen) <= 16
    assert result.codes == {"rate_limited"}
    assert all(failure.concerns_all for failure in result.failures.values())
    assert "UTC" in result.failures[0].error.hint


@pytest.mark.thorough
async def test_one_item_with_a_long_wait_amid_answers_is_that_items_failure(upstream, drive):
    upstream.reply = by_prompt({"7": status(429, "try again in 23h59m")}, late(0.01))
    result = await drive([str(i) for i in range(100)], max_delay=0.03)
    assert list(result.failures) == [7]
    assert not result.failures[7].concerns_all


@pytest.mark.parametrize(
    ("reply", "least"),
    [
        (status(429, "Rate limit reached on tokens per min (TPM). Please try again in 644ms."), 0.644),
        (status(429, "Rate limit reached", headers={"x-ratelimit-reset-requests": "700ms"}), 0.7),
        (raw(b'[{"error":{"code":429,"message":"You exceeded your current quota","details":[{"retryDelay":"0.5s"}]}}]',
             code=429), 0.5),
        (raw(b'{"error":"Model x is currently loading","estimated_time":0.6}', code=503), 0.6),
    ],
    ids=["words", "reset header", "RetryInfo", "estimated_time"],
)  # fmt: skip
async def test_a_wait_is_honoured_wherever_it_is_said(upstream, drive, reply, least):
    upstream.reply = attempts(reply, answer())
    assert (await drive(["a"], max_delay=0.3)).answered == 1
    assert _gap(upstream) >= least - 0.02


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "-5"},
        {"Retry-After": "nan"},
        {"Retry-After": "1e400"},
        {"Retry-After": "inf"},
        {"Retry-After": "9" * 5000},
        {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"},
        {"Retry-After": "soon"},
        {"Retry-After": ""},
        {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"},
        {"Retry-After": "Mon, 32 Foo 2024 99:99:99 GMT"},
        {"retry-after-ms": "abc"},
        {"retry-after-ms": "-1"},
        {"retry-after-ms": "nan", "Retry-After": "soon"},
    ],
    ids=str,
)
async def test_a_retry_after_that_says_nothing_is_ignored(upstream, drive, headers):
    upstream.reply = attempts(status(429, headers=headers), answer())
    assert (await drive(["a"], max_delay=0.05)).answered == 1
    assert _gap(upstream) <= 0.6


async def test_a_broken_retry_after_ms_leaves_retry_after_in_force(upstream, drive):
    upstream.reply = attempts(status(429, headers={"retry-after-ms": "abc", "Retry-After": "0.5"}), answer())
    assert (await drive(["a"], max_delay=0.2)).answered == 1
    assert 0.48 <= _gap(upstream) <= 1.5


async def test_back_off_is_capped_at_max_delay(upstream, drive):
    upstream.reply = attempts(*[status(500)] * 9, answer())
    result = await drive(["a"], retries=10, base_delay=0.02, max_delay=0.05)
    assert result.answered == 1
    gaps = [after.at - before.ended for before, after in zip(upstream.seen, upstream.seen[1:], strict=False)]
    assert max(gaps) < 0.051


# Our own limits


@pytest.mark.thorough
@pytest.mark.parametrize("adaptive", [True, False])
async def test_concurrency_bounds_all_runs_together(upstream, adaptive):
    upstream.reply = late(0.01)
    prompts = [str(i) for i in range(100)]

    async with opened(upstream.url, concurrency=8, adaptive=adaptive) as backend:
        results = await asyncio.gather(*(ask(backend, prompts) for _ in range(4)))
    for result in results:
        assert result.texts == echoes(prompts)
    assert upstream.peak == 8


@pytest.mark.thorough
async def test_a_small_run_beside_a_huge_one_gets_its_share(upstream):
    upstream.reply = late(0.01)
    huge, small = [f"huge {i}" for i in range(1000)], [f"small {i}" for i in range(5)]
    async with opened(upstream.url, concurrency=8) as backend:
        call = Call(Facts(total=len(huge)))
        running = asyncio.create_task(ask(backend, huge, call))
        await until(lambda: call.counts.done > 100)
        before = call.counts.done
        second = await ask(backend, small)
        meanwhile = call.counts.done - before
        first = await running
    assert (first.texts, second.texts) == (echoes(huge), echoes(small))
    assert meanwhile < 100, f"{meanwhile} of the huge run went before 5 of the small one"


@pytest.mark.thorough
async def test_two_equal_runs_share_evenly(upstream):
    upstream.reply = late(0.005)
    prompts = [str(i) for i in range(600)]
    async with opened(upstream.url, concurrency=8) as backend:
        all_calls = [Call(Facts(total=600)), Call(Facts(total=600))]
        first = asyncio.create_task(ask(backend, prompts, all_calls[0]))
        await asyncio.sleep(0)
        second = asyncio.create_task(ask(backend, prompts, all_calls[1]))
        await until(lambda: all_calls[0].counts.done > 400)
        done = all_calls[1].counts.done
        await asyncio.gather(first, second)
    assert done > 250


async def test_a_refused_call_that_its_client_left_leaves_no_pause_to_the_next_one(upstream):
    """The next call begins before the first one has ended, as over HTTP, where that takes 0.7 s."""
    upstream.reply = status(429)
    prompts = [f"prompt {i}" for i in range(12)]
    async with opened(upstream.url, retries=5, base_delay=1, max_delay=30, patience=120) as backend:
        refused = asyncio.create_task(ask(backend, ["refused"] * 12))
        await asyncio.sleep(20)
        upstream.reply = answer()
        following = asyncio.create_task(ask(backend, prompts))
        await asyncio.sleep(0)
        refused.cancel()
        result = await following
    assert result.texts == echoes(prompts)
    assert result.seconds < 1


@pytest.mark.thorough
async def test_a_run_that_is_held_up_does_not_hold_up_another(upstream):
    upstream.reply = by_prompt({"bad": status(500, retry_after="5")}, late(0.002))
    async with opened(upstream.url, concurrency=8, max_delay=0.5) as backend:
        held = asyncio.create_task(ask(backend, ["bad"] * 50))
        await asyncio.sleep(0.05)
        result = await ask(backend, THOUSAND[:100])
        held.cancel()
        await asyncio.wait({held})
    assert result.texts == echoes(THOUSAND[:100])
    assert result.seconds < 0.5


async def test_requests_per_minute_hold(upstream, drive):
    prompts = [str(i) for i in range(60)]
    assert (await drive(prompts, rpm=1200)).texts == echoes(prompts)  # 20 a second, after one second's worth
    times = [seen.at for seen in upstream.seen]
    for at, began in enumerate(times):
        assert sum(began <= time_ < began + 1 for time_ in times[at:]) <= 2 * 20 + 2
    assert times[-1] - times[0] > 1.5


@pytest.mark.thorough
async def test_no_more_is_taken_from_the_source_than_can_be_in_flight(upstream):
    from fakes import ListSource

    upstream.reply = late(0.005)
    prompts = [str(i) for i in range(1500)]
    async with opened(upstream.url, concurrency=8) as backend:
        source, call, most = ListSource(prompts), Call(Facts(total=len(prompts))), 0
        task = asyncio.create_task(ask(backend, prompts, call, source))
        while not task.done():
            most = max(most, source.taken - call.counts.done)
            assert len(asyncio.all_tasks()) < 60
            await asyncio.sleep(0.01)
        result = await task
    assert result.texts == echoes(prompts)
    assert most < 100


@pytest.mark.thorough
async def test_a_slow_sink_is_waited_for(upstream):
    from fakes import DictSink

    prompts = [str(i) for i in range(200)]
    async with opened(upstream.url, concurrency=4) as backend:
        sink, call = DictSink(delay_s=0.01), Call(Facts(total=len(prompts)))
        result = await ask(backend, prompts, call, sink=sink)
    assert result.texts == echoes(prompts)
    assert result.seconds > 0.4
