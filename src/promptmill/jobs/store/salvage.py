"""Repairs a damaged database by copying all readable content to a new database.

answers    all intact answers, and failures with a sent request (a damaged row may have caused the other failures)
rows       all readable rows; if some are lost, the job has to read its input again
settings   all readable settings; the ids of unreadable settings stay reserved
rounds     all readable rounds; an unreadable round counts as done
ways       all readable rows of their tables; if a table has no row ids, only the rows before the first unreadable row
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import orjson

from promptmill.files import disk
from promptmill.jobs.store.database import LAST_KEY, PAGE, DamagedError, JobDatabase, Row, check_order
from promptmill.jobs.store.spec import UNREAD

_Keyed = TypeVar("_Keyed", bound=tuple[Any, ...])
_Read: TypeAlias = Callable[[int, int], list[_Keyed]]
"""Reads results in the order of their keys. The arguments: the first key to read, and the maximum number of results."""
_HEADER = 100  # bytes of the file's header; sqlite.org/fileformat.html
_VALUES = ("spec", "order", "seal", "output", "status", "course", "task")
_TABLES = ("settings", "round", "spare")
_PRIMARY_KEY = "SELECT name, cid FROM pragma_table_info(?) WHERE pk ORDER BY pk"
_UNKNOWN_SETTINGS = """
    INSERT OR IGNORE INTO settings
    SELECT settings, '' FROM answer WHERE settings IS NOT NULL UNION SELECT settings, '' FROM spare
"""
_UNKNOWN_ROUNDS = """
    INSERT OR IGNORE INTO round
    SELECT round, '{}' FROM answer WHERE round > 0 UNION SELECT round, '{}' FROM spare WHERE round > 0
"""


def salvage(path: Path) -> None:
    """Replace a damaged database by a new database with the readable content. The caller holds the job's lock.

    Raises `OSError`, and `DamagedError` if the file is not a database.
    """
    beside = path.with_name(f"{path.name}.new")
    _remove(beside)
    _restore_length(path)
    try:
        with (
            contextlib.closing(JobDatabase(path)) as old,
            contextlib.closing(JobDatabase(beside, write=True)) as new,
        ):
            _copy_all(old, new)
    except BaseException:  # on a full disk, the incomplete file would take up space, so it is removed
        _remove(beside)
        raise
    _remove(path, but_itself=True)  # otherwise SQLite would apply the old log to the new file
    disk.replace(beside, path)


def _remove(path: Path, *, but_itself: bool = False) -> None:
    for suffix in ("-wal", "-shm", "-journal") if but_itself else ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _copy_all(old: JobDatabase, new: JobDatabase) -> None:
    for name in _VALUES:
        with contextlib.suppress(DamagedError):
            if (value := old.get(name)) is not None:
                new.put(**{name: value})
    new.add(added := old.added)
    of_ways = {name: statement for name, statement in added.items() if statement.startswith("CREATE TABLE")}
    for table, statement in (dict.fromkeys(_TABLES, "") | of_ways).items():
        pages = _by_primary_key if statement.endswith("WITHOUT ROWID") else _by_row_id
        with contextlib.suppress(DamagedError):
            for page in pages(old, table):
                _copy(new, table, page)
    with contextlib.suppress(DamagedError):  # all rows of a sample are copied, or none
        _copy(new, "chosen", old.read("SELECT * FROM chosen"))
    for records in _readable(lambda first, most: old.page(first, size=most)):
        new.write([record for record in records if record.is_sound and (record.code is None or record.attempts)])
    _copy_rows(old, new)
    _add_unknown(new)


def _by_row_id(old: JobDatabase, table: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the readable rows of a table."""
    query = f"SELECT rowid, * FROM {table} WHERE rowid >= ? ORDER BY rowid LIMIT ?"

    def read(first: int, most: int) -> list[tuple[Any, ...]]:
        results = old.read(query, first, most)
        check_order([result[0] for result in results], first)
        if any({*result[2:]} == {None} for result in results):
            raise DamagedError("its texts are zeros of a page that was cut short")
        return results

    for page in _readable(read):
        yield [result[1:] for result in page]


