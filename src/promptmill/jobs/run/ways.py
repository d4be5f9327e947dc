"""The ways to answer the requests of a round: live, and the ways of features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from promptmill.backends.protocol import Answer, Call
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.feature import features, part
from promptmill.jobs.run.job import Job
from promptmill.jobs.run.live import OpenRows, StoreSink, answer_rows
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.progress import Progress
from promptmill.jobs.store.rounds import stored_rounds
from promptmill.service.service import Service


@dataclass(frozen=True, slots=True)
class RoundRun:
    """A round that sends requests, and the objects it needs."""

    job: Job
    service: Service
    progress: Progress
    rows: OpenRows
    """The open rows of the round."""
    sink_of: Callable[[type[StoreSink], Call], StoreSink]
    """Makes the sink for the rows' outcomes."""
    is_cancelled: Callable[[], bool]
    """Returns whether the user has cancelled the job."""
    no_room: Callable[[PromptmillError], None]
    """Called with the error of a row that exceeds the whole budget."""
    around: Callable[[Answer], Answer]
    """The plan's wrapper of `answer`, see `spec.PlanWork`."""


class Way(Protocol):
    """A way to answer the requests of a round."""

    @staticmethod
    async def run(round_: RoundRun) -> None:
        """Run a round to its end. Raises `PromptmillError`, and the errors of `JobDatabase`."""
        ...

    @staticmethod
    def figures(store: JobDatabase, config: ResolvedConfig) -> Mapping[str, object]:
        """Return the figures of a job that has rounds of this way. Blocks. Raises the errors of `JobDatabase`."""
        ...


class Live:
    """Sends the request of each row immediately."""

    @staticmethod
    async def run(round_: RoundRun) -> None:
        """Answer every open row."""
        stats = round_.progress.stats
        sink = round_.sink_of(StoreSink, stats)
        await answer_rows(round_.service, round_.rows, sink, stats, round_.job.plan, around=round_.around)

    @staticmethod
    def figures(store: JobDatabase, config: ResolvedConfig) -> Mapping[str, object]:
        """Return no figures."""
        del store, config
        return {}


def way_named(name: str) -> type[Way]:
    """Return the way with this name. Raises `PromptmillError` (`invalid_input`) if its feature is missing."""
    if (place := _places().get(name)) is None:
        raise input_error(Named(name), " needs a feature that is not installed.")
    way: type[Way] = part(place)
    return way


def _places() -> dict[str, str]:
    """Return the module and class name of each way."""
    return {
        "live": f"{__name__}:Live",
        **{entry.name: entry.run for feature in features().values() for entry in feature.ways},
    }


def figures(store: JobDatabase, config: ResolvedConfig) -> dict[str, object]:
    """Return the figures of all ways that answered rows of a job. Blocks. Raises the errors of `JobDatabase`."""
    of_ways = dict[str, object]()
    for name in {round_.way for round_ in stored_rounds(store)} & _places().keys():
        of_ways |= way_named(name).figures(store, config)
    return of_ways
