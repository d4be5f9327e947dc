"""The output of a job whose rows are all answered: written from its database, then given its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from promptmill.core.errors import PromptmillError
from promptmill.jobs import crash, formats, merge, shards
from promptmill.jobs.admission import Job
from promptmill.jobs.cancellation import Cancellation
from promptmill.jobs.counts import JobCounts
from promptmill.jobs.disk import RandomFile
from promptmill.jobs.duplicates import CustomIds


@dataclass(frozen=True, slots=True)
class OutputWriter:
    """`guard` raises when the input is not what it was."""

    job: Job
    lines: RandomFile
    """The rows of the input as lines."""
    ending: Cancellation
    guard: Callable[[], None]
    passed: Callable[[int], None]
    """Told how many rows are written."""

    async def run(self, notes: list[str]) -> JobCounts | None:
        """Return the counts of the output, None when some row turns out to have no answer after all.

        `notes` gets what its reader should know. Raises `PromptmillError`, `OSError`, `JobStopped`; no
        file is left then.
        """
        spec = self.job.spec
        ids = CustomIds(self.job.folder.duplicates) if spec.input_format == "batch" else None
        self.guard()
        try:
            partial, counts, note = await self.ending.or_left(lambda: self._written(ids))
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
        described = merge.described(partial, self.job.order.limit, spec.output if is_own else None)
        self.job.folder.put(output=described)
        crash.point("before-rename")
        try:
            merge.publish(partial, spec.output, may_replace=self.job.order.overwrite or is_own)
        except (PromptmillError, OSError):
            partial.unlink(missing_ok=True)
            raise
        crash.point("after-rename")
        return counts

    def _written(self, ids: CustomIds | None) -> tuple[Path, JobCounts, str]:
        """Write the output; return where it lies, the counts of what is in it, and what is to be said about it."""
        job, spec, store = self.job, self.job.spec, self.job.folder.store
        if spec.shard is not None:
            return shards.write_part(store, spec), store.counts(), ""
        answers = merge.Answers(store.records())
        extra = store.rare_fields() if spec.output_format in formats.TABLES else ()
        merged = merge.of_job(job, self.lines, answers, extra)
        partial = merge.write(replace(merged, ids=ids, halt=self.ending.halt, passed=self.passed))
        return partial, store.counts(before=answers.rows), ids.warning if ids else ""
