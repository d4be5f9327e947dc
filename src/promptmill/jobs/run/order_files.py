"""The input and output files of an order: resolves and checks their paths."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.jobs import disk, members
from promptmill.jobs.databases import DATABASES
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs import formats
from promptmill.jobs.inputs.files import InputFiles, Part
from promptmill.jobs.inputs.given import Given
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder
from promptmill.system.safe_open import real_path

_ADDED = "." + ".0123456789" + ".partial"  # what names of files beside the output add to its name
_SHOWN_NAME = 40


@dataclass(frozen=True, slots=True)
class OrderFiles:
    """The files of an order. Links are followed only once, so later changes of links do not affect the job."""

    source: Path
    """The input; a relative path is only a name, for rows that are not in files of the user."""
    target: Path
    folder: Folder
    """The folder of the job with this output; it may not exist."""
    is_loose: bool
    """Whether the job has no output file."""
    input: InputFiles | None = None
    """The files of the input; None if the rows are only in the database."""

    @classmethod
    def of(
        cls,
        order: JobOrder,
        folders: JobFolders,
        given: Given | None = None,
        *,
        are_resolved: bool = False,
        is_anew: bool = False,
    ) -> OrderFiles:
        """Return the files of an order. `given`: the rows, if they are not in files of the user.

        `are_resolved`: the order's paths were resolved and checked before, so none may be a link now. `is_anew`: the
        input must exist even if the job has read it.

        Raises `PromptmillError` (`invalid_input`, `missing_dependency`).
        """
        target = real_path(order.target)
        folder, is_loose = folders.of(target), folders.owner(target) is not None
        if not is_loose:
            check_name(target, is_output=True)
            _check_is_text(target)
        is_known = not is_anew and folder.database.exists()
        source, parts = _input_of(order, target, given, folder if is_known else None)
        is_named = bool(parts) and given is None
        named = [target, *(part.path for part in parts if is_named)]
        if are_resolved and named != [order.target, *(members.file_of(path) for path in order.inputs if is_named)]:
            raise input_error("Input or output became a link or a folder while the job was started.")
        for part in parts:
            _check_is_text(part.path)
            formats.format_by_suffix(part.path, "input file")
        if not is_loose:
            _check_output(order, target, parts)
            formats.format_by_suffix(order.whole_output, "output file")
            formats.check_installed(order.whole_output)
        opened = input_files.opened(parts, known=is_known, encoding=order.reading.encoding) if parts else None
        return cls(source, target, folder, is_loose, opened)


def _input_of(order: JobOrder, target: Path, given: Given | None, folder: Folder | None) -> tuple[Path, Sequence[Part]]:
    """Return the path and the files of an input; no files if one was deleted but the job in `folder` has the rows.

    Raises `PromptmillError` (`invalid_input`).
    """
    if given is not None:
        return Path(given.name), with_query(given.parts, order)
    if not order.inputs[0].is_absolute():  # the order that began the job passed the rows
        return order.inputs[0], ()
    for path in order.inputs:
        check_name(path)
    is_read = folder is not None and _has_read(folder, order.inputs)
    try:
        parts = with_query(input_files.find(order.inputs, target), order)
    except PromptmillError:
        if not is_read:
            raise
        parts = ()
    if not parts or (is_read and not all(part.path.exists() for part in parts)):
        return real_path(order.inputs[0]), ()
    is_file = not parts[0].columns and not members.split(order.inputs[0])[1]
    return parts[0].path if is_file else real_path(order.inputs[0]), parts


def with_query(parts: Sequence[Part], order: JobOrder) -> Sequence[Part]:
    """Add the query of an order, and its limit, to the databases of an input. Raises `PromptmillError` for other
    files.
    """
    if (sql := order.reading.sql) is None:
        return parts
    if any(part.member or part.path.suffix.lower() not in DATABASES for part in parts):
        raise input_error(Named("sql"), " goes with a database, without a table: mails.db.")
    most = order.limits.rows if order.limits.shard is None else None
    return [replace(part, query=sql, most_rows=most) for part in parts]


def _has_read(folder: Folder, inputs: Sequence[Path]) -> bool:
    known, order = folder.spec, folder.order
    if known is None or not known.is_read or known.input.path != real_path(inputs[0]):
        return False
    return not inputs[1:] or (order is not None and order.inputs == inputs)  # a missing file may be a misspelt name


def _check_output(order: JobOrder, target: Path, parts: Sequence[Part]) -> None:
    if any(part.path == members.file_of(target) and not _may_hold_both(part, target) for part in parts):
        raise input_error("Input and output are the same file; name another output.")
    if target.is_dir():
        raise input_error(
            f"The output {order.output} is a folder; name a file in it, {order.output / 'answers.jsonl'}."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise input_error(f"The output cannot be written into {target.parent}: {disk.why(error)}.") from None


def _may_hold_both(part: Part, target: Path) -> bool:
    """Return whether a file may be both input and output: for another table, or a workbook that gets answer columns."""
    if members.is_table(target):
        return members.split(target)[1] != part.member
    return part.path.suffix.lower() == ".xlsx"


def check_name(path: Path, *, is_output: bool = False) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that is too long for the file system."""
    try:
        (path.with_name(path.name + _ADDED) if is_output else path).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = path.name if len(path.name) > _SHOWN_NAME else str(path)
            room = ", as the job's own files beside it have longer names" if is_output else ""
            raise input_error(f"The name {shown[:_SHOWN_NAME]}… is too long; use a shorter one{room}.") from None


def _check_is_text(path: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a path that is not UTF-8, which a job cannot store."""
    shown = str(path).encode("utf-8", "replace").decode()
    if shown != str(path):
        raise input_error(f"{shown} has a name that is not UTF-8 text; rename it.")
