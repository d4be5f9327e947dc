"""A job is a list of rounds: some rows, each sent once to one or more targets, for a reason.

    id  rows          slots   reason          done
    1   open          0       first           yes     every row that had no answer
    2   again failed  0       again failed    no      interrupted: the next run resumes it

A slot is the place of one answer to each row; a job that compares models or prompts has several.

A round is stored before its first request, and its rows are a rule: a condition on the answer that a row has in a slot
(`RULES`). The rule refers to rounds before the order, and a new answer has the round's id. So a row leaves the
rule once its answer is stored, and the rule selects the same remaining rows after a kill.

    order, rounds so far, open rows ─▶ next_round ─▶ Round | None

`next_round` is a pure function of the database and the order, so a killed job computes the same next round. The rounds
of an order, each only if it has rows:

1. the last round, if it was interrupted
2. `batched`: the rows of batches that another order left open, which collects their answers
3. `again …`: the rows that the order sends again
4. `first`: the rows without an answer, and failures of earlier runs that may pass

With `sure`, the rounds are `sample`, `cheap`, `sure` (which copies the answers that may be delivered) and `unsure`.
With a student, they are `train`, `sample`, `student` (which sends nothing), `sure` and `unsure`.
With `votes`, the rounds send the votes, and a round `voted` copies the labels that won. No round replaces the label of
a person.

With `dedupe`, only the first of several rows with the same question is sent. Before and after it, a round `duplicate`
copies an outcome to the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import orjson
from pydantic import Field, TypeAdapter

from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import PERSON, SLOT
from promptmill.options.table import MOST_VOTES

if TYPE_CHECKING:
    from promptmill.jobs.store.order import JobOrder
    from promptmill.jobs.store.spec import SurePart

NEVER = "0"
ANSWERED = "answer.code IS NULL"
HAS_QUESTION = "row.asked IS NOT NULL AND substr(row.asked, 1, 16) != zeroblob(16)"
FAILED = "answer.code IS NOT NULL"
TRUNCATED = "answer.finish_reason IS 'length'"
ONCE, DUPLICATE = " once", " duplicate"
_IS_MISSING = f"(answer.key IS NULL OR answer.settings NOT IN ({{settings}}, {PERSON}))"
_VOTES = ", ".join(f"row.n + {slot * SLOT}" for slot in range(1, MOST_VOTES + 1))
IS_VOTED = f"""(answer.settings IS NOT {PERSON} AND EXISTS (
    SELECT 1 FROM answer AS vote WHERE vote.key IN ({_VOTES}) AND vote.round > coalesce(answer.round, -1)
))"""
"""The condition of a row that has votes newer than its decision."""
_ALWAYS_LIVE = frozenset({"sample", "train"})
"""The reasons of small rounds, for which the rest of a job waits."""
_ORDERED = {
    "open": f"({_IS_MISSING} OR (answer.retryable AND answer.round <= {{since}}))",
    "again failed": f"({FAILED} AND answer.round <= {{since}})",
    "again truncated": f"({TRUNCATED} AND answer.round <= {{since}})",
    "again all": f"(answer.key IS NULL OR (answer.round <= {{since}} AND answer.settings != {PERSON}))",
}
_TRIED = """EXISTS (
    SELECT 1 FROM batched WHERE batched.key = row.n + {base} AND status = 0
    AND (batch = 0 OR batch IN (SELECT id FROM batch WHERE value ->> '$.state' = 'done'))
)"""
_BATCHED = f"""EXISTS (
    SELECT 1 FROM batched JOIN batch ON batch.id = batched.batch
    WHERE batched.key = row.n + {{base}} AND batch.value ->> '$.state' != 'done' AND (
        answer.key IS NULL OR (answer.round < batch.value ->> '$.round' AND answer.settings != {PERSON})
    )
)"""
_IS_WAITING = "row.n + {base} IN (SELECT key FROM temp.equal WHERE key != first)"
_IS_DUPLICATE = "row.n + {base} IN (SELECT key FROM temp.equal WHERE is_known)"
RULES: Mapping[str, str] = MappingProxyType(
    {
        **_ORDERED,
        **{f"{name}{ONCE}": f"{rule} AND NOT {_IS_WAITING}" for name, rule in _ORDERED.items()},
        **{f"{name}{DUPLICATE}": _IS_DUPLICATE for name in _ORDERED},
        "batched": _BATCHED,
        "chosen": f"{_IS_MISSING} AND row.n IN (SELECT n FROM chosen WHERE round > 0)",
        "taught": f"{_IS_MISSING} AND row.n IN (SELECT n FROM chosen WHERE round < 0)",
        "cheap": "answer.key IS NULL AND NOT EXISTS (SELECT 1 FROM answer AS delivered WHERE delivered.key = row.n)",
        "voted": IS_VOTED,
        "sure": f"{_IS_MISSING} AND row.n IN (SELECT n FROM temp.sure)",
    }
)
"""The rows of a round, by the name of the rule: a condition on `row` and the row's `answer` in a slot, if any.

