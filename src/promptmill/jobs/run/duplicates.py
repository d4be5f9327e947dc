"""The duplicates of a job, with `dedupe`: rows with the same question at temperature 0 share one request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from promptmill.backends.protocol import Call, Failure, Outcome
from promptmill.core.bounds import MOST_HELD
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request
from promptmill.jobs.store import rounds
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import ANSWERED, LIVE, Round, join_of
from promptmill.steps.flights import Flight, OneFlight, is_repeatable
from promptmill.steps.step import Place

T = TypeVar("T")
_DIGEST = 16
_TABLE = "slot INTEGER, asked BLOB, first INTEGER, waits INTEGER, PRIMARY KEY (slot, asked)"
_WAITS = Failure(PromptmillError(Code.BATCHED, "The row waits for a row with the same question."))
_MOST_HELD = MOST_HELD // 2  # rows; if more rows waited (as in a sorted input), no other questions could be sent
_Question: TypeAlias = tuple[int, bytes]
"""The slot and the digest of a question."""


class Duplicates(OneFlight[_Question]):
    """Sends each question of a job once. The other rows with this question get a copy of the outcome.

    If the outcome is not known yet, because the question is in a batch or because many rows wait for it, these rows get
    copies of the failure `batched`, which are not recorded: the rows stay open until the next pass of the round.

    The temporary table `repeated` has each question that several rows of a slot share. `first` is the key of the row
    whose outcome counts. `waits`: whether the answer to that row comes by another way, such as a batch.
    """

    place = Place.EQUAL

    def __init__(self, store: JobDatabase, *, decides: bool = False) -> None:
        """`decides`: whether the model gets the row's columns, which may differ in rows with the same text."""
        super().__init__()
        self._decides = decides
        self._store = store
        self._has_table = False
        self._since = 0
        self._looking = threading.Lock()
        self._unwritten: dict[int, Outcome] = {}
        """The outcomes of sent rows that are not yet in the database, by key."""
        self._learned: list[tuple[int, bool, int, bytes]] = []
        """The changes that must be made to table `repeated` before it is read again."""

    def prepare(self, round_: Round, targets: Sequence[Target]) -> None:
        """Find a round's repeated questions and their known outcomes. Blocks. Raises the errors of `JobDatabase`."""
        store, self._since = self._store, round_.since
        self._learned.clear()
        self._unwritten.clear()
        if not self._has_table:
            store.change(
                ("DROP TABLE IF EXISTS temp.repeated", [()]),
                (f"CREATE TEMP TABLE repeated ({_TABLE}) WITHOUT ROWID", [()]),
                *((_repeated(slot, target), [()]) for slot, target in enumerate(targets)),
            )
            self._has_table = True
        ways = rounds.awaited(store)
        work: list[tuple[str, Iterable[Any]]] = [("UPDATE temp.repeated SET first = NULL, waits = 0", [()])]
        for slot in round_.slots:
            work += [(_waiting(replace(round_, rows=way, way=LIVE), slot, targets[slot]), [()]) for way in ways]
            work.append((_known(round_, slot, targets[slot]), [()]))
        store.change(*work)

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request. Pass the request on if its answer may vary, or if its paid reply is already stored."""
        is_known = request.question is not None and not request.path and call.ledger.deferred is None
        has_columns = request.fields is not None and len(request.fields.texts) > 1
        is_same = not has_columns if self._decides else is_repeatable(request)
        if not (is_known and is_same):
            return self.following(request, call)
        return self.once(request, call)

    async def question(self, request: Request, call: Call) -> _Question | None:
        """Return the question of a request's row; None if no other row has this question."""
        del call
        assert request.question is not None
        question = request.key // SLOT, request.question
        return question if await self._read(self._entry, question, request.key) else None

    async def shared(self, flight: Flight, call: Call) -> Outcome | None:
        """Wait for the outcome of the row that is in flight, unless many rows already wait."""
        return await super().shared(flight, call) if call.waits.held < _MOST_HELD else _WAITS

    async def known(self, question: _Question, request: Request, call: Call) -> Outcome | None:
        """Return the outcome that another row with this question has; None if the request must be sent."""
        del call
        return await self._read(self._outcome, question, request.key)

    def learn(self, question: _Question, outcome: Outcome, request: Request, call: Call, *, is_second: bool) -> bool:
        """Keep the outcome of a row. Even a temporary failure is shared; `again failed` sends only one of the rows."""
        del call, is_second
        code = outcome.error.code if isinstance(outcome, Failure) else None
        if code is not Code.BUDGET:  # a row for which the budget has no room stays open
            if code is not Code.BATCHED:
                self._unwritten[request.key] = outcome
            self._learned.append((request.key, code is Code.BATCHED, *question))
        return True

    def copied(self, outcome: Outcome, request: Request, call: Call, began: float) -> Outcome | None:
        """Return the copy of an outcome. If the outcome leaves its row open, the copy is not counted."""
        if isinstance(outcome, Failure) and outcome.error.code in {Code.BATCHED, Code.BUDGET}:
            return Failure(outcome.error, request.attempts, came="copied")
        return super().copied(outcome, request, call, began)

    def recorded(self, keys: Sequence[int]) -> None:
        """Forget the outcomes of the rows with these keys, because the database has them now."""
        for key in keys:
            self._unwritten.pop(key, None)

    async def _read(self, look: Callable[[_Question, int], T], question: _Question, key: int) -> T:
        """Call `look`, which reads the database. Use a thread if the event loop might have to wait for a commit."""
        if self._store.waits_for_disk:
            return await asyncio.to_thread(look, question, key)
        return look(question, key)

    def _entry(self, question: _Question, _: int) -> list[tuple[Any, ...]]:
        """Return the entry of a question in table `repeated`, if it has one."""
        with self._looking:
            if self._learned:
                learned, self._learned = self._learned, []
                self._store.change(
                    ("UPDATE temp.repeated SET first = ?, waits = ? WHERE slot = ? AND asked = ?", learned)
                )
            return self._store.read("SELECT first, waits FROM temp.repeated WHERE slot = ? AND asked = ?", *question)

    def _outcome(self, question: _Question, key: int) -> Outcome | None:
        ((first, waits),) = self._entry(question, key)
        if first is None or first == key:
            return None
        if (outcome := self._unwritten.get(first)) is not None:
            return outcome
        record = self._store.record(first)
        if waits and (record is None or record.round <= self._since):
            return _WAITS
        return None if record is None else record.outcome()


