"""The answers of a job in any state, as a file of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.outcome import Failure
from promptmill.jobs.files import disk, formats, input_files
from promptmill.jobs.run import columns, merge
from promptmill.jobs.store import changes
from promptmill.jobs.store.answers import DamagedError, JobStore
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.records import Record, record_of

_UNANSWERED = Failure(PromptmillError(Code.DEFERRED, "The row has no answer yet."))


class PartialAnswers(merge.Answers):
    """Those that there are, for a file that a job's end is not waited for: answers alone, or failures as well."""

    def __init__(self, store: JobStore, *, failures: bool) -> None:
        super().__init__(store)
        self._failures = failures

    def find(self, row: int) -> Record | None:
        """Return the record of `row`, None when it is to be left out."""
        try:
            record = self.of(row)
        except merge.Unanswered:
            return record_of(row, _UNANSWERED) if self._failures else None
        return record if self._failures or record.code is None else None


def export(folder: Folder, target: Path, *, failures: bool) -> int:
    """Write the answered rows of a job to `target`, in input order; return how many answers there are.

    With `failures` all rows, failed ones with their errors and unanswered ones with code `deferred`. The job may be
    running. Raises `PromptmillError` (`invalid_input`, `storage`).
    """
    spec = folder.spec
    if spec is None:
        raise input_error("There is no such job any more.")
    target = target.absolute().resolve()
    if target.exists():
        raise input_error(f"{target} exists; name another file.")
    output_format = formats.of_output(target, spec.input_format)
    formats.check_installed(target, *(part.path for part in spec.parts))
    file = input_files.opened(spec.parts, known=True)
    try:
        if file.stamp()[0] < spec.size:
            raise changes.changed_input(spec)
        if len(spec.parts) == 1:
            file.end = spec.size  # what was appended since is none of the job's
        with folder.reading() as store, folder.lines(file, spec) as lines:
            answers = PartialAnswers(store, failures=failures)
            spec, _ = columns.of_job(spec, file, lines)
            partial = merge.write(merge.Merge(spec, file, lines, answers, target, output_format))
            try:
                merge.publish(partial, target, may_replace=False)
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
            counts = store.counts()
            return counts.done - counts.failed
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{target} cannot be written: {disk.why(error)}.") from None
    except DamagedError:
        raise PromptmillError(
            Code.STORAGE, f"The database {folder.database} is damaged.", "Go on with the job: what can be read is kept."
        ) from None
    finally:
        file.close()
