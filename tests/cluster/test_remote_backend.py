"""A backend elsewhere: its part of the rates, and verdicts on requests that wait for others. No time passes here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from driving import ask
from fakes import FakeBackend
from promptmill import __version__
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.cluster.remote import LostError, RateLeases, RemoteBackend, Replica
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request


class Lessee:
    def __init__(self, out: dict[Lessee, float]) -> None:
        self.out = out
        self.answers = asyncio.Event()
        self.answers.set()
        self.lost = False

    async def lease(self, share: float) -> None:
        await self.answers.wait()
        if self.lost:
            raise LostError
        self.out[self] = share
        assert sum(self.out.values()) <= 1 + 1e-9, "more than the whole is out"


def leasing() -> tuple[Any, dict[Lessee, float]]:
    return RateLeases(), {}


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_all_that_are_there_share_and_the_part_of_a_lost_one_comes_back():
    leases, out = leasing()
    first, second, third = (Lessee(out) for _ in range(3))
    for one in (first, second, third):
        await leases.join(one)
    assert list(out.values()) == [1 / 3] * 3
    del out[second]
    leases.leave(second)
    await settled()
    assert out == {first: 0.5, third: 0.5}
    await leases.join(second)
    assert list(out.values()) == [1 / 3] * 3


async def test_a_new_one_sends_nothing_until_the_others_have_given_up_its_part():
    leases, out = leasing()
    hung, new = Lessee(out), Lessee(out)
    await leases.join(hung)
    hung.answers.clear()
    joining = asyncio.ensure_future(leases.join(new))
    await settled()
    assert not joining.done()
    assert out == {hung: 1}
    # it is found to be lost
    hung.lost = True
    leases.leave(hung)
    del out[hung]
    hung.answers.set()
    await settled()
    assert joining.done()
    assert out == {new: 1}


async def test_one_that_is_lost_while_it_joins_gets_no_part():
    leases, out = leasing()
    one = Lessee(out)
    one.lost = True
    assert not await leases.join(one)
    await leases.join(other := Lessee(out))
    assert out == {other: 1}


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

    return RemoteBackend(Here(), (create, Configuration({}).plan, {}, __version__))


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
    assert (result.stats.counts.requests, len(result.failures)) == (3, 3)
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


async def test_another_version_at_the_other_end_is_an_error():
    backend = RemoteBackend(Here(), (None, None, {}, "0.0.1"))
    with pytest.raises(PromptmillError, match=r"the driver 0\.0\.1; install the same on every node"):
        await backend.load(lambda _: None)
