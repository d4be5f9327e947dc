"""The limiter: shares of calls, rates, and the state of an endpoint."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.limit.endpoint_state import EndpointState
from promptmill.backends.openai.limit.limiter import ConcurrencyShare, Limiter, TokenBucket
from promptmill.backends.openai.providers import profile_at
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.backends.openai.transport import LoopThrottle
from promptmill.backends.protocol import Call
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Longest(random.Random):
    """Draws the longest pause."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def an_endpoint(clock: Clock, throttle: LoopThrottle | None = None, **block: object) -> EndpointState:
    settings = OpenAISettings(**block)
    url = "http://localhost/v1/chat/completions"
    endpoint = Endpoint(url, "localhost", {}, (), profile_at(urlsplit(url)), own=True)
    encoder = RequestEncoder(endpoint, "m", enable_thinking=None, stream=False)
    return EndpointState(endpoint, encoder, settings, clock, random.Random(1), throttle=throttle)


def a_limiter(concurrency: int) -> Limiter:
    clock = Clock()
    return Limiter([an_endpoint(clock, concurrency=concurrency, adaptive=False)], concurrency, clock)


def a_share(limiter: Limiter, *, sent: int = 0, grown: Callable[[], None] | None = None) -> ConcurrencyShare:
    share = ConcurrencyShare(limiter.shares, Call(), 1000)
    share.sent = sent
    limiter.open(share)
    share.grown = grown or share.grown
    return share


async def shares(concurrency: int, *wanted: int | None) -> list[int]:
    limiter = a_limiter(concurrency)
    opened = [a_share(limiter) for _ in wanted]
    for share, items in zip(opened, wanted, strict=True):
        share.want(items)
    await asyncio.sleep(0)
    return [share.most for share in opened]


async def test_one_call_has_everything():
    assert await shares(64, None) == [64]


async def test_calls_with_much_to_do_share_alike():
    assert await shares(64, None, None, None, None) == [16, 16, 16, 16]
    assert sum(await shares(64, None, None, None)) == 64


async def test_what_a_small_call_does_not_want_goes_to_the_others():
    assert await shares(64, 8, None) == [8, 56]
    assert await shares(64, 2, None, 40) == [2, 31, 31]


async def test_every_call_may_send_something():
    assert min(await shares(2, None, None, None, None)) == 1


async def test_a_call_hears_when_its_share_grows():
    heard: list[int] = []
    limiter = a_limiter(64)
    stays = a_share(limiter, grown=lambda: heard.append(stays.most))
    leaves = a_share(limiter)
    await asyncio.sleep(0)
    assert stays.most == 32
    heard.clear()
    limiter.close(leaves)
    await asyncio.sleep(0)
    assert heard == [64]


async def test_who_waits_for_a_full_endpoint_holds_up_nobody_who_can_go_to_another():
    clock = Clock()
    failed_there, full = (an_endpoint(clock, concurrency=1, adaptive=False) for _ in range(2))
    limiter = Limiter([failed_there, full], 3, clock)
    call = a_share(limiter)
    taken = limiter.enter_now(call, 0, failed_there)
    assert taken is not None
    patient = asyncio.ensure_future(limiter.enter(call, 0, failed_there))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        permit = await limiter.enter(call, 0, None)
    waited = not patient.done()
    limiter.leave(taken, call)
    async with asyncio.timeout(5):
        result = permit.endpoint_state is failed_there and waited, (await patient).endpoint_state is full

    assert result == (True, True)


def test_a_probe_that_hangs_is_in_nobodys_way_when_the_endpoint_is_to_be_probed_again():
    clock = Clock()
    endpoint_state = an_endpoint(clock, concurrency=4)
    lost = RetryDecision(FailureKind.LOST, PromptmillError(Code.CONNECTION_LOST, "gone"))
    first, older = endpoint_state.enter(clock()), endpoint_state.enter(clock())
    endpoint_state.failed(first, lost, None)
    endpoint_state.leave(first)
    hanging = endpoint_state.enter(clock())
    assert endpoint_state.room(clock.now) == 0
    endpoint_state.succeeded(older)
    endpoint_state.leave(older)
    assert endpoint_state.room(clock.now) == 3
    later = endpoint_state.enter(clock())
    endpoint_state.failed(later, lost, None)
    endpoint_state.leave(later)
    clock.now += 60
    assert endpoint_state.room(clock.now) == 1
    probe = endpoint_state.enter(clock())
    endpoint_state.leave(hanging)
    assert endpoint_state.room(clock.now) == 0
    endpoint_state.leave(probe)
    assert endpoint_state.room(clock.now) == 1


