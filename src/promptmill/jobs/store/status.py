"""The progress of a job: its runner writes it, any process reads it, and it is shown as lines of text."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TextIO, TypeAlias

from promptmill import __version__
from promptmill.backends.protocol import COUNTERS, Call
from promptmill.core.money import dollars
from promptmill.core.wording import duration
from promptmill.jobs.store.answers import IN_FLIGHT, DamagedError, InFlight, JobStore
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.records import JobCounts
from promptmill.jobs.store.spec import JobSpec

STARTING, RUNNING, MERGING = "starting", "running", "merging"
FINISHED, STOPPED, CANCELLED, INTERRUPTED = "finished", "stopped", "cancelled", "interrupted"
# Keys of `Progress.as_dict` that count the whole job, over all its runs.
COUNTS = (
    *("total", "done", "answered", "failed", "errors", "skipped", "truncated", "empty", *COUNTERS, "latency_s"),
    *("cost", "cached", "repaired", "asked_again"),
)
_BESIDE = ("cached", "repaired", "asked_again")
ALIVE = frozenset({STARTING, RUNNING, MERGING})
ENDED = frozenset({FINISHED, STOPPED, CANCELLED, INTERRUPTED})
_RATE_OVER_S = 30.0
_LINE_EVERY_S = 5.0
_SHORTEST_WAIT_S = 2.0  # of the last rows
_SAMPLES = 300
_SAMPLE_EVERY_S = 1.0
_RUNS = 50
_SHORT_S = 100


class Progress:
    """The live picture of one run. Times are of `time.monotonic`, so a clock that is set does no harm."""

    def __init__(
        self,
        counts: JobCounts,
        stats: Call,
        earlier: Mapping[str, Any] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`earlier` is the status that the run before left."""
        self.counts = counts
        self.stats = stats
        self.state = STARTING
        self.activity = ""
        self.reason = ""
        self.total: int | None = None
        self.written = 0
        """Rows of the output that are written."""
        self.notes: list[str] = []
        self.results: Mapping[str, Any] = {}
        """The counts of different answers, see `JobStore.results`; empty until the output is written."""
        self.columns: Mapping[str, str] = {}
        """The names of columns of the output that are not the usual ones."""
        self.set_aside = 0.0
        """The most that requests cost whose rows have no record."""
        self.earlier = _Earlier(earlier)
        self.course = Course()
        self.is_counted = False
        """Whether `counts` includes the costs of this run, because all records were counted again."""
        self._times = _Times(clock)

    def count(self, store: JobStore, again: str) -> None:
        """Count the answers; rows whose record meets `again` are not done. Blocks. Raises as `JobStore` does."""
        counts = store.counts(again, skips_empty=self.counts.skips_empty)
        self.counts = counts
        self.earlier.count(store)

    @property
    def cost(self) -> float | None:
        """The cost of all runs, None where the price is unknown."""
        now, before = self.stats.cost, self.earlier.cost
        return None if now is None and before is None else round((now or 0.0) + (before or 0.0), 9)

    @property
    def seconds(self) -> float:
        """Wall time of all runs."""
        return self.earlier.seconds + self._times.seconds

    def pass_row(self, rows: int) -> None:
        """Take notice that so many rows of the output are written."""
        self.written = rows

    def begin_rates(self) -> None:
        """Have the rates count from here: what is done already was done by earlier runs."""
        self._times.begin()
        self.sample()

    def sample(self) -> None:
        """Note how far it is, about once a second, for the rates."""
        left = None if self.total is None else self.total - self.counts.done
        is_last = left is not None and 0 < left <= self.stats.in_flight
        self._times.sample(
            self.counts.done, self.stats.completion_tokens, waits=bool(self.stats.waiting), is_last=is_last
        )

    def rates(self) -> tuple[float, float]:
        """Return rows and answers' tokens per second, lately."""
        return self._times.per_second(self.counts.done, self.stats.completion_tokens)

    def eta_s(self) -> float | None:
        """Return the seconds left at the rate of the last seconds without pauses, None when they are unknown."""
        rate, _ = self.rates()
        if self.total is None or rate <= 0:
            return None
        return max(0.0, (self.total - self.counts.done) / rate)

    @property
    def waiting(self) -> str:
        """The reason why the job is stalled, or which rows are the last ones; `""` while others are sent."""
        if self.state != RUNNING:
            return ""
        return self.stats.waiting or self._last_rows()

    def _last_rows(self) -> str:
        """Return for what the last rows wait, and how long, once all of them are in flight for some seconds."""
        since_s, flow = self._times.last_s, self.stats.flow
        left = 0 if self.total is None else self.total - self.counts.done
        if since_s < _SHORTEST_WAIT_S or flow is None or not 0 < left <= self.stats.in_flight:
            return ""
        usual_s = self.counts.latencies.quantile(0.95) or 0.0
        how_long = f"{usual_s:.0f} s each" if usual_s >= since_s else f"{since_s:.0f} s so far"
        which = "row waits" if left == 1 else f"{left:,} rows wait"
        return f"the last {which} for {flow.where or 'the endpoint'} ({how_long})"

    def as_dict(self) -> dict[str, Any]:
        """Return the picture for people and programs."""
        rate, tokens = self.rates()
        earlier = self.earlier
        waiting, budget = self.waiting, self.stats.budget
        eta_s = self.eta_s() if self.state == RUNNING and not waiting else None
        counts = self.counts.as_dict(Call() if self.is_counted else self.stats)
        # until the answers are counted, those that the run before left
        left = {} if earlier.is_added else {name: earlier.status[name] for name in COUNTS if name in earlier.status}
        set_aside = round(self.set_aside, 9)
        return {
            "state": self.state,
            "reason": self.reason,
            "activity": self.activity,
            "total": self.total,
            **counts,
            "requests": counts["requests"] + earlier.lost,
            **({"run_requests": self.stats.requests} if earlier.seconds else {}),
            **({"columns": dict(self.columns)} if self.columns else {}),
            **({"results": dict(self.results)} if self.results else {}),
            **({} if self.cost is None else {"cost": self.cost}),
            **({} if budget is None else {"max_cost": budget.limit}),
            **({"cost_set_aside": set_aside} if set_aside or "cost_set_aside" in earlier.status else {}),
            **({"cost_forgotten": earlier.forgotten} if earlier.forgotten else {}),
            **{name: count for name in _BESIDE if (count := earlier.status.get(name, 0) + getattr(self.stats, name))},
            **({"written": self.written} if self.state == MERGING else {}),
            "in_flight": self.stats.in_flight if self.state == RUNNING else 0,
            **({"window": self.stats.flow.limit} if self.stats.flow is not None and self.state == RUNNING else {}),
            **({"refused": self.stats.refused} if self.stats.refused else {}),
            **({"waiting": waiting} if waiting else {}),
            "rows_per_second": round(rate, 2),
            "tokens_per_second": round(tokens, 1),
            "eta_s": None if eta_s is None else round(eta_s, 1),
            "seconds": round(self.seconds, 2),
            "updated": time.time(),
            "warnings": [*self.notes, *self.stats.warnings],
        } | left


