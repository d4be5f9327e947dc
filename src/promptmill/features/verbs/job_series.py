"""A series of jobs: the steps of a command or function. They have no output files, and share one budget.

The id of a step depends on its rows, prompts and settings; its rows may depend on answers of earlier steps. So a
repeated series starts or resumes the same jobs in the same order: after a kill, finished steps and their answers are
reused. If rows have changed, a new job reuses the answers of earlier jobs to equal requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from promptmill.core.values import JsonDict, JsonObject
from promptmill.jobs.caller import Caller
from promptmill.jobs.door import MadeRows, OpenJob, open_job
from promptmill.jobs.manage.series_file import SeriesFile
from promptmill.jobs.manage.step_model import StepModel, has_settings_of
from promptmill.jobs.store import progress, status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import OrderTexts
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.options.keywords import ModelOptions

_EARLIER = 20  # the largest number of a step's earlier jobs (the newest ones) whose answers are searched


class SeriesOptions(ModelOptions, total=False):
    """The options of a Python function that runs a series of jobs. Options that `bulk` also has mean the same here."""

    system: str
    temperature: float | None
    max_tokens: int | None
    encoding: str | None
    max_cost: float | None
    """The most that all steps together may spend, in US dollars."""
    state: str | Path | None
    progress: bool | Callable[[JsonObject], object] | None


@dataclass
class JobSeries:
    """A series of jobs with a common budget."""

    folders: JobFolders
    reason: str
    """The reason for the jobs' rounds: the name of the command."""
    max_cost: float | None = None
    """The most that all steps together may spend, in US dollars."""
    caller: Caller | None = None
    """The caller of the series. If another owner runs an equal series, it gets separate jobs."""
    target: SeriesFile | None = None
    """The file that the series writes at its end. Its path must be free before a step sends anything."""
    spent: JsonDict = field(default_factory=dict)
    """The summed counts and costs of the jobs so far."""
    sent: int = 0
    """The number of requests that this series has sent. Jobs that were already finished do not count."""

    taken: dict[Path, int] = field(default_factory=dict)
    """The number of answers that the new jobs of this series reused from another series, instead of sending equal
    requests, by the output of the other series."""

    def run(self, name: str, rows: Iterable[JsonObject], options: Mapping[str, Any], model: StepModel) -> Folder:
        """Run the job `name`, and return its folder. `options`: as in `JobOrder.of`. Raises `PromptmillError`."""
        with self._opened(name, rows, options, model) as job:
            assert job.loose is not None
            before, wanted = _requests(job.loose), self._with_earlier(job, job.loose)
            try:
                if self.target is not None:
                    self.target.check_free(wanted)
                model.run(wanted)
            finally:
                self._count(job.loose, before)
            self._count_taken(job.loose, wanted.order.earlier.from_jobs)
            return job.loose

    def validate(self, name: str, rows: Iterable[JsonObject], options: Mapping[str, Any], model: StepModel) -> JsonDict:
        """Check a job that `run` would run, and return the estimate of its cost. Sends nothing. Raises as `run`."""
        with self._opened(name, rows, options, model) as job:
            return job.validate()

    def finished(
        self, name: str, rows: Iterable[JsonObject], options: Mapping[str, Any], model: StepModel
    ) -> Folder | None:
        """Return the folder of a job that `run` would run, if it is finished; else None. Raises as `run`."""
        with self._opened(name, rows, options, model) as job:
            assert job.loose is not None
            return job.loose if job.loose.status.get("state") == progress.FINISHED else None

    def _opened(
        self, name: str, rows: Iterable[JsonObject], options: Mapping[str, Any], model: StepModel
    ) -> AbstractContextManager[OpenJob]:
        left = None if self.max_cost is None else max(0.0, self.max_cost - self.spent.get("cost", 0.0))
        lines = (orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        owner = None if self.caller is None else self.caller.owner or None
        shown = OrderTexts(command=[*model.command], reason=self.reason)
        asked = MadeRows(lines, name=name, owned_by=owner)
        options = {**options, "max_cost": left}
        return open_job(asked, None, options, model.models, self.folders, shown=shown, caller=self.caller)

    def _with_earlier(self, job: OpenJob, folder: Folder) -> OpenJob:
        """Return the job. A new job reuses the answers of its step's earlier jobs to equal requests, so that only
        changed rows are sent."""
        if self.caller is not None or folder.path.exists() or job.order.earlier.again == "all":
            return job
        step = folder.path.name.rpartition("-")[0]
        every = {other.path: other for at in (self.folders, self.folders.every) if at is not None for other in at.all()}
        others = [other for path, other in every.items() if path.name.rpartition("-")[0] == step]
        newest = sorted(others, key=_changed, reverse=True)[:_EARLIER]
        found = [other.database for other in newest if has_settings_of(other, job)]
        return replace(job, order=job.order.with_earlier(from_jobs=tuple(found))) if found else job

    def _count(self, folder: Folder, before: int) -> None:
        """Add the figures of a job to the series. `before`: the number of the job's requests before it ran."""
        if folder.spec is None:
            return
        now: JsonObject = status.read(folder)
        if "cost" in now:  # without a price, there is no cost
            self.spent["cost"] = self.spent.get("cost", 0.0) + now["cost"] + now.get("cost_set_aside", 0.0)
        new = now.get("requests", 0) - before
        self.sent += max(0, min(new, now.get("run_requests", new)))  # interrupted requests are counted later
        for name in ("requests", "seconds"):
            self.spent[name] = self.spent.get(name, 0) + now.get(name, 0)

    def _count_taken(self, folder: Folder, earlier: Sequence[Path]) -> None:
        now = status.read(folder)
        equal = next((path.parent for path in earlier if path.parent.name == folder.path.name), None)
        output = None if equal is None else Folder(equal).series_beside
        if output is not None and not now.get("requests"):
            self.taken[output] = self.taken.get(output, 0) + now.get("answered", 0)


def _requests(folder: Folder) -> int:
    """Return the number of a job's requests, which is right even after a kill, when the stored status may lack some."""
    return 0 if folder.spec is None else status.read(folder).get("requests", 0)


def _changed(folder: Folder) -> float:
    """Return the time of the job's last change; 0.0 if the job was removed meanwhile."""
    with suppress(OSError):
        return folder.database.stat().st_mtime
    return 0.0


def answers_in(folder: Folder, rows: int, slots: int = 1) -> list[list[str]]:
    """Return the answers of a job to each of its rows, by slot; `""` for a row that failed."""
    found = [[""] * rows for _ in range(slots)]
    with folder.reading() as store:
        for record in store.records(where=ANSWERED):
            found[record.slot][record.row] = record.text
    return found
