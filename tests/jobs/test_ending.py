"""The early end of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from promptmill.backends.protocol import Call
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.run.ending import Ending, Stopped
from promptmill.jobs.store import progress as states
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.progress import Progress
from promptmill.jobs.store.statistics import JobCounts

NO_ROOM = PromptmillError(Code.BUDGET, "The budget is spent.")


class Run:
    """A run with requests in flight, that works until it is ended."""

    def __init__(self, in_flight: int, leaving_s: float = 60.0) -> None:
        self.call = Call()
        self.progress = Progress(JobCounts(), self.call)
        self.progress.state, self.call.in_flight = states.RUNNING, in_flight
        self.shown: list[str] = []
        self.ending = Ending(self.progress, leaving_s, lambda: self.shown.append(self.ending.words))
        self.work = asyncio.Event()
        self.end = asyncio.ensure_future(self.ending.until_stopped(self._until_done()))

    async def _until_done(self) -> None:
        await self.work.wait()

    async def stopped(self) -> Stopped:
        """Return the end of the run."""
        with pytest.raises(Stopped) as stopped:
            await self.end
        return stopped.value


async def turns() -> None:
    """Let all that is ready go on until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def run_with(in_flight: int, leaving_s: float = 60.0) -> Run:
    """Return a run that has begun."""
    run = Run(in_flight, leaving_s)
    await asyncio.sleep(0)
    return run


@pytest.mark.parametrize(
    ("end", "state"),
    [(lambda ending: ending.end_without_room(NO_ROOM), states.STOPPED), (Ending.leave, states.INTERRUPTED)],
    ids=["budget", "interrupted"],
)
async def test_a_paused_run_ends_after_its_requests_in_flight(end: Callable[[Ending], object], state: str) -> None:
    run = await run_with(0)
    run.call.waits.most = Control(paused=True).most
    run.ending.follow(Control(paused=True))
    await turns()
    assert not run.end.done(), "it may go on"
    run.call.in_flight = 1
    end(run.ending)
    run.ending.follow(Control(paused=True))
    assert run.ending.stopped is None, "the request in flight is paid"
    run.call.in_flight = 0
    run.ending.follow(Control(paused=True))
    assert run.ending.stopped is not None, "a paused round does not end by itself"
    assert (await run.stopped()).state == state


async def test_a_run_without_requests_in_flight_is_cancelled_at_once() -> None:
    run = await run_with(0)
    assert not run.ending.is_cancelled
    run.ending.follow(Control(cancel=True))
    assert run.ending.is_cancelled
    assert (await run.stopped()).state == states.CANCELLED
    assert run.progress.notes == []


async def test_a_second_cancel_ends_the_requests_in_flight_and_notes_once_that_they_may_be_charged() -> None:
    run = await run_with(2)
    run.ending.follow(Control(cancel=True))
    run.ending.follow(Control(cancel=True))
    assert run.ending.stopped is None, "paid requests are waited for"
    assert run.ending.words == "finishing 2 in flight; a second cancel ends them at once"
    for _ in range(2):
        run.ending.follow(Control(cancel=True, at_once=True))
    assert (await run.stopped()).state == states.CANCELLED
    assert run.ending._waiting is not None
    assert run.ending._waiting.cancelled()
    assert [note.partition(" in flight")[0] for note in run.progress.notes] == ["2 requests"]


async def test_the_wait_for_the_requests_in_flight_is_bounded() -> None:
    run = await run_with(1, leaving_s=0.0)
    assert run.ending.leave()
    assert run.ending.leave(), "it waits already"
    assert run.shown == ["finishing 1 in flight; Ctrl-C again stops at once"]
    assert (await run.stopped()).state == states.INTERRUPTED
    assert len(run.progress.notes) == 1
    assert not run.ending.is_cancelled


@pytest.mark.parametrize(("state", "in_flight"), [(states.RUNNING, 0), (states.MERGING, 1)])
async def test_nothing_is_waited_for_while_nothing_is_in_flight_or_the_output_is_written(
    state: str, in_flight: int
) -> None:
    run = await run_with(in_flight)
    run.progress.state = state
    assert not run.ending.leave()
    assert (run.ending.after_flight, run.ending.words) == (None, "")
    run.work.set()
    await run.end
    assert run.ending.stopped is None


async def test_the_first_reason_counts() -> None:
    run = await run_with(1)
    run.ending.give_up(NO_ROOM)
    run.ending.stop(Stopped(states.CANCELLED))
    stopped = await run.stopped()
    assert (stopped.state, stopped.error) == (states.STOPPED, NO_ROOM)


async def test_an_end_within_the_work_is_kept_and_another_error_is_none() -> None:
    async def fail(error: Exception) -> None:
        raise error

    for error in (Stopped(states.STOPPED, NO_ROOM), NO_ROOM):
        ending = Ending(Progress(JobCounts(), Call()), 60.0, lambda: None)
        with pytest.raises(type(error)) as raised:
            await ending.until_stopped(fail(error))
        assert raised.value is error
        assert ending.stopped is (error if isinstance(error, Stopped) else None)


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_the_work_of_a_cancelled_run_ends_before_the_run(*, is_stopped: bool) -> None:
    has_ended = False

    async def work() -> None:
        nonlocal has_ended
        try:
            await asyncio.Event().wait()
        finally:
            await turns()
            has_ended = True

    ending = Ending(Progress(JobCounts(), Call()), 60.0, lambda: None)
    run = asyncio.ensure_future(ending.until_stopped(work()))
    await turns()
    if is_stopped:
        ending.give_up(NO_ROOM)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    run.cancel()
    await asyncio.wait({run})
    assert (run.cancelled(), has_ended, ending.stopped is not None) == (True, True, is_stopped)


async def test_a_run_without_room_ends_by_itself_after_its_requests_in_flight() -> None:
    run = await run_with(1)
    run.ending.end_without_room(NO_ROOM)
    run.ending.end_without_room(PromptmillError(Code.BUDGET, "Another row."))
    assert run.shown == ["finishing 1 in flight, as the budget has no more room"]
    assert run.ending.after_flight is not None
    assert run.ending.after_flight.error is NO_ROOM
    run.call.in_flight = 0
    run.ending.follow(Control())
    assert run.ending.stopped is None
    run.work.set()
    await run.end


async def test_a_run_that_has_not_begun_is_not_stopped() -> None:
    ending = Ending(Progress(JobCounts(), Call()), 60.0, lambda: None)
    ending.stop(Stopped(states.CANCELLED))
    assert ending.stopped is None
