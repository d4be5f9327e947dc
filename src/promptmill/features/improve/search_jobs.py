"""Runs the steps of a search as a series of jobs. The job of a test records which held-out rows it used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import input_error
from promptmill.features.improve.candidates import SYSTEM
from promptmill.features.improve.gold import GoldRow
from promptmill.features.verbs.job_series import JobSeries, answers_in
from promptmill.jobs.manage.step_model import StepModel
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.lock import Lock

_LONGEST_PROMPT = 4096  # max tokens of an improved prompt
_SEEN, _WRITTEN, _HELD_OUT = "improve-seen", "improve-candidates", "improve-held-out"


def longest_of(config: ModelConfig, max_cost: float | None) -> int | None:
    """Return the token limit for the strong model's replies. The configuration's own limit is for labels. If there
    is neither such a limit nor a budget, return None, because a small model may have no room for so many tokens."""
    limit = config.settings.sampling_params.max_tokens
    return None if limit is None and max_cost is None else _LONGEST_PROMPT


@dataclass
class JobSteps:
    """A `PromptAsker` whose answers come from a series of jobs."""

    series: JobSeries
    model: StepModel
    strong: StepModel
    system_prompt: str
    again: Literal["failed", "prompts"] | None = None
    """`failed`: failed rows are sent again; `prompts`: the strong model writes other prompts."""

    def labels(self, prompts: Sequence[str], rows: Sequence[GoldRow]) -> list[list[str]]:
        """Return the labels, see `PromptAsker.labels`."""
        return answers_in(self._labelled(_SEEN, prompts, rows), len(rows), len(prompts))

    def replies(self, requests: Sequence[str]) -> list[str]:
        """Return the replies, see `PromptAsker.replies`."""
        again = "all" if self.again == "prompts" else self.again
        options = {"prompt": "{{request}}", "system_prompt": SYSTEM, "again": again}
        folder = self.series.run(_WRITTEN, [{"request": text} for text in requests], options, self.strong)
        return answers_in(folder, len(requests))[0]

    def tested(self, prompts: Sequence[str], rows: Sequence[GoldRow]) -> tuple[list[list[str]], int]:
        """Return the labels and the number of earlier tests, see `PromptAsker.tested`."""
        folder = self._labelled(_HELD_OUT, prompts, rows)
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
        return answers_in(folder, len(rows), len(prompts)), int(known["earlier"])

    def _earlier_tests(self, own: Folder, rows: Sequence[GoldRow]) -> int:
        keys = {row.key for row in rows}
        others = [
            other.tested
            for other in self.series.folders.all()
            if other.path.name.startswith(_HELD_OUT) and other.path.name != own.path.name
        ]
        return sum(not keys.isdisjoint(other["rows"]) for other in others if other is not None)

    def _labelled(self, name: str, prompts: Sequence[str], rows: Sequence[GoldRow]) -> Folder:
        """Run a job that sends each row with each prompt, and return its folder."""
        options = {
            "prompt": {str(at): text for at, text in enumerate(prompts)} if len(prompts) > 1 else prompts[0],
            "system_prompt": self.system_prompt,
            "again": None if self.again == "prompts" else self.again,
        }
        return self.series.run(name, [row.cells for row in rows], options, self.model)
