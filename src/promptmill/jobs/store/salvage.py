"""Copies the readable part of a job's damaged database into a new one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from promptmill.jobs.files import disk
from promptmill.jobs.store.answers import FARTHEST_ROW, PAGE, DamagedError, JobStore

_HEADER = 100  # bytes; sqlite.org/fileformat.html
_LONGEST = 1 << 40


def salvage(path: Path, *, has_locks: bool = True) -> None:
    """Replace a damaged database by a new one with everything in it that can be read; the caller holds the job's lock.

    Raises `OSError`, `DamagedError` when the file is no database at all.
    """
    beside = path.with_name(f"{path.name}.new")
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(beside.name + suffix).unlink(missing_ok=True)
    _restore_length(path)
    with (
        contextlib.closing(JobStore(path, has_locks=has_locks)) as old,
        contextlib.closing(JobStore(beside, create=True, has_locks=has_locks)) as new,
    ):
        for name in ("spec", "request", "output", "status"):
            with contextlib.suppress(DamagedError):
                if (value := old.get(name)) is not None:
                    new.put(**{name: value})
        _copy_others(old, new)
        first, step, most = 0, 1, PAGE
        while first < FARTHEST_ROW:
            try:
                while page := old.page(first, most=most):
                    new.write([record for record in page if record.is_sound])
                    first, step = page[-1].row + 1, 1
                break
            except DamagedError:
                if most == 1:
                    first, step = first + step, step * 2
                most = 1
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)  # its last lines would be taken for the new one's
    disk.replace(beside, path)


def _copy_others(old: JobStore, new: JobStore) -> None:
    """Copy settings and spare answers, as far as they can be read."""
    with contextlib.suppress(DamagedError):
        for id_, fingerprint in old.read("SELECT id, fingerprint FROM settings ORDER BY id"):
            new.change(("INSERT INTO settings VALUES (?, ?)", [(id_, fingerprint)]))
    place = 0
    with contextlib.suppress(DamagedError):
        while page := old.read(f"SELECT * FROM spare WHERE place >= ? ORDER BY place LIMIT {PAGE}", place):
            new.change((f"INSERT INTO spare VALUES ({','.join('?' * len(page[0]))})", page))
            place = page[-1][0] + 1


def _restore_length(path: Path) -> None:
    """Give a database that was cut short the length that its header names: SQLite reads nothing of a shorter one."""
    with path.open("r+b") as file:
        header = file.read(_HEADER)
        if len(header) < _HEADER or not header.startswith(b"SQLite format 3\0"):
            return
        page = int.from_bytes(header[16:18], "big")
        wanted = int.from_bytes(header[28:32], "big") * (page if page > 1 else 1 << 16)
        if file.seek(0, os.SEEK_END) < wanted <= _LONGEST:
            file.truncate(wanted)
