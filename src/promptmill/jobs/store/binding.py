"""Binds the rows of an input to the existing answers of a job, so that each row gets the answers to its questions.

Table `row_next` has the rows that may have changed; the rows before and after it are unchanged. A question is
identified by its digest, which is stored as `asked` in the record of an answer:

    answers before       0 a   1 b   2 c   3 d
    rows now             0 a   1 x   2 b   3 c   4 d

    stays                0 a
    `loose`                    1 b   2 c   3 d           answers whose row was removed or now has another question
    `wanted`                   1 x   2 b   3 c   4 d     rows without an answer to their question
    `matched`                        2 b   3 c   4 d     wanted rows with a loose, a spare or another job's answer

Rows with the same question get its answers in the order of the rows. Loose answers that match no row become spare. A
row without an answer may reuse a part of an answer to a former question, see `Former`. All this happens in one
transaction: if the process is killed, the job is unchanged.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from sqlite3 import Connection
from typing import NamedTuple

from promptmill.backends.protocol import Completion, Outcome, Totals, copied
from promptmill.jobs.store.changed_form import ChangedForm
from promptmill.jobs.store.database import COLUMNS, LAST_KEY, PUT, PUT_SPARE, ROW_NEXT, JobDatabase, Row, bound
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import PERSON, SLOT, Provenance, Record, record_of

_DIGEST = 16
_ANSWERS = "code IS NULL AND asked IS NOT NULL"
BLOCK_ROWS = 1024
"""The number of rows in a block of an output; a block has some hundred kilobytes."""
_OUTCOME = ", ".join(Record._fields[1:])
_TABLES = {
    "loose": "key INTEGER PRIMARY KEY",
    "wanted": "key INTEGER PRIMARY KEY, asked BLOB",
    "matched": "key INTEGER PRIMARY KEY, place INTEGER",
    "moved": f"key INTEGER PRIMARY KEY, {_OUTCOME}",
    "former": "asked BLOB, key INTEGER, PRIMARY KEY (asked, key)",
}
ALL_ROWS = range(SLOT)
_ASKED = f"nullif(substr(row.asked, :at, {_DIGEST}), zeroblob({_DIGEST}))"
_IS_REPLACED = "row.n BETWEEN :begin AND :end"
_EDITED = f"""
    INSERT OR IGNORE INTO edited
    SELECT n / {BLOCK_ROWS} FROM row_next LEFT JOIN row USING (n) WHERE row.cells IS NOT row_next.cells
    UNION SELECT n / {BLOCK_ROWS} FROM row LEFT JOIN row_next USING (n)
    WHERE {_IS_REPLACED} AND row_next.n IS NULL
"""
_RENAMED = f"""
    UPDATE answer SET asked = (SELECT {_ASKED} FROM row WHERE row.n = answer.key - :first)
    WHERE key BETWEEN :first AND :last AND key - :first IN (SELECT n FROM row)
"""
_LOOSE = f"""
    INSERT INTO temp.loose
    SELECT answer.key FROM answer LEFT JOIN row ON row.n = answer.key - :first
    WHERE answer.key BETWEEN :first + :begin AND :first + :end AND (row.n IS NULL OR {_ASKED} IS NOT answer.asked)
"""
_WANTED = f"""
    INSERT INTO temp.wanted
    SELECT row.n + :first, {_ASKED} FROM row LEFT JOIN answer ON answer.key = row.n + :first
    WHERE {_ASKED} IS NOT NULL AND (
        answer.key IS NULL OR ({_IS_REPLACED} AND {_ASKED} IS NOT answer.asked)
        OR (answer.code IS NOT NULL AND :borrows)
    )
"""
# The answers without a row come first, then the spare answers, the latest of them first.
_AVAILABLE = f"""
    SELECT :base + key AS place, asked, key AS turn FROM answer JOIN temp.loose USING (key)
    WHERE key BETWEEN :first AND :last AND code IS NULL AND settings IN ({{settings}})
    UNION ALL SELECT place, asked, {LAST_KEY} - place FROM spare
    WHERE code IS NULL AND settings IN ({{settings}}) AND asked IN (SELECT asked FROM temp.wanted)
