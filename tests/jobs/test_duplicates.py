"""Rows with the same question at temperature 0: which of them are sent, and what the others get."""

from dataclasses import replace

from promptmill.backends.protocol import Completion, Usage
from promptmill.jobs.run.duplicates import Duplicates
from promptmill.jobs.store import statistics
from promptmill.jobs.store.records import SLOT, Provenance, record_of
from promptmill.jobs.store.rounds import Round, join_of
from promptmill.jobs.store.stored import Target
from rounds_bench import PASSING, RoundsBench, order_of

ONCE = Round(1, "open once", "")
PAID = Completion("a", "stop", Usage(5, 6), attempts=2, latency_s=0.5, cost=1.0)


def test_rows_with_other_answers_each_time_are_all_sent(store):
    bench = RoundsBench(store, "aabb--")
    duplicates = Duplicates(store, bench.spec, lambda n, _: n != 0)
    duplicates.prepare(ONCE)
    assert [row.n for row in bench.open_rows(ONCE)] == [0, 1, 2, 4, 5]


def test_rows_are_equal_within_a_slot_by_the_question_of_its_own_prompt(store):
    targets = [Target(settings=1), Target(prompt=1, settings=2), Target(settings=3)]
    bench = RoundsBench(store, ["ax", "bx", "ay"], targets)
    store.write([record_of(2 * SLOT, Completion("a"), None, Provenance(9))])  # of settings that do not count
    of_all = replace(ONCE, slots=(0, 1, 2))
    Duplicates(store, bench.spec, lambda *_: True).prepare(of_all)
    found = {slot: [row.n for row in bench.open_rows(of_all) if row.slot == slot] for slot in of_all.slots}
    assert found == {0: [0, 1], 1: [0, 2], 2: [0, 1]}


def test_a_copied_answer_costs_nothing_and_what_it_replaces_still_counts(store):
    bench = RoundsBench(store, "aaa")
    (asked,) = {row.asked for row in store.rows()}
    new = replace(PAID, text="new")
    store.write([record_of(0, new, asked, Provenance(0, 2)), record_of(1, PAID, asked, Provenance(0, 1))])
    store.write([record_of(2, replace(PASSING, attempts=3), asked, Provenance(0, 1))])
    copying = Round(3, "again all duplicate", "duplicate", since=1, way="copy")
    duplicates = Duplicates(store, bench.spec, lambda *_: True)
    duplicates.prepare(copying)
    copies: list[int] = []
    bench.job_rounds(order_of(dedupe=True), duplicates).copy(copying, copies.extend)
    assert copies == [1, 2]
    records = store.sound_records()
    assert [(one.text, one.attempts, one.prompt_tokens, one.latency_s, one.round) for one in records] == [
        ("new", 2, 5, 0.5, 2),
        ("new", 0, 0, 0.0, 3),
        ("new", 3, 0, 0.0, 3),
    ]
    assert all(one.asked == asked for one in records)
    assert statistics.cost(store) == 2.0
    assert statistics.counts(store).requests == 2 + 2 + 3
    assert not store.read(f"SELECT n FROM {join_of(0)} WHERE {replace(copying, rows='again all').condition([0])}")


def test_a_damaged_answer_is_copied_to_no_row_and_made_again(store):
    bench = RoundsBench(store, "aaa")
    bench.run(order_of(), killed_after=1)
    store.change(("UPDATE answer SET text = 'x'", [()]))
    rounds = bench.run(order_of(dedupe=True))
    assert rounds == [("open duplicate", []), ("open once", [0]), ("open duplicate", [1, 2])]
    assert bench.answers() == {0: "a 2", 1: "a 2", 2: "a 2"}
