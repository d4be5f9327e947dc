"""How much of the work is on its way at once: shares between calls, and no more than this process keeps up with."""

from __future__ import annotations

import asyncio
import random
from urllib.parse import urlsplit

from promptmill.backends.openai.dialect import dialect_of
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.gate import Gate, Share
from promptmill.backends.openai.lane import Lane
from promptmill.backends.openai.pace import Pace
from promptmill.backends.openai.retry import Blame, Verdict
from promptmill.backends.openai.wire import Encoder
from promptmill.backends.protocol import Scope
from promptmill.errors import Code, PromptmillError
from promptmill.settings import OpenAISettings


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_lane(pace: Pace, **block: object) -> Lane:
    settings = OpenAISettings(**block)
    url = "http://localhost/v1/chat/completions"
    endpoint = Endpoint(url, "localhost", {}, (), dialect_of(urlsplit(url)))
    encoder = Encoder(endpoint, "m", enable_thinking=None, stream=False)
    return Lane(endpoint, encoder, settings, pace, random.Random(1))


def a_gate(concurrency: int) -> Gate:
    clock = Clock()
    return Gate([a_lane(Pace(clock), concurrency=concurrency, adaptive=False)], concurrency, clock)


def nothing() -> None:
    pass


def shares(concurrency: int, *wanted: int | None) -> list[int]:
    async def share_out() -> list[Share]:
        gate = a_gate(concurrency)
        opened = [gate.opened(nothing) for _ in wanted]
        for share, items in zip(opened, wanted, strict=True):
            gate.want(share, items)
        await asyncio.sleep(0)
        return opened

    return [share.most for share in asyncio.run(share_out())]


def test_one_call_has_everything():
    assert shares(64, None) == [64]


def test_calls_with_much_to_do_share_alike():
    assert shares(64, None, None, None, None) == [16, 16, 16, 16]
    assert sum(shares(64, None, None, None)) == 64


def test_what_a_small_call_does_not_want_goes_to_the_others():
    assert shares(64, 8, None) == [8, 56]
    assert shares(64, 2, None, 40) == [2, 31, 31]


def test_every_call_may_send_something():
    assert min(shares(2, None, None, None, None)) == 1


def test_a_call_hears_when_its_share_grows():
    heard: list[int] = []

    async def leave_one() -> None:
        gate = a_gate(64)
        stays = gate.opened(lambda: heard.append(stays.most))
        leaves = gate.opened(nothing)
        await asyncio.sleep(0)
        assert stays.most == 32
        heard.clear()
        gate.closed(leaves)
        await asyncio.sleep(0)

    asyncio.run(leave_one())
    assert heard == [64]


def test_who_waits_for_a_full_endpoint_holds_up_nobody_who_can_go_to_another():
    async def work() -> tuple[bool, bool]:
        clock, scope = Clock(), Scope()
        failed_there, full = (a_lane(Pace(clock), concurrency=1, adaptive=False) for _ in range(2))
        gate = Gate([failed_there, full], 3, clock)
        taken = gate.enter_now(scope, 0, failed_there)
        assert taken is not None
        patient = asyncio.ensure_future(gate.enter(scope, 0, failed_there))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            ticket = await gate.enter(scope, 0, None)
        waited = not patient.done()
        gate.leave(taken, scope)
        async with asyncio.timeout(5):
            return ticket.lane is failed_there and waited, (await patient).lane is full

    assert asyncio.run(work()) == (True, True)


def test_a_probe_that_hangs_is_in_nobodys_way_when_the_endpoint_is_to_be_probed_again():
    clock = Clock()
    lane = a_lane(Pace(clock), concurrency=4)
    lost = Verdict(Blame.LOST, PromptmillError(Code.CONNECTION_LOST, "gone"))
    first, older = lane.enter(), lane.enter()
    lane.failed(first, lost, None)
    lane.leave(first)
    hanging = lane.enter()
    assert lane.room(clock.now) == 0
    lane.succeeded(older)
    lane.leave(older)
    assert lane.room(clock.now) == 3
    later = lane.enter()
    lane.failed(later, lost, None)
    lane.leave(later)
    clock.now += 60
    assert lane.room(clock.now) == 1
    probe = lane.enter()
    lane.leave(hanging)
    assert lane.room(clock.now) == 0
    lane.leave(probe)
    assert lane.room(clock.now) == 1


def grown(answer_after_s: float, *, busy: bool) -> int:
    """Return the window after a thousand answers, while the process sends all the time or waits for each answer."""

    async def answers() -> int:
        clock = Clock()
        pace = Pace(clock)
        lane = a_lane(pace, concurrency=256)
        for _ in range(1000):
            assert pace.pass_now()
            tickets = [lane.enter() for _ in range(lane.window.size)]
            if not busy:
                await asyncio.sleep(0)  # a turn of the loop, then one with nothing to send
                await asyncio.sleep(0)
            clock.now += answer_after_s
            for ticket in tickets:
                lane.succeeded(ticket)
                lane.leave(ticket)
            await asyncio.sleep(0)
        return lane.window.size

    return asyncio.run(answers())


def test_the_window_grows_while_the_endpoint_is_waited_for():
    assert grown(0.05, busy=False) == 256


def test_the_window_does_not_grow_when_more_in_flight_would_only_wait_for_this_process():
    assert grown(0.001, busy=True) == 16


def test_a_pause_of_the_endpoint_is_no_sign_of_time_to_spare():
    async def busy_for_a_second_then_idle() -> tuple[bool, bool]:
        clock = Clock()
        pace = Pace(clock)
        for _ in range(1000):
            pace.pass_now()
            await asyncio.sleep(0)
            clock.now += 0.001
        at, idle_s = clock.now, pace.idle_s(clock.now)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        clock.now += 0.005
        shortly = pace.is_limit(at, idle_s)
        clock.now += 1
        return shortly, pace.is_limit(at, idle_s)

    assert asyncio.run(busy_for_a_second_then_idle()) == (True, False)
