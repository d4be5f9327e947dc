"""Repairs a damaged database: a new one gets everything that can be read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptmill.jobs import disk
from promptmill.jobs.store.database import LAST_KEY, PAGE, DamagedError, JobDatabase

_HEADER = 100  # bytes; sqlite.org/fileformat.html
_VALUES = ("spec", "order", "output", "status", "course", "task")


def salvage(path: Path, *, has_locks: bool = True) -> None:
    """Replace a damaged database by a new one with its readable part; the caller holds the job's lock.

    Raises `OSError`; `DamagedError` if the file is no database.
    """
    beside = path.with_name(f"{path.name}.new")
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(beside.name + suffix).unlink(missing_ok=True)
    _restore_length(path)
    with (
        contextlib.closing(JobDatabase(path, has_locks=has_locks)) as old,
        contextlib.closing(JobDatabase(beside, write=True, has_locks=has_locks)) as new,
    ):
        for name in _VALUES:
            with contextlib.suppress(DamagedError):
                if (value := old.get(name)) is not None:
                    new.put(**{name: value})
        for table in ("settings", "round", "chosen"):
            with contextlib.suppress(DamagedError):
                _copy(new, table, old.read(f"SELECT * FROM {table}"))
        with contextlib.suppress(DamagedError):
            place = 0
            while page := old.read("SELECT * FROM spare WHERE place >= ? ORDER BY place LIMIT ?", place, PAGE):
                _copy(new, "spare", page)
                place = page[-1][0] + 1
        _copy_rows(old, new)
        _copy_answers(old, new)
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)  # it would be taken for the new file's log
    disk.replace(beside, path)


def _copy(new: JobDatabase, table: str, values: Sequence[tuple[Any, ...]]) -> None:
    """Copy rows of a table, without those whose texts are zeros of a page that was cut short."""
    whole = [row for row in values if row[-1] is not None]
    if whole:
        new.change((f"INSERT OR IGNORE INTO {table} VALUES ({','.join('?' * len(whole[0]))})", whole))


def _copy_rows(old: JobDatabase, new: JobDatabase) -> None:
    """Copy the rows of the input: all of them, or none.

    No checksum tells whether they are sound. So the input is read again, if it still exists or if rows are missing.
    """
    count = -1
    with contextlib.suppress(DamagedError):
        first = 0
        while page := old.row_page(first):
            new.change(("INSERT OR IGNORE INTO row VALUES (?, ?, ?, ?)", page))
            first = page[-1].n + 1
        count = (old.get("stretches") or {}).get("rows", -1)
    spec = new.get("spec") or {}
    if count == new.row_count():
        new.put(stretches={"of": [], "rows": count})
    else:
        new.change(("DELETE FROM row", [()]))
        if isinstance(spec.get("output"), dict):
            spec = {**spec, "output": {**spec["output"], "names": None}}
    if isinstance(spec.get("input"), dict):
        new.put(spec={**spec, "input": {**spec["input"], "size": 0, "version": 0, "sha256": ""}})


def _copy_answers(old: JobDatabase, new: JobDatabase) -> None:
    """Copy the sound records, as far as they can be found behind a damaged place."""
    first, step, size = 0, 1, PAGE
    while first < LAST_KEY:
        try:
            while page := old.page(first, size=size):
                new.write([record for record in page if record.is_sound])
                first, step = page[-1].key + 1, 1
            return
        except DamagedError:
            if size == 1:
                first, step = first + step, step * 2
            size = 1


def _restore_length(path: Path) -> None:
    """Give a database that was cut short the length that its header names: SQLite reads nothing of a shorter one."""
    with path.open("r+b") as file:
        header = file.read(_HEADER)
        if len(header) < _HEADER or not header.startswith(b"SQLite format 3\0"):
            return
        page = int.from_bytes(header[16:18], "big")
        wanted = int.from_bytes(header[28:32], "big") * (page if page > 1 else 1 << 16)
        if file.seek(0, os.SEEK_END) < wanted <= 1 << 40:
            file.truncate(wanted)
