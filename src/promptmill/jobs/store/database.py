"""One job's SQLite database, `job.db`: the rows of its input, its rounds, and every paid answer.

    job       name → JSON: `spec` (the job), `order` (the last order), `output` (the file that the job wrote), `status`
              (the progress, stored about once a second), `course` (samples of the status, for a report), `task` (see
              `server.tasks`); `before` (`spec`, `order` and `output` as they were before an order whose input is not
              yet read), `stretches` (of the input, see `ingest`), `written` (the blocks of the output),
              `secrets_checked` (the input that was checked for secrets), `secret` (see `JobDatabase.secret`)
    row       the rows of the input, see `Row`; `row_next` holds new rows while the input is read again
    settings  id → JSON: the settings with which answers were made
    round     id → JSON: the rounds of the job, see `rounds`; `chosen` has the rows that were drawn for a round
    edited    the blocks of rows that have changed since the output was written, see `export.output`
    answer    the current record of a row, by its key; see `records.Record` for the columns
    spare     records with the same columns: paid answers whose row was edited or removed, or has a newer answer; and
              failures that a person's label has replaced

Nothing ever deletes a paid answer. A way of a feature has tables of its own (`core.feature.WayEntry`), which are
created when the job first uses the way.

The process that holds the job's lock is the only writer. The file system decides how a commit reaches the disk:

* Where processes can share memory, the database is in WAL mode: a commit is one write that does not wait for the disk,
  and readers never block it. A thread calls `sync` about once a second to flush the log to the disk, so a power loss
  costs at most the last second.
* Network file systems cannot share memory. There the database has a rollback journal, and each commit waits for the
  disk. `waits_for_disk` is True, and the writer commits in a thread.

SQLite detects damage to its own structure, but not to the content of a cell. So each answer has a checksum, which is
verified when the output is written. A row with a damaged record is sent again. `salvage` repairs a damaged file.

The file may come from anywhere: its schema is not trusted, and a file with another schema is refused. Tables of a
missing feature are kept unchanged if they are plain, which means that they compute nothing and have no trigger.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import operator
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from promptmill.core.feature import ways
from promptmill.files import disk
from promptmill.jobs.store.in_flight import InFlight
from promptmill.jobs.store.records import SLOT, Record
from promptmill.system.runtime import HaltedError

LAST_KEY = 1 << 62
_ANSWER = (
    "CREATE TABLE answer (key INTEGER PRIMARY KEY, attempts INTEGER, latency_s REAL, prompt_tokens INTEGER, "
    "completion_tokens INTEGER, code TEXT, retryable INTEGER, finish_reason TEXT, text TEXT, reasoning TEXT, "
    "more TEXT, asked BLOB, checksum INTEGER, settings INTEGER, round INTEGER, vector BLOB)"
)
_ROW = "CREATE TABLE row (n INTEGER PRIMARY KEY, asked BLOB, line BLOB, cells BLOB)"
TABLES = {
    "job": "CREATE TABLE job (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "row": _ROW,
    "settings": "CREATE TABLE settings (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL)",
    "round": "CREATE TABLE round (id INTEGER PRIMARY KEY, value TEXT NOT NULL)",
    "chosen": "CREATE TABLE chosen (round INTEGER, n INTEGER, PRIMARY KEY (round, n)) WITHOUT ROWID",
    "edited": "CREATE TABLE edited (block INTEGER PRIMARY KEY)",
    "answer": _ANSWER,
    "spare": _ANSWER.replace("answer (key INTEGER PRIMARY KEY", "spare (place INTEGER PRIMARY KEY, key INTEGER"),
}
_PLAIN = re.compile(
    r"CREATE TABLE (?!sqlite_)\w+ \([\w, ]+(?:\([\w, ]+\))?\)(?: WITHOUT ROWID)?|CREATE INDEX \w+ ON \w+ \([\w, ]+\)"
)
ROW_NEXT = _ROW.replace("TABLE row", "TABLE row_next")
_IS_ADDED = f"tbl_name NOT IN ({', '.join(map(repr, (*TABLES, 'row_next')))})"
"""An SQL condition for `sqlite_master`: it selects the tables and indexes of ways."""
COLUMNS = ", ".join(Record._fields)
_OPTIONAL = frozenset({"code", "more", "vector"})  # empty texts in these columns are stored as NULL
_VALUES_OF_RECORD = ",".join("nullif(?, '')" if name in _OPTIONAL else "?" for name in Record._fields)
PUT = f"INSERT OR REPLACE INTO answer VALUES ({_VALUES_OF_RECORD})"
PUT_SPARE = f"INSERT INTO spare VALUES (?, {_VALUES_OF_RECORD})"
SET_ASIDE = f"INSERT INTO spare ({COLUMNS}) SELECT {COLUMNS} FROM answer WHERE key = ?"
PAGE = 256  # records per read; a longer read would keep the writer waiting
_WAIT_S = 5.0  # the longest wait for a lock of another program
AT_ONCE = 16  # records that are read together, whatever their size
_PAGE_BYTES = 4 << 20  # bytes of texts; a page ends with the first record that exceeds this
_TEXTS = slice(Record._fields.index("text"), Record._fields.index("more") + 1)
_STEPS_BETWEEN_LOOKS = 1_000_000  # instructions of SQLite's virtual machine, which take some milliseconds
_WAL_CHECKPOINT = 4 << 20  # bytes; a smaller log gets no checkpoint, because each checkpoint costs a sync
_WAL_TRUNCATE = 64 << 20
_ERRORS = {
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "no space left on the disk"),
    sqlite3.SQLITE_BUSY: (errno.EBUSY, "another program keeps it locked"),
    sqlite3.SQLITE_READONLY: (errno.EROFS, "it is read-only"),
    sqlite3.SQLITE_CANTOPEN: (errno.EACCES, "it cannot be opened"),
}
_MISTAKES = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_MISMATCH})
"""The codes of mistakes in SQL, such as an unknown column in a plan's rule. They are not errors of the disk."""


