"""What the operator of a job reads while it waits, and how much may be in flight."""

from __future__ import annotations

import pytest

from promptmill.backends.protocol import Call
from promptmill.cli.job_display import _BAR, _line
from promptmill.jobs.store import status
from promptmill.jobs.store.records import JobCounts
from promptmill.jobs.store.status import MERGING, RUNNING, Progress

GONE = "waiting for api.example.com since 0:14, next try in 8 s"


class Flow:
    limit = 16

    def __init__(self, waiting=""):
        self._waiting = waiting

    def waiting(self):
        return self._waiting


@pytest.fixture
def progress():
    found = Progress(JobCounts(), Call())
    found.state, found.total = RUNNING, 2_000
    found.sample()
    found.counts.done = 120
    return found


def test_a_job_that_waits_says_for_what_and_invents_no_rate(progress):
    progress.stats.flow = Flow(GONE)
    found = progress.as_dict()
    assert (found["waiting"], found["eta_s"]) == (GONE, None)
    line = status.line(found)
    assert line == f"120 of 2,000 answered, 0 failed, {GONE}"
    assert _line(progress, 120) == f"0:00, {GONE}, 120 of 2000"
    assert _line(progress, 80 - _BAR - 7) == f"0:00, {GONE}", "on 80 columns"


def test_a_job_that_goes_on_shows_window_and_refusals(progress):
    progress.stats.flow, progress.stats.in_flight, progress.stats.refused = Flow(), 12, 7
    line = status.line(progress.as_dict())
    assert "12 of 16 in flight, 7 refused" in line
    assert " rows/s" in line
    assert "12 of 16 in flight, 7 refused" in _line(progress, 120)


def test_a_job_that_has_ended_waits_for_nothing(progress):
    progress.stats.flow, progress.state = Flow(GONE), status.FINISHED
    assert "waiting" not in progress.as_dict()


def test_a_job_whose_output_is_written_says_how_far_that_is(progress):
    progress.state, progress.activity, progress.counts.done = MERGING, "writing the output", 2_000
    progress.pass_row(512)
    assert status.line(progress.as_dict()) == "2,000 of 2,000 answered, 0 failed, 512 written"
    assert _line(progress, 120) == "0:00 writing the output, 512 of 2000 rows"
