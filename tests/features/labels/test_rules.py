"""The rules that select the rows of rounds of votes and of sure labels."""

from __future__ import annotations

import pytest

from promptmill.backends.protocol import Completion, Failure, Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT, Provenance, record_of
from promptmill.jobs.store.rounds import Round, join_of

ANSWER, FAILURE = Completion("a", "stop"), Failure(PromptmillError(Code.BAD_REQUEST, "No."), attempts=1)
NOW = 5


@pytest.fixture
def rows(store: JobDatabase) -> JobDatabase:
    """Return a job with three rows, of which the first is of the sample, the second trains, and the third is sure."""
    store.change(
        ("INSERT INTO row VALUES (?, NULL, NULL, '')", [(n,) for n in range(3)]),
        ("INSERT INTO chosen VALUES (?, ?)", [(1, 0), (-1, 1)]),
        ("CREATE TEMP TABLE sure (n INTEGER)", [()]),
        ("INSERT INTO temp.sure VALUES (2)", [()]),
    )
    return store


def selected(store: JobDatabase, rule: str, slot: int = 0) -> list[int]:
    condition = Round(NOW, rule, "").condition([0], slot)
    return [n for (n,) in store.read(f"SELECT n FROM {join_of(slot)} WHERE {condition} ORDER BY n")]


@pytest.mark.parametrize(("rule", "expected"), [("chosen", [0]), ("taught", [1]), ("sure", [2]), ("voted", [])])
@pytest.mark.parametrize("outcome", [ANSWER, FAILURE])
def test_a_row_leaves_a_rule_once_its_round_has_recorded_it(rows, rule, expected, outcome: Outcome):
    assert selected(rows, rule) == expected
    rows.write([record_of(n, outcome, None, Provenance(0, NOW)) for n in range(3)])
    assert selected(rows, rule) == []


def test_answers_of_other_settings_are_no_labels_of_the_sample(rows):
    rows.write([record_of(0, ANSWER, None, Provenance(7, 1))])
    assert selected(rows, "chosen") == [0]


def test_a_cheap_model_answers_rows_without_a_label(rows):
    rows.write([record_of(0, ANSWER, None, Provenance(0, 1)), record_of(1 + SLOT, ANSWER, None, Provenance(0, 1))])
    assert selected(rows, "cheap", 1) == [2]


def test_a_newer_vote_decides_again(rows):
    rows.write([record_of(0, ANSWER, None, Provenance(0, 2)), record_of(1, ANSWER, None, Provenance(0, 2))])
    rows.write(
        [record_of(0 + SLOT, ANSWER, None, Provenance(0, 1)), record_of(1 + 2 * SLOT, ANSWER, None, Provenance(0, 3))]
    )
    assert selected(rows, "voted") == [1]