class DamagedError(Exception):
    """The file is damaged, or is not the database of a job."""


@dataclass(frozen=True, slots=True)
class Work:
    """Reports the progress of long work to a run, and lets the run halt the work."""

    note: Callable[[int], None] = lambda _: None
    """A function that takes the number of rows so far. Any thread may call it."""
    halt: threading.Event = field(default_factory=threading.Event)
    """Set when the run has ended."""

    def check(self) -> None:
        """Raise `HaltedError` if the run has ended."""
        if self.halt.is_set():
            raise HaltedError

    def done(self, rows: int) -> None:
        """Report the number of rows so far. Raises `HaltedError` if the run has ended."""
        self.note(rows)
        self.check()


class Row(NamedTuple):
    """A row of the input."""

    n: int
    """The row's number, see `InputRow`."""
    asked: bytes | None
    """The digests of the row's questions: 16 bytes for each prompt of the job, zeros for an empty prompt."""
    line: bytes | None
    """The row's questions as JSON, one for each prompt; None if the questions can be made from `cells` alone."""
    cells: bytes | None
    """The row as JSON: its line or, if the row is of a table, its cells as an array."""


class JobDatabase:
    """The open database of one job, for any thread.

    Every method that reads or writes raises `DamagedError`, and `OSError` if the disk or another program prevents the
    access."""

    def __init__(self, path: Path, *, write: bool = False, is_temporary: bool = False) -> None:
        """Open the database. `write`: the caller is the only writer and holds the job's lock; a missing file is
        created. `is_temporary`: nothing is synced to disk. Raises `FileNotFoundError`, `DamagedError`, `OSError`."""
        if write:
            with contextlib.suppress(FileExistsError):
                os.close(disk.created(path))
        elif not path.exists():
            raise FileNotFoundError(path)
        self.path = path
        self._lock = threading.Lock()
        self._syncing: sqlite3.Connection | None = None
        self._in_flight: InFlight | None = None
        self._connection = self._connected(_WAIT_S)
        try:
            with self._errors():
                self._prepare(write=write, syncs="OFF" if is_temporary else "NORMAL")
            if write:
                self._in_flight = InFlight(InFlight.beside(path))
        except BaseException:
            self.close()
            raise

    @property
    def in_flight(self) -> InFlight:
        """The ledger of the requests in flight. Only the writer may use it."""
        assert self._in_flight is not None, "it is open for reading"
        return self._in_flight

    # ---- table job

    def get(self, name: str, most: int = LAST_KEY) -> dict[str, Any] | None:
        """Return the object `name` of table `job`; None if it is missing, malformed or has more than `most` bytes."""
        values = self.read("SELECT value FROM job WHERE name = ? AND length(CAST(value AS BLOB)) <= ?", name, most)
        try:
            value = orjson.loads(values[0][0]) if values else None
        except orjson.JSONDecodeError:
            return None
        return value if isinstance(value, dict) else None

    def put(self, **values: Mapping[str, object] | None) -> None:
        """Store `values` by name in table `job`, in one transaction. None removes a value."""
        kept = [
            (name, orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode())
            for name, value in values.items()
            if value is not None
        ]
        gone = [(name,) for name, value in values.items() if value is None]
        self.change(("INSERT OR REPLACE INTO job VALUES (?, ?)", kept), ("DELETE FROM job WHERE name = ?", gone))

    def secret(self) -> bytes:
        """Return random bytes that only this job has. The first call stores them."""
        if (kept := self.get("secret")) is None:
            self.put(secret=(kept := {"hex": secrets.token_hex(32)}))
        return bytes.fromhex(kept["hex"])

    def settings_id(self, fingerprint: Mapping[str, object]) -> int:
        """Return the id of the settings with this fingerprint. New settings are stored first."""
        text = orjson.dumps(fingerprint, option=orjson.OPT_SORT_KEYS).decode()
        query = "SELECT id FROM settings WHERE fingerprint = ? ORDER BY id"
        if not (ids := self.read(query, text)):
            self.change(("INSERT INTO settings SELECT coalesce(max(id) + 1, 0), ? FROM settings", [(text,)]))
            ids = self.read(query, text)
        return int(ids[0][0])

    # ---- table row

    def rows(self, first: int = 0, last: int = SLOT) -> Iterator[Row]:
        """Yield the rows with the numbers `first` to `last`, in order. They are read page by page."""
        return itertools.chain.from_iterable(self.row_pages(first, last))

    def row_pages(self, first: int = 0, last: int = SLOT) -> Iterator[list[Row]]:
        """Yield the rows with the numbers `first` to `last`, in pages."""
        while first <= last and (page := self.row_page(first, last)):
            yield page
            first = page[-1].n + 1

    def row_page(self, first: int, last: int = SLOT, size: int = PAGE) -> list[Row]:
        """Return up to `size` rows with the numbers `first` to `last`; fewer if the rows are long."""
        query = f"SELECT n, asked, line, cells FROM row WHERE n BETWEEN ? AND ? ORDER BY n LIMIT {size}"
        page = self.read(query, first, last, fetched=functools.partial(limited, texts=slice(2, 4)))
        check_rows(page, first)
        return list(map(Row._make, page))

    def rows_at(self, numbers: Sequence[int]) -> list[Row]:
        """Return the rows with these numbers, in order; only the first ones if the rows are long."""
        query = f"SELECT n, asked, line, cells FROM row WHERE n IN ({','.join('?' * len(numbers))}) ORDER BY n"
        page = self.read(query, *numbers, fetched=functools.partial(limited, texts=slice(2, 4)))
        check_rows(page, min(numbers))
        return list(map(Row._make, page))

    def row_count(self) -> int:
        """Return the number of rows."""
        ((count,),) = self.read("SELECT count(*) FROM row")
        return int(count)

    # ---- table answer

    def write(
        self, records: Sequence[Record], replaced: Sequence[int] = (), *changes: tuple[str, Iterable[Any]]
    ) -> None:
        """Store `records`, replacing records with equal keys. If this raises, no record is stored.

        The answers with the keys `replaced` become spare. `changes`: statements to run first, see `change`.
        """
        aside = f"{SET_ASIDE} AND code IS NULL", [(key,) for key in replaced]
        self.change(*changes, aside, (PUT, map(bound, records)))

    def drop_damaged(self) -> int:
        """Delete the damaged records; return their number."""
        keys = [(record.key,) for record in self.records() if not record.is_sound]
        self.change(("DELETE FROM answer WHERE key = ?", keys))
        return len(keys)

    def record(self, key: int) -> Record | None:
        """Return the record with this key; None if it is missing or damaged."""
        return next(self.records_at([key]), None)

    def records(self, first: int = 0, where: str = "1") -> Iterator[Record]:
        """Yield the records from key `first` on, in order, including damaged ones. Some may have been stored later."""
        while page := self.page(first, where):
            yield from page
            first = page[-1].key + 1

    def records_at(self, keys: Sequence[int]) -> Iterator[Record]:
        """Yield the intact records with these keys, in order."""
        ordered = sorted(keys)
        for at in range(0, len(ordered), AT_ONCE):
            some = ordered[at : at + AT_ONCE]
            query = f"SELECT {COLUMNS} FROM answer WHERE key IN ({','.join('?' * len(some))}) ORDER BY key"
            records = map(Record._make, self.read(query, *some))
            yield from (record for record in records if record.is_sound)

    def sound_records(self) -> list[Record]:
        """Return every intact record. Use it only for a job that fits in memory."""
        return [record for record in self.records() if record.is_sound]

    def page(self, first: int, where: str = "1", size: int = PAGE) -> list[Record]:
        """Return up to `size` records from key `first` on, including damaged records; fewer if their texts are long."""
        query = f"SELECT {COLUMNS} FROM answer WHERE key >= ? AND ({where}) ORDER BY key LIMIT {size}"
        records = list(map(Record._make, self.read(query, first, fetched=functools.partial(limited, texts=_TEXTS))))
        check_order([record.key for record in records], first)
        return records

    def keys(self, where: str, rest: str = "") -> list[int]:
        """Return the keys of the records that meet a condition. `rest`: SQL that sorts and limits the keys."""
        return [key for (key,) in self.read(f"SELECT key FROM answer WHERE {where} {rest}")]

    def count(self, where: str) -> int:
        """Return the number of records that meet a condition."""
        ((count,),) = self.read(f"SELECT count(*) FROM answer WHERE {where}")
        return int(count)

    # ---- the tables of ways

    @property
    def added(self) -> dict[str, str]:
        """The `CREATE` statements of the tables and indexes of ways, by name. Ways of missing features are included."""
        added = f"SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND {_IS_ADDED} ORDER BY type DESC"
        return dict(self.read(added))

    def add(self, tables: Mapping[str, str]) -> None:
        """Create those of a way's `tables` that do not exist yet."""
        added = self.added
        self.change(*((statement, [()]) for name, statement in tables.items() if name not in added))

    # ---- the file

    def sync(self) -> None:
        """Sync to disk everything written so far. Call it in a thread other than the writer's."""
        if self.waits_for_disk:
            return
        wal = self.path.with_name(f"{self.path.name}-wal")
        disk.sync_path(wal)
        if wal.stat().st_size < _WAL_CHECKPOINT:
            return
        if self._syncing is None:
            self._syncing = self._connected(0)  # a separate connection, so that other threads need not wait for a sync
        with self._errors():
            self._syncing.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            if wal.stat().st_size > _WAL_TRUNCATE:  # under constant writing, SQLite never restarts the log
                self._syncing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        with self._lock:
            if self._syncing is not None:
                self._syncing.close()
            if self._in_flight is not None:
                self._in_flight.close()
            with contextlib.suppress(sqlite3.Error):  # if it fails (full disk, …), the next `open` reads the log
                self._connection.close()

    def has_answers_in(self, slot: int) -> bool:
        """Return whether a row has an answer, not only a failure, in the slot."""
        answered = "SELECT EXISTS (SELECT 1 FROM answer WHERE key BETWEEN ? AND ? AND code IS NULL)"
        ((is_answered,),) = self.read(answered, slot * SLOT, (slot + 1) * SLOT - 1)
        return bool(is_answered)

    def read(
        self,
        query: str,
        *values: Any,
        fetched: Callable[[sqlite3.Cursor], list[tuple[Any, ...]]] = sqlite3.Cursor.fetchall,
    ) -> list[tuple[Any, ...]]:
        """Return the results of a query. In a text, bytes that are not UTF-8 become replacement characters."""
        with self._lock, self._errors():
            try:
                return fetched(self._connection.execute(query, values))
            except sqlite3.OperationalError as error:
                if "decode" not in str(error):
                    raise
                # Exact decoding would take twice as long, and is not needed: the checksum detects this damage.
                self._connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
                return fetched(self._connection.execute(query, values))

    def define(self, name: str, function: Callable[[Any], Any]) -> None:
        """Define a deterministic SQL function of one argument."""
        self._connection.create_function(name, 1, function, deterministic=True)

    def change(self, *work: tuple[str, Iterable[Any]]) -> None:
        """Run statements in one transaction. A statement is run once for each of its tuples of parameters."""
        with self.transaction() as connection:
            for statement, values in work:
                connection.executemany(statement, values)

    @contextlib.contextmanager
    def transaction(self, halt: threading.Event | None = None) -> Iterator[sqlite3.Connection]:
        """Yield the connection in a transaction, which is rolled back if the block raises.

        Raises `HaltedError` when `halt` is set, even during a long statement.
        """
        connection = self._connection
        with self._lock, self._errors():
            if halt is not None:
                connection.set_progress_handler(halt.is_set, _STEPS_BETWEEN_LOOKS)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled the transaction back already
                    connection.execute("ROLLBACK")
                if halt is not None and halt.is_set() and isinstance(error, sqlite3.OperationalError):
                    raise HaltedError from None
                raise
            finally:
                connection.set_progress_handler(None, 0)

    def _connected(self, wait_s: float) -> sqlite3.Connection:
        with self._errors():
            return sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=rw",
                timeout=wait_s,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )

    def _prepare(self, *, write: bool, syncs: str) -> None:
        run = self._connection.execute
        for setting in (f"synchronous={syncs}", "trusted_schema=OFF", "cell_size_check=ON", "cache_size=-4096"):
            run(f"PRAGMA {setting}")
        text = "SELECT name, replace(sql, '\"', '') FROM sqlite_master WHERE sql IS NOT NULL"
        schema, added = (dict(run(f"{text} AND {which}")) for which in (f"NOT {_IS_ADDED}", _IS_ADDED))
        was_killed = schema.pop("row_next", None) is not None
        if (schema or added) and not (schema == TABLES and _are_of_ways(added)):
            raise DamagedError(f"{self.path} is not the database of a job of this version")
        ((page,),) = run("PRAGMA page_size")
        if write and self.path.stat().st_size % page:  # SQLite reads the missing part of a page as zeros
            raise DamagedError(f"{self.path} was cut short")
        if write:
            shares = disk.can_share_memory(self.path.parent)
            run(f"PRAGMA journal_mode={'WAL' if shares else 'TRUNCATE'}").fetchall()
            run("BEGIN IMMEDIATE")
            for statement in () if schema else TABLES.values():
                run(statement)
            if was_killed:  # a run was killed while it read the input, so this run reads the whole input again
                run("DROP TABLE row_next")
            run("COMMIT")
        elif not schema:
            raise FileNotFoundError(self.path)  # the process was killed before it created the tables
        ((mode,),) = run("PRAGMA journal_mode")
        self.waits_for_disk = mode != "wal"
        """Whether a commit waits for the disk; an event loop cannot wait that long."""
        run("PRAGMA wal_autocheckpoint=0")  # off: `sync` makes the checkpoints, in a thread

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if _code(error) in _MISTAKES:
                raise
            raise database_error(error, self.path) from None


