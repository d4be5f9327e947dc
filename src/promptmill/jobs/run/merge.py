"""Input rows and their records → the output file, in input order, there whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from promptmill.backends import rows as rows_
from promptmill.config import backends
from promptmill.core.errors import PromptmillError, input_error
from promptmill.jobs.files import cell_table, disk, formats, parquet_table
from promptmill.jobs.files.cell_table import CellTable
from promptmill.jobs.files.disk import Lines, RandomFile
from promptmill.jobs.files.input_files import InputFiles
from promptmill.jobs.files.parquet_table import ParquetTable
from promptmill.jobs.files.spool import Halted, cells_of
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.batch_output import batch_output
from promptmill.jobs.run.duplicates import CustomIds
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.records import (
    ANSWER_FIELDS,
    RARE_FIELDS,
    Record,
    answer_fields,
    cells,
    jsonl_line,
    plain_line,
)
from promptmill.jobs.store.spec import JobSpec

_BUFFER = 1 << 20
_DELIMITERS = MappingProxyType({"csv": ",", "tsv": "\t"})


class Unanswered(Exception):  # noqa: N818 (a finding, told to the runner alone)
    """A row has no sound record after all."""


class Answers:
    """The records of a job, for rows that come in their order."""

    def __init__(self, *stores: JobStore) -> None:
        """`stores` have the records, each those behind the ones of the store before."""
        self._stores = stores
        self._records = itertools.chain.from_iterable(store.records() for store in stores)
        self._next = next(self._records, None)
        self.rows = 0
        """How many rows of the input, blank lines included, have been asked for so far."""

    def rare_fields(self) -> tuple[str, ...]:
        """Return which of `RARE_FIELDS` some answer has."""
        found = {name for store in self._stores for name in store.rare_fields()}
        return tuple(name for name in RARE_FIELDS if name in found)

    def find(self, row: int) -> Record | None:
        """Return the record of `row`, None when it is to be left out. Raises `Unanswered`."""
        return self.of(row)

    def of(self, row: int) -> Record:
        """Return the record of `row`. Raises `Unanswered`."""
        self.rows = row + 1
        while self._next is not None and self._next.row < row:
            self._next = next(self._records, None)
        record = self._next
        if record is None or record.row != row or not record.is_sound:
            raise Unanswered(row)
        return record


@dataclass(frozen=True, slots=True)
class Merge:
    """What is put together: the rows of the job that `spec` describes, with their answers, into `target`."""

    spec: JobSpec
    input: InputFiles
    lines: RandomFile
    """The rows as lines: the input's own, or those that were made of them."""
    answers: Answers
    target: Path
    output_format: str
    most: int | None = None
    """How many rows at most."""
    ids: CustomIds | None = None
    """Notes the ids of a Batch file."""
    halt: threading.Event | None = None
    """Set by those who want no output any more."""
    passed: Callable[[int], None] | None = None
    """Told how many rows have been looked at."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The names of our columns that are not the usual ones."""
        return self.spec.columns or {}

    def answer(self, row: int) -> Record | None:
        """Return the record of `row`, None to leave the row out. Raises `Unanswered`."""
        record = self.answers.find(row)
        if record is not None and self.spec.leaves_out(record.code):
            record = None
        if self.passed is not None:
            self.passed(row + 1)
        if self.halt is not None and self.halt.is_set():
            raise Halted
        return record


def of_job(job: Job, lines: RandomFile, answers: Answers) -> Merge:
    """Return what becomes the output of `job`, whose rows are `lines`."""
    return Merge(job.spec, job.input, lines, answers, job.spec.output, job.spec.output_format, job.order.limit)


