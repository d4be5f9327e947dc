"""An endpoint that goes away costs time and no answer. Contract, section 3: load is the endpoint's affair."""

from __future__ import annotations

import random
import time

import pytest

from driving import ask, echoes, opened
from replies import (
    answer,
    by_prompt,
    chaos,
    choose,
    closed,
    from_request,
    hang,
    html,
    late,
    raw,
    reset,
    status,
    truncated,
    vanishing,
    wrong_length,
)

pytestmark = [pytest.mark.simulated, pytest.mark.usefixtures("either_way")]

THOUSAND = [f"prompt {i}" for i in range(1000)]


@pytest.mark.parametrize("seconds", [3, 10])
@pytest.mark.thorough
async def test_an_endpoint_gone_amid_1000_prompts_costs_no_answer(upstream, drive, seconds):
    upstream.reply = vanishing(300, seconds, late(0.02))
    result = await drive(THOUSAND, retries=3, concurrency=32, base_delay=0.05, max_delay=0.5)
    assert result.texts == echoes(THOUSAND)
    assert seconds < result.seconds < seconds + 3
    assert len(upstream.seen) < 1200


@pytest.mark.thorough
async def test_it_may_go_again_and_again(upstream, drive):
    def outages(seen):
        return vanishing(seen.number, 0.3) if seen.number % 150 == 0 else late(0.01)

    upstream.reply = choose(outages)
    result = await drive(THOUSAND[:600], retries=3, concurrency=32)
    assert result.texts == echoes(THOUSAND[:600])


@pytest.mark.thorough
@pytest.mark.parametrize("fault", [status(503), status(503, retry_after="1"), closed(), reset()])
async def test_a_proxy_in_front_of_an_endpoint_gone_costs_no_answer(upstream, drive, fault):
    gone = []

    def reply(seen):
        if seen.number == 100:
            gone.append(time.monotonic())
        return fault if gone and time.monotonic() < gone[0] + 1 else late(0.02)

    upstream.reply = choose(reply)
    result = await drive(THOUSAND[:400], retries=3, concurrency=32)
    assert result.texts == echoes(THOUSAND[:400])
    assert result.seconds < 3


@pytest.mark.thorough
async def test_an_endpoint_that_drains_before_it_goes_costs_no_answer(upstream, drive):
    """As a rolling restart does: what is in flight is finished, one by one, while everything new is refused.

    A success of a request from before says nothing about now. Delays are the default ones, divided by forty.
    """
    gone = []

    def reply(seen):
        if seen.number == 100:
            gone.append(time.monotonic())
        if gone and time.monotonic() < gone[0] + 1:
            return late(0.03, status(503))
        return late(0.15 + seen.number % 32 / 64)

    upstream.reply = choose(reply)
    result = await drive(THOUSAND[:150], retries=5, concurrency=32, base_delay=0.025, max_delay=0.75)
    assert result.texts == echoes(THOUSAND[:150])
    assert result.seconds < 8


async def test_a_tls_endpoint_gone_costs_no_answer(upstreams, drive, monkeypatch):
    up = upstreams(tls=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(up.certificate))
    up.reply = vanishing(100, 1, late(0.02))
    result = await drive(THOUSAND[:300], retries=3, concurrency=32, base_url=up.url)
    assert result.texts == echoes(THOUSAND[:300])


@pytest.mark.thorough
async def test_a_balancer_that_drops_tls_handshakes_for_a_while_costs_no_answer(upstreams, drive, monkeypatch):
    up = upstreams(tls=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(up.certificate))
    dropped = []

    async def reply(exchange):
        if exchange.seen.number == 100:
            dropped.append(1)
            exchange.upstream.drop_connections(1)
        else:
            await late(0.02)(exchange)

    up.reply = reply
    result = await drive(THOUSAND[:300], retries=3, concurrency=32, base_url=up.url)
    assert dropped
    assert result.texts == echoes(THOUSAND[:300])


