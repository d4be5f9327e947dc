"""What the operator of a job reads while it waits, and how much may be in flight."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest

from promptmill.backends.protocol import Call
from promptmill.cli.job_display import _line
from promptmill.cli.terminal import SHORTEST_BAR
from promptmill.core.money import Budget
from promptmill.jobs.store import status_words
from promptmill.jobs.store.progress import MERGING, RUNNING, Course, Progress
from promptmill.jobs.store.statistics import JobCounts
from promptmill.jobs.store.status_record import RunStatus

GONE = "waiting for api.example.com since 0:14, next try in 8 s"


class Flow:
    limit = 16
    where = "api.example.com"

    pace = 0.0

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


def test_a_job_whose_requests_are_held_back_says_so_beside_its_rate(progress):
    progress.call.flow = Flow()
    assert "paced" not in status_words.line(progress.as_dict())
    progress.call.flow.pace = 118.4
    assert "paced at 118 requests/s: the endpoint refused more" in status_words.line(progress.as_dict())
    assert "rows/s" in status_words.line(progress.as_dict())
    progress.call.flow.pace = 0.25
    assert "paced at 0.25 requests/s" in status_words.line(progress.as_dict())


def test_a_job_that_waits_says_for_what_and_invents_no_rate(progress):
    progress.call.flow = Flow(GONE)
    found = progress.as_dict()
    assert (found["waiting"], found["eta_s"]) == (GONE, None)
    line = status_words.line(found)
    assert line == f"{GONE}, 120 of 2,000 answered, 0 failed"
    assert _line(progress, 120) == line
    assert _line(progress, 80 - SHORTEST_BAR - 1) == GONE, "on 80 columns"


def test_a_job_that_goes_on_shows_window_and_refusals(progress):
    progress.call.flow, progress.call.in_flight, progress.call.counts.refused = Flow(), 12, 7
    line = status_words.line(progress.as_dict())
    assert "12 requests open (limit 16), 7 rate-limited" in line
    assert " rows/s" in line
    assert "12 requests open (limit 16), 7 rate-limited" in _line(progress, 120)


def test_a_line_that_says_nothing_new_is_not_repeated(progress, monkeypatch):
    clock, screen = itertools.count(0, 60), io.StringIO()
    monkeypatch.setattr("promptmill.jobs.store.status_words.time.monotonic", lambda: float(next(clock)))
    progress.call.flow = Flow(GONE)
    watch = status_words.progress_lines("j", screen)
    for done in (120, 120, 120, 121):
        progress.counts.done = done
        watch(progress)
    first, last = screen.getvalue().splitlines()
    assert "120 of 2,000 answered" in first
    assert "121 of 2,000 answered" in last


def test_the_rows_that_were_read_do_not_count_as_written(bench):
    bench.prompts(300)
    said = bench.run("--limit", "3").stderr
    assert "writing the output, 3 of 3 answered, 0 failed, 0 written" in said


def test_a_job_whose_output_is_written_says_how_far_that_is(progress):
    progress.state, progress.activity, progress.counts.done = MERGING, "writing the output", 2_000
    progress.pass_row(512)
    assert status_words.line(progress.as_dict()) == "2,000 of 2,000 answered, 0 failed, 512 written"
    assert _line(progress, 120) == "writing the output, 2,000 of 2,000 answered, 0 failed, 512 written"
    screen = io.StringIO()
    status_words.progress_lines("j", screen)(progress)
    assert " j: writing the output, 2,000 of 2,000 answered" in screen.getvalue()
    assert progress.as_dict()["state"] == "merging", "the name for programs"


def test_a_pause_is_no_part_of_the_rate(timed, clock):
    clock.run(timed, 60, rows=10)
    timed.call.waits.most = 0
    clock.run(timed, 20)
    timed.call.waits.most = None
    clock.run(timed, 1, rows=10)
    assert timed.as_dict()["rows_per_second"] == 10


class Clock:
    """A clock that a test moves; each second, the job answers `rows` and the runner notes it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def run(self, progress, seconds, rows=0):
        for _ in range(seconds):
            self.now += 1
            progress.counts.done += rows
            progress.sample()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timed(clock):
    found = Progress(JobCounts(), Call(), clock=clock)
    found.state, found.total = RUNNING, 2_000
    found.call.flow, found.call.in_flight = Flow(), 16
    found.begin_rates()
    return found


