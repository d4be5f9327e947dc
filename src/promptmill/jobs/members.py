"""Paths of tables inside files: `labels.xlsx#Sheet2` is a sheet of a workbook, `mails.db#inbox` a table of a database.

Such a path is valid wherever a file's path is valid.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from promptmill.jobs.databases import DATABASES, Stamp, database_of
from promptmill.jobs.inputs import xlsx

WORKBOOKS = MappingProxyType({".xlsx": "xlsx", ".xlsm": "xlsx", ".xlsb": "xlsx", ".xls": "xlsx", ".ods": "xlsx"})
_MARK = "#"


def split(path: Path) -> tuple[Path, str]:
    """Return the file of a path, and the name of the table in the file; `""` if the path names no table.

    >>> split(Path("data/labels.xlsx#Sheet2"))
    (PosixPath('data/labels.xlsx'), 'Sheet2')
    """
    name, mark, member = path.name.partition(_MARK)
    if not mark or not member or Path(name).suffix.lower() not in {*WORKBOOKS, *DATABASES} or path.exists():
        return path, ""
    return path.with_name(name), member


def file_of(path: Path) -> Path:
    """Return the file of a path."""
    return split(path)[0]


def is_table(path: Path) -> bool:
    """Return whether a path names a table of a database."""
    file, member = split(path)
    return bool(member) and file.suffix.lower() in DATABASES


def log_of(file: Path) -> Path | None:
    """Return the path of a database's log, which may exist and have rows that the file lacks; None for another file.

    >>> log_of(Path("mails.db")).name
    'mails.db-wal'
    """
    if file.suffix.lower() not in DATABASES:
        return None
    return file.with_name(f"{file.name}{database_of(file).log}")


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of the output at `path`, None if there is no output.

    A table and a sheet have stamps of their own: a change of other tables and sheets is no change of the output.
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