@pytest.mark.parametrize("faulty", [1, 2, 3])
async def test_an_endpoint_that_drops_its_first_connections_costs_one_answer_at_most(upstream, drive, faulty):
    upstream.reply = from_request(faulty + 1, answer(), before=reset())
    result = await drive(THOUSAND[:20], retries=3, concurrency=1)
    assert result.answered >= (20 if faulty < 3 else 19)
    assert all(failure.attempts == 3 for failure in result.failures.values())


@pytest.mark.thorough
@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("at", [0, 500])
async def test_a_prompt_that_kills_its_connection_costs_only_itself(upstream, drive, concurrency, at):
    prompts = [*THOUSAND[:at], "killer", *THOUSAND[at:999]]
    upstream.reply = by_prompt({"killer": reset()})
    result = await drive(prompts, retries=5, concurrency=concurrency)
    assert list(result.failures) == [at]
    failure = result.failures[at]
    assert failure.error.code == "connection_lost"
    assert failure.attempts <= 10
    assert result.seconds < 5


@pytest.mark.thorough
@pytest.mark.parametrize("cut", [reset(after=20), truncated(), wrong_length(100)], ids=["reset", "chunks", "length"])
async def test_an_answer_that_is_cut_off_after_its_first_byte_is_sent_retries_times(upstream, drive, cut):
    upstream.reply = by_prompt({f"long {i}": cut for i in range(4)})
    prompts = [*THOUSAND[:20], *(f"long {i}" for i in range(4)), *THOUSAND[20:40]]
    result = await drive(prompts, retries=3, concurrency=8)
    assert list(result.failures) == [20, 21, 22, 23]
    assert {failure.attempts for failure in result.failures.values()} == {3}


async def test_a_killer_does_not_hold_back_slow_answers(upstream, drive):
    upstream.reply = by_prompt({"killer": reset()}, late(0.2))
    prompts = [*THOUSAND[:20], "killer", *THOUSAND[20:80]]
    result = await drive(prompts, concurrency=8)
    assert list(result.failures) == [20]
    assert result.seconds < 1.5 * 80 / 8 * 0.2


@pytest.mark.thorough
@pytest.mark.parametrize("fault", [status(503), closed(), reset(), status(503, retry_after="0")])
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_prompt_that_is_always_lost_is_sent_few_times_also_when_it_is_the_last(
    upstream, drive, fault, concurrency
):
    upstream.reply = by_prompt({"killer": fault}, late(0.01))
    result = await drive([*THOUSAND[:20], "killer"], concurrency=concurrency)
    assert list(result.failures) == [20]
    assert result.failures[20].attempts <= 10


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0, 0.3])
@pytest.mark.parametrize("place", [20, 59])
async def test_a_prompt_that_kills_its_worker_ends_before_its_neighbours_do(upstream, drive, seconds, place):
    def answers(seen):
        return vanishing(seen.number, seconds) if seen.prompt == "killer" else late(0.5)

    upstream.reply = choose(answers)
    prompts = [*THOUSAND[:place], "killer", *THOUSAND[place:60]]
    result = await drive(prompts, concurrency=16, base_delay=0.2)
    assert place in result.failures
    assert len(result.failures) <= 3  # a neighbour may by chance be the first lost of five kills
    assert sum(seen.prompt == "killer" for seen in upstream.seen) <= 10


@pytest.mark.parametrize("fault", [None, status(503), closed()])
async def test_the_last_prompt_outlives_an_outage_of_ten_seconds(upstream, drive, fault):
    began = []

    def reply(seen):
        if seen.number == 21 and fault is None:
            return vanishing(21, 10)
        if seen.number == 21:
            began.append(time.monotonic())
        return fault if began and time.monotonic() < began[0] + 10 else late(0.01)

    upstream.reply = choose(reply)
    result = await drive(THOUSAND[:21], concurrency=1, base_delay=1.0, max_delay=30, patience=60)
    assert not result.failures


