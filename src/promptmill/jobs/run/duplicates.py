"""Rows with the same question at temperature 0: only the first is sent, and the others get its outcome.

The temporary table `equal` has the open rows whose question several rows have. It serves the rules `… once` and
`… duplicate` (see `rounds.RULES`): `first` is the key of the record that a row gets (`is_known`), or else of the row
that is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT, copied, record_of
from promptmill.jobs.store.rounds import ANSWERED, Round, join_of
from promptmill.jobs.store.spec import JobSpec

_PAGE = 2048
_DIGEST = 16
_TABLES = {
    "repeated": "asked BLOB PRIMARY KEY",
    "equal": "key INTEGER PRIMARY KEY, first INTEGER, is_known INTEGER",
}


class Duplicates:
    """The rows of a job that repeat a question. All methods block and raise the errors of `JobDatabase`."""

    def __init__(self, store: JobDatabase, spec: JobSpec, is_repeatable: Callable[[int, int], bool]) -> None:
        """`is_repeatable(n, slot)`: whether the model gives row `n` the same answer each time."""
        self._store, self._spec = store, spec
        self._is_repeatable = is_repeatable
        self._are_known = False

    def prepare(self, round_: Round) -> None:
        """Fill the temporary table that the rule of a round uses."""
        if not self._are_known:
            self._find()
            self._are_known = True
        if round_.is_by_question:
            work = [("DELETE FROM temp.equal", [()])]
            work += [(f"INSERT INTO temp.equal {self._equal(round_, slot)}", [()]) for slot in round_.slots]
            self._store.change(*work)

    def copy(self, round_: Round) -> int:
        """Copy the answers to the duplicates; return the number of copies. A damaged answer is deleted instead."""
        store, after, count = self._store, -1, 0
        query = "SELECT key, first FROM temp.equal WHERE is_known AND key > ? ORDER BY key LIMIT ?"
        while page := store.read(query, after, _PAGE):
            originals = {record.key: record for record in store.records_at([first for _, first in page])}
            damaged = {first for _, first in page} - originals.keys()
            store.change(("DELETE FROM answer WHERE key = ?", [(first,) for first in damaged]))
            known = {record.key: record for record in store.records_at([key for key, _ in page])}
            records = []
            for key, first in page:
                if (original := originals.get(first)) is not None:
                    attempts = known[key].attempts if key in known and known[key].code is not None else 0
                    made = self._spec.targets[key // SLOT].made(round_.id)
                    records.append(record_of(key, copied(original.outcome(), attempts), original.asked, made))
            store.write(records, [key for key, _ in page if key in known])
            after, count = page[-1][0], count + len(records)
        return count

    def _find(self) -> None:
        """Find the questions that several rows have."""
        for name, columns in _TABLES.items():
            self._store.change(
                (f"DROP TABLE IF EXISTS temp.{name}", [()]), (f"CREATE TEMP TABLE {name} ({columns})", [()])
            )
        for slot, target in enumerate(self._spec.targets):
            asked = _asked(target.prompt)
            query = (
                f"SELECT {asked}, min(n) FROM row WHERE {asked} != zeroblob({_DIGEST}) GROUP BY 1 HAVING count(*) > 1"
            )
            same = [(digest,) for digest, n in self._store.read(query) if self._is_repeatable(n, slot)]
            self._store.change(("INSERT OR IGNORE INTO temp.repeated VALUES (?)", same))

    def _equal(self, round_: Round, slot: int) -> str:
        """Return the query for the rows of `equal` in a slot."""
        target = self._spec.targets[slot]
        asked, settings = _asked(target.prompt), ", ".join(map(str, target.counted))
        is_open = replace(round_, rows=round_.ordered).condition(target.counted, slot)
        return f"""
            WITH waiting AS (
                SELECT row.n + {slot * SLOT} AS key, {asked} AS asked FROM {join_of(slot)}
                WHERE {is_open} AND {asked} IN (SELECT asked FROM temp.repeated)
            ), known AS (  -- an answer, or else a new failure
                SELECT asked, coalesce(min(CASE WHEN {ANSWERED} THEN key END), min(key)) AS first FROM answer
                WHERE key BETWEEN {slot * SLOT} AND {slot * SLOT + SLOT - 1} AND settings IN ({settings})
                AND (({ANSWERED} AND NOT {is_open}) OR answer.round > {int(round_.since)}) GROUP BY asked
            )
            SELECT key, coalesce(first, min(key) OVER (PARTITION BY asked)), first IS NOT NULL
            FROM waiting LEFT JOIN known USING (asked)
        """


def _asked(prompt: int) -> str:
    return f"substr(row.asked, {1 + prompt * _DIGEST}, {_DIGEST})"
