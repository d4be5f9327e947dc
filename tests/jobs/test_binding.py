"""Answers belong to questions: rows that are edited, added, removed and moved keep theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from promptmill.backends.protocol import Completion, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store import binding, statistics
from promptmill.jobs.store.binding import BLOCK_ROWS, Bound, Slot
from promptmill.jobs.store.database import HaltedError, JobDatabase
from promptmill.jobs.store.records import SLOT, Made, record_of

FAILURE = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=2)
NOW = Made(0, 3)
ONE = (Slot(0, 0, [0]),)


def asked(question: str) -> bytes:
    """Return the digests of a row's questions, a letter each; `-` asks nothing."""
    return b"".join(bytes(16) if letter == "-" else letter.encode() * 16 for letter in question)


def fill(store: JobDatabase, questions: Sequence[str], settings: int = 0, slot: int = 0) -> None:
    """Record an answer for each question, which says who asked."""
    made = Made(settings)
    store.write(
        [record_of(n + slot * SLOT, Completion(f"{one} {n}"), asked(one), made) for n, one in enumerate(questions)]
    )


def bind(
    store: JobDatabase,
    questions: Sequence[str],
    slots: Sequence[Slot] = ONE,
    check: Callable[[Bound], None] = lambda _: None,
    *,
    replaced: range = binding.ALL_ROWS,
    by_row: bool = False,
    other: JobDatabase | None = None,
    halt: threading.Event | None = None,
) -> Bound:
    """Bind the answers to rows that ask this, in place of those with the numbers `replaced`."""
    binding.begin(store)
    rows = [(n, asked(one), None, one.encode()) for n, one in enumerate(questions, replaced.start)]
    store.change(("INSERT INTO row_next VALUES (?, ?, ?, ?)", rows))
    return binding.bind(store, slots, check, replaced=replaced, by_row=by_row, other=other, made=NOW, halt=halt)


def test_rows_beside_the_replaced_ones_stay_and_may_take_their_answers(store: JobDatabase) -> None:
    bind(store, "abcdb")
    fill(store, "abcd")  # row 4 has no answer yet
    assert bind(store, "xy", replaced=range(1, 3)) == Bound(5, 4, 3)
    assert [row.cells for row in store.rows()] == [b"a", b"x", b"y", b"d", b"b"]
    assert answers(store) == {0: "a 0", 3: "d 3", 4: "b 1"}
    assert bind(store, "z", replaced=range(4, SLOT)) == Bound(5, 3, 2)
    assert bind(store, "", replaced=range(0)) == Bound(5, 2, 2)
    assert [row.cells for row in store.rows()] == [b"a", b"x", b"y", b"d", b"z"]


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
def test_each_row_has_the_answer_to_its_question(
    store: JobDatabase, before: str, now: str, kept: dict[int, str]
) -> None:
    fill(store, before)
    assert bind(store, now) == Bound(len(now), len(before), len(kept))
    assert answers(store) == kept
    assert [row.asked for row in store.rows()] == [asked(one) for one in now]
    bind(store, before)  # nothing was deleted
    assert sorted(answers(store).values()) == [f"{one} {n}" for n, one in enumerate(before)]


def refuse(_: Bound) -> None:
    raise PromptmillError(Code.INVALID_INPUT, "No.", "")


def test_a_binding_that_is_refused_or_halted_leaves_the_job_as_it_was(store: JobDatabase) -> None:
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


def test_answers_of_other_settings_and_failures_are_bound_to_no_other_row(store: JobDatabase) -> None:
    fill(store, "ab", settings=5)
    store.write([record_of(2, FAILURE, asked("c"))])
    assert bind(store, "cba").kept == 1
    assert answers(store) == {1: "b 1"}
    assert statistics.counts(store).requests == 2 + 2
    assert bind(store, "abc", [Slot(0, 0, [0, 5])]).kept == 2