def check_folder(target: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) when the way to `target`, resolved once, leads over a link now."""
    if target.parent.resolve() != target.parent:
        raise input_error(f"{target.parent} is not the folder that it was; put it back and run the job again.")


def beside(target: Path, job_id: str) -> Path:
    """Return where the output is written before it gets its name: the same folder, so the same file system."""
    return target.with_name(f".{target.name}.{job_id[-10:]}.partial")


def discard(target: Path, job_id: str) -> None:
    """Remove what a merge may have left beside its target."""
    with contextlib.suppress(OSError, PromptmillError):
        check_folder(target)
        beside(target, job_id).unlink(missing_ok=True)


def write(merge: Merge) -> Path:
    """Write the output beside its target, on the disk itself, and return where. Blocks.

    Raises `Unanswered`, `Halted`, `OSError`; nothing is left behind then.
    """
    check_folder(merge.target)
    partial = beside(merge.target, merge.spec.job_id)
    try:
        mode = disk.PRIVATE_FILE if merge.spec.of_call else disk.PUBLIC_FILE
        with open(_created(partial, mode), "wb", _BUFFER) as out:
            with formats.compressed(out, formats.compression_of(merge.target)) as content:
                write_rows(merge, content)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return partial


def write_rows(merge: Merge, out: IO[bytes]) -> None:
    """Write the rows of `merge` with their answers into `out`. Raises as `write` does."""
    most = 1 << 62 if merge.most is None else merge.most
    if merge.output_format == "parquet":
        parquet_table.write(merge.input, out, merge.answer, merge.answers.rare_fields(), merge.columns, most=most)
        return
    if merge.output_format in formats.CELLS:
        _write_cells(merge, out, most)
        return
    if merge.spec.input_format == "parquet":
        lines = _parquet_lines(merge, most)
    elif merge.spec.input_format in formats.CELLS:
        lines = _cell_lines(merge, most)
    elif merge.spec.input_format == "batch":
        lines = _batch_lines(merge, most)
    else:
        lines = (jsonl_line(rows_.row_of(line), record, merge.columns) for line, record in _answered(merge, most))
    if merge.output_format == "json":
        separator = b"[\n"
        for line in lines:
            out.write(separator + line.removesuffix(b"\n"))
            separator = b",\n"
        out.write(b"[]\n" if separator == b"[\n" else b"\n]\n")
        return
    for line in lines:
        out.write(line)


def _answered(merge: Merge, most: int) -> Iterator[tuple[bytes, Record]]:
    """Yield the first `most` rows, as lines, with their answers."""
    lines, count = Lines(merge.lines), 0
    while block := lines.read():
        for line in block:
            if line.blank:
                continue
            if count >= most:
                return
            count += 1
            record = merge.answer(line.row)
            if record is not None:
                yield line.data or b"", record


def _batch_lines(merge: Merge, most: int) -> Iterator[bytes]:
    spec = merge.spec
    takes_model = backends.record(spec.backend).any_model  # then the line's own model answered it
    for line, record in _answered(merge, most):
        found = batch_output(
            line, record, job_id=spec.job_id, model=spec.model, created=spec.created, takes_model=takes_model
        )
        if merge.ids is not None and isinstance(found.get("custom_id"), str):
            merge.ids.note(found["custom_id"], record.row)
        yield plain_line(found)


def _parquet_lines(merge: Merge, most: int) -> Iterator[bytes]:
    rows = (row for batch in ParquetTable(merge.input).batches() for row in batch.to_pylist())
    for number, row in enumerate(itertools.islice(rows, most)):
        record = merge.answer(number)
        if record is not None:
            yield plain_line(row | answer_fields(record, merge.columns))


def _cell_lines(merge: Merge, most: int) -> Iterator[bytes]:
    header = CellTable(merge.input, merge.spec.input_format).header
    names = cell_table.distinct(list(map(cell_table.readable, header)))
    surplus = merge.columns.get("surplus_cells", "surplus_cells")
    for line, record in _answered(merge, most):
        own = list(map(cell_table.readable, cells_of(line)))
        row: dict[str, Any] = dict(zip(names, own, strict=False))
        if len(own) > len(names):
            row[surplus] = own[len(names) :]
        yield plain_line(row | answer_fields(record, merge.columns))


def _write_cells(merge: Merge, out: IO[bytes], most: int) -> None:
    """Write the first `most` rows with their answers; cells that no header names stay, behind them."""
    table = CellTable(merge.input, merge.spec.input_format)
    names, width = ANSWER_FIELDS + merge.answers.rare_fields(), len(table.header)
    delimiter = table.delimiter if merge.output_format == merge.spec.input_format else _DELIMITERS[merge.output_format]
    writer = csv.writer(cell_table.Encoded(out), delimiter=delimiter, lineterminator="\r\n")
    writer.writerow([*table.header, *(merge.columns.get(name, name) for name in names)])
    for line, record in _answered(merge, most):
        own = cells_of(line)
        own += [""] * (width - len(own))
        writer.writerow([*own[:width], *cells(record, names), *own[width:]])


def _created(path: Path, mode: int) -> int:
    """Return a new file at `path`, where anybody could have put a link: what is there is removed, never written to."""
    path.unlink(missing_ok=True)
    return disk.created(path, mode)


def publish(partial: Path, target: Path, *, may_replace: bool) -> None:
    """Give the output its name, at once, and have that on the disk.

    Raises `PromptmillError` (`invalid_input`) when another file took the name meanwhile, or the folder is not what it
    was; `OSError`.
    """
    check_folder(target)
    if may_replace:
        partial.replace(target)
    else:
        _place(partial, target)
    disk.sync_folder(target.parent)


def _place(partial: Path, target: Path) -> None:
    taken = input_error(f"{target} was made by somebody else meanwhile; move it away and run the job again.")
    try:
        os.link(partial, target)  # unlike a rename, never over a file that is there
    except FileExistsError:
        raise taken from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise taken from None
        partial.replace(target)
    else:
        partial.unlink()
