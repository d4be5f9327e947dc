"""Paths of tables inside files: `labels.xlsx#Sheet2` is a sheet of a workbook, `mails.db#inbox` a table of a database.

Such a path is valid wherever a file's path is valid. As an output, `labels.xlsx#Sheet2[Topic]` is a column of a sheet
that a job reads and fills. If several jobs fill one sheet, each has such an output.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from promptmill.files import format_table, xlsx
from promptmill.files.databases import Stamp, database_of

PART = re.compile(r"\.part-(\d+)-of-(\d+)")
"""The end of a shard file's name; a shard file is no table, whatever the output is."""
_MARK = "#"
_COLUMN = re.compile(r"\[([^][]+)\]$")  # Excel permits no brackets in the name of a sheet
_SPECIAL = re.compile(r'[%/\\:*?"<>|#\[\]]')  # signs that a system forbids in file names, and promptmill's own signs


def split(path: Path) -> tuple[Path, str]:
    """Return the file of a path, and the name of the table in the file; `""` if the path names no table.

    >>> split(Path("data/labels.xlsx#Sheet2"))
    (PosixPath('data/labels.xlsx'), 'Sheet2')
    >>> split(Path("order #12.xlsx#Sheet2"))
    (PosixPath('order #12.xlsx'), 'Sheet2')
    """
    pieces = path.name.split(_MARK)
    if len(pieces) == 1 or PART.search(pieces[-1]) or path.exists():
        return path, ""
    divided = [(_MARK.join(pieces[:at]), _MARK.join(pieces[at:])) for at in range(1, len(pieces))]
    tables = [(path.with_name(name), member) for name, member in divided if member and format_table.has_tables(name)]
    existing = tables if len(tables) < 2 else [table for table in tables if table[0].exists()] or tables
    file, member = existing[0] if existing else (path, "")
    return file, _COLUMN.sub("", member) if _has_columns(file) else member


def column_of(path: Path) -> str:
    """Return the column of a sheet that the path names; `""` if the path names none.

    >>> column_of(with_column(Path("labels.xlsx#Sheet2"), "Topic/Tone"))
    'Topic/Tone'
    """
    found = _COLUMN.search(path.name)
    return unquote(found[1]) if found is not None and _has_columns(split(path)[0]) else ""


def with_column(path: Path, column: str) -> Path:
    """Return the path of a column in the sheet at `path`.

    >>> with_column(Path("labels.xlsx#Sheet2"), "Topic/Tone")
    PosixPath('labels.xlsx#Sheet2[Topic%2FTone]')
    >>> with_column(Path("labels.xlsx"), "Topic").name
    'labels.xlsx#[Topic]'
    """
    mark = "" if split(path)[1] else _MARK
    safe = _SPECIAL.sub(lambda sign: f"%{ord(sign[0]):02X}", column)
    return path.with_name(f"{path.name}{mark}[{safe}]")


def without_column(path: Path) -> Path:
    """Return the path of a sheet without the column that it names. Any other path is returned unchanged.

    >>> without_column(Path("labels.xlsx#Sheet2[Topic]")).name, without_column(Path("labels.xlsx#[Topic]")).name
    ('labels.xlsx#Sheet2', 'labels.xlsx')
    """
    file, member = split(path)
    return path if not column_of(path) else file.with_name(f"{file.name}{_MARK}{member}") if member else file


def _has_columns(file: Path) -> bool:
    """Return whether jobs may fill columns of a file, because it is a workbook."""
    written = format_table.writing(file)
    return written is not None and written.has_sheets


def file_of(path: Path) -> Path:
    """Return the file of a path."""
    return split(path)[0]


def is_table(path: Path) -> bool:
    """Return whether a path names a table of a database."""
    file, member = split(path)
    return bool(member) and bool(format_table.database(file))


def log_of(file: Path) -> Path | None:
    """Return the path at which a database's log may be, with rows that the file lacks; None if `file` is no database.

    >>> log_of(Path("mails.db")).name
    'mails.db-wal'
    """
    if not format_table.database(file):
        return None
    return file.with_name(f"{file.name}{database_of(file).log}")


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of the output at `path`, None if there is no output.

    A table or a sheet has its own stamp, which stays the same when other tables and sheets change.
    """
    file, member = split(path)
    if is_table(path):
        return database_of(file).stamp(file, member) if file.exists() else None
    return stamp_in(file, member)


def stamp_in(file: Path, sheet: str) -> Stamp | None:
    """Return the stamp of a sheet, or of the file if it has no such sheet; None if there is no file."""
    try:
        status = file.stat()
    except OSError:
        return None
    found = xlsx.stamp(file, sheet) if sheet else None
    return found or (status.st_size, status.st_mtime_ns)
