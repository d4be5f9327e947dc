"""Answers are checked in a process that is ended when a check takes too long."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import pytest

from promptmill.answers.checker import Checker
from promptmill.answers.schema import compile_schema
from promptmill.backends.protocol import Call
from waiting import until

NAME = compile_schema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
# for each of the values the validator compares all with each other
ENDLESS = compile_schema({"allOf": [{"uniqueItems": True, "minItems": n} for n in range(5_000)]})
MANY = json.dumps([[n] for n in range(40_000)])


async def test_answers_are_checked_and_repaired_in_another_process(closing):
    checker = closing(Checker())
    for text in ('{"name": "Ada"}', '{"name": 5}', 'Sure: {"name": "Ada",}', "No.", '{"name": "\\ud83d"}'):
        for complete in (True, False):
            assert await checker.check(NAME, text, Call(), complete=complete) == NAME.check(text, complete=complete)


async def test_a_check_without_end_is_ended_and_the_next_answer_is_checked(closing):
    checker = closing(Checker([0.3]))
    assert (await checker.check(ENDLESS, MANY, Call(), complete=True)).problem == "it takes too long to check"
    assert (await checker.check(ENDLESS, "[]", Call(), complete=True)).problem == "it takes too long to check"
    checker = closing(Checker())
    assert not (await checker.check(NAME, '{"name": "Ada"}', Call(), complete=True)).problem


@pytest.mark.skipif(sys.platform == "win32", reason="there the time on the clock counts")
async def test_a_check_is_limited_by_processor_time_not_by_the_clock(closing):
    """A machine whose other programs leave this process no time makes no honest answer wrong."""
    checker = closing(Checker([0.5]))
    await checker.check(NAME, "No.", Call(), complete=True)
    assert checker._lanes[0]._process is not None
    checker._lanes[0]._process.send_signal(signal.SIGSTOP)
    checking = asyncio.ensure_future(checker.check(NAME, '{"name": 5}', Call(), complete=True))
    await asyncio.wait({checking}, timeout=0.6)
    assert not checking.done()
    checker._lanes[0]._process.send_signal(signal.SIGCONT)
    assert (await checking).problem.startswith("at $.name")


async def test_a_cancelled_check_leaves_no_result_for_the_next_answer(closing):
    checker = closing(Checker())
    await checker.check(NAME, "No.", Call(), complete=True)
    checking = asyncio.ensure_future(checker.check(ENDLESS, MANY, Call(), complete=True))
    while not checker._lanes[0]._turn.locked():
        await asyncio.sleep(0)
    checking.cancel()
    await asyncio.wait({checking})
    assert (await checker.check(NAME, '{"name": 5}', Call(), complete=True)).problem.startswith("at $.name")


async def test_a_process_that_ended_is_started_again(closing):
    """The answer that is checked next is not blamed for its end."""
    checker = closing(Checker())
    for _ in range(3):
        assert (await checker.check(NAME, "No.", Call(), complete=True)).problem.startswith("it is not JSON")
        for lane in checker._lanes:
            assert not lane._left
            if lane._process is not None:
                lane._process.kill()
                await lane._process.wait()


async def test_a_schema_that_takes_long_delays_no_other(closing):
    """It has left the lane of the others, where it is not checked any more."""
    checker, ended = closing(Checker([0.1, 30.0])), []

    async def check(schema, text):
        await checker.check(schema, text, Call(), complete=True)
        ended.append(schema)

    slow = [asyncio.ensure_future(check(ENDLESS, MANY)) for _ in range(2)]
    await until(checker._lanes[1]._turn.locked)
    await check(NAME, '{"name": 5}')
    assert ended == [NAME]
    for checking in slow:
        checking.cancel()
    await asyncio.wait(slow)


async def test_calls_take_turns(closing):
    checker, ended = closing(Checker()), []

    async def check(call):
        await checker.check(NAME, "No.", call, complete=True)
        ended.append(call)

    large, small = Call(), Call()
    await asyncio.gather(*(check(call) for call in (large, large, large, small)))
    assert ended == [large, small, large, large]