@pytest.mark.parametrize(
    ("refusal", "sent"),
    [
        (status(503, headers={"x-should-retry": "false"}), 1),
        (status(429, headers={"x-should-retry": "false"}), 1),
        (status(500, headers={"X-Should-Retry": "False"}), 1),
        (status(400, headers={"x-should-retry": "true"}), 3),
        (status(401, headers={"x-should-retry": "true"}), 3),
    ],
)
async def test_the_word_of_a_server_whether_to_try_again_counts(upstream, drive, refusal, sent):
    upstream.reply = by_prompt({"refused": refusal})
    result = await drive([*THOUSAND[:5], "refused"], retries=3)
    assert list(result.failures) == [5]
    assert sum(seen.prompt == "refused" for seen in upstream.seen) == sent


@pytest.mark.thorough
async def test_several_killers_cost_only_themselves(upstream, drive):
    upstream.reply = by_prompt({f"killer {i}": reset() for i in range(5)}, late(0.005))
    prompts = [f"killer {i // 20}" if i % 20 == 0 else str(i) for i in range(100)]
    result = await drive(prompts, concurrency=8)
    assert list(result.failures) == [0, 20, 40, 60, 80]
    assert result.seconds < 3


async def test_patience_ends_with_an_endpoint_that_nobody_listens_at(upstream, drive):
    upstream.vanish()
    result = await drive(THOUSAND[:100], retries=100, patience=0.6, base_delay=0.05)
    assert result.codes == {"unreachable"}
    assert 0.59 < result.seconds < 1.5


@pytest.mark.thorough
@pytest.mark.parametrize("fault", ["vanish", "429", "503", "reset"])
async def test_patience_ends_with_an_endpoint_that_was_well(upstream, drive, fault):
    then = {"vanish": vanishing(100, None), "429": status(429), "503": status(503), "reset": reset()}[fault]
    upstream.reply = from_request(100, then, before=late(0.005))
    result = await drive(THOUSAND[:300], retries=100, patience=0.6, concurrency=16)
    codes = {"vanish": {"unreachable", "connection_lost"}, "429": {"rate_limited"}, "503": {"server_error"}}
    assert 99 - 16 <= result.answered <= 99 + 16
    assert result.codes <= codes.get(fault, {"connection_lost"})
    assert 0.59 < result.seconds < 1.5


@pytest.mark.thorough
async def test_patience_begins_anew_with_each_answer(upstream, drive):
    upstream.reply = choose(lambda seen: answer() if seen.number % 10 == 0 else status(503))
    result = await drive(THOUSAND[:20], retries=100, patience=1, concurrency=2, max_delay=0.02)
    assert result.texts == echoes(THOUSAND[:20])


async def test_a_later_run_gives_a_dead_endpoint_a_new_chance(upstream):
    async with opened(upstream.url, retries=2, patience=0.5) as backend:
        assert (await ask(backend, ["a"])).answered == 1
        upstream.vanish()
        assert (await ask(backend, ["b", "c"])).answered == 0
        upstream.come_back()
        assert (await ask(backend, ["d"])).texts == ["echo: d"]


@pytest.mark.thorough
async def test_chaos_in_a_fifth_of_the_requests_costs_no_answer(upstream, drive):
    seed = random.randrange(1 << 32)
    print(f"chaos seed: {seed}")
    faults = [
        reset(),
        reset(30),
        closed(),
        truncated(),
        wrong_length(30),
        wrong_length(-30),
        hang(),
        raw(b"oops"),
        raw(b""),
        html(),
        html(502),
        *(status(code) for code in (408, 409, 425, 429, 500, 502, 503, 504, 529)),
        status(429, retry_after="0.05"),
        answer(None, finish_reason=None),
        raw(b'{"choices": []}'),
        raw(b'{"error": {"message": "chaos"}}'),
    ]
    upstream.reply = chaos(seed, 0.2, faults, late(0.005))
    result = await drive(THOUSAND, retries=10, timeout=[2, 0.5], concurrency=64)
    assert result.texts == echoes(THOUSAND)
    assert result.seconds < 5
