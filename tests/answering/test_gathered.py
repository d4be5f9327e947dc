"""Several items in one request: when a pack goes, and what each item gets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from promptmill.answering.gathered import Bounds, Gathering, Part
from promptmill.answering.step import Loading
from promptmill.backends.protocol import Call, Completion, Failure, FixedShare, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.service.driver import Driver

REFUSED = PromptmillError(Code.BAD_REQUEST, "No.")


def item(key: int, text: str) -> Request:
    return Request(key, conversation_from_prompt(text, "a prompt"), Sampling())


def text_of(request: Request) -> str:
    return str(request.conversation.messages[-1].content)


class Echo(Gathering):
    """Sends texts together, at most four and 100 characters; a text `alone` goes alone."""

    def kind(self, request: Request, call: Call) -> str | None:
        return None if text_of(request) == "alone" else "any"

    def bounds(self, request: Request) -> Bounds:
        return Bounds(items=4, size=100)

    def size(self, request: Request) -> int:
        return len(text_of(request))

    def joined(self, requests: Sequence[Request]) -> Request:
        return requests[0].changed(extra={"texts": [text_of(one) for one in requests]})

    def divided(self, requests: Sequence[Request], reply: Completion) -> Sequence[Part]:
        said = reply.text.split("|")
        return [
            Part(Completion(text) if text else None, self.size(one), len(text))
            for one, text in zip(requests, said, strict=True)
        ]

    def missing(self, request: Request) -> PromptmillError:
        return PromptmillError(Code.BAD_RESPONSE, "Nothing.")


class Run:
    """A run of the driver over some texts, with what was sent."""

    def __init__(self, *texts: str, places: int = 2, at_once: int = 256) -> None:
        self.requests = [item(key, text) for key, text in enumerate(texts)]
        self.at_once = at_once
        self.sent: list[list[str]] = []
        self.found: dict[int, Any] = {}
        self.in_flight = self.most_in_flight = 0
        self.call = Call()
        loading = Loading(cast("Any", None), None, is_shared=False)
        self.step, self.share = Echo(loading), FixedShare(places)
        loading.shares[self.call] = self.share

    async def reply(self, texts: list[str], request: Request) -> Outcome:
        """Answer a request for these texts; a test replaces it."""
        usage = Usage(10 * len(texts) + 1, 7)
        return Completion("|".join(map(str.upper, texts)), "stop", usage, attempts=request.attempts + 1, cost=1.0)

    async def answer(self, request: Request, call: Call) -> Outcome:
        self.sent.append(texts := [*request.extra["texts"]])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        try:
            return await self.reply(texts, request)
        finally:
            self.in_flight -= 1

    async def take(self, n: int) -> list[Request]:
        taken, self.requests = self.requests[: min(n, self.at_once)], self.requests[min(n, self.at_once) :]
        return taken

    def put(self, key: int, outcome: Outcome) -> None:
        assert key not in self.found
        self.found[key] = outcome

    async def done(self) -> Run:
        answer = self.step.wrap(self.answer)
        async with asyncio.timeout(20):
            await Driver(self, self, self.call).run(answer, self.share)
        assert (self.call.waits.held, self.call.waits.forked, self.call.waits.parked) == (0, 0, 0)
        return self

    @property
    def texts(self) -> list[str]:
        return [self.found[key].text for key in sorted(self.found)]


async def test_full_packs_go_at_once_and_the_last_one_when_no_more_items_come():
    run = await Run(*map(str, range(10))).done()
    assert sorted(map(len, run.sent)) == [2, 4, 4]
    assert run.texts == [*map(str, range(10))]


@pytest.mark.parametrize("at_once", [1, 3, 256])
@pytest.mark.parametrize("places", [1, 2, 9])
async def test_every_item_is_answered_whatever_the_source_gives_at_once(places, at_once):
    run = await Run(*map(str, range(41)), places=places, at_once=at_once).done()
    assert len(run.sent) == 11
    assert run.most_in_flight <= places
    assert len(run.found) == 41


async def test_the_sums_of_the_items_are_those_of_the_requests():
    run = await Run("a", "bbbb", "cc", "d" * 30, "e").done()
    outcomes = run.found.values()
    assert sum(one.usage.prompt_tokens for one in outcomes) == sum(10 * len(texts) + 1 for texts in run.sent)
    assert sum(one.usage.completion_tokens for one in outcomes) == 14
    assert sum(one.cost for one in outcomes) == pytest.approx(2.0, abs=1e-12)
    assert sum(one.attempts - one.shared for one in outcomes) == len(run.sent) == 2
    assert sorted(one.came for one in outcomes) == ["", *["shared"] * 4], "one was alone in its pack"
    assert run.found[3].usage.prompt_tokens > run.found[0].usage.prompt_tokens


async def test_a_pack_ends_before_it_exceeds_the_size():
    run = await Run("a" * 60, "b" * 60, "c" * 30, "d" * 120).done()
    assert sorted(sorted(map(len, texts)) for texts in run.sent) == [[30, 60], [60], [120]]


async def test_an_item_that_the_reply_leaves_out_is_sent_alone_and_keeps_what_it_has_spent():
    run = Run("a", "b", "c")

    async def reply(texts: list[str], request: Request) -> Outcome:
        said = ["" if text == "b" and len(texts) > 1 else text for text in texts]
        return Completion("|".join(said), "stop", Usage(3), attempts=request.attempts + 1, cost=0.3)

    run.reply = reply
    await run.done()
    assert run.sent == [["a", "b", "c"], ["b"]]
    assert (run.found[1].attempts, run.found[1].shared, run.found[1].usage.prompt_tokens) == (2, 1, 4)
    assert sum(one.cost for one in run.found.values()) == pytest.approx(0.6)


async def test_an_item_that_has_no_answer_alone_either_fails():
    run = Run("a", "b")

    async def reply(texts: list[str], request: Request) -> Outcome:
        return Completion("|".join("" if text == "b" else text for text in texts), attempts=request.attempts + 1)

    run.reply = reply
    await run.done()
    assert (run.found[1].error.code, run.found[1].attempts) == (Code.BAD_RESPONSE, 2)


async def test_one_refused_item_fails_alone():
    run = Run(*"abcdefgh", places=1)

    async def reply(texts: list[str], request: Request) -> Outcome:
        if "c" in texts:
            return Failure(REFUSED, request.attempts + 1)
        return Completion("|".join(texts), attempts=request.attempts + 1)

    run.reply = reply
    await run.done()
    assert [key for key, one in run.found.items() if isinstance(one, Failure)] == [2]
    assert sum(one.attempts - one.shared for one in run.found.values()) == len(run.sent) == 6


async def test_what_refuses_every_item_is_not_asked_for_each():
    run = Run(*map(str, range(16)), places=1)
    run.step.bounds = lambda request: Bounds(items=16, size=100)

    async def reply(texts: list[str], request: Request) -> Outcome:
        return Failure(REFUSED, request.attempts + 1)

    run.reply = reply
    await run.done()
    assert len(run.sent) == 16  # 16, 8, then each of these eight by halves
    assert [str(one.error) for one in run.found.values()] == [str(REFUSED)] * 16
    assert sum(one.attempts - one.shared for one in run.found.values()) == len(run.sent)


@pytest.mark.parametrize("is_for_all", [True, False])
async def test_a_failure_of_the_endpoint_is_that_of_every_item(is_for_all):
    run = Run("a", "b", "c")
    error = REFUSED if is_for_all else PromptmillError(Code.TIMEOUT, "Too slow.")

    async def reply(texts: list[str], request: Request) -> Outcome:
        return Failure(error, request.attempts + 1, concerns_all=is_for_all)

    run.reply = reply
    await run.done()
    assert run.sent == [["a", "b", "c"]]
    assert [(one.error.code, one.concerns_all) for one in run.found.values()] == [(error.code, is_for_all)] * 3


async def test_an_error_that_ends_the_call_reaches_every_item():
    run = Run("a", "b", "c")

    async def reply(texts: list[str], request: Request) -> Outcome:
        raise PromptmillError(Code.ENGINE_DIED, "Gone.")

    run.reply = reply
    with pytest.raises(PromptmillError, match="Gone"):
        await run.done()


async def test_an_item_without_companions_goes_alone_at_once():
    run = await Run("alone", "a", "alone").done()
    assert sorted(run.sent) == [["a"], ["alone"], ["alone"]]


async def test_a_source_that_waits_for_answers_gets_them():
    class Slow(Run):
        async def take(self, n: int) -> list[Request]:
            if len(self.requests) == 2:  # as a source of large rows, which waits until some are answered
                while not self.found:
                    for send in tuple(self.call.waits.starved):
                        send()
                    await asyncio.sleep(0)
            return await super().take(1)

    run = await Slow("a", "b", "c", "d").done()
    assert run.texts == ["A", "B", "C", "D"]
    assert run.sent[0] == ["a", "b"]


async def test_an_item_that_is_cancelled_leaves_its_pack():
    run = Run()
    answer = run.step.wrap(run.answer)
    first, second = (asyncio.ensure_future(answer(item(key, text), run.call)) for key, text in enumerate("ab"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    for send in tuple(run.call.waits.starved):
        send()
    assert (await second).text == "B"
    assert run.sent == [["b"]]
    assert run.call.waits.held == 0


async def test_the_item_that_was_to_send_a_pack_is_replaced_if_it_is_cancelled():
    run = Run()
    answer = run.step.wrap(run.answer)
    first, last = (asyncio.ensure_future(answer(item(key, text), run.call)) for key, text in enumerate("ab"))
    await asyncio.sleep(0)
    for send in tuple(run.call.waits.starved):
        send()
    last.cancel()
    await asyncio.wait({last})
    assert (await first).text == "A"
    assert run.sent == [["a"]]
    assert (run.call.waits.held, run.call.waits.forked, run.share.gathered) == (0, 0, 0)


async def test_a_pack_waits_for_items_that_are_still_outside():
    run = Run(*map(str, range(8)))
    inner = run.step.answer

    async def slow(request: Request, call: Call) -> Outcome:  # as the cache, which reads in a thread
        for _ in range(request.key):
            await asyncio.sleep(0)
        return await inner(request, call)

    run.step.answer = slow
    await run.done()
    assert sorted(map(len, run.sent)) == [4, 4]


async def test_a_batch_takes_each_item_by_itself():
    run = Run("a", "b")
    run.call.exchange = lambda request, body: None  # type: ignore[assignment, return-value]
    await run.done()
    assert run.sent == [["a"], ["b"]]
