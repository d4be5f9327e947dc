"""Binds the rows of a job's input to answers: a row, as it is now, has the answer to its own question.

A question is known by its digest (see `rows.digest`), which an answer keeps as `asked`. The input is compared once,
block by block, with the answers of the same row numbers. Where they agree, nothing happens:

    answers before       0 a   1 b   2 c   3 d
    input now            0 a   1 x   2 b   3 c   4 d

    stays in its place   0 a
    `loose`                    1 b   2 c   3 d           answers whose row asks something else now, or is gone
    `wanted`                   1 x   2 b   3 c   4 d     rows without an answer to their question
    `found`                          2 b   3 c   4 d     wanted rows that a loose, a spare or another job's answer suits

Rows with the same question take its answers in their order. These three are temporary tables, which hold the
differences alone. Nothing of the job changes until `apply`, which works in pages: it makes the loose answers spare, and
then gives each row of `found` its answer. A killed process leaves answers that are spare, where the next binding finds
them; `JobSpec.to_bind` is there until all is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from promptmill.jobs.store.answers import ANSWERED, COLUMNS, PUT, JobStore
from promptmill.jobs.store.records import Made, Record, copied, record_of

_PAGE = 2048
_OF_SPARE = ", ".join(f"spare.{name}" for name in Record._fields)
_TABLES = {
    "loose": "row INTEGER PRIMARY KEY",
    "wanted": "row INTEGER PRIMARY KEY, asked BLOB",
    "renamed": "row INTEGER PRIMARY KEY, asked BLOB",
    "offered": "place INTEGER PRIMARY KEY, asked BLOB",
    "found": "row INTEGER PRIMARY KEY, place INTEGER, is_offered INTEGER",
}
_TWINS = {
    "asking": "row INTEGER PRIMARY KEY, asked BLOB",
    "twin": "row INTEGER PRIMARY KEY, first INTEGER",
    "turn": "row INTEGER PRIMARY KEY, first INTEGER UNIQUE",
}
_MATCH = """
INSERT INTO temp.found
SELECT wanting.row, had.place, had.is_offered FROM
  (SELECT row, asked, row_number() OVER (PARTITION BY asked ORDER BY row) AS nth
   FROM temp.wanted WHERE asked IS NOT NULL) AS wanting
JOIN
  (SELECT place, is_offered, asked, row_number() OVER (PARTITION BY asked ORDER BY is_offered, place) AS nth FROM
    (SELECT :base + row AS place, 0 AS is_offered, asked FROM answer JOIN temp.loose USING (row)
      WHERE code IS NULL AND settings IN ({settings})
     UNION ALL SELECT place, 0, asked FROM spare
      WHERE code IS NULL AND settings IN ({settings}) AND asked IN (SELECT asked FROM temp.wanted)
     UNION ALL SELECT place, 1, asked FROM temp.offered)) AS had
USING (asked, nth)
"""


def _make(store: JobStore, tables: Mapping[str, str]) -> None:
    for name, columns in tables.items():
        store.change((f"DROP TABLE IF EXISTS temp.{name}", [()]), (f"CREATE TEMP TABLE {name} ({columns})", [()]))


@dataclass(frozen=True, slots=True)
class Bound:
    """The counts of a binding."""

    rows: int
    """Rows of the input."""
    answers: int
    """Answers that the job's rows had before."""
    kept: int
    """Rows that have an answer now."""


