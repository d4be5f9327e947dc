"""The outcome of a row as a record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import PERSON, SLOT, Provenance, Record, record_of

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
        Completion("a", made_of=3, sources={"n": {"quote": "a"}}),
        Completion("", vectors=(b"\0\0\x80?",)),
    ],
)
def test_an_answer_comes_back_whole(store, outcome):
    assert stored(store, outcome).outcome() == outcome


def test_a_record_is_of_the_first_settings_and_round_unless_they_are_given():
    record = record_of(7, Completion("a"))
    assert (record.settings, record.round, Provenance()) == (0, 0, (0, 0, (), ""))


def test_no_settings_have_the_id_of_a_person():
    assert Provenance().settings > PERSON, "ids of settings count from 0"


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


def test_the_cost_of_a_cheap_row_is_kept():
    """A budget of a resumed job counts it."""
    assert record_of(1, Completion("a", cost=0.000_001_234)).outcome().cost == 0.000_001_234


def test_a_damaged_or_lost_vector_is_noticed():
    record = record_of(1, Completion("", vectors=(b"\0\0\x80?",)))
    assert record.is_sound
    assert not record._replace(vector=b"\0\0\0@").is_sound
    assert not record._replace(vector=None).is_sound


@pytest.mark.parametrize(
    "name", ["cached_tokens", "reasoning_tokens", "written_tokens", "hour_written_tokens", "searches"]
)
def test_each_count_of_tokens_is_kept_alone(name):
    """Each has a price of its own."""
    usage = Usage(60, 50, **{name: 7} | ({"written_tokens": 9} if name == "hour_written_tokens" else {}))
    assert record_of(1, Completion("a", usage=usage)).outcome().usage == usage
    assert record_of(1, replace(FAILURE, usage=usage)).outcome().usage == usage


def test_a_failure_comes_back_whole():
    error = PromptmillError(Code.BAD_REQUEST, "No.")
    error.said = {"error": "no"}
    details = {"body": {"id": "x"}}
    failure = Failure(error, 3, 0.5, Usage(1, 2), cost=0.25, wanted=3, details=details, came="shared", shared=1)
    found = record_of(1, failure).outcome()
    assert isinstance(found, Failure)
    assert found.error.said == error.said
    assert replace(found, error=error) == failure


def test_a_record_names_the_settings_that_changed_the_model_and_the_question():
    record = record_of(1, ANSWER, bytes(range(16)), Provenance(changed=("model", "prompt"), model="large"))
    assert (record.extras["changed"], record.extras["answered_by"]) == (["model", "prompt"], "large")
    assert record.question_key == "000102030405"
    assert record_of(1, ANSWER).question_key == ""


def test_a_plain_outcome_has_no_optional_fields():
    record = record_of(1, Completion("a"))
    assert (record.more, record.retryable, record.settings, record.round) == (None, 0, 0, 0)
    failure = record_of(1, replace(FAILURE, part="a"))
    assert failure.extras == {"part": "a"}
    assert (failure.outcome().wanted, failure.outcome().shared) == (1, 0)
    assert record_of(1, replace(FAILURE, wanted=2)).outcome().wanted == 2


@pytest.mark.parametrize(
    ("probabilities", "fields"),
    [
        ({"": {"a": 0.5}}, {"probability": 0.5}),
        ({"": {"a": 0.5, "b": 0.25}}, {"probability": 0.5, "probabilities": {"a": 0.5, "b": 0.25}}),
        ({"": {"b": 0.25}}, {"probabilities": {"b": 0.25}}),
        ({"x": {"yes": 0.5}, "y": {"no": 0.75}}, {"probabilities": {"x": {"yes": 0.5}, "y": {"no": 0.75}}}),
    ],
)
def test_probabilities_come_back(probabilities, fields):
    record = record_of(1, Completion("a", probabilities=probabilities))
    found = record.outcome()
    assert isinstance(found, Completion)
    assert (record.extras, found.probabilities) == (fields, probabilities)
