"""A series of jobs: the steps of a command or function, without output files, with one budget.

The id of a step depends on its rows, prompts and settings; its rows may depend on answers of earlier steps. So a
repeated series starts or resumes the same jobs in the same order: after a kill, finished steps and their answers are
reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from promptmill.config.loading import Configuration
from promptmill.core.values import JsonDict, JsonObject
from promptmill.jobs.caller import Caller, CallModels
from promptmill.jobs.door import OpenJob, Rows, open_job
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import Shown
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.options.keywords import ModelOptions


class SeriesOptions(ModelOptions, total=False):
    """The options of a Python function that runs a series of jobs; options that `bulk` has too mean the same."""

    system: str
    temperature: float | None
    max_tokens: int | None
    encoding: str | None
    max_cost: float | None
    """The most that all steps together may spend, in US dollars."""
    state: str | Path | None
    progress: bool | Callable[[JsonObject], object] | None


@dataclass(frozen=True, slots=True)
class StepModel:
    """The model of a step, and the function that runs its jobs."""

    models: Configuration | CallModels
    run: Callable[[OpenJob], object]
    """Runs a job until it is finished; a finished job is not run again. Raises if the job stops early."""
    command: Sequence[str] = ()
    """The command that resumes one of the model's jobs, without the job's id."""


@dataclass
class JobSeries:
    """A series of jobs with a common budget."""

    folders: JobFolders
    reason: str
    """The reason for the jobs' rounds: the name of the command."""
    max_cost: float | None = None
    """The most that all steps together may spend, in US dollars."""
    caller: Caller | None = None
    """The caller of the series. Another owner's equal series has separate jobs."""
    spent: JsonDict = field(default_factory=dict)
    """The summed counts and costs of the jobs so far."""

    def run(self, name: str, rows: Iterable[JsonObject], options: Mapping[str, Any], model: StepModel) -> Folder:
        """Run the job `name` for rows and options of `JobOrder.of`, and return its folder. Raises `PromptmillError`."""
        with self._opened(name, rows, options, model) as job:
            assert job.loose is not None
            try:
                model.run(job)
            finally:
                self._count(job.loose)
            return job.loose

    def validate(self, name: str, rows: Iterable[JsonObject], options: Mapping[str, Any], model: StepModel) -> JsonDict:
        """Check a job that `run` would run, and return the estimate of its cost. Sends nothing. Raises as `run`."""
        with self._opened(name, rows, options, model) as job:
            return job.validate()

    def _opened(
        self, name: str, rows: Iterable[JsonObject], options: Mapping[str, Any], model: StepModel
    ) -> AbstractContextManager[OpenJob]:
        left = None if self.max_cost is None else max(0.0, self.max_cost - self.spent.get("cost", 0.0))
        lines = (orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        owner = None if self.caller is None else self.caller.owner or None
        shown = Shown(command=[*model.command], reason=self.reason)
        asked = Rows(blocks=lines, name=name, owned_by=owner)
        options = {**options, "max_cost": left}
        return open_job(asked, None, options, model.models, self.folders, shown=shown, caller=self.caller)

    def _count(self, folder: Folder) -> None:
        if folder.spec is None:
            return
        now: JsonObject = status.read(folder)
        if "cost" in now:  # without a price, there is no cost
            self.spent["cost"] = self.spent.get("cost", 0.0) + now["cost"] + now.get("cost_set_aside", 0.0)
        for name in ("requests", "seconds"):
            self.spent[name] = self.spent.get(name, 0) + now.get(name, 0)


def answers_in(folder: Folder, rows: int, slots: int = 1) -> list[list[str]]:
    """Return the answers of a job to each of its rows, by slot; `""` for a row that failed."""
    found = [[""] * rows for _ in range(slots)]
    with folder.reading() as store:
        for record in store.records(where=ANSWERED):
            found[record.slot][record.row] = record.text
    return found
