"""The steps of a job that read the input and write the output.

They need only the job's database. So a server runs them in another process for a call (`manage.detached`), because a
template or a foreign file may take any amount of memory and time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from promptmill.core.errors import PromptmillError
from promptmill.jobs.export import join, output
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs import row_secrets
from promptmill.jobs.inputs.files import InputFiles, Part
from promptmill.jobs.members import Stamp
from promptmill.jobs.run.admission import Change, Job
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.spec import JobSpec, OutputRecord
from promptmill.system.call_files import FileRule

T = TypeVar("T")


class Apart(Protocol):
    """Runs a step in another process."""

    async def __call__(self, step: partial[T], job: Job, note: Callable[[int], None]) -> T:
        """Return the result of a job's step. `note` is called with the number of rows so far. Raises the step's
        errors."""
        ...


def reading(job: Job, files: InputFiles) -> partial[Bound]:
    """Return the step that reads the input of a job. The caller must load the job again after it."""
    return partial(ingest, spec=job.spec, parts=files.parts, change=job.change)


def trial(job: Job, files: InputFiles) -> partial[None]:
    """Return the step that finds out whether the reading of an input is refused, and changes nothing."""
    return partial(try_out, spec=job.spec, parts=files.parts, change=job.change)


def try_out(work: Work, folder: Folder, *, spec: JobSpec, parts: Sequence[Part], change: Change) -> None:
    """Raise the errors of `ingest`. Blocks."""
    change.try_out(folder.store, spec, input_files.opened(parts, known=True, encoding=spec.input.encoding), work)


def ingest(work: Work, folder: Folder, *, spec: JobSpec, parts: Sequence[Part], change: Change) -> Bound:
    """Read the input and store the changed job. Later changes of the input do not affect the output. Blocks. Raises the
    errors of `Change.read`.
    """
    files = input_files.opened(parts, known=True, encoding=spec.input.encoding)
    spec, bound = change.read(folder.store, spec, files, work)
    made = folder.result
    folder.put(spec=spec, before=None, output=made and made.model_copy(update={"finished": False}))
    return bound


def check_output(_: Work, folder: Folder) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the output is in a workbook that cannot be written. Blocks."""
    from promptmill.jobs.export.workbook_file import check_target  # few jobs write one

    check_target(folder.known_spec())


def check_secrets(work: Work, folder: Folder, *, rule: FileRule) -> None:
    """Look for secrets in the rows. Blocks. Raises the errors of `row_secrets.check`."""
    row_secrets.check(folder.store, folder.known_spec().input, rule, work)


def export(work: Work, folder: Folder, *, limit: int | None) -> output.Written:
    """Write the output, or the shard's part file, to a temporary file. Blocks. Raises the errors of `write_output`."""
    store, spec = folder.store, folder.known_spec()
    if spec.output.shard:
        return join.write_part(store, spec)
    return output.write_output(store, spec, work, limit=limit, own=folder.result)


def publish(
    folder: Folder, written: output.Written, there: Stamp | None, limit: int | None, *, overwrite: bool = False
) -> None:
    """Give a written output its name, and store that the job made it. Blocks. Raises the errors of `output.publish`.

    `there`: the stamp of the output before it was written. `overwrite`: whether a file that the job did not make is
    replaced.
    """
    made, spec = folder.result, folder.known_spec()
    is_own = made is not None and made.is_own(there)
    folder.put(output=OutputRecord.of(written.stamp, limit, there if is_own else None), written=written.blocks)
    may_replace = is_own or (overwrite and not spec.fills_input)
    try:
        output.publish(
            written.partial, spec.output.path, may_replace=may_replace, copied=there if spec.keeps_sheets else None
        )
    except (PromptmillError, OSError):
        written.partial.unlink(missing_ok=True)
        raise
    folder.store.change(("DELETE FROM edited", [()]))
