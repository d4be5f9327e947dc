"""Binds the rows of an input to the answers that a job has. A row gets the answers to its own questions.

Table `row_next` has the rows that may have changed; the rows before and after them stay. A question is identified by
its digest, which an answer stores as `asked`:

    answers before       0 a   1 b   2 c   3 d
    row_next             0 a   1 x   2 b   3 c   4 d

    stays                0 a
    `loose`                    1 b   2 c   3 d           answers whose row now asks something else, or is gone
    `wanted`                   1 x   2 b   3 c   4 d     rows without an answer to their question
    `matched`                        2 b   3 c   4 d     wanted rows with a loose, a spare or another job's answer

Rows with the same question take its answers in row order. Loose answers become spare, matched rows get their answers,
and the rows of `row_next` replace those in `row`. All this is one transaction: if the process is killed, the job is
unchanged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection

from promptmill.jobs.store.database import COLUMNS, LAST_KEY, PUT, ROW_NEXT, JobDatabase, bound
from promptmill.jobs.store.records import SLOT, Made, Record, copied, record_of

_DIGEST = 16
_PAGE = 2048
BLOCK_ROWS = 1024
"""The rows of a block of an output: some hundred kilobytes."""
_TABLES = {
    "loose": "key INTEGER PRIMARY KEY",
    "wanted": "key INTEGER PRIMARY KEY, asked BLOB",
    "offered": "place INTEGER PRIMARY KEY, asked BLOB",
    "matched": "key INTEGER PRIMARY KEY, place INTEGER, is_offered INTEGER",
}
ALL_ROWS = range(SLOT)
_ASKED = f"nullif(substr({{0}}.asked, :at, {_DIGEST}), zeroblob({_DIGEST}))"
_ASKED_NEXT = _ASKED.format("row_next")
_IS_REPLACED = "row.n BETWEEN :begin AND :end"
_COUNT_BESIDE = """
    SELECT (SELECT count(*) FROM row WHERE n < :begin) + (SELECT count(*) FROM row WHERE n > :end)
"""
_LOOSE = f"""
    INSERT INTO temp.loose
    SELECT answer.key FROM answer LEFT JOIN row_next ON row_next.n = answer.key - :first
    WHERE answer.key BETWEEN :first + :begin AND :first + :end
    AND (row_next.n IS NULL OR ({_ASKED_NEXT} IS NOT answer.asked AND NOT :by_row))
"""
_WANTED = f"""
    INSERT INTO temp.wanted
    SELECT row_next.n + :first, {_ASKED_NEXT} FROM row_next LEFT JOIN answer ON answer.key = row_next.n + :first
    WHERE {_ASKED_NEXT} IS NOT NULL AND (
        answer.key IS NULL OR ({_ASKED_NEXT} IS NOT answer.asked AND NOT :by_row)
        OR (answer.code IS NOT NULL AND :offers)
    )
"""
_WANTED_BESIDE = f"""
    INSERT INTO temp.wanted
    SELECT row.n + :first, {_ASKED.format("row")} FROM row LEFT JOIN answer ON answer.key = row.n + :first
    WHERE NOT {_IS_REPLACED} AND {_ASKED.format("row")} IS NOT NULL
    AND (answer.key IS NULL OR (answer.code IS NOT NULL AND :offers))
"""
# current answers come before spare answers; the latest spare answer comes first
_MATCHED = f"""
    INSERT INTO temp.matched
    SELECT wanting.key, available.place, available.is_offered FROM
        (SELECT key, asked, row_number() OVER (PARTITION BY asked ORDER BY key) AS nth
         FROM temp.wanted WHERE key BETWEEN :first AND :last) AS wanting
    JOIN
        (SELECT place, is_offered, asked, row_number() OVER (PARTITION BY asked ORDER BY is_offered, turn) AS nth FROM
            (SELECT :base + key AS place, 0 AS is_offered, asked, key AS turn FROM answer JOIN temp.loose USING (key)
             WHERE key BETWEEN :first AND :last AND code IS NULL AND settings IN ({{settings}})
             UNION ALL SELECT place, 0, asked, {LAST_KEY} - place FROM spare
             WHERE code IS NULL AND settings IN ({{settings}}) AND asked IN (SELECT asked FROM temp.wanted)
             UNION ALL SELECT place, 1, asked, place FROM temp.offered
             WHERE place BETWEEN :first AND :last)) AS available
    USING (asked, nth)
    ORDER BY wanting.key
"""
_RENAMED = f"""
    UPDATE answer SET asked = (SELECT {_ASKED_NEXT} FROM row_next WHERE row_next.n = answer.key - :first)
    WHERE key BETWEEN :first AND :last
"""


_EDITED = f"""
    INSERT OR IGNORE INTO edited
    SELECT DISTINCT n / {BLOCK_ROWS} FROM row_next LEFT JOIN row USING (n) WHERE row.cells IS NOT row_next.cells
    UNION SELECT DISTINCT n / {BLOCK_ROWS} FROM row LEFT JOIN row_next USING (n)
    WHERE {_IS_REPLACED} AND row_next.n IS NULL