def test_answers_stay_with_their_rows_where_all_questions_have_changed(store: JobDatabase) -> None:
    fill(store, "abc")
    assert bind(store, "xyz", by_row=True) == Bound(3, 3, 3)
    assert answers(store) == {0: "a 0", 1: "b 1", 2: "c 2"}
    assert bind(store, "yzx").kept == 3
    assert answers(store) == {0: "b 1", 1: "c 2", 2: "a 0"}
    assert bind(store, "yz", by_row=True).kept == 2
    assert answers(store) == {0: "b 1", 1: "c 2"}


def test_a_damaged_answer_stays_damaged_when_it_moves(store: JobDatabase) -> None:
    fill(store, "abc")
    store.change(("UPDATE answer SET text = 'x' WHERE key = 1", [()]))
    bind(store, "bac")
    assert answers(store) == {1: "a 0", 2: "c 2"}


def test_answers_of_another_job_count_where_there_are_none_and_cost_nothing(store: JobDatabase, tmp_path: Path) -> None:
    other = JobDatabase(tmp_path / "other.db", write=True)
    other.write([record_of(n, Completion("theirs", cost=1.0), asked(one)) for n, one in enumerate("cba")])
    other.write([record_of(3, FAILURE, asked("d"))])
    fill(store, "a")
    store.write([record_of(1, FAILURE, asked("b"))])
    assert bind(store, "abcd", other=other) == Bound(4, 1, 3)
    assert answers(store) == {0: "a 0", 1: "theirs", 2: "theirs"}
    assert statistics.cost(store) == 0
    assert [record.round for record in store.records()] == [0, 3, 3]
    other.close()


def test_each_slot_has_the_answers_to_its_own_prompt(store: JobDatabase) -> None:
    slots = [Slot(0, 0, [0]), Slot(1, 1, [1]), Slot(2, 1, [2])]
    fill(store, "ab")
    fill(store, "xy", settings=1, slot=1)
    fill(store, "xy", settings=2, slot=2)
    assert bind(store, ["by", "ax", "cx"], slots) == Bound(9, 6, 6)
    both = {SLOT: "y 1", SLOT + 1: "x 0", 2 * SLOT: "y 1", 2 * SLOT + 1: "x 0"}
    assert answers(store) == {0: "b 1", 1: "a 0"} | both
    assert bind(store, ["xa"], slots).kept == 0, "an answer of one prompt answers no other one"


def test_numbers_of_rows_may_have_gaps(store: JobDatabase) -> None:
    store.write([record_of(n, Completion(f"{n}"), asked(one)) for n, one in ((2, "a"), (5, "b"))])
    binding.begin(store)
    rows = [(n, asked(one), None, b"") for n, one in ((1, "b"), (4, "a"), (7, "c"))]
    store.change(("INSERT INTO row_next VALUES (?, ?, ?, ?)", rows))
    assert binding.bind(store, ONE, lambda _: None, made=NOW) == Bound(3, 2, 2)
    assert answers(store) == {1: "5", 4: "2"}


@pytest.mark.parametrize(
    ("changed", "blocks"),
    [
        ({}, []),
        ({3 * BLOCK_ROWS: "x"}, [3]),
        ({BLOCK_ROWS - 1: "x", BLOCK_ROWS: "x"}, [0, 1]),
        ({3 * BLOCK_ROWS: "a", 3 * BLOCK_ROWS + 1: "a"}, [3]),  # a row more
        ({3 * BLOCK_ROWS: None}, [3]),  # a row less
    ],
)
def test_blocks_with_other_rows_are_noted_once_an_output_was_written(
    store: JobDatabase, changed: dict[int, str | None], blocks: list[int]
) -> None:
    before: dict[int, str | None] = dict.fromkeys(range(3 * BLOCK_ROWS + 1), "a")
    now = [one for one in {**before, **changed}.values() if one is not None]
    bind(store, "a" * len(before))
    bind(store, now)
    assert store.read("SELECT block FROM edited") == []
    store.put(written={})
    bind(store, "a" * len(before))
    store.change(("DELETE FROM edited", [()]))
    bind(store, now)
    assert store.read("SELECT block FROM edited ORDER BY block") == [(block,) for block in blocks]
