"""The progress of a job's run, while it runs."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from promptmill.backends.protocol import Call
from promptmill.core.errors import PromptmillError, redact
from promptmill.core.version import __version__
from promptmill.jobs.store import statistics, status_record
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.statistics import JobCounts, quantile
from promptmill.jobs.store.status_record import CourseRecord, RunNote, RunStatus

STARTING, RUNNING, MERGING = "starting", "running", "merging"
FINISHED, STOPPED, CANCELLED, INTERRUPTED = "finished", "stopped", "cancelled", "interrupted"
ALIVE = frozenset({STARTING, RUNNING, MERGING})
ENDED = frozenset({FINISHED, STOPPED, CANCELLED, INTERRUPTED})
_RATE_OVER_S = 30.0
_SHORTEST_WAIT_S = 2.0  # `waiting` reports the last rows only if they have been awaited for at least this long
_SAMPLES = 300
_SAMPLE_EVERY_S = 1.0
_RUNS = 50


class Progress:
    """The progress of one run. It uses `time.monotonic`, so changes of the system clock have no effect."""

    def __init__(
        self,
        counts: JobCounts,
        call: Call,
        earlier: RunStatus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`earlier`: the status of the previous run."""
        self.counts = counts
        self.call = call
        self.state = STARTING
        self.activity = ""
        self.round = ""
        """The reason of the current round."""
        self.error: PromptmillError | None = None
        """The error that ended the run early."""
        self.total: int | None = None
        self.notes: list[str] = []
        self.written = 0
        """The number of output rows that have been written."""
        self.figures: dict[str, Any] = {}
        """Figures of the output and its answers. During the run, only `columns` and the figures of plan and ways."""
        self.awaited: Callable[[], str] = lambda: ""
        """Returns a text about the answers that the current round awaits while it sends nothing."""
        self.earlier = EarlierRuns(earlier or {})
        self._times = _Times(clock)

    def count(self, store: JobDatabase, is_open: str, before: int) -> None:
        """Count the records of rows below number `before`, except those that meet the SQL condition `is_open`. Blocks.

        The first call also counts requests and tokens. Later calls count only rows, because the records then include
        requests of this run, which `call` already counts. Raises the errors of `JobDatabase`.
        """
        self.take(statistics.counts(store, is_open, before, skips_empty=self.counts.skips_empty))
        if not self.earlier.is_added:
            self.earlier.count(store)

    def take(self, counts: JobCounts, *, has_ended: bool = False) -> None:
        """Replace the counts of rows and, unless the earlier runs are already included, those of requests and tokens.

        `has_ended`: the run has ended, so `counts` was made from records that include all requests of this run.
        """
        for name, mark in status_record.COUNTS.items():
            if mark.over == "runs":
                setattr(counts, name, self.earlier.status.get(name, 0))
            elif mark.over == "requests" and has_ended:
                setattr(counts, name, getattr(counts, name) - getattr(self.call.counts, name))
            elif mark.over == "requests" and self.earlier.is_added:
                setattr(counts, name, getattr(self.counts, name))
        self.counts = counts

    @property
    def cost(self) -> float | None:
        """The cost of all runs; None if the price is unknown."""
        now, before = self.call.counts.cost, self.earlier.cost
        return None if now is None and before is None else round((now or 0.0) + (before or 0.0), 9)

    @property
    def seconds(self) -> float:
        """The wall time of all runs, in seconds."""
        return self.earlier.seconds + self._times.seconds

    @property
    def is_paused(self) -> bool:
        """Whether the user has paused the job."""
        return self.call.waits.most == 0

    def pass_row(self, rows: int) -> None:
        """Set the number of output rows that have been written."""
        self.written = rows

    def begin_rates(self) -> None:
        """Restart the rates, so that they exclude rows that are already done."""
        self._times.begin()
        self.sample()

    def sample(self) -> None:
        """Take a sample of the counts for the rates. Call it about once a second."""
        left = None if self.total is None else self.total - self.counts.done
        is_last = left is not None and 0 < left <= self.call.in_flight
        waits = self.is_paused or bool(self.call.waiting)
        self._times.sample(self.counts.done, self.call.counts.completion_tokens, waits=waits, is_last=is_last)

    def rates(self) -> tuple[float, float]:
        """Return rows and completion tokens per second, over about the last 30 seconds."""
        return self._times.per_second(self.counts.done, self.call.counts.completion_tokens)

    def eta_s(self) -> float | None:
        """Return the estimated remaining seconds at the current rate; None if unknown."""
        rate, _ = self.rates()
        if self.total is None or rate <= 0:
            return None
        return max(0.0, (self.total - self.counts.done) / rate)

    @property
    def waiting(self) -> str:
        """The reason why no rows are sent, or a text about the last rows in flight; `""` while rows are sent."""
        if self.state != RUNNING:
            return ""
        if self.is_paused:
            remaining = self.call.in_flight
            return f"paused, after {remaining:,} in flight" if remaining else "paused"
        return self.call.waiting or self.awaited() or self._last_rows()

    def _last_rows(self) -> str:
        """If all remaining rows have been in flight for 2 s, return a text about them; otherwise `""`."""
        since_s, flow = self._times.last_s, self.call.flow
        left = 0 if self.total is None else self.total - self.counts.done
        if since_s < _SHORTEST_WAIT_S or flow is None or not 0 < left <= self.call.in_flight:
            return ""
        usual_s = quantile(sorted(self.counts.latencies), 95) or 0.0
        how_long = f"{usual_s:.0f} s each" if usual_s >= since_s else f"{since_s:.0f} s so far"
        which = "row waits" if left == 1 else f"{left:,} rows wait"
        return f"the last {which} for {flow.where or 'the endpoint'} ({how_long})"

    def as_dict(self) -> RunStatus:
        """Return the status of the run, to be stored and shown."""
        rate, tokens = self.rates()
        earlier, run, budget, flow = self.earlier, self.call.counts, self.call.ledger.budget, self.call.flow
        waiting, set_aside, is_running = self.waiting, round(earlier.set_aside, 9), self.state == RUNNING
        eta_s = self.eta_s() if is_running and not waiting else None
        counts = self.counts.as_dict(run)
        status: dict[str, Any] = {
            "state": self.state,
            "reason": "" if self.error is None else redact(str(self.error)),
            "code": None if self.error is None else self.error.code,
            "activity": self.activity,
            "round": self.round or None,
            "paused": self.is_paused or None,
            "total": self.total,
            **counts,
            "requests": counts["requests"] + earlier.lost,
            "run_requests": run.requests if earlier.seconds else None,
            "run_cost": run.cost if earlier.seconds else None,
            **{name: figure or None for name, figure in self.figures.items()},
            "cost": self.cost,
            "max_cost": None if budget is None else budget.limit,
            "cost_set_aside": set_aside if set_aside or "cost_set_aside" in earlier.status else None,
            "cost_forgotten": earlier.forgotten or None,
            "written": self.written if self.state == MERGING else None,
            "in_flight": self.call.in_flight if is_running else 0,
            "window": flow.limit if flow is not None and is_running else None,
            "pace": round(self.call.pace, 2) or None if is_running else None,
            "refused": run.refused or None,
            "waiting": waiting or None,
            "rows_per_second": round(rate, 2),
            "tokens_per_second": round(tokens, 1),
            "eta_s": None if eta_s is None else round(eta_s, 1),
            "seconds": round(self.seconds, 2),
            "updated": time.time(),
            "warnings": [*self.notes, *self.call.warnings],
        }
        if not earlier.is_added:  # until the answers are counted, the status shows the counts of the earlier runs
            status |= {name: count for name, count in earlier.status.items() if name in status_record.COUNTS}
        known = {name: value for name, value in status.items() if value is not None or name in {"total", "eta_s"}}
        return cast("RunStatus", known)


