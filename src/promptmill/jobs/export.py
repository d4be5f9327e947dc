"""The answers of a job in any state, as a file of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path

from promptmill.config import backends
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs import admission, disk, formats, merge
from promptmill.jobs.folder import Folder
from promptmill.jobs.store import DamagedError


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
    file = admission.open_input(spec.parts, known=True)
    try:
        if file.stamp()[0] < spec.size:
            raise admission.changed_input(spec)
        if len(spec.parts) == 1:
            file.end = spec.size  # what was appended since is none of the job's
        with folder.reading() as store, folder.lines(file, spec) as lines:
            answers = merge.PartialAnswers(store, failures=failures)
            extra = store.rare_fields() if output_format in formats.TABLES else ()
            partial = merge.write(
                merge.Merge(
                    spec.job_id,
                    file,
                    lines,
                    spec.input_format,
                    output_format,
                    target,
                    answers,
                    spec.model,
                    spec.created,
                    None,
                    extra,
                    takes_model=backends.record(spec.backend).any_model,
                )
            )
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
