"""The phases of a job that read the input and write the output.

They need only the job's database. For a call, a server runs them in a child process (`manage.child_step`), because a
template or a foreign file may take unlimited memory and time.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from promptmill.core.errors import PromptmillError
from promptmill.core.wording import listed
from promptmill.files import files as input_files
from promptmill.files import table_paths
from promptmill.files.databases import Stamp
from promptmill.files.files import InputFile, InputFiles
from promptmill.jobs.columns import column_names
from promptmill.jobs.export import join, output
from promptmill.jobs.ingest import ingest
from promptmill.jobs.inputs import row_secrets
from promptmill.jobs.inputs.any_format import input_of
from promptmill.jobs.inputs.question_columns import questions_of
from promptmill.jobs.run.resumption import changed_names, check_bound
from promptmill.jobs.store import binding
from promptmill.jobs.store.binding import Bound, Former
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order import Earlier
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.spec import NO_ANSWERS, OutputRecord
from promptmill.system.call_files import FileRule


class _TriedError(Exception):
    """Raised to roll back a trial reading in which no error occurred."""


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of an order on the existing rows and answers of a job."""

    before: JobSpec | None
    """The job's description before the order."""
    earlier: Earlier
    since: int
    """The id of the last round before the order."""
    disk_share: float = 1.0
    """The share of the free disk space that the rows may take."""
    foreign: frozenset[str] = frozenset()
    """The columns that other jobs have added to the sheet, which are not part of the rows."""
    adds: bool = False
    """Whether the order asks all questions that the job has asked before, and further questions."""

    def read(
        self, store: JobDatabase, spec: JobSpec, files: InputFiles, work: Work, *, is_trial: bool = False
    ) -> tuple[JobSpec, Bound]:
        """Read the input into the database and bind answers to the rows. Return the new spec and the counts. Blocks.

        Raises the errors of `ingest` and `check_bound`. If an error is raised, nothing changes.
        """

        def check(bound: Bound) -> None:
            if self.before is not None and not (self.earlier.keep or self.earlier.again == "all"):
                check_bound(self.before, spec, bound)
            if is_trial:
                raise _TriedError

        with self._others() as others:
            former = functools.partial(self._former, others)
            bind = functools.partial(binding.bind, check=check, others=others, former=former, since=self.since)
            own = column_names.own_names(self.before) if self.before is not None and spec.fills_input else ()
            files.without = {*own, *self.foreign}
            source = input_of(files, spec.input.format)
            return ingest(store, spec, source, work, files, bind=bind, disk_share=self.disk_share)

    def rebind(self, store: JobDatabase, spec: JobSpec, work: Work) -> Bound:
        """Bind the answers of other jobs to the rows in the database. Blocks. Raises the errors of `JobDatabase`."""
        binding.begin(store)
        store.put(stretches_next=store.get("stretches"))
        with self._others() as others:
            former = functools.partial(self._former, others)
            return binding.bind(
                store, spec, replaced=range(0), others=others, former=former, since=self.since, halt=work.halt
            )

    def notes(self, spec: JobSpec, bound: Bound) -> list[str]:
        """Return a note for each other job whose answers are used although they were made with other settings.
        Blocks."""
        notes = []
        with self._others() as others:
            for other in itertools.compress(others, bound.taken):
                known = JobSpec.model_validate(other.get("spec"))
                before, now = known.targets[0], spec.targets[0]
                changed = changed_names(before, now)
                if before.sampling == now.sampling and spec.plan.taking(known) is not None:
                    changed = [name for name in changed if name != "sampling"]  # only the questions differ
                if changed:
                    names = listed([name.replace("_", " ") for name in changed])
                    notes.append(f"The answers of job {known.job_id}, which are used, were made with another {names}.")
        return notes

    def _former(self, others: Sequence[JobDatabase], spec: JobSpec) -> list[Former | None]:
        """Return the questions whose answers rows may reuse in part: first those of the other jobs, then this job's own
        question before the order (None if the order does not ask all of that question)."""
        found = [former(spec, JobSpec.model_validate(other.get("spec"))) for other in others]
        return [*found, former(spec, self.before) if self.adds and self.before is not None else None]

    @contextlib.contextmanager
    def _others(self) -> Iterator[list[JobDatabase]]:
        """Open the databases of the other jobs whose answers are used."""
        with contextlib.ExitStack() as opened:
            yield [opened.enter_context(contextlib.closing(JobDatabase(path))) for path in self.earlier.from_jobs]


