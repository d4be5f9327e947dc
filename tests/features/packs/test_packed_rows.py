"""Several items in one request: when a pack goes, and what each item gets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import pytest

from promptmill.backends.protocol import Call, Completion, Failure, FixedShare, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Portion, Request, Sampling, conversation_from_prompt
from promptmill.features.packs.packed_rows import Bounds, Gathering, ReplyPart
from promptmill.service.driver import Driver
from promptmill.steps.step import Loading

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

    def divided(self, requests: Sequence[Request], reply: Completion) -> Sequence[ReplyPart]:
        said = reply.text.split("|")
        return [
            ReplyPart(Completion(text) if text else None, self.size(one), len(text))
            for one, text in zip(requests, said, strict=True)
        ]

    def read(self, request: Request, name: str, reply: Completion) -> ReplyPart:
        said = dict(part.split("=") for part in reply.text.split("|"))
        return ReplyPart(Completion(said[name]) if name in said else None)


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
        assert self.at_rest
        return self

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits."""
        waits = self.call.waits
        return (waits.held, waits.forked, waits.parked, self.share.gathered, len(waits.starved)) == (0, 0, 0, 0, 0)

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
    assert len((await Run("a" * 60, "b" * 40).done()).sent) == 1


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


async def test_one_refused_item_fails_alone():
    run = Run(*"abcdefgh", places=1)

    async def reply(texts: list[str], request: Request) -> Outcome:
        if "c" in texts:
            return Failure(REFUSED, request.attempts + 1)
        return Completion("|".join(texts), attempts=request.attempts + 1)

    run.reply = reply
    await run.done()
    assert [key for key, one in run.found.items() if isinstance(one, Failure)] == [2]
    assert sum(one.attempts - one.shared for one in run.found.values()) == len(run.sent) == 5


async def test_what_refuses_every_item_is_not_asked_for_each():
    run = Run(*map(str, range(16)), places=1)
    run.step.bounds = lambda request: Bounds(items=16, size=100)

    async def reply(texts: list[str], request: Request) -> Outcome:
        return Failure(REFUSED, request.attempts + 1)

    run.reply = reply
    await run.done()
    assert [len(texts) for texts in run.sent] == [16, *[1] * 8]
    assert [str(one.error) for one in run.found.values()] == [str(REFUSED)] * 16
    assert sum(one.attempts - one.shared for one in run.found.values()) == len(run.sent)


@pytest.mark.parametrize("is_for_all", [True, False])
async def test_a_failure_of_the_endpoint_is_that_of_every_item(is_for_all):
    run = Run("a", "b", "c")
    error = REFUSED if is_for_all else PromptmillError(Code.UNREACHABLE, "Gone.")

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


async def test_each_item_has_its_part_of_every_count_and_of_the_cost():
    run = Run("a", "bbb", "c" * 6)
    sizes, said = (1, 3, 6), (2, 4, 7)  # what an item says counts with a token around it

    async def reply(texts: list[str], request: Request) -> Outcome:
        usage = Usage(1000, 130, 500, 260, 40, 20, 10)
        more: dict[str, Any] = {"latency_s": 2.5, "warnings": ("Slow.",), "unmetered": 1, "shared": 0}
        return Completion("|".join(map(str.upper, texts)), "stop", usage, None, (), 2, cost=1.52, **more)

    run.reply = reply
    await run.done()
    a, b, c = (run.found[key] for key in range(3))
    assert [one.usage for one in (a, b, c)] == [
        Usage(100 * size, 10 * words, 50 * size, 20 * words, 4 * size, 2 * size, size)
        for size, words in zip(sizes, said, strict=True)
    ]
    assert [one.cost for one in (a, b, c)] == [
        pytest.approx(1.52 * (size + 4 * 10 * words) / 530, abs=1e-12) for size, words in zip(sizes, said, strict=True)
    ]
    assert [(one.attempts, one.shared) for one in (a, b, c)] == [(2, 0), (2, 2), (2, 2)]
    assert {(one.came, one.latency_s, one.warnings) for one in (a, b, c)} == {("shared", 2.5, ("Slow.",))}


