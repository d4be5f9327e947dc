"""Decides which round of a job comes next.

    order, rounds so far, open rows ─▶ next_round ─▶ Round | None

`next_round` is a pure function of the database and the order, so after a kill the job computes the same next round. An
order has these rounds, in this sequence; a round without rows is left out:

1. the last round, if it was interrupted and was sending rows again (if it was sending other rows, round 4 sends them)
2. the rows whose answers an earlier order still awaits; the way of this round collects these answers
3. `again …`: the rows that the order explicitly sends again
4. `first`: the rows without an answer, and the rows that failed in earlier runs with a retryable failure

The plan of a job (`plan.Plan`) yields the rounds 3 and 4, and further rounds if the plan chooses one of several
answers. No round replaces a person's label.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.plan import Plan
from promptmill.jobs.store.rounds import COPY, LIVE, Round


@dataclass(frozen=True, slots=True)
class Situation:
    """The facts that determine the next round."""

    order: JobOrder
    plan: Plan
    """The job's plan, with the decisions it has made."""
    rounds: Sequence[Round]
    since: int
    """The id of the last round before the order."""
    slots: int
    """The number of answers to each row."""
    has_rows: Callable[[Round], bool]
    """Returns whether a row of the job meets the rule of a round."""
    awaited: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The slots whose requests still await an answer, by the way that sent them."""


def next_round(now: Situation) -> Round | None:
    """Return the next round of a job; None if all rows are done."""
    rounds = now.rounds
    may_resume = bool(rounds) and (rounds[-1].way in now.awaited or not now.awaited)
    if may_resume and not rounds[-1].done and _is_resumed(rounds[-1], now) and now.has_rows(rounds[-1]):
        return rounds[-1]
    reason = now.order.shown.reason
    first = Round(rounds[-1].id + 1 if rounds else 1, "open", reason, tuple(range(now.slots)), now.since, now.order.way)
    wanted = now.plan.next(first, now.order.earlier.again)
    left = [replace(first, rows=way, reason=way, slots=slots, way=way) for way, slots in now.awaited.items()]
    return next(filter(now.has_rows, itertools.chain(left, _by_way(wanted, now))), None)


def _by_way(wanted: Iterable[Round], now: Situation) -> Iterator[Round]:
    """Yield each of the rounds `wanted`: first by the order's way, then live, for the rows that this way left open."""
    latest = max((round_.id for round_ in now.rounds if round_.way not in {LIVE, COPY}), default=0)
    for round_ in wanted:
        # not before the last round by batch or another way of a feature, whose retryable failures are sent again
        since = max(round_.since, latest)
        if round_.way in {LIVE, COPY}:
            yield replace(round_, since=since) if round_.rows == "open" else round_
            continue
        yield replace(round_, reason=round_.way)
        yield replace(round_, since=round_.since if round_.rows.startswith("again") else since, way=LIVE)


def _is_resumed(last: Round, now: Situation) -> bool:
    """Return whether an order resumes an interrupted round. An order with `again: all` resumes only its own rounds."""
    order = now.order
    if not now.plan.resumes(last):
        return False
    if max(last.slots) >= now.slots:
        return False
    if order.earlier.again is None or last.id > now.since:
        return True
    return order.earlier.again != "all" and last.rows.startswith("again")


def resent(order: JobOrder, since: int, settings: Iterable[int], slot: int = 0) -> str:
    """Return the SQL condition for the rows that an order sends in a slot. `since`: see `Situation.since`."""
    first = Round(since + 1, "open", "", since=since)
    again = order.earlier.again
    rules = dict.fromkeys(round_.rows for round_ in (*Plan().next(first, again), *order.plan.next(first, again)))
    return " OR ".join(replace(first, rows=rule).condition(settings, slot) for rule in rules)