"""
_MATCHED = f"""
    INSERT INTO temp.matched
    SELECT wanting.key, available.place FROM
        (SELECT key, asked, row_number() OVER (PARTITION BY asked ORDER BY key) AS nth
         FROM temp.wanted WHERE key BETWEEN :first AND :last) AS wanting
    JOIN
        (SELECT place, asked, row_number() OVER (PARTITION BY asked ORDER BY turn) AS nth
         FROM ({_AVAILABLE})) AS available
    USING (asked, nth)
"""
_MOVED = f"INSERT INTO temp.moved SELECT matched.key, {_OUTCOME} FROM temp.matched JOIN"
_UNMATCHED = """
    SELECT row.n, wanted.asked, row.line, row.cells FROM temp.wanted JOIN row ON row.n = wanted.key
    WHERE wanted.key NOT IN (SELECT key FROM temp.matched UNION ALL SELECT key FROM temp.moved)
    AND (wanted.key NOT IN (SELECT key FROM answer) OR wanted.key IN (SELECT key FROM temp.loose))
"""
_FORMER = """
    SELECT key, wanted.asked FROM temp.former JOIN temp.wanted USING (key) WHERE former.asked = ? ORDER BY key LIMIT 1
"""
_OWN = f"""
    SELECT NULL, {COLUMNS} FROM answer WHERE key IN (SELECT key FROM temp.loose) AND settings IN ({{settings}})
    UNION ALL SELECT place, {COLUMNS} FROM spare WHERE settings IN ({{settings}})
"""
_PUT_MOVED = PUT.replace("INTO answer", "INTO temp.moved")
_REPLACE_SPARE = PUT_SPARE.replace("INSERT", "INSERT OR REPLACE")
_MOVE = f"""
    {_MOVED} answer ON answer.key = place - :base;
    {_MOVED} spare USING (place);
    DELETE FROM spare WHERE place < 0 OR place IN (SELECT place FROM temp.matched WHERE place < :base);
    INSERT INTO spare (place, {COLUMNS}) SELECT :base + key, {COLUMNS} FROM answer
        WHERE key IN (SELECT key FROM temp.loose) AND :base + key NOT IN (SELECT place FROM temp.matched);
    DELETE FROM answer WHERE key IN (SELECT key FROM temp.loose);
    INSERT OR REPLACE INTO answer SELECT * FROM temp.moved;
