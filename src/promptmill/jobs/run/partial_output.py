"""The answers of a job before its output is there: on a stream while it runs, or exported into a file.

A stream has the rows in input order, each as soon as all rows before it are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from promptmill.backends.protocol import Failure
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs.files import disk, row_files
from promptmill.jobs.files.disk import RandomFile
from promptmill.jobs.files.spool import HaltedError
from promptmill.jobs.run import admission, merge
from promptmill.jobs.run.admission import Job
from promptmill.jobs.store.answers import DamagedError, JobStore
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.records import Record, record_of
from promptmill.system.safe_open import real_path

_LOOK_S = 0.2  # answers that are taken over from another job are not reported
_UNANSWERED = Failure(PromptmillError(Code.DEFERRED, "The row has no answer yet."))
FORMATS = frozenset({"jsonl", "json", "batch"})
"""Formats that can be written before all rows are answered; the columns of a table depend on every answer."""


class LiveOutput:
    """Writes in a thread of its own, so that a slow reader of the stream does not delay the job."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._answers: _LiveAnswers | None = None
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def begin(
        self, job: Job, lines: RandomFile, replaced: set[int], give_up: Callable[[PromptmillError], None]
    ) -> None:
        """Start to write, unless it is started. The records of `replaced` are about to be replaced.

        `give_up` gets the error when the stream is closed. Needs a running event loop.
        """
        out = self._out
        if self._thread is not None or job.spec.output_format not in FORMATS:
            return
        self._answers = answers = _LiveAnswers(job.folder, replaced)
        rows = merge.of_files(job.spec, job.input, lines, answers, job.order.limit)
        loop = asyncio.get_running_loop()

        def write() -> None:
            try:
                with row_files.compressed(out, row_files.compression_of(job.spec.output)) as content:

                    def flush() -> None:
                        content.flush()
                        out.flush()

                    answers.before_waiting = flush
                    merge.write_rows(rows, content)
                out.flush()
            except HaltedError:
                pass
            except OSError as error:
                self._error = error
                said = f"Standard output cannot be written: {disk.why(error)}."
                with contextlib.suppress(RuntimeError):  # the loop is closed: the job has ended
                    loop.call_soon_threadsafe(give_up, PromptmillError(Code.STORAGE, said, ""))

        # not one of the loop's: the process can end while the stream is not read
        self._thread = threading.Thread(target=write, name="promptmill-output", daemon=True)
        self._thread.start()

    def recorded(self, rows: Sequence[int]) -> None:
        """Write `rows`, which were recorded, when all rows before them are."""
        if self._answers is not None:
            self._answers.recorded(rows)

    @property
    def has_written(self) -> bool:
        """Whether all rows are written."""
        return self._thread is not None and not self._thread.is_alive() and self._error is None

    def wait(self, halt: threading.Event) -> None:
        """Wait until all rows are written, or `halt` is set. Blocks."""
        while self._thread is not None and self._thread.is_alive() and not halt.is_set():
            self._thread.join(_LOOK_S)

    def stop(self) -> None:
        """Write no more rows."""
        if self._answers is not None:
            self._answers.stop()


class _LiveAnswers(merge.Answers):
    """The records of a running job: a look-up waits until the row has a record."""

    def __init__(self, folder: Folder, replaced: set[int]) -> None:
        """`replaced`: rows whose record is about to be replaced."""
        super().__init__()
        self._folder = folder
        self._replaced = replaced
        self.before_waiting: Callable[[], None] | None = None
        self._page: list[Record] = []
        self._wanted: int | None = None
        self._stopped = False
        self._news = threading.Condition()

    def of(self, row: int) -> Record:
        """Return the record of `row`, once there is one. Raises `HaltedError`."""
        self.rows = row + 1
        if (record := self._find(row)) is not None:
            return record
        if self.before_waiting is not None:
            self.before_waiting()
        with self._news:
            self._wanted = row
            while not self._stopped:
                if (record := self._find(row)) is not None:
                    self._wanted = None
                    return record
                self._news.wait(_LOOK_S)
        raise HaltedError

    def recorded(self, rows: Sequence[int]) -> None:
        """Wake the look-up of a row among `rows`, which were recorded."""
        with self._news:
            self._replaced.difference_update(rows)
            if self._wanted in rows:
                self._news.notify()

    def stop(self) -> None:
        """End a look-up that waits."""
        with self._news:
            self._stopped = True
            self._news.notify()

    def _find(self, row: int) -> Record | None:
        """Return the record of `row` if there is a sound one that is not about to be replaced."""
        while self._page and self._page[-1].row < row:
            self._page.pop()
        if not self._page:
            with contextlib.suppress(OSError, DamagedError, AssertionError):  # it is being repaired, and opened again
                self._page = self._folder.store.page(row)[::-1]
        record = self._page[-1] if self._page else None
        if record is None or record.row != row or row in self._replaced or not record.is_sound:
            self._page = []  # read again later
            return None
        return record


def export(folder: Folder, target: Path, *, failures: bool) -> int:
    """Write the answered rows of a job to `target`, in input order; return how many answers there are.

    With `failures` all rows, failed ones with their errors and unanswered ones with code `deferred`. The job may be
    running. Raises `PromptmillError` (`invalid_input`, `storage`).
    """
    spec = folder.known_spec()
    target = real_path(target)
    if target.exists():
        raise input_error(f"{target} exists; name another file.")
    output_format = row_files.format_of_output(target, spec.input_format)
    row_files.check_installed(target, *(part.path for part in spec.parts))
    file = row_files.opened(spec.parts, known=True, encoding=spec.encoding)
    try:
        if file.stamp()[0] < spec.size or spec.to_bind == "questions":
            raise admission.changed_while_running(spec)
        if len(spec.parts) == 1:
            file.end = spec.size  # lines that were appended since do not belong to the job
        with folder.reading() as store, folder.lines(file, spec) as lines:
            answers = _PartialAnswers(store, failures=failures)
            spec = merge.with_columns(spec, file, lines)
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
            Code.STORAGE,
            f"The database {folder.database} is damaged.",
            "Run the job again: its readable answers are kept.",
        ) from None
    finally:
        file.close()


class _PartialAnswers(merge.Answers):
    """The records so far, for an export: answers alone, or failures as well."""

    def __init__(self, store: JobStore, *, failures: bool) -> None:
        super().__init__(store)
        self._failures = failures

    def find(self, row: int) -> Record | None:
        """Return the record of `row`, None when it is to be left out."""
        try:
            record = self.of(row)
        except merge.UnansweredError:
            return record_of(row, _UNANSWERED) if self._failures else None
        return record if self._failures or record.code is None else None