async def test_the_first_item_with_an_answer_counts_the_requests():
    run = Run("a", "b", "c")

    async def reply(texts: list[str], request: Request) -> Outcome:
        said = ["" if text == "a" and len(texts) > 1 else text for text in texts]
        return Completion("|".join(said), "stop", Usage(30, 30), attempts=request.attempts + 1)

    run.reply = reply
    await run.done()
    assert [(one.attempts, one.shared) for _, one in sorted(run.found.items())] == [(2, 1), (1, 0), (1, 1)]
    assert [one.cost for one in run.found.values()] == [None] * 3


async def test_a_request_for_one_item_keeps_what_it_shares_with_items_outside():
    run = Run("alone")

    async def reply(texts: list[str], request: Request) -> Outcome:
        return Completion("A", "stop", Usage(9, 9), attempts=2, shared=1, cost=0.5, came="cached")

    run.reply = reply
    await run.done()
    assert run.found[0] == Completion("A", None, Usage(9, 9), attempts=2, shared=1, cost=0.5, came="cached")


async def test_a_failed_request_costs_its_items_what_it_cost():
    run = Run("a", "bb", "c")
    error = PromptmillError(Code.UNREACHABLE, "Gone.")

    async def reply(texts: list[str], request: Request) -> Outcome:
        spent = ((Usage(5), ""),)
        return Failure(error, 3, 1.5, Usage(41, 7), cost=0.4, unmetered=2, spent=spent, came="cached", shared=1)

    run.reply = reply
    await run.done()
    found = [one for _, one in sorted(run.found.items())]
    assert sum((one.usage for one in found), Usage()) == Usage(41, 7)
    assert [one.usage.prompt_tokens for one in found] == [13, 14, 14]
    assert sum(one.cost for one in found) == pytest.approx(0.4)
    assert [(one.attempts, one.shared) for one in found] == [(3, 0), (3, 3), (3, 3)]
    assert {(one.came, one.unmetered, one.spent) for one in found} == {("shared", 0, ())}


async def test_a_batch_takes_each_item_by_itself():
    run = Run("a", "b")
    run.call.exchange = lambda request, body: None  # type: ignore[assignment, return-value]
    await run.done()
    assert run.sent == [["a"], ["b"]]


class Batched(Run):
    """A run whose items were sent in one line of a batch, by the names `n0`, `n1` and so on."""

    def __init__(self, *texts: str) -> None:
        super().__init__(*texts)
        self.step.packs_batches = True
        self.call.exchange = lambda request, body: None  # type: ignore[assignment, return-value]
        self.call.portion_of = self.portion_of
        self.asked: list[Portion | None] = []

    def portion_of(self, request: Request) -> Portion | None:
        return Portion(f"n{request.key}", request.key, 3) if text_of(request) < "s" else None

    async def answer(self, request: Request, call: Call) -> Outcome:
        self.asked.append(request.portion)
        return await super().answer(request, call)


def from_batch(request: Request, text: str = "n0=A|n1=B") -> Completion:
    usage = Usage(9 * (request.portion is not None), 3)
    return Completion(
        text, "stop", usage, attempts=request.attempts + 1, cost=0.5, latency_s=4, came="cached", shared=1
    )


async def test_an_item_of_a_batch_reads_its_part_of_the_reply_by_its_name():
    run = Batched("a", "b", "single", "some")

    async def reply(texts: list[str], request: Request) -> Outcome:
        return from_batch(request) if request.portion is not None else from_batch(request, "C")

    run.reply = reply
    await run.done()
    assert run.asked == [Portion("n0", 0, 3), Portion("n1", 1, 3), None, None]
    part = Completion("A", None, Usage(9, 3), attempts=1, cost=0.5, latency_s=4, came="cached", shared=1)
    assert run.found[0] == part
    assert run.found[1] == replace(part, text="B")


async def test_an_item_that_the_reply_of_a_batch_leaves_out_is_sent_alone():
    run = Batched("a", "b", "c")

    async def reply(texts: list[str], request: Request) -> Outcome:
        return from_batch(request) if request.portion is not None else replace(from_batch(request, "C"), shared=0)

    run.reply = reply
    await run.done()
    assert run.asked[2:] == [Portion("n2", 2, 3), None]
    left_out = run.found[2]
    assert (left_out.text, left_out.usage, left_out.cost, left_out.shared) == ("C", Usage(9, 6), 1.0, 1)
    assert left_out.attempts == 2


