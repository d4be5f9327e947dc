"""The rounds of a job whose labels are voted on: all votes, then the decisions.

Slot 0 has the label of each row that the job delivers, and the slots after it have the votes. A new row is decided
while the votes of later rows are sent; the round `voted` decides the rows that are left, and again each row with a
newer vote. The label of a person stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from promptmill.jobs.run.live import OpenRow
from promptmill.jobs.store.database import PAGE
from promptmill.jobs.store.records import SLOT, Record, copied, record_of
from promptmill.jobs.store.rounds import IS_VOTED, Round
from promptmill.jobs.sure.panel import decide

if TYPE_CHECKING:
    from promptmill.jobs.run.admission import Job
    from promptmill.jobs.store.order import Votes

VOTED_AT_ONCE = 512
"""Rows after which some are decided, so that the progress shows them."""
_LATE = 1024  # rows: so far back, slow votes are waited for; the others are decided at the end


class VoteRounds:
    """The decisions of one run. All methods block and raise the errors of `JobDatabase`."""

    def __init__(self, job: Job, votes: Votes, end: int) -> None:
        """`end`: the number of the first row beyond the order's limit."""
        self._job, self._votes, self._end = job, votes, end

    def prepare(self, round_: Round) -> None:
        """Do nothing: no rule of these rounds uses a temporary table."""

    def copy(self, round_: Round, recorded: Callable[[Sequence[int]], object]) -> None:
        """Decide the rows of a round. `recorded` is called with the keys of some decisions."""
        for decisions in self._decided(round_, 0, self._end):
            recorded([decision.key for decision in decisions])

    def settle(
        self, round_: Round, first: int, following: int, *, delivered: Callable[[Sequence[Record]], None]
    ) -> Iterator[list[OpenRow]]:
        """Decide the new rows `first` to `following - 1` whose votes are all there, and rows shortly before them.

        Yields no row to send.
        """
        for decisions in self._decided(round_, max(0, first - _LATE), min(following, self._end), only_new=True):
            delivered(decisions)
        yield from ()

    def _decided(self, round_: Round, first: int, end: int, *, only_new: bool = False) -> Iterator[list[Record]]:
        """Decide the rows `first` to `end - 1` with newer votes, and yield the decisions.

        `only_new`: only rows that have all their votes, and no decision.
        """
        store = self._job.folder.store
        query = f"""
            SELECT row.n FROM row LEFT JOIN answer ON answer.key = row.n
            WHERE row.n >= ? AND row.n < ? AND {IS_VOTED} AND {"answer.key IS NULL" if only_new else "1"}
            ORDER BY row.n LIMIT {PAGE}
        """
        while page := [n for (n,) in store.read(query, first, end)]:
            keys = [n + slot * SLOT for n in page for slot in self._votes.slots]
            found = self._records(round_, store.records_at(keys), only_complete=only_new)
            if found:
                store.write(found, [record.key for record in found])
                yield found
            if not only_new and (damaged := {*page} - {record.row for record in found}):  # sent again
                lost = [(n + slot * SLOT,) for n in damaged for slot in self._votes.slots]
                store.change(("DELETE FROM answer WHERE key = ?", lost))
            first = page[-1] + 1

    def _records(self, round_: Round, votes: Iterable[Record], *, only_complete: bool) -> list[Record]:
        target, found = self._job.spec.targets[0], []
        for n, group in groupby(sorted(votes, key=lambda vote: (vote.row, vote.slot)), key=lambda vote: vote.row):
            known = {vote.slot: vote for vote in group}
            row = [known.get(slot) for slot in self._votes.slots]
            if only_complete and not all(vote is not None and not _is_sent(vote, round_) for vote in row):
                continue
            if (decision := decide(row)) is not None:
                vote = decision.record
                model = self._votes.models[vote.slot - 1] or self._job.spec.model
                made = target.made(round_.id, model if len(set(self._votes.models)) > 1 else "")
                found.append(record_of(n, copied(vote.outcome()), vote.asked, made))
        return found


def _is_sent(vote: Record, round_: Round) -> bool:
    """Return whether a round sends a vote again: a failure that may pass, of an earlier order."""
    return bool(vote.retryable) and vote.round <= round_.since