def test_the_time_left_is_right_before_and_after_an_outage(timed, clock):
    clock.run(timed, 60, rows=10)
    assert timed.as_dict()["eta_s"] == pytest.approx(140, rel=0.05)
    timed.call.flow, timed.call.in_flight = Flow(GONE), 1
    clock.run(timed, 3600)
    found = timed.as_dict()
    assert (found["eta_s"], found["waiting"]) == (None, GONE)
    timed.call.flow, timed.call.in_flight = Flow(), 16
    for _ in range(40):
        clock.run(timed, 1, rows=10)
        left = 2_000 - timed.counts.done
        assert timed.as_dict()["eta_s"] == pytest.approx(left / 10, rel=0.1)
    assert timed.seconds == 3700, "the time of the whole run"


@pytest.mark.parametrize(("rate", "shown"), [(0.0, "0.0"), (0.04, "0.04"), (0.25, "0.2"), (1234.5, "1,234.5")])
def test_a_slow_job_has_a_rate_that_is_not_0(timed, clock, rate, shown):
    clock.run(timed, 1)
    known = timed.as_dict()
    known["rows_per_second"] = rate
    assert f"{shown} rows/s" in status_words.parts(known)


def test_the_last_rows_name_for_what_they_wait(timed, clock):
    timed.counts.done = 1_991
    for _ in range(100):
        timed.counts.latencies.append(40.0)
    timed.call.in_flight = 9
    clock.run(timed, 1)
    assert timed.as_dict()["eta_s"] is None or "waiting" not in timed.as_dict()
    clock.run(timed, 3)
    found = timed.as_dict()
    assert found["waiting"] == "the last 9 rows wait for api.example.com (40 s each)"
    assert found["eta_s"] is None
    assert _line(timed, 120) == f"{found['waiting']}, 1,991 of 2,000 answered, 0 failed"
    timed.counts.done, timed.call.in_flight = 1_999, 1
    clock.run(timed, 60)
    assert timed.as_dict()["waiting"] == "the last row waits for api.example.com (63 s so far)"


def test_the_bar_shows_answered_failed_retried_rate_cost_of_budget_and_time_left(timed, clock):
    clock.run(timed, 10, rows=100)
    timed.call.counts.retries, timed.call.counts.cost, timed.call.ledger.budget = 3, 0.016, Budget(5.0)
    timed.counts.fail("timeout", 2)
    first = "50 % 998 of 2,000 answered, 2 failed, $0.016 of $5.00, 0:10 left"
    wide = f"{first}, 100.0 rows/s, 16 requests open (limit 16), 3 retried"
    assert _line(timed, len(wide)) == wide
    assert _line(timed, 71) == first
    assert _line(timed, 31) == "50 % 998 of 2,000 answered"
    timed.counts.done = 1_999
    assert _line(timed, 111).startswith("99 % ")


def test_the_course_of_a_long_job_has_a_bounded_number_of_samples():
    course = Course()
    assert not course.note({"state": "starting", "seconds": 0.0, "updated": 1e9})
    for second in range(2000):
        course.note({"state": "running", "seconds": float(second), "updated": 1e9, "done": second, "failed": 1})
    assert not course.note({"state": "running", "seconds": 1999.5, "updated": 1e9})
    waits: RunStatus = {
        "state": "stopped",
        "seconds": 2000.0,
        "updated": 1e9,
        "done": 1999,
        "failed": 1,
        "waiting": "no answer",
    }
    waits |= {"in_flight": 3, "window": 8, "refused": 2}
    assert course.note(waits)
    found = course.as_dict()
    assert 150 <= len(found["samples"]) <= 300
    assert found["every_s"] == 8
    seconds = [sample[0] or 0.0 for sample in found["samples"]]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0
    assert found["samples"][-1] == [2000.0, 1999, 1, 3, 8, 2, 1]
    again = Course(found)
    assert again.note({"state": "running", "seconds": 2000.1, "updated": 1.1e9, "done": 1999, "failed": 1})
    assert [(run["at"], run["began"]) for run in again.as_dict()["runs"]] == [(0, 1e9), (2000.1, 1.1e9)]


def test_the_number_of_all_rows_follows_the_counts():
    found: Any = {"done": 13, "answered": 12, "failed": 1, "seconds": 4.2, "model": "m"}
    assert status_words.outcome(found, " of 300 rows").startswith("12 answered, 1 failed of 300 rows in 4.2 s by m")