def _copy(new: JobDatabase, table: str, values: Sequence[tuple[Any, ...]]) -> None:
    if values:
        new.change((f"INSERT OR IGNORE INTO {table} VALUES ({','.join('?' * len(values[0]))})", values))


def _by_primary_key(old: JobDatabase, table: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of a table without row ids. Raises `DamagedError` at the first unreadable row."""
    key = old.read(_PRIMARY_KEY, table)
    names = ", ".join(name for name, _ in key)
    query = f"SELECT * FROM {table} WHERE {{}} ORDER BY {names} LIMIT {PAGE}"
    page = old.read(query.format(1))
    while page:
        yield page
        last = [page[-1][at] for _, at in key]
        page = old.read(query.format(f"({names}) > ({', '.join('?' * len(key))})"), *last)


def _readable(read: _Read[_Keyed]) -> Iterator[list[_Keyed]]:
    first = 0
    while first <= LAST_KEY:
        for most in (PAGE, 1):
            with contextlib.suppress(DamagedError):
                page = read(first, most)
                break
        else:
            first = _behind(read, first)
            continue
        if not page:
            break
        yield page
        first = page[-1][0] + 1


def _behind(read: _Read[_Keyed], first: int) -> int:
    """Return the first readable key after the damage at `first`; `LAST_KEY + 1` if all later keys are unreadable."""

    def is_damaged(key: int) -> bool:
        try:
            read(key, 1)
        except DamagedError:
            return True
        return False

    bad, step = first, 1
    while bad + step <= LAST_KEY and is_damaged(bad + step):
        bad, step = bad + step, 2 * step
    good = min(bad + step, LAST_KEY + 1)
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (middle, good) if is_damaged(middle) else (bad, middle)
    return good


def _copy_rows(old: JobDatabase, new: JobDatabase) -> None:
    """Copy the readable rows of the input. Rows have no checksum, so the job reads its input again if the input still
    exists. If rows are lost, the job cannot run without the input."""

    def read(first: int, most: int) -> list[Row]:
        page = old.row_page(first, size=most)
        if any(b"\0" in (row.cells or b"") for row in page):  # damaged: JSON never contains \0
            raise DamagedError("a row has zeros of a page that was cut short")
        return page

    for page in _readable(read):
        _copy(new, "row", page)
    known: Mapping[str, Any] = {}
    with contextlib.suppress(DamagedError):
        known = old.get("stretches") or {}
    rows, spec = new.row_count(), new.get("spec") or {}
    parts = {name: part for name in ("input", "output") if isinstance(part := spec.get(name), dict)}
    if "input" in parts:
        parts["input"] |= UNREAD
    if "output" in parts and rows != known.get("rows"):
        parts["output"]["names"] = None
    new.put(spec=spec | parts or None, stretches={"of": [], "rows": rows} if known or rows else None)


def _add_unknown(new: JobDatabase) -> None:
    """Reserve the ids of lost settings and rounds to which answers refer: no new settings or rounds may get them."""
    spec = new.get("spec") or {}
    targets = [target for target in spec.get("targets") or () if isinstance(target, dict)]
    known = [
        (target["settings"], orjson.dumps(target["fingerprint"], option=orjson.OPT_SORT_KEYS).decode())
        for target in targets
        if target.get("fingerprint") and isinstance(target.get("settings"), int)
    ]
    new.change(
        ("INSERT OR IGNORE INTO settings VALUES (?, ?)", known), (_UNKNOWN_SETTINGS, [()]), (_UNKNOWN_ROUNDS, [()])
    )


def _restore_length(path: Path) -> None:
    """Extend a truncated database to the length in its header, because SQLite refuses to read a shorter file."""
    with path.open("r+b") as file:
        header = file.read(_HEADER)
        if len(header) < _HEADER or not header.startswith(b"SQLite format 3\0"):
            return
        page = int.from_bytes(header[16:18], "big")
        wanted = int.from_bytes(header[28:32], "big") * (page if page > 1 else 1 << 16)
        if file.seek(0, os.SEEK_END) < wanted <= 1 << 40:
            file.truncate(wanted)