"""


@dataclass(frozen=True, slots=True)
class Bound:
    """The counts of a binding, over all slots."""

    rows: int
    """The number of questions of the input."""
    answers: int
    """The number of answers that the rows had before the binding."""
    kept: int
    """The number of questions that have an answer after the binding."""
    taken: tuple[int, ...] = ()
    """For each other job, the number of its answers that rows reuse."""
    partly: int = 0
    """The number of questions that have a part of an answer after the binding."""

    @property
    def new(self) -> int:
        """The number of questions that have no answer after the binding."""
        return self.rows - self.kept - self.partly


class Former(NamedTuple):
    """A question that this job formerly asked, or that another job asks. Rows may reuse parts of its answers."""

    asked: Callable[[Row], bytes | None]
    """Returns the digest of this question about a row; None if the row has no such question."""
    outcome: Callable[[Record], Outcome | None]
    """See `plan.Taking.outcome`."""


def bind(
    store: JobDatabase,
    spec: JobSpec,
    *,
    replaced: range = ALL_ROWS,
    check: Callable[[Bound], None] = lambda _: None,
    others: Sequence[JobDatabase] = (),
    former: Callable[[JobSpec], Sequence[Former | None]] = lambda _: (),
    since: int = 0,
    halt: threading.Event | None = None,
) -> Bound:
    """Bind the answers to the rows of `row_next`, which replace the rows with the numbers `replaced`. Blocks.

    If `check` raises, nothing changes. Rows without an answer get copies of answers of the jobs `others`; the copies'
    records name the round `since`. `former` takes the job's description, and returns the former questions: one for each
    of `others`, and then one of the job itself. If `spec.to_bind` is `rows`, the input is unchanged but the prompt is
    new, so each answer stays with its row. Raises `HaltedError`, and the errors of `JobDatabase`.
    """
    with store.transaction(halt) as connection:
        run = connection.execute
        for name, columns in _TABLES.items():
            run(f"DROP TABLE IF EXISTS temp.{name}")
            run(f"CREATE TEMP TABLE {name} ({columns})")
        ((base,),) = run("SELECT coalesce(max(place), 0) + 1 FROM spare")
        window = {"begin": replaced.start, "end": replaced.stop - 1}
        _take_rows(connection, window)
        slots = []
        for slot, target in enumerate(spec.targets):
            first = slot * SLOT
            places = {"first": first, "last": first + SLOT - 1, "at": 1 + target.prompt * _DIGEST, "base": base}
            values = places | window | {"borrows": bool(others)}
            if spec.to_bind == "rows":
                run(_RENAMED, values)
            run(_LOOSE, values)
            run(_WANTED, values)
            known = [*target.counted, *([] if slot else [PERSON])]  # in slot 0, a person's label counts too
            slots.append((_MATCHED.format(settings=", ".join(map(str, known))), values))
        places_of_copies = itertools.count(-1, -1)
        if others:
            run("CREATE INDEX temp.by_question ON wanted (asked)")
        borrowed = [_borrow(connection, other, spec, since, places_of_copies) for other in others]
        for statement, values in slots:
            run(statement, values)
        sources = [*(_of_other(other) for other in others), _own(connection, spec)]
        made = spec.targets[0].made(since)
        parts = [_take_parts(connection, *each, made) for each in itertools.zip_longest(former(spec), sources)]
        ((rows,),) = run("SELECT count(*) FROM row")
        counts = _counts(connection, rows * len(slots), borrowed, parts)
        check(counts)
        for statement in _MOVE.split(";"):
            run(statement, {"base": base})
        counted = "json_set(value, '$.rows', ?)"
        run(f"INSERT OR REPLACE INTO job SELECT 'stretches', {counted} FROM job WHERE name = 'stretches_next'", (rows,))
        run("DELETE FROM job WHERE name = 'stretches_next'")
    return counts


def begin(store: JobDatabase) -> None:
    """Create an empty `row_next`. Raises the errors of `JobDatabase`."""
    store.change(("DROP TABLE IF EXISTS row_next", [()]), (ROW_NEXT, [()]))


def _take_rows(connection: Connection, window: dict[str, int]) -> None:
    """Replace the rows in the window by the rows of `row_next`, and record which output blocks have changed."""
    run = connection.execute
    if run("SELECT 1 FROM job WHERE name = 'written'").fetchone():
        run(_EDITED, window)
    if run(f"SELECT 1 FROM row WHERE NOT ({_IS_REPLACED}) LIMIT 1", window).fetchone():
        run(f"DELETE FROM row WHERE {_IS_REPLACED}", window)
        run("INSERT INTO row SELECT * FROM row_next")
        run("DROP TABLE row_next")
    else:
        run("DROP TABLE row")
        run("ALTER TABLE row_next RENAME TO row")


def _borrow(
    connection: Connection, other: JobDatabase, spec: JobSpec, since: int, places: Iterator[int]
) -> tuple[int, int]:
    """Copy another job's answers to wanted questions into table `spare`. All other answers are used before the copies.
    A copy costs nothing, and takes the next of `places`, which descend. Return the place before the first copy, and the
    place after the last copy."""
    form = ChangedForm(JobSpec.model_validate(other.get("spec")).output, spec.output)
    first = next(places)
    for record in other.records(where=_ANSWERS):
        is_wanted = "SELECT 1 FROM temp.wanted WHERE asked = ?"
        if (
            record.is_sound
            and record.slot < len(spec.targets)
            and connection.execute(is_wanted, (record.asked,)).fetchone()
            and _may_answer(record, spec, form)
        ):
            made = Provenance(PERSON, since) if record.settings == PERSON else spec.targets[record.slot].made(since)
            own = record_of(record.key, copied(record.outcome()), record.asked, made)
            connection.execute(PUT_SPARE, (next(places), *bound(own)))
    return first, next(places)


def _may_answer(record: Record, spec: JobSpec, form: ChangedForm) -> bool:
    """Return whether an answer of another job has this job's form. In a grid, labels of persons are not accepted."""
    return not spec.is_grid if record.settings == PERSON else form.has(record.text)


