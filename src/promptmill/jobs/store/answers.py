"""One job's SQLite database, `job.db`: its specification, its status, and every paid answer.

It takes the place of a journal, an index, counts and status files: a commit is crash-safe, counts are queries, and any
SQLite tool can read it while the job runs.

    job       name → JSON: `spec` (the specification), `request` (its last order), `output` (the file that it made),
              `status` (its progress, written about once a second), `course` (samples of it, for a report), `task`
              (the note about the task that it is, see `server.tasks`)
    settings  id → JSON: the settings that answers were made under
    answer    one row per settled row of the input, keyed by the row's number; for its columns see `records.Record`
    spare     the same columns: paid answers that no row uses now, because the row was edited (see `binding`) or has a
              newer answer; they are never deleted

There is one writer, the process that holds the job's lock. It commits several outcomes at a time (see `StoreSink`);
a killed process loses nothing that was committed. How a commit reaches the disk depends on the file system:

* Where processes can share memory, the database is in WAL mode: a commit is one write that does not wait for the disk,
  and readers are never in the way. `sync`, called about once a second from a thread, brings everything to the
  disk, which bounds what a power loss costs.
* Network file systems, and those that refuse locks, cannot do that. There a rollback journal is truncated at each
  commit, which waits for the disk. `waits_for_disk` is True then, and whoever writes does so in a thread.

SQLite notices damage to its own structure, but not to what a cell holds. So each answer has a checksum, which is
checked when the output is written; a row whose record is not sound is sent again. See `salvage` for a damaged file.

The file may lie in a folder that others write to: its schema is not trusted, and the file is refused
unless the schema is exactly the one above (no views, no triggers).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import mmap
import os
import random
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from promptmill.backends.protocol import COUNTERS
from promptmill.core.errors import Code
from promptmill.jobs.files import disk
from promptmill.jobs.store.records import RARE_FIELDS, JobCounts, Record

IN_FLIGHT = "in-flight"
_ANSWER = (
    "CREATE TABLE answer (row INTEGER PRIMARY KEY, attempts INTEGER, latency_s REAL, prompt_tokens INTEGER, "
    "completion_tokens INTEGER, code TEXT, retryable INTEGER, finish_reason TEXT, text TEXT, reasoning TEXT, "
    "more TEXT, asked BLOB, checksum INTEGER, settings INTEGER DEFAULT 0, round INTEGER DEFAULT 0)"
)
_TABLES = {
    "job": "CREATE TABLE job (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "settings": "CREATE TABLE settings (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL)",
    "answer": _ANSWER,
    "spare": _ANSWER.replace("answer (row INTEGER PRIMARY KEY", "spare (place INTEGER PRIMARY KEY, row INTEGER"),
}
COLUMNS = ", ".join(Record._fields)
_OPTIONAL = frozenset({"code", "more"})  # texts that are never empty
_VALUES_OF_RECORD = ",".join("nullif(?, '')" if name in _OPTIONAL else "?" for name in Record._fields)
PUT = f"INSERT OR REPLACE INTO answer VALUES ({_VALUES_OF_RECORD})"
_SET_ASIDE = f"INSERT INTO spare ({COLUMNS}) SELECT {COLUMNS} FROM answer WHERE row = ? AND code IS NULL"
# A job of release 0.1 has `digest` in the place of `asked`, and no settings or rounds. Its table `earlier` is `spare`
# now.
_OF_0_1 = _ANSWER.replace("asked", "digest").replace(", settings INTEGER DEFAULT 0, round INTEGER DEFAULT 0", "")
_COLUMNS_OF_0_1 = COLUMNS.replace("asked", "digest AS asked").replace("settings, round", "0 AS settings, 0 AS round")
_TABLES_OF_0_1 = {"job": _TABLES["job"], "answer": _OF_0_1}
_EARLIER = {
    "earlier": _OF_0_1.replace("answer (row INTEGER PRIMARY KEY", "earlier (place INTEGER PRIMARY KEY, row INTEGER"),
    "earlier_digest": "CREATE INDEX earlier_digest ON earlier (digest)",
}
_PAID = "(SELECT attempts, prompt_tokens, completion_tokens, more, row FROM answer WHERE row < ? UNION ALL SELECT "
_PAID += "attempts, prompt_tokens, completion_tokens, more, row FROM spare)"
PAGE = 256  # records read at once: a long read would keep the writer waiting
_WAIT_S = 5.0  # for other programs
_AT_ONCE = 16  # records, of any size
_PAGE_CHARACTERS = 4 << 20  # of their texts; a page ends with the record that exceeds it
_TEXTS = slice(Record._fields.index("text"), Record._fields.index("more") + 1)
_WAL_CHECKPOINT = 4 << 20
_LONGEST_WAL = 64 << 20
_SLOT = struct.Struct("<qiidd")
_FREE = bytes(_SLOT.size)
_SLOTS = 256
_MOST_IN_FLIGHT = 64 << 20  # bytes; no job has a million requests in flight
FARTHEST_ROW_OF_KEY = 1 << 48  # above it stands which of several answers a request is for, see `several_answers`
_PRIME = (1 << 31) - 1
_SHOWN_VALUES = 8
_LONGEST_VALUE = 40  # characters
_LONG_VALUE = 1000  # characters; a longer answer is sorted by its digest
_SAMPLES = 65_536  # latencies are quantiles, for which these are enough
FARTHEST_ROW = 1 << 62
# A cell of a database from elsewhere may hold infinity or a text, which is greater than any number.
_MOST_COUNTED = 1 << 53
_IS_LATENCY = "latency_s BETWEEN 0 AND 1e9"
_HEADER = 100  # bytes; sqlite.org/fileformat.html
_LONGEST = 1 << 40
_ERRORS = {
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "no space left on the disk"),
    sqlite3.SQLITE_BUSY: (errno.EBUSY, "another program keeps it locked"),
    sqlite3.SQLITE_READONLY: (errno.EROFS, "it is read-only"),
    sqlite3.SQLITE_CANTOPEN: (errno.EACCES, "it cannot be opened"),
}
NEVER, RETRYABLE, FAILED, TRUNCATED = "0", "retryable", "code IS NOT NULL", "finish_reason IS 'length'"
"""Which records are to be replaced by new answers, as conditions."""
_OF_ROUND = {"failed": FAILED, "truncated": TRUNCATED, "all": "1"}
ANSWERED = "code IS NULL"
# A row with several answers takes as many requests without a retry. Few rows have any, so JSON is read for those alone.
_MORE = "CASE WHEN json_valid(more) THEN more END"  # NULL where a record is damaged, which the merge finds
_WANTED = f"CASE WHEN instr(more, '\"wanted\":') THEN coalesce(json_extract({_MORE}, '$.wanted'), 1) ELSE 1 END"
_RETRIES = f"max(attempts - {_WANTED}, 0)"
_CACHED = f"CASE WHEN instr(more, '\"cached_tokens\":') THEN json_extract({_MORE}, '$.tokens.cached_tokens') END"
_IS_OBJECT = "CASE WHEN json_valid(text) THEN json_type(text) END = 'object'"
_FIRST_ANSWERS = 256
_MOST_FIELDS = 20
_KINDS = MappingProxyType(
    {
        frozenset({"text"}): "text",
        **dict.fromkeys((frozenset({"true"}), frozenset({"false"}), frozenset({"true", "false"})), "boolean"),
        **dict.fromkeys((frozenset({"integer"}), frozenset({"real"}), frozenset({"integer", "real"})), "number"),
    }
)
# One more value than is shown, and null, tell that there are too many.
_VALUES = f"SELECT * FROM (SELECT {{0}}, f{{0}}, count(*), 0 FROM answers GROUP BY f{{0}} LIMIT {_SHOWN_VALUES + 2})"
_NUMBERS = "SELECT {0}, min(f{0}), max(f{0}), avg(f{0}) FROM answers WHERE typeof(f{0}) IN ('integer', 'real')"
EMPTY = f"{ANSWERED} AND trim(text) = '' AND json_extract({_MORE}, '$.tool_calls') IS NULL"


def failed(*, skips_empty: bool) -> str:
    """Return the condition of the rows that failed; `skips_empty`: not those without a prompt."""
    return f"code != '{Code.EMPTY_PROMPT}'" if skips_empty else FAILED


def to_replace(settings: Iterable[int], round_: int, again: str | None) -> str:
    """Return which records are to be replaced, as a condition.

    Those are failures that may pass, records made under other settings than `settings`, and what round `round_` of the
    kind `again` has not replaced yet.
    """
    found = [RETRYABLE, f"settings NOT IN ({', '.join(str(int(each)) for each in settings)})"]
    if again is not None:
        found.append(f"round < {round_} AND {_OF_ROUND[again]}")
    return " OR ".join(f"({each})" for each in found)


class DamagedError(Exception):
    """The database is malformed, or not one of ours."""


class _Slot(NamedTuple):
    """A slot of `InFlight`."""

    row: int = 0
    requests: int = 0
    open: int = 0
    most: float = 0.0
    cost: float = 0.0

    def changed(self, requests: int, open_: int, most: float, cost: float = 0.0) -> _Slot:
        """Return the slot with these changes of its counts and amounts."""
        left = self.open + open_
        return _Slot(self.row, self.requests + requests, left, self.most + most if left else 0.0, self.cost + cost)


class InFlight:
    """The rows with a request sent and no record yet, in a memory-mapped file, which survives a kill.

    Each row has a slot: its number + 1 (0: the slot is free), the number of requests sent, how many of them are open
    (they may be billed, and no reply is known), the most that these cost, and what the others have cost. The first slot
    counts requests of earlier runs whose rows have a record now.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, made if need be. Raises `OSError`."""
        with contextlib.suppress(FileExistsError):
            os.close(disk.created(path))
        self._file = path.open("r+b")
        size = self._file.seek(0, os.SEEK_END)
        if size > _MOST_IN_FLIGHT:
            self._file.close()
            raise OSError(errno.EFBIG, f"the file {path.name} in it is not that of a job")
        self._slots: dict[int, int] = {}
        self._open: dict[int, dict[int, tuple[int, float]]] = {}
        """The open requests of this run by row and choice, and the most that they cost."""
        self._free: list[int] = []
        self._map = self._mapped(max(_SLOTS, size // _SLOT.size))
        self.lost: dict[int, _Slot] = {}
        """The rows that earlier runs had on their way."""
        self.charged_again: dict[int, int] = {}
        """How many requests of this run were charged, by row, for these rows."""
        self._settled = self._get(0).requests
        for at in range(1, len(self._map) // _SLOT.size):
            slot = self._get(at)
            if slot.row > 0:
                self._slots[slot.row - 1] = at
                self.lost[slot.row - 1] = slot
            else:
                self._free.append(at)

    def sent(self, key: int, choice: int, most: float) -> None:
        """Note a request for the row of `key`, which can cost `most`."""
        row = key & (FARTHEST_ROW_OF_KEY - 1)
        at = self._slots.get(row)
        if at is not None:
            self._put(at, self._get(at).changed(1, 1, most))
            choices = self._open.setdefault(row, {})
            count, before = choices.get(choice, (0, 0.0))
            choices[choice] = count + 1, before + most
            return
        if not self._free:
            count = len(self._map) // _SLOT.size
            self._map.close()
            self._map = self._mapped(2 * count)
            self._free.extend(range(count, 2 * count))
        at = self._slots[row] = self._free.pop()
        _SLOT.pack_into(self._map, at * _SLOT.size, row + 1, 1, 1, most, 0.0)  # a `_Slot` takes 0.4 µs of each row
        self._open[row] = {choice: (1, most)}

    def not_billed(self, key: int, choice: int) -> None:
        """Note that the last request for the row of `key` was refused, which costs nothing."""
        row = key & (FARTHEST_ROW_OF_KEY - 1)
        count, most = self._open.get(row, {}).get(choice, (0, 0.0))
        if count:
            each = most / count
            self._open[row][choice] = count - 1, most - each
            self._put(self._slots[row], self._get(self._slots[row]).changed(0, -1, -each))

    def charged(self, key: int, choice: int, cost: float) -> None:
        """Note that the open requests for the row of `key` have ended, and what they cost together."""
        row = key & (FARTHEST_ROW_OF_KEY - 1)
        if (at := self._slots.get(row)) is not None:
            count, most = self._open.get(row, {}).pop(choice, (0, 0.0))
            self._put(at, self._get(at).changed(0, -count, -most, cost))
            if row in self.lost:
                self.charged_again[row] = self.charged_again.get(row, 0) + count

    def recorded(self, rows: Iterable[int]) -> None:
        """Forget rows that have a record now."""
        for row in rows:
            if row in self.lost:
                self._settled += self.lost.pop(row).requests
                self.charged_again.pop(row, None)
                self._put(0, _Slot(requests=self._settled))
            if (at := self._slots.pop(row, None)) is not None:
                self._map[at * _SLOT.size : (at + 1) * _SLOT.size] = _FREE
                self._free.append(at)
            self._open.pop(row, None)

    def settle(self) -> None:
        """Forget all rows. Their requests still count."""
        self.recorded(tuple(self._slots))

    @property
    def requests_lost(self) -> int:
        """The number of requests of earlier runs that are in no record."""
        return self._settled + sum(slot.requests for slot in self.lost.values())

    @property
    def most(self) -> float:
        """The most that the requests of all rows without a record cost."""
        slots = [self._get(at) for at in tuple(self._slots.values())]
        return sum(slot.most + slot.cost for slot in slots)

    @staticmethod
    def most_in(path: Path) -> float:
        """Return `most` as the file at `path` has it. Raises `OSError`."""
        written = path.read_bytes()
        whole = written[: len(written) // _SLOT.size * _SLOT.size]  # a full disk may have cut the last one
        return sum(slot.most + slot.cost for slot in map(_Slot._make, _SLOT.iter_unpack(whole)))

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._map.close()
        self._file.close()

    def _get(self, at: int) -> _Slot:
        return _Slot(*_SLOT.unpack_from(self._map, at * _SLOT.size))

    def _put(self, at: int, slot: _Slot) -> None:
        _SLOT.pack_into(self._map, at * _SLOT.size, *slot)

    def _mapped(self, slots: int) -> mmap.mmap:
        self._file.truncate(slots * _SLOT.size)
        return mmap.mmap(self._file.fileno(), slots * _SLOT.size)


class JobStore:
    """The open database of one job, for any thread.

    Whatever reads or writes raises `OSError` when the disk or another program is in the way, and `DamagedError`.
    """

    def __init__(self, path: Path, *, create: bool = False, has_locks: bool = True) -> None:
        """Open the database; the one writer, who holds the job's lock, with `create`, which makes it if need be.

        `has_locks`: whether files can be locked there. Raises `FileNotFoundError`, `DamagedError`, `OSError`.
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
        self._connection = self._connected(_WAIT_S)
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
        """Return the object under `name` in table `job`, None when there is none."""
        found = self.read("SELECT value FROM job WHERE name = ?", name)
        try:
            value = orjson.loads(found[0][0]) if found else None
        except orjson.JSONDecodeError:
            return None
        return value if isinstance(value, dict) else None

    def put(self, **values: Mapping[str, Any] | None) -> None:
        """Keep `values` under their names in table `job`, all at once; None removes one."""
        kept = [
            (name, orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode())
            for name, value in values.items()
            if value is not None
        ]
        gone = [(name,) for name, value in values.items() if value is None]
        self.change(("INSERT OR REPLACE INTO job VALUES (?, ?)", kept), ("DELETE FROM job WHERE name = ?", gone))

    def settings_id(self, fingerprint: Mapping[str, Any]) -> int:
        """Return the id of the settings with this fingerprint, which are noted unless they are there."""
        text = orjson.dumps(fingerprint, option=orjson.OPT_SORT_KEYS).decode()
        found = "SELECT id FROM settings WHERE fingerprint = ? ORDER BY id"
        if not (ids := self.read(found, text)):
            self.change(("INSERT INTO settings SELECT coalesce(max(id) + 1, 0), ? FROM settings", [(text,)]))
            ids = self.read(found, text)
        return int(ids[0][0])

    def write(self, records: Sequence[Record], replaced: Sequence[int] = ()) -> None:
        """Have `records` take the place of those of the same rows; all of them, or none when it raises.

        Answers that the rows `replaced` had are set aside.
        """
        self.change((_SET_ASIDE, [(row,) for row in replaced]), (PUT, map(_bound, records)))

    def drop_unsound(self) -> int:
        """Forget the records that are not what was written; return how many there were."""
        rows = [(record.row,) for record in self.records() if not record.is_sound]
        self.change(("DELETE FROM answer WHERE row = ?", rows))
        return len(rows)

    def known(self, first: int, last: int, again: str) -> dict[int, tuple[bool, int, bool]]:
        """Return `(settled, attempts, answered)` of the rows from `first` to `last` that have a record.

        A record that meets the condition `again` does not settle its row.
        """
        query = f"SELECT row, NOT ({again}), attempts, {ANSWERED} FROM answer WHERE row BETWEEN ? AND ?"
        # a damaged record, which is found out when the output is written, may lack them
        return {
            row: (bool(settled), attempts or 0, bool(answered))
            for row, settled, attempts, answered in self.read(query, first, last)
        }

    def record(self, row: int) -> Record | None:
        """Return the record of `row`, None when there is no sound one."""
        return next(self.records_at([row]), None)

    def records(self, first: int = 0, where: str = "1") -> Iterator[Record]:
        """Yield records from row `first` on, by row, sound or not. Records written meanwhile may be included."""
        while page := self.page(first, where):
            yield from page
            first = page[-1].row + 1

    def records_at(self, rows: Sequence[int]) -> Iterator[Record]:
        """Yield the sound records of `rows`, by row."""
        ordered = sorted(rows)
        for at in range(0, len(ordered), _AT_ONCE):
            some = ordered[at : at + _AT_ONCE]
            query = f"SELECT * FROM answer WHERE row IN ({','.join('?' * len(some))}) ORDER BY row"
            yield from (record for found in self.read(query, *some) if (record := Record._make(found)).is_sound)

    def all_records(self) -> list[Record]:
        """Return every sound record, for a job that fits in memory."""
        return [record for record in self.records() if record.is_sound]

    def page(self, first: int, where: str = "1", most: int = PAGE) -> list[Record]:
        """Return up to `most` records from row `first` on, by row, sound or not; fewer if their texts are long."""
        query = f"SELECT * FROM answer WHERE row >= ? AND ({where}) ORDER BY row LIMIT {most}"
        found = list(map(Record._make, self.read(query, first, fetched=_page)))
        if found and found[-1].row < first + len(found) - 1:  # a page of the file that is cut short has zeros for rows
            raise DamagedError("its rows are out of order")
        return found

    def rows(self, where: str, more: str = "") -> list[int]:
        """Return the rows whose records meet a condition; `more` orders and limits them."""
        return [row for (row,) in self.read(f"SELECT row FROM answer WHERE {where} {more}")]

    def count(self, where: str) -> int:
        """Return how many records meet a condition."""
        ((count,),) = self.read(f"SELECT count(*) FROM answer WHERE {where}")
        return int(count)

    def sample(self, most: int, seed: int, where: str) -> Iterator[Record]:
        """Yield up to `most` sound records at random, by row. The same `seed` gives the same rows."""
        chance = random.Random(seed)  # noqa: S311 (it chooses rows)
        mixed = f"((row % {_PRIME} * {chance.randrange(1, _PRIME)} + {chance.randrange(_PRIME)}) % {_PRIME})"
        order = f"{mixed} * {mixed} % {_PRIME}"  # without the square, rows would be evenly spaced
        yield from self.records_at(self.rows(where, f"ORDER BY {order}, row LIMIT {max(0, most)}"))

    def records_of(self, most: int, seed: int, where: str) -> Iterator[Record]:
        """Yield the sound records that meet a condition, by row; at random so many of them if there are more."""
        if self.count(where) > most:
            yield from self.sample(most, seed, where)
            return
        yield from (record for record in self.records(where=where) if record.is_sound)

    def spread(self) -> list[tuple[float, int, int]]:
        """Return latency, characters and tokens of answers: of all, or of some thousands at equal distances."""
        every = 1 + self.count(ANSWERED) // _SAMPLES
        query = "SELECT latency_s, length(text), completion_tokens FROM answer WHERE "
        query += f"{ANSWERED} AND row % {every} = 0 AND {_IS_LATENCY}"
        return [(latency_s, length, tokens) for latency_s, length, tokens in self.read(query)]

    def counts(self, again: str = NEVER, before: int = FARTHEST_ROW, *, skips_empty: bool = False) -> JobCounts:
        """Count the rows under `before`. Records that meet `again` count for what they cost, but are not done.

        `skips_empty`: rows that ask nothing are no failures.
        """
        where = "FROM answer WHERE row < ?"
        counts = JobCounts(skips_empty=skips_empty)
        summed = ("attempts", _RETRIES, "prompt_tokens", "completion_tokens", _CACHED)
        sums = ", ".join(f"total({each})" for each in summed)
        (spent,) = self.read(f"SELECT {sums} FROM {_PAID}", before)
        for name, each in zip(COUNTERS, spent, strict=True):
            setattr(counts, name, int(max(0, min(each or 0, _MOST_COUNTED))))
        ((rows,),) = self.read(f"SELECT count(*) {where}", before)
        ((open_rows,),) = self.read(f"SELECT count(*) {where} AND ({again})", before)
        counts.done = rows - open_rows
        codes = f"SELECT code, count(*) {where} AND code IS NOT NULL AND NOT ({again}) GROUP BY code"
        for code, count in self.read(codes, before):
            counts.fail(code, count)
        ((counts.truncated,),) = self.read(f"SELECT count(*) {where} AND {TRUNCATED} AND NOT ({again})", before)
        empty = f"SELECT count(*) {where} AND {EMPTY} AND NOT ({again})"
        ((counts.empty,),) = self.read(empty, before)
        every = 1 + rows // _SAMPLES
        sampled = f"SELECT latency_s {where} AND code IS NULL AND row % {every} = 0 AND {_IS_LATENCY}"
        for (latency_s,) in self.read(sampled, before):
            counts.latencies.count(latency_s)
        return counts

    def results(self, before: int = FARTHEST_ROW, *, by_field: bool = False) -> dict[str, Any]:
        """Count the different answers: their number and lengths, and the rows with each of the commonest short ones.

        `different`, `shortest` and `longest` (characters), and, where short answers repeat, `values`: the number of
        rows by answer. `{}` without answers. Spaces around an answer do not count. `by_field`, for answers under a
        schema: also `fields`, see `_fields`. 1,000,000 rows take 1 to 2 s, and as much again for the fields; SQLite
        sorts them on the disk.
        """
        text = "trim(text, char(9, 10, 13, 32))"
        value = f"CASE WHEN length(text) > {_LONG_VALUE} THEN digest({text}) ELSE {text} END"
        # materialized, for SQLite would sort the texts themselves
        answers = f"SELECT {value} AS value, length({text}) AS length FROM answer WHERE row < ? AND {ANSWERED}"
        grouped = f"WITH answers AS MATERIALIZED ({answers}), grouped AS "
        grouped += "(SELECT value, min(length) AS length, count(*) AS rows FROM answers GROUP BY value) "
        summed = "SELECT count(*), min(length), max(length), total(rows) FROM grouped"
        ((different, shortest, longest, rows),) = self.read(grouped + summed, before)
        if not different:
            return {}
        found = {"different": different, "shortest": shortest, "longest": longest}
        if by_field and (fields := self._fields(before)):
            found["fields"] = fields
        repeats = different < rows if different <= _SHOWN_VALUES else 2 * different <= rows
        if longest > _LONGEST_VALUE or not (repeats or rows == 1):
            return found
        commonest = f"SELECT value, rows FROM grouped ORDER BY rows DESC, value LIMIT {_SHOWN_VALUES}"
        return found | {"values": dict(self.read(grouped + commonest, before))}

    def _fields(self, before: int) -> dict[str, Any]:
        """Count the values of the fields of answers that are objects of JSON.

        Of a field with a few short values, `values`: the number of rows by value; of numbers, `min`, `max` and `mean`.
        Other fields are left out, as far as possible by the first answers alone.
        """
        first = f"SELECT text FROM answer WHERE row < ? AND {ANSWERED} AND {_IS_OBJECT} LIMIT {_FIRST_ANSWERS}"
        grouped = "SELECT key, group_concat(DISTINCT type), count(DISTINCT atom) FROM "
        grouped += f"(SELECT * FROM ({first}), json_each(text)) GROUP BY key ORDER BY min(id)"
        kinds: dict[str, str] = {}
        for name, types, different in self.read(grouped, before):
            kind = _KINDS.get(frozenset(types.split(",")) - {"null"}, "")
            if kind and '"' not in name and (kind == "number" or different <= _SHOWN_VALUES):
                kinds[name] = kind
        kinds = dict(list(kinds.items())[:_MOST_FIELDS])
        if not kinds:
            return {}
        columns = ", ".join(f"json_extract(text, ?) AS f{at}" for at in range(len(kinds)))
        answers = f"SELECT {columns} FROM answer WHERE row < ? AND {ANSWERED} AND {_IS_OBJECT}"
        counted = " UNION ALL ".join(
            (_NUMBERS if kind == "number" else _VALUES).format(at) for at, kind in enumerate(kinds.values())
        )
        paths = [f'$."{name}"' for name in kinds]
        groups: dict[int, list[tuple[Any, ...]]] = {}
        for at, *group in self.read(f"WITH answers AS MATERIALIZED ({answers}) {counted}", *paths, before):
            groups.setdefault(at, []).append(tuple(group))
        found = {name: _field(kind, groups.get(at, [])) for at, (name, kind) in enumerate(kinds.items())}
        return {name: field for name, field in found.items() if field}

    def examples(self) -> dict[str, str]:
        """Return the message of the first failure of each code."""
        query = "SELECT code, text, min(row) FROM answer WHERE code IS NOT NULL GROUP BY code"
        return {code: text for code, text, _ in self.read(query)}

    def failures(self, most: int, *, skips_empty: bool = False) -> list[Record]:
        """Return the first `most` rows that failed, by row; `skips_empty`: not those that ask nothing."""
        return self.page(0, failed(skips_empty=skips_empty), most)

    def answering_models(self) -> set[str]:
        """Return the names of the models that rows say they were answered by."""
        query = f"SELECT DISTINCT json_extract({_MORE}, '$.answered_by') FROM answer WHERE more IS NOT NULL"
        return {name for (name,) in self.read(query) if name}

    def cost(self) -> float:
        """Return the cost of all answers, also spare ones, as far as their prices were known."""
        query = f"SELECT SUM(json_extract({_MORE}, '$.cost')) FROM {_PAID} WHERE more IS NOT NULL"
        return self.read(query, FARTHEST_ROW)[0][0] or 0.0

    def rare_fields(self) -> tuple[str, ...]:
        """Return which of `RARE_FIELDS` some answer has."""
        found = {name for (name,) in self.read(f"SELECT DISTINCT key FROM answer, json_each({_MORE})")}
        if self.read("SELECT 1 FROM answer WHERE reasoning IS NOT NULL LIMIT 1"):
            found.add("reasoning")
        return tuple(name for name in RARE_FIELDS if name in found)

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
            return sqlite3.connect(
                f"file:{quote(str(self.path))}?{options}",
                timeout=wait_s,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )

    def _prepare(self, *, create: bool) -> None:
        run = self._connection.execute
        if not self._has_locks:
            run("PRAGMA locking_mode=EXCLUSIVE")  # first, else a log from elsewhere could not be read
        self._connection.create_function("digest", 1, _digest, deterministic=True)
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "cache_size=-4096"):
            run(f"PRAGMA {setting}")
        found = dict(run("SELECT name, replace(sql, '\"', '') FROM sqlite_master WHERE sql IS NOT NULL"))
        is_of_0_1 = _TABLES_OF_0_1.items() <= found.items() <= (_TABLES_OF_0_1 | _EARLIER).items()
        if found and found != _TABLES and not is_of_0_1:
            raise DamagedError(f"{self.path} is not the database of a job of this version")
        ((page,),) = run("PRAGMA page_size")
        if create and self.path.stat().st_size % page:  # SQLite would take what is missing of the last page for zeros
            raise DamagedError(f"{self.path} was cut short")
        if create:
            shares = self._has_locks and disk.can_share_memory(self.path.parent)
            run(f"PRAGMA journal_mode={'WAL' if shares else 'TRUNCATE'}").fetchall()
            if is_of_0_1 or not found:
                self._make_tables(found)
        elif not found:
            raise FileNotFoundError(self.path)  # whoever made it was killed before it was anything
        elif is_of_0_1:
            run(f"CREATE TEMP VIEW answer AS SELECT {_COLUMNS_OF_0_1} FROM main.answer")
            run(f"CREATE TEMP VIEW spare AS SELECT row AS place, {_COLUMNS_OF_0_1} FROM main.answer WHERE 0")
            run("CREATE TEMP VIEW settings AS SELECT 0 AS id, '' AS fingerprint WHERE 0")
        ((mode,),) = run("PRAGMA journal_mode")
        self.waits_for_disk = mode != "wal"
        """Whether `write` returns when the disk has it, which takes too long for an event loop."""
        run("PRAGMA synchronous=NORMAL")
        run("PRAGMA wal_autocheckpoint=0")  # `sync` does it in a thread of its own

    def _make_tables(self, found: Mapping[str, str]) -> None:
        """Make the tables, of those of release 0.1 where there are any: all of them, or none."""
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        if "answer" in found:
            run("ALTER TABLE answer RENAME COLUMN digest TO asked")
            run("ALTER TABLE answer ADD COLUMN settings INTEGER DEFAULT 0")
            run("ALTER TABLE answer ADD COLUMN round INTEGER DEFAULT 0")
        for name, statement in _TABLES.items():
            if name not in found:
                run(statement)
        if "earlier" in found:
            run(f"INSERT INTO spare ({COLUMNS}) SELECT {_COLUMNS_OF_0_1} FROM earlier")
            run("DROP TABLE earlier")
        run("COMMIT")

    def read(
        self,
        query: str,
        *values: Any,
        fetched: Callable[[sqlite3.Cursor], list[tuple[Any, ...]]] = sqlite3.Cursor.fetchall,
    ) -> list[tuple[Any, ...]]:
        """Return the rows that a query finds. A text that is not UTF-8 has replacement characters."""
        with self._lock, self._errors():
            try:
                return fetched(self._connection.execute(query, values))
            except sqlite3.OperationalError as error:
                if "decode" not in str(error):
                    raise
                # the checksum finds the damage; to read all texts in this way takes twice as long
                self._connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
                return fetched(self._connection.execute(query, values))

    def change(self, *work: tuple[str, Iterable[Any]]) -> None:
        """Run each statement once for each of its rows of values; all of it happens or nothing."""
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


