"""The metrics of a server in Prometheus' text format: figures of its calls, and the progress of this user's jobs.

A scrape does not delay calls: it reads the counters of each `Call`, and the status that a job's runner stores in the
job's database, in whichever process the runner works:

    calls of this process    Service.calls ──────────────────────┐
                                                                 ├──▶ text
    jobs of this user        job.db of each ──▶ thread, 5 s ─────┘

So rows of detached jobs are counted, also after a server's restart. The numbers of rows are gauges: they count rows in
the databases, and fall if a job is removed or sends its failed rows again. Requests, tokens and costs of jobs never
fall during the life of a server: a removed job is still counted.

No label has a value from a prompt. The first fifty models have their own label; all others are `other`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path

from promptmill.core.errors import PromptmillError
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.progress import ALIVE
from promptmill.jobs.store.statistics import RECORDED
from promptmill.jobs.store.status_record import Status
from promptmill.service.metrics import CALLS, COUNTS, Labels, ModelLabels, Sample, Series, durations, samples, series
from promptmill.service.service import Service

TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Fields of a job's status: name → family.
_OF_JOBS = {name: family for name, family in COUNTS.items() if name in RECORDED} | {"cost": "cost_dollars_total"}
_DURATION = "gen_ai_client_operation_duration_seconds"
# In the order of the page: name → type and help. Names without a prefix get `promptmill_`.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "start_time_seconds": ("gauge", "Unix time at which this process started."),
    **{name: (kind, text) for name, (kind, _, text) in CALLS.items()},
    _DURATION: ("histogram", "Time of an item of a call, from request to outcome."),
    "jobs": ("gauge", "Jobs of this user by state."),
    "job_rows": ("gauge", "Rows of jobs by outcome: answered, skipped, or the code of the failure."),
    "job_rows_left": ("gauge", "Rows without an outcome, of jobs whose number of rows is known."),
    "job_rows_per_second": ("gauge", "Rows that running jobs settle in a second, lately."),
    "job_rows_cached": ("gauge", "Rows of jobs answered without a request, by cache or duplicate."),
    **{f"job_{name}": ("counter", CALLS[name][2].replace("calls", "jobs")) for name in _OF_JOBS.values()},
    "job_requests_in_flight": ("gauge", "Requests of running jobs in flight."),
    "job_requests_in_flight_limit": ("gauge", "Most requests of running jobs that may be in flight now."),
    "jobs_waiting": ("gauge", "Running jobs that are stalled."),
    "jobs_unread": ("gauge", "Jobs whose database could not be read in time; the next scrape begins with them."),
}
_FRESH_S = 5.0
_READ_S = 2.0
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Metrics:
    """The metrics of one server. `text` is a page with their values."""

    def __init__(
        self, service: Service, folders: JobFolders | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`folders`: the folders of jobs; by default the folders that the environment names."""
        self._service, self._clock = service, clock
        self._jobs = _Jobs(folders, clock)
        self._reading: asyncio.Future[str] | None = None
        self._read_at = 0.0
        self._labels = ModelLabels()

    @property
    def not_ready(self) -> str:
        """The reason why a call would wait now, else `""`. A failed load is no reason: the next call retries it."""
        state = self._service.state
        return state if state in {"loading", "closed"} else ""

    async def text(self) -> str:
        """Return the page. A thread reads the jobs' databases, at most every five seconds."""
        if self._reading is None or (self._reading.done() and self._clock() - self._read_at > _FRESH_S):
            self._read_at = self._clock()
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._of_jobs))
        of_jobs = await asyncio.shield(self._reading)
        return _text(series(self._of_calls()), of_jobs=False) + of_jobs

    def _of_calls(self) -> Iterator[Sample]:
        yield Sample("start_time_seconds", self._service.calls.started)
        yield from samples(self._service, self._labels, of_job=False)
        for (labels, _), times in durations(self._service, self._labels, of_job=False).items():
            bounds = [*(f"{bound:g}" for bound in times.bounds), "+Inf"]
            for bound, count in zip(bounds, accumulate(times.counts), strict=True):
                yield Sample(_DURATION, count, labels, bound)
            yield Sample(f"{_DURATION}_sum", times.total, labels)
            yield Sample(f"{_DURATION}_count", sum(times.counts), labels)

    def _of_jobs(self) -> str:
        self._jobs.read()
        return _text(series(self._samples_of_jobs()), of_jobs=True)

    def _samples_of_jobs(self) -> Iterator[Sample]:
        yield Sample("jobs_unread", self._jobs.unread)
        for job in self._jobs.present:
            yield from self._samples_of(job)
        for job in self._jobs.seen:
            labels = self._labels.of(job.provider, job.model)
            for name, value in job.most.items():
                yield Sample(f"job_{_OF_JOBS[name]}", value, labels)

    def _samples_of(self, job: _JobSeen) -> Iterator[Sample]:
        labels, job_status = self._labels.of(job.provider, job.model), job.status
        yield Sample("jobs", 1, labels, job_status["state"])
        failed: Mapping[str, int] = job_status.get("errors") or {}
        rows = {"answered": job_status.get("answered", 0), "skipped": job_status.get("skipped", 0)}
        for outcome, count in {**rows, **failed}.items():
            yield Sample("job_rows", count, labels, outcome)
        if (total := job_status.get("total")) is not None:
            yield Sample("job_rows_left", max(0, total - job_status.get("done", 0)), labels)
        yield Sample("job_rows_cached", job_status.get("cached", 0), labels)
        if job_status["alive"]:
            yield Sample("job_rows_per_second", job_status.get("rows_per_second") or 0.0, labels)
            yield Sample("job_requests_in_flight", job_status.get("in_flight") or 0, labels)
            yield Sample("job_requests_in_flight_limit", job_status.get("window") or 0, labels)
            yield Sample("jobs_waiting", bool(job_status.get("waiting")), labels)


