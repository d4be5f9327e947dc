"""The numbers and words of progress notifications, without a server or a clock."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from promptmill.backends.protocol import Call, Counts, Facts
from promptmill.http.json_response_workaround import RESPONSE
from promptmill.server.tool_calls import ReportedProgress, _count, with_progress
from replies import answer, choose, late, status


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_items_that_are_done_are_told_as_whole_numbers(clock):
    told, call = ReportedProgress(clock), Call(Facts(total=1000))
    for done in (1, 250, 999):
        call.counts.done = done
        assert told.is_news(call, f"{done} done")
        assert told.number == done


def test_the_last_item_is_told_at_the_end_and_not_before(clock):
    told, call = ReportedProgress(clock), Call(Facts(total=3))
    call.counts.done = 3
    assert not told.is_news(call, "3 of 3 done")
    told.end(call)
    assert told.number == 3


def test_while_nothing_is_done_silence_ends_after_five_seconds_and_new_words_come_after_one(clock):
    told, call = ReportedProgress(clock), Call(Facts(total=3))
    clock.now += 4.9
    assert not told.is_news(call, "starting")
    clock.now += 0.2
    assert told.is_news(call, "starting")
    clock.now += 0.9
    assert not told.is_news(call, "loading weights")
    clock.now += 0.2
    assert told.is_news(call, "loading weights")
    assert told.number == 0.000002


def test_a_number_always_grows_and_never_says_that_an_item_more_is_done(clock):
    told, call = ReportedProgress(clock), Call(Facts(total=9))
    call.counts.done = 4
    assert told.is_news(call, "")
    before = told.number
    for _ in range(1020):
        clock.now += 6
        assert told.is_news(call, "")
        assert before < told.number < 5
        before = told.number
    told.end(call)
    assert before < told.number < 5


def test_work_without_items_counts_seconds(clock):
    told, call = ReportedProgress(clock), Call(Facts(total=None))
    clock.now += 3.2
    assert told.is_news(call, "loading")
    assert told.number == 3
    clock.now += 0.5
    assert not told.is_news(call, "loading")
    told.end(call)
    assert told.number == pytest.approx(3.000001)


def test_words_hold_numbers_that_people_can_read():
    call = Call(Facts(total=1_000_000))
    assert _count(call) == "0 of 1,000,000 done"
    call.counts = Counts(done=12_345, codes=Counter({"timeout": 1}), retries=2_000)
    call.started -= 100
    assert _count(call).startswith("12,345 of 1,000,000 done, 1 failed, 2,000 retries, 123.4/s, about 2:13:")


@pytest.mark.thorough
@pytest.mark.simulated
async def test_a_call_that_waits_says_why(serve, upstream):
    told = []
    # what follows are the seconds left, or that it is tried now
    said = f"0 of 1 done, 429 from 127.0.0.1:{upstream.port}: rate limit, "

    def is_told():
        return any(message.startswith(said) and message.endswith("(the setting `patience`)") for message in told)

    upstream.reply = choose(lambda _: answer() if is_told() else status(429, "slow down", retry_after="3"))

    async def progress(done, total, message):
        told.append(message or "")

    async with serve(max_delay=3) as talk:
        assert (
            await talk.client.call_tool("generate", {"prompt_ls": ["x"]}, progress_handler=progress)
        ).structured_content == {"ans_ls": ["echo: x"]}


@pytest.mark.thorough
@pytest.mark.simulated
async def test_progress_is_told_at_most_twice_a_second(serve, upstream):
    upstream.reply = late(0.1)
    told = []

    async def progress(done, total, message):
        told.append((time.monotonic(), done))

    async with serve(concurrency=1) as talk:
        prompts = [str(number) for number in range(25)]
        await talk.client.call_tool("generate", {"prompt_ls": prompts}, progress_handler=progress)
    assert len(told) >= 4
    assert all(after - before >= 0.499 for (before, _), (after, _) in pairwise(told[:-1])), told
    assert round(told[-1][1]) == 25


@pytest.mark.simulated
@pytest.mark.parametrize(("seconds", "notes"), [(1.9, 0), (2.1, 2), (3.2, 3)])
async def test_a_call_whose_response_may_be_json_reports_nothing_in_its_first_two_seconds(seconds, notes):
    reported = []

    async def report(*progress):
        reported.append(progress)

    scope = SimpleNamespace(meta={"progressToken": 1}, request=SimpleNamespace(scope={RESPONSE: object()}))
    ctx: Any = SimpleNamespace(request_context=scope, report_progress=report, activity="")
    await with_progress(ctx, ctx, [Call(Facts(total=1))], asyncio.sleep(seconds))
    assert len(reported) == notes
