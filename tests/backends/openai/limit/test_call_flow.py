"""What people who watch a call are told while it waits."""

from __future__ import annotations

import random
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from driving import ask, opened
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.limit.endpoint_state import EndpointState
from promptmill.backends.openai.limit.limiter import CallFlow, ConcurrencyShare, Limiter
from promptmill.backends.openai.providers import profile_at
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.backends.protocol import Call, Facts
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError
from replies import answer, choose, status
from sure import sure


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Bench:
    """A limiter over one endpoint, and the flow of one call."""

    def __init__(self, **limits):
        self.clock = Clock()
        url = "https://api.example.com/v1/chat/completions"
        endpoint = Endpoint(url, "api.example.com", {}, (), profile_at(urlsplit(url)))
        encoder = RequestEncoder(endpoint, "m", enable_thinking=None, stream=False)
        # delays of nothing: what is waited for is what the endpoint asks for
        settings = OpenAISettings(base_delay=0)
        self.state = EndpointState(endpoint, encoder, settings, self.clock, random.Random(1))
        self.limiter = Limiter([self.state], 64, self.clock, **limits)
        self.call = Call(Facts(total=10))
        self.share = ConcurrencyShare(self.limiter.shares, self.call, 64)
        self.flow = CallFlow(self.limiter, self.call, self.clock, self.clock())

    def fails(self, decision):
        permit = sure(self.limiter.enter_now(self.share, 0, None))
        self.call.counts.refused += decision.kind is FailureKind.LOAD
        self.state.failed(permit, decision, None)
        self.limiter.leave(permit, self.share)

    def answered(self, used_up_s=0.0):
        permit = sure(self.limiter.enter_now(self.share, 0, None))
        self.state.succeeded(permit)
        self.state.used_up(used_up_s)
        self.limiter.leave(permit, self.share)


def _refusal(wait_s):
    return RetryDecision(FailureKind.LOAD, PromptmillError(Code.RATE_LIMITED, "no"), wait_s, status=429)


def _gone(wait_s=None):
    return RetryDecision(FailureKind.LOST, PromptmillError(Code.UNREACHABLE, "no"), wait_s)


async def test_a_rate_limit_is_said_with_its_wait_and_how_often():
    bench = Bench()
    assert bench.flow.waiting() == ""
    for _ in range(7):
        bench.state.forgive()
        bench.fails(_refusal(12.0))
    refusal = "429 from api.example.com: rate limit, "
    refused = f"{refusal}next try in 12 s (7 refusals so far); gives up in 2:00 (the setting `patience`)"
    assert bench.flow.waiting() == refused
    bench.clock.now += 4
    assert bench.flow.waiting() == refused.replace("12 s", "8 s").replace("2:00", "1:56")
    bench.clock.now += 8
    bench.answered()
    assert bench.flow.waiting() == ""


async def test_an_endpoint_that_takes_requests_and_never_answers_is_said_with_when_that_ends():
    bench = Bench()
    bench.limiter.enter_now(bench.share, 0, None)
    bench.clock.now += 9
    assert bench.flow.waiting() == "", "answers may take as long"
    bench.clock.now += 2
    assert bench.flow.waiting() == ("no answer from api.example.com for 11 s; an attempt fails after 600 s (`timeout`)")
    bench.call.counts.done += 1
    assert bench.flow.waiting() == "", "others are answered"


async def test_a_server_of_ones_own_that_never_answered_may_be_loading():
    bench = Bench()
    bench.state.endpoint = replace(bench.state.endpoint, own=True)
    bench.limiter.enter_now(bench.share, 0, None)
    bench.clock.now += 11
    assert "it may still be loading the model" in bench.flow.waiting()
    bench.answered()
    bench.limiter.enter_now(bench.share, 0, None)
    bench.clock.now += 11
    assert "loading" not in bench.flow.waiting()


async def test_an_endpoint_that_is_gone_is_said_with_since_when():
    bench = Bench()
    bench.answered()
    bench.fails(_gone())
    assert bench.flow.waiting() == "", "a connection lost between requests is no outage"
    bench.clock.now += 14
    bench.fails(_gone(8.0))
    waiting = "waiting for api.example.com since 0:14, next try in 8 s; gives up in 1:46 (the setting `patience`)"
    assert bench.flow.waiting() == waiting
    bench.clock.now += 60
    permit = sure(bench.limiter.enter_now(bench.share, 0, None))
    assert (
        bench.flow.waiting()
        == "waiting for api.example.com since 1:14, trying now; gives up in 0:46 (the setting `patience`)"
    )
    bench.state.succeeded(permit)
    bench.limiter.leave(permit, bench.share)
    assert bench.flow.waiting() == ""