class Binding:
    """Binds the answers of the job that is open in `store`. All of it blocks; whatever reads raises as `JobStore`."""

    def __init__(self, store: JobStore, settings: Collection[int], *, by_row: bool = False) -> None:
        """`settings` are the ids of those whose answers count.

        `by_row`: the input is the same and the questions of its rows are not; an answer stays with its row.
        """
        self._store = store
        self._settings = ", ".join(str(int(each)) for each in settings)
        self._by_row = by_row
        self._rows = self._stay = self._last = 0
        self._other: JobStore | None = None
        _make(store, _TABLES)
        ((self._base,),) = store.read("SELECT coalesce(max(place), 0) + 1 FROM spare")

    def note(self, rows: Sequence[tuple[int, bytes | None]]) -> None:
        """Compare the next rows of the input, each with the digest of its question, with the answers there are."""
        if not rows:
            return
        first, self._last = self._last, rows[-1][0] + 1
        query = f"SELECT row, asked, {ANSWERED} FROM answer WHERE row >= ? AND row < ?"
        known = {row: (asked, answered) for row, asked, answered in self._store.read(query, first, self._last)}
        wanted, renamed = [], []
        for row, asked in rows:
            before, answered = known.get(row, (None, 0))
            if row not in known:
                wanted.append((row, asked))
            elif before == asked and not answered and self._other is not None:  # perhaps the other job answered it
                del known[row]
                wanted.append((row, asked))
            elif before == asked or self._by_row:
                del known[row]
                self._stay += answered
                if before != asked:
                    renamed.append((row, asked))
            else:
                wanted.append((row, asked))
        self._rows += len(rows)
        self._store.change(
            ("INSERT INTO temp.wanted VALUES (?, ?)", wanted),
            ("INSERT INTO temp.renamed VALUES (?, ?)", renamed),
            ("INSERT INTO temp.loose VALUES (?)", [(row,) for row in known]),
        )

    def offer(self, other: JobStore) -> None:
        """Let answers of another job count for rows that have none. This comes before `note`."""
        self._other = other
        place, where = 0, f"{ANSWERED} AND asked IS NOT NULL"
        while page := other.read(f"SELECT row, asked FROM answer WHERE row >= ? AND {where} LIMIT {_PAGE}", place):
            self._store.change(("INSERT INTO temp.offered VALUES (?, ?)", page))
            place = page[-1][0] + 1

    def match(self) -> Bound:
        """Find answers for the rows that want one, once all rows are noted."""
        behind = "INSERT INTO temp.loose SELECT row FROM answer WHERE row >= ?"
        matching = _MATCH.format(settings=self._settings).replace(":base", str(self._base))
        self._store.change((behind, [(self._last,)]), (matching, [()]))
        ((loose,),) = self._store.read(f"SELECT count(*) FROM answer JOIN temp.loose USING (row) WHERE {ANSWERED}")
        ((found,),) = self._store.read("SELECT count(*) FROM temp.found")
        return Bound(self._rows, self._stay + loose, self._stay + found)

    def apply(self, is_halted: Callable[[], bool], made: Made) -> None:
        """Make loose answers spare, and give rows the answers that were found; another job's get the note `made`.

        Does nothing more once `is_halted`.
        """
        for work in (self._rename, self._loosen, self._place):
            first = 0
            while not is_halted() and (last := work(first, made)) is not None:
                first = last + 1

    def _rename(self, first: int, _: Made) -> int | None:
        """Note in a page of answers what their rows ask now; return the last row of the page."""
        query = f"SELECT renamed.asked, answer.* FROM temp.renamed JOIN answer USING (row) WHERE row >= ? ORDER BY row LIMIT {_PAGE}"  # noqa: E501
        page = [(asked, Record._make(columns)) for asked, *columns in self._store.read(query, first)]
        self._store.change((PUT, [record.of(record.row, asked) for asked, record in page if record.is_sound]))
        return page[-1][1].row if page else None

    def _loosen(self, first: int, _: Made) -> int | None:
        """Make a page of loose answers spare; return the last row of the page."""
        page = self._store.read(f"SELECT row FROM temp.loose WHERE row >= ? ORDER BY row LIMIT {_PAGE}", first)
        if not page:
            return None
        within, values = "row IN (SELECT row FROM temp.loose WHERE row BETWEEN ? AND ?)", [(page[0][0], page[-1][0])]
        self._store.change(
            (
                f"INSERT INTO spare (place, {COLUMNS}) SELECT {self._base} + row, {COLUMNS} FROM answer WHERE {within}",
                values,
            ),
            (f"DELETE FROM answer WHERE {within}", values),
        )
        return int(page[-1][0])

    def _place(self, first: int, made: Made) -> int | None:
        """Give a page of rows the answers that were found for them; return the last row of the page."""
        query = (
            f"SELECT found.row, wanted.asked, found.place, is_offered, {_OF_SPARE} FROM temp.found "
            "JOIN temp.wanted ON wanted.row = found.row "
            "LEFT JOIN spare ON spare.place = found.place AND NOT is_offered "
            f"WHERE found.row >= ? ORDER BY found.row LIMIT {_PAGE}"
        )
        page = self._store.read(query, first)
        records, places = [], []
        for row, asked, place, is_offered, *columns in page:
            if is_offered:
                assert self._other is not None
                if (offered := self._other.record(place)) is not None:
                    records.append(record_of(row, copied(offered.outcome()), asked, made))
            elif (record := Record._make(columns)).is_sound:
                records.append(record.of(row, asked))
                places.append((place,))
        self._store.change((PUT, records), ("DELETE FROM spare WHERE place = ?", places))
        return int(page[-1][0]) if page else None


