"""The driver: how many answers are in flight, what waiting requests give up, and how a run ends."""

import asyncio

import pytest

from fakes import DictSink, ListSource
from promptmill.backends.protocol import Call, Completion, Facts, Failure, FixedShare, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.service.driver import Driver


class Share(FixedShare):
    """`decide` is what happens when the driver reports that nothing happens by itself."""

    def __init__(self, most, decide=lambda: None):
        super().__init__(most)
        self.idle = decide


class Gate:
    """Answers a request once `open` is set; notes how many are in flight."""

    def __init__(self):
        self.open = asyncio.Event()
        self.in_flight = self.peak = 0

    async def answer(self, request, call):
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        await self.open.wait()
        self.in_flight -= 1
        return Completion(f"{request.key}", usage=Usage(1, 2))


def _run(answer, share, count, call=None, sink=None):
    call, sink = call or Call(Facts(total=count)), sink or DictSink()
    driver = Driver(ListSource(["x"] * count), sink, call)
    return driver, asyncio.ensure_future(driver.run(answer, share)), call, sink


async def _turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_as_many_answers_are_in_flight_as_the_share_says_and_each_outcome_is_counted_once():
    gate, share = Gate(), Share(4)
    _, run, call, sink = _run(gate.answer, share, 10)
    await _turns()
    assert gate.in_flight == 4
    gate.open.set()
    await run
    assert gate.peak == 4
    assert sorted(sink.outcomes) == [*range(10)]
    assert (call.counts.done, call.counts.failed, call.counts.prompt_tokens, call.counts.completion_tokens) == (
        10,
        0,
        10,
        20,
    )


async def test_a_share_that_grows_starts_workers_and_one_that_shrinks_lets_them_end():
    gate, share = Gate(), Share(1)
    _, run, *_ = _run(gate.answer, share, 10)
    await _turns()
    assert gate.in_flight == 1
    share.most = 3
    share.grown()
    await _turns()
    assert gate.in_flight == 3
    share.most = 1
    gate.open.set()
    await run
    assert gate.peak == 3


async def test_a_request_that_waits_for_a_time_holds_no_place_but_no_more_than_twice_the_share_wait_so():
    waiting, woken = 0, asyncio.Event()

    async def answer(request, call):
        nonlocal waiting
        waiting += 1
        with call.park():
            await woken.wait()
        return Completion("x")

    _, run, call, _ = _run(answer, Share(2), 100)
    await _turns(100)
    assert waiting <= 2 * 2 + 2
    woken.set()
    await run
    assert call.counts.done == 100


async def test_when_all_that_is_left_waits_for_others_the_share_decides():
    verdict = asyncio.Event()

    async def answer(request, call):
        if request.key < 5:
            with call.hold():
                await verdict.wait()
        return Completion("x")

    call, done = Call(Facts(total=8)), []

    def decide():
        done.append(call.counts.done)
        verdict.set()

    _, run, *_ = _run(answer, Share(1, decide), 8, call)
    await run
    assert done[0] == 3, "not before the source has ended"
    assert call.counts.done == 8


async def test_a_held_request_counts_against_no_bound_of_those_that_wait_for_a_time():
    """Two that wait for each other's verdict do not keep the third from being sent, whose answer is the verdict."""
    verdict = asyncio.Event()

    async def answer(request, call):
        if request.key < 50:
            with call.hold():
                await verdict.wait()
        elif request.key == 50:
            verdict.set()
        return Completion("x")

    _, run, call, _ = _run(answer, Share(1), 60)
    await run
    assert call.counts.done == 60


async def test_what_no_request_can_survive_ends_the_run_and_leaves_the_rest_without_an_outcome():
    async def answer(request, call):
        await asyncio.sleep(0)
        if request.key == 3:
            raise PromptmillError(Code.ENGINE_DIED, "gone")
        return Failure(PromptmillError(Code.TIMEOUT, "late"))

    _, run, call, sink = _run(answer, Share(2), 10)
    with pytest.raises(PromptmillError, match="gone"):
        await run
    assert {0, 1, 2} <= set(sink.outcomes) <= {0, 1, 2, 4}, "4 may end in the same turn as 3"
    assert call.counts.codes == {"timeout": len(sink.outcomes)}


async def test_a_run_is_stopped_for_a_reason_and_cancelled_for_none():
    for end in ("stop", "cancel"):
        gate = Gate()
        driver, run, *_ = _run(gate.answer, Share(3), 10)
        await _turns()
        if end == "stop":
            driver.stoppable.stop(PromptmillError(Code.SHUTDOWN, "bye"))
            with pytest.raises(PromptmillError, match="bye"):
                await run
        else:
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        driver.stoppable.stop(PromptmillError(Code.SHUTDOWN, "too late to matter"))


@pytest.mark.thorough
async def test_answers_that_come_at_once_let_the_event_loop_go_on():
    turns, ended = 0, asyncio.Event()

    async def count():
        nonlocal turns
        while not ended.is_set():
            turns += 1
            await asyncio.sleep(0)

    async def answer(request, call):
        return Completion("x")

    counting = asyncio.ensure_future(count())
    _, run, *_ = _run(answer, Share(64), 6400)
    await run
    ended.set()
    await counting
    assert turns >= 100