@pytest.mark.parametrize(
    ("failure", "requests"),
    [
        (Failure(REFUSED, 1), 2),
        (Failure(REFUSED, 1, concerns_all=True), 1),
        (Failure(PromptmillError(Code.SERVER_ERROR, "Down."), 1), 1),
    ],
)
async def test_of_the_failures_of_a_batch_those_of_a_long_request_are_asked_again_alone(failure, requests):
    run = Batched("a")

    async def reply(texts: list[str], request: Request) -> Outcome:
        return failure if request.portion is not None else from_batch(request, "A")

    run.reply = reply
    await run.done()
    assert len(run.asked) == requests
    if requests == 1:
        assert run.found[0] is failure
    else:
        assert (run.found[0].text, run.found[0].attempts) == ("A", 2)


async def test_items_of_a_batch_without_names_share_requests_if_the_step_can():
    for can, sent in ((True, [["a", "b"]]), (False, [["a"], ["b"]])):
        run = Batched("a", "b")
        run.call.portion_of, run.step.packs_batches = None, can
        assert (await run.done()).sent == sent


async def test_an_item_that_cannot_be_joined_fails_with_the_requests_it_had():
    run = Run("a")
    run.requests = [run.requests[0].changed(attempts=3)]
    run.step.joined = mock.Mock(side_effect=REFUSED)
    await run.done()
    assert (run.found[0], run.sent) == (Failure(REFUSED, 3), [])


async def test_only_several_items_have_names_and_members():
    run, named = Run("a", "b", "c", "d", "e"), []

    def name(requests: Sequence[Request]) -> Sequence[Request]:
        named.append(len(requests))
        return [one.changed(portion=Portion(f"n{at}", at, 4)) for at, one in enumerate(requests)]

    async def reply(texts: list[str], request: Request) -> Outcome:
        members.append((request.portion, [one.portion and one.portion.name for one in request.members or ()]))
        return Completion("|".join(texts), attempts=1)

    members: list[Any] = []
    run.step.named, run.reply = name, reply
    run.requests[4] = run.requests[4].changed(portion=Portion("own", 0, 1))
    await run.done()
    assert named == [4]
    assert members == [(None, ["n0", "n1", "n2", "n3"]), (Portion("own", 0, 1), [])]


