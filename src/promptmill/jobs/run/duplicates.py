"""The duplicates of a job: rows with the same question, which get a copy of one outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec, PlanWork
from promptmill.jobs.store.records import SLOT, Record, copied, record_of
from promptmill.jobs.store.rounds import ANSWERED, Round, join_of

_DIGEST = 16
_TABLES = {
    "repeated": "asked BLOB PRIMARY KEY",
    "equal": "key INTEGER PRIMARY KEY, first INTEGER, is_known INTEGER",
}


class Duplicates(PlanWork):
    """Rows with equal questions at temperature 0: only the first is sent; the other rows get a copy of its outcome.

    The temporary table `equal` lists the open rows that share a question. The rules `… once` and `… duplicate` use it
    (see `rounds.RULES`). Its column `first` is the key of the record to copy (if `is_known`), or the key of the row
    that is sent. All methods block and raise the errors of `JobDatabase`.
    """

    def __init__(self, store: JobDatabase, spec: JobSpec, is_repeatable: Callable[[int, int], bool]) -> None:
        """`is_repeatable(n, slot)`: whether the model always gives row `n` the same answer."""
        self._store, self._spec = store, spec
        self._is_repeatable = is_repeatable
        self._are_known = False

    def prepare(self, round_: Round) -> None:
        """Fill the temporary table for the rule of a round."""
        if not self._are_known:
            self._find()
            self._are_known = True
        if round_.is_by_question:
            work = [("DELETE FROM temp.equal", [()])]
            work += [(f"INSERT INTO temp.equal {self._equal(round_, slot)}", [()]) for slot in round_.slots]
            self._store.change(*work)

    def copies(self, round_: Round, slot: int, pages: Iterable[Sequence[int]]) -> Iterator[Sequence[Record]]:
        """Yield the copies for the duplicates. If the answer to copy is damaged, delete it instead."""
        store, made = self._store, self._spec.targets[slot].made(round_.id)
        for page in pages:
            known = ", ".join(str(n + slot * SLOT) for n in page)
            pairs = store.read(f"SELECT key, first FROM temp.equal WHERE key IN ({known}) ORDER BY key")
            originals = {record.key: record for record in store.records_at([first for _, first in pairs])}
            damaged = {first for _, first in pairs} - originals.keys()
            store.change(("DELETE FROM answer WHERE key = ?", [(first,) for first in damaged]))
            failed = {
                record.key: record for record in store.records_at([key for key, _ in pairs]) if record.code is not None
            }
            yield [
                record_of(
                    key, copied(original.outcome(), failed[key].attempts if key in failed else 0), original.asked, made
                )
                for key, first in pairs
                if (original := originals.get(first)) is not None
            ]

    def _find(self) -> None:
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
        """Return the query for the rows of `equal` for a slot."""
        target = self._spec.targets[slot]
        asked, settings = _asked(target.prompt), ", ".join(map(str, target.counted))
        is_open = replace(round_, rows=round_.ordered, way="live").condition(target.counted, slot)
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