def _are_of_ways(added: Mapping[str, str]) -> bool:
    """Return whether tables may belong to ways. A table of a missing feature may be any plain table."""
    known = {name: statement for way in ways().values() for name, statement in way.tables.items()}
    return all(known.get(name, text) == text and _PLAIN.fullmatch(text) for name, text in added.items())


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary code of an error; 0 if the error is not SQLite's, as when the database is closed."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def database_error(error: sqlite3.Error, path: Path) -> OSError | DamagedError:
    """Convert an error of SQLite about the database at `path` to an error of `JobDatabase`."""
    code = _code(error)
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return DamagedError(str(error))
    number, why = _ERRORS.get(code, (errno.EIO, str(error)))
    return OSError(number, why, str(path))


def check_rows(rows: Sequence[tuple[Any, ...]], first: int) -> None:
    """Raise `DamagedError` if rows are out of order, are below `first`, or lack a required value.

    SQLite returns such rows from a page that is partly zeros. Each of `rows` starts with the columns of `Row`.
    """
    check_order([row[0] for row in rows], first)
    if any(row[1] is None or row[3] is None for row in rows):
        raise DamagedError("its rows are not whole")


def check_order(keys: Sequence[int], first: int) -> None:
    """Raise `DamagedError` if keys are out of order or below `first`."""
    if keys and (keys[0] < first or any(map(operator.ge, keys, keys[1:]))):
        raise DamagedError("its records are out of order")


def bound(record: Record) -> tuple[Any, ...]:
    """Return the values of a record as parameters of the statement `PUT`.

    It replaces None, bytes and named tuples, because `sqlite3` takes 1/3 of a write's time to look up their adapters.
    """
    asked = None if record.asked is None else bytearray(record.asked)
    vector = "" if record.vector is None else bytearray(record.vector)
    return (*record[:5], record.code or "", *record[6:10], record.more or "", asked, *record[12:15], vector)


def limited(cursor: sqlite3.Cursor, texts: slice) -> list[tuple[Any, ...]]:
    """Return the first results of a query, until the texts in the columns `texts` exceed `_PAGE_BYTES` in total."""
    results: list[tuple[Any, ...]] = []
    room = _PAGE_BYTES
    with contextlib.closing(cursor):
        for result in cursor:
            results.append(result)
            for text in result[texts]:
                if text:
                    room -= len(text)
            if room < 0:
                break
    return results
