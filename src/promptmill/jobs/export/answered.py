"""The rows of a job with their answers, in the order of the input."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from promptmill.backends.protocol import Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.database import DamagedError, HaltedError, JobDatabase, Row
from promptmill.jobs.store.records import SLOT, Record, record_of
from promptmill.jobs.store.spec import JobSpec

_LOOK_S = 0.2  # polls, because rows bound to the answer of another job wake nobody
_UNANSWERED = Failure(PromptmillError(Code.DEFERRED, "The row has no answer yet."))


class UnansweredError(Exception):
    """A row that counts as answered has no sound record."""


class AnsweredRow(NamedTuple):
    """A row of the input and one of its answers."""

    row: Row
    slot: int
    record: Record


class Find(Protocol):
    """Finds the record of a row."""

    def __call__(self, key: int, record: Record | None) -> Record | None:
        """Return the record with `key`, or None to leave the row out. `record`: the sound record in the database, if
        any."""
        ...


def every_answer(key: int, record: Record | None) -> Record:
    """Return the record. Raises `UnansweredError` if there is none."""
    if record is None:
        raise UnansweredError(key)
    return record


def answers_so_far(key: int, record: Record | None) -> Record | None:
    """Return the record of an answer; rows that failed or have no answer yet are left out."""
    del key
    return record if record is not None and record.code is None else None


def outcomes_so_far(key: int, record: Record | None) -> Record:
    """Return the record; a row without one has the failure `deferred`."""
    return record_of(key, _UNANSWERED) if record is None else record


def answered_rows(
    store: JobDatabase, spec: JobSpec, find: Find, first: int = 0, end: int = SLOT
) -> Iterator[AnsweredRow]:
    """Yield the rows `first` to `end - 1` with their records. Raises the errors of `find` and of `JobDatabase`."""
    slots = range(len(spec.targets))
    while first < end and (page := store.row_page(first, end - 1)):
        last = page[-1].n
        records = {
            record.key: record
            for slot in slots
            for record in _records(store, slot * SLOT + first, slot * SLOT + last)
            if record.is_sound
        }
        for row in page:
            for slot in slots:
                key = row.n + slot * SLOT
                record = find(key, records.get(key))
                if record is not None and not (record.code is not None and spec.leaves_out(record.code)):
                    yield AnsweredRow(row, slot, record)
        first = last + 1


def joined_rows(stores: Sequence[JobDatabase], spec: JobSpec) -> Iterator[AnsweredRow]:
    """Yield the rows of all shards of a job. Raises the errors of `answered_rows`."""
    parts = [answered_rows(store, spec, every_answer) for store in stores]
    return heapq.merge(*parts, key=lambda answered: answered.row.n)


def _records(store: JobDatabase, first: int, last: int) -> Iterator[Record]:
    while first <= last and (page := store.page(first, f"key <= {last}")):
        yield from page
        first = page[-1].key + 1


class Following:
    """Finds the records of a running job; waits for a row that has no record yet."""

    def __init__(self, reading: Callable[[], JobDatabase], replaced: Collection[int]) -> None:
        """`reading` gives the job's database; the records with the keys `replaced` are about to be replaced."""
        self._reading = reading
        self._replaced = {*replaced}
        self.before_waiting: Callable[[], None] = lambda: None
        self._ahead: dict[int, Record] = {}
        """Records after the last row that waited."""
        self._wanted: int | None = None
        self._has_ended = False
        self._news = threading.Condition()

    def __call__(self, key: int, record: Record | None) -> Record:
        """Wait until the record exists, and return it. Raises `HaltedError`."""
        if key not in self._replaced and (record := record or self._record(key)) is not None:
            return record
        self.before_waiting()
        with self._news:
            self._wanted = key
            while not self._has_ended:
                if key not in self._replaced and (record := self._record(key)) is not None:
                    self._wanted = None
                    return record
                self._news.wait(_LOOK_S)
        raise HaltedError

    def recorded(self, keys: Sequence[int]) -> None:
        """Note that the records `keys` were written, and wake a call that waits for one of them."""
        with self._news:
            self._replaced.difference_update(keys)
            if self._wanted in keys:
                self._news.notify()

    def stop(self) -> None:
        """End a waiting call with `HaltedError`."""
        with self._news:
            self._has_ended = True
            self._news.notify()

    def _record(self, key: int) -> Record | None:
        if key not in self._ahead:
            with suppress(OSError, DamagedError, AssertionError):  # while the database is repaired and opened again
                self._ahead = {record.key: record for record in self._reading().page(key) if record.is_sound}
        return self._ahead.pop(key, None)
