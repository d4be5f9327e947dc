"""The plan of a job: which round comes next.

    order, rounds so far, open rows ─▶ next_round ─▶ Round | None

The plan is a pure function of the database and the order, so a killed job computes the same next round. The rounds of
an order, each only if it has rows:

1. the last round, if it was interrupted
2. `again …`: the rows that the order sends again
3. `first`: the rows without an answer, and failures of earlier runs that may pass

With `dedupe`, only the first of several rows with the same question is sent, and a round `duplicate` copies its answer
to the others; if it failed for a reason that may pass, the next of them is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.rounds import DUPLICATE, OF_ANY, ONCE, Round

_TRIES = 2
"""Rows with the same question that a run sends, one after the other, if the first one fails for a passing reason."""


@dataclass(frozen=True, slots=True)
class Situation:
    """The facts that decide about the next round."""

    order: JobOrder
    rounds: Sequence[Round]
    since: int
    """The id of the last round before the order."""
    slots: int
    """The number of answers to each row."""
    has_rows: Callable[[Round], bool]
    """Whether some row of the job meets the rule of a round."""


def next_round(now: Situation) -> Round | None:
    """Return the next round of a job, None if every row is done."""
    rounds = now.rounds
    if rounds and not rounds[-1].done and _is_resumed(rounds[-1], now) and now.has_rows(rounds[-1]):
        return rounds[-1]
    own = [round_ for round_ in rounds if round_.id > now.since]
    for rows, reason, way in _wanted(now.order, own):
        id_ = rounds[-1].id + 1 if rounds else 1
        wanted = Round(id_, rows, reason, tuple(range(now.slots)), now.since, way)
        if now.has_rows(wanted):
            return wanted
    return None


def _is_resumed(last: Round, now: Situation) -> bool:
    """Return whether an order resumes an interrupted round; the rounds of an order `again` may have all its rows."""
    order = now.order
    if max(last.slots) >= now.slots or (last.is_by_question and not order.dedupe):
        return False
    if last.rows == "open" and order.dedupe:  # which sends fewer of its rows
        return False
    if order.earlier.again is None or last.id > now.since:
        return True
    return order.earlier.again != "all" and last.rows.startswith("again")


def _wanted(order: JobOrder, own: Sequence[Round]) -> Iterator[tuple[str, str, str]]:
    """Yield the rule, the reason and the way of the rounds that may come next; `own` are the order's rounds so far."""
    again = order.earlier.again
    for rows in ("open",) if again is None else (f"again {again}", "open"):
        reason = order.reason if rows == "open" else rows
        if not order.dedupe:
            yield rows, reason, "live"
            continue
        sent = sum(round_.rows == rows + ONCE for round_ in own)
        yield rows + (OF_ANY if sent == _TRIES else DUPLICATE), "duplicate", "copy"
        if sent < _TRIES:
            yield rows + ONCE, reason, "live"


def resent(order: JobOrder, since: int, settings: Iterable[int], slot: int = 0) -> str:
    """Return the condition of the rows in a slot that an order sends; `since` is the last round before it."""
    rules = ["open"] if order.earlier.again is None else ["open", f"again {order.earlier.again}"]
    first = Round(since + 1, "", "", since=since)
    return " OR ".join(replace(first, rows=rule).condition(settings, slot) for rule in rules)