def test_an_endpoint_that_refused_for_load_has_been_there_so_that_a_refused_connection_is_an_outage():
    clock = Clock()
    busy, absent = an_endpoint(clock, retries=3), an_endpoint(clock, retries=3)
    gone = RetryDecision(FailureKind.LOST, PromptmillError(Code.UNREACHABLE, "gone"))
    permit = busy.enter(clock())
    busy.failed(permit, RetryDecision(FailureKind.LOAD, PromptmillError(Code.RATE_LIMITED, "no")), None)
    busy.leave(permit)
    forgiven = []
    for endpoint in (busy, absent):
        for _ in range(3):
            clock.now += 10
            permit = endpoint.enter(clock())
            forgiven.append(endpoint.failed(permit, gone, None))
            endpoint.leave(permit)
    assert forgiven == [True] * 3 + [False] * 3
    assert (busy.unusable(), absent.unusable()) == (None, gone.error)


async def grown(answer_after_s: float, *, busy: bool, **block: object) -> int:
    """Return the limit after a thousand answers, while the process sends all the time or waits for each answer."""
    clock = Clock()
    throttle = LoopThrottle(clock)
    endpoint_state = an_endpoint(clock, throttle, **block)
    for _ in range(1000):
        assert throttle.pass_now()
        tickets = [endpoint_state.enter(clock()) for _ in range(endpoint_state.load.limit.size)]
        if not busy:
            await asyncio.sleep(0)  # a turn of the loop, then one with nothing to send
            await asyncio.sleep(0)
        clock.now += answer_after_s
        for permit in tickets:
            endpoint_state.succeeded(permit)
        for permit in tickets:
            endpoint_state.leave(permit)
        await asyncio.sleep(0)
    return endpoint_state.load.limit.size


@pytest.mark.thorough
async def test_the_window_grows_while_the_endpoint_is_waited_for():
    assert await grown(0.05, busy=False, concurrency=256) == 256


@pytest.mark.thorough
async def test_the_window_does_not_grow_when_more_in_flight_would_only_wait_for_this_process():
    assert await grown(0.001, busy=True, concurrency=256) == 64


@pytest.mark.thorough
async def test_the_search_for_the_limit_of_ones_own_server_counts_no_answer_while_this_process_is_the_limit():
    assert await grown(0.05, busy=False) > 256
    assert await grown(0.001, busy=True) == 64


async def test_a_pause_of_the_endpoint_is_no_sign_of_time_to_spare():
    clock = Clock()
    throttle = LoopThrottle(clock)
    for _ in range(1000):
        throttle.pass_now()
        await asyncio.sleep(0)
        clock.now += 0.001
    at, idle_s = clock.now, throttle.idle_s(clock.now)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.now += 0.005
    shortly = throttle.is_limit(at, idle_s, clock.now)
    clock.now += 1
    assert (shortly, throttle.is_limit(at, idle_s, clock.now)) == (True, False)


async def test_a_new_call_is_sent_although_others_have_paused_the_endpoint():
    clock = Clock()
    endpoint = an_endpoint(clock, max_delay=30)
    limiter = Limiter([endpoint], 8, clock)
    busy, new = a_share(limiter), a_share(limiter)
    permit = limiter.enter_now(busy, 0, None)
    assert permit is not None
    busy.sent = 1
    refusal = PromptmillError(Code.RATE_LIMITED, "no")
    endpoint.failed(permit, RetryDecision(FailureKind.LOAD, refusal, 200.0), None)
    limiter.leave(permit, busy)
    assert limiter.enter_now(busy, 0, None) is None, "whoever was refused waits"
    probe = limiter.enter_now(new, 0, None)
    assert probe is not None, "whoever was never sent tries"
    assert limiter.enter_now(a_share(limiter), 0, None) is None, "one at a time"
    endpoint.succeeded(probe)
    limiter.leave(probe, new)
    assert limiter.enter_now(new, 0, None) is not None, "its answer ends the pause"


async def test_an_answer_that_reports_a_used_up_limit_ends_no_pause():
    clock = Clock()
    endpoint = an_endpoint(clock)
    limiter = Limiter([endpoint], 8, clock)
    share = a_share(limiter)
    refused = endpoint.enter(clock())
    endpoint.failed(refused, RetryDecision(FailureKind.LOAD, PromptmillError(Code.RATE_LIMITED, "no"), 5.0), None)
    endpoint.leave(refused)
    clock.now += 6
    probe = endpoint.enter(clock())
    endpoint.used_up(20.0)
    endpoint.succeeded(probe)
    endpoint.leave(probe)
    assert limiter.enter_now(share, 0, None) is None
    clock.now += 20
    assert limiter.enter_now(share, 0, None) is not None