class _JobSeen:
    """The last known status of a job. `most`: the highest value of each counter."""

    def __init__(self, provider: str, model: str) -> None:
        self.provider, self.model = provider, model
        self.status: Status = {}
        self.stamp: object = None
        """The state of the database's files; None while the job runs, because a run changes them."""
        self.most: dict[str, float] = {}

    def note(self, job_status: Status, stamp: object) -> None:
        """Store a status."""
        self.status, self.stamp = job_status, stamp
        for name in _OF_JOBS:
            if isinstance(value := job_status.get(name), int | float):
                self.most[name] = max(value, self.most.get(name, 0))


class _Jobs:
    """The jobs of this user, from their databases. A finished job is read once, a running job every time."""

    def __init__(self, folders: JobFolders | None, clock: Callable[[], float]) -> None:
        self._folders, self._clock = folders, clock
        self._by_path: dict[Path, _JobSeen] = {}
        self._by_job: dict[tuple[Path, int], _JobSeen] = {}
        """All jobs that this process has seen, including removed jobs."""
        self.unread = 0

    @property
    def present(self) -> list[_JobSeen]:
        """The jobs that existed at the last read."""
        return list(self._by_path.values())

    @property
    def seen(self) -> list[_JobSeen]:
        """All jobs that this process has seen, including removed jobs."""
        return list(self._by_job.values())

    def read(self) -> None:
        """Read changed jobs for at most two seconds, first the jobs that were not read for the longest time. Blocks."""
        self._folders = self._folders or JobFolders.from_environ()
        end = self._clock() + _READ_S
        try:
            folders = list(self._folders.all())
        except PromptmillError:  # skipped: the folder of all jobs is unreadable at the moment
            return
        stamps = {folder.path: (folder, folder.stamp) for folder in folders}
        left = [(folder, stamp) for folder, stamp in stamps.values() if stamp and not self._is_known(folder, stamp)]
        places = {path: place for place, path in enumerate(self._by_path)}
        left.sort(key=lambda one: places.get(one[0].path, -1))
        present = {path: job for path, job in self._by_path.items() if stamps.get(path, (None, None))[1]}
        while left and self._clock() < end:
            folder, stamp = left.pop(0)
            present.pop(folder.path, None)
            if (job := self._noted(folder, stamp)) is not None:
                present[folder.path] = job  # put last, so that the next page begins with the jobs not read now
        self.unread = len(left)
        self._by_path = present

    def _is_known(self, folder: Folder, stamp: object) -> bool:
        job = self._by_path.get(folder.path)
        return job is not None and job.stamp == stamp

    def _noted(self, folder: Folder, stamp: object) -> _JobSeen | None:
        """Return the job in `folder` with its status; None if it does not exist."""
        spec, last = folder.spec_and_status()
        if spec is None:
            return None
        job_status = status.of(folder, spec, last)
        key = folder.path, spec.created
        job = self._by_job.setdefault(key, _JobSeen(spec.provider or spec.backend, spec.model))
        job.note(job_status, None if job_status["state"] in ALIVE else stamp)
        return job


def _text(found: Mapping[str, Series], *, of_jobs: bool) -> str:
    """Return families as text, with their series. `of_jobs`: only families of jobs; otherwise, only other families."""
    lines: list[str] = []
    for family, (kind, help_text) in FAMILIES.items():
        if family.startswith("job") != of_jobs:
            continue
        name = full_name(family)
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        kinds = {"_bucket": family, "_sum": f"{family}_sum", "_count": f"{family}_count"}
        for suffix, part in kinds.items() if kind == "histogram" else [("", family)]:
            counted = "le" if kind == "histogram" else "outcome"
            lines += [
                f"{name}{suffix}{_labelled(labels, **{counted: key})} {value:.15g}"
                for (labels, key), value in found.get(part, {}).items()
            ]
    return "".join(f"{line}\n" for line in lines)


def full_name(family: str) -> str:
    """Return the name of a family on the page."""
    return family if family.startswith("gen_ai_") else f"promptmill_{family}"


def _labelled(labels: Labels | None, **more: str | None) -> str:
    """Return the labels of a sample."""
    pairs = {} if labels is None else {"provider": labels[0], "model": labels[1]}
    given = pairs | {name: value for name, value in more.items() if value is not None}
    inside = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in given.items())
    return f"{{{inside}}}" if inside else ""
