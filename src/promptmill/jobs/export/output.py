"""The output of a job. It is written to a temporary file in the output's folder, which is renamed in one step.

    row ⋈ answer ─▶ rows in the order of the input ─▶ .answers.csv.….partial ─▶ answers.csv

The table of a database is first written to a temporary SQLite or Parquet file, then copied in one transaction.

Blocks of rows that have not changed since the last output was written are copied from that output (`_Blocks`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import sqlite3
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from promptmill.core import values
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.feature import Format, part
from promptmill.core.values import INT64, JsonDict, JsonObject
from promptmill.files import disk, path_formats, table_paths, xlsx
from promptmill.files.databases import Stamp, database_of, quoted, taken
from promptmill.files.format_table import of_output
from promptmill.jobs.columns.column_names import EXTRA_FIELDS
from promptmill.jobs.export.answered import AnsweredRow, answered_rows, every_answer, outcomes_so_far
from promptmill.jobs.export.batch_output import Ids
from promptmill.jobs.export.text import OutputForm, TextForm, cell, write_lines, write_mappings
from promptmill.jobs.store import statistics
from promptmill.jobs.store.binding import BLOCK_ROWS
from promptmill.jobs.store.database import DamagedError, JobDatabase, Work
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.spec import OutputRecord

if TYPE_CHECKING:
    from promptmill.files.sheet_reader import Sheet

_BUFFER = 1 << 20
_LOOK_ROWS = 1024  # the number of rows between two reports of progress
_SQL_TYPES = frozenset({str, int, float, type(None), bytes})


@dataclass(frozen=True, slots=True)
class Written:
    """An output that still has its temporary name."""

    partial: Path
    stamp: Stamp
    """The stamp that the file will have when it is the output."""
    end: int
    """The number of the first row that is not written."""
    warning: str = ""
    """Sentences about shortened cells, about repeated ids of a Batch file, and about formulas; `""` without these."""
    blocks: JsonObject | None = None
    """The blocks of rows that the next output may copy. The database stores them as `written`."""
    copied: Stamp | None = None
    """The stamp of the workbook whose other sheets were copied; None if there is none."""
    answers: Stamp | None = None
    """The stamp of the job's columns in the sheet that it fills; None for other outputs."""


def write_output(
    store: JobDatabase, spec: JobSpec, work: Work, *, limit: int | None = None, own: OutputRecord | None = None
) -> Written:
    """Write the first `limit` rows of a job (None: all rows) to a temporary file. Blocks.

    `own`: the stored record of the output that the job wrote before.

    Raises `UnansweredError`, `HaltedError`, `OSError`, and the errors of `JobDatabase`.
    """
    end, target = end_of(store, limit), spec.output.path
    rows = noted(answered_rows(store, spec, every_answer, 0, end), work)
    lines = spec.output.kind.lines
    if spec.input.format == "batch" or not lines or path_formats.compression_of(target):
        copied = table_paths.stamp_in(table_paths.file_of(target), "") if spec.keeps_sheets else None
        partial, warning = write([store], spec, target, rows, end)
        answers = stamp_of_answers(partial, spec) if spec.fills_input else None
        return Written(partial, stamp_of(partial, target), end, warning, copied=copied, answers=answers)
    form = OutputForm([store], spec, spec.output.kind)
    blocks = _Blocks(store, spec, form, part(lines)(form), own)
    with partial_file(spec, target) as (partial, out):
        written = blocks.write(out, end, work)
    return Written(partial, stamp_of(partial, target), end, _notes([store], spec, spec.output.kind, end), written)


def stamp_of(partial: Path, target: Path) -> Stamp:
    """Return the stamp that the output at `target` will have when `partial` is published there. Raises `OSError`."""
    file, member = table_paths.split(target)
    if table_paths.is_table(target):
        stamp = database_of(file).stamp_of_rows(partial, member)
    else:
        stamp = table_paths.stamp_in(partial, member)
    if stamp is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(partial))
    return stamp


def stamp_of_answers(file: Path, spec: JobSpec) -> Stamp | None:
    """Return the stamp of the job's columns in the sheet that it fills; None if the sheet cannot be read. Blocks."""
    from promptmill.jobs.export import filled_sheet  # imported on use: few jobs fill a sheet

    return filled_sheet.stamp_of_answers(file, spec)


def is_own(spec: JobSpec, made: OutputRecord | None, there: Stamp | None) -> bool:
    """Return whether the output, which now has the stamp `there`, is unchanged since the job wrote it. Blocks.

    If the job fills a sheet, only the job's columns in it are compared, so other columns may have changed.
    """
    if made is None or made.is_own(there):
        return made is not None
    return bool(made.answers) and stamp_of_answers(table_paths.file_of(spec.output.path), spec) in made.answers


