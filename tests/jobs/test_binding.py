"""Answers belong to questions: rows that are edited, added, removed and moved keep theirs."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from job_specs import spec_of
from promptmill.backends.protocol import Completion, Failure, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict
from promptmill.jobs.store import binding, statistics
from promptmill.jobs.store.binding import BLOCK_ROWS, Bound, Former
from promptmill.jobs.store.database import COLUMNS, JobDatabase, Row
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.records import PERSON, SLOT, Provenance, Record, record_of
from promptmill.system.runtime import HaltedError

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
    choices: Sequence[str] = (),
    schema: JsonDict | None = None,
    **options: Any,
) -> Bound:
    """Bind the answers to rows that ask this, in place of those with the numbers `replaced`."""
    binding.begin(store)
    rows = [(n, asked(one), None, one.encode()) for n, one in enumerate(questions, replaced.start)]
    store.change(("INSERT INTO row_next VALUES (?, ?, ?, ?)", rows))
    spec = spec_of("jsonl").with_output(choices=tuple(choices), answer_schema=schema)
    spec = spec.model_copy(update={"targets": tuple(targets), "to_bind": "rows" if by_row else None})
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


def record(key: int, question: str, text: str, settings: int = 0) -> Record:
    """Return the record of an answer."""
    return record_of(key, Completion(text), asked(question), Provenance(settings))


def spare(store: JobDatabase) -> list[str]:
    """Return the texts of the spare answers."""
    return sorted(text for (text,) in store.read("SELECT text FROM spare"))


def test_a_row_gets_the_latest_of_two_spare_answers(store):
    for text in ("old", "new"):
        store.write([record(0, "a", text)])
        bind(store, "x")
    assert spare(store) == ["new", "old"]
    assert bind(store, "xa").kept == 1
    assert answers(store) == {1: "new"}
    assert spare(store) == ["old"]


def test_a_loose_answer_comes_before_a_spare_one(store):
    fill(store, "a")
    bind(store, "x")
    store.write([record(0, "a", "later")])
    bind(store, "xa")
    assert answers(store) == {1: "later"}


def test_answers_without_a_row_are_spare_over_several_changes(store):
    fill(store, "abcd")
    for rows in ("wxyz", "w", "vwx"):
        bind(store, rows)
        assert (answers(store), spare(store)) == ({}, ["a 0", "b 1", "c 2", "d 3"])
    assert bind(store, "dcba").new == 0
    assert spare(store) == []
    assert bind(store, "dcbae").new == 1


def test_a_failed_row_gets_no_answer_of_its_own_job(store):
    store.write([record(0, "b", "b"), record_of(1, FAILURE, asked("b"))])
    assert bind(store, "cb") == Bound(2, 1, 0)
    assert [one.code for one in store.sound_records()] == ["timeout"]
    assert spare(store) == ["b"]


def test_rows_in_a_window_change_in_each_slot_and_others_do_not(store):
    targets = [Target(), Target(prompt=1, settings=1)]
    fill(store, "abcd")
    fill(store, "stuv", settings=1, slot=1)
    assert bind(store, ["as", "bt", "cu", "dv"], targets).new == 0
    assert bind(store, ["cx", "yu"], targets, replaced=range(1, 3)) == Bound(8, 8, 6)
    assert answers(store) == {0: "a 0", 1: "c 2", 3: "d 3"} | {SLOT: "s 0", SLOT + 2: "u 2", SLOT + 3: "v 3"}
    assert spare(store) == ["b 1", "t 1"]
    assert store.read("SELECT name FROM sqlite_master WHERE name = 'row_next'") == []


def test_the_stretches_of_an_input_replace_those_of_the_one_before_with_its_rows(store):
    for rows in ("ab", "abc"):
        store.change(("INSERT INTO job VALUES ('stretches_next', '{\"of\": []}')", [()]))
        bind(store, rows)
        ((name, value),) = store.read("SELECT name, value FROM job WHERE name LIKE 'stretches%'")
        assert (name, json.loads(value)) == ("stretches", {"of": [], "rows": len(rows)})


def test_answers_stay_with_their_rows_in_each_slot_where_all_prompts_have_changed(store):
    targets = [Target(), Target(prompt=1, settings=1)]
    fill(store, "ab")
    fill(store, "st", settings=1, slot=1)
    assert bind(store, ["cx", "dy"], targets, by_row=True).kept == 4
    assert bind(store, ["dy", "cx"], targets).kept == 4
    assert answers(store) == {0: "b 1", 1: "a 0", SLOT: "t 1", SLOT + 1: "s 0"}


def test_an_answer_whose_row_is_gone_keeps_its_question_where_all_others_have_changed(store):
    fill(store, "abc")
    assert bind(store, "xy", by_row=True).kept == 2
    assert bind(store, "c").kept == 1
    assert answers(store) == {0: "c 2"}


def test_an_answer_outside_the_window_stays_whatever_its_row_asks(store):
    bind(store, "ab")
    store.write([record(0, "z", "kept"), record(1, "b", "b")])
    assert bind(store, "cz", replaced=range(1, 3)).kept == 1
    assert answers(store) == {0: "kept"}


def test_a_row_with_an_answer_takes_no_spare_one_in_any_slot(store):
    targets = [Target(), Target(prompt=1, settings=1)]
    fill(store, "aa")
    fill(store, "ss", settings=1, slot=1)
    assert bind(store, ["as", "xy"], targets) == Bound(4, 4, 2)
    assert bind(store, ["as", "xy"], targets) == Bound(4, 2, 2)
    assert answers(store) == {0: "a 0", SLOT: "s 0"}
    assert spare(store) == ["a 1", "s 1"]


def test_the_blocks_of_the_output_with_a_changed_row_are_written_again(store):
    rows = ["a"] * (3 * BLOCK_ROWS)
    bind(store, rows)
    store.change(("INSERT INTO job VALUES ('written', '[]')", [()]))

    def edited() -> list[int]:
        return [block for (block,) in store.read("SELECT block FROM edited ORDER BY block")]

    bind(store, rows)
    assert edited() == []
    changed = [*rows]
    changed[BLOCK_ROWS] = changed[BLOCK_ROWS + 1] = "b"
    bind(store, changed)
    assert edited() == [1]
    bind(store, rows[: BLOCK_ROWS + 1])  # the second block is shorter, and the third is gone
    assert edited() == [1, 2]
    store.change(("DELETE FROM edited", [()]))
    bind(store, ["a", "a"], replaced=range(BLOCK_ROWS + 1, BLOCK_ROWS + 3))
    assert edited() == [1], "added rows"
    store.change(("DELETE FROM edited", [()]))
    bind(store, ["a"], replaced=range(1))
    assert edited() == []


def borrowed(tmp_path: Path, *records: Record, schema: JsonDict | None = None) -> JobDatabase:
    """Return another job's database with these records."""
    (tmp_path / "other").mkdir()
    other = JobDatabase(tmp_path / "other" / "job.db", write=True)
    other.put(spec=spec_of("jsonl").with_output(answer_schema=schema).model_dump(mode="json"))
    other.write([*records])
    return other


