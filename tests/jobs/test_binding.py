"""Answers belong to questions: rows that are edited, added, removed and moved keep theirs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from job_specs import spec_of
from promptmill.backends.protocol import Completion, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store import binding, statistics
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.database import HaltedError, JobDatabase
from promptmill.jobs.store.records import SLOT, Provenance, record_of
from promptmill.jobs.store.stored import Target

FAILURE = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=2)
ONE = (Target(),)


def asked(question: str) -> bytes:
    """Return the digests of a row's questions, a letter each; `-` asks nothing."""
    return b"".join(bytes(16) if letter == "-" else letter.encode() * 16 for letter in question)


def fill(store: JobDatabase, questions: Sequence[str], settings: int = 0, slot: int = 0) -> None:
    """Record an answer for each question, which says who asked."""
    made = Provenance(settings)
    store.write(
        [record_of(n + slot * SLOT, Completion(f"{one} {n}"), asked(one), made) for n, one in enumerate(questions)]
    )


def bind(
    store: JobDatabase,
    questions: Sequence[str],
    targets: Sequence[Target] = ONE,
    *,
    replaced: range = binding.ALL_ROWS,
    by_row: bool = False,
    **options: Any,
) -> Bound:
    """Bind the answers to rows that ask this, in place of those with the numbers `replaced`."""
    binding.begin(store)
    rows = [(n, asked(one), None, one.encode()) for n, one in enumerate(questions, replaced.start)]
    store.change(("INSERT INTO row_next VALUES (?, ?, ?, ?)", rows))
    spec = spec_of("jsonl").model_copy(update={"targets": tuple(targets), "to_bind": "rows" if by_row else None})
    return binding.bind(store, spec, replaced=replaced, **options)


def answers(store: JobDatabase) -> dict[int, str]:
    """Return the text of each answer by its key."""
    return {record.key: record.text for record in store.sound_records()}


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ("abcd", "abcd", {0: "a 0", 1: "b 1", 2: "c 2", 3: "d 3"}),
        ("abcd", "axcd", {0: "a 0", 2: "c 2", 3: "d 3"}),
        ("abcd", "xabcd", {1: "a 0", 2: "b 1", 3: "c 2", 4: "d 3"}),
        ("abcd", "dcba", {0: "d 3", 1: "c 2", 2: "b 1", 3: "a 0"}),
        ("abcd", "ab", {0: "a 0", 1: "b 1"}),
        ("abcd", "bcdbb", {0: "b 1", 1: "c 2", 2: "d 3"}),
        ("aaa", "xaaaa", {1: "a 1", 2: "a 2", 3: "a 0"}),
        ("ab", "-a-b", {1: "a 0", 3: "b 1"}),
        ("abcd", "", {}),
        ("", "ab", {}),
    ],
)
def test_each_row_has_the_answer_to_its_question(store, before, now, kept):
    fill(store, before)
    assert bind(store, now) == Bound(len(now), len(before), len(kept))
    assert answers(store) == kept
    assert [row.asked for row in store.rows()] == [asked(one) for one in now]
    bind(store, before)  # nothing was deleted
    assert sorted(answers(store).values()) == [f"{one} {n}" for n, one in enumerate(before)]


def refuse(_: Bound) -> None:
    raise PromptmillError(Code.INVALID_INPUT, "No.", "")


def test_a_binding_that_is_refused_or_halted_leaves_the_job_as_it_was(store):
    bind(store, "abc")
    fill(store, "abc")
    halt = threading.Event()
    with pytest.raises(PromptmillError):
        bind(store, "cab", check=refuse)
    halt.set()
    with pytest.raises(HaltedError):
        bind(store, "cab" + "x" * 100_000, halt=halt)  # so many that a statement takes long
    assert answers(store) == {0: "a 0", 1: "b 1", 2: "c 2"}
    assert [row.cells for row in store.rows()] == [b"a", b"b", b"c"]
    assert bind(store, "cab").kept == 3


def test_answers_of_other_settings_and_failures_are_bound_to_no_other_row(store):
    fill(store, "ab", settings=5)
    store.write([record_of(2, FAILURE, asked("c"))])
    assert bind(store, "cba").kept == 1
    assert answers(store) == {1: "b 1"}
    assert statistics.counts(store).requests == 2 + 2
    assert bind(store, "abc", [Target(kept=(5,))]).kept == 2


def test_answers_stay_with_their_rows_where_all_questions_have_changed(store):
    fill(store, "abc")
    assert bind(store, "xyz", by_row=True) == Bound(3, 3, 3)
    assert answers(store) == {0: "a 0", 1: "b 1", 2: "c 2"}
    assert bind(store, "yzx").kept == 3
    assert answers(store) == {0: "b 1", 1: "c 2", 2: "a 0"}
    assert bind(store, "yz", by_row=True).kept == 2
    assert answers(store) == {0: "b 1", 1: "c 2"}


def test_a_damaged_answer_stays_damaged_when_it_moves(store):
    fill(store, "abc")
    store.change(("UPDATE answer SET text = 'x' WHERE key = 1", [()]))
    bind(store, "bac")
    assert answers(store) == {1: "a 0", 2: "c 2"}


def test_each_slot_has_the_answers_to_its_own_prompt(store):
    targets = [Target(), Target(prompt=1, settings=1), Target(prompt=1, settings=2)]
    fill(store, "ab")
    fill(store, "xy", settings=1, slot=1)
    fill(store, "xy", settings=2, slot=2)
    assert bind(store, ["by", "ax", "cx"], targets) == Bound(9, 6, 6)
    both = {SLOT: "y 1", SLOT + 1: "x 0", 2 * SLOT: "y 1", 2 * SLOT + 1: "x 0"}
    assert answers(store) == {0: "b 1", 1: "a 0"} | both
    assert bind(store, ["xa"], targets).kept == 0, "an answer of one prompt answers no other one"


def test_numbers_of_rows_may_have_gaps(store):
    store.write([record_of(n, Completion(f"{n}"), asked(one)) for n, one in ((2, "a"), (5, "b"))])
    binding.begin(store)
    rows = [(n, asked(one), None, b"") for n, one in ((1, "b"), (4, "a"), (7, "c"))]
    store.change(("INSERT INTO row_next VALUES (?, ?, ?, ?)", rows))
    assert binding.bind(store, spec_of("jsonl")) == Bound(3, 2, 2)
    assert answers(store) == {1: "5", 4: "2"}
