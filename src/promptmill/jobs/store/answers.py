"""One job's SQLite database, `job.db`: what the job is, how far it is, and every answer that was paid for.

It takes the place of a journal, an index, counts and status files: a commit is crash-safe, counts are queries, and any
SQLite tool can read it while the job runs.

    job     name → JSON: `spec` (what the job is), `request` (how it was last asked for), `output` (the file it made),
            `status` (how far it is, written about once a second)
    answer  one row per settled row of the input, keyed by the row's number; for its columns see `records.Record`

There is one writer, the process that holds the job's lock. It commits once per turn of the event loop, so a killed
process loses nothing that was committed. How a commit reaches the disk depends on the file system:

* Where processes can share memory, the database is in WAL mode: a commit is one write that does not wait for the disk,
  and readers are never in the way. `sync`, called about once a second from a thread, brings everything to the
  disk, which bounds what a power loss costs.
* Network file systems, and those that refuse locks, cannot do that. There a rollback journal is truncated at each
  commit, which waits for the disk. `waits_for_disk` is True then, and whoever writes does so in a thread.

SQLite notices damage to its own structure, but not to what a cell holds. So each answer has a checksum, which is
checked when the output is written; a row whose record is not sound is asked again. See `salvage` for a damaged file.

The file may lie in a folder that others write to: it is opened without trusting its schema, and refused unless that is
exactly ours (no views, no triggers).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from promptmill.core.errors import Code
from promptmill.jobs.files import disk
from promptmill.jobs.store.records import RARE_FIELDS, JobCounts, Record

IN_FLIGHT = "in-flight"
_TABLES = {
    "job": "CREATE TABLE job (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "answer": (
        "CREATE TABLE answer (row INTEGER PRIMARY KEY, attempts INTEGER, latency_s REAL, prompt_tokens INTEGER, "
        "completion_tokens INTEGER, code TEXT, retryable INTEGER, finish_reason TEXT, text TEXT, reasoning TEXT, "
        "more TEXT, digest BLOB, checksum INTEGER)"
    ),
}
_COLUMNS = ", ".join(Record._fields)
_EARLIER = {  # answers of another input, for rows that ask the same
    "earlier": _TABLES["answer"].replace(
        "answer (row INTEGER PRIMARY KEY", "earlier (place INTEGER PRIMARY KEY, row INTEGER"
    ),
    "earlier_digest": "CREATE INDEX earlier_digest ON earlier (digest)",
}
_PUT = f"INSERT OR REPLACE INTO answer VALUES ({','.join('?' * len(Record._fields))})"  # noqa: S608 (question marks)
PAGE = 256  # records read at once: a long read would keep the writer waiting
_WAL_CHECKPOINT = 4 << 20
_LONGEST_WAL = 64 << 20
_SLOT = struct.Struct("<qqqd")
_SLOTS = 256
FARTHEST_ROW_OF_KEY = 1 << 48  # above it stands which of several answers a request is for, see `several_answers`
_SAMPLES = 65_536  # latencies are quantiles, for which these are enough
FARTHEST_ROW = 1 << 62
_ERRORS = {
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "no space left on the disk"),
    sqlite3.SQLITE_BUSY: (errno.EBUSY, "another program keeps it locked"),
    sqlite3.SQLITE_READONLY: (errno.EROFS, "it is read-only"),
    sqlite3.SQLITE_CANTOPEN: (errno.EACCES, "it cannot be opened"),
}
NEVER, RETRYABLE, FAILED, TRUNCATED = "0", "retryable", "code IS NOT NULL", "finish_reason IS 'length'"
"""Which records are to be replaced by new answers, as conditions."""
ANSWERED = "code IS NULL"
# A row with several answers takes as many requests without a retry. Few rows have any, so JSON is read for those alone.
_WANTED = "CASE WHEN instr(more, '\"wanted\":') THEN coalesce(json_extract(more, '$.wanted'), 1) ELSE 1 END"
_RETRIES = f"max(attempts - {_WANTED}, 0)"
EMPTY = f"{ANSWERED} AND trim(text) = '' AND json_extract(more, '$.tool_calls') IS NULL"


class DamagedError(Exception):
    """The database is malformed, or not one of ours."""


class InFlight:
    """The rows that have requests sent and no record yet, in a file mapped into memory, which a killed process leaves.

    A slot for each: the row's number + 1 (0: the slot is free), how many requests were sent, how many of them may be
    billed, the most that these cost. The first slot counts the requests of earlier runs whose rows have a record now.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, made if need be. Raises `OSError`."""
        with contextlib.suppress(FileExistsError):
            os.close(disk.created(path))
        self._file = path.open("r+b")
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._map = self._mapped(max(_SLOTS, self._file.seek(0, os.SEEK_END) // _SLOT.size))
        self.lost: dict[int, tuple[int, int, float]] = {}
        """Of the rows that earlier runs had on their way: requests sent, how many may be billed, the most they cost."""
        self._settled = int(self._get(0)[1])
        for at in range(1, len(self._map) // _SLOT.size):
            row, requests, billed, most = self._get(at)
            if row > 0:
                self._slots[row - 1] = at
                self.lost[row - 1] = (requests, billed, most)
            else:
                self._free.append(at)

    def sent(self, key: int, most: float) -> None:
        """Note a request for the row of `key`, which can cost `most`."""
        row = key & (FARTHEST_ROW_OF_KEY - 1)
        at = self._slots.get(row)
        requests, billed, before = 0, 0, 0.0
        if at is None:
            if not self._free:
                count = len(self._map) // _SLOT.size
                self._map.close()
                self._map = self._mapped(2 * count)
                self._free.extend(range(count, 2 * count))
            at = self._slots[row] = self._free.pop()
        else:
            _, requests, billed, before = self._get(at)
        self._put(at, row + 1, requests + 1, billed + 1, before + most)

    def not_billed(self, key: int) -> None:
        """Note that the last request for the row of `key` was refused, which costs nothing."""
        if (at := self._slots.get(key & (FARTHEST_ROW_OF_KEY - 1))) is not None:
            row, requests, billed, most = self._get(at)
            self._put(at, row, requests, billed - 1, most - most / billed if billed else 0.0)

    def recorded(self, rows: Iterable[int]) -> None:
        """Forget rows that have a record now."""
        for row in rows:
            if row in self.lost:
                self._settled += self.lost.pop(row)[0]
                self._put(0, 0, self._settled, 0, 0.0)
            if (at := self._slots.pop(row, None)) is not None:
                self._put(at, 0, 0, 0, 0.0)
                self._free.append(at)

    def clear(self) -> None:
        """Forget all rows."""
        self.recorded(tuple(self._slots))
        self._settled = 0
        self._put(0, 0, 0, 0, 0.0)

    @property
    def requests_lost(self) -> int:
        """How many requests of earlier runs no record counts."""
        return self._settled + sum(requests for requests, _, _ in self.lost.values())

    @property
    def most(self) -> float:
        """The most that the requests of all rows without a record cost."""
        slots = tuple(self._slots.values())
        return sum(self._get(at)[3] for at in slots)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._map.close()
        self._file.close()

    def _get(self, at: int) -> tuple[int, int, int, float]:
        row, requests, billed, most = _SLOT.unpack_from(self._map, at * _SLOT.size)
        return row, requests, billed, most

    def _put(self, at: int, row: int, requests: int, billed: int, most: float) -> None:
        _SLOT.pack_into(self._map, at * _SLOT.size, row, requests, billed, most)

    def _mapped(self, slots: int) -> mmap.mmap:
        self._file.truncate(slots * _SLOT.size)
        return mmap.mmap(self._file.fileno(), slots * _SLOT.size)


class JobStore:
    """The open database of one job, for any thread.

    Whatever reads or writes raises `OSError` when the disk or another program is in the way, and `DamagedError`.
    """

    def __init__(self, path: Path, *, create: bool = False, has_locks: bool = True, wait_s: float = 5.0) -> None:
        """Open the database; the one writer, who holds the job's lock, with `create`, which makes it if need be.

        `has_locks`: whether files can be locked there; `wait_s` is how long other programs are waited for.

        Raises `FileNotFoundError`, `DamagedError`, `OSError`.
        """
        if create:
            with contextlib.suppress(FileExistsError):
                os.close(disk.created(path))
        elif not path.exists():
            raise FileNotFoundError(path)
        self.path = path
        self._has_locks = has_locks
        self._lock = threading.Lock()
        self._syncing: sqlite3.Connection | None = None
        self._in_flight: InFlight | None = None
        self._connection = self._connected(wait_s)
        try:
            with self._errors():
                self._prepare(create=create)
            if create:
                self._in_flight = InFlight(path.with_name(IN_FLIGHT))
        except BaseException:
            self.close()
            raise

    @property
    def in_flight(self) -> InFlight:
        """The rows on their way, for the one writer."""
        assert self._in_flight is not None, "it is open for reading"
        return self._in_flight

    def get(self, name: str) -> dict[str, Any] | None:
        """Return what table `job` has under `name`, None when that is nothing or cannot be read as an object."""
        found = self._read("SELECT value FROM job WHERE name = ?", name)
        try:
            value = orjson.loads(found[0][0]) if found else None
        except orjson.JSONDecodeError:
            return None
        return value if isinstance(value, dict) else None

    def put(self, *, clear: bool = False, **values: Mapping[str, Any] | None) -> None:
        """Keep `values` under their names in table `job`, all at once; None removes one, `clear` all answers."""
        kept = [
            (name, orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode())
            for name, value in values.items()
            if value is not None
        ]
        gone = [(name,) for name, value in values.items() if value is None]
        forgotten = [()] if clear else []
        if clear:
            self.in_flight.clear()
        self._write(
            ("DELETE FROM answer", forgotten),
            ("INSERT OR REPLACE INTO job VALUES (?, ?)", kept),
            ("DELETE FROM job WHERE name = ?", gone),
        )

    def write(self, records: Sequence[Record]) -> None:
        """Have `records` take the place of those of the same rows; all of them, or none when it raises."""
        self._write((_PUT, records))

    def drop_unsound(self) -> int:
        """Forget the records that are not what was written; return how many there were."""
        rows = [(record.row,) for record in self.records() if not record.is_sound]
        self._write(("DELETE FROM answer WHERE row = ?", rows))
        return len(rows)

    def known(self, first: int, last: int, again: str) -> dict[int, tuple[bool, int]]:
        """Return `(settled, attempts)` of the rows from `first` to `last` that have a record.

        A record that meets the condition `again` does not settle its row.
        """
        query = f"SELECT row, NOT ({again}), attempts FROM answer WHERE row BETWEEN ? AND ?"  # noqa: S608 (ours)
        # a damaged record, which is found out when the output is written, may lack them
        return {row: (bool(settled), attempts or 0) for row, settled, attempts in self._read(query, first, last)}

    def record(self, row: int) -> Record | None:
        """Return the record of `row`, None when there is no sound one."""
        found = self._read("SELECT * FROM answer WHERE row = ?", row)
        record = Record._make(found[0]) if found else None
        return record if record is not None and record.is_sound else None

    def records(self, first: int = 0, where: str = "1") -> Iterator[Record]:
        """Yield records from row `first` on, by row, sound or not; some of what is written meanwhile among them."""
        while page := self.page(first, where):
            yield from page
            first = page[-1].row + 1

    def all_records(self) -> list[Record]:
        """Return every sound record, for a job that fits in memory."""
        return [record for record in self.records() if record.is_sound]

    def page(self, first: int, where: str = "1", most: int = PAGE) -> list[Record]:
        """Return up to `most` records from row `first` on, by row, sound or not."""
        query = f"SELECT * FROM answer WHERE row >= ? AND ({where}) ORDER BY row LIMIT {most}"  # noqa: S608 (ours)
        return list(map(Record._make, self._read(query, first)))

    def counts(self, again: str = NEVER, before: int = FARTHEST_ROW, *, skips_empty: bool = False) -> JobCounts:
        """Count the rows under `before`. Records that meet `again` count for what they cost, but are not done.

        `skips_empty`: rows that ask nothing are no failures.
        """
        where = "FROM answer WHERE row < ?"
        counts = JobCounts(skips_empty=skips_empty)
        sums = f"count(*), total(attempts), total({_RETRIES}), total(prompt_tokens), total(completion_tokens)"
        ((rows, *spent),) = self._read(f"SELECT {sums} {where}", before)
        counts.requests, counts.retries, counts.prompt_tokens, counts.completion_tokens = map(int, spent)
        ((open_rows,),) = self._read(f"SELECT count(*) {where} AND ({again})", before)
        counts.done = rows - open_rows
        codes = f"SELECT code, count(*) {where} AND code IS NOT NULL AND NOT ({again}) GROUP BY code"
        for code, count in self._read(codes, before):
            counts.fail(code, count)
        ((counts.truncated,),) = self._read(f"SELECT count(*) {where} AND {TRUNCATED} AND NOT ({again})", before)
        empty = f"SELECT count(*) {where} AND {EMPTY} AND NOT ({again})"
        ((counts.empty,),) = self._read(empty, before)
        every = 1 + rows // _SAMPLES
        for (latency_s,) in self._read(f"SELECT latency_s {where} AND code IS NULL AND row % {every} = 0", before):
            counts.sample(latency_s)
        return counts

    def examples(self) -> dict[str, str]:
        """Return what the first failure of each code says."""
        query = "SELECT code, text, min(row) FROM answer WHERE code IS NOT NULL GROUP BY code"
        return {code: text for code, text, _ in self._read(query)}

    def failures(self, most: int, *, skips_empty: bool = False) -> list[Record]:
        """Return the first `most` rows that failed, by row; `skips_empty`: not those that ask nothing."""
        return self.page(0, f"code != '{Code.EMPTY_PROMPT}'" if skips_empty else FAILED, most)

    def answering_models(self) -> set[str]:
        """Return the names of the models that rows say they were answered by."""
        query = "SELECT DISTINCT json_extract(more, '$.answered_by') FROM answer WHERE more IS NOT NULL"
        return {name for (name,) in self._read(query) if name}

    def cost(self) -> float:
        """Return what the rows cost, as far as their prices were known."""
        query = "SELECT SUM(json_extract(more, '$.cost')) FROM answer WHERE more IS NOT NULL"
        return self._read(query)[0][0] or 0.0

    def rare_fields(self) -> tuple[str, ...]:
        """Return which of `RARE_FIELDS` some answer has."""
        found = {"reasoning"} if self._read("SELECT 1 FROM answer WHERE reasoning IS NOT NULL LIMIT 1") else set()
        for record in self.records(where="more IS NOT NULL"):
            if found >= {*RARE_FIELDS} - {"reasoning"}:
                break
            found |= record.extras.keys()
        return tuple(name for name in RARE_FIELDS if name in found)

    def begin_reuse(self, other: Path | None = None) -> None:
        """Set the answers aside, those of the database `other` if given, for rows that ask what theirs asked."""
        source = "answer" if other is None else "other.answer"
        with self._lock, self._errors():
            run = self._connection.execute
            if other is not None:
                run("ATTACH ? AS other", (f"file:{quote(str(other))}?mode=ro",))
            run("BEGIN IMMEDIATE")
            try:
                for name, statement in _EARLIER.items():
                    if not run("SELECT 1 FROM main.sqlite_master WHERE name = ?", (name,)).fetchall():
                        run(statement)
                run(
                    f"INSERT INTO earlier ({_COLUMNS}) SELECT {_COLUMNS} FROM {source} "  # noqa: S608 (ours)
                    "WHERE code IS NULL AND digest IS NOT NULL ORDER BY row"
                )
                if other is None:
                    run("DELETE FROM answer")
                    self.in_flight.clear()
                run("COMMIT")
            except BaseException:
                run("ROLLBACK")
                raise
            if other is not None:
                run("DETACH other")

    @property
    def reuses(self) -> bool:
        """Whether answers are set aside."""
        return bool(self._read("SELECT 1 FROM sqlite_master WHERE name = 'earlier'"))

    def reuse(self, wanted: Sequence[tuple[int, bytes]]) -> list[Record]:
        """Give rows, with the digests of what they ask, answers that are set aside, each once; return their records."""
        found: list[Record] = []
        used: dict[bytes, int] = {}
        places: list[tuple[int]] = []
        for row, digest in wanted:
            query = "SELECT * FROM earlier WHERE digest = ? AND place > ? ORDER BY place LIMIT 1"
            for place, *columns in self._read(query, digest, used.get(digest, 0)):
                used[digest] = place
                places.append((place,))
                record = Record._make(columns)
                if record.is_sound:
                    found.append(record.moved(row))
        self._write((_PUT, found), ("DELETE FROM earlier WHERE place = ?", places))
        return found

    def end_reuse(self) -> None:
        """Forget the answers that are set aside."""
        with self._lock, self._errors():
            self._connection.execute("DROP TABLE IF EXISTS earlier")

    def sync(self) -> None:
        """Return when everything written so far is on the disk itself. For a thread other than the writer's."""
        if self.waits_for_disk:
            return
        wal = self.path.with_name(f"{self.path.name}-wal")
        disk.sync_path(wal)
        if wal.stat().st_size < _WAL_CHECKPOINT:
            return
        if self._syncing is None:
            self._syncing = self._connected(0)  # the writer does not wait for it, nor it for a reader
        with self._errors():
            self._syncing.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            if wal.stat().st_size > _LONGEST_WAL:  # what is written all the time never begins again by itself
                self._syncing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is answered."""
        return not self.page(0, most=1)

    def close(self) -> None:
        """Close; a second time does nothing."""
        with self._lock:
            if self._syncing is not None:
                self._syncing.close()
            if self._in_flight is not None:
                self._in_flight.close()
            with contextlib.suppress(sqlite3.Error):  # a full disk: the log stays, and is read when it is opened again
                self._connection.close()

    def _connected(self, wait_s: float) -> sqlite3.Connection:
        options = "mode=rw" if self._has_locks else "mode=rw&vfs=unix-none"
        with self._errors():
            connection = sqlite3.connect(
                f"file:{quote(str(self.path))}?{options}",
                timeout=wait_s,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")  # damage is found out
        return connection

    def _prepare(self, *, create: bool) -> None:
        run = self._connection.execute
        if not self._has_locks:
            run("PRAGMA locking_mode=EXCLUSIVE")  # first, else a log from elsewhere could not be read
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "cache_size=-4096"):
            run(f"PRAGMA {setting}")
        found = dict(run("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        if found and not _TABLES.items() <= found.items() <= (_TABLES | _EARLIER).items():
            raise DamagedError(f"{self.path} is not the database of a job of this version")
        ((page,),) = run("PRAGMA page_size")
        if create and self.path.stat().st_size % page:  # SQLite would take what is missing of the last page for zeros
            raise DamagedError(f"{self.path} was cut short")
        if create:
            shares = self._has_locks and disk.can_share_memory(self.path.parent)
            run(f"PRAGMA journal_mode={'WAL' if shares else 'TRUNCATE'}").fetchall()
            if not found:
                run("BEGIN IMMEDIATE")
                for statement in _TABLES.values():
                    run(statement)
                run("COMMIT")
        elif not found:
            raise FileNotFoundError(self.path)  # whoever made it was killed before it was anything
        ((mode,),) = run("PRAGMA journal_mode")
        self.waits_for_disk = mode != "wal"
        """Whether `write` returns when the disk has it, which takes too long for an event loop."""
        run("PRAGMA synchronous=NORMAL")
        run("PRAGMA wal_autocheckpoint=0")  # `sync` does it where nobody waits

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._connection.execute(query, values).fetchall()

    def _write(self, *work: tuple[str, Sequence[Any]]) -> None:
        connection = self._connection
        with self._lock, self._errors():
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, rows in work:
                    connection.executemany(statement, rows)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise DamagedError(str(error)) from None
            number, why = _ERRORS.get(code, (errno.EIO, str(error)))
            raise OSError(number, why, str(self.path)) from None