class _Source(NamedTuple):
    """A record of which a row may reuse a part, and a function that takes the cost from the record for that row."""

    record: Record
    release: Callable[[], object] | None
    """Stores the record again without its cost, because the cost moves to the row; None for a record of another job."""


def _of_other(other: JobDatabase) -> Iterator[_Source]:
    return (_Source(record, None) for record in other.records(where="asked IS NOT NULL"))


def _own(connection: Connection, spec: JobSpec) -> Iterator[_Source]:
    """Yield the records of the job that belong to no row and were made with settings that `spec` accepts."""
    settings = ", ".join(map(str, [*spec.targets[0].counted, PERSON]))
    for place, *columns in connection.execute(_OWN.format(settings=settings)):
        record = Record._make(columns)
        yield _Source(record, functools.partial(_release, connection, place, record))


def _release(connection: Connection, place: int | None, record: Record) -> None:
    """Store a record without its cost. `place`: the record's place in `spare`; None if it is in `answer`."""
    made = Provenance(record.settings, record.round, tuple(record.extras.get("changed", ())))
    values = bound(record_of(record.key, copied(record.outcome()), record.asked, made))
    connection.execute(*((PUT, values) if place is None else (_REPLACE_SPARE, (place, *values))))


def _with_paid(outcome: Outcome, paid: Outcome) -> Outcome:
    """Return a copy of `outcome` that has the requests and the cost of `paid`."""
    spent = Totals.of([paid]).on(replace(outcome, attempts=paid.attempts, latency_s=paid.latency_s))
    return replace(spent, made_of=paid.wanted) if isinstance(spent, Completion) else replace(spent, wanted=paid.wanted)


def _take_parts(
    connection: Connection, former: Former | None, sources: Iterable[_Source], made: Provenance
) -> tuple[int, int]:
    """For rows without an answer, reuse parts of the records that answer the `former` question. Return the number of
    rows that got a whole answer, and the number of rows that got a part."""
    whole = partly = 0
    if former is None:
        return whole, partly
    run = connection.execute
    run("DELETE FROM temp.former")
    for row in map(Row._make, run(_UNMATCHED)):
        if (asked := former.asked(row)) is not None:
            run("INSERT INTO temp.former VALUES (?, ?)", (asked, row.n))
    for record, release in sources:
        found = run(_FORMER, (record.asked,)).fetchone()
        if found is None or not record.is_sound or (outcome := former.outcome(record)) is None:
            continue
        key, asked = found
        if release is not None:
            release()
        taken = copied(outcome) if release is None else _with_paid(outcome, record.outcome())
        run(_PUT_MOVED, bound(record_of(key, taken, asked, made)))
        run("DELETE FROM temp.former WHERE asked = ? AND key = ?", (record.asked, key))
        is_whole = isinstance(outcome, Completion)
        whole, partly = whole + is_whole, partly + (not is_whole)
    return whole, partly


def _counts(
    connection: Connection,
    rows: int,
    borrowed: Iterable[tuple[int, int]],
    parts: Sequence[tuple[int, int]],
) -> Bound:
    """Count the matches. `borrowed`: for each other job, the result of `_borrow`. `parts`: results of `_take_parts`."""
    ((answers,),) = connection.execute("SELECT count(*) FROM answer WHERE code IS NULL")
    ((loose,),) = connection.execute("SELECT count(*) FROM answer JOIN temp.loose USING (key) WHERE code IS NULL")
    ((matched,),) = connection.execute("SELECT count(*) FROM temp.matched")
    of_place = "SELECT count(*) FROM temp.matched WHERE place < ? AND place > ?"
    lent = [connection.execute(of_place, places).fetchone()[0] for places in borrowed]
    taken = [one + sum(more) for one, more in zip(lent, parts, strict=False)]
    whole, partly = (sum(one[at] for one in parts) for at in (0, 1))
    return Bound(rows, answers, answers - loose + matched + whole, tuple(taken), partly)
