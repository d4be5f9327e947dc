"""The cost of a recipe's jobs in all its runs, and the outputs that its steps wrote.

A record in the hidden folder next to the recipe lists each job before its first request, so that a kill loses none. The
cost of a job is read from the job itself.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict
from promptmill.files import disk, table_paths
from promptmill.jobs.door import OpenJob
from promptmill.jobs.manage.step_model import has_settings_of
from promptmill.jobs.run.job import EndedJob
from promptmill.jobs.store import progress, status
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.folder import HIDDEN, Folder, new_id
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.status_record import Status
from promptmill.system.safe_open import real_path
from promptmill.system.state import state_folder


@dataclass(frozen=True, slots=True)
class Search:
    """A search that a step has finished."""

    digest: str
    """The digest of the step, see `RecipeStep.digest`."""
    jobs: Sequence[str]
    """The folders of the search's jobs."""


@dataclass
class StepFigures:
    """The figures of a step in this run of its recipe."""

    requests: int = 0
    cost: float | None = None
    """The cost in US dollars; None without a known price."""
    jobs: list[Status] = field(default_factory=list)
    """The status of each job that the step ran or found finished."""
    folders: list[Folder] = field(default_factory=list)
    """The folder of each of these jobs."""
    has_run: bool = False
    """Whether a job ran."""
    is_found: bool = False
    """Whether an earlier run has finished the search of the step."""

    @property
    def is_unchanged(self) -> bool:
        """Whether all jobs were already finished before this run."""
        return self.is_found or (bool(self.jobs) and not self.has_run)

    @property
    def is_usable(self) -> bool:
        """Whether all jobs are finished, and a row is answered, so that later steps can use the output."""
        finished = all(job["state"] == progress.FINISHED for job in self.jobs)
        return finished and any(job.get("answered") for job in self.jobs)


