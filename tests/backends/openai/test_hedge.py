"""`hedge: true`: twins for stragglers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import cast
from unittest import mock

import pytest

from driving import ask, echoes, opened
from promptmill.backends.openai.hedge import Hedge
from promptmill.backends.openai.limit.endpoint_state import Permit
from promptmill.backends.openai.sender import Item
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Account, Conversation, Request, Sampling
from replies import choose, hang, late, status

pytestmark = pytest.mark.simulated

PROMPTS = [str(i) for i in range(600)]


@pytest.mark.thorough
async def test_stragglers_are_answered_by_their_twins(upstream, drive):
    upstream.reply = choose(lambda seen: hang() if seen.attempt == 1 and seen.prompt.endswith("50") else late(0.05))
    assert (await drive(PROMPTS, concurrency=64, hedge=True)).texts == echoes(PROMPTS)


@pytest.mark.thorough
async def test_twins_are_counted_and_at_most_one_in_twenty(upstream):
    upstream.reply = choose(lambda seen: late(0.2 if seen.number % 4 == 0 else 0.01))
    async with opened(upstream.url, concurrency=16, hedge=True) as backend:
        call = Call(Facts(total=len(PROMPTS)))
        result = await ask(backend, PROMPTS, call)
    assert result.texts == echoes(PROMPTS)
    assert call.counts.requests == len(upstream.seen) == sum(outcome.attempts for outcome in result.outcomes)
    assert len(PROMPTS) <= call.counts.requests <= 1.05 * len(PROMPTS) + 1


@pytest.mark.thorough
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


@pytest.mark.thorough
@pytest.mark.parametrize("fault", [status(500), status(429)])
async def test_failures_are_tried_again_as_without_twins(upstream, drive, fault):
    upstream.reply = choose(lambda seen: fault if seen.attempt == 1 and seen.prompt.endswith("7") else late(0.01))
    result = await drive(PROMPTS[:200], concurrency=16, hedge=True, base_delay=0.01)
    assert result.texts == echoes(PROMPTS[:200])


def _completion(text: str) -> Completion:
    return Completion(text, "stop", Usage(5, 7), latency_s=0.001)


async def _raced(first: Awaitable[Outcome], second: Awaitable[Outcome], account: Account | None = None) -> Outcome:
    """Return the outcome of a straggler whose own outcome is `first`, and its twin's `second`."""
    outcomes = iter((first, second))

    async def answer(item: Item) -> Outcome:
        if item.request.key < 20:
            return _completion("quick")
        item.permit = cast("Permit", SimpleNamespace(endpoint_state=SimpleNamespace(load=SimpleNamespace(sent=1))))
        item.attempts += 1
        try:
            return await next(outcomes)
        except asyncio.CancelledError:
            item.charge(None)
            raise

    hedge = Hedge(answer)
    for key in range(21):
        outcome = await hedge.answer(Item(Request(key, Conversation(()), Sampling(), account=account)))
    return outcome


async def _later(outcome: Outcome, seconds: float) -> Outcome:
    await asyncio.sleep(seconds)
    return outcome


async def test_the_request_that_loses_is_counted_and_charged():
    outcome = await _raced(_later(_completion("slow"), 60), _later(_completion("twin"), 0.1))
    assert isinstance(outcome, Completion)
    assert (outcome.text, outcome.attempts - 1, outcome.usage, outcome.unmetered) == ("twin", 1, Usage(5, 7), 1)


async def test_a_twin_that_a_budget_has_no_room_for_is_not_sent():
    account = mock.Mock(reserve_again=mock.AsyncMock(return_value=False))
    twin: asyncio.Future[Outcome] = asyncio.Future()
    outcome = await _raced(_later(_completion("slow"), 60), twin, account)
    assert isinstance(outcome, Completion)
    assert (outcome.text, outcome.unmetered) == ("slow", 0)
    account.reserve_again.assert_awaited_once()


async def test_a_failure_is_not_the_outcome_while_the_other_request_may_be_answered():
    failed = Failure(PromptmillError(Code.SERVER_ERROR, "No."), 1, usage=Usage(3, 0), spent=((Usage(3, 0), ""),))
    for race in (
        (_later(_completion("answer"), 0.3), _later(failed, 0.1)),
        (_later(failed, 0.1), _later(_completion("answer"), 0.3)),
    ):
        outcome = await _raced(*race)
        assert isinstance(outcome, Completion)
        assert (outcome.text, outcome.usage, outcome.unmetered) == ("answer", Usage(8, 7), 0)


async def test_of_two_failures_the_first_requests_own_counts():
    failures = [Failure(PromptmillError(Code.SERVER_ERROR, text), 1) for text in ("First.", "Second.")]
    outcome = await _raced(_later(failures[0], 0.2), _later(failures[1], 0.1))
    assert isinstance(outcome, Failure)
    assert outcome.error.message == "First."
