"""The most that all runs of a job may cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from promptmill.config.model_config import ModelConfig
from promptmill.core.money import Budget
from promptmill.jobs.run.job import Job
from promptmill.jobs.store import progress as states
from promptmill.jobs.store import rounds
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.progress import Progress
from promptmill.steps.costs import lacking

_NO_BUDGET = "`max_cost` has no effect on this run: "


class CostLimit:
    """The most that all runs of a job may cost. It becomes the budget of each round, and may change during a round."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        self.awaits_budget = False
        """Whether the round takes no new rows, because it began without a budget. The next round has one."""

    def begin_round(self, configs: Callable[[], Iterable[ModelConfig]]) -> None:
        """If the job has a cost limit, give the round a budget: the part of the limit that is not yet spent.

        `configs` returns the configuration of the model of each slot. Blocks. Raises `PromptmillError`
        (`invalid_config`) if a price or a limit of the answers is missing.
        """
        self.awaits_budget = False
        ledger, folder = self._progress.call.ledger, self._job.folder
        limit = self._most(folder.control)
        if limit is None or ledger.budget is not None:
            return
        if (error := lacking(configs(), rows_set=self._job.spec.question.rows_set)) is not None:
            raise error
        awaited = sum(way.most_cost(folder.store) for way in rounds.awaited(folder.store).values())
        ledger.budget = Budget(limit, self._progress.cost or 0.0, folder.store.in_flight.most + awaited)

    def follow(self, control: Control) -> None:
        """Apply the present limit, which may have changed."""
        limit, progress = self._most(control), self._progress
        if limit is None:
            return
        if (budget := progress.call.ledger.budget) is not None:
            budget.limit = limit
        elif progress.state == states.RUNNING and progress.call.in_flight:
            self._follow_later()

    def _follow_later(self) -> None:
        """Let the next round begin with a budget, because the requests in flight have none; or add a note why not."""
        notes = self._progress.notes
        if self.awaits_budget or any(note.startswith(_NO_BUDGET) for note in notes):
            return
        error = lacking([self._job.config], rows_set=self._job.spec.question.rows_set)
        self.awaits_budget = error is None and self._progress.cost is not None
        if not self.awaits_budget:
            why = "what it has cost so far is not known." if error is None else error.message
            notes.append(f"{_NO_BUDGET}{why.removeprefix('max_cost: ')}")

    def _most(self, control: Control) -> float | None:
        job = self._job
        wanted = (control.max_cost, job.order.limits.max_cost, job.config.operator.max_cost)
        limits = [*[most for most in wanted if most is not None][:1], job.most_cost]
        return min((most for most in limits if most is not None), default=None)
