"""The rows of a round that must be sent, page by page."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from promptmill.answers.check import Check
from promptmill.core.request import NOTHING_SHARED, Shared
from promptmill.jobs.rows.row_questions import RowRequests
from promptmill.jobs.run.shared_beginnings import WINDOW_ROWS, beginnings, in_groups
from promptmill.jobs.store.database import PAGE, JobDatabase, check_rows, limited
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.plan import PlanWork
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import Round, join_of

_NO_QUESTION = bytes(16)
Between: TypeAlias = Callable[[int, int], Iterator["list[OpenRow]"]]
"""Takes `first` and `following`. Yields the rows to send after the rows `first` to `following - 1` were answered."""


@dataclass(frozen=True, slots=True)
class OpenRows:
    """The rows of a round that have not been sent."""

    store: JobDatabase
    round: Round
    targets: Sequence[Target]
    """The targets of the rows, by slot."""
    requests: Sequence[RowRequests]
    """The request makers of the rows, by slot."""
    among: range = range(SLOT)
    """The range of row numbers to send."""
    enough: Callable[[], bool] = bool
    """Returns True when no more rows should be taken."""
    held_bytes: int | None = None
    """The most bytes of large rows in flight; None: no limit. A single row in flight may exceed the limit."""
    between: Between | None = None
    """Yields more rows between the windows of the round."""
    window: int = PlanWork.window
    """The size of a window, in row numbers."""
    only: str = "1"
    """A further SQL condition for the rows, in which `{base}` is the key of the slot's first row."""
    sharing: int = 0
    """The fewest rows that form a group by a shared beginning of prompts; 0 if the endpoint caches no beginnings."""
    least_shared: int = 0
    """The length, in bytes, of the shortest beginning of a prompt that the endpoint caches."""
    sends_once: bool = False
    """Whether rows with the same question share one request, and so do not count as prompts that begin alike."""
    checks: tuple[Check, ...] = ()
    """The checks of the answers, in addition to the checks that a row's parameters request."""

    def pages(self) -> Iterator[list[OpenRow]]:
        """Yield pages of rows, in the order of the input; a row's slots follow each other. A page may be empty."""
        ((last,),) = self.store.read("SELECT coalesce(max(n), -1) FROM row WHERE n < ?", self.among.stop)
        before: tuple[int, int] | None = None  # the previous window, whose rows have been answered
        for first in range(self.among.start, last + 1, self.window):
            following = min(first + self.window, last + 1)
            slots = [self._window(slot, first, following) for slot in self.round.slots]
            merged = heapq.merge(*map(itertools.chain.from_iterable, slots), key=lambda row: row.n)
            yield from slots[0] if len(slots) == 1 else _paged(merged)
            if self.between is not None and before is not None:
                yield from self.between(*before)
            before = first, following

    def in_groups(self) -> Iterator[list[OpenRow]]:
        """Yield the rows of `pages`, regrouped so that rows whose prompts begin alike follow each other."""

        sent: dict[tuple[int, bytes], int] = {}

        def look(row: OpenRow) -> list[Shared]:
            if row.size + constants[row.slot] < self.least_shared:
                return []
            if self.sends_once and row.asked is not None:
                if len(sent) >= WINDOW_ROWS:
                    sent.clear()
                if sent.setdefault((row.slot, row.asked), row.n) != row.n:
                    return []
            requests, model = self.requests[row.slot], self.targets[row.slot].model
            return beginnings(requests, row.n, row.line, row.cells, least=self.least_shared, model=model)

        constants = [requests.constant for requests in self.requests]
        reorders = self.between is None  # False with `between`, which needs the windows in order
        for page in in_groups(self.pages(), look, lambda row: row.size, self.sharing, reorders=reorders):
            yield [row._replace(shared=shared or NOTHING_SHARED) for row, shared in page]

    def vector_bytes(self) -> int:
        """Return the length of the vectors that the round keeps; 0 if it keeps none, or if lengths may differ.

        Slots after the first may keep their vectors in another form.
        """
        (slot, *others), store = self.round.slots, self.store
        first = "SELECT vector IS NULL FROM answer WHERE code IS NULL LIMIT 1"  # this query avoids a scan of texts
        if others or slot or self.requests[0].reader.row_settings or store.read(first) != [(0,)]:
            return 0
        is_open = self.round.condition(self.targets[slot].counted, slot)
        kept = f"SELECT length(vector) FROM {join_of(slot)} WHERE vector IS NOT NULL AND NOT ({is_open}) LIMIT 1"
        return next((length for (length,) in store.read(kept)), 0)

    def _window(self, slot: int, first: int, following: int) -> Iterator[list[OpenRow]]:
        condition = self.round.condition(self.targets[slot].counted, slot)
        query = (
            "SELECT row.n, row.asked, row.line, row.cells, answer.attempts, "
            f"answer.key IS NOT NULL AND answer.code IS NULL FROM {join_of(slot)} "
            f"WHERE row.n >= ? AND row.n < ? AND ({condition}) AND {self.only.replace('{base}', str(slot * SLOT))} "
            "ORDER BY row.n"
        )
        at = 16 * self.targets[slot].prompt
        while first < following:
            open_rows = self.store.read(query, first, following, fetched=functools.partial(limited, texts=slice(2, 4)))
            check_rows(open_rows, first)
            yield [
                OpenRow(
                    n,
                    slot,
                    None if (digest := asked[at : at + 16]) == _NO_QUESTION else digest,
                    line,
                    cells,
                    # a new answer does not include the attempts of the answer that it replaces
                    0 if is_answered else attempts or 0,
                    bool(is_answered),
                )
                for n, asked, line, cells, attempts, is_answered in open_rows
            ]
            first = open_rows[-1][0] + 1 if open_rows else following


def _paged(open_rows: Iterator[OpenRow]) -> Iterator[list[OpenRow]]:
    while page := list(itertools.islice(open_rows, PAGE)):
        yield page


class OpenRow(NamedTuple):
    """A row to send to the target of a slot."""

    n: int
    slot: int
    asked: bytes | None
    """The digest of the row's question; None if the row has no question."""
    line: bytes | None
    cells: bytes
    attempts: int
    """The number of requests that earlier runs sent for the row; 0 if the row has an answer."""
    answered: bool
    """Whether the row has an answer, which the new answer replaces."""

    shared: Shared | None = None
    """The beginning that the row's question shares with other rows; None if the endpoint does not cache beginnings."""

    @property
    def key(self) -> int:
        """The key of the row's answer."""
        return self.n + self.slot * SLOT

    @property
    def size(self) -> int:
        """The highest possible number of bytes of the row's question."""
        return len(self.cells) + len(self.line or b"")
