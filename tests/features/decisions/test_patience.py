"""Work that takes longer than its clients wait."""

from __future__ import annotations

import asyncio

import pytest

from promptmill.features.decisions.patience import NotYetError, Patience


class _Work:
    def __init__(self):
        self.begun, self.cancelled, self.may_end = 0, asyncio.Event(), asyncio.Event()

    async def __call__(self):
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "answer"


async def test_a_client_that_comes_again_gets_the_answer_of_the_work_that_went_on():
    patience, work = Patience(), _Work()
    for _ in range(2):
        with pytest.raises(NotYetError):
            await patience.result(b"key", work, 0.01)
    work.may_end.set()
    assert await patience.result(b"key", work) == "answer"
    assert work.begun == 1
    assert await patience.result(b"key", work) == "answer"
    assert work.begun == 2  # nothing is kept of an answer that was given


async def test_two_clients_with_the_same_request_share_the_work():
    patience, work = Patience(), _Work()
    both = [asyncio.ensure_future(patience.result(b"key", work)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    await asyncio.sleep(0)
    work.may_end.set()
    assert await both[1] == "answer"
    assert work.begun == 1


async def test_another_client_that_leaves_does_not_end_work_for_which_one_was_asked_to_come_again():
    patience, work = Patience(), _Work()
    other = asyncio.ensure_future(patience.result(b"key", work))
    await asyncio.sleep(0)
    with pytest.raises(NotYetError):
        await patience.result(b"key", work, 0.01)
    other.cancel()
    await asyncio.wait({other})
    work.may_end.set()
    assert await patience.result(b"key", work) == "answer"
    assert (work.begun, work.cancelled.is_set()) == (1, False)
    await patience.aclose()


async def test_work_ends_if_its_client_leaves_or_never_comes_again():
    patience, work = Patience(kept_s=0.01), _Work()
    with pytest.raises(NotYetError):
        await patience.result(b"key", work, 0.01)
    await work.cancelled.wait()
    left, work = Patience(), _Work()
    waiting = asyncio.ensure_future(left.result(b"key", work))
    while not work.begun:
        await asyncio.sleep(0)
    waiting.cancel()
    await work.cancelled.wait()


async def test_the_end_of_the_server_ends_all_work():
    patience, work = Patience(), _Work()
    with pytest.raises(NotYetError):
        await patience.result(b"key", work, 0.01)
    await patience.aclose()
    assert work.cancelled.is_set()


async def test_an_error_reaches_the_client_that_comes_again():
    may_end = asyncio.Event()

    async def fails():
        await may_end.wait()
        raise ValueError("no")

    patience = Patience()
    with pytest.raises(NotYetError):
        await patience.result(b"key", fails, 0.01)
    may_end.set()
    with pytest.raises(ValueError, match="no"):
        await patience.result(b"key", fails)


async def test_a_client_for_whose_work_there_is_no_place_waits_for_it(monkeypatch):
    monkeypatch.setattr("promptmill.features.decisions.patience.MOST_KEPT", 1)
    patience: Patience[str] = Patience()
    free, calls = asyncio.Event(), list[str]()

    async def work() -> str:
        calls.append("begun")
        await free.wait()
        return "done"

    with pytest.raises(NotYetError):
        await patience.result(b"first", work, 0.01)
    second = asyncio.ensure_future(patience.result(b"second", work, 0.01))
    await asyncio.sleep(0.05)
    free.set()
    assert await second == "done"
    assert await patience.result(b"first", work, 1.0) == "done"
    assert len(calls) == 2
    await patience.aclose()