def former(spec: JobSpec, other: JobSpec) -> Former | None:
    """If the job `spec` can reuse parts of the answers of the job `other`, return that job's question; else None."""
    if (taking := spec.plan.taking(other)) is None:
        return None
    names = (spec if spec.input.kind.is_table else other).input.names
    try:
        (asked,) = questions_of(other.question, spec.input.format, names)
    except PromptmillError:  # the question names a column that the input lacks
        return None
    rows_set = other.question.rows_set
    return Former(lambda row: asked.digest(row.line, row.cells or b"", rows_set=rows_set), taking.outcome)


def try_out(work: Work, folder: Folder, *, spec: JobSpec, parts: Sequence[InputFile], change: Change) -> None:
    """Raise the errors that `read_input` would raise, without changing anything. Blocks."""
    files = input_files.opened(parts, known=True, reading=spec.input)
    with contextlib.suppress(_TriedError):
        change.read(folder.store, spec, files, work, is_trial=True)


def read_input(work: Work, folder: Folder, *, spec: JobSpec, parts: Sequence[InputFile], change: Change) -> Bound:
    """Read the input, and store the job's new description. Later changes of the input do not affect the output. Blocks.
    Raises the errors of `Change.read`.
    """
    files = input_files.opened(parts, known=True, reading=spec.input)
    spec, bound = change.read(folder.store, spec, files, work)
    made = folder.result
    folder.put(spec=spec, before=None, output=made and made.model_copy(update={"finished": False}))
    return bound


def check_output(_: Work, folder: Folder) -> None:
    """Raise the errors of `output.check_target`. For a shard, check the output of all shards. Blocks."""
    spec = folder.known_spec()
    target = spec.output.path
    output.check_target([folder.store], spec, target.with_name(table_paths.PART.sub("", target.name)))


def check_secrets(work: Work, folder: Folder, *, rule: FileRule) -> None:
    """Look for secrets in the rows. Blocks. Raises the errors of `row_secrets.check`."""
    row_secrets.check(folder.store, folder.known_spec().input, rule, work)


def export(work: Work, folder: Folder, *, limit: int | None) -> output.Written:
    """Write the output, or the shard file, to a temporary file. Blocks. Raises the errors of `write_output`."""
    store, spec = folder.store, folder.known_spec()
    if spec.output.shard:
        return join.write_part(store, spec)
    return output.write_output(store, spec, work, limit=limit, own=folder.result)


def publish(
    folder: Folder, written: output.Written, there: Stamp | None, limit: int | None, *, overwrite: bool = False
) -> None:
    """Rename a written output to its final name, and store its stamp. Blocks. Raises the errors of `output.publish`.

    `there`: the stamp of the file at the output's path before the output was written. `overwrite`: whether a file that
    the job did not make may be replaced.
    """
    made, spec = folder.result, folder.known_spec()
    is_own = output.is_own(spec, made, there)
    is_first = spec.fills_input and made is not None and made.limit == 0
    may_replace = is_own or is_first or (overwrite and not spec.fills_input)
    try:
        if spec.fills_input and not may_replace:
            raise output.changed_answers(spec.output.path)
        folder.put(output=_record(written, made, limit, there if is_own else None), written=written.blocks)
        output.publish(written.partial, spec.output.path, may_replace=may_replace, copied=written.copied)
    except (PromptmillError, OSError):
        written.partial.unlink(missing_ok=True)
        raise
    folder.store.change(("DELETE FROM edited", [()]))


def _record(
    written: output.Written, made: OutputRecord | None, limit: int | None, replaced: Stamp | None
) -> OutputRecord:
    """Return the record of a new output. `made`: the record of the previous output. `replaced`: the stamp of the file
    that the new output replaces, if the job wrote that file."""
    if written.answers is None:
        return OutputRecord.of(written.stamp, limit, replaced)
    earlier = NO_ANSWERS if made is None or not made.answers else made.answers[0]
    return OutputRecord.of(written.stamp, limit, replaced, (written.answers, earlier))
