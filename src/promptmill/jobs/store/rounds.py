"""The rounds of a job. In a round, some rows are sent once to one or more targets, for one reason.

    id  rows          slots   reason          done
    1   open          0       first           yes     every row that had no answer
    2   again failed  0       again failed    no      interrupted: the next run resumes it

A slot is the place of one of several answers to a row. A job that compares models or prompts has several slots.

A round is stored before its first request. A rule (`RULES`) selects the round's rows by a condition on a row's answer
in a slot. The condition accepts only answers of rounds before the order, but a new answer has the new round's id. So a
row with a new answer no longer meets the condition, and after a kill the rule selects exactly the remaining rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Annotated, Protocol

import orjson
from pydantic import Field, TypeAdapter

from promptmill.core.errors import Code, Named, input_error
from promptmill.core.feature import order_parts, part, ways
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.records import PERSON, SLOT

NEVER = "0"
LIVE, COPY = "live", "copy"
"""Ways of rounds: `live` sends requests immediately; `copy` needs no request. Features have other ways."""
ANSWERED = "answer.code IS NULL"
HAS_QUESTION = "row.asked IS NOT NULL AND substr(row.asked, 1, 16) != zeroblob(16)"
FAILED = "answer.code IS NOT NULL"
TRUNCATED = "answer.finish_reason IS 'length'"
NO_OUTCOME = f"(answer.key IS NULL OR answer.code IS '{Code.BATCHED}')"
"""The condition for rows without an outcome. They include rows whose requests wait for a batch."""
IS_MISSING = f"({NO_OUTCOME} OR answer.settings NOT IN ({{settings}}, {PERSON}))"
RULES: Mapping[str, str] = MappingProxyType(
    {
        "open": f"({IS_MISSING} OR (answer.retryable AND answer.round <= {{since}}))",
        "again failed": f"({FAILED} AND answer.round <= {{since}})",
        "again truncated": f"(({TRUNCATED} OR answer.code IS '{Code.TRUNCATED}') AND answer.round <= {{since}})",
        "again all": f"(answer.key IS NULL OR (answer.round <= {{since}} AND answer.settings != {PERSON}))",
    }
)
"""The rules that select a round's rows, by name: SQL conditions on table `row`, and on a row's `answer` in a slot.

`since` is the id of the last round before the order, `settings` are the ids of accepted settings, `base` is the key of
the slot's first row. A plan adds its own rules, see `plan.Plan`; a way adds one under the way's name, see `Awaited`.
"""


class Awaited(Protocol):
    """The requests that a job has sent by a way and whose answers it still awaits. The functions block the thread. They
    raise the errors of `JobDatabase`."""

    RULE: str
    """The SQL condition for rows whose answers are awaited, as in `RULES`."""
    TRIED: str
    """The SQL condition for rows that this way left unanswered, so that they are now sent live."""

    def has_sent(self, store: JobDatabase) -> bool:
        """Return whether the job has ever sent requests by this way."""
        ...

    def names(self, store: JobDatabase) -> str:
        """Return the names that the provider gave the awaited work, such as `batch a, b`; `""` if none is awaited."""
        ...

    def slots(self, store: JobDatabase) -> Collection[int]:
        """Return the slots of requests whose answers are awaited."""
        ...

    def check(self, store: JobDatabase, job_id: str, targets: Sequence[Target]) -> None:
        """Raise `PromptmillError` (`invalid_input`) if `targets` would not accept the awaited answers."""
        ...

    def most_cost(self, store: JobDatabase) -> float:
        """Return the highest possible cost of the requests whose answers are awaited."""
        ...

    def rebind(self, store: JobDatabase, targets: Sequence[Target]) -> None:
        """Assign each awaited answer to the row that now has the answer's question. `targets`: the targets by slot."""
        ...

    def forget(self, store: JobDatabase) -> None:
        """Forget which rows meet `TRIED`: the job has finished, so a later order may send them by this way again."""
        ...


def awaited(store: JobDatabase) -> dict[str, Awaited]:
    """Return the ways of features that the job has used, by name.

    Raises the errors of `JobDatabase`; `PromptmillError` (`invalid_input`) if the feature of an unfinished round is
    missing.
    """
    known = {LIVE, COPY, *ways()}
    if missing := [round_.way for round_ in stored_rounds(store) if round_.way not in known and not round_.done]:
        raise input_error(Named(missing[0]), " needs a feature that is not installed.")
    return _used(store)