def _asked(prompt: int) -> str:
    return f"substr(row.asked, {1 + prompt * _DIGEST}, {_DIGEST})"


def _repeated(slot: int, target: Target) -> str:
    """Return the SQL statement that adds to `repeated` the questions that several rows of a slot share."""
    return f"""
        INSERT INTO temp.repeated (slot, asked)
        SELECT {slot}, {_asked(target.prompt)} AS asked FROM row
        WHERE asked != zeroblob({_DIGEST}) GROUP BY 2 HAVING count(*) > 1
    """


def _waiting(waiting: Round, slot: int, target: Target) -> str:
    """Return the SQL statement that sets `first`, for each question, to a row whose answer comes by another way."""
    return f"""
        INSERT OR REPLACE INTO temp.repeated
        SELECT {slot}, {_asked(target.prompt)}, min(row.n) + {slot * SLOT}, 1 FROM {join_of(slot)}
        WHERE ({waiting.condition(target.counted, slot)})
        AND {_asked(target.prompt)} IN (SELECT asked FROM temp.repeated WHERE slot = {slot}) GROUP BY 2
    """


def _known(round_: Round, slot: int, target: Target) -> str:
    """Return the SQL statement that sets `first` of each question to a row with an answer or, if none, a failure."""
    is_open = replace(round_, way=LIVE).condition(target.counted, slot)
    row = f"JOIN row ON row.n = answer.key - {slot * SLOT}" if "row." in is_open else ""
    return f"""
        INSERT OR REPLACE INTO temp.repeated
        SELECT {slot}, answer.asked, coalesce(min(CASE WHEN {ANSWERED} THEN key END), min(key)), 0 FROM answer {row}
        WHERE key BETWEEN {slot * SLOT} AND {slot * SLOT + SLOT - 1}
        AND settings IN ({", ".join(map(str, target.counted))}) AND code IS NOT '{Code.BATCHED}'
        AND (({ANSWERED} AND NOT ({is_open})) OR answer.round > {int(round_.since)})
        AND answer.asked IN (SELECT asked FROM temp.repeated WHERE slot = {slot}) GROUP BY answer.asked
    """
