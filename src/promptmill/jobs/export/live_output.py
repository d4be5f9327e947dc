"""Writes a job's rows to a stream during the run, and exports the answers of a job even before the job ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO

from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.files import disk, path_formats, table_paths
from promptmill.jobs.columns.column_names import compared_in, possible_names, unusual_names, wanted_names
from promptmill.jobs.columns.remarks import notes
from promptmill.jobs.export import output
from promptmill.jobs.export.answered import answered_rows, answers_so_far, outcomes_so_far
from promptmill.jobs.export.text import OutputForm, OwnValues
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order_part import OrderPart
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import Record
from promptmill.system.runtime import HaltedError
from promptmill.system.safe_open import real_path

_LOOK_S = 0.2  # seconds between polls, which are needed because an answer that is copied from another job sets no event


class LiveOutput:
    """Writes the rows to a stream, in a thread, so that a slow reader of the stream does not delay the job."""

    def __init__(self, out: IO[bytes], name: Path) -> None:
        """`name`: a file name whose suffix gives the format of the stream."""
        self._out, self._name = out, name
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._replaced: set[int] = set()
        """The keys of records that this run will replace and has not yet replaced."""
        self._renewed: Collection[int] = ()
        """The keys of all records that this run replaces."""
        self._ahead: dict[int, Record] = {}
        """Records that were read in advance: they belong to rows after the last row for which the writer waited."""
        self._news = threading.Event()
        self._is_stopped = False

    def begin(
        self,
        folder: Folder,
        spec: JobSpec,
        replaced: Collection[int],
        end: int,
        give_up: Callable[[PromptmillError], None],
    ) -> None:
        """Start to write the rows with numbers below `end`; do nothing if writing has already started.

        `replaced`: the keys of the records that the run will replace. If the stream is closed, `give_up` is called
        with the error. Call this in a running event loop.
        """
        output_format = path_formats.format_of_output(self._name, spec.input.format)
        if self._thread is not None or not output_format.is_followed or not spec.plan.follows:
            return
        self._replaced, self._renewed = {*replaced}, frozenset(replaced)
        loop = asyncio.get_running_loop()

        def write() -> None:
            try:
                with path_formats.compressed(self._out, path_formats.compression_of(self._name)) as content:
                    find = partial(self._find, folder, content)
                    rows = answered_rows(folder.store, spec, find, 0, end)
                    output.write_rows(content, OutputForm([folder.store], spec, output_format), rows)
                self._out.flush()
            except HaltedError:
                pass
            except OSError as error:
                self._error = error
                problem = f"Standard output cannot be written: {disk.why(error)}."
                with contextlib.suppress(RuntimeError):  # the job has ended, and its event loop is closed
                    loop.call_soon_threadsafe(give_up, PromptmillError(Code.STORAGE, problem, ""))

        # The thread is a daemon: the process must be able to end while the reader of the stream is stuck.
        self._thread = threading.Thread(target=write, name="promptmill-output", daemon=True)
        self._thread.start()

    def _find(self, folder: Folder, content: IO[bytes], key: int, record: Record | None) -> Record:
        """Wait until the record with `key` exists, and return it. Raises `HaltedError`."""
        is_flushed = False
        record = None if key in self._renewed else record  # the record was read in advance and may be outdated
        while key in self._replaced or (record := record or self._record(folder, key)) is None:
            if not is_flushed:
                content.flush()
                self._out.flush()
                is_flushed = True
            if self._is_stopped:
                raise HaltedError
            self._news.wait(_LOOK_S)
            self._news.clear()
        return record

    def _record(self, folder: Folder, key: int) -> Record | None:
        with contextlib.suppress(OSError, DamagedError, AssertionError):  # the record is read again after the repair
            if key in self._renewed:
                return folder.store.record(key)
            if key not in self._ahead:
                self._ahead = {record.key: record for record in folder.store.page(key) if record.is_sound}
        return self._ahead.pop(key, None)

    def recorded(self, keys: Sequence[int]) -> None:
        """Report that the records with these keys are stored. A row is written after all rows before it are written."""
        self._replaced.difference_update(keys)
        self._news.set()

    @property
    def has_written(self) -> bool:
        """Whether all rows are written."""
        return self._thread is not None and not self._thread.is_alive() and self._error is None

    def wait(self, halt: threading.Event) -> None:
        """Wait until all rows are written, or `halt` is set. Blocks."""
        while self._thread is not None and self._thread.is_alive() and not halt.is_set():
            self._thread.join(_LOOK_S)

    def stop(self) -> None:
        """Stop writing rows."""
        self._is_stopped = True
        self._news.set()


def export(
    folder: Folder, target: Path, shapes: Mapping[str, OrderPart] = MappingProxyType({}), *, failures: bool
) -> tuple[int, Sequence[str]]:
    """Write the answered rows of a job to `target`, in the order of the input. Return the number of answers, and the
    notes that a run would have if `target` were its output.

    `shapes`: another shape for the output, by the shape's name; `{}` keeps the job's own shape.

    With `failures`, all rows are written: failed rows with their errors, unanswered rows with the code `deferred`. The
    job may be running. Raises `PromptmillError` (`invalid_input`, `storage`).
    """
    spec, target = folder.known_spec(), real_path(target)
    if table_paths.stamp(target) is not None:
        raise input_error(f"{target} exists; name another file.")
    kind = path_formats.format_of_output(target, spec.input.format)
    path_formats.check_installed(target)
    with output.storage_errors(target), folder.reading() as store:
        spec = folder.spec_in(store)
        if spec.output.names is None:
            raise input_error(f"The input of job {spec.job_id} was not read yet; run the job first.")
        if shapes:
            spec = _in_shape(spec, shapes)
        if shapes or (kind.database and not spec.output.kind.database):
            spec = _with_names(store, spec, compared_in(kind))
        rows = answered_rows(store, spec, outcomes_so_far if failures else answers_so_far)
        with output.temporary([store], spec, target, rows) as (partial, warning):
            output.publish(partial, target, may_replace=False)
            counts = statistics.counts(store)
            return counts.done - counts.failed, [*notes(spec), *filter(None, [warning])]


def _in_shape(spec: JobSpec, shapes: Mapping[str, OrderPart]) -> JobSpec:
    """Return the job with another shape of its output. Raises `PromptmillError` if its answers have no schema."""
    if spec.output.answer_schema is None:
        raise input_error(*map(Named, shapes), f": the answers of job {spec.job_id} have no schema, and so no lists.")
    return spec.model_copy(update={"shapes": dict(shapes)})


def _with_names(store: JobDatabase, spec: JobSpec, compared: Callable[[str], str]) -> JobSpec:
    """Return the job with column names for another output. Names clash if `compared` makes them equal."""
    own, wanted = OwnValues(spec), wanted_names(spec)
    taken = {*spec.input.taken, *own.names_in(())}
    if not spec.input.header:  # the rows were read before these names were known
        possible = possible_names(wanted, compared)
        taken.update(name for row in store.rows() for name in own.of(row) if compared(name) in possible)
    return spec.with_output(names=unusual_names(wanted, taken, compared))
