"""Answers are checked in a process that is ended when a check takes too long."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import pytest

from promptmill.answers.checker import Checker
from promptmill.answers.schema import compile_schema

NAME = compile_schema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
# for each of the values the validator compares all with each other
ENDLESS = compile_schema({"allOf": [{"uniqueItems": True, "minItems": n} for n in range(5_000)]})
MANY = json.dumps([[n] for n in range(40_000)])


async def test_answers_are_checked_and_repaired_in_another_process(closing):
    checker = closing(Checker())
    for text in ('{"name": "Ada"}', '{"name": 5}', 'Sure: {"name": "Ada",}', "No.", '{"name": "\\ud83d"}'):
        for complete in (True, False):
            assert await checker.check(NAME, text, complete=complete) == NAME.check(text, complete=complete)


async def test_a_check_without_end_is_ended_and_the_next_answer_is_checked(closing):
    checker = closing(Checker(longest_check_s=0.3))
    assert (await checker.check(ENDLESS, MANY, complete=True)).problem == "it takes too long to check"
    assert (await checker.check(ENDLESS, "[]", complete=True)).problem == "it takes too long to check"
    checker = closing(Checker())
    assert not (await checker.check(NAME, '{"name": "Ada"}', complete=True)).problem


@pytest.mark.skipif(sys.platform == "win32", reason="there the time on the clock counts")
async def test_a_check_is_limited_by_processor_time_not_by_the_clock(closing):
    """A machine whose other programs leave this process no time makes no honest answer wrong."""
    checker = closing(Checker(longest_check_s=0.5))
    await checker.check(NAME, "No.", complete=True)
    assert checker._process is not None
    checker._process.send_signal(signal.SIGSTOP)
    checking = asyncio.ensure_future(checker.check(NAME, '{"name": 5}', complete=True))
    await asyncio.wait({checking}, timeout=0.6)
    assert not checking.done()
    checker._process.send_signal(signal.SIGCONT)
    assert (await checking).problem.startswith("at $.name")


async def test_a_cancelled_check_leaves_no_result_for_the_next_answer(closing):
    checker = closing(Checker())
    await checker.check(NAME, "No.", complete=True)
    checking = asyncio.ensure_future(checker.check(ENDLESS, MANY, complete=True))
    while not checker._turn.locked():
        await asyncio.sleep(0)
    checking.cancel()
    await asyncio.wait({checking})
    assert (await checker.check(NAME, '{"name": 5}', complete=True)).problem.startswith("at $.name")


async def test_a_process_that_ended_is_started_again(closing):
    checker = closing(Checker())
    await checker.check(NAME, "No.", complete=True)
    checker._process.kill()
    await checker._process.wait()
    assert (await checker.check(NAME, "No.", complete=True)).problem
    assert (await checker.check(NAME, "No.", complete=True)).problem.startswith("it is not JSON")