`since` is the id of the last round before the order, `settings` the ids whose answers count, `base` the key of the
slot's first row. Rules that end in `ONCE` or `DUPLICATE` divide the rows of the rule before that by their questions;
the temporary tables are from `run.job_rounds` and `run.sure_rounds`.
"""


@dataclass(frozen=True, slots=True)
class Round:
    """Some rows of a job, each to be sent once to the targets in `slots`."""

    id: int
    rows: str
    """The name of one of `RULES`."""
    reason: str
    """The purpose in a word or two, which status and report show."""
    slots: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    since: int = 0
    """The id of the last round before the order that this round belongs to."""
    way: str = "live"
    """`live`: requests are sent; `batch`: the provider gets files of requests, and answers them within a day; `copy`:
    duplicates get the answer of an equal row, or a student answers."""
    model: str = ""
    """The model that answers in place of the target's; `""` for the target's own."""
    done: bool = False
    """Whether another round followed, or the job finished."""

    @property
    def ordered(self) -> str:
        """The rule that the order means, whatever the round takes of its rows."""
        return self.rows.removesuffix(ONCE).removesuffix(DUPLICATE)

    @property
    def is_by_question(self) -> bool:
        """Whether its rows depend on the questions of other rows, see `run.job_rounds`."""
        return self.ordered != self.rows

    def condition(self, settings: Iterable[int], slot: int = 0) -> str:
        """Return the condition of its rows in a slot; `settings` are the ids whose answers count there."""
        ids = ", ".join(str(int(each)) for each in settings)
        rule = f"({RULES[self.rows]}) AND NOT {_TRIED}" if self.way == "batch" else RULES[self.rows]
        return rule.format(since=int(self.since), settings=ids, base=int(slot) * SLOT)


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
    part: SurePart | None = None
    """The newest part of a job with `sure`."""
    batched: tuple[int, ...] = ()
    """The slots with batches that are not done."""


def next_round(now: Situation) -> Round | None:
    """Return the next round of a job, None if every row is done."""
    rounds = now.rounds
    may_resume = bool(rounds) and (rounds[-1].way == "batch" or not now.batched)
    if may_resume and not rounds[-1].done and _is_resumed(rounds[-1], now) and now.has_rows(rounds[-1]):
        return rounds[-1]
    first = Round(rounds[-1].id + 1 if rounds else 1, "open", "", tuple(range(now.slots)), now.since)
    wanted = _wanted(now.order, first) if now.order.sure is None else _wanted_of_sure(now.order, first, now.part)
    left = [replace(first, rows="batched", reason="batch", slots=now.batched, way="batch")] if now.batched else []
    return next(filter(now.has_rows, itertools.chain(left, _by_batch(wanted, now))), None)


def _by_batch(wanted: Iterable[Round], now: Situation) -> Iterator[Round]:
    """Yield the rounds; where the order has `batch`, rows go into a batch first, and then live if it left them open."""
    latest = max((round_.id for round_ in now.rounds if round_.way == "batch"), default=0)
    for round_ in wanted:
        # failures of a batch that may pass are sent again
        live = replace(round_, since=max(round_.since, latest)) if round_.ordered == "open" else round_
        is_cheap = now.order.sure is not None and 0 not in round_.slots
        if now.order.batch is None or round_.way != "live" or is_cheap or round_.reason in _ALWAYS_LIVE:
            yield live
            continue
        yield replace(round_, way="batch", reason="batch")
        yield live


def _is_resumed(last: Round, now: Situation) -> bool:
    """Return whether an order resumes an interrupted round; the rounds of an order `again` may have all its rows."""
    order = now.order
    if order.sure is not None:  # each of its rounds follows from the answers
        return False
    if order.votes is not None and last.way == "live" and 0 in last.slots:  # from before the job had votes
        return False
    if max(last.slots) >= now.slots or (last.is_by_question and not order.limits.dedupe):
        return False
    if last.rows == "open" and order.limits.dedupe:  # which sends fewer of its rows
        return False
    if order.earlier.again is None or last.id > now.since:
        return True
    return order.earlier.again != "all" and last.rows.startswith("again")


def _wanted(order: JobOrder, first: Round) -> Iterator[Round]:
    """Yield the rounds that may come next, like `first` but for their rows."""
    again = order.earlier.again
    if order.votes is not None:
        first = replace(first, slots=order.votes.slots)
    for rows in ("open",) if again is None else (f"again {again}", "open"):
        live = replace(first, rows=rows, reason=order.shown.reason if rows == "open" else rows)
        if order.limits.dedupe:
            yield replace(live, rows=rows + DUPLICATE, reason="duplicate", way="copy")
            live = replace(live, rows=rows + ONCE)
        yield live
    if order.votes is not None:
        yield replace(first, rows="voted", reason="votes", slots=(0,), way="copy")


def _wanted_of_sure(order: JobOrder, first: Round, part: SurePart | None) -> Iterator[Round]:
    """Yield the rounds that may come next if the answers must be sure, see `run.sure_rounds`."""
    delivered = replace(first, slots=(0,))
    if (again := order.earlier.again) is not None:
        yield replace(delivered, rows=f"again {again}", reason=f"again {again}")
    if part is None:
        return
    assert order.sure is not None
    panel = order.sure.panel(part.score)
    if order.sure.student:
        yield from _wanted_of_student(order, first, part)
        return
    if part.cut is None:
        # the cheap models come first: an endpoint may refuse the log probabilities, and that ends the requests in
        # flight
        yield replace(first, rows="chosen", reason="sample", slots=panel)
        yield replace(first, rows="chosen", reason="sample", slots=(0,))
        return
    if part.pays:
        yield replace(first, rows="cheap", reason="cheap", slots=panel)
    yield replace(delivered, rows="sure", reason="sure", way="copy")
    yield replace(delivered, rows="open", reason="unsure" if part.pays else order.shown.reason)


def _wanted_of_student(order: JobOrder, first: Round, part: SurePart) -> Iterator[Round]:
    """Yield the rounds that may come next if a student answers, see `run.student_rounds`."""
    delivered = replace(first, slots=(0,))
    if part.cut is None:
        yield replace(delivered, rows="taught", reason="train")
        yield replace(delivered, rows="chosen", reason="sample")
        return
    if part.pays and not part.is_ended:
        yield replace(first, rows="cheap", reason="student", slots=(1,), way="copy")
    yield replace(delivered, rows="sure", reason="sure", way="copy")
    yield replace(delivered, rows="open", reason="unsure" if part.pays else order.shown.reason)


def resent(order: JobOrder, since: int, settings: Iterable[int], slot: int = 0) -> str:
    """Return the condition of the rows in a slot that an order sends; `since` is the last round before it."""
    first = Round(since + 1, "", "", since=since)
    rules = dict.fromkeys(round_.ordered for round_ in _wanted(order, first))
    return " OR ".join(replace(first, rows=rule).condition(settings, slot) for rule in rules)


_ROUND = TypeAdapter(Round)


def stored_rounds(store: JobDatabase) -> list[Round]:
    """Return the rounds of a job, in order. Raises as `JobDatabase` does."""
    return [_round(id_, value) for id_, value in store.read("SELECT id, value FROM round ORDER BY id")]


def _round(id_: int, text: str) -> Round:
    """Return a stored round. A damaged one counts as done: later rounds have later ids than its answers."""
    try:
        found = _ROUND.validate_python({"id": id_, **orjson.loads(text)})
    except (TypeError, ValueError):
        found = None
    return Round(id_, "open", "", done=True) if found is None or found.rows not in RULES else found


def store_round(store: JobDatabase, round_: Round) -> None:
    """Store a round, or its new state. Raises as `JobDatabase` does."""
    value = asdict(round_)
    id_ = value.pop("id")
    store.change(("INSERT OR REPLACE INTO round VALUES (?, ?)", [(id_, orjson.dumps(value).decode())]))


def end(store: JobDatabase) -> None:
    """Note that the job has finished. Raises as `JobDatabase` does."""
    if known := stored_rounds(store):
        store_round(store, replace(known[-1], done=True))


def join_of(slot: int) -> str:
    """Return `row` joined with its `answer` in a slot, for a query."""
    return f"row LEFT JOIN answer ON answer.key = row.n + {slot * SLOT}"