class Twins:
    """Rows that repeat another row's question at temperature 0: only one of them is sent, the others get its answer."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._is_second = False
        _make(store, _TWINS)

    def note(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Note rows whose answer is the same each time, with the digests of their requests."""
        self._store.change(("INSERT INTO temp.asking VALUES (?, ?)", rows))

    def find(self) -> None:
        """Find the twins, once all rows are noted. An answered row comes first, else the one that stands first."""
        order = f"coalesce((SELECT NOT ({ANSWERED}) FROM answer WHERE answer.row = asking.row), 1), row"
        pairs = f"SELECT row, first_value(row) OVER (PARTITION BY asked ORDER BY {order}) AS first FROM temp.asking"
        self._store.change((f"INSERT INTO temp.twin SELECT row, first FROM ({pairs}) WHERE row != first", [()]))

    def left_out(self, rows: Sequence[int]) -> set[int]:
        """Return which of `rows`, one after the other, are not to be sent."""
        between = (rows[0], rows[-1])
        table = "turn" if self._is_second else "twin"
        found = {
            row for (row,) in self._store.read(f"SELECT row FROM temp.{table} WHERE row BETWEEN ? AND ?", *between)
        }
        return {*rows} - found if self._is_second else found

    def page(self, after: int, again: str) -> list[tuple[int, int, int, bool]]:
        """Return a page of twins behind a row that are not settled.

        With each come the row whose answer it gets, and the attempts that failed and whether it is answered, as a
        record that meets `again` says.
        """
        query = (
            f"SELECT row, first, CASE WHEN code IS NULL THEN 0 ELSE attempts END, checksum IS NOT NULL AND {ANSWERED} "
            f"FROM temp.twin LEFT JOIN answer USING (row) WHERE row > ? AND (checksum IS NULL OR {again}) "
            f"ORDER BY row LIMIT {_PAGE}"
        )
        return [
            (row, first, attempts or 0, bool(answered))
            for row, first, attempts, answered in self._store.read(query, after)
        ]

    def send_again(self) -> bool:
        """Send one twin of each row that failed with a retryable error, and no other row; return whether one exists."""
        failed = "first IN (SELECT row FROM answer WHERE retryable)"
        turn = "SELECT row FROM temp.turn WHERE turn.first = twin.first"
        self._store.change(
            (f"INSERT INTO temp.turn SELECT min(row), first FROM temp.twin WHERE {failed} GROUP BY first", [()]),
            ("DELETE FROM temp.twin WHERE row IN (SELECT row FROM temp.turn)", [()]),
            (f"UPDATE temp.twin SET first = ({turn}) WHERE first IN (SELECT first FROM temp.turn)", [()]),
        )
        self._is_second = True
        return bool(self._store.read("SELECT 1 FROM temp.turn LIMIT 1"))
