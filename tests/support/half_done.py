"""A job as a run that was killed leaves it: begun, with some rows answered, and run by nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from promptmill.backends.protocol import Completion, Outcome, Usage
from promptmill.config.configuration import Configuration
from promptmill.jobs.door import OpenJob
from promptmill.jobs.store import progress, rounds
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.records import record_of
from promptmill.jobs.store.rounds import Round


def answers(first: int, end: int) -> dict[int, Outcome]:
    """Return the upstream's answers to the rows from `first` to before `end`, with prompts "prompt 0" and so on."""
    return {
        row: Completion(f"echo: prompt {row}", "stop", Usage(2, 3), latency_s=0.0052 + row / 1e6)
        for row in range(first, end)
    }


def leaving(outcomes: Mapping[int, Outcome]) -> Callable[..., int]:
    """Return what takes the place of `promptmill.cli.bulk.run`: it leaves the job with these outcomes."""

    def run(_arguments: Any, _configuration: Configuration, opened: OpenJob, **_: Any) -> int:
        job = opened.admit()
        try:
            if (files := job.unread()) is not None:
                job.reading(files)(Work(), job.folder)
                job.spec = job.folder.known_spec()
            store, again = job.folder.store, job.order.earlier.again
            asked = {row.n: row.asked for row in store.rows()}
            reason = "first" if again is None else f"again {again}"
            round_ = Round(job.change.since + 1, "open" if again is None else reason, reason, since=job.change.since)
            rounds.store_round(store, round_)
            made = job.spec.targets[0].made(round_.id)
            store.write([record_of(row, outcome, asked[row], made) for row, outcome in outcomes.items()])
            job.folder.put(status={**job.folder.status, "state": progress.RUNNING})
        finally:
            job.close()
        return 0

    return run