def _used(store: JobDatabase) -> dict[str, Awaited]:
    added = store.added.keys()  # the stored rounds do not suffice, because a damaged round does not name its way
    return {name: part(entry.awaited) for name, entry in ways().items() if entry.tables.keys() <= added}


def begin_way(store: JobDatabase, way: str) -> None:
    """Create the tables of a way that a job begins to use. Raises the errors of `JobDatabase`."""
    if (entry := ways().get(way)) is not None:
        store.add(entry.tables)


def is_empty(store: JobDatabase) -> bool:
    """Return whether a job has no record and has never sent requests by a way of a feature.

    Raises the errors of `JobDatabase`.
    """
    missing = store.added.keys() - {name for entry in ways().values() for name in entry.tables}
    return not (missing or store.page(0, size=1) or any(way.has_sent(store) for way in _used(store).values()))


def names(store: JobDatabase) -> str:
    """Return the names that providers gave the work that a job awaits, or `""`. Raises the errors of `JobDatabase`."""
    return ", ".join(filter(None, (way.names(store) for way in _used(store).values())))


def _awaited(way: str) -> Awaited | None:
    entry = ways().get(way)
    return None if entry is None else part(entry.awaited)


def rule_of(rows: str) -> str:
    """Return the rule with the name `rows`, from the core, a way or a plan; `NEVER` if there is no such rule."""
    if (rule := RULES.get(rows)) is not None:
        return rule
    if (way := _awaited(rows)) is not None:
        return way.RULE
    kinds = (part(entry.part) for entries in order_parts() for entry in entries)
    return next((rule for kind in kinds if (rule := kind.rules.get(rows)) is not None), NEVER)


@dataclass(frozen=True, slots=True)
class Round:
    """Some rows of a job, each of which is sent once to the targets in `slots`."""

    id: int
    rows: str
    """The name of the rule in `RULES` that selects the rows."""
    reason: str
    """The purpose of the round in a word or two, for the status and the report."""
    slots: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    since: int = 0
    """The id of the last round before the order that this round belongs to."""
    way: str = LIVE
    """The way in which the rows are answered, see `run.ways`."""
    model: str = ""
    """The model that answers instead of the target's model; `""`: the target's model."""
    done: bool = False
    """Whether another round followed or the job finished."""

    def condition(self, settings: Iterable[int], slot: int = 0) -> str:
        """Return the condition for the round's rows in a slot. `settings`: the ids of accepted settings."""
        ids = ", ".join(str(int(each)) for each in settings)
        way = None if self.way in {LIVE, COPY} else _awaited(self.way)
        rule = rule_of(self.rows) if way is None else f"({rule_of(self.rows)}) AND NOT {way.TRIED}"
        return rule.format(since=int(self.since), settings=ids, base=int(slot) * SLOT)


_ROUND = TypeAdapter(Round)


def stored_rounds(store: JobDatabase) -> list[Round]:
    """Return the rounds of a job, in order. Raises the errors of `JobDatabase`."""
    return [_round(id_, value) for id_, value in store.read("SELECT id, value FROM round ORDER BY id")]


def _round(id_: int, text: str) -> Round:
    """Return a stored round. A damaged round keeps its id and counts as done, so that later rounds get higher ids."""
    try:
        stored = _ROUND.validate_python({"id": id_, **orjson.loads(text)})
    except (TypeError, ValueError):
        stored = None
    is_known = stored is not None and (rule_of(stored.rows) is not NEVER or stored.way not in {LIVE, COPY})
    return stored if stored is not None and is_known else Round(id_, "open", "", done=True)


def store_round(store: JobDatabase, round_: Round) -> None:
    """Store a round, or its changed state. Raises the errors of `JobDatabase`."""
    value = asdict(round_)
    id_ = value.pop("id")
    store.change(("INSERT OR REPLACE INTO round VALUES (?, ?)", [(id_, orjson.dumps(value).decode())]))


def end(store: JobDatabase) -> None:
    """Store that the job has finished. Raises the errors of `JobDatabase`."""
    if known := stored_rounds(store):
        store_round(store, replace(known[-1], done=True))


def join_of(slot: int) -> str:
    """Return SQL that joins table `row` with each row's record in table `answer` for a slot."""
    return f"row LEFT JOIN answer ON answer.key = row.n + {slot * SLOT}"
