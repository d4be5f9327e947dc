"""The names of the columns that a job adds to its rows, and the columns of the rows that are settings.

A row keeps its own columns: if it has one called `answer`, the answers are in `answer_1`. The names are chosen for the
whole input before anything is sent, so that every output and every page of a job has the same ones.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptmill.backends import rows
from promptmill.backends.rows import SETTINGS, is_null
from promptmill.core.errors import Named, OrderError, PromptmillError, input_error
from promptmill.jobs.files import row_files
from promptmill.jobs.files.disk import Lines, RandomFile
from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.files.spool import HaltedError
from promptmill.jobs.files.tables import CellTable, ParquetTable, distinct, readable
from promptmill.jobs.store.records import OURS
from promptmill.jobs.store.spec import WHOLE_REQUESTS, JobRequest, JobSpec

_MOST = 100  # columns of one name, numbered


def check_name(name: str) -> None:
    """Raise `OrderError` for a name that the column of the answers cannot have."""
    field = Named("answer_column")
    if name in OURS and name != "answer":
        raise OrderError(field, f": {name} is the name of another column of the output; choose another name.")
    if not name.strip() or not name.isprintable():
        raise OrderError(field, ": give the column a name of printable characters.")


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns of a job's output, and the columns of its input that are settings."""

    names: Mapping[str, str]
    """The names of the job's columns that are not the usual ones."""
    settings: Sequence[str]
    answer_column: str

    @property
    def notes(self) -> Iterator[str]:
        """Sentences for the summary: columns with unusual names, and columns that are settings."""
        wanted = {name: self.answer_column if name == "answer" else name for name in self.names}
        moved = {wanted[name]: new for name, new in self.names.items() if new != wanted[name]}
        if moved:
            its, ours = (", ".join(f"`{name}`" for name in names) for names in (moved, moved.values()))
            yield f"The input has columns {its} of its own; those of the job are called {ours}."
        if self.settings:
            yield f"Read as settings of each row: {', '.join(f'`{name}`' for name in self.settings)}."


def of_job(
    spec: JobSpec, files: InputFiles, lines: RandomFile, halt: threading.Event | None = None
) -> tuple[JobSpec, Columns]:
    """Return `spec` with the columns of the job, and the columns; the input is read unless `spec` has them. Blocks.

    `lines` are the rows as lines. Raises `PromptmillError` (`invalid_input`); `HaltedError` once `halt` is set.
    """
    if spec.columns is not None:
        return spec, Columns(spec.columns, spec.settings_read, spec.answer_column)
    found = _found(spec, spec.input_format, files, lines, halt)
    return spec.model_copy(update={"columns": dict(found.names), "settings_read": list(found.settings)}), found


def of_order(order: JobRequest, input_format: str, files: InputFiles, lines: RandomFile) -> Columns:
    """Return the columns that a job would have. Blocks. Raises as `of_job` does."""
    return _found(order, input_format, files, lines)


def _found(
    asked: JobSpec | JobRequest,
    input_format: str,
    files: InputFiles,
    lines: RandomFile,
    halt: threading.Event | None = None,
) -> Columns:
    answer_column = asked.answer_column
    wanted = {name: answer_column if name == "answer" else name for name in OURS}
    watched = frozenset(each for name in wanted.values() for each in _candidates(name)) | SETTINGS
    taken: set[str] = set()
    settings: set[str] = set()
    if input_format in row_files.TABLES:
        taken = settings = _header(files, input_format)
    elif input_format not in WHOLE_REQUESTS:
        for row in _objects(lines, halt):
            if not watched.isdisjoint(row):
                found = watched.intersection(row)
                taken |= found
                settings.update(name for name in found & SETTINGS if not is_null(row[name]))
    read = sorted(settings & SETTINGS - {asked.prompt_column}) if asked.rows_set else []
    return Columns(_names(wanted, taken), read, answer_column)


def _names(wanted: Mapping[str, str], taken: Container[str]) -> dict[str, str]:
    """Return the names of the job's columns that are not the usual ones."""
    found: dict[str, str] = {}
    for ours, name in wanted.items():
        used = found.values()
        free = next((each for each in _candidates(name) if each not in taken and each not in used), None)
        if free is None:
            raise input_error(f"The input has {_MOST} columns `{name}`, `{name}_1`, …; rename some of them.")
        found[ours] = free
    return {ours: name for ours, name in found.items() if name != ours}


def _candidates(name: str) -> Iterator[str]:
    yield name
    for number in range(1, _MOST):
        yield f"{name}_{number}"


def _header(files: InputFiles, input_format: str) -> set[str]:
    if input_format == "parquet":
        return set(ParquetTable(files).schema.names)
    header = CellTable(files, input_format).header
    return {*header, *distinct(list(map(readable, header)))}


def _objects(lines: RandomFile, halt: threading.Event | None) -> Iterator[dict[str, Any]]:
    """Yield the readable rows as they are in the input, without the prompts of a template."""
    found = Lines(lines)
    while block := found.read():
        if halt is not None and halt.is_set():
            raise HaltedError
        for line in block:
            try:
                row = rows.load(rows.row_of(line.data or b""), "")
            except PromptmillError:
                continue
            if isinstance(row, dict):
                yield row