def has_own_rows(store: JobDatabase, spec: JobSpec) -> bool:
    """Return whether the job wrote each answered row of the sheet that it fills, with the same values in all columns
    that the job and the sheet share. Rows may have been deleted, moved or added, but no answer was edited. Blocks.

    Raises as `JobDatabase` does.
    """
    form, name = OutputForm([store], spec, spec.output.kind), spec.input.style.sheet
    with tempfile.TemporaryFile(dir=store.path.parent) as written:
        write_rows(written, form, answered_rows(store, spec, outcomes_so_far))
        known, (file, _) = _read_sheet(written, ""), table_paths.split(spec.output.path)
    try:
        with file.open("rb") as content:
            there = _read_sheet(content, name, spec.input.header_row)
    except (OSError, PromptmillError):
        return False
    own = set(form.answers.names.values())
    shared = [each for each in known.header if each in there.header]
    return own <= set(shared) and _valued(there, shared, own) <= _valued(known, shared, own)


def with_answers_of(spec: JobSpec, made: OutputRecord) -> OutputRecord:
    """Return the record of the sheet that the job fills, with the stamp of the present answers. Blocks."""
    now = stamp_of_answers(table_paths.file_of(spec.output.path), spec)
    answers = made.answers if now is None else (now, *made.answers[:1])
    return made.model_copy(update={"answers": answers, "finished": False})


def _read_sheet(content: IO[bytes], name: str, header_row: int | None = None) -> Sheet:
    from promptmill.files.sheet_reader import READER  # imported on use: few jobs fill a sheet

    return READER.read(content, "the workbook", name, header_row)


def _valued(sheet: Sheet, names: Sequence[str], own: AbstractSet[str]) -> Counter[bytes]:
    """Count those rows of a sheet that have a value in a column of `own`. Each key is the digest of a row's values in
    the columns `names`."""
    places, counts = [(sheet.header.index(name), name in own) for name in names], Counter[bytes]()
    for line in filter(None, sheet.rows):
        row = dict(enumerate(values.loads(line.encode())))
        if any(is_own and row.get(place) is not None for place, is_own in places):
            text = values.dumps([row.get(place) for place, _ in places])
            counts[hashlib.blake2b(text, digest_size=16).digest()] += 1
    return counts


def changed_answers(target: Path) -> PromptmillError:
    """Return the error for answers in a workbook that were edited after the job wrote them."""
    anew = Named("overwrite", text="; {} writes them again, over those that are there")
    return input_error(f"{target} has changed since the job wrote its answers into it", anew, ".")


