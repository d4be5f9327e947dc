"""The batches in a job's database: their plan, their state at the provider, and the replies.

    batch    id → JSON: the batches, see `Batch`
    batched  rows without an outcome whose requests are in batches, and the replies as they arrive

A request may be for several rows. Its reply is stored at the row whose `custom` is the request's `line`; each row has
its own `Portion` of the request (`name`, `at`, `among`), and may be moved, edited or removed alone.

A batch is stored before each step that may be billed or that leaves data at the provider:

    planning ─▶ planned ─▶ uploaded ─▶ creating ─▶ sent ─▶ ended ─▶ fetched ─▶ done
       │                      ▲            │
    begins anew               └─ not found ┘ in the provider's list

After a kill, the job continues with the stored state. After `creating`, it first searches the provider for the batch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import orjson
from pydantic import AfterValidator, TypeAdapter, ValidationError

from promptmill.backends.batches import Reply
from promptmill.core.errors import Named, input_error
from promptmill.core.request import Portion, Request
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import Stored, Target
from promptmill.jobs.store.in_flight import LAST_KEY_OF_ROW
from promptmill.jobs.store.records import PERSON, SLOT
from promptmill.jobs.store.rounds import NO_OUTCOME, join_of

State: TypeAlias = Literal["planning", "planned", "uploaded", "creating", "sent", "ended", "fetched", "done"]
IN_BATCH = "EXISTS (SELECT 1 FROM batched WHERE batched.key = row.n + {base})"
"""The condition for rows that are in an open batch, or that got no answer in an earlier one. `base`: the key of the
slot's first row."""
HAS_REPLY = "EXISTS (SELECT 1 FROM batched WHERE batched.key = row.n + {base} AND status > 0 AND batch = {batch})"
"""The condition for rows with a reply that was not yet processed."""

IS_ALONE = "(SELECT count(*) FROM batched AS each WHERE each.key = row.n + {base} AND each.batch = {batch}) = 1"
"""The condition for rows with a single request in the batch."""

# The column names match the fields of `promptmill.jobs.store.rounds.Awaited`.
TRIED = """coalesce((
    SELECT min(status IS 0 AND batch NOT IN (SELECT id FROM batch WHERE value ->> '$.state' != 'done')) FROM batched
    WHERE batched.key = row.n + {base}
), 0)"""
RULE = f"""EXISTS (
    SELECT 1 FROM batched JOIN batch ON batch.id = batched.batch
    WHERE batched.key = row.n + {{base}} AND batch.value ->> '$.state' != 'done' AND (
        {NO_OUTCOME} OR (answer.round < batch.value ->> '$.round' AND answer.settings != {PERSON})
    )
)"""
_PLANNED = f"(custom & {LAST_KEY_OF_ROW - 1})"
"""SQL for the row's key when the request was planned."""
_NOW = f"(custom - {_PLANNED} + key)"
"""SQL for the request's present number: binding may have moved its row."""
_LEADS_ELSEWHERE = re.compile(r"[?#%\\\s]|(?:^|/)\.{1,2}(?:/|$)")
_IS_ANSWER = "abs(status) BETWEEN 200 AND 299"
_LARGEST = (1 << 63) - 1  # the largest integer of SQLite
_DONE = "SELECT id FROM batch WHERE value ->> '$.state' = 'done'"


def _plain(name: str) -> str:
    """Return a provider's id or path of a file. Raises `ValueError` if a URL with it would lead elsewhere."""
    if _LEADS_ELSEWHERE.search(name):
        raise ValueError("is no id")
    return name


_Id: TypeAlias = Annotated[str, AfterValidator(_plain)]


