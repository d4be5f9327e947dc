"""Counts of a job's rows."""

import random
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest
from pydantic import Field

from promptmill.backends.protocol import Call, Completion, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store import status_record, status_words
from promptmill.jobs.store.progress import Progress
from promptmill.jobs.store.statistics import JobCounts
from promptmill.jobs.store.status_record import Count, RunStatus


def test_quantiles_are_of_the_last_answers():
    counts, chance = JobCounts(), random.Random(3)
    seconds = [chance.lognormvariate(0, 2) for _ in range(5000)]
    for one in seconds:
        counts.count(Completion("", latency_s=one))
    last = sorted(seconds[-4096:])
    shown = counts.as_dict()["latency_s"]
    assert shown == {"p50": round(last[2047], 4), "p95": round(last[3891], 4), "p99": round(last[4055], 4)}
    assert JobCounts().as_dict()["latency_s"] == {"p50": None, "p95": None, "p99": None}


def test_counts_add_up():
    one, other = JobCounts(), JobCounts()
    for counts, code in ((one, Code.TIMEOUT), (other, Code.TIMEOUT), (other, Code.BAD_REQUEST)):
        counts.count(Failure(PromptmillError(code, "No.")))
    other.prompt_tokens = 5
    one.add(other)
    assert (one.done, one.codes, one.prompt_tokens) == (3, {"timeout": 2, "bad_request": 1}, 5)


MARK = Count("runs", " row{s} of a dull text", rare=True)


class Record(RunStatus, total=False):
    """A status with one more count."""

    fell_asleep: Annotated[int, MARK, Field(description="Rows that made the model fall asleep.")]


@dataclass(slots=True)
class Dozing(JobCounts):
    """Counts with one more."""

    fell_asleep: int = 0


@pytest.mark.parametrize(("over", "number"), [("rows", 4), ("requests", 4 + 2), ("runs", 3 + 2)])
def test_a_count_that_is_added_to_the_record_is_in_json_schema_and_text(monkeypatch, over, number):
    mark = replace(MARK, over=over)
    monkeypatch.setattr(status_record, "COUNTS", status_record.counts_of(Record) | {"fell_asleep": mark})
    earlier: Any = {"fell_asleep": 3}
    rows = Dozing(fell_asleep=4)
    progress = Progress(rows, Call(counts=Dozing(fell_asleep=2)), earlier)
    now: Any = progress.as_dict()
    assert now["fell_asleep"] == 3, "before the answers are counted"
    progress.earlier.is_added = True
    progress.take(rows)
    now = progress.as_dict() | {"job_id": "a", "output_file": None, "state": "finished"}
    assert now["fell_asleep"] == number
    assert f"\n  fell asleep {number} rows of a dull text\n" in status_words.summary(now)
    assert list(status_words.counts(now)) == [("fell asleep", mark, number)], "a tile of the report"
    described = {"type": "integer", "description": "Rows that made the model fall asleep."}
    assert status_record.schema(Record)["fell_asleep"] == described
    assert status_record.sound({"fell_asleep": 3, "done": "x"}, Record) == {"fell_asleep": 3}, "read back"
    both, none = Dozing(fell_asleep=1), Dozing()
    both.add(Dozing(fell_asleep=1))
    assert both.fell_asleep == 2, "the shards of a job"
    assert "fell_asleep" not in none.as_dict()