@dataclass
class Spending:
    """The costs of a recipe's jobs."""

    file: Path
    """The file of the record."""
    folders: JobFolders
    max_cost: float | None
    """The most that all jobs together may cost, in US dollars."""
    costs: dict[str, float] = field(default_factory=dict)
    """The cost of each job, by its folder."""
    elsewhere: dict[str, float] = field(default_factory=dict)
    """The part of each job's cost that was spent before the recipe first ran the job, by the job's folder."""
    outputs: dict[str, list[int]] = field(default_factory=dict)
    """The stamp that each output had when its step had ended, by the path of the output."""
    searches: dict[str, Search] = field(default_factory=dict)
    """The last finished search that wrote an output, by the path of the output."""
    step: StepFigures = field(default_factory=StepFigures)
    """The figures of the step that runs."""
    earlier: Sequence[Folder] = ()
    """The job folders of the earlier steps whose outputs are named by options of this step."""
    _before: float = 0.0
    """The cost of the step's job before this run."""

    @classmethod
    def of(cls, recipe: Path, max_cost: float | None) -> Spending:
        """Return the costs of a recipe, and write nothing. Raises `PromptmillError` (`storage`)."""
        folders, place = JobFolders.from_environ(), real_path(recipe)
        folder = place.parent / HIDDEN if folders.beside_outputs else state_folder() / "recipes"
        name = place.name if folders.beside_outputs else new_id(place)
        spending = cls(folder / f"{name}.recipe", folders, max_cost)
        with spending._errors_in_words():
            spending._read()
        return spending

    @classmethod
    @contextlib.contextmanager
    def locked(cls, recipe: Path, max_cost: float | None) -> Iterator[Spending]:
        """Yield the costs of a recipe. Meanwhile, no other process can run the recipe. Raises as `of`, and also if
        another process runs the recipe."""
        spending = cls.of(recipe, max_cost)
        with spending._errors_in_words():
            disk.make_private_folder(spending.file.parent)
            lock = Lock.take(spending.file.with_name(f"{spending.file.name}-lock"))
        if lock is None:
            raise PromptmillError(Code.INVALID_INPUT, f"{recipe} is running already; wait for its end.", "")
        try:
            yield spending
        finally:
            lock.release()

    @property
    def total(self) -> float:
        """The cost of all jobs in all runs of the recipe, in US dollars."""
        return sum(self.costs.values()) - sum(self.elsewhere.values())

    def begin(self, opened: OpenJob) -> OpenJob:
        """Return the job, limited to the money that the other jobs have left. The job reuses the answers of those jobs
        in `earlier` that have the same settings."""
        folder = opened.loose or self.folders.of(real_path(opened.order.target))
        if not folder.database.exists() and (cost := self.costs.pop(_key(folder), 0.0)):
            cost -= self.elsewhere.pop(_key(folder), 0.0)
            self.costs[f"{_key(folder)}.removed-{len(self.costs)}"] = cost  # a new job replaces the removed job
        if _key(folder) not in self.costs and (cost := self._cost(folder)):
            self.elsewhere[_key(folder)] = cost
        self.costs[_key(folder)] = self._cost(folder)
        self._before = _recorded(folder)
        self._write()
        if found := [each.database for each in self.earlier if has_settings_of(each, opened)]:
            opened = replace(
                opened, order=opened.order.with_earlier(from_jobs=(*opened.order.earlier.from_jobs, *found))
            )
        if self.max_cost is None:
            return opened
        remaining = max(0.0, self.max_cost - self.total + self.costs[_key(folder)])
        own = opened.order.limits.max_cost
        return replace(
            opened, order=opened.order.with_limits(max_cost=remaining if own is None else min(own, remaining))
        )

    def end(self, ended: EndedJob) -> None:
        """Count a job that has ended."""
        now, step = status.read(ended.folder), self.step
        self.costs[_key(ended.folder)] = self._cost(ended.folder)
        step.jobs.append({**now, "alive": False})
        step.folders.append(ended.folder)
        step.requests += ended.requests or 0
        step.has_run = step.has_run or ended.requests is not None
        if "cost" in now:
            step.cost = (step.cost or 0.0) + _recorded(ended.folder) - self._before
        self._write()

    def is_own(self, output: Path) -> bool:
        """Return whether the file is unchanged since a step of this recipe wrote it."""
        stamp = table_paths.stamp(output)
        return stamp is not None and self.outputs.get(str(output)) == [*stamp]

    def keep_stamp(self, output: Path, digest: str = "") -> None:
        """Record how a step has left its output. `digest`: the step's digest, if the step is a finished search."""
        if (stamp := table_paths.stamp(output)) is not None:
            self.outputs[str(output)] = [*stamp]
            if digest:
                self.searches[str(output)] = Search(digest, [_key(folder) for folder in self.step.folders])
            self._write()

    def found(self, output: Path) -> Search | None:
        """Return the finished search for an output that still exists, edited or not; otherwise None."""
        return self.searches.get(str(output)) if output.exists() else None

    def _cost(self, folder: Folder) -> float:
        with contextlib.suppress(OSError, DamagedError):
            if folder.database.exists():
                return status.spent(folder)
        return self.costs.get(_key(folder), 0.0)  # a removed job's cost

    def _read(self) -> None:
        with contextlib.suppress(FileNotFoundError, orjson.JSONDecodeError, ValueError, AttributeError, TypeError):
            record: JsonDict = orjson.loads(self.file.read_bytes())
            self.costs = {path: float(cost) for path, cost in record["costs"].items()}
            self.elsewhere = {path: float(cost) for path, cost in record["elsewhere"].items()}
            self.outputs = {path: [*map(int, stamp)] for path, stamp in record["outputs"].items()}
            self.searches = {path: Search(**search) for path, search in record["searches"].items()}
        self.costs = {path: self._cost(Folder(Path(path))) for path in self.costs}  # a kill may have left older costs

    def _write(self) -> None:
        beside = self.file.with_name(f"{self.file.name}.new")
        with self._errors_in_words():
            costs = {"costs": self.costs, "elsewhere": self.elsewhere}
            record = {**costs, "outputs": self.outputs, "searches": self.searches}
            beside.write_bytes(orjson.dumps(record))
            beside.chmod(disk.PRIVATE_FILE)
            disk.replace(beside, self.file)

    @contextlib.contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = f"The record of the recipe, {self.file}, cannot be used: {disk.why(error)}."
            raise PromptmillError(Code.STORAGE, why, "") from None


def _key(folder: Folder) -> str:
    return str(real_path(folder.path))


def _recorded(folder: Folder) -> float:
    with contextlib.suppress(OSError, DamagedError):
        if folder.database.exists():
            return status.recorded_cost(folder)
    return 0.0


def before_job(arguments: argparse.Namespace, opened: OpenJob) -> OpenJob:
    """Return the job to run in place of a step's job."""
    spending: Spending = arguments.spending
    return spending.begin(opened)


def after_job(ended: EndedJob) -> None:
    """Count a job of a step."""
    spending: Spending = ended.arguments.spending
    spending.end(ended)
