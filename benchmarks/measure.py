"""Pairs, ratios of medians and their spread; cores; what a process has used."""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import psutil

Run = Callable[[], Awaitable[float]]


@dataclass(slots=True)
class Row:
    """One line of the table. `spread` holds the quartiles of the ratio pair by pair; `target` is a bound on `value`."""

    case: str
    what: str
    value: float
    target: float | None = None
    better: Literal["<=", ">="] = "<="
    unit: str = "x"
    spread: tuple[float, float] | None = None
    detail: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the figure is reached; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "<=" else self.value >= self.target

    def as_json(self) -> dict[str, Any]:
        """Return the row for the JSON file."""
        return asdict(self) | {"met": self.met}


async def interleaved(pairs: int, **runs: Run) -> dict[str, list[float]]:
    """Return `pairs` values of each run, taken in turn; every other round goes backwards, so that drift cancels."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(pairs):
        order = list(runs.items())
        for name, run in order if index % 2 == 0 else reversed(order):
            found[name].append(await run())
            print(f"  {name}: {found[name][-1]:.4g}", file=sys.stderr)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the ratio of medians, and the quartiles of the ratios pair by pair."""
    each = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else (each[0],) * 3
    return statistics.median(ours) / statistics.median(theirs), (low, high)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` % of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that process `pid` has used."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def family_cpu_s(pid: int) -> float:
    """Return the CPU seconds that process `pid` and its children have used."""
    return sum(cpu_s(process.pid) for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)))


def own_cpu_s() -> float:
    """Return the CPU seconds that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def pin(core: int | None) -> None:
    """Keep this process on `core`, where the platform can."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def every_core(then: int | None) -> Iterator[None]:
    """Let this process and what it starts run on every core meanwhile, as engines do; `then` is for `pin`."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        pin(then)


def cores() -> tuple[int | None, int | None]:
    """Return one core for what is measured and one for everything around it; None where they cannot be chosen."""
    if not hasattr(os, "sched_getaffinity") or len(usable := sorted(os.sched_getaffinity(0))) < 2:
        return None, None
    return usable[-1], usable[0]
