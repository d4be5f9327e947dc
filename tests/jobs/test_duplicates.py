"""Rows with the same question at temperature 0: which of them are sent, and what the others get."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from promptmill.backends.protocol import Call, Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Request, Sampling
from promptmill.jobs.run import duplicates
from promptmill.jobs.run.duplicates import Duplicates
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.records import SLOT, Provenance, record_of
from promptmill.jobs.store.rounds import Round
from rounds_bench import PASSING, RoundsBench, order_of

PAID = Completion("a", "stop", Usage(5, 6), attempts=2, latency_s=0.5, cost=1.0)
WAITS = Failure(PromptmillError(Code.BATCHED, "Later."))
ROUND = Round(3, "open", "")


@dataclass
class Sent:
    """Passes rows through the step; the outcome of a sent row is the next of `outcomes`, or an answer."""

    store: JobDatabase
    targets: Sequence[Target] = (Target(),)
    outcomes: list[Outcome] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    call: Call = field(default_factory=Call)

    def __post_init__(self) -> None:
        self.step = Duplicates(self.store)
        self.step.wrap(self._answer)

    async def _answer(self, request: Request, _: Call) -> Outcome:
        self.keys.append(request.key)
        await asyncio.sleep(0)
        return self.outcomes.pop(0) if self.outcomes else replace(PAID, text=f"new {request.key}")

    async def __call__(self, *keys: int, temperature: float = 0, attempts: int = 0) -> list[Outcome]:
        """Return the outcomes of rows that are all in flight together."""
        asked = {(row.n, at): (row.asked or b"")[16 * at : 16 * at + 16] for row in self.store.rows() for at in (0, 1)}
        sampling = Sampling(temperature=temperature)
        requests = [
            Request(
                key,
                Conversation(()),
                sampling,
                attempts=attempts,
                question=asked[key % SLOT, self.targets[key // SLOT].prompt],
            )
            for key in keys
        ]
        return list(await asyncio.gather(*(self.step.answer(request, self.call) for request in requests)))


def texts(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.text for outcome in outcomes]


@pytest.mark.parametrize(("temperature", "expected"), [(0, [0, 2, 4]), (1, [0, 1, 2, 3, 4])])
async def test_of_equal_rows_one_is_sent_unless_answers_differ_each_time(store, temperature, expected):
    RoundsBench(store, "aabbc")
    sent = Sent(store)
    sent.step.prepare(ROUND, sent.targets)
    outcomes = await sent(*range(5), temperature=temperature)
    assert sent.keys == expected
    assert sum(outcome.cost or 0 for outcome in outcomes) == len(expected)
    assert sent.call.counts.cached == 5 - len(expected)
    assert [outcome.is_copy for outcome in outcomes] == [key not in expected for key in range(5)]


@pytest.mark.parametrize("waits_for_disk", [False, True])
async def test_an_outcome_is_known_before_it_is_written_and_after(store, waits_for_disk):
    store.waits_for_disk = waits_for_disk
    RoundsBench(store, "aaa")
    (asked,) = {row.asked for row in store.rows()}
    sent = Sent(store)
    sent.step.prepare(ROUND, sent.targets)
    (first,) = await sent(0)
    (second,) = await sent(1)
    store.write([record_of(0, first, asked, Provenance(0, 3))])
    sent.step.recorded([0])
    (third,) = await sent(2)
    assert (texts([first, second, third]), sent.keys) == (["new 0"] * 3, [0])
    assert third == second


async def test_rows_are_equal_within_a_slot_by_the_question_of_its_own_prompt(store):
    targets = [Target(settings=1), Target(prompt=1, settings=2), Target(settings=3)]
    RoundsBench(store, ["ax", "bx", "ay"], targets)
    asked = [row.asked or b"" for row in store.rows()]
    store.write([record_of(2 * SLOT, Completion("a"), asked[0][:16], Provenance(9))])  # of settings that do not count
    sent = Sent(store, targets)
    sent.step.prepare(replace(ROUND, slots=(0, 1, 2)), targets)
    for slot, keys in enumerate(([0, 1], [0, 2], [0, 1])):
        sent.keys.clear()
        await sent(*(n + slot * SLOT for n in range(3)))
        assert sent.keys == [n + slot * SLOT for n in keys]


async def test_a_row_gets_the_answer_that_an_equal_one_has_unless_that_is_damaged(store):
    RoundsBench(store, "aabb")
    asked = [row.asked for row in store.rows()]
    store.write([record_of(0, PAID, asked[0], Provenance(0, 2)), record_of(2, PAID, asked[2], Provenance(0, 2))])
    store.change(("UPDATE answer SET text = 'x' WHERE key = 2", [()]))
    sent = Sent(store)
    sent.step.prepare(ROUND, sent.targets)
    assert texts(await sent(1, 3, attempts=3)) == ["a", "new 3"]
    assert sent.keys == [3]


def test_a_damaged_answer_is_copied_to_no_row_and_made_again(store):
    bench = RoundsBench(store, "aaa")
    bench.run(order_of(), killed_after=1)
    store.change(("UPDATE answer SET text = 'x'", [()]))
    assert bench.run(order_of(dedupe=True)) == [("open", [1])]
    store.drop_damaged()
    assert bench.run(order_of(dedupe=True)) == [("open", [])]
    assert bench.answers() == {0: "a 2", 1: "a 2", 2: "a 2"}


def test_a_copied_answer_costs_nothing_and_the_requests_of_its_own_row_still_count(store):
    bench = RoundsBench(store, "aa")
    (asked,) = {row.asked for row in store.rows()}
    store.write([record_of(0, PAID, asked), record_of(1, replace(PASSING, attempts=3), asked)])
    assert bench.run(order_of("failed", dedupe=True)) == [("again failed", [])]
    records = store.sound_records()
    assert [(one.text, one.attempts, one.prompt_tokens, one.latency_s) for one in records] == [
        ("a", 2, 5, 0.5),
        ("a", 3, 0, 0.0),
    ]
    assert statistics.cost(store) == 1.0
    assert statistics.counts(store).requests == 2 + 3


async def test_the_duplicates_of_a_row_that_waits_stay_open_and_the_row_itself_is_sent(store):
    RoundsBench(store, "aaa")
    (asked,) = {row.asked for row in store.rows()}
    old = record_of(0, replace(PAID, text="old"), asked, Provenance(0, 1))
    store.write([old])
    sent = Sent(store, outcomes=[WAITS, WAITS])
    sent.step.prepare(Round(3, "again all", "", since=2), sent.targets)
    outcomes = [*await sent(0, 1), *await sent(2), *await sent(0)]
    assert [isinstance(one, Failure) and (one.error.code, one.is_copy) for one in outcomes] == [
        (Code.BATCHED, False),
        (Code.BATCHED, True),
        (Code.BATCHED, True),
        (Code.BATCHED, False),
    ]
    assert (sent.keys, sent.call.counts.cached) == ([0, 0], 0)
    store.write([record_of(0, PAID, asked, Provenance(0, 3))])
    assert texts(await sent(2)) == ["a"]


async def test_rows_beyond_those_that_may_wait_stay_open(store, monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST_HELD", 2)
    RoundsBench(store, "aaaaa")
    sent = Sent(store)
    sent.step.prepare(ROUND, sent.targets)
    outcomes = await sent(*range(5))
    assert texts(outcomes) == ["new 0"] * 3 + [""] * 2
    assert texts(await sent(3, 4)) == ["new 0"] * 2
    assert sent.keys == [0]


async def test_a_row_without_a_budget_is_not_known_and_neither_is_a_cancelled_one(store):
    RoundsBench(store, "aa")
    sent = Sent(store, outcomes=[Failure(PromptmillError(Code.BUDGET, "Too much."))])
    sent.step.prepare(ROUND, sent.targets)
    assert [one.text or str(one.error.code) for one in await sent(0, 1) if isinstance(one, Failure)] == ["budget"] * 2
    cancelled = asyncio.ensure_future(sent(0))
    while len(sent.keys) < 2:
        await asyncio.sleep(0)
    cancelled.cancel()
    assert texts(await sent(1)) == ["new 1"]
    assert sent.keys == [0, 0, 1]


async def test_a_reply_that_is_there_is_read_although_an_equal_row_has_an_answer(store):
    RoundsBench(store, "aa")
    sent = Sent(store)
    sent.step.prepare(ROUND, sent.targets)
    await sent(0)
    sent.call.ledger.deferred = lambda _: 0.0
    await sent(1)
    assert sent.keys == [0, 1]