def _bound(record: Record) -> tuple[Any, ...]:
    """Return the values of a record for `PUT`.

    `sqlite3` asks None, bytes and a named tuple how to adapt them, which takes half as long as all the rest.
    """
    asked = None if record.asked is None else bytearray(record.asked)
    return (*record[:5], record.code or "", *record[6:10], record.more or "", asked, *record[12:])


def _page(cursor: sqlite3.Cursor) -> list[tuple[Any, ...]]:
    """Return the records of a query up to the one with which their texts exceed `_PAGE_CHARACTERS`."""
    found: list[tuple[Any, ...]] = []
    left = _PAGE_CHARACTERS
    with contextlib.closing(cursor):
        for record in cursor:
            found.append(record)
            left -= sum(map(len, filter(None, record[_TEXTS])))
            if left < 0:
                break
    return found


def _field(kind: str, groups: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Return the counts of a field from the groups of its values; `{}` for one with many or long values."""
    if kind == "number":
        ((low, high, mean),) = groups
        return {} if low is None else {"min": low, "max": high, "mean": float(f"{mean:.4g}")}
    names = {0: "false", 1: "true"} if kind == "boolean" else {}
    counts = [(names.get(value, str(value)), rows) for value, rows, _ in groups if value is not None]
    if not counts or len(counts) > _SHOWN_VALUES or max(len(value) for value, _ in counts) > _LONGEST_VALUE:
        return {}
    missing = [("null", count) for value, count, _ in groups if value is None]
    if all(count == 1 for _, count in counts) and len(counts + missing) > 1:
        return {}
    return {"values": dict(sorted(counts, key=lambda one: (-one[1], one[0])) + missing)}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


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
        for name in ("spec", "request", "output", "status", "course", "task"):
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
            if fingerprint is not None:  # a page that is cut short has zeros for its texts
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