def test_rows_without_an_answer_get_those_of_another_job_which_cost_nothing(store, tmp_path):
    paid = record_of(7, Completion("b", cost=2.0, usage=Usage(5, 5)), asked("b"), Provenance(3, 4))
    other = borrowed(tmp_path, paid, record(8, "c", "c"), record(9, "-", "-"), record_of(10, FAILURE, asked("d")))
    store.write([record(0, "a", "own"), record_of(1, FAILURE, asked("b"))])
    targets = [Target(settings=5, kept=(0,))]
    assert bind(store, "abde", targets, others=[other], since=6) == Bound(4, 1, 2, (1,))
    own, copy = [one for one in store.sound_records() if one.code is None]
    assert (own.text, copy.text, copy.row) == ("own", "b", 1)
    assert (copy.settings, copy.round, copy.outcome().cost, copy.attempts) == (5, 6, 0.0, 0)
    assert spare(store) == [], "copies that no row wants are not kept"
    assert bind(store, "bbbb", targets).kept == 1
    other.close()


def test_an_own_spare_answer_comes_before_one_of_another_job(store, tmp_path):
    fill(store, "a")
    bind(store, "x")
    other = borrowed(tmp_path, record(0, "a", "other"), record(1, "a", "second"))
    assert bind(store, "xaaa", others=[other]).kept == 3
    assert answers(store) == {1: "a 0", 2: "other", 3: "second"}
    other.close()


def test_a_copy_of_which_an_own_answer_takes_the_place_is_not_kept(store, tmp_path):
    fill(store, "b")
    other = borrowed(tmp_path, record(0, "b", "other"), record(1, "b", "second"))
    assert bind(store, "xb", others=[other]).taken == (0,)
    assert (answers(store), spare(store)) == ({1: "b 0"}, [])
    other.close()


def test_a_damaged_answer_or_one_of_a_further_slot_is_not_taken_from_another_job(store, tmp_path):
    other = borrowed(tmp_path, record(0, "a", "damaged"), record(SLOT, "b", "second model"))
    other.change(("UPDATE answer SET text = 'x' WHERE key = 0", [()]))
    assert bind(store, "ab", others=[other]).kept == 0
    other.close()


