"""The outcome of a row as a record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT, Provenance, Record, record_of

ANSWER = Completion('h\u00e4llo "x"\n\u2028\0', "length", Usage(3, 4), "hm", ({"id": "1"},), attempts=2, latency_s=0.25)
FAILURE = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=3, latency_s=1e-05, usage=Usage(1, 0))


def stored(store: JobDatabase, outcome: Outcome) -> Record:
    """Return the record of an outcome, from the database."""
    store.write([record_of(7 + SLOT, outcome, bytes(16), Provenance(3, 4))])
    record = store.record(7 + SLOT)
    assert record is not None
    assert (record.row, record.slot, record.asked, record.settings, record.round) == (7, 1, bytes(16), 3, 4)
    return record


@pytest.mark.parametrize(
    "outcome",
    [
        ANSWER,
        Completion("a"),
        Completion(""),
        Completion("a", logprobs={"content": []}, probabilities={"": {"a": 0.5}}, cost=0.5, answered_by="m"),
        Completion("a", attempts=2, came="shared", shared=1),
        Completion("a", attempts=0, came="cached"),
        Completion("a", details={"body": {"id": "x"}}, answers=("a", "b"), usage=Usage(1, 1, 1, 1)),
    ],
)
def test_an_answer_comes_back_whole(store, outcome):
    assert stored(store, outcome).outcome() == outcome


def test_a_failure_comes_back_with_its_costs(store):
    record = stored(store, FAILURE)
    found = record.outcome()
    assert isinstance(found, Failure)
    assert (found.error.code, found.attempts, found.latency_s, found.usage) == (Code.TIMEOUT, 3, 1e-05, Usage(1, 0))
    assert (record.text, record.retryable, record.more) == (str(FAILURE.error), 1, None)


def test_a_failure_comes_back_with_the_part_of_an_answer_that_there_is(store):
    shares = {"a": {"yes": 0.75}}
    found = stored(store, replace(FAILURE, part="a", sources=["page 1"], probabilities=shares)).outcome()
    assert isinstance(found, Failure)
    assert (found.part, found.sources, found.probabilities) == ("a", ["page 1"], shares)


def test_half_a_surrogate_pair_becomes_the_replacement_character(store):
    record = stored(store, Completion("a\ud800b", tool_calls=({"name": "\udfff"},)))
    assert record.text == "a\ufffdb"
    assert record.extras["tool_calls"] == [{"name": "\ufffd"}]


def test_a_record_may_move_to_another_row_and_stays_sound():
    record = record_of(0, ANSWER, b"a" * 16)
    assert record._replace(key=5, asked=b"b" * 16, settings=2, round=9).is_sound
    changes: list[dict[str, Any]] = [{"text": "b"}, {"latency_s": 0.5}, {"code": "a"}, {"more": None}]
    for change in [*changes, {"reasoning": b"hm"}]:
        assert not record._replace(**change).is_sound, change


def test_all_counts_of_tokens_are_kept():
    answer = Completion("a", usage=Usage(60, 5, 20, 3, 30, 10))
    assert record_of(1, answer).outcome().usage == answer.usage