class AtProvider(Stored):
    """The job's knowledge of a batch at the provider."""

    file_id: _Id = ""
    """The id of the uploaded file."""
    since: float = 0.0
    """The Unix time at which the batch was created, or the earliest time at which it may have been."""
    id: _Id = ""
    """The provider's id of the batch; `""` until it is known."""
    said: str = ""
    """The provider's word for the batch's state."""
    done: int | None = None
    """The number of finished requests, as reported by the provider."""
    expires: float | None = None
    is_cancelled: bool = False
    """Whether promptmill requested the batch's cancellation."""
    is_guess: bool = False
    """Whether only the time and size of the provider's batch identify it as this batch."""
    read: tuple[str, ...] = ()
    """The provider's names of the results that were read."""


class Batch(Stored):
    """A batch of a round: the requests in one file, for one model."""

    id: int
    key: str
    """promptmill's label of the batch, by which it is found in the provider's list."""
    round: int
    slot: int = 0
    settings: int = 0
    """The id of the settings of the requests."""
    state: State = "planning"
    requests: int = 0
    sha256: str = ""
    """The digest of the file with the requests."""
    most: float = 0.0
    """The highest possible cost, in US dollars."""
    warms: bool = False
    """Whether the batch puts the beginnings of later requests into the provider's cache."""
    mark: str = ""
    """The prefix of each `custom_id`. It distinguishes the batch from batches of other programs."""
    not_it: tuple[str, ...] = ()
    """The provider's ids of batches that are not this batch, or that a full queue refused."""
    unread: int = 0
    """The number of unreadable replies that may be billed. If there are any, the results stay at the provider."""
    there: AtProvider = AtProvider()

    def file(self, folder: Path) -> Path:
        """Return the path of the file with the requests, in a job's folder."""
        return folder / f"batch-{self.id}.jsonl"

    def changed(self, **changes: Any) -> Batch:
        """Return a copy of the batch with changed fields."""
        return self.model_copy(update=changes)

    def seen(self, state: State, **changes: Any) -> Batch:
        """Return a copy of the batch in another state, with changed fields of `AtProvider`."""
        return self.changed(state=state, there=self.there.model_copy(update=changes))


_BATCH = TypeAdapter(Batch)


def stored_batches(store: JobDatabase, where: str = "1") -> list[Batch]:
    """Return the batches that meet a condition, in order, without damaged batches."""
    found: list[Batch] = []
    for id_, value in store.read(f"SELECT id, value FROM batch WHERE {where} ORDER BY id"):
        try:
            found.append(_BATCH.validate_python({"id": id_, **orjson.loads(value)}))
        except (TypeError, ValueError, ValidationError):
            continue
    return found


def open_batches(store: JobDatabase) -> list[Batch]:
    """Return the batches that are not done."""
    return stored_batches(store, "value ->> '$.state' != 'done'")


def has_sent(store: JobDatabase) -> bool:
    """Return whether the job has or had a batch."""
    return bool(store.read("SELECT 1 FROM batch LIMIT 1"))


def names(store: JobDatabase) -> str:
    """Return the provider's ids of the batches that are not done; `""` if there are none."""
    ids = [batch.there.id for batch in open_batches(store) if batch.there.id]
    return f"batch {', '.join(ids)}" if ids else ""


def slots(store: JobDatabase) -> set[int]:
    """Return the slots of batches that are not done."""
    return {batch.slot for batch in open_batches(store)}


def check(store: JobDatabase, job_id: str, targets: Sequence[Target]) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the job would not accept the answers of a batch at the provider."""
    for batch in open_batches(store):
        is_there = batch.state != "planning"
        if is_there and (batch.slot >= len(targets) or batch.settings not in targets[batch.slot].counted):
            raise input_error(
                f"Job {job_id} has a batch at the provider that was made with other settings, and its answers "
                "are paid. Resume the job with its settings to store them",
                Named("command", f"jobs {job_id} --resume", " ({})"),
                "; then repeat this. Or name another output.",
            )


def put(store: JobDatabase, *batches: Batch) -> None:
    """Store batches or their changed states. Raises the errors of `JobDatabase`."""
    store.change(_written(batches))


def _written(batches: Iterable[Batch]) -> tuple[str, list[tuple[int, str]]]:
    values = [(batch.id, orjson.dumps(batch.model_dump(exclude={"id"})).decode()) for batch in batches]
    return "INSERT OR REPLACE INTO batch VALUES (?, ?)", values


def next_id(store: JobDatabase) -> int:
    """Return the id for the next batch."""
    ((last,),) = store.read("SELECT coalesce(max(id), 0) FROM batch")
    return int(last) + 1


def custom_of(request: Request) -> int:
    """Return the number of a request in a batch: the key of its row, and the request's `choice` in the higher bits."""
    return request.choice * LAST_KEY_OF_ROW + request.key