def test_answers_of_several_jobs_are_taken_if_they_are_among_the_choices(store, tmp_path):
    (tmp_path / "first").mkdir()
    first = borrowed(tmp_path / "first", record(0, "a", "yes"), record(1, "b", "gone"))
    second = borrowed(tmp_path, record(0, "b", "<think>Hm.</think>no"), record(1, "c", "maybe", PERSON))
    assert bind(store, "abc", choices=("yes", "no"), others=[first, second]) == Bound(3, 0, 3, (1, 2))
    assert answers(store) == {0: "yes", 1: "<think>Hm.</think>no", 2: "maybe"}
    first.close()
    second.close()


def test_answers_of_another_form_are_not_taken(store, tmp_path):
    texts = {"a": '{"x": "1"}', "b": '{"x": "1", "y": "2"}', "c": '{"x": "3", "y": "2"}', "d": "free"}
    records = [record(n, one, text) for n, (one, text) in enumerate(texts.items())]
    x, y = {"x": {"enum": ["1", None]}}, {"y": {"type": "string"}}
    other = borrowed(tmp_path, *records, schema={"properties": {"x": {}}})
    now = {"type": "object", "properties": x | y}
    assert bind(store, "abcd", others=[other], schema=now).kept == 1
    assert answers(store) == {1: texts["b"]}
    other.close()


def test_answers_of_the_same_form_are_taken_as_they_are(store, tmp_path):
    schema = {"type": "object", "properties": {"x": {}, "y": {}}}
    other = borrowed(tmp_path, record(0, "a", '{"x": 1}'), record(1, "b", "a tool's"), schema=schema)
    assert bind(store, "ab", others=[other], schema=schema).kept == 2
    other.close()


def test_models_that_are_compared_get_answers_of_models_alone_from_another_job(store, tmp_path):
    label = record(0, "a", "label", PERSON)
    other = borrowed(tmp_path, label, record(1, "b", "first"), record(SLOT + 1, "b", "second"))
    bind(store, "ab", [Target(), Target(settings=1)], others=[other])
    assert answers(store) == {1: "first", SLOT + 1: "second"}
    other.close()


@pytest.mark.parametrize("models", [1, 2])
def test_a_label_of_a_person_is_taken_from_another_job_unless_models_are_compared(store, tmp_path, models):
    other = borrowed(tmp_path, record(0, "a", "label", PERSON))
    targets = [Target(settings=slot) for slot in range(models)]
    bind(store, "a", targets, others=[other])
    found = [(one.text, one.settings) for one in store.sound_records()]
    assert found == ([("label", PERSON)] if models == 1 else [])
    other.close()


def test_a_label_of_a_person_answers_the_first_slot_alone(store):
    targets = [Target(), Target(settings=1)]
    store.write([record(0, "a", "label", PERSON), record(SLOT, "a", "second label", PERSON)])
    bind(store, "xa", targets)
    assert answers(store) == {1: "label"}


def test_numbers_of_rows_may_have_gaps(store):
    store.write([record_of(n, Completion(f"{n}"), asked(one)) for n, one in ((2, "a"), (5, "b"))])
    binding.begin(store)
    rows = [(n, asked(one), None, b"") for n, one in ((1, "b"), (4, "a"), (7, "c"))]
    store.change(("INSERT INTO row_next VALUES (?, ?, ?, ?)", rows))
    assert binding.bind(store, spec_of("jsonl")) == Bound(3, 2, 2)
    assert answers(store) == {1: "5", 4: "2"}


def former(*rows: str) -> Former:
    """Return a question that was asked about the rows with these cells. Of an answer, a row reuses the text before
    `:`, as a whole answer if the text ends with `+`; it reuses nothing of an answer without `:`."""

    def question(row: Row) -> bytes | None:
        cells = (row.cells or b"").decode()
        return asked(cells.lower()) if cells in rows else None

    def outcome(record: Record) -> Completion | Failure | None:
        text, colon, _ = record.text.partition(":")
        if not colon:
            return None
        if text.endswith("+"):
            return Completion(text, cost=9.0)
        return Failure(PromptmillError(Code.BATCHED, "It lacks a field."), part=text, cost=9.0)

    return Former(question, outcome)


def earlier(key: int, question: str, text: str, settings: int = 0) -> Record:
    """Return the record of an answer that cost something."""
    outcome = Completion(text, usage=Usage(7, 5), attempts=2, latency_s=1.5, cost=2.0, made_of=3)
    return record_of(key, outcome, asked(question), Provenance(settings, 4))


def parts(store: JobDatabase) -> dict[int, tuple[str, bool]]:
    """Return what each row has: the text of its answer or of its part, and whether this is a whole answer."""
    found = {one.key: one.outcome() for one in store.sound_records()}
    return {key: (one.text, True) if isinstance(one, Completion) else (one.part, False) for key, one in found.items()}