Watch: TypeAlias = Callable[[Progress], None]
"""Gets the progress several times a second."""


def spent(folder: Folder) -> float:
    """Return the cost of a job, with the highest possible cost of its requests without a record. Blocks.

    Its status may lack what a runner that was killed spent last. Raises `OSError` and `DamagedError`.
    """
    found = folder.status
    earlier = _Earlier(found)
    with folder.reading() as store:
        earlier.cost = max(earlier.cost or 0.0, store.cost() + earlier.forgotten)
    return earlier.cost + InFlight.most_in(folder.path / IN_FLIGHT)


class _Earlier:
    """The seconds, costs and counts of the earlier runs of the job."""

    def __init__(self, status: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.status = status
        self.is_added = False
        """Whether the answers are counted; until then, the counts of `status` are the job's."""
        self.lost = 0
        """Requests that no record counts."""
        seconds, forgotten = status.get("seconds"), status.get("cost_forgotten")
        self.seconds = float(seconds) if isinstance(seconds, int | float) else 0.0
        self.forgotten = float(forgotten) if isinstance(forgotten, int | float) else 0.0
        """The cost of requests whose rows are unknown, because the input changed after a kill."""
        self.cost: float | None = status.get("cost")

    def charge(self, cost: float) -> None:
        """Add what requests cost whose rows are not known any more."""
        self.cost = (self.cost or 0.0) + cost
        self.forgotten += cost

    def count(self, store: JobStore) -> None:
        """Add, once, what a run that was killed did not show. Blocks. Raises as `JobStore` does."""
        if self.is_added:
            return
        if self.status.get("state") in ALIVE:
            self.cost = max(store.cost() + self.forgotten, self.cost or 0.0) or self.cost
        self.lost = store.in_flight.requests_lost
        self.is_added = True


class _Times:
    """When the run began, and how fast it was over the last seconds in which it was not stalled.

    The rates are of a clock that stands still while the run waits: after an outage of an hour, a rate over the last
    half minute of any other clock would be next to nothing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._samples: deque[tuple[float, int, int]] = deque()
        self._paused_s = 0.0
        self._paused_since: float | None = None
        self._last_since: float | None = None

    @property
    def seconds(self) -> float:
        """The time since the run began."""
        return self._clock() - self._began

    @property
    def last_s(self) -> float:
        """For how long the last rows have been in flight, as far as samples show it; 0 while others are to be sent."""
        return 0.0 if self._last_since is None else self._clock() - self._last_since

    def begin(self) -> None:
        """Forget the samples."""
        self._samples.clear()

    def sample(self, rows: int, tokens: int, *, waits: bool, is_last: bool) -> None:
        """Note how far the job is, about once a second: `waits` while it is stalled, `is_last` at its last rows."""
        now = self._clock()
        if not is_last:
            self._last_since = None
        elif self._last_since is None:
            self._last_since = now
        if waits and self._samples:  # it has waited since some time after the sample before
            if self._paused_since is None:
                self._paused_since = self._samples[-1][0] + self._paused_s
            return
        if self._paused_since is not None:
            self._paused_s += now - self._paused_since
            self._paused_since = None
        self._samples.append((now - self._paused_s, rows, tokens))
        while len(self._samples) > 2 and self._samples[0][0] < now - self._paused_s - _RATE_OVER_S:
            self._samples.popleft()

    def per_second(self, rows: int, tokens: int) -> tuple[float, float]:
        """Return rows and answers' tokens per second, now that there are so many."""
        if not self._samples:
            return 0.0, 0.0
        then, rows_then, tokens_then = self._samples[0]
        now = self._clock() if self._paused_since is None else self._paused_since
        seconds = max(now - self._paused_s - then, 0.001)
        return max(0.0, (rows - rows_then) / seconds), max(0.0, (tokens - tokens_then) / seconds)


class Course:
    """The course of a job's runs in a bounded number of samples, which are further apart in a longer job."""

    def __init__(self, earlier: Mapping[str, Any] = MappingProxyType({})) -> None:
        """`earlier` is the course that the run before left."""
        self._samples: list[list[float | None]] = list(earlier.get("samples", ()))
        self._runs: list[Mapping[str, Any]] = list(earlier.get("runs", ()))
        self._every_s = float(earlier.get("every_s", _SAMPLE_EVERY_S))
        self._has_begun = False

    def note(self, status: Mapping[str, Any]) -> bool:
        """Take a sample of a status if one is due; return whether it was."""
        seconds, has_ended = status["seconds"], status["state"] in ENDED
        if not self._has_begun:
            if status["state"] != RUNNING:
                return False
            self._has_begun = True
            began = {"at": seconds, "began": round(status["updated"]), "version": __version__}
            self._runs = [*self._runs[-_RUNS + 1 :], began]
        elif not has_ended and seconds - (self._samples[-1][0] or 0) < self._every_s:
            return False
        names = ("seconds", "done", "failed", "in_flight", "window", "refused")
        self._samples.append([*map(status.get, names), int("waiting" in status)])
        if len(self._samples) > _SAMPLES:
            self._samples = self._samples[::2]
            self._every_s *= 2
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return `runs`, `samples` and the seconds between two of them.

        A sample has the seconds of all runs so far, the rows done and failed, the requests in flight, their limit, the
        refusals in this run, and whether the job waited.
        """
        return {"runs": self._runs, "samples": self._samples, "every_s": self._every_s}


def write_starting(folder: Folder) -> None:
    """Write that a run of the job in `folder`, which is open here, is about to start. Raises as `JobStore` does."""
    folder.put(status={**folder.status, "state": STARTING, "reason": "", "updated": time.time()})


def read(folder: Folder) -> dict[str, Any]:
    """Return the status of the job in `folder`. A running job that no process runs was interrupted.

    Raises `PromptmillError` (`invalid_input`) when it was removed meanwhile.
    """
    spec, last = folder.spec_and_status()
    if spec is None:
        raise folder.gone()
    return of(folder, spec, last)


def of(folder: Folder, spec: JobSpec, last: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same of the job `spec`, whose runner wrote the status `last`."""
    found: dict[str, Any] = {"state": INTERRUPTED, **last}
    alive = folder.alive
    if not alive and found["state"] in ALIVE:
        found.pop("waiting", None)
        found |= {"state": INTERRUPTED, "in_flight": 0, "eta_s": None, "rows_per_second": 0.0, "tokens_per_second": 0.0}
    about: dict[str, Any] = {"job_id": spec.job_id, "input_file": str(spec.input), "output_file": str(spec.output)}
    about |= {"model": spec.model, "backend": spec.backend, "created": spec.created}
    return about | found | {"alive": alive}


def asked(folder: Folder) -> dict[str, str]:
    """Return the prompt of the job in `folder` (a template, or the column that holds it) and its system prompt."""
    spec, request = folder.spec, folder.request
    column = "" if spec is None or spec.prompt_column is None else f"column {spec.prompt_column}"
    prompt = "" if spec is None else spec.prompt_template or column
    found = {"prompt": prompt, "system": "" if request is None else request.system_prompt}
    if request is not None and request.command:
        found["command"] = shlex.join(["promptmill", *request.command])
    return {name: text for name, text in found.items() if text}


def read_all(
    folders: Iterable[Folder], is_shown: Callable[[Folder, JobSpec], bool] = lambda *_: True
) -> list[dict[str, Any]]:
    """Return the status of each job that is still there and `is_shown`, the newest first."""
    found = []
    for folder in folders:
        spec, last = folder.spec_and_status()
        if spec is not None and is_shown(folder, spec):
            found.append(of(folder, spec, last))
    return sorted(found, key=lambda one: -one["created"])


def examples(folder: Folder) -> dict[str, str]:
    """Return a message for each code of failures, as far as the job's database says."""
    try:
        with folder.reading() as store:
            return store.examples()
    except (OSError, DamagedError):
        return {}


def results(folder: Folder) -> dict[str, Any]:
    """Return the counts of the answers so far, see `JobStore.results`; `{}` when the job's database cannot be read."""
    spec = folder.spec
    try:
        with folder.reading() as store:
            return store.results(by_field=spec is not None and spec.answer_schema is not None)
    except (OSError, DamagedError):
        return {}


def failures(folder: Folder, most: int) -> list[dict[str, Any]]:
    """Return `row` (from 1), `code` and `message` of the first `most` rows that failed. Raises as `JobStore` does."""
    spec = folder.spec
    with folder.reading() as store:
        found = store.failures(most, skips_empty=spec is not None and spec.skip_empty)
        return [{"row": one.row + 1, "code": one.code, "message": one.text} for one in found]


def progress_lines(job_id: str, stream: TextIO) -> Watch:
    """Return a function that writes a line about the job to `stream` every few seconds."""
    told, state, waited = time.monotonic(), "", False

    def watch(progress: Progress) -> None:
        nonlocal told, state, waited
        now, waits = time.monotonic(), waited or bool(progress.waiting)
        if progress.state == state and now - told < _LINE_EVERY_S and waits == waited:
            return
        told, state, waited = now, progress.state, waits
        doing = f" ({progress.activity})" if progress.activity else ""
        with contextlib.suppress(OSError):  # a full disk or a closed stream is no reason to end a job
            print(
                f"{time.strftime('%H:%M:%S')} {job_id}: {state}{doing}, {line(progress.as_dict())}",
                file=stream,
                flush=True,
            )

    return watch


def line(status: Mapping[str, Any]) -> str:
    """Return one line on how far a job is."""
    total = status.get("total")
    parts = [
        f"{answered(status):,}{'' if total is None else f' of {total:,}'} answered",
        f"{status.get('failed', 0):,} failed",
    ]
    if status.get("state") == RUNNING and (waiting := status.get("waiting")):
        parts.append(waiting)
    elif status.get("state") == MERGING and "written" in status:
        parts.append(f"{status['written']:,} written")
    elif status.get("state") == RUNNING:
        parts.append(f"{status['rows_per_second']:.1f} rows/s")
        parts.append(f"{status['tokens_per_second']:.0f} tokens/s")
        parts.append(in_flight(status))
        if status.get("eta_s") is not None:
            parts.append(f"{duration(status['eta_s'])} left")
    return ", ".join(parts)


def answered(status: Mapping[str, Any]) -> int:
    """Return how many rows have an answer."""
    done = status.get("done", 0) - status.get("failed", 0) - status.get("skipped", 0)
    return int(status.get("answered", done))  # a job of an earlier release has not counted them


def paid(status: Mapping[str, Any]) -> str:
    """Return `, $0.02`, with the amount that is set aside; `""` where the price is unknown."""
    aside = status.get("cost_set_aside")
    if status.get("cost") is None and not aside:
        return ""
    more = f" and at most {dollars(aside)} for requests without an answer" if aside else ""
    return f", {dollars(status.get('cost') or 0.0)}{more}"


def in_flight(status: Mapping[str, Any]) -> str:
    """Return how many requests are in flight, of how many that may be, and how many were refused for load."""
    window, refused = status.get("window"), status.get("refused")
    of = "" if window is None else f" of {window}"
    return f"{status['in_flight']}{of} in flight" + (f", {refused} refused" if refused else "")


def lengths(results: Mapping[str, Any]) -> str:
    """Return the range of the lengths of the answers, whose counts are `results`."""
    shortest, longest = results["shortest"], results["longest"]
    found = f"{shortest:,}" if shortest == longest else f"{shortest:,}\N{EN DASH}{longest:,}"
    return f"{found} {'character' if longest == 1 else 'characters'}"


def span(field: Mapping[str, Any]) -> str:
    """Return the range and the mean of the numbers in a field of the answers."""
    low, high, mean = (f"{field[name]:,.6g}" for name in ("min", "max", "mean"))
    return low if low == high else f"{low}\N{EN DASH}{high}, mean {mean}"


def figure(value: float) -> str:
    """Return a number with two significant digits, or all in front of the point."""
    return f"{value:,.0f}" if value >= 100 else f"{float(f'{value:.2g}'):g}"


def took(seconds: float) -> str:
    """Return how long something has taken: `1.8 s`, or `2:03` from 100 seconds on."""
    return f"{figure(seconds)} s" if seconds < _SHORT_S else duration(seconds)