class BatchRow(NamedTuple):
    """A row whose request is in a batch, without the reply."""

    custom: int
    """The number of the row's own request, see `custom_of`."""
    key: int
    asked: bytes | None
    """The digest of the row's question."""
    line: int
    """The number of the sent request, which is the `custom` of one of its rows."""
    name: str
    at: int
    among: int


def add_rows(store: JobDatabase, batch: Batch, rows: Iterable[BatchRow]) -> None:
    """Store the rows of the requests in a batch."""
    values = [(batch.id, *row) for row in rows]
    names = f"batch, {', '.join(BatchRow._fields)}"
    store.change((f"INSERT INTO batched ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values))


def drop(store: JobDatabase, batch: Batch) -> None:
    """Forget a batch that the provider does not have. Its rows are open again."""
    rows = ("DELETE FROM batched WHERE batch = ?", [(batch.id,)])
    store.change(rows, ("DELETE FROM batch WHERE id = ?", [(batch.id,)]))


def keep_replies(store: JobDatabase, batch: Batch, replies: Sequence[Reply]) -> Counter[bool]:
    """Store replies to the requests of a batch. Of several replies to a request, the first answer counts or, if none is
    an answer, the first reply.

    Return the counts of replies that belong to no request of the batch: of answers (True), of failures (False).
    """
    unknown = Counter[bool]()
    with store.transaction() as connection:
        for reply in replies:
            named = reply.custom_id.removeprefix(batch.mark)
            is_ours = reply.custom_id.startswith(batch.mark) and named.isdecimal() and len(named) < 20
            values = (reply.status, reply.body, batch.id, min(int(named), _LARGEST) if is_ours else -1)
            changed = connection.execute(
                f"UPDATE batched SET status = ?1, reply = ?2 WHERE batch = ?3 AND custom = ?4 AND (status IS NULL OR "
                f"(NOT {_IS_ANSWER} AND ?1 BETWEEN 200 AND 299))",
                values,
            )
            if not changed.rowcount:
                known = connection.execute("SELECT 1 FROM batched WHERE batch = ? AND custom = ?", values[2:])
                unknown[reply.is_answer] += known.fetchone() is None
    return unknown


def spread(store: JobDatabase, batch: Batch) -> None:
    """Store the status of each shared reply at all of its rows."""
    store.change(
        (
            f"""UPDATE batched SET status = (
                SELECT status FROM batched AS sent WHERE sent.batch = batched.batch AND sent.custom = batched.line
            ) WHERE batch = ? AND line != custom AND (status IS NULL OR NOT {_IS_ANSWER})""",
            [(batch.id,)],
        )
    )


def customs(store: JobDatabase, batch: Batch) -> set[int]:
    """Return the numbers that the rows of a batch have now, see `custom_of`."""
    query = f"SELECT {_NOW} FROM batched WHERE batch = ? AND key IS NOT NULL"
    return {custom for (custom,) in store.read(query, batch.id)}


def has_portions(store: JobDatabase, batch: Batch) -> bool:
    """Return whether rows of a batch share requests, and so replies."""
    return bool(store.read("SELECT 1 FROM batched WHERE batch = ? AND among > 1 LIMIT 1", batch.id))


def reply_to(store: JobDatabase, batch: Batch, request: Request) -> Reply | None:
    """Return the stored reply to a row's request; None without a reply."""
    reply = "coalesce(reply, (SELECT reply FROM batched AS sent WHERE batch = batched.batch AND custom = batched.line))"
    query = f"SELECT status, {reply} FROM batched WHERE key = ? AND {_NOW} = ? AND batch = ? AND status > 0"
    found = store.read(query, request.key, custom_of(request), batch.id)
    return Reply("", *found[0]) if found else None


def portion_of(store: JobDatabase, batch: Batch, request: Request) -> Portion | None:
    """Return a row's portion of the request that it shares; None if it has a request of its own.

    Rows that are no longer in the input are skipped, so the request is counted at the first remaining row.
    """
    at = """(
        SELECT count(*) FROM batched AS each
        WHERE batch = batched.batch AND line = batched.line AND key IS NOT NULL AND at < batched.at
    )"""
    query = f"SELECT name, {at}, among FROM batched WHERE key = ? AND {_NOW} = ? AND batch = ? AND among > 1"
    found = store.read(query, request.key, custom_of(request), batch.id)
    return Portion(*found[0]) if found else None


class Replies(NamedTuple):
    """The counts of the stored replies to a batch."""

    requests: int
    answers: int
    """The number of replies with an answer, which are billed."""
    run: int
    """The number of replies to requests that were run, including failed ones."""
    passed: int
    """The number of replies that were passed on before the other replies came."""
    ready: int
    """The number of replies, not yet passed on, to rows that are in the input."""


def replies_of(store: JobDatabase, batch: Batch) -> Replies:
    """Count the stored replies of a batch."""
    is_sent = "line = custom"
    conditions = (
        f"{is_sent} AND status IS NOT NULL",
        f"{is_sent} AND {_IS_ANSWER}",
        f"{is_sent} AND status != 0",
        f"{is_sent} AND status < 0",
        "status > 0 AND key IS NOT NULL",
    )
    figures = ", ".join(f"coalesce(sum({each}), 0)" for each in conditions)
    return Replies(*store.read(f"SELECT {figures} FROM batched WHERE batch = ?", batch.id)[0])


def mark_passed(store: JobDatabase, batch: Batch) -> None:
    """Store that the replies to rows with a single request were passed on: their status becomes negative."""
    alone = "(SELECT count(*) FROM batched AS each WHERE each.key = batched.key AND each.batch = batched.batch) = 1"
    is_needed = (
        "EXISTS (SELECT 1 FROM batched AS each WHERE batch = batched.batch AND line = batched.custom AND status > 0)"
    )
    store.change(
        (f"UPDATE batched SET status = -status WHERE batch = ? AND status > 0 AND {alone}", [(batch.id,)]),
        (f"UPDATE batched SET reply = NULL WHERE batch = ? AND status < 0 AND NOT {is_needed}", [(batch.id,)]),
        _written([batch]),
    )


def finish(store: JobDatabase, batch: Batch, onward: Iterable[int], *, again: bool) -> None:
    """Store that a batch is done. `onward`: the keys of rows that need further requests after the batch.

    These rows are planned again. The other rows without an answer are planned again, too, if `again` is True; otherwise
    they are marked as tried. Replies to rows that are no longer in the input are kept, because the rows may return.
    """
    left = "EXISTS (SELECT 1 FROM answer WHERE answer.key = batched.key AND (answer.code IS NULL OR NOT retryable))"
    is_open = f"(coalesce(status, 0) = 0 OR NOT {left})"
    change = "DELETE FROM batched" if again else "UPDATE batched SET status = 0, reply = NULL"
    reply = "SELECT reply FROM batched AS sent WHERE batch = batched.batch AND custom = batched.line"
    store.change(
        (f"UPDATE batched SET reply = ({reply}) WHERE batch = ? AND key IS NULL AND reply IS NULL", [(batch.id,)]),
        (f"DELETE FROM batched WHERE batch = ? AND key IS NOT NULL AND NOT {is_open}", [(batch.id,)]),
        ("DELETE FROM batched WHERE batch = ? AND key = ?", [(batch.id, key) for key in onward]),
        (f"{change} WHERE batch = ? AND key IS NOT NULL", [(batch.id,)]),
        _written([batch.changed(state="done")]),
    )


def mark_tried(store: JobDatabase, slot: int, condition: str) -> None:
    """Mark rows as tried, so that they are sent live: rows that meet a round's `condition` and are in no batch."""
    base = slot * SLOT
    rows = f"{condition} AND NOT {IN_BATCH.format(base=base)}"
    mark = "INSERT OR IGNORE INTO batched (batch, custom, key, status)"
    store.change((f"{mark} SELECT 0, row.n + {base}, row.n + {base}, 0 FROM {join_of(slot)} WHERE {rows}", [()]))


def forget(store: JobDatabase) -> None:
    """Forget which rows were tried, because the job has finished and a later order may send them by batch."""
    store.change((f"DELETE FROM batched WHERE status = 0 AND (batch = 0 OR batch IN ({_DONE}))", [()]))


def most_cost(store: JobDatabase) -> float:
    """Return the highest possible cost of all batches whose answers are unknown."""
    return sum(batch.most for batch in open_batches(store))


def without_row(store: JobDatabase, batch: Batch) -> float:
    """Return the number of answers in a batch to rows that are no longer in the input. One of the n rows of a request
    counts as 1/n."""
    query = f"SELECT total(1.0 / among) FROM batched WHERE batch = ? AND key IS NULL AND status > 0 AND {_IS_ANSWER}"
    return round(float(store.read(query, batch.id)[0][0]), 6)


def rebind(store: JobDatabase, targets: Sequence[Target]) -> None:
    """Assign each reply that came or is awaited to the row that now asks its question. `targets`: the targets by slot.

    Rows with the same question keep their order, and the requests of a row stay together. A finished batch is read
    again if rows that had been removed from the input are back in it.
    """
    work: list[tuple[str, Iterable[Any]]] = []
    for slot, target in enumerate(targets):
        asked = f"substr(row.asked, {1 + 16 * target.prompt}, 16)"
        counted = ", ".join(map(str, target.counted))
        done = f"{_DONE} AND value ->> '$.slot' = {slot}"
        in_slot = f"{_PLANNED} BETWEEN {slot * SLOT} AND {slot * SLOT + SLOT - 1}"
        work += [
            ("DROP TABLE IF EXISTS temp.moved", [()]),
            (
                f"""CREATE TEMP TABLE moved AS
                WITH wanted AS (
                    SELECT batch, custom, asked, dense_rank() OVER (PARTITION BY asked ORDER BY {_PLANNED}) AS place
                    FROM batched WHERE {in_slot}
                ), found AS (
                    SELECT n, {asked} AS asked, row_number() OVER (PARTITION BY {asked} ORDER BY n) AS place FROM row
                    WHERE {asked} IN (SELECT asked FROM batched)
                )
                SELECT batch, custom, n + {slot * SLOT} AS key FROM wanted LEFT JOIN found USING (asked, place)""",
                [()],
            ),
            ("CREATE INDEX temp.moved_rows ON moved (batch, custom)", [()]),
            (
                f"""UPDATE batched SET key = (
                    SELECT key FROM temp.moved WHERE moved.batch = batched.batch AND moved.custom = batched.custom
                ) WHERE {in_slot}""",
                [()],
            ),
            (
                f"""UPDATE batched SET key = NULL WHERE status > 0 AND batch IN (
                    {done} AND value ->> '$.settings' NOT IN ({counted})
                )""",
                [()],
            ),
            (
                f"""UPDATE batch SET value = json_set(value, '$.state', 'fetched', '$.most', 0.0)
                WHERE id IN ({done}) AND id IN (SELECT batch FROM batched WHERE status > 0 AND key IS NOT NULL)""",
                [()],
            ),
        ]
    store.change(*work)
