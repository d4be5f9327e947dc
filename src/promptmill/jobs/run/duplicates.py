"""Rows with the same question at temperature 0: only the first is sent, and the others get its answer.

Two temporary tables hold the state of the rules `… once` and `… duplicate` (see `rounds.RULES`):

    unsent      open rows that are not sent: an equal row is sent, or has an answer
    duplicate   open rows that get the answer of the row `first`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT, copied, record_of
from promptmill.jobs.store.rounds import ANSWERED, OF_ANY, ONCE, Round, join_of
from promptmill.jobs.store.spec import JobSpec

_PAGE = 2048
_DIGEST = 16
_TABLES = {
    "repeated": "asked BLOB PRIMARY KEY",
    "unsent": "key INTEGER PRIMARY KEY",
    "duplicate": "key INTEGER PRIMARY KEY, first INTEGER",
}


class Duplicates:
    """The rows of a job that repeat a question. All methods block and raise the errors of `JobDatabase`."""

    def __init__(self, store: JobDatabase, spec: JobSpec, is_repeatable: Callable[[int, int], bool]) -> None:
        """`is_repeatable(n, slot)`: whether the model gives row `n` the same answer each time."""
        self._store, self._spec = store, spec
        self._is_repeatable = is_repeatable
        self._are_known = False

    def prepare(self, round_: Round) -> None:
        """Fill the temporary tables that the rule of a round uses."""
        if not self._are_known:
            self._find()
            self._are_known = True
        if round_.rows.endswith(ONCE):
            self._fill("unsent", self._unsent, round_)
        elif round_.way == "copy":
            self._fill("duplicate", self._duplicate, round_)

    def copy(self, round_: Round) -> int:
        """Copy the answers to the duplicates; return the number of copies. A damaged answer is deleted instead."""
        store, after, count = self._store, -1, 0
        query = "SELECT key, first FROM temp.duplicate WHERE key > ? ORDER BY key LIMIT ?"
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

    def _fill(self, table: str, query: Callable[[Round, int], str], round_: Round) -> None:
        work = [(f"DELETE FROM temp.{table}", [()])]
        work += [(f"INSERT INTO temp.{table} {query(round_, slot)}", [()]) for slot in round_.slots]
        self._store.change(*work)

    def _open(self, round_: Round, slot: int) -> str:
        """Return the query for the open rows with a repeated question."""
        asked = _asked(self._spec.targets[slot].prompt)
        return (
            f"SELECT row.n + {slot * SLOT} AS key, {asked} AS asked FROM {join_of(slot)} "
            f"WHERE {self._is_open(round_, slot)} AND {asked} IN (SELECT asked FROM temp.repeated)"
        )

    def _is_open(self, round_: Round, slot: int) -> str:
        """Return the condition for the open rows of the round's rule, before duplicates are divided."""
        return replace(round_, rows=round_.ordered).condition(self._spec.targets[slot].counted, slot)

    def _records(self, round_: Round, slot: int, which: str) -> str:
        """Return the query for the first record of each question, among answers and new failures that meet `which`."""
        settings = ", ".join(map(str, self._spec.targets[slot].counted))
        of_slot = f"key BETWEEN {slot * SLOT} AND {slot * SLOT + SLOT - 1} AND settings IN ({settings})"
        is_answer = f"({ANSWERED} AND NOT {self._is_open(round_, slot)})"
        is_new = f"({is_answer} OR (answer.round > {int(round_.since)} AND {which}))"
        first = f"coalesce(min(CASE WHEN {ANSWERED} THEN key END), min(key)) AS first"  # an answer, if there is one
        return f"SELECT asked, {first} FROM answer WHERE {of_slot} AND {is_new} GROUP BY asked"

    def _unsent(self, round_: Round, slot: int) -> str:
        which = (
            f"(NOT retryable OR answer.round = {int(round_.id)})"  # otherwise a resumed round would send one more row
        )
        return (
            f"SELECT key FROM (SELECT key, asked, row_number() OVER (PARTITION BY asked ORDER BY key) AS nth "
            f"FROM ({self._open(round_, slot)})) AS waiting "
            f"LEFT JOIN ({self._records(round_, slot, which)}) USING (asked) WHERE nth > 1 OR first IS NOT NULL"
        )

    def _duplicate(self, round_: Round, slot: int) -> str:
        which = "1" if round_.rows.endswith(OF_ANY) else "NOT retryable"
        return (
            f"SELECT key, first FROM ({self._open(round_, slot)}) AS waiting "
            f"JOIN ({self._records(round_, slot, which)}) USING (asked)"
        )


def _asked(prompt: int) -> str:
    return f"substr(row.asked, {1 + prompt * _DIGEST}, {_DIGEST})"