async def test_a_limit_that_an_answer_says_is_used_up_is_told_before_any_refusal():
    bench = Bench()
    bench.answered(20.0)
    assert bench.flow.waiting() == "api.example.com has used up its limit for now, next request in 20 s"


async def test_a_rate_of_ones_own_is_told():
    bench = Bench(rpm=2)
    for _ in range(2):
        if permit := bench.limiter.enter_now(bench.share, 0, None):
            bench.state.succeeded(permit)
            bench.limiter.leave(permit, bench.share)
    assert "`rpm` or `tpm` allows the next request in" in bench.flow.waiting()


async def test_items_that_all_wait_to_be_sent_again_are_told_by_the_first_of_them():
    bench = Bench()
    decision = RetryDecision(FailureKind.TRANSIENT, PromptmillError(Code.SERVER_ERROR, "no"), status=502)
    bench.flow.put_back(bench.state, decision, 9.0)
    bench.flow.put_back(bench.state, decision, 5.0)
    assert bench.flow.waiting() == "502 from api.example.com: server error, next try in 5 s"
    bench.clock.now += 6
    assert "next try in 3 s" in bench.flow.waiting()
    permit = sure(bench.limiter.enter_now(bench.share, 0, None))
    assert bench.flow.waiting() == "", "one of them is being answered"
    bench.limiter.leave(permit, bench.share)


async def test_the_flow_ends_with_the_run(drive):
    assert (await drive(["x"])).call.flow is None


async def test_what_has_never_answered_is_told_from_the_first_retry_on():
    bench = Bench()
    bench.fails(_gone())
    assert bench.flow.waiting().startswith("api.example.com: cannot be reached, ")
    assert "patience" not in bench.flow.waiting(), "`retries` decides about it"
    bench.state.forgive()


async def test_a_wait_below_a_second_is_told_too():
    bench = Bench()
    decision = RetryDecision(FailureKind.TRANSIENT, PromptmillError(Code.SERVER_ERROR, "no"), status=500)
    bench.flow.put_back(bench.state, decision, 0.4)
    assert bench.flow.waiting() == "500 from api.example.com: server error, next try within a second"


async def test_a_row_that_fails_beside_answered_ones_is_told_with_its_attempts():
    bench = Bench()
    bench.answered()
    lost = RetryDecision(FailureKind.LOST, PromptmillError(Code.SERVER_ERROR, "no"), 8.0, status=503)
    bench.fails(lost)
    bench.clock.now += 5
    bench.flow.put_back(bench.state, lost, 0.0)
    assert bench.flow.waiting().endswith("gives up in 1:55 (the setting `patience`)")
    bench.flow.put_back(bench.state, lost, 0.0, "attempt 3 of at most 10 (twice the setting `retries`)")
    assert bench.flow.waiting().endswith("; attempt 3 of at most 10 (twice the setting `retries`)")
    assert "patience" not in bench.flow.waiting(), "the attempts end it sooner"


@pytest.mark.simulated
async def test_a_row_that_always_fails_is_told_while_it_waits(upstream):
    call, told = Call(Facts(total=4)), list[str]()

    def failing(seen):
        if seen.json["messages"][0]["content"] != "bad":
            return answer()
        told.append(call.flow.waiting() if call.flow else "")
        return status(503, "no")

    upstream.reply = choose(failing)
    async with opened(upstream.url, retries=3, base_delay=2.0, max_delay=30.0, concurrency=1) as backend:
        result = await ask(backend, ["a", "b", "c", "bad"], call)
    assert result.answered == 3
    assert len(told) == 6
    assert told[-1].endswith("; attempt 6 of at most 6 (twice the setting `retries`)")


async def test_a_pace_is_told_while_it_holds_requests_back():
    bench = Bench()
    assert bench.limiter.pace == 0.0
    for second in range(3):
        bench.clock.now = 1000.0 + second
        permits = [found for _ in range(20) if (found := bench.limiter.enter_now(bench.share, 0, None))]
        for permit in permits[::2]:
            bench.state.failed(permit, _refusal(None), None)
            bench.limiter.leave(permit, bench.share)
        bench.clock.now += 0.5
        for permit in permits[1::2]:
            bench.state.succeeded(permit)
            bench.limiter.leave(permit, bench.share)
    while bench.limiter.enter_now(bench.share, 0, None):
        pass
    assert bench.limiter.pace == bench.state.pace.rate < 20
