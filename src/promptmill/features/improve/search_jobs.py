"""Runs the steps of a search as jobs without output files: after a kill, finished steps and their answers are reused.

The id of a step depends on its rows, prompts and settings; its rows depend on answers of earlier steps. So the same
search starts or resumes the same jobs in the same order. The job of a test records which held-out rows it used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import orjson

from promptmill.config.loading import Configuration
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import input_error
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.improve.candidates import SYSTEM
from promptmill.features.improve.gold import GoldRow
from promptmill.jobs.caller import Caller, CallModels
from promptmill.jobs.door import OpenJob, Rows, open_job
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import Shown
from promptmill.jobs.store.rounds import ANSWERED

Again = Literal["failed", "prompts"]
_LONGEST_PROMPT = 4096  # max tokens of an improved prompt
_SEEN, _WRITTEN, _HELD_OUT = "improve-seen", "improve-candidates", "improve-held-out"


def longest_of(plan: ResolvedConfig, max_cost: float | None) -> int | None:
    """Return the token limit for the strong model's replies: the configured limit is meant for labels, and a budget
    requires a limit. None otherwise, because a small model may not have the room."""
    limit = plan.settings.sampling_params.max_tokens
    return None if limit is None and max_cost is None else _LONGEST_PROMPT


@dataclass(frozen=True, slots=True)
class StepModel:
    """A model of the search, and the function that runs its jobs."""

    models: Configuration | CallModels
    run: Callable[[OpenJob], object]
    """Runs a job until it is finished; a finished job is not run again. Raises if the job stops early."""
    command: Sequence[str] = ()
    """The command that resumes one of the model's jobs, without the job's id."""


@dataclass
class JobSteps:
    """An `Asker` whose answers come from jobs with a common budget."""

    folders: JobFolders
    model: StepModel
    strong: StepModel
    system_prompt: str
    max_cost: float | None = None
    again: Again | None = None
    """Which rows to send again; `prompts`: the strong model writes other prompts."""
    caller: Caller | None = None
    """The caller of the search. Another owner's equal search has separate jobs."""
    spent: JsonDict = field(default_factory=dict)
    """The summed counts and costs of the jobs so far."""

    def labels(self, prompts: Sequence[str], rows: Sequence[GoldRow]) -> list[list[str]]:
        """Return the labels, see `Asker.labels`."""
        return self._answers(self._step(_SEEN, [row.cells for row in rows], prompts), len(prompts), len(rows))

    def replies(self, requests: Sequence[str]) -> list[str]:
        """Return the replies, see `Asker.replies`."""
        folder = self._step(_WRITTEN, [{"request": text} for text in requests], ["{{request}}"])
        return self._answers(folder, 1, len(requests))[0]

    def tested(self, prompts: Sequence[str], rows: Sequence[GoldRow]) -> tuple[list[list[str]], int]:
        """Return the labels and the number of earlier tests, see `Asker.tested`."""
        folder = self._step(_HELD_OUT, [row.cells for row in rows], prompts)
        known = folder.tested
        if known is None:
            known = {"rows": [row.key for row in rows], "earlier": self._earlier_tests(folder, rows)}
            if (lock := Lock.take(folder.lock)) is None:
                raise input_error(f"Job {folder.job_id} is running already.")
            try:
                folder.open()
                folder.put(tested=known)
            finally:
                folder.close()
                lock.release()
        return self._answers(folder, len(prompts), len(rows)), int(known["earlier"])

    def _earlier_tests(self, own: Folder, rows: Sequence[GoldRow]) -> int:
        keys = {row.key for row in rows}
        others = [
            other.tested
            for other in self.folders.all()
            if other.path.name.startswith(_HELD_OUT) and other.path.name != own.path.name
        ]
        return sum(not keys.isdisjoint(other["rows"]) for other in others if other is not None)

    def _step(self, name: str, rows: Sequence[JsonObject], prompts: Sequence[str]) -> Folder:
        """Run a job that sends each row with each prompt, and return its folder."""
        is_written = name == _WRITTEN
        model = self.strong if is_written else self.model
        left = None if self.max_cost is None else max(0.0, self.max_cost - self.spent.get("cost", 0.0))
        of_candidates = "all" if is_written else None
        again = of_candidates if self.again == "prompts" else self.again
        options = {
            "prompt": {str(at): text for at, text in enumerate(prompts)} if len(prompts) > 1 else prompts[0],
            "system_prompt": SYSTEM if is_written else self.system_prompt,
            "max_cost": left,
            "again": again,
        }
        lines = (orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        owner = None if self.caller is None else self.caller.owner or None
        shown, asked = Shown(command=[*model.command], reason="improve"), Rows(blocks=lines, name=name, owned_by=owner)
        door = open_job(asked, None, options, model.models, self.folders, shown=shown, caller=self.caller)
        with door as job:
            assert job.loose is not None
            try:
                model.run(job)
            finally:
                self._count(job.loose)
            return job.loose

    def _count(self, folder: Folder) -> None:
        if folder.spec is None:
            return
        now: JsonObject = status.read(folder)
        if "cost" in now:  # without a price, there is no cost
            self.spent["cost"] = self.spent.get("cost", 0.0) + now["cost"] + now.get("cost_set_aside", 0.0)
        for name in ("requests", "seconds"):
            self.spent[name] = self.spent.get(name, 0) + now.get(name, 0)

    @staticmethod
    def _answers(folder: Folder, prompts: int, rows: int) -> list[list[str]]:
        found = [[""] * rows for _ in range(prompts)]
        with folder.reading() as store:
            for record in store.records(where=ANSWERED):
                found[record.slot][record.row] = record.text
        return found
