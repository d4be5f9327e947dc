"""The output of a job whose rows are all answered: written from its journal, then given its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from promptmill.core.errors import PromptmillError
from promptmill.jobs import merge
from promptmill.jobs.admission import Job
from promptmill.jobs.cancellation import Cancellation
from promptmill.jobs.duplicates import CustomIds
from promptmill.jobs.ledger import Ledger
from promptmill.jobs.output_records import RARE_FIELDS
from promptmill.jobs.tally import JobCounts


@dataclass(frozen=True, slots=True)
class OutputWriter:
    """`guard` raises when the input is not what it was. `crash` is called at named points, for tests."""

    job: Job
    ledger: Ledger
    ending: Cancellation
    guard: Callable[[], None]
    crash: Callable[[str], None] | None

    async def run(self, notes: list[str]) -> JobCounts | None:
        """Return the counts of the output, None when some row turns out to have no answer after all.

        `notes` gets what its reader should know. Raises `PromptmillError`, `OSError`, `JobStopped`; no
        file is left then.
        """
        spec = self.job.spec
        ids = CustomIds(self.job.folder.duplicates) if spec.input_format == "batch" else None
        plan = self._plan(ids)
        self.guard()
        try:
            partial, note = await self.ending.or_left(lambda: (merge.write(plan), ids.warning if ids else ""))
        except merge.Unanswered:
            return None
        except BaseException:  # it may have been written whole at that very moment
            merge.discard(spec.output, spec.job_id)
            raise
        finally:
            if ids is not None:
                ids.close()
        if note:
            notes.append(note)
        made = self.job.folder.result
        is_own = made is not None and made.is_own(spec.output)
        self.job.folder.result = merge.described(partial, self.job.order.limit, spec.output if is_own else None)
        self._pass("before-rename")
        try:
            merge.publish(partial, spec.output, may_replace=self.job.order.overwrite or is_own)
        except (PromptmillError, OSError):
            partial.unlink(missing_ok=True)
            raise
        self._pass("after-rename")
        return plan.tally

    def _pass(self, point: str) -> None:
        if self.crash:
            self.crash(point)

    def _plan(self, ids: CustomIds | None) -> merge.Merge:
        job, spec, tally = self.job, self.job.spec, self.ledger.tally
        return merge.Merge(
            spec.job_id,
            job.input,
            spec.input_format,
            spec.output_format,
            spec.output,
            self.ledger.index,
            self.ledger.journal,
            spec.model,
            spec.created,
            job.order.limit,
            JobCounts(),
            tuple(name for name in RARE_FIELDS if getattr(tally, name)),
            ids,
            self.crash,
            self.ending.halt,
            takes_model=spec.backend == "openai",
        )