def check_target(
    stores: Sequence[JobDatabase], spec: JobSpec, target: Path, extra: Iterable[str] = EXTRA_FIELDS
) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the output cannot be written at `target`, whatever the answers are.

    Call this before the first request. `spec`: a job that has read its input. `extra`: the optional fields that answers
    may have. Raises as `JobDatabase` does. Blocks.
    """
    kind, file = path_formats.format_of_output(target, spec.input.format), table_paths.file_of(target)
    if not kind.has_tables:  # the width of other tables was checked when the input was read
        return
    own, added = OutputForm(stores, spec, kind).possible_columns(extra)
    if file.exists():
        try:
            with file.open("r+b"):  # Windows refuses this while another program has the file open
                pass
        except OSError as error:
            raise input_error(f"{file} cannot be written: {disk.why(error)}. Close it in other programs.") from None
    if kind.database:
        database_of(file).check(file, table_paths.split(target)[1], [*own, *added])
    else:
        from promptmill.jobs.export import workbook_file  # imported on use: few jobs write a workbook

        workbook_file.check_target(spec, target, own, added)


def write(
    stores: Sequence[JobDatabase], spec: JobSpec, target: Path, answered: Iterable[AnsweredRow], end: int = SLOT
) -> tuple[Path, str]:
    """Write the rows `answered` to a temporary file. Return the file's path, and a warning or `""`. Raises `OSError`,
    and the errors of `answered`.
    """
    kind = path_formats.format_of_output(target, spec.input.format)
    if kind.database:  # the rows are written to a temporary file, and copied
        kind = of_output(database_of(table_paths.file_of(target)).form)
    if kind.has_sheets and (shape := spec.output_shape) is not None:
        from promptmill.jobs.export.workbook_file import check_fits  # imported on use: few jobs write a workbook

        check_fits(sum(map(shape.rows_in, stores)))
    form = OutputForm(stores, spec, kind)
    with partial_file(spec, target) as (partial, out):
        if kind.database:
            _write_table(partial, table_paths.split(target)[1], form, answered)
            return partial, _notes(stores, spec, kind, end)
        with path_formats.compressed(out, path_formats.compression_of(target)) as content:
            warning = write_rows(content, form, answered, target)
        return partial, " ".join(filter(None, [warning, _notes(stores, spec, kind, end)]))


def _notes(stores: Sequence[JobDatabase], spec: JobSpec, kind: Format, end: int) -> str:
    """Return sentences about the ids of a Batch file, and about answers that spreadsheets run as formulas, or `""`."""
    sentences = [Ids.of(store, spec, end).warning for store in stores] if spec.input.format == "batch" else []
    count = sum(statistics.formulas(store, end) for store in stores) if kind.delimiter else 0
    if count:
        begin = "1 answer begins" if count == 1 else f"{count:,} answers begin"
        sentences.append(
            f"{begin} with `=`, `@`, `+` or `-`, or a field does: programs for spreadsheets run it as a formula. Name "
            "the output .xlsx, where it is a text."
        )
    return " ".join(filter(None, sentences))


def write_rows(out: IO[bytes], form: OutputForm, answered: Iterable[AnsweredRow], target: Path | None = None) -> str:
    """Write rows into a file; return a warning or `""`. `target`: see `WorkbookWriter.write`. Raises `OSError`, and the
    errors of `answered`.
    """
    kind, rows = form.format, form.rows(answered)
    if kind.output:
        warning: str = part(kind.output)(out, form, rows, target)
        return warning
    if kind.lines:
        write_lines(out, part(kind.lines)(form), rows)
    else:
        write_mappings(out, form, rows, target)
    return ""


@contextlib.contextmanager
def temporary(
    stores: Sequence[JobDatabase], spec: JobSpec, target: Path, answered: Iterable[AnsweredRow]
) -> Iterator[tuple[Path, str]]:
    """Yield the temporary file and the warning that `write` returns. Remove the file after the `with` block.

    Raises `PromptmillError` (`invalid_input`) if nothing can be written at `target`.
    """
    check_target(stores, spec, target, {name for store in stores for name in statistics.extra_fields(store)})
    partial, warning = write(stores, spec, target, answered)
    try:
        yield partial, warning
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Turn the errors of the disk and of databases into `PromptmillError` (`storage`)."""
    try:
        yield
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{target} cannot be written: {disk.why(error)}.") from None
    except DamagedError as error:
        again = "Run the job again: its readable answers are kept."
        raise PromptmillError(Code.STORAGE, f"A database of {target.name} is damaged ({error}).", again) from None


def noted(answered: Iterator[AnsweredRow], work: Work) -> Iterator[AnsweredRow]:
    """Yield the rows, and report the number of rows so far every `_LOOK_ROWS` rows. Raises `HaltedError`."""
    for count, each in enumerate(answered):
        if count % _LOOK_ROWS == 0:
            work.done(count)
        yield each


def end_of(store: JobDatabase, limit: int | None) -> int:
    """Return the number of the row after the first `limit` rows."""
    if limit is None:
        return SLOT
    following = store.read("SELECT n FROM row ORDER BY n LIMIT 1 OFFSET ?", limit)
    return int(following[0][0]) if following else SLOT


