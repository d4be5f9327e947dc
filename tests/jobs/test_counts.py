"""Counts of a job's rows."""

import random

from promptmill.backends.protocol import Completion, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.statistics import JobCounts


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