async def test_nobody_is_refused_who_was_never_sent():
    clock = Clock()
    endpoint = an_endpoint(clock)
    endpoint.health.blocked = PromptmillError(Code.UNAUTHORIZED, "no")
    limiter = Limiter([endpoint], 8, clock)
    busy, new = a_share(limiter, sent=1), a_share(limiter)
    endpoint.health.blocked = PromptmillError(Code.UNAUTHORIZED, "no")
    with pytest.raises(PromptmillError):
        await limiter.enter(busy, 0, None)
    permit = await limiter.enter(new, 0, None)
    assert permit.endpoint_state is endpoint


async def test_an_item_that_failed_waits_for_no_endpoint_that_asked_for_a_pause():
    """A server that is about to go refuses new requests, with a time, and still answers those that it has begun."""
    clock = Clock()
    ill, well = an_endpoint(clock), an_endpoint(clock)
    limiter = Limiter([ill, well], 8, clock)
    call = a_share(limiter)
    begun, refused = ill.enter(clock()), ill.enter(clock())
    error = PromptmillError(Code.CONNECTION_LOST, "503")
    ill.failed(refused, RetryDecision(FailureKind.LOST, error, wait_s=30.0), None)
    ill.leave(refused)
    ill.succeeded(begun)
    ill.leave(begun)

    assert not ill.is_down
    permit = limiter.enter_now(call, 1, avoid=well)
    assert permit is not None
    assert permit.endpoint_state is well
    assert not limiter.elsewhere(well)
    clock.now += 30
    permit = limiter.enter_now(call, 1, avoid=well)
    assert permit is not None
    assert permit.endpoint_state is ill


def let_through(bucket: TokenBucket, start: float, seconds: float) -> int:
    count, now = 0, start
    while now < start + seconds:
        if wait := bucket.wait_s(now):
            now += wait
            continue
        bucket.take(1)
        count += 1
    return count


def test_a_part_lets_through_its_part_and_the_whole_again_when_it_comes_back() -> None:
    bucket = TokenBucket(600, 0)
    bucket.lease(0.25, 0)
    assert let_through(bucket, 0, 60) == pytest.approx(150, abs=2)
    bucket.lease(1, 60)
    assert let_through(bucket, 60, 60) == pytest.approx(600, abs=2)


def test_parts_together_begin_with_no_more_than_the_whole_would() -> None:
    parts = [TokenBucket(60, 0) for _ in range(4)]
    for bucket in parts:
        bucket.lease(0.25, 0)
    assert sum(let_through(bucket, 0, 0.01) for bucket in parts) <= 1


@pytest.mark.parametrize(
    ("kind", "code"), [(FailureKind.LOAD, Code.RATE_LIMITED), (FailureKind.LOST, Code.UNREACHABLE)]
)
def test_pauses_grow_while_nothing_succeeds(kind: FailureKind, code: Code) -> None:
    clock = Clock()
    endpoint = an_endpoint(clock, base_delay=1, max_delay=60)
    endpoint._rng = Longest()
    decision, pauses = RetryDecision(kind, PromptmillError(code, "no")), list[float]()
    for _ in range(5):
        permit = endpoint.enter(clock())
        endpoint.failed(permit, decision, None)
        endpoint.leave(permit)
        pauses.append(endpoint.pause.until - clock.now)
        clock.now = endpoint.pause.until + 100  # an outage that lasts allows longer pauses
    assert pauses == ([1, 2, 4, 8, 16] if kind is FailureKind.LOAD else [0, 1, 2, 4, 5])


async def test_shares_are_divided_again_when_the_room_changes():
    clock = Clock()
    one, other = (an_endpoint(clock, concurrency=32, adaptive=False) for _ in range(2))
    limiter = Limiter([one, other], 64, clock)
    shares = [a_share(limiter) for _ in range(2)]

    async def most() -> list[int]:
        await asyncio.sleep(0)
        return [share.most for share in shares]

    assert await most() == [32, 32]
    await limiter.lease(20, 1.0)
    assert await most() == [10, 10], "another process has got a part"
    await limiter.lease(64, 1.0)
    assert await most() == [32, 32]
    permit = limiter.enter_now(shares[0], 0, other)
    assert permit is not None
    one.health.blocked = PromptmillError(Code.UNAUTHORIZED, "no")
    limiter.leave(permit, shares[0])
    assert await most() == [16, 16], "an endpoint is no longer used"
    other.load.limit._resize(8)
    assert await most() == [4, 4], "its limit is lower"
    limiter.close(shares.pop())
    assert await most() == [8], "a call has ended"
