"""Answers are checked in a process that is ended when a check takes too long."""

import asyncio
import json
import os
import random
import signal
import sys

import pytest

from promptmill.answers.checker import NO_MATCH, Checker
from promptmill.answers.schema import compile_schema
from promptmill.backends.protocol import Call
from promptmill.core.bounds import LONGEST_ANSWER
from sure import sure

NAME = compile_schema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
OBJECT = compile_schema({"type": "object"})
# for each of the values the validator compares all with each other
ENDLESS = compile_schema({"allOf": [{"uniqueItems": True, "minItems": n} for n in range(5_000)]})
SLOW = "it takes too long, or too much memory, to check"
TOO_LONG = "it is longer than 1 MiB"
MANY = json.dumps([[n] for n in range(40_000)])


async def test_answers_are_checked_and_repaired_in_another_process(closing):
    checker = closing(Checker())
    for text in ('{"name": "Ada"}', '{"name": 5}', 'Sure: {"name": "Ada",}', "No.", '{"name": "\\ud83d"}'):
        for complete in (True, False):
            assert await checker.check(NAME, text, Call(), complete=complete) == NAME.check(text, complete=complete)


async def test_a_long_text_is_matched_in_the_process_and_a_short_one_is_not(closing):
    checker = closing(Checker())
    for text, problem in (("ab" * 10, ""), ("ab" * 10 + "c", NO_MATCH)):
        assert await checker.match("(?:a|b)+", text, Call()) == problem
    assert checker._helper.pid is None
    for text, problem in (("ab" * 10_000, ""), ("ab" * 10_000 + "c", NO_MATCH), ("a" * (LONGEST_ANSWER + 1), TOO_LONG)):
        assert await checker.match("(?:a|b)+", text, Call()) == problem
    assert checker._helper.pid is not None


@pytest.mark.thorough
async def test_a_match_without_end_is_ended(closing):
    pattern, text = "(?:a|b)*a" + "(?:a|b|c){9}" * 80, "".join(random.Random(1).choices("ab", k=LONGEST_ANSWER))
    assert await closing(Checker()).match(pattern, text, Call()) == SLOW


@pytest.mark.thorough
async def test_a_check_without_end_is_ended_and_the_next_answer_is_checked(closing):
    checker = closing(Checker())
    assert (await checker.check(ENDLESS, MANY, Call(), complete=True)).problem == SLOW
    assert (await checker.check(ENDLESS, "[]", Call(), complete=True)).problem != SLOW
    assert not (await checker.check(NAME, '{"name": "Ada"}', Call(), complete=True)).problem


@pytest.mark.thorough
@pytest.mark.parametrize("text", ["{" * 8_000 + "}" * 8_000, '{"' * 32_500 + "}", "```" + " " * 100_000])
async def test_a_text_that_takes_too_long_to_repair_is_left_as_it_is(closing, text):
    assert (await closing(Checker()).check(OBJECT, text, Call(), complete=True)).problem


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory works on Linux alone")
async def test_a_schema_that_takes_too_much_memory_is_a_problem_of_its_own_answer(closing):
    checker = closing(Checker())
    hungry = compile_schema({"allOf": [{"pattern": f"(?:\\w{{{200 + n}}}){{9}}"} for n in range(5_000)]})
    assert (await checker.check(hungry, '"x"', Call(), complete=True)).problem
    assert not (await checker.check(NAME, '{"name": "Ada"}', Call(), complete=True)).problem


@pytest.mark.skipif(sys.platform == "win32", reason="there the time on the clock counts")
async def test_a_check_is_limited_by_processor_time_not_by_the_clock(closing):
    """A machine whose other programs leave this process no time makes no honest answer wrong."""
    checker = closing(Checker())
    await checker.check(NAME, "No.", Call(), complete=True)
    pid = sure(checker._helper.pid)
    os.killpg(pid, signal.SIGSTOP)
    checking = asyncio.ensure_future(checker.check(NAME, '{"name": 5}', Call(), complete=True))
    await asyncio.wait({checking}, timeout=1.1)
    assert not checking.done()
    os.killpg(pid, signal.SIGCONT)
    assert (await checking).problem.startswith("at $.name")


async def test_a_cancelled_check_leaves_no_result_for_the_next_answer(closing):
    checker = closing(Checker())
    await checker.check(NAME, "No.", Call(), complete=True)
    checking = asyncio.ensure_future(checker.check(ENDLESS, MANY, Call(), complete=True))
    while not checker._turn.locked():
        await asyncio.sleep(0)
    checking.cancel()
    await asyncio.wait({checking})
    assert (await checker.check(NAME, '{"name": 5}', Call(), complete=True)).problem.startswith("at $.name")


async def test_a_process_that_ended_is_started_again(closing):
    """The answer that is checked next is not blamed for its end."""
    checker = closing(Checker())
    for _ in range(3):
        assert (await checker.check(NAME, "No.", Call(), complete=True)).problem.startswith("it is not JSON")
        checker._helper.kill()
        while checker._helper.pid is not None:
            await asyncio.sleep(0.01)


async def test_calls_take_turns(closing):
    checker, ended = closing(Checker()), []

    async def check(call):
        await checker.check(NAME, "No.", call, complete=True)
        ended.append(call)

    large, small = Call(), Call()
    await asyncio.gather(*(check(call) for call in (large, large, large, small)))
    assert ended == [large, small, large, large]