Watch: TypeAlias = Callable[[Progress], None]
"""A function that a run calls with its progress several times a second."""


class EarlierRuns:
    """The seconds, costs and counts of the job's earlier runs."""

    def __init__(self, status: RunStatus) -> None:
        self.status = status
        self.is_added = False
        """Whether `Progress.counts` includes the earlier runs. Until then, their counts are in `status`."""
        self.set_aside = 0.0
        """The highest possible cost of requests that have no record."""
        self.lost = 0
        """The number of requests of earlier runs that are counted in no record."""
        self.seconds = status.get("seconds", 0.0)
        self.forgotten = status.get("cost_forgotten", 0.0)
        """The cost of requests that cannot be assigned to rows, because the input changed after a kill."""
        self.cost: float | None = status.get("cost")

    def charge(self, cost: float) -> None:
        """Add the cost of requests that can no longer be assigned to rows."""
        self.cost = (self.cost or 0.0) + cost
        self.forgotten += cost

    def count(self, store: JobDatabase) -> None:
        """Add the costs and requests that a killed run did not store. Blocks. Raises the errors of `JobDatabase`."""
        if self.status.get("state") in ALIVE:
            self.cost = max(statistics.cost(store) + self.forgotten, self.cost or 0.0) or self.cost
        self.lost = store.in_flight.requests_lost
        self.is_added = True