def costs_of_spare(store: JobDatabase) -> dict[str, float | None]:
    """Return the cost of each spare answer by its text."""
    records = [Record._make(columns) for columns in store.read(f"SELECT {COLUMNS} FROM spare")]
    assert all(record.is_sound for record in records)
    return {record.text: record.outcome().cost for record in records}


def test_rows_reuse_parts_of_the_answers_to_a_former_question_with_their_cost(store):
    records = earlier(0, "a", "1+:2"), earlier(1, "b", "1:2"), earlier(2, "c", "nothing"), earlier(3, "d", "5+:6")
    store.write([*records])
    bound = bind(store, "ABCDE", [Target(settings=8, kept=(0,))], former=lambda _: [former(*"ABCE")], since=6)
    assert (bound, bound.new) == (Bound(5, 4, 1, (), 1), 3)
    assert parts(store) == {0: ("1+", True), 1: ("1", False)}
    for record in store.sound_records():
        outcome = record.outcome()
        assert (outcome.cost, outcome.usage, outcome.attempts, outcome.latency_s) == (2.0, Usage(7, 5), 2, 1.5)
        assert (outcome.wanted, record.asked) == (3, asked("AB"[record.row]))
        assert (record.settings, record.round) == (8, 6)
    assert costs_of_spare(store) == {"1+:2": 0.0, "1:2": 0.0, "nothing": 2.0, "5+:6": 2.0}


def test_a_part_of_an_unused_answer_takes_its_cost_along(store):
    store.write([earlier(0, "a", "1+:2"), earlier(1, "b", "3+:4"), earlier(2, "a", "7+:8", settings=9)])
    bind(store, "zz")
    assert bind(store, "zA", former=lambda _: [former("A")]) == Bound(2, 0, 1)
    assert parts(store) == {1: ("1+", True)}
    assert costs_of_spare(store) == {"1+:2": 0.0, "3+:4": 2.0, "7+:8": 2.0}, "the last has other settings"


def test_each_answer_without_a_row_gives_a_part_to_one_row_that_has_none_in_the_order_of_the_rows(store):
    own = earlier(0, "d", "9+:9"), earlier(9, "B", "own")
    store.write([*own, earlier(7, "a", "1+:2"), earlier(8, "a", "3+:4"), earlier(10, "b", "5+:6")])
    store.write([earlier(11, "d", "7+:8", settings=9)])
    rows = ["d", "B", "A", "x", "A", "A", "D", "-"]
    assert bind(store, rows, former=lambda _: [former("A", "B", "D", "-")]).kept == 4
    assert parts(store) == {0: ("9+:9", True), 1: ("own", True), 2: ("1+", True), 4: ("3+", True)}


def test_a_damaged_answer_gives_no_part(store):
    store.write([earlier(0, "a", "1+:2"), earlier(1, "b", "3+:4")])
    store.change(("UPDATE answer SET text = '9+:9' WHERE key = 0", [()]))
    assert bind(store, "AB", former=lambda _: [former("A", "B")]) == Bound(2, 2, 1)
    assert parts(store) == {1: ("3+", True)}


def test_a_label_of_a_person_gives_a_part_too(store):
    store.write([earlier(0, "a", "1+:2", PERSON)])
    assert bind(store, "A", former=lambda _: [former("A")]).kept == 1


def test_parts_of_the_answers_of_other_jobs_cost_nothing(store, tmp_path):
    other = borrowed(
        tmp_path,
        earlier(0, "b", "1+:2"),
        earlier(1, "c", "3:4"),
        earlier(2, "D", "whole"),
        record_of(3, Completion("5+:6")),
    )
    store.write([earlier(0, "A", "own"), earlier(1, "e", "5+:6"), record_of(3, FAILURE, asked("D"))])
    questions = [former("B", "C", "E"), former("A", "E")]
    assert bind(store, "ABCDE", others=[other], former=lambda _: questions) == Bound(5, 2, 4, (3,), 1)
    assert parts(store) == {0: ("own", True), 1: ("1+", True), 2: ("3", False), 3: ("whole", True), 4: ("5+", True)}
    costs = {one.row: one.outcome().cost for one in store.sound_records()}
    assert costs == {0: 2.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 2.0}
    assert {one.text for one in other.sound_records()} == {"1+:2", "3:4", "whole", "5+:6"}
    assert bind(store, "ABCDE", others=[other], former=lambda _: [None, former("A")]).taken == (0,)
    other.close()


def test_an_answer_of_a_failed_row_is_kept_apart_from_parts(store):
    """The row of a failure that stays is sent again, and gets no part of an answer."""
    store.write([earlier(0, "a", "1+:2"), record_of(1, FAILURE, asked("A"))])
    assert bind(store, "xA", former=lambda _: [former("A")]).kept == 0
    assert parts(store) == {1: ("", False)}