"""


@dataclass(frozen=True, slots=True)
class Slot:
    """The answers of a job to one prompt, made with the settings that have these ids."""

    number: int
    prompt: int
    settings: Sequence[int]


@dataclass(frozen=True, slots=True)
class Bound:
    """The counts of a binding, over all slots."""

    rows: int
    """Questions of the input."""
    answers: int
    """Answers that the rows had before the binding."""
    kept: int
    """Questions that have an answer after the binding."""

    @property
    def new(self) -> int:
        """Questions that have no answer after the binding."""
        return self.rows - self.kept


def bind(
    store: JobDatabase,
    slots: Sequence[Slot],
    check: Callable[[Bound], None],
    *,
    replaced: range = ALL_ROWS,
    by_row: bool = False,
    other: JobDatabase | None = None,
    made: Made,
    halt: threading.Event | None = None,
) -> Bound:
    """Bind the answers to `row_next`, which then takes the place of the rows with the numbers `replaced`. Blocks.

    `check` may raise; then nothing changes. `by_row`: the input is unchanged but its questions are new, and each answer
    stays with its row. Rows without an answer take answers of the job `other`, with the note `made`.

    Raises `HaltedError`, and the errors of `JobDatabase`.
    """
    with store.transaction(halt) as connection:
        run = connection.execute
        for name, columns in _TABLES.items():
            run(f"DROP TABLE IF EXISTS temp.{name}")
            run(f"CREATE TEMP TABLE {name} ({columns})")
        ((base,),) = run("SELECT coalesce(max(place), 0) + 1 FROM spare")
        if other is not None:
            _offer(connection, other)
        window = {"begin": replaced.start, "end": replaced.stop - 1}
        for slot in slots:
            first, at = slot.number * SLOT, 1 + slot.prompt * _DIGEST
            values = {"first": first, "last": first + SLOT - 1, "at": at, "base": base}
            values |= {"by_row": by_row, "offers": other is not None} | window
            run(_LOOSE, values)
            run(_WANTED, values)
            if replaced != ALL_ROWS:
                run(_WANTED_BESIDE, values)
            run(_MATCHED.format(settings=", ".join(str(int(each)) for each in slot.settings)), values)
            if by_row:
                run(_RENAMED, values)
        ((beside,),) = run(_COUNT_BESIDE, window)
        ((rows,),) = run("SELECT ? + count(*) FROM row_next", (beside,))
        counts = _counts(connection, rows * len(slots))
        check(counts)
        run(
            f"INSERT INTO spare (place, {COLUMNS}) SELECT ? + key, {COLUMNS} FROM answer "
            "WHERE key IN (SELECT key FROM temp.loose)",
            (base,),
        )
        run("DELETE FROM answer WHERE key IN (SELECT key FROM temp.loose)")
        _place(connection, other, made)
        if run("SELECT 1 FROM job WHERE name = 'written'").fetchone():
            run(_EDITED, window)
        if beside:
            run(f"DELETE FROM row WHERE {_IS_REPLACED}", window)
            run("INSERT INTO row SELECT * FROM row_next")
            run("DROP TABLE row_next")
        else:
            run("DROP TABLE row")
            run("ALTER TABLE row_next RENAME TO row")
        counted = "json_set(value, '$.rows', ?)"
        run(f"INSERT OR REPLACE INTO job SELECT 'stretches', {counted} FROM job WHERE name = 'stretches_next'", (rows,))
        run("DELETE FROM job WHERE name = 'stretches_next'")
    return counts


def begin(store: JobDatabase) -> None:
    """Create an empty `row_next`. Raises the errors of `JobDatabase`."""
    store.change(("DROP TABLE IF EXISTS row_next", [()]), (ROW_NEXT, [()]))


def _offer(connection: Connection, other: JobDatabase) -> None:
    """Store the keys and questions of another job's answers in `temp.offered`."""
    place = 0
    query = "SELECT key, asked FROM answer WHERE key >= ? AND code IS NULL AND asked IS NOT NULL ORDER BY key LIMIT ?"
    while page := other.read(query, place, _PAGE):
        connection.executemany("INSERT INTO temp.offered VALUES (?, ?)", page)
        place = page[-1][0] + 1


def _counts(connection: Connection, rows: int) -> Bound:
    ((answers,),) = connection.execute("SELECT count(*) FROM answer WHERE code IS NULL")
    ((loose,),) = connection.execute("SELECT count(*) FROM answer JOIN temp.loose USING (key) WHERE code IS NULL")
    ((matched,),) = connection.execute("SELECT count(*) FROM temp.matched")
    return Bound(rows, answers, answers - loose + matched)


def _place(connection: Connection, other: JobDatabase | None, made: Made) -> None:
    """Give the matched rows their answers; answers of another job cost nothing here."""
    columns = ", ".join(f"spare.{name}" for name in Record._fields[1:])
    connection.execute(
        f"INSERT OR REPLACE INTO answer SELECT matched.key, {columns} FROM temp.matched "
        "JOIN spare ON spare.place = matched.place WHERE NOT is_offered"
    )
    connection.execute("DELETE FROM spare WHERE place IN (SELECT place FROM temp.matched WHERE NOT is_offered)")
    if other is None:
        return
    offered = connection.execute(
        "SELECT matched.key, place, asked FROM temp.matched JOIN temp.wanted USING (key) WHERE is_offered"
    )
    for key, place, asked in offered.fetchall():
        if (record := other.record(place)) is not None:
            connection.execute(PUT, bound(record_of(key, copied(record.outcome()), asked, made)))
