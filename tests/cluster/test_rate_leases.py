"""Rates that hold for all replicas together, whoever comes and goes; no time passes here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from promptmill.cluster.rate_leases import LostError, RateLeases


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


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def leasing(test: Callable[[RateLeases, dict[Lessee, float]], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        leases, out = RateLeases(), {}
        running = asyncio.ensure_future(leases.run())
        try:
            await test(leases, out)
        finally:
            running.cancel()

    asyncio.run(run())


def test_all_that_are_there_share_and_the_part_of_a_lost_one_comes_back() -> None:
    async def test(leases: RateLeases, out: dict[Lessee, float]) -> None:
        first, second, third = (Lessee(out) for _ in range(3))
        for one in (first, second, third):
            leases.joined(one)
            await settled()
        assert list(out.values()) == [1 / 3] * 3
        del out[second]
        leases.left(second)
        await settled()
        assert out == {first: 0.5, third: 0.5}
        leases.joined(second)
        await settled()
        assert list(out.values()) == [1 / 3] * 3

    leasing(test)


def test_a_new_one_sends_nothing_until_the_others_have_given_up_its_part() -> None:
    async def test(leases: RateLeases, out: dict[Lessee, float]) -> None:
        hung, new = Lessee(out), Lessee(out)
        leases.joined(hung)
        await settled()
        hung.answers.clear()
        may_send = leases.joined(new)
        await settled()
        assert not may_send.is_set()
        assert out == {hung: 1}
        # it is found to be lost
        hung.lost = True
        leases.left(hung)
        del out[hung]
        hung.answers.set()
        await settled()
        assert may_send.is_set()
        assert out == {new: 1}

    leasing(test)
