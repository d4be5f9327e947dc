"""A student in place of the cheap model: what it learns, and jobs whose rows it answers, also after a kill."""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections import Counter
from typing import Any
from unittest import mock
from zlib import crc32

import pytest

import promptmill
from promptmill.core.errors import PromptmillError
from promptmill.features.labels import student as classifier
from promptmill.features.labels import student_answers, sure_work
from promptmill.features.labels.cut import number
from promptmill.features.labels.student import STUDENTS, RowText, Student, VectorStudent, buckets_of
from replies import answer, choose, status
from topics import (
    MOST_WRONG,
    POINTS,
    ROWS,
    STUDENT,
    TOPICS,
    drawn,
    named,
    row,
    sent,
    strong,
    text,
    topic,
    wrong,
)


@pytest.fixture
def student(bench):
    """Return a bench with `ROWS` rows, an endpoint with the strong model, and students of small tables."""
    bench.upstream.reply = choose(strong)
    bench.write([{"id": f"r{n}", "text": text(n)} for n in range(ROWS)])
    with mock.patch.multiple(student_answers, FEWEST_ROWS=1_000, _FEWEST_TAUGHT=200):
        yield bench


def run(bench: Any, *more: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = bench.succeed(*STUDENT, *named(bench), *more, **options)
    return found


# ---- the classifier


KINDS = pytest.mark.parametrize("kind", STUDENTS.values())


@pytest.mark.thorough
@KINDS
def test_a_student_learns_which_words_decide(kind):
    learned = kind([(row(f"Which topic? {text(n)}"), topic(text(n))) for n in range(800)])
    answers = learned.answers([row(f"Which topic? {text(n)}") for n in range(1_000, 1_400)])
    found = [(answer, topic(text(n))) for n, answer in enumerate(answers, 1_000)]
    right = [one is not None and one[0] == label for one, label in found]
    assert sum(right) >= 0.85 * len(right)
    surest = sorted(found, key=lambda one: -(one[0] or ("", 0.0))[1])[:200]
    assert sum(one is not None and one[0] == label for one, label in surest) >= 0.97 * 200


@KINDS
def test_a_student_that_learned_the_same_answers_the_same(kind):
    examples = [(row(text(n)), topic(text(n))) for n in range(200)]
    texts = [row(text(n)) for n in range(200, 250)]
    assert kind(examples).answers(texts) == kind(examples).answers(texts)


@KINDS
def test_a_student_without_examples_or_with_one_label_says_so(kind):
    assert kind([]).answers([row("anything")]) == [None]
    assert kind([(row("a b"), "yes"), (row("c d"), "yes")]).answers([row("e")]) == [("yes", 1.0)]


class EndedError(Exception):
    """The job has ended."""


@KINDS
def test_a_student_stops_learning_when_its_job_ends(kind):
    def check() -> None:
        raise EndedError

    with pytest.raises(EndedError):
        kind([(row(text(n)), topic(text(n))) for n in range(200)], check)


def test_learning_that_cannot_be_interrupted_is_abandoned():
    job_ends = iter([False, False, True])
    learned = threading.Event()

    def check() -> None:
        if next(job_ends):
            raise EndedError

    with mock.patch.object(classifier, "_LOOK_S", 0.001), pytest.raises(EndedError):
        classifier._abandonable(learned.wait, check)
    assert not learned.is_set()
    learned.set()


def test_an_error_of_scikit_learn_is_not_lost_in_its_thread():
    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        classifier._abandonable(fail, lambda: None)


def test_texts_without_spaces_have_words_too():
    assert len(buckets_of("质量很好", 1 << 18)) == 7
    assert buckets_of("", 1 << 18) == []
    assert len(buckets_of("Good good GOOD", 1 << 18)) == 3, "` goo`, `good` and `ood `"


def test_of_many_labels_the_most_frequent_are_learned():
    examples = [(RowText(f"word{n % 7}"), f"label {n % 7}") for n in range(30)]
    with mock.patch.object(classifier, "MOST_LABELS", 2):
        assert Student(examples).labels == ["label 0", "label 1"]


# ---- jobs


def test_the_student_answers_rows_at_no_price(student):
    found = run(student)
    rows, sure = student.answers(), found["sure"]
    givers = Counter(row["sure"] for row in rows)
    assert sent(student) == {"strong": givers["strong"] + givers["sample"]}
    assert (sure["sample"]["taught"], givers["sample"]) == (200, sure["sample"]["drawn"])
    assert sure["cheap"] == givers["student"] > ROWS / 2
    assert sure["factor"] == round(ROWS / sure["strong"], 2) > 2
    assert wrong(rows) <= MOST_WRONG
    assert all(row["answer"] == topic(row["text"]) for row in rows if row["sure"] != "student")
    assert found["done"] == found["requests"] + sure["cheap"] == ROWS
    assert found["cost"] == pytest.approx(sure["expected"]["cost_alone"] * sure["strong"] / ROWS, rel=0.01)
    scores = {
        name: [row["score"] for row in rows if row["sure"] == name and row["score"] is not None] for name in givers
    }
    assert min(scores["student"]) >= max(scores["strong"], default=0)
    student.upstream.seen.clear()
    run(student)
    assert not student.upstream.seen


def test_a_missing_extra_and_another_student_are_named(student, monkeypatch):
    done = student.run("--student", "oracle", *STUDENT[:-2], *named(student))
    assert done.returncode == 2
    assert "oracle: give it one of embeddings, words, or nothing" in done.stderr
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(PromptmillError, match="needs scikit-learn") as error:
        VectorStudent.version()
    assert "student" in error.value.hint


def test_no_row_both_trains_the_student_and_is_in_the_sample(student):
    run(student)
    with sqlite3.connect(student.folder.database) as database:
        chosen = database.execute("SELECT round > 0, n FROM chosen").fetchall()
    (part,) = student.folder.known_spec().plan.parts
    assert Counter(is_sample for is_sample, _ in chosen) == {0: part.taught, 1: part.drawn}
    assert len({n for _, n in chosen}) == len(chosen)
    assert part.rows + part.taught == ROWS
    assert part.wrong == ROWS // 20


def test_labels_that_do_not_follow_from_the_words_do_not_pay(student, monkeypatch):
    # one draw: in another one of seven, the few surest guesses of the sample are right by chance
    monkeypatch.setattr(sure_work, "digest", lambda _job, *part: repr(part))
    monkeypatch.setattr(student_answers, "number", lambda what, _job, n: number(what, n))
    student.upstream.reply = choose(lambda seen: answer([*TOPICS][crc32(seen.prompt.encode()) % 3]))
    found = run(student)
    assert not found["sure"]["expected"]["pays"]
    assert sent(student) == {"strong": ROWS}
    done = student.run(*STUDENT, *named(student), "--again", "failed")
    assert "did not pay" in done.stdout
    assert found["sure"]["factor"] == 1


def test_a_small_table_is_answered_by_the_strong_model(student):
    student.write([{"id": n, "text": text(n)} for n in range(900)])
    found = run(student)
    assert sent(student) == {"strong": 900}
    assert found["sure"]["sample"]["drawn"] == 0


@pytest.mark.thorough
def test_rows_that_are_added_later_have_a_sample_of_their_own(student):
    run(student)
    first = student.folder.known_spec().plan.parts
    student.write([{"id": f"r{n}", "text": text(n)} for n in range(2 * ROWS)])
    found = run(student)
    parts = student.folder.known_spec().plan.parts
    assert parts[0] == first[0]
    assert (parts[1].taught, parts[1].seed != parts[0].seed) == (200, True)
    assert (found["sure"]["rows"], found["sure"]["sample"]["taught"]) == (2 * ROWS, 400)
    assert wrong(student.answers()) <= MOST_WRONG


@pytest.mark.thorough
def test_a_student_whose_examples_change_answers_no_more_rows(student):
    done = student.run(*STUDENT, *named(student), "--limit", "1200")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(student.folder.database) as database:
        ((taught,),) = database.execute("SELECT min(n) FROM chosen WHERE round < 0")
        database.execute("UPDATE answer SET settings = -1 WHERE key = ?", (taught,))  # a person's label
        database.execute("DELETE FROM answer WHERE settings = (SELECT max(settings) FROM answer)")
    student.output.unlink()
    student.upstream.seen.clear()
    run(student, "--limit", "1200")
    (part,) = student.folder.known_spec().plan.parts
    assert part.is_ended
    assert student.upstream.seen
    assert wrong(student.answers()) <= MOST_WRONG


@pytest.mark.thorough
def test_rows_that_fail_at_the_strong_model_train_nothing(student):
    def reply(seen: Any) -> Any:
        return status(400, "No.", code="content_filter") if "number 7" in seen.prompt else answer(topic(seen.prompt))

    student.upstream.reply = choose(reply)
    result = student.run(*STUDENT, *named(student), "--json")
    found = json.loads(result.stdout)
    assert found["failed"] == sum(row["error"] is not None for row in student.answers()) > 0
    assert found["sure"]["expected"]["pays"]


@pytest.mark.thorough
def test_validate_and_the_summary_say_what_it_takes(student):
    done = student.run(*STUDENT, *named(student), "--dry-run")
    assert "training: 200 rows, sample: " in done.stdout
    assert not student.upstream.seen
    done = student.run(*STUDENT, *named(student))
    said = " ".join(done.stdout.split())
    assert "a student of words learned from 200 answers of strong" in said
    assert "labels by the student" in said
    assert "times fewer paid calls" in said


def test_a_program_may_have_a_student(student):
    found = promptmill.bulk(
        [{"text": text(n)} for n in range(ROWS)],
        prompt="Which topic? {{text}}",
        choices=[*TOPICS],
        base_url=student.upstream.url,
        sure="strong",
        student="words",
        progress=False,
    )
    assert found.status["sure"]["factor"] > 2
    assert {row["sure"] for row in found.rows} == {"student", "sample", "strong"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--second", "small-2"), "--student cannot be used with --second"),
        (("--votes", "3"), "--student cannot be used with --votes"),
        (("--model", "small"), "--student cannot be used with --model"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(student, options, problem):
    assert problem in student.fail(*STUDENT, *options)
    assert not student.upstream.seen


def test_it_needs_a_strong_model(student):
    assert "--student needs --sure MODEL" in student.fail("--prompt", "{{text}}", "--student")


@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_job_draws_learns_and_cuts_the_same(bench, point):
    bench.upstream.reply = choose(strong)
    rows = 5_200  # a student needs so many
    bench.write([{"id": f"r{n}", "text": text(n)} for n in range(rows)])
    first = bench.run(*STUDENT, *named(bench), killed_at=point)
    assert first.returncode in {-9, 0}, first.stderr
    before, chosen = bench.folder.known_spec().plan.parts, drawn(bench)
    found = run(bench)
    (part,) = bench.folder.known_spec().plan.parts
    if before and before[0].cut is not None:
        assert before[0] == part
    if before:
        assert drawn(bench) == chosen
    assert not part.is_ended
    assert found["done"] == rows
    assert len(bench.upstream.seen) <= found["sure"]["strong"] + 3 * 64  # requests in flight, and outcomes of a batch
    assert wrong(bench.answers()) <= MOST_WRONG
