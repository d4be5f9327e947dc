"""A backend elsewhere: its part of the rates, and verdicts on requests that wait for others. No time passes here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from driving import ask
from fakes import FakeBackend
from promptmill import __version__
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.cluster.remote import LostError, Quota, RemoteBackend, Replica
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt

MUCH = 1000


class Lessee:
    def __init__(self, out: dict[Lessee, tuple[int, float]]) -> None:
        self.out = out
        self.answers = asyncio.Event()
        self.answers.set()
        self.lost = False

    async def lease(self, most: int, rates: float) -> None:
        await self.answers.wait()
        if self.lost:
            raise LostError
        self.out[self] = most, rates
        places, parts = zip(*self.out.values(), strict=True)
        assert sum(places) <= 12, "more places than the whole are out"
        assert sum(parts) <= 1 + 1e-9, "more of the rates than the whole is out"


def leasing() -> tuple[Quota, dict[Lessee, tuple[int, float]]]:
    return Quota(12), {}


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_all_that_are_there_share_and_the_part_of_a_lost_one_comes_back():
    quota, out = leasing()
    first, second, third = (Lessee(out) for _ in range(3))
    for one in (first, second, third):
        await quota.join(one, MUCH)
    assert list(out.values()) == [(4, 1 / 3)] * 3
    del out[second]
    quota.leave(second)
    await settled()
    assert out == {first: (6, 0.5), third: (6, 0.5)}
    await quota.join(second, MUCH)
    assert list(out.values()) == [(4, 1 / 3)] * 3


async def test_a_new_one_sends_nothing_until_the_others_have_given_up_its_part():
    quota, out = leasing()
    hung, new = Lessee(out), Lessee(out)
    await quota.join(hung, MUCH)
    hung.answers.clear()
    joining = asyncio.ensure_future(quota.join(new, MUCH))
    await settled()
    assert not joining.done()
    assert out == {hung: (12, 1)}
    # it is found to be lost
    hung.lost = True
    quota.leave(hung)
    del out[hung]
    hung.answers.set()
    await settled()
    assert joining.done()
    assert out == {new: (12, 1)}


async def test_one_that_is_lost_while_it_joins_gets_no_part():
    quota, out = leasing()
    one = Lessee(out)
    one.lost = True
    assert not await quota.join(one, MUCH)
    await quota.join(other := Lessee(out), MUCH)
    assert out == {other: (12, 1)}


async def test_nobody_gets_more_places_than_wanted_and_the_others_have_the_rest():
    out: dict[Lessee, tuple[int, float]] = {}
    here, first, second = (Lessee(out) for _ in range(3))
    quota = Quota(12, here)
    await quota.join(first, MUCH)
    await quota.join(second, MUCH)
    assert out == {here: (0, 0), first: (6, 0.5), second: (6, 0.5)}
    quota.want(here, 1)
    await settled()
    assert {one: places for one, (places, _) in out.items()} == {here: 1, first: 6, second: 5}
    for one in (first, second):
        quota.leave(one)
        del out[one]
    await settled()
    assert out == {here: (12, 1)}


class Here:
    """A link to the other end in this process."""

    def __init__(self) -> None:
        self.end = Replica()

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self.end, method)(*arguments)

    def kill(self, *, again: bool) -> None:
        """Nothing to end."""


def remote(backend: Any) -> RemoteBackend:
    async def create(_: Any) -> Any:
        return backend

    return RemoteBackend(Here(), (create, Configuration({}).config, {}, __version__))


class Undecided(FakeBackend):
    """Holds every request until it is to decide."""

    def __init__(self) -> None:
        self.decided = asyncio.Event()

    def enter(self, call: Call) -> Any:
        share = super().enter(call)
        share.idle = self.decided.set
        return share

    async def answer(self, request: Request, call: Call) -> Outcome:
        with call.hold():
            await self.decided.wait()
        return Failure(PromptmillError(Code.UNAUTHORIZED, "refused"), 1)


async def test_the_other_end_decides_when_all_that_is_left_waits_for_others():
    backend = remote(Undecided())
    await backend.load(lambda _: None)
    result = await ask(backend, ["a", "b", "c"])
    assert result.codes == {"unauthorized"}
    assert (result.call.counts.requests, len(result.failures)) == (3, 3)
    await backend.aclose()


async def test_a_cancelled_request_is_cancelled_at_the_other_end():
    started, stopped = asyncio.Event(), asyncio.Event()

    class Slow(FakeBackend):
        async def answer(self, request: Request, call: Call) -> Outcome:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            return Completion("")

    backend = remote(Slow())
    await backend.load(lambda _: None)
    asking = asyncio.ensure_future(ask(backend, ["a"]))
    await started.wait()
    asking.cancel()
    await asyncio.wait({asking})
    await stopped.wait()
    await backend.aclose()


class Account:
    """Allows so many second attempts."""

    def __init__(self, more: int) -> None:
        self.more, self.out = more, 0

    def sent(self) -> float:
        self.out += 1
        return 0.0

    def not_billed(self) -> None:
        self.out -= 1

    async def reserve_again(self) -> bool:
        self.more -= 1
        return self.more >= 0


@pytest.mark.parametrize(("more", "attempts"), [(9, 4), (1, 2)])
async def test_each_further_attempt_is_reserved_by_the_driver(more: int, attempts: int):
    class Failing(FakeBackend):
        async def answer(self, request: Request, call: Call) -> Outcome:
            assert request.account is not None
            for sent in range(1, 4):
                if not await request.account.reserve_again():
                    return Failure(PromptmillError(Code.BUDGET, "no room"), sent)
            return Completion("at last", attempts=4)

    backend, account, call = remote(Failing()), Account(more), Call()
    await backend.load(lambda _: None)
    backend.enter(call)
    request = Request(0, conversation_from_prompt("a", "x"), Sampling(), account=account)
    outcome = await backend.answer(request, call)
    assert (outcome.attempts, account.out, call.counts.requests) == (attempts, attempts, attempts)
    await backend.aclose()


async def test_another_version_at_the_other_end_is_an_error():
    backend = RemoteBackend(Here(), (None, None, {}, "0.0.1"))
    with pytest.raises(PromptmillError, match=r"the driver 0\.0\.1; install the same on every node"):
        await backend.load(lambda _: None)


async def test_the_other_end_counts_its_answers_so_that_it_reports_no_silent_endpoint():
    answered: list[int] = []

    class Counting(FakeBackend):
        async def answer(self, request: Request, call: Call) -> Outcome:
            answered.append(call.counts.done)  # an endpoint whose count stays the same for long is reported as silent
            return Completion("")

    backend = remote(Counting())
    await backend.load(lambda _: None)
    call = Call()
    backend.enter(call)
    for key in range(3):
        await backend.answer(Request(key, conversation_from_prompt("a", "x"), Sampling()), call)
    assert answered == [0, 1, 2]
    await backend.aclose()
