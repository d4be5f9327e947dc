"""One request of a shared beginning is answered before the others are sent."""

from __future__ import annotations

import asyncio

import pytest

from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, Shared, conversation_from_prompt
from promptmill.steps import warmed
from promptmill.steps.warmed import WarmedAnswers

FAILED = Failure(PromptmillError(Code.BAD_REQUEST, "No."), attempts=1)


class Endpoint:
    """Answers when it is told to, and notes the order."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ends: dict[int, asyncio.Future[Outcome]] = {}

    async def answer(self, request: Request, call: Call) -> Outcome:
        self.started.append(request.key)
        self.ends[request.key] = asyncio.get_running_loop().create_future()
        return await self.ends[request.key]


def request(key: int, beginning: str | None = "a") -> Request:
    shared = None if beginning is None else Shared(5000, beginning)
    return Request(key, conversation_from_prompt("a prompt", ""), Sampling(), shared=shared)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_others_are_held_until_the_first_is_answered():
    endpoint, call = Endpoint(), Call()
    answers = WarmedAnswers()
    answers.wrap(endpoint.answer)
    beginnings = ["a", "a", "a", "b", None]
    tasks = [asyncio.ensure_future(answers.answer(request(n, one), call)) for n, one in enumerate(beginnings)]
    await settled()
    assert (endpoint.started, call.waits.held) == ([0, 3, 4], 2)
    endpoint.ends[0].set_result(Completion("x"))
    await settled()
    assert (endpoint.started, call.waits.held) == ([0, 3, 4, 1, 2], 0)
    for end in endpoint.ends.values():
        if not end.done():
            end.set_result(Completion("x"))
    assert all(isinstance(outcome, Completion) for outcome in await asyncio.gather(*tasks))


async def test_large_requests_that_wait_keep_their_places(monkeypatch):
    monkeypatch.setattr(warmed, "MOST_WARMED", 2 * 5000)
    endpoint, call = Endpoint(), Call()
    answers = WarmedAnswers()
    answers.wrap(endpoint.answer)
    tasks = [asyncio.ensure_future(answers.answer(request(n), call)) for n in range(6)]
    await settled()
    assert (endpoint.started, call.waits.held) == ([0], 2)
    endpoint.ends[0].set_result(Completion("x"))
    await settled()
    assert (sorted(endpoint.started), call.waits.held) == ([*range(6)], 0)
    for n in range(1, 6):
        endpoint.ends[n].set_result(Completion("x"))
    await asyncio.gather(*tasks)


async def test_after_a_failure_another_is_first_and_after_three_nothing_waits():
    endpoint, call = Endpoint(), Call()
    answers = WarmedAnswers()
    answers.wrap(endpoint.answer)
    tasks = [asyncio.ensure_future(answers.answer(request(n), call)) for n in range(6)]
    for n in range(3):
        await settled()
        assert endpoint.started == [*range(n + 1)]
        endpoint.ends[n].set_result(FAILED)
    await settled()
    assert sorted(endpoint.started) == [*range(6)]
    for n in range(3, 6):
        endpoint.ends[n].set_result(FAILED)
    await asyncio.gather(*tasks)


async def test_a_cancelled_first_request_leaves_its_place_to_another():
    endpoint, call = Endpoint(), Call()
    answers = WarmedAnswers()
    answers.wrap(endpoint.answer)
    first, second = (asyncio.ensure_future(answers.answer(request(n), call)) for n in range(2))
    await settled()
    first.cancel()
    await settled()
    assert endpoint.started == [0, 1]
    endpoint.ends[1].set_result(Completion("x"))
    assert await second == Completion("x")


async def test_a_slow_first_request_does_not_hold_up_the_others_for_ever(monkeypatch):
    monkeypatch.setattr(warmed, "_LONGEST_WAIT_S", 0.05)
    endpoint, call = Endpoint(), Call()
    answers = WarmedAnswers()
    answers.wrap(endpoint.answer)
    tasks = [asyncio.ensure_future(answers.answer(request(n), call)) for n in range(3)]
    while len(endpoint.started) < 3:
        await asyncio.sleep(0.01)
    for end in endpoint.ends.values():
        end.set_result(Completion("x"))
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("kept_s", [0.0, 100.0])
async def test_a_beginning_that_the_cache_has_forgotten_is_warmed_again(monkeypatch, kept_s):
    monkeypatch.setattr(warmed, "_KEPT_S", kept_s)
    endpoint, call = Endpoint(), Call()
    answers = WarmedAnswers()
    answers.wrap(endpoint.answer)
    first = asyncio.ensure_future(answers.answer(request(0), call))
    await settled()
    endpoint.ends[0].set_result(Completion("x"))
    await first
    tasks = [asyncio.ensure_future(answers.answer(request(n), call)) for n in (1, 2)]
    await settled()
    assert endpoint.started == ([0, 1, 2] if kept_s else [0, 1])
    for n in (1, 2):
        await settled()
        endpoint.ends[n].set_result(Completion("x"))
    await asyncio.gather(*tasks)
