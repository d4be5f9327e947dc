"""Figures of a job, from its database."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from promptmill.backends.protocol import Completion, Failure, Outcome, Usage, copied
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.run import ways
from promptmill.jobs.store import statistics, status_words
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import record_of
from promptmill.jobs.store.spec import OutputSpec

ANSWER = Completion('h\u00e4llo "x"\n\u2028\0', "length", Usage(3, 4), "hm", ({"id": "1"},), attempts=2, latency_s=0.25)
FAILURE = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=3, latency_s=1e-05, usage=Usage(1, 0))
FINAL = Failure(PromptmillError(Code.BAD_REQUEST, "No."), attempts=1)


def output(*choices: str, **fields: object) -> OutputSpec:
    """Return an output of labels, or of objects with these fields."""
    schema = None if choices else {"type": "object", "properties": fields}
    return OutputSpec(path=Path("out.csv"), format="csv", choices=choices, answer_schema=schema)


FIELDS = output()


def fill(store: JobDatabase, *outcomes: Outcome) -> None:
    """Record outcomes, one per row."""
    store.write([record_of(n, outcome) for n, outcome in enumerate(outcomes)])


def test_counts_are_those_of_the_records(store):
    fill(store, ANSWER, FAILURE, FINAL, ANSWER)
    counts = statistics.counts(store)
    assert (counts.done, counts.failed, counts.truncated, counts.codes) == (4, 2, 2, {"bad_request": 1, "timeout": 1})
    assert (counts.requests, counts.retries, counts.prompt_tokens, counts.completion_tokens) == (8, 4, 7, 8)
    assert list(counts.latencies) == [0.25] * 2
    again = statistics.counts(store, "answer.retryable")
    assert (again.done, again.failed, again.requests) == (3, 1, 8)
    assert statistics.counts(store, before=1).done == 1


def test_a_request_for_several_rows_counts_once_and_each_of_its_rows_is_paid(store):
    usage = Usage(10, 1)
    carrier = Completion("a", usage=usage, cost=0.25)
    alone_at_last = Completion("b", usage=usage, cost=0.5, attempts=2, shared=1)
    tried_twice = replace(FAILURE, attempts=2, shared=2)
    companions = [Completion("a", usage=usage, cost=0.25, came="shared", shared=1)] * 3
    copies = [copied(carrier, attempts=1), replace(copied(carrier, attempts=1), came="cached")]
    fill(store, carrier, alone_at_last, tried_twice, *companions, *copies)
    counts = statistics.counts(store)
    assert (counts.requests, counts.retries) == (1 + 1 + 0 + 0 + 2, 1)
    assert statistics.paid(store, ()) == {(False, 0): (5, Usage(50, 5), 1.5)}


def test_vectors_are_counted_by_their_length_unless_some_answers_are_texts(store):
    fill(store, FAILURE, *(Completion("", vectors=(bytes(4 * size),)) for size in (3, 3, 2)))
    assert statistics.vector_lengths(store) == {3: 2, 2: 1}
    assert statistics.results(store) == {"vectors": 3, "dimensions": 0}
    assert statistics.counts(store).empty == 0
    store.write([record_of(9, Completion("a"))])
    assert statistics.vector_lengths(store) == {}


def test_tokens_from_the_providers_cache_are_counted_also_of_answers_that_were_set_aside(store):
    named = Completion('{"cached_tokens": 5}', details={"body": {"usage": {"cached_tokens": 5}}})
    failed = replace(FAILURE, usage=Usage(100, 0, cached_tokens=20))
    fill(store, Completion("a", usage=Usage(100, 1, cached_tokens=80)), failed, named, ANSWER)
    store.write([record_of(0, Completion("b", usage=Usage(100, 1, cached_tokens=90)))], [0])
    assert (statistics.counts(store).cached_tokens, statistics.counts(store, before=1).cached_tokens) == (
        80 + 20 + 90,
        80 + 90,
    )


def test_a_damaged_record_does_not_end_the_counts(store):
    fill(store, *[Completion("a", usage=Usage(100, 1, cached_tokens=80))] * 2)
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE answer SET more = more || 'x' WHERE key = 1")
    other.close()
    assert statistics.counts(store).cached_tokens == 80
    assert (statistics.cost(store), statistics.answering_models(store)) == (0.0, {})


def test_results_compare_long_texts_whole(store):
    long = "x" * 5000
    fill(store, Completion(long + "a"), Completion(long + "b"), Completion(f" {long}a\n"), Completion("y"), FAILURE)
    assert statistics.results(store) == {"different": 3, "shortest": 1, "longest": 5001}
    assert statistics.results(store, before=1) == {"different": 1, "shortest": 5001, "longest": 5001}


def test_a_field_with_many_values_after_few_is_not_counted(store):
    texts = [json.dumps({"a": "same", "b": at % 3}) for at in range(300)]
    texts += [json.dumps({"a": f"other {at}", "b": 1}) for at in range(20)]
    fill(store, *map(Completion, texts))
    assert statistics.results(store, output=FIELDS)["fields"] == {"b": {"min": 0, "max": 2, "mean": 1.0}}


def test_a_value_that_a_list_repeats_counts_once_for_its_row(store):
    fill(store, *(Completion(json.dumps({"tags": tags})) for tags in (["a", "a", "b"], ["a"], [])))
    found = statistics.results(store, output=FIELDS)["fields"]
    assert found == {"tags": {"values": {"a": 2, "b": 1}, "is_list": True}}


def test_the_mean_of_large_numbers_lies_between_the_least_and_the_largest(store):
    fill(store, *(Completion(json.dumps({"amount": amount})) for amount in (10252, 10254, 10256)))
    found = statistics.results(store, output=FIELDS)["fields"]["amount"]
    assert found == {"min": 10252, "max": 10256, "mean": 10254.0}
    assert status_words.span(found) == "10,252\N{EN DASH}10,256, mean 10,254"
    assert status_words.span({"min": 1, "max": 9, "mean": 5.00167}) == "1\N{EN DASH}9, mean 5"
    assert status_words.span({"min": 1234567, "max": 1234569, "mean": 1234568.0}) == (
        "1,234,567\N{EN DASH}1,234,569, mean 1,234,568"
    )


NAMED = {"enum": ["bad", "fair", "good", None], "$comment": "from the lowest to the highest"}
STARS = {"type": ["integer", "null"], "minimum": 1, "maximum": 5}


def test_the_levels_of_a_scale_are_counted_in_their_order_and_none_is_left_out(store):
    answers = [("good", 4), ("good", 2), (None, 2), ("bad", None), ("good", 2)]
    fill(store, *(Completion(json.dumps({"mood": mood, "stars": stars})) for mood, stars in answers))
    found = statistics.results(store, output=output(mood=NAMED, stars=STARS))
    mood, stars = found["fields"].values()
    assert [*mood["values"].items()] == [("bad", 1), ("fair", 0), ("good", 3), ("null", 1)]
    assert [*stars["values"].items()] == [("1", 0), ("2", 3), ("3", 0), ("4", 1), ("5", 0), ("null", 1)]
    assert (stars["min"], stars["max"], stars["mean"]) == (2, 4, 2.5)
    line = "mood: bad 1, fair 0, good 3, null 1; stars: 1 (0), 2 (3), 3 (0), 4 (1), 5 (0), null (1), mean 2.5"
    assert status_words._answers({"results": found}) == line


def test_a_scale_of_11_numbers_is_counted_whole(store):
    scale = {"enum": [*map(str, range(11))], "$comment": NAMED["$comment"]}
    fill(store, *(Completion(json.dumps({"recommends": str(at % 11)})) for at in range(15)))
    (field,) = statistics.results(store, output=output(recommends=scale))["fields"].values()
    assert [*field["values"].items()] == [(str(at), 1 + (at < 4)) for at in range(11)]


def test_choices_that_are_numbers_are_counted_in_their_order_and_other_choices_by_number(store):
    fill(store, *map(Completion, ["10", "9", "10", "-1"]))
    found = statistics.results(store, output=output("10", "9", "-1", "8"))
    assert [*found["values"].items()] == [("-1", 1), ("8", 0), ("9", 1), ("10", 2)]
    assert status_words._answers({"results": found}) == "-1 (1), 8 (0), 9 (1), 10 (2)"
    assert status_words.not_shown(found) == 0
    assert [*statistics.results(store, output=output("ten", "9"))["values"]] == ["10", "-1", "9"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("very\n good", "very good"),
        ("Q1", "Q1"),
        ("5", "5"),
        ("a, b", '"a, b"'),
        ('say "hi"', r'"say \"hi\""'),
        ("", '""'),
    ],
)
def test_an_answer_has_quotes_only_if_its_end_is_unclear(value, shown):
    assert status_words.one_line(value) == shown


def test_an_answer_of_line_breaks_is_empty_before_and_after_a_restart(store):
    outcomes = [Completion("\n \n"), Completion(" "), Completion("a")]
    fill(store, *outcomes)
    running = statistics.JobCounts()
    for outcome in outcomes:
        running.count(outcome)
    assert (statistics.counts(store).empty, running.empty) == (2, 2)


def test_rows_that_are_left_out_are_no_failures_of_a_slot(store):
    empty = Failure(PromptmillError(Code.EMPTY_PROMPT, "The row has no prompt."))
    fill(store, ANSWER, FAILURE, empty)
    assert statistics.slots(store) == {0: (1, 2)}
    assert statistics.slots(store, skips_empty=True) == {0: (1, 1)}


def test_counts_of_a_database_from_elsewhere_are_numbers(store):
    fill(store, *[ANSWER] * 3)
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE answer SET attempts = 9e999, prompt_tokens = -9e999, latency_s = 9e999 WHERE key = 0")
        other.execute("UPDATE answer SET latency_s = 'soon' WHERE key = 1")
    other.close()
    counts = statistics.counts(store)
    assert (counts.done, counts.prompt_tokens) == (3, 0)
    assert list(counts.latencies) == [0.25]
    assert len(statistics.spread(store)) == 1


def test_the_values_of_labels_are_counted_in_one_scan(store, monkeypatch):
    fill(store, *[Completion(text) for text in ("no", "yes", " yes ", "maybe", "no")] * 3)
    read, queries = JobDatabase.read, list[str]()
    monkeypatch.setattr(
        JobDatabase, "read", lambda store, query, *args: queries.append(query) or read(store, query, *args)
    )
    values = {"no": 6, "yes": 6, "maybe": 3}
    assert statistics.results(store) == {"different": 3, "shortest": 2, "longest": 5, "values": values}
    assert list(statistics.results(store)["values"]) == ["no", "yes", "maybe"]
    assert sum("GROUP BY value" in query for query in queries) == 2  # one in each call


def test_no_values_are_shown_if_the_first_answers_are_long(store):
    fill(store, *[Completion("x" * 300)] * 256, *[Completion("yes")] * 600)
    assert statistics.results(store) == {"different": 2, "shortest": 3, "longest": 300}


def test_savings_of_models_without_a_price_are_not_summed(store, monkeypatch):
    fill(store, ANSWER)
    monkeypatch.setattr(statistics, "paid", lambda *_: pytest.fail("all records are read"))
    assert ways.figures(store, ()) == {"cache_saved": 0.0}
