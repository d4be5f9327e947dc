"""The ledger of the requests in flight: a memory-mapped file next to the database. Its content survives a kill."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from promptmill.files import disk

_NAME = "in-flight"
_ENTRY = struct.Struct("<qiidd")
_FREE = bytes(_ENTRY.size)
_ENTRIES = 256
_NONE_OPEN = 0, 0.0
LAST_KEY_OF_ROW = 1 << 48  # in the key of a request with several answers, the higher bits hold the answer's number


class _Entry(NamedTuple):
    row: int = 0
    requests: int = 0
    open: int = 0
    most: float = 0.0
    cost: float = 0.0

    def changed(self, requests: int, open_: int, most: float, cost: float = 0.0) -> _Entry:
        """Return a copy of the entry to which these counts and amounts are added."""
        left = self.open + open_
        return _Entry(self.row, self.requests + requests, left, self.most + most if left else 0.0, self.cost + cost)


class InFlight:
    """The rows for which a request was sent and no record is stored yet. The memory-mapped file survives a kill.

    Each row has an entry: the row's number + 1 (0: the entry is free), the number of requests sent, the number of open
    requests (which may be billed, and whose reply is unknown), the highest cost of the open requests, and the cost of
    the ended requests. The first entry counts the requests of earlier runs whose rows have a record by now.
    """

    @staticmethod
    def beside(database: Path) -> Path:
        """Return the path of the ledger of a job's database."""
        return database.with_name(_NAME)

    def __init__(self, path: Path) -> None:
        """Open the file, which is created if missing. Raises `OSError`."""
        with contextlib.suppress(FileExistsError):
            os.close(disk.created(path))
        self._file = path.open("r+b")
        size = os.fstat(self._file.fileno()).st_size
        self._places: dict[int, int] = {}
        self._open: dict[int, dict[int, tuple[int, float]]] = {}
        """The number and the highest cost of this run's open requests, by row and `Request.choice`."""
        self._free: list[int] = []
        self._map = self._mapped(max(_ENTRIES, size // _ENTRY.size))
        self.lost: dict[int, _Entry] = {}
        """The entries of rows whose requests were in flight when an earlier run ended."""
        self.charged_again: dict[int, int] = {}
        """For each row in `lost`, the number of its requests that this run has charged."""
        self._cleared = self._get(0).requests
        for at in range(1, len(self._map) // _ENTRY.size):
            entry = self._get(at)
            if entry.row > 0:
                self._places[entry.row - 1] = at
                self.lost[entry.row - 1] = entry
            else:
                self._free.append(at)

    def sent(self, key: int, choice: int, most: float, requests: int = 1) -> None:
        """Record that a request was sent for the row of `key`. `most`: the row's share of the request's highest cost.
        `requests`: 0 if the request asks about several rows and is counted for another row."""
        row = key & (LAST_KEY_OF_ROW - 1)
        at = self._places.get(row)
        if at is not None:
            self._put(at, self._get(at).changed(requests, 1, most))
            choices = self._open.setdefault(row, {})
            count, before = choices.get(choice, _NONE_OPEN)
            choices[choice] = count + 1, before + most
            return
        if not self._free:
            count = len(self._map) // _ENTRY.size
            self._map.close()
            self._map = self._mapped(2 * count)
            self._free.extend(range(count, 2 * count))
        at = self._places[row] = self._free.pop()
        _ENTRY.pack_into(
            self._map, at * _ENTRY.size, row + 1, requests, 1, most, 0.0
        )  # an `_Entry` would take 0.4 µs per row
        self._open[row] = {choice: (1, most)}

    def not_billed(self, key: int, choice: int) -> None:
        """Record that the last request for the row of `key` was refused, so that it costs nothing."""
        row = key & (LAST_KEY_OF_ROW - 1)
        count, most = self._open.get(row, {}).get(choice, _NONE_OPEN)
        if count:
            each = most / count
            self._open[row][choice] = count - 1, most - each
            self._put(self._places[row], self._get(self._places[row]).changed(0, -1, -each))

    def charged(self, key: int, choice: int, cost: float) -> None:
        """Record that the open requests for the row of `key` have ended, and that their cost is `cost`."""
        row = key & (LAST_KEY_OF_ROW - 1)
        if (at := self._places.get(row)) is not None:
            count, most = self._open.get(row, {}).pop(choice, _NONE_OPEN)
            self._put(at, self._get(at).changed(0, -count, -most, cost))
            if row in self.lost:
                self.charged_again[row] = self.charged_again.get(row, 0) + count

    def recorded(self, rows: Iterable[int]) -> None:
        """Remove `rows`, which have a record now."""
        for row in rows:
            if row in self.lost:
                self._cleared += self.lost.pop(row).requests
                self.charged_again.pop(row, None)
                self._put(0, _Entry(requests=self._cleared))
            if (at := self._places.pop(row, None)) is not None:
                self._map[at * _ENTRY.size : (at + 1) * _ENTRY.size] = _FREE
                self._free.append(at)
            self._open.pop(row, None)

    def clear(self) -> None:
        """Remove all rows. Their requests still count."""
        self.recorded(tuple(self._places))

    @property
    def rows(self) -> int:
        """The number of rows with a sent request and no record."""
        return len(self._places)

    @property
    def requests_lost(self) -> int:
        """The number of requests of earlier runs that no record counts."""
        return self._cleared + sum(entry.requests for entry in self.lost.values())

    @property
    def most(self) -> float:
        """The highest possible cost of all requests for rows without a record."""
        entries = [self._get(at) for at in tuple(self._places.values())]
        return sum(entry.most + entry.cost for entry in entries)

    @staticmethod
    def most_in(path: Path) -> float:
        """Return `most` from the ledger file at `path`. Raises `OSError`."""
        written = path.read_bytes()
        whole = written[: len(written) // _ENTRY.size * _ENTRY.size]  # a full disk may have cut the last entry
        return sum(entry.most + entry.cost for entry in map(_Entry._make, _ENTRY.iter_unpack(whole)))

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._map.close()
        self._file.close()

    def _get(self, at: int) -> _Entry:
        return _Entry(*_ENTRY.unpack_from(self._map, at * _ENTRY.size))

    def _put(self, at: int, entry: _Entry) -> None:
        _ENTRY.pack_into(self._map, at * _ENTRY.size, *entry)

    def _mapped(self, entries: int) -> mmap.mmap:
        self._file.truncate(entries * _ENTRY.size)
        return mmap.mmap(self._file.fileno(), entries * _ENTRY.size)
