"""Which round comes next, after any history."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from promptmill.jobs.run.planning import Situation, next_round, resent
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.order_part import OrderPart
from promptmill.jobs.store.rounds import Round, join_of
from rounds_bench import RoundsBench, order_of

PLAIN, DEDUPE = order_of(), order_of(dedupe=True)
KINDS = (None, "failed", "truncated", "all")
EVERY = "aatftp-q-pq"
TWO = (Target(name="x", settings=1), Target(name="y", prompt=1, settings=2))


def history(*rounds: str, interrupted: bool = False) -> list[Round]:
    """Return rounds with these rules, all done or all but the last."""
    count = len(rounds)
    return [Round(n, rows, "", done=n < count or not interrupted) for n, rows in enumerate(rounds, 1)]


@pytest.mark.parametrize(
    ("order", "rounds", "since", "empty", "expected"),
    [
        (PLAIN, [], 0, "", (1, "open")),
        (PLAIN, [], 0, "open", None),
        (PLAIN, history("open"), 1, "", (2, "open")),
        (order_of("all"), [], 0, "", (1, "again all")),
        (order_of("failed"), history("open", "again failed"), 1, "again failed", (3, "open")),
    ],
)
def test_an_order_has_its_rounds_one_after_the_other(order, rounds, since, empty, expected):
    found = next_round(Situation(order, order.plan, rounds, since, 2, lambda round_: round_.rows != empty))
    assert (found and (found.id, found.rows)) == expected
    if found is not None:
        assert (found.slots, found.since, found.done) == ((0, 1), since, False)
        assert found.way == "live"


@pytest.mark.parametrize(
    ("order", "rows", "since", "resumed"),
    [
        (PLAIN, "open", 2, False),  # a new round selects its rows, too
        (PLAIN, "again all", 2, True),
        (order_of("failed"), "open", 2, False),
        (order_of("failed"), "again failed", 1, True),
        (order_of("failed"), "again truncated", 2, True),
        (order_of("all"), "again failed", 2, False),
        (order_of("all"), "again all", 1, True),
    ],
)
def test_an_interrupted_round_is_resumed_unless_the_order_covers_its_rows(order, rows, since, resumed):
    rounds = history("open", rows, interrupted=True)
    found = next_round(Situation(order, order.plan, rounds, since, 1, lambda _: True))
    assert found is not None
    assert (found == rounds[-1]) is resumed
    assert found.id == (2 if resumed else 3)


def test_a_round_of_a_slot_that_the_job_has_no_more_is_not_resumed():
    of_two = Round(1, "again all", "", (0, 1))
    assert next_round(Situation(PLAIN, PLAIN.plan, [of_two], 1, 2, lambda _: True)) == of_two
    assert next_round(Situation(PLAIN, PLAIN.plan, [of_two], 1, 1, lambda _: True)) == Round(
        2, "open", "first", (0,), 1
    )


def test_a_job_sends_each_row_once_and_the_next_run_those_that_may_pass(store):
    bench = RoundsBench(store, "atfpq-")
    assert bench.run(PLAIN) == [("open", [0, 1, 2, 3, 4, 5])]
    assert bench.run(PLAIN) == [("open", [3, 4])]
    assert bench.run(order_of("failed")) == [("again failed", [2, 3, 5])]
    assert bench.run(order_of("truncated")) == [("again truncated", [1]), ("open", [3])]
    assert bench.run(order_of("all")) == [("again all", [0, 1, 2, 3, 4, 5])]
    assert bench.answers() == {0: "a 14", 1: "t 15", 2: "bad_request", 3: "timeout", 4: "timeout", 5: "bad_request"}


def test_with_dedupe_one_of_several_rows_is_sent_and_the_others_get_its_outcome(store):
    bench = RoundsBench(store, "apfaqfpqp-")
    assert bench.run(DEDUPE) == [("open", [0, 1, 2, 4, 9])]
    answers = bench.answers()
    assert (answers[0], answers[3]) == ("a 1", "a 1")
    assert {n for n, said in answers.items() if said == "bad_request"} == {2, 5, 9}
    assert {n for n, said in answers.items() if said == "timeout"} == {1, 4, 6, 7, 8}
    assert bench.run(DEDUPE) == [("open", [1, 4])]
    assert {n for n, said in bench.answers().items() if said == "timeout"} == {1, 6, 8}


@pytest.mark.parametrize("again", KINDS[1:])
def test_an_order_again_with_dedupe_sends_each_question_once(store, again):
    bench = RoundsBench(store, "atfatf")
    bench.run(PLAIN)
    before = bench.asked
    expected = {"failed": [[2], [5]], "truncated": [[1], [4]], "all": [[0, 1, 2], [3, 4, 5]]}[again]
    assert bench.run(order_of(again, dedupe=True)) == [(f"again {again}", expected[0])]
    assert bench.asked == before + len(expected[0])
    answers = bench.answers()
    assert [answers[n] for n in expected[0]] == [answers[n] for n in expected[1]]


def test_with_dedupe_a_row_gets_the_answer_that_an_equal_one_has(store):
    bench = RoundsBench(store, "at")
    bench.run(PLAIN)
    bench.add(2, "aat")
    assert bench.run(DEDUPE) == [("open", [])]
    assert bench.answers() == {0: "a 1", 1: "t 2", 2: "a 1", 3: "a 1", 4: "t 2"}


@pytest.mark.thorough
@pytest.mark.parametrize(("again", "dedupe"), list(product(KINDS, (False, True))))
def test_a_job_that_was_killed_goes_on_with_the_rows_that_are_left(tmp_path, again, dedupe):
    order, first = order_of(again, dedupe=dedupe), order_of(dedupe=dedupe)

    def begun(name: str) -> RoundsBench:
        bench = RoundsBench(JobDatabase(tmp_path / name, write=True), [f"{one}{one}" for one in EVERY], TWO)
        if again is not None:
            bench.run(first)
        return bench

    whole = begun("whole")
    planned = whole.run(order)
    requests = sum(len(keys) for _, keys in planned)
    for killed_after in range(1, requests + 1):
        bench = begun(f"{killed_after}")
        done, resumed = bench.run(order, killed_after), bench.run(order)
        (rows, keys), following = done[-1], planned[len(done) :]
        assert done[:-1] == planned[: len(done) - 1]
        rest = planned[len(done) - 1][1][len(keys) :]
        assert (rows, keys + rest) == planned[len(done) - 1]
        ahead = [(rows, rest), *following] if rest else following
        if again is None:  # repeated, it is a new order, which sends failures that may pass, but once
            sent = [key for _, keys in resumed for key in keys]
            assert len(set(sent)) == len(sent)
            assert {*sent} - {*keys} == {*rest}
            resumed = ahead = []
        if dedupe:  # a round may have only copies left
            resumed, ahead = ([each for each in both if each[1]] for both in (resumed, ahead))
        assert resumed == ahead
        assert bench.answers().keys() == whole.answers().keys()
        bench.store.close()
    whole.store.close()


@pytest.mark.thorough
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    questions=some.lists(some.sampled_from("atfpq-"), max_size=8),
    orders=some.lists(
        some.tuples(some.sampled_from(KINDS), some.booleans(), some.none() | some.integers(0, 6)), max_size=5
    ),
)
def test_after_any_orders_and_kills_the_next_run_finishes_the_job(tmp_path_factory, questions, orders):
    store = JobDatabase(tmp_path_factory.mktemp("job") / "job.db", write=True)
    bench = RoundsBench(store, questions)
    for again, dedupe, killed_after in orders:
        for rows, keys in bench.run(order_of(again, dedupe=dedupe), killed_after):
            assert len(set(keys)) == len(keys), rows
    bench.run(PLAIN)
    answers = bench.answers()
    assert sorted(answers) == list(range(len(questions)))
    assert all(answers[n][0] == one for n, one in enumerate(questions) if one in "at")
    before = bench.asked
    assert {key for _, keys in bench.run(PLAIN) for key in keys} <= {
        n for n, one in enumerate(questions) if one in "pq"
    }
    assert bench.asked - before <= sum(one in "pq" for one in questions)
    store.close()


@pytest.mark.parametrize("again", KINDS)
def test_the_rows_that_an_order_sends_are_known_before_its_first_round(store, again):
    bench = RoundsBench(store, "atfpq-")
    bench.run(PLAIN)
    bench.add(6, "a")
    condition = resent(order_of(again), 1, [0])
    known = [n for (n,) in store.read(f"SELECT n FROM {join_of(0)} WHERE {condition} ORDER BY n")]
    assert known == sorted({key for _, keys in bench.run(order_of(again)) for key in keys})


def test_a_row_that_a_rule_gets_during_the_run_is_sent_in_it(store):
    bench, sent = RoundsBench(store, ["a", "a"]), []
    for round_, job_rounds in bench.rounds(order_of()):
        for row in bench.open_rows(round_):
            asyncio.run(bench.answered(round_, row, job_rounds))
            sent.append(row.n)
        if sent == [0, 1]:
            bench.add(2, ["a"])
    assert sent == [0, 1, 2]


class Elsewhere(OrderPart):
    """Sends rows another way first."""

    way = "elsewhere"


def order_elsewhere(again=None):
    return order_of(again).model_copy(update={"parts": {"elsewhere": Elsewhere()}})


@pytest.mark.parametrize(
    ("order", "rounds", "ways", "expected"),
    [
        (order_elsewhere(), "", {"elsewhere", "live"}, Round(1, "open", "elsewhere", way="elsewhere")),
        # the failures of the other way are sent live
        (order_elsewhere(), "e", {"live"}, Round(2, "open", "first", since=1)),
        (order_elsewhere(), "ele", {"live"}, Round(4, "open", "first", since=3)),
        (PLAIN, "el", {"live"}, Round(3, "open", "first", since=1)),
        # an answer of this order is not sent again
        (order_elsewhere("failed"), "e", {"elsewhere"}, Round(2, "again failed", "elsewhere", way="elsewhere")),
        (order_elsewhere("failed"), "e", {"live"}, Round(2, "again failed", "again failed")),
        (order_of("all"), "e", {"live"}, Round(2, "again all", "again all")),
    ],
)
def test_rows_that_another_way_left_open_are_sent_live(order, rounds, ways, expected):
    known = [
        Round(n, "open", "", way="elsewhere" if way == "e" else "live", done=True) for n, way in enumerate(rounds, 1)
    ]
    found = next_round(Situation(order, order.plan, known, 0, 1, lambda round_: round_.way in ways))
    assert found == expected


def test_what_is_awaited_comes_before_what_is_sent():
    awaited = {"elsewhere": (1,)}
    now = Situation(PLAIN, PLAIN.plan, history("open"), 1, 2, lambda _: True, awaited)
    assert next_round(now) == Round(2, "elsewhere", "elsewhere", (1,), 1, "elsewhere")
    left = Round(1, "again all", "", way="live")
    found = next_round(Situation(PLAIN, PLAIN.plan, [left], 1, 2, lambda _: True, awaited))
    assert found is not None
    assert found.way == "elsewhere", "a round of another way is not resumed before"
    resumed = Round(1, "elsewhere", "", way="elsewhere")
    assert next_round(Situation(PLAIN, PLAIN.plan, [resumed], 1, 2, lambda _: True, awaited)) == resumed