class _Times:
    """The duration of the run, and its rates over the last 30 seconds, without stalls, which would make the rates 0."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._intervals: deque[tuple[float, int, int]] = deque()
        """For each pair of consecutive samples: the seconds between them, and the rows and tokens of this time."""
        self._last: tuple[float, int, int] | None = None
        self._last_since: float | None = None

    @property
    def seconds(self) -> float:
        """The time since the run began."""
        return self._clock() - self._began

    @property
    def last_s(self) -> float:
        """Seconds since the first sample with all remaining rows in flight; 0 while rows remain to be sent."""
        return 0.0 if self._last_since is None else self._clock() - self._last_since

    def begin(self) -> None:
        """Forget the samples."""
        self._intervals.clear()
        self._last = None

    def sample(self, rows: int, tokens: int, *, waits: bool, is_last: bool) -> None:
        """Take a sample of the counts, about once a second. `waits`: the run is stalled. `is_last`: all remaining rows
        are in flight."""
        now = self._clock()
        self._last_since = None if not is_last else self._last_since or now
        if not waits:
            self._intervals.extend(self._since(rows, tokens))
        self._last = now, rows, tokens
        while sum(seconds for seconds, _, _ in self._intervals) > _RATE_OVER_S and len(self._intervals) > 1:
            self._intervals.popleft()

    def per_second(self, rows: int, tokens: int) -> tuple[float, float]:
        """Return rows and completion tokens per second. `rows`, `tokens`: the current counts."""
        totals = [sum(column) for column in zip(*self._intervals, *self._since(rows, tokens), strict=True)]
        seconds, rows, tokens = totals or (0.0, 0, 0)
        return max(0.0, rows / max(seconds, 0.001)), max(0.0, tokens / max(seconds, 0.001))

    def _since(self, rows: int, tokens: int) -> list[tuple[float, int, int]]:
        if self._last is None:
            return []
        then, rows_then, tokens_then = self._last
        return [(self._clock() - then, rows - rows_then, tokens - tokens_then)]


class Course:
    """The course of a job's runs, as a limited number of samples: the longer the job, the rarer the samples."""

    def __init__(self, earlier: CourseRecord | None = None) -> None:
        """`earlier`: the course of the earlier runs."""
        earlier = earlier or {}
        self._samples = list(earlier.get("samples", ()))
        self._runs = list(earlier.get("runs", ()))
        self._every_s = earlier.get("every_s", _SAMPLE_EVERY_S)
        self._has_begun = False

    def note(self, status: RunStatus) -> bool:
        """Take a sample of `status` if one is due. Return whether it was taken."""
        seconds, has_ended = status["seconds"], status["state"] in ENDED
        if not self._has_begun:
            if status["state"] != RUNNING:
                return False
            self._has_begun = True
            began: RunNote = {"at": seconds, "began": round(status["updated"]), "version": __version__}
            self._runs = [*self._runs[-_RUNS + 1 :], began]
        elif not has_ended and seconds - (self._samples[-1][0] or 0) < self._every_s:
            return False
        rows = status["seconds"], status.get("done"), status.get("failed")
        flow = status.get("in_flight"), status.get("window"), status.get("refused")
        self._samples.append([*rows, *flow, int("waiting" in status)])
        if len(self._samples) > _SAMPLES:
            self._samples = self._samples[::2]
            self._every_s *= 2
        return True

    def as_dict(self) -> CourseRecord:
        """Return `runs`, `samples` and the seconds between two samples.

        A sample is a list of seven numbers: seconds of all runs so far, rows done, rows failed, requests in flight,
        limit of requests, refused requests of this run, and whether the job waited (0 or 1).
        """
        return {"runs": self._runs, "samples": self._samples, "every_s": self._every_s}


class StatusWriter:
    """Stores the progress of a run in the job's folder, and shows it to the owner of the run."""

    def __init__(self, progress: Progress, folder: Folder, watch: Watch | None, activity: Callable[[], str]) -> None:
        """`activity`: returns the activity of a running job."""
        self._progress, self._folder, self._watch, self._activity = progress, folder, watch, activity
        self._course = Course(folder.course)
        self.shown = 0
        """The number of times that the progress was shown."""
        self.is_refused = False
        """Whether the run was refused and changed nothing; then the job keeps its earlier status."""

    def enter(self, state: str, activity: str = "") -> None:
        """Record and show that the run is now in `state`, or does `activity` in it."""
        self._progress.state, self._progress.activity = state, activity
        self.show()

    def show(self) -> None:
        """Store and show the progress."""
        self.shown += 1
        self.store()
        self.report()

    def report(self) -> None:
        """Show the progress to the owner."""
        if self._watch:
            with contextlib.suppress(OSError):  # a terminal that was closed must not end a job
                self._watch(self._progress)

    def values(self) -> dict[str, Mapping[str, object]]:
        """Update the progress. Return the job's `status` and, if a new sample was taken, the `course`."""
        progress = self._progress
        if not self._folder.is_open:
            return {}
        if self.is_refused:
            return {"status": progress.earlier.status}
        in_flight, budget = self._folder.store.in_flight, progress.call.ledger.budget
        is_running = progress.state == RUNNING
        if is_running:
            progress.activity = self._activity()
        progress.earlier.set_aside = budget.set_aside if budget is not None and is_running else in_flight.most
        status = progress.as_dict()
        return {"status": status, **({"course": self._course.as_dict()} if self._course.note(status) else {})}

    def store(self, values: Mapping[str, Mapping[str, object]] | None = None) -> None:
        """Store the present values, or `values` that `values()` returned earlier. Blocks."""
        values = self.values() if values is None else values
        if values and self._folder.is_open:
            with contextlib.suppress(OSError, DamagedError):  # the next write of answers reports the error more clearly
                self._folder.put(**values)
