"""The outcome of a row as a record."""

from __future__ import annotations

from typing import Any

import pytest

from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT, Made, Record, copied, record_of

ANSWER = Completion('h\u00e4llo "x"\n\u2028\0', "length", Usage(3, 4), "hm", ({"id": "1"},), attempts=2, latency_s=0.25)
FAILURE = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=3, latency_s=1e-05, usage=Usage(1, 0))


def stored(store: JobDatabase, outcome: Outcome) -> Record:
    """Return the record of an outcome, from the database."""
    store.write([record_of(7 + SLOT, outcome, bytes(16), Made(3, 4))])
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
        Completion("a", logprobs={"content": []}, cost=0.5, answered_by="m"),
        Completion("a", details={"body": {"id": "x"}}, answers=("a", "b"), usage=Usage(1, 1, 1, 1)),
    ],
)
def test_an_answer_comes_back_whole(store: JobDatabase, outcome: Completion) -> None:
    assert stored(store, outcome).outcome() == outcome


def test_a_failure_comes_back_with_its_costs(store: JobDatabase) -> None:
    record = stored(store, FAILURE)
    found = record.outcome()
    assert isinstance(found, Failure)
    assert (found.error.code, found.attempts, found.latency_s, found.usage) == (Code.TIMEOUT, 3, 1e-05, Usage(1, 0))
    assert (record.text, record.retryable, record.more) == (str(FAILURE.error), 1, None)


def test_half_a_surrogate_pair_becomes_the_replacement_character(store: JobDatabase) -> None:
    record = stored(store, Completion("a\ud800b", tool_calls=({"name": "\udfff"},)))
    assert record.text == "a\ufffdb"
    assert record.extras["tool_calls"] == [{"name": "\ufffd"}]


def test_settings_that_changed_are_noted_in_answers() -> None:
    made = Made(changed=("model",))
    assert record_of(0, Completion("a"), made=made).extras == {"changed": ["model"]}
    assert record_of(0, FAILURE, made=made).extras == {}


def test_a_record_may_move_to_another_row_and_stays_sound() -> None:
    record = record_of(0, ANSWER, b"a" * 16)
    assert record._replace(key=5, asked=b"b" * 16, settings=2, round=9).is_sound
    changes: list[dict[str, Any]] = [{"text": "b"}, {"latency_s": 0.5}, {"code": "a"}, {"more": None}]
    for change in [*changes, {"reasoning": b"hm"}]:
        assert not record._replace(**change).is_sound, change


def test_a_copy_costs_nothing() -> None:
    body = {"body": {"id": "x", "usage": {"prompt_tokens": 3}}}
    copy = copied(Completion("a", "stop", Usage(3, 4), details=body, attempts=2, latency_s=0.5, cost=1.0), attempts=1)
    assert copy == Completion("a", "stop", Usage(0, 0), details={"body": {"id": "x"}}, attempts=1, cost=0.0)
    unknown = copied(Completion("a", usage=Usage(3, 4)))
    assert isinstance(unknown, Completion)
    assert unknown.cost is None, "where prices are unknown"
    failure = copied(Failure(FAILURE.error, 3, 1.0, Usage(1, 0), cost=1.0), 2)
    assert (failure.attempts, failure.latency_s, failure.usage, failure.cost) == (2, 0.0, Usage(0, 0), None)