class _Blocks:
    """Writes a text output in blocks of rows. Unchanged blocks are copied from the earlier output.

    For each block, the job stores the number of bytes and the sum of the answers' checksums. Table `edited` lists the
    blocks whose rows have changed since the output was written (see `binding`).
    """

    def __init__(
        self, store: JobDatabase, spec: JobSpec, form: OutputForm, text: TextForm, own: OutputRecord | None
    ) -> None:
        self._store, self._spec, self._divided, self._text = store, spec, form.divided, text
        header = map(repr, spec.input.header)  # also the field names of JSON that is made from a table
        names = orjson.dumps([spec.output.names, spec.output.format, *map(repr, spec.shape), *header])
        self._identity = hashlib.blake2b(self._text.header + names, digest_size=16).hexdigest()
        stored = store.get("written")
        self._known: Mapping[int, tuple[int, int, int]] = {}
        if stored is not None and own is not None and own.is_still(table_paths.stamp(spec.output.path)):
            self._known = self._read(stored)

    def _read(self, stored: JsonObject) -> dict[int, tuple[int, int, int]]:
        if stored["identity"] != self._identity:
            return {}
        edited = {block for (block,) in self._store.read("SELECT block FROM edited")}
        known, at = {}, len(self._text.header)
        for block, size, checksum in stored["blocks"]:
            if block not in edited:
                known[block] = at, size, checksum
            at += size
        return known

    def write(self, out: IO[bytes], end: int, work: Work) -> JsonDict:
        """Write the rows before number `end`. Return the blocks, which the caller stores. Raises as `answered_rows`."""
        store, row, blocks, count = self._store, self._text.row, [], 0
        out.write(self._text.header)
        ((last,),) = store.read("SELECT coalesce(max(n), -1) FROM row WHERE n < ?", end)
        source = self._spec.output.path.open("rb") if self._known else contextlib.nullcontext(io.BytesIO())
        with source as earlier:
            for block in range(last // BLOCK_ROWS + 1):
                first = block * BLOCK_ROWS
                following = min(first + BLOCK_ROWS, end)
                checksum = self._checksum(first, following)
                offset, size, known = self._known.get(block, (0, 0, None))
                if known == checksum and following == first + BLOCK_ROWS:
                    earlier.seek(offset)
                    out.write(earlier.read(size))
                    count += BLOCK_ROWS
                else:
                    size = 0
                    for one in answered_rows(store, self._spec, every_answer, first, following):
                        count += 1
                        for each in self._divided(one):
                            size += out.write(row(each))
                blocks.append((block, size, checksum))
                work.done(count)
        return {"identity": self._identity, "blocks": blocks}

    def _checksum(self, first: int, end: int) -> int:
        query = "SELECT coalesce(sum(checksum * (1 + key % 1021)), 0) FROM answer WHERE key BETWEEN ? AND ?"
        sums = (
            self._store.read(query, slot * SLOT + first, slot * SLOT + end - 1)[0][0]
            for slot in range(len(self._spec.targets))
        )
        return sum(sums)


@contextlib.contextmanager
def partial_file(spec: JobSpec, target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open a temporary file for `target`. It is synced after the `with` block, and removed if the block raises."""
    check_folder(target)
    partial = beside(target, spec.job_id)
    try:
        mode = disk.PRIVATE_FILE if spec.of_call else disk.PUBLIC_FILE
        partial.unlink(missing_ok=True)  # the path may be a link, through which nothing must be written
        with os.fdopen(disk.created(partial, mode), "wb", _BUFFER) as out:
            yield partial, out
            out.flush()
            disk.sync_file(out)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def check_folder(target: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a folder of the resolved path `target` has become a link."""
    if target.parent.resolve() != target.parent:
        raise input_error(f"{target.parent} is not the folder that it was; put it back and run the job again.")


def beside(target: Path, job_id: str) -> Path:
    """Return an output's temporary path. It is in the same folder, because a rename needs the same file system."""
    return target.with_name(f".{target.name}.{job_id[-10:]}.partial")


def discard(target: Path, job_id: str) -> None:
    """Remove the temporary file of an interrupted run, if there is one."""
    with contextlib.suppress(OSError, PromptmillError):
        check_folder(target)
        beside(target, job_id).unlink(missing_ok=True)


def publish(partial: Path, target: Path, *, may_replace: bool, copied: Stamp | None = None) -> None:
    """Rename the temporary file to its output in one step, and sync the name to disk.

    `copied`: the stamp of the workbook whose other sheets were copied. Raises `OSError`; `PromptmillError`
    (`invalid_input`) if the name was taken, the workbook was saved or the folder was replaced meanwhile.
    """
    check_folder(target)
    if copied is not None:
        file, sheet = table_paths.split(target)
        if table_paths.stamp_in(file, "") != copied:
            raise input_error(f"Another program changed {target} during the job; repeat the command.")
        if not may_replace and (not sheet or sheet in xlsx.sheet_names(file)):
            raise taken(target)
    if table_paths.is_table(target):
        file, table = table_paths.split(target)
        database_of(file).copy(partial, file, table, may_replace=may_replace)
        partial.unlink()
    elif may_replace or copied is not None:
        partial.replace(table_paths.file_of(target))
    else:
        _place(partial, table_paths.file_of(target))
    disk.sync_folder(target.parent)


def _place(partial: Path, target: Path) -> None:
    try:
        os.link(partial, target)  # a link, unlike a rename, never replaces a file
    except OSError as error:
        if isinstance(error, FileExistsError) or target.exists():
            raise taken(target) from None
        partial.replace(target)  # on a file system without hard links
    else:
        partial.unlink()


def _write_table(path: Path, table: str, form: OutputForm, answered: Iterable[AnsweredRow]) -> None:
    """Write rows into a table of the new database at `path`."""
    columns = form.header
    rows = ([_sql_value(value) for value in form.values(each)] for each in form.rows(answered))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("BEGIN")
        connection.execute(f"CREATE TABLE {quoted(table)} ({', '.join(map(quoted, columns))})")
        places = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {quoted(table)} VALUES ({places})", rows)  # noqa: S608 (a quoted name)
        connection.execute("COMMIT")


def _sql_value(value: Any) -> Any:
    """Return a value that SQLite can store: lists and objects become JSON; true and false become 1 and 0."""
    if type(value) is bool:
        return int(value)
    if isinstance(value, array):  # a vector
        return value.tobytes()
    if type(value) not in _SQL_TYPES or (type(value) is int and value not in INT64):
        return cell(value)
    return value