async def test_answers_to_one_item_count_once_as_being_inside():
    run, inside = Run("a", "b", "c", "d"), []
    run.requests = [one.changed(choice=key // 3) for key, one in enumerate(run.requests)]

    async def reply(texts: list[str], request: Request) -> Outcome:
        inside.append(run.call.waits.inside)
        return Completion("|".join(texts), attempts=1)

    run.reply = reply
    await run.done()
    assert inside == [3]
    assert run.call.waits.inside == 0


async def test_each_round_of_a_call_begins_anew_and_calls_that_ended_are_forgotten():
    run = await Run("a").done()
    first = run.step._calls[run.call]
    run.requests, run.found, run.sent = [item(0, "b")], {}, []
    await run.done()
    assert run.step._calls[run.call] is first
    run.step._shares[run.call] = run.share = FixedShare(2)
    run.requests, run.found, other = [item(0, "c")], {}, Call()
    run.step._calls[other] = first
    await run.done()
    assert run.step._calls.keys() == {run.call}
    assert run.step._calls[run.call].share is run.share


async def test_two_items_are_several():
    run, members = Run("a", "b"), []

    async def reply(texts: list[str], request: Request) -> Outcome:
        members.append(len(request.members or ()))
        if len(texts) == 2:
            return Completion("A|", "stop", attempts=request.attempts + 1)
        return Failure(PromptmillError(Code.TIMEOUT, "Too slow."), request.attempts + 1, came="cached")

    run.reply = reply
    await run.done()
    assert members == [2, 0]
    assert [one.came for _, one in sorted(run.found.items())] == ["shared", "cached"]
    run.requests, run.found = [item(key, "c") for key in range(2)], {}
    run.reply = failing(Code.UNREACHABLE)
    await run.done()
    assert [one.came for one in run.found.values()] == ["shared"] * 2


def failing(code: Code, **more: Any) -> Any:
    """Answer each request with a failure."""

    async def reply(texts: list[str], request: Request) -> Outcome:
        return Failure(PromptmillError(code, "No."), request.attempts + 1, **more)

    return reply


async def test_the_requests_that_items_have_had_before_count_for_each():
    run = Run("a", "b")
    run.requests = [one.changed(attempts=3 * key) for key, one in enumerate(run.requests)]
    run.reply = failing(Code.UNREACHABLE)
    await run.done()
    assert [(one.attempts, one.shared) for _, one in sorted(run.found.items())] == [(1, 0), (4, 1)]


@pytest.mark.parametrize(
    ("codes", "sent"),
    [
        ([Code.BAD_REQUEST], 9),
        ([Code.SERVER_ERROR], 9),
        ([Code.TIMEOUT, Code.CONNECTION_LOST], 9),
        ([Code.CONTENT_FILTER], 31),  # each item for its own text
        ([Code.BAD_REQUEST, Code.INVALID_INPUT], 23),
    ],
)
async def test_items_fail_unsent_if_eight_of_them_fail_alike_and_nothing_is_answered(codes, sent):
    run = Run(*map(str, range(16)), places=1)
    run.step.bounds = lambda request: Bounds(items=16, size=100)

    async def reply(texts: list[str], request: Request) -> Outcome:
        code = codes[int(texts[0]) % len(codes)]
        return Failure(PromptmillError(code, "No."), request.attempts + 1, usage=Usage(16), cost=1.0)

    run.reply = reply
    await run.done()
    assert len(run.sent) == sent
    found = run.found.values()
    assert sum(one.attempts - one.shared for one in found) == sent
    assert sum(one.cost for one in found) == pytest.approx(sent)
    assert sum(one.usage.prompt_tokens for one in found) == 16 * sent


@pytest.mark.parametrize(
    ("of_pack", "of_items"),
    [
        (Code.BAD_REQUEST, [Code.INVALID_INPUT]),
        (Code.TIMEOUT, [Code.CONNECTION_LOST, Code.INVALID_INPUT]),
    ],
)
async def test_the_rest_of_a_pack_is_sent_if_its_items_fail_in_another_way_than_the_pack(of_pack, of_items):
    run = Run(*map(str, range(16)), places=1)
    run.step.bounds = lambda request: Bounds(items=16, size=100)

    async def reply(texts: list[str], request: Request) -> Outcome:
        code = of_pack if len(texts) > 1 else of_items[int(texts[0]) % len(of_items)]
        return Failure(PromptmillError(code, "No."), request.attempts + 1)

    run.reply = reply
    await run.done()
    assert [len(texts) for texts in run.sent[:9]] == [16, *[1] * 8]
    assert len(run.sent) > 9


async def test_an_endpoint_that_has_answered_is_asked_for_each_item_that_it_refuses():
    run = Run(*map(str, range(32)), places=1)
    run.step.bounds = lambda request: Bounds(items=16, size=100)

    async def reply(texts: list[str], request: Request) -> Outcome:
        if int(texts[0]) < 16:
            return Completion("|".join(texts), attempts=request.attempts + 1)
        return Failure(REFUSED, request.attempts + 1)

    run.reply = reply
    await run.done()
    assert len(run.sent) == 1 + 31


async def test_packs_are_no_larger_than_those_that_were_answered_after_a_larger_one_was_refused():
    run = Run(*map(str, range(16)), places=1)

    async def reply(texts: list[str], request: Request) -> Outcome:
        if len(texts) > 2:
            return Failure(PromptmillError(Code.REQUEST_TOO_LARGE, "Too large."), request.attempts + 1)
        return Completion("|".join("" if text == "1" and len(texts) > 1 else text for text in texts), attempts=2)

    run.reply = reply
    await run.done()
    assert [len(texts) for texts in run.sent if texts != ["1"]] == [4, 2, 2, *[4, 2, 2], *[2] * 4]
    assert run.found[1].attempts == 2


async def test_an_item_keeps_what_it_has_spent_in_a_pack_its_half_and_alone():
    run = Run(*"abcd")

    async def reply(texts: list[str], request: Request) -> Outcome:
        spent: dict[str, Any] = {
            "attempts": request.attempts + 1,
            "usage": Usage(len(texts)),
            "cost": float(len(texts)),
        }
        if len(texts) == 4:
            return Failure(REFUSED, **spent)
        return Completion("|".join("" if text == "b" and len(texts) == 2 else text for text in texts), **spent)

    run.reply = reply
    await run.done()
    spent = [(one.usage.prompt_tokens, one.cost, one.attempts, one.shared) for _, one in sorted(run.found.items())]
    assert spent == [(2, 2.0, 2, 0), (3, 3.0, 3, 2), (2, 2.0, 2, 1), (2, 2.0, 2, 1)]


class Waiting(Run):
    """Items that wait in packs, each in a task, and no driver."""

    def __init__(self, *texts: str) -> None:
        super().__init__(*texts)
        answer = self.step.wrap(self.answer)
        self.tasks = [asyncio.ensure_future(answer(one, self.call)) for one in self.requests]

    def send_all(self) -> None:
        for send in tuple(self.call.waits.starved):
            send()

    async def ended(self) -> list[Any]:
        """Return the outcomes, or the exceptions."""
        async with asyncio.timeout(20):
            return await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.parametrize("error", [PromptmillError(Code.ENGINE_DIED, "Gone."), asyncio.CancelledError()])
async def test_all_items_of_a_request_that_raises_end_with_it(error):
    run = Waiting(*"abcd")
    run.reply = mock.AsyncMock(side_effect=error)
    await asyncio.sleep(0)
    run.tasks[1].cancel()  # in flight with the others
    found = await run.ended()
    assert isinstance(found[1], asyncio.CancelledError)
    assert [type(one) for one in (found[0], *found[2:])] == [type(error)] * 3
    assert len(run.sent) == 1
    assert run.at_rest


async def test_an_item_that_is_cancelled_in_flight_leaves_the_others_their_answers():
    run = Waiting(*"abcd")
    await asyncio.sleep(0)
    run.tasks[1].cancel()
    first, cancelled, *rest = await run.ended()
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [one.text for one in (first, *rest)] == ["A", "C", "D"]
    assert run.at_rest


@pytest.mark.parametrize("was_to_send", [False, True])
async def test_a_pack_whose_only_item_is_cancelled_is_gone(was_to_send):
    run = Waiting("a")
    await asyncio.sleep(0)
    starved = [*run.call.waits.starved]
    if was_to_send:
        run.send_all()
    run.tasks[0].cancel()
    (cancelled,) = await run.ended()
    assert isinstance(cancelled, asyncio.CancelledError)
    assert run.at_rest
    for send in starved:
        send()
    assert not run.sent


async def test_packs_of_two_kinds_wait_side_by_side():
    run = Waiting(*"abAcBd")
    run.step.kind = lambda request, call: str(text_of(request).isupper())
    await asyncio.sleep(0)
    assert len(run.call.waits.starved) == 1, "the pack of a, b, c and d is closed, and the other one waits"
    run.send_all()
    assert [one.text for one in await run.ended()] == [*"ABACBD"]
    assert run.at_rest


async def test_a_pack_that_has_grown_too_large_while_it_waited_is_divided():
    run = Waiting(*"abcABCD")
    run.step.kind = lambda request, call: str(text_of(request).isupper())

    async def reply(texts: list[str], request: Request) -> Outcome:
        if len(texts) > 2:
            return Failure(PromptmillError(Code.REQUEST_TOO_LARGE, "Too large."), request.attempts + 1)
        return Completion("|".join(texts), attempts=request.attempts + 1)

    run.reply = reply
    await asyncio.wait(run.tasks[3:])
    run.send_all()
    assert [one.text for one in await run.ended()] == [*"abcABCD"]
    assert run.sent == [[*"ABCD"], [*"AB"], [*"CD"], [*"ab"], ["c"]]
    assert run.at_rest


@pytest.mark.parametrize(("read", "count"), [("9", 3 + 8), ("none", 8)])
async def test_after_eight_packs_in_a_row_without_an_answer_items_are_sent_alone(read, count):
    run = Run(*map(str, range(60)), places=1)

    async def reply(texts: list[str], request: Request) -> Outcome:
        are_read = len(texts) == 1 or read in texts
        return Completion("|".join(texts if are_read else [""] * len(texts)), attempts=request.attempts + 1)

    run.reply = reply
    await run.done()
    packs = [texts for texts in run.sent if len(texts) > 1]
    assert len(packs) == count
    assert run.texts == [*map(str, range(60))]
    (said,) = run.call.warnings
    assert said.startswith("8 replies to several rows, one after the other, had no answer that could be read")


async def test_packs_that_lack_some_answers_are_sent_on():
    run = Run(*map(str, range(60)), places=1)

    async def reply(texts: list[str], request: Request) -> Outcome:
        said = texts if len(texts) == 1 else ["", *texts[1:]]
        return Completion("|".join(said), attempts=request.attempts + 1)

    run.reply = reply
    await run.done()
    assert sum(len(texts) == 4 for texts in run.sent) == 15
    assert not run.call.warnings


async def test_one_pack_of_two_that_a_server_answers_one_by_one_makes_the_next_no_smaller():
    run, is_answered = Run(), asyncio.Event()
    run.step.kind = lambda request, call: None if text_of(request) == "alone" else text_of(request)[0]

    async def reply(texts: list[str], request: Request) -> Outcome:
        if texts == ["a1", "a2"]:
            await is_answered.wait()
            return Failure(PromptmillError(Code.SERVER_ERROR, "Down."), request.attempts + 1)
        return Completion("|".join(texts), attempts=request.attempts + 1)

    run.reply = reply
    answer = run.step.wrap(run.answer)
    pack = [asyncio.ensure_future(answer(item(key, f"a{key}"), run.call)) for key in (1, 2)]
    await asyncio.sleep(0)
    for send in tuple(run.call.waits.starved):
        send()
    await asyncio.sleep(0)
    assert (await answer(item(0, "alone"), run.call)).text == "alone"
    is_answered.set()
    assert [one.text for one in await asyncio.gather(*pack)] == ["a1", "a2"]
    pack = [asyncio.ensure_future(answer(item(key, f"b{key}"), run.call)) for key in (1, 2)]
    await asyncio.sleep(0)
    for send in tuple(run.call.waits.starved):
        send()
    assert [one.text for one in await asyncio.gather(*pack)] == ["b1", "b2"]
    assert run.sent == [["a1", "a2"], ["alone"], ["a1"], ["a2"], ["b1", "b2"]]


async def test_a_reply_without_an_answer_is_no_sign_that_the_endpoint_answers_items():
    run = Run(*map(str, range(32)), places=1)
    run.step.bounds = lambda request: Bounds(items=16, size=100)

    async def reply(texts: list[str], request: Request) -> Outcome:
        if int(texts[0]) >= 16:
            return Failure(REFUSED, request.attempts + 1)
        if len(texts) == 1:
            return Failure(PromptmillError(Code.UNREACHABLE, "Gone."), request.attempts + 1)
        return Completion("|" * (len(texts) - 1), attempts=request.attempts + 1)

    run.reply = reply
    await run.done()
    assert sum(int(texts[0]) >= 16 for texts in run.sent) == 1 + 8


async def test_a_pack_that_is_sent_once_more_is_no_pack_that_was_halved():
    run, failed = Run(), set[str]()
    run.step.kind = lambda request, call: text_of(request)[0]
    run.step.bounds = lambda request: Bounds(items=16, size=100)

    async def reply(texts: list[str], request: Request) -> Outcome:
        if len(texts) == 3 and texts[0] not in failed:
            failed.add(texts[0])
            return Failure(PromptmillError(Code.SERVER_ERROR, "Down."), request.attempts + 1)
        return Completion("|".join(texts), attempts=request.attempts + 1)

    run.reply = reply
    answer = run.step.wrap(run.answer)
    for texts in (["a1", "a2", "a3"], ["b1", "b2", "b3"], [f"c{at}" for at in range(8)]):
        tasks = [asyncio.ensure_future(answer(item(key, text), run.call)) for key, text in enumerate(texts)]
        await asyncio.sleep(0)
        for send in tuple(run.call.waits.starved):
            send()
        assert [one.text for one in await asyncio.gather(*tasks)] == texts
    assert [len(texts) for texts in run.sent] == [3, 1, 2, 3, 1, 2, 8]


async def test_a_model_has_its_step():
    assert isinstance(await Echo.of(Loading(cast("Any", None), None, is_shared=False)), Echo)


class Pool(Run):
    """Packs of sixteen texts, at an endpoint that fails for some requests."""

    def __init__(self, rows: int, *, places: int = 1, fails: Any, code: Code = Code.SERVER_ERROR) -> None:
        super().__init__(*map(str, range(rows)), places=places)
        self.step.bounds = lambda request: Bounds(items=16, size=1_000)
        self.fails, self.code = fails, code

    async def reply(self, texts: list[str], request: Request) -> Outcome:
        if self.fails(texts):
            error = PromptmillError(self.code, f"Down, request {len(self.sent)}.")
            return Failure(error, request.attempts + 1, usage=Usage(16), cost=1.0)
        return Completion("|".join(texts), "stop", Usage(16), attempts=request.attempts + 1, cost=1.0)

    @property
    def failed(self) -> set[int]:
        return {key for key, one in self.found.items() if isinstance(one, Failure)}

    def check_sums(self) -> None:
        """Check that each request is counted and paid once."""
        found = self.found.values()
        assert sum(one.attempts - one.shared for one in found) == len(self.sent)
        assert sum(one.cost for one in found) == pytest.approx(len(self.sent))
        assert sum(one.usage.prompt_tokens for one in found) == 16 * len(self.sent)


@pytest.mark.parametrize("code", [Code.SERVER_ERROR, Code.TIMEOUT, Code.CONNECTION_LOST, Code.BAD_RESPONSE])
@pytest.mark.parametrize("places", [1, 8])
async def test_an_item_at_which_the_server_fails_fails_alone(code, places):
    run = Pool(64, places=places, code=code, fails=lambda texts: {"5", "6", "40"} & {*texts})
    await run.done()
    assert run.failed == {5, 6, 40}
    assert len(run.sent) < 30
    run.check_sums()


async def test_a_request_that_is_too_large_for_the_server_is_made_smaller_and_so_are_the_next():
    run = Pool(64, fails=lambda texts: len(texts) > 5)
    await run.done()
    assert not run.failed
    assert max(map(len, run.sent[12:])) <= 5
    run.check_sums()


@pytest.mark.parametrize(("down", "sizes"), [(1, [16, 1, 15]), (2, [16, 1, 1, 14])])
async def test_the_rest_of_a_pack_is_sent_once_more_when_the_server_is_up_again(down, sizes):
    run: Pool = Pool(16, fails=lambda texts: len(run.sent) <= down)
    await run.done()
    assert [len(texts) for texts in run.sent] == sizes
    run.check_sums()


async def test_a_pack_at_which_a_server_fails_that_answers_others_is_halved():
    run = Pool(32, places=2, fails=lambda texts: "20" in texts and len(texts) > 8)
    at_once = run.reply

    async def reply(texts: list[str], request: Request) -> Outcome:
        while len(run.sent) < 2 or ("20" in texts and not run.found):
            await asyncio.sleep(0)
        return await at_once(texts, request)

    run.reply = reply
    await run.done()
    assert [len(texts) for texts in run.sent] == [16, 16, 8, 8]
    run.check_sums()


async def test_packs_that_a_server_answers_only_in_halves_make_the_next_no_smaller_if_others_are_answered():
    run = Pool(80, fails=lambda texts: len(texts) == 15 or (len(texts) > 8 and not {"0", "32"}.isdisjoint(texts)))
    await run.done()
    halved = [16, 1, 15, 1, 7, 7]
    assert [len(texts) for texts in run.sent] == [*halved, 16, *halved, 16, 16]
    run.check_sums()


@pytest.mark.parametrize(
    ("code", "tried", "then"),
    [(Code.SERVER_ERROR, 1, [15, *[1] * 8]), (Code.SERVER_ERROR, 3, [13, *[1] * 8]), (Code.BAD_REQUEST, 1, [8, 4, 2])],
)
async def test_the_rest_of_a_pack_is_sent_if_another_one_is_answered_while_its_items_fail(code, tried, then):
    run = Pool(32, places=2, code=code, fails=lambda texts: int(texts[0]) < 16)
    at_once = run.reply

    async def reply(texts: list[str], request: Request) -> Outcome:
        while len(run.sent) < (2 + tried if int(texts[0]) >= 16 else 2):
            await asyncio.sleep(0)
        return await at_once(texts, request)

    run.reply = reply
    await run.done()
    assert run.failed == {*range(16)}
    sizes = [len(texts) for texts in run.sent]
    assert sizes[: 2 + tried + len(then)] == [16, 16, *[1] * tried, *then]


async def test_a_pack_whose_items_are_all_refused_makes_the_next_no_smaller():
    run = Pool(32, fails=lambda texts: False)
    at_once = run.reply

    async def reply(texts: list[str], request: Request) -> Outcome:
        return await (failing(Code.BAD_REQUEST) if int(texts[0]) < 16 else at_once)(texts, request)

    run.reply = reply
    await run.done()
    assert [len(texts) for texts in run.sent] == [16, *[1] * 8, 16]
    assert run.failed == {*range(16)}


@pytest.mark.parametrize("places", [1, 4, 64])
async def test_a_server_that_is_down_gets_few_requests_more_than_packs(places):
    run = Pool(16 * 64, places=places, fails=lambda texts: True)
    await run.done()
    assert len(run.failed) == 16 * 64
    assert len(run.sent) == 64 + 8 + 2 * 6, "items of the first, second, fourth … sixty-fourth pack"
    run.check_sums()


async def test_a_server_that_goes_down_in_the_middle_gets_few_requests_more_than_packs():
    run: Pool = Pool(16 * 64, fails=lambda texts: len(run.sent) > 30)
    await run.done()
    assert len(run.failed) == 16 * 34
    assert len(run.sent) <= 64 + 8 + 2 * 6
    run.check_sums()


async def test_packs_that_fail_together_wait_for_the_first_sign_of_life_of_the_server():
    run = Pool(64, places=4, fails=lambda texts: len(texts) == 16 or "20" in texts)
    at_once = run.reply

    async def reply(texts: list[str], request: Request) -> Outcome:
        while len(run.sent) < 4:
            await asyncio.sleep(0)
        return await at_once(texts, request)

    run.reply = reply
    await run.done()
    assert [len(texts) for texts in run.sent[:10]] == [16, 16, 16, 16, 1, 15, 8, 8, 8, 8]
    assert run.failed == {20}
    run.check_sums()


async def test_a_pack_of_which_all_items_fail_does_not_fail_the_next():
    run = Pool(32, fails=lambda texts: any(int(text) < 20 for text in texts))
    await run.done()
    assert run.failed == {*range(20)}
    run.check_sums()


async def test_an_item_that_has_failed_has_a_line_of_a_batch_of_its_own():
    run = Batched("a", "b", "c")
    run.call.portion_of = None
    run.requests[1] = run.requests[1].changed(attempts=1)
    await run.done()
    assert sorted(run.sent) == [["a", "c"], ["b"]]


@pytest.mark.thorough
@pytest.mark.parametrize("places", [1, 4])
async def test_packs_are_as_large_as_before_after_a_server_was_down_for_a_while(places):
    run: Pool = Pool(16 * 20, places=places, fails=lambda texts: 5 < len(run.sent) <= 9)
    await run.done()
    assert len(run.failed) <= 4, "those that were sent alone while it was down"
    assert [len(texts) for texts in run.sent[-8:]] == [16] * 8
    run.check_sums()


async def test_packs_are_as_large_as_before_after_a_reply_that_failed_by_chance():
    run: Pool = Pool(16 * 40, places=4, fails=lambda texts: len(texts) == 16 and len(run.sent) % 10 == 0)
    await run.done()
    assert not run.failed
    assert len(run.sent) < 60
    run.check_sums()
