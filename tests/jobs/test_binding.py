"""Answers belong to questions: rows that are edited, added, removed and moved keep theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from promptmill.backends.protocol import Completion, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store import binding
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.binding import Binding, Bound, Twins
from promptmill.jobs.store.records import Made, record_of

FAILURE = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """An empty database."""
    found = JobStore(tmp_path / "job.db", create=True)
    yield found
    found.close()


def asked(question: str) -> bytes:
    """Return the digest of a question."""
    return question.encode()


def fill(store: JobStore, questions: Sequence[str], settings: int = 0) -> None:
    """Record an answer for each question, which says who asked."""
    made = Made(settings)
    store.write([record_of(row, Completion(f"{one} {row}"), asked(one), made) for row, one in enumerate(questions)])


def bind(store: JobStore, questions: Sequence[str], *, halt_after: int | None = None, **options: object) -> Bound:
    """Bind the answers to rows that ask this."""
    found = Binding(store, [0], **options)  # type: ignore[arg-type]
    rows = list(enumerate(map(asked, questions)))
    for at in range(0, len(rows), 3):
        found.note(rows[at : at + 3])
    bound, pages = found.match(), iter(range(halt_after if halt_after is not None else 1 << 30))
    found.apply(lambda: next(pages, None) is None, Made())
    return bound


def answers(store: JobStore) -> dict[int, str]:
    """Return the text of each row's answer."""
    return {record.row: record.text for record in store.all_records()}


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
        ("abcd", "", {}),
        ("", "ab", {}),
    ],
)
def test_each_row_has_the_answer_to_its_question(store: JobStore, before: str, now: str, kept: dict[int, str]) -> None:
    fill(store, before)
    assert bind(store, now) == Bound(len(now), len(before), len(kept))
    assert answers(store) == kept
    bind(store, before)  # nothing is dropped
    assert sorted(answers(store).values()) == [f"{one} {row}" for row, one in enumerate(before)]


def test_a_binding_that_is_interrupted_is_done_by_the_next_one(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "_PAGE", 2)
    fill(store, "abcdefgh")
    for pages in range(7):
        bind(store, "hgfedcba", halt_after=pages)
    bind(store, "hgfedcba")
    assert answers(store) == {at: f"{one} {7 - at}" for at, one in enumerate("hgfedcba")}


def test_answers_of_other_settings_and_failures_are_bound_to_no_other_row(store: JobStore) -> None:
    fill(store, "ab", settings=5)
    store.write([record_of(2, FAILURE, asked("c"))])
    assert bind(store, "cba").kept == 1
    assert answers(store) == {1: "b 1"}
    assert store.counts().requests == 2 + 2


def test_answers_stay_with_their_rows_where_all_questions_have_changed(store: JobStore) -> None:
    fill(store, "abc")
    bind(store, "xyz", by_row=True)
    assert answers(store) == {0: "a 0", 1: "b 1", 2: "c 2"}
    assert bind(store, "yzx").kept == 3
    assert answers(store) == {0: "b 1", 1: "c 2", 2: "a 0"}


def test_a_record_that_is_not_sound_is_bound_to_no_row(store: JobStore) -> None:
    fill(store, "abc")
    store.change(("UPDATE answer SET text = 'x' WHERE row = 1", [()]))
    bind(store, "bac")
    assert answers(store) == {1: "a 0", 2: "c 2"}


def test_answers_of_another_job_count_where_there_are_none_and_cost_nothing(store: JobStore, tmp_path: Path) -> None:
    other = JobStore(tmp_path / "other.db", create=True)
    other.write([record_of(row, Completion("theirs", cost=1.0), asked(one)) for row, one in enumerate("cba")])
    fill(store, "a")
    store.write([record_of(1, FAILURE, asked("b"))])
    found = Binding(store, [0])
    found.offer(other)
    found.note(list(enumerate(map(asked, "abcd"))))
    assert found.match() == Bound(4, 1, 3)
    found.apply(bool, Made(0, 3))
    assert answers(store) == {0: "a 0", 1: "theirs", 2: "theirs"}
    assert store.cost() == 0
    assert store.record(2).round == 3  # type: ignore[union-attr]
    other.close()


def test_twins_get_the_answer_of_one_row_and_another_one_is_sent_where_it_failed(store: JobStore) -> None:
    store.write([record_of(4, Completion("known"), asked("b"))])
    twins = Twins(store)
    twins.note(list(enumerate(map(asked, "abaaba"))))
    twins.find()
    assert twins.left_out(range(7)) == {1, 2, 3, 5}
    assert twins.page(-1, "0") == [(1, 4, 0, False), (2, 0, 0, False), (3, 0, 0, False), (5, 0, 0, False)]
    store.write([record_of(0, FAILURE, asked("a")), record_of(1, Completion("known"), asked("b"))])
    assert twins.page(1, "0")[0] == (2, 0, 0, False)
    assert twins.send_again()
    assert twins.left_out(range(7)) == {0, 1, 3, 4, 5, 6}
    assert twins.page(1, "0") == [(3, 2, 0, False), (5, 2, 0, False)]


def test_settings_are_known_by_what_they_are(store: JobStore) -> None:
    assert [store.settings_id({"a": one}) for one in ("x", "y", "x")] == [0, 1, 0]


def test_an_answer_that_is_replaced_is_set_aside_and_counts(store: JobStore) -> None:
    store.write([record_of(0, Completion("old", cost=0.5, attempts=1)), record_of(1, FAILURE)])
    store.write([record_of(0, Completion("new", cost=0.25, attempts=1)), record_of(1, FAILURE)], [0, 1])
    assert store.cost() == 0.75
    assert store.counts().requests == 1 + 1 + 2
    assert answers(store)[0] == "new"
