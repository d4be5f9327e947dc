"""The rules that select the rows of a round, and the rounds that a job stores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from promptmill.backends.protocol import Completion, Outcome
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import WITHOUT
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT, Provenance, record_of
from promptmill.jobs.store.rounds import RULES, Round, awaited, begin_way, join_of, store_round, stored_rounds
from rounds_bench import FINAL, PASSING

ANSWER, TRUNCATED = Completion("a", "stop"), Completion("a", "length")
SINCE, NOW = 4, 5
STATES: list[tuple[str, Outcome | None, Provenance]] = [
    ("missing", None, Provenance()),
    ("answer", ANSWER, Provenance(0, 1)),
    ("of other settings", ANSWER, Provenance(7, 1)),
    ("truncated", TRUNCATED, Provenance(0, SINCE)),
    ("truncated now", TRUNCATED, Provenance(0, NOW)),
    ("final", FINAL, Provenance(0, SINCE)),
    ("final now", FINAL, Provenance(0, NOW)),
    ("passing", PASSING, Provenance(0, SINCE)),
    ("passing now", PASSING, Provenance(0, NOW)),
    ("answer now", ANSWER, Provenance(0, NOW)),
]


def selected(store: JobDatabase, rows: str, slot: int) -> list[str]:
    """Return the states of the rows that a rule selects."""
    condition = Round(NOW, rows, "", since=SINCE).condition([0, 3], slot)
    return [STATES[n][0] for (n,) in store.read(f"SELECT n FROM {join_of(slot)} WHERE {condition} ORDER BY n")]


@pytest.mark.parametrize("slot", [0, 2])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("open", "missing, of other settings, passing"),
        ("again failed", "final, passing"),
        ("again truncated", "truncated"),
        ("again all", "missing, answer, of other settings, truncated, final, passing"),
    ],
)
def test_a_rule_selects_rows_by_their_answer_in_the_slot(store, rows, slot, expected):
    store.change(("INSERT INTO row VALUES (?, NULL, NULL, '')", [(n,) for n in range(len(STATES))]))
    for n, (_, outcome, made) in enumerate(STATES):
        if outcome is not None:
            store.write([record_of(n + slot * SLOT, outcome, None, made)])
        others = (n + other * SLOT for other in range(3) if other != slot)  # which would select no row
        store.write([record_of(key, ANSWER, None, Provenance(0, NOW)) for key in others])
    assert selected(store, rows, slot) == expected.split(", ")


@pytest.mark.parametrize("rows", [*RULES])
@pytest.mark.parametrize("outcome", [ANSWER, TRUNCATED, FINAL, PASSING])
def test_a_row_leaves_every_rule_once_its_round_has_recorded_it(store, rows, outcome):
    store.change(("INSERT INTO row VALUES (0, NULL, NULL, '')", [()]))
    store.write([record_of(0, outcome, None, Provenance(0, NOW))])
    assert selected(store, rows, 0) == []


@pytest.mark.parametrize(
    "value",
    [
        "{",
        "[]",
        "{}",
        '{"rows": "1) OR (1", "reason": ""}',
        '{"rows": "open", "reason": "", "slots": ["x"]}',
        '{"rows": "open", "reason": "", "slots": [-1]}',
        '{"rows": "open", "reason": "", "slots": []}',
        '{"rows": "open", "reason": "", "since": "soon"}',
    ],
)
def test_a_damaged_round_counts_as_done_and_keeps_its_place(store, value):
    store_round(store, Round(1, "open", "first"))
    store.change(("INSERT INTO round VALUES (2, ?)", [(value,)]))
    assert [(round_.id, round_.done) for round_ in stored_rounds(store)] == [(1, False), (2, True)]


def test_a_round_by_the_way_of_a_missing_feature_is_an_error_until_it_is_done(store, monkeypatch):
    monkeypatch.setenv(WITHOUT, "all")
    asked = Round(1, "open", "batch", way="batch")
    store_round(store, asked)
    with pytest.raises(PromptmillError, match="`batch` needs a feature that is not installed"):
        awaited(store)
    store_round(store, replace(asked, done=True))
    assert awaited(store) == {}


@pytest.mark.features("batches")
def test_a_batch_is_awaited_although_its_round_is_damaged(store):
    assert awaited(store) == {}
    begin_way(store, "batch")
    store.change(('INSERT INTO batch VALUES (1, \'{"state": "sent", "key": "a", "round": 1}\')', [()]))
    store.change(("INSERT INTO round VALUES (1, 'damaged')", [()]))
    assert [way.slots(store) for way in awaited(store).values()] == [{0}]
