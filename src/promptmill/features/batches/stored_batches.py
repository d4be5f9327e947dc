"""The batches of a job in its database: their plan, their state at the provider, and the replies.

    batch    id → JSON: the batches, see `Batch`
    batched  the rows of the batches that have no outcome yet, with the replies to them as they arrive

A batch is stored before each step that can be billed or leaves something behind at the provider:

    planning ─▶ planned ─▶ uploaded ─▶ creating ─▶ sent ─▶ ended ─▶ fetched ─▶ done
       │                      ▲            │
    begins anew               └─ not found ┘ in the provider's list

A killed job continues with the stored state. After `creating`, it looks for the batch before it creates one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson
from pydantic import TypeAdapter, ValidationError

from promptmill.backends.batches import Reply
from promptmill.core.errors import input_error
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import PERSON, SLOT
from promptmill.jobs.store.rounds import join_of
from promptmill.jobs.store.stored import Stored, Target

State: TypeAlias = Literal["planning", "planned", "uploaded", "creating", "sent", "ended", "fetched", "done"]
IN_BATCH = "EXISTS (SELECT 1 FROM batched WHERE batched.key = row.n + {base})"
"""The condition of rows that are in a batch, or were in one that did not answer them. `base`: the key of the slot's
first row."""
HAS_REPLY = "EXISTS (SELECT 1 FROM batched WHERE batched.key = row.n + {base} AND status > 0 AND batch = {batch})"
"""The condition of rows with a reply that was not yet read."""


# the names of `promptmill.jobs.store.rounds.Awaited`
TRIED = """EXISTS (
    SELECT 1 FROM batched WHERE batched.key = row.n + {base} AND status = 0
    AND (batch = 0 OR batch IN (SELECT id FROM batch WHERE value ->> '$.state' = 'done'))
)"""
RULE = f"""EXISTS (
    SELECT 1 FROM batched JOIN batch ON batch.id = batched.batch
    WHERE batched.key = row.n + {{base}} AND batch.value ->> '$.state' != 'done' AND (
        answer.key IS NULL OR (answer.round < batch.value ->> '$.round' AND answer.settings != {PERSON})
    )
)"""
_DONE = "SELECT id FROM batch WHERE value ->> '$.state' = 'done'"


class AtProvider(Stored):
    """A batch at the provider, as far as the job knows it."""

    file_id: str = ""
    """The uploaded file."""
    since: float = 0.0
    """When the batch was created, or first may have been: Unix time."""
    id: str = ""
    """The provider's own id; `""` until it is known."""
    said: str = ""
    """The provider's own word for its state."""
    done: int | None = None
    """Finished requests, as far as the provider says."""
    expires: float | None = None
    is_cancelled: bool = False
    """Whether we asked the provider to cancel it."""
    is_guess: bool = False
    """Whether only time and size of the provider's batch say that it is ours."""
    read: tuple[str, ...] = ()
    """The provider's names of the results that were read."""


class Batch(Stored):
    """A batch of a round: requests in one file, for one model."""

    id: int
    key: str
    """Our own label, by which the provider's list is searched."""
    round: int
    slot: int = 0
    settings: int = 0
    """The id of the settings with which the requests were made."""
    state: State = "planning"
    requests: int = 0
    sha256: str = ""
    """The digest of the file of the requests."""
    most: float = 0.0
    """The highest possible cost, in dollars."""
    warms: bool = False
    """Whether its requests have the beginnings of later ones, which the provider's cache keeps for them."""
    mark: str = ""
    """The beginning of each `custom_id`: a batch of another program has others."""
    not_it: tuple[str, ...] = ()
    """The provider's ids of batches that are not this one, or no longer: full queues refused them."""
    unread: int = 0
    """Requests that may be billed although no reply to them could be read; then the results stay at the provider."""
    there: AtProvider = AtProvider()

    def file(self, folder: Path) -> Path:
        """Return the path of its requests in a job's folder."""
        return folder / f"batch-{self.id}.jsonl"

    def changed(self, **changes: Any) -> Batch:
        """Return the batch with these changes."""
        return self.model_copy(update=changes)

    def seen(self, state: State, **changes: Any) -> Batch:
        """Return the batch in this state, with these changes at the provider."""
        return self.changed(state=state, there=self.there.model_copy(update=changes))


_BATCH = TypeAdapter(Batch)


def stored_batches(store: JobDatabase, where: str = "1") -> list[Batch]:
    """Return the batches that meet a condition, in order. Damaged ones are left out."""
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


def slots(store: JobDatabase) -> set[int]:
    """Return the slots of batches that are not done."""
    return {batch.slot for batch in open_batches(store)}


def check(store: JobDatabase, job_id: str, targets: Sequence[Target]) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a batch at the provider was made with settings that do not count."""
    for batch in open_batches(store):
        is_there = batch.state != "planning"
        if is_there and (batch.slot >= len(targets) or batch.settings not in targets[batch.slot].counted):
            raise input_error(
                f"Job {job_id} has a batch at the provider that was made with other settings, and its answers "
                f"are paid. `promptmill jobs {job_id} --resume` stores them; then repeat this. Or name another "
                "output."
            )


def put(store: JobDatabase, *batches: Batch) -> None:
    """Store batches, or their new states. Raises as `JobDatabase` does."""
    store.change(_written(batches))


def _written(batches: Iterable[Batch]) -> tuple[str, list[tuple[int, str]]]:
    values = [(batch.id, orjson.dumps(batch.model_dump(exclude={"id"})).decode()) for batch in batches]
    return "INSERT OR REPLACE INTO batch VALUES (?, ?)", values


def next_id(store: JobDatabase) -> int:
    """Return the id of the next batch."""
    ((last,),) = store.read("SELECT coalesce(max(id), 0) FROM batch")
    return int(last) + 1


def add_rows(store: JobDatabase, batch: Batch, rows: Iterable[tuple[int, bytes | None]]) -> None:
    """Store rows of a batch, by their keys, each with the digest of its question."""
    values = [(batch.id, key, key, asked) for key, asked in rows]
    store.change(("INSERT INTO batched (batch, custom, key, asked) VALUES (?, ?, ?, ?)", values))


def drop(store: JobDatabase, batch: Batch) -> None:
    """Forget a batch that the provider does not have; its rows are open again."""
    rows = ("DELETE FROM batched WHERE batch = ?", [(batch.id,)])
    store.change(rows, ("DELETE FROM batch WHERE id = ?", [(batch.id,)]))


def keep_replies(store: JobDatabase, batch: Batch, replies: Sequence[Reply]) -> int:
    """Store replies to rows of a batch; of several for one row, the first counts. Return how many belong to no row."""
    unknown = 0
    with store.transaction() as connection:
        for reply in replies:
            named = reply.custom_id.removeprefix(batch.mark)
            is_ours = reply.custom_id.startswith(batch.mark) and named.isdecimal() and len(named) < 19
            custom = int(named) if is_ours else -1
            values = (reply.status, reply.body, batch.id, custom)
            changed = connection.execute(
                "UPDATE batched SET status = ?, reply = ? WHERE batch = ? AND custom = ? AND status IS NULL", values
            )
            if not changed.rowcount:
                known = connection.execute("SELECT 1 FROM batched WHERE batch = ? AND custom = ?", values[2:])
                unknown += known.fetchone() is None
    return unknown


def reply_to(store: JobDatabase, batch: Batch, key: int) -> Reply | None:
    """Return the stored reply to a row, None if there is none."""
    query = "SELECT status, reply FROM batched WHERE key = ? AND batch = ? AND status > 0"
    found = store.read(query, key, batch.id)
    return Reply(str(key), found[0][0], found[0][1]) if found else None


class Replies(NamedTuple):
    """The replies to the requests of a batch that are stored."""

    rows: int
    answers: int
    """The replies with an answer, which is billed."""
    run: int
    """The replies to requests that were run, also those that failed."""


def replies_of(store: JobDatabase, batch: Batch) -> Replies:
    """Count the stored replies of a batch."""
    figures = "count(status), coalesce(sum(status BETWEEN 200 AND 299), 0), coalesce(sum(status > 0), 0)"
    return Replies(*store.read(f"SELECT {figures} FROM batched WHERE batch = ?", batch.id)[0])


def finish(store: JobDatabase, batch: Batch, *, again: bool) -> None:
    """Note that a batch is done. Its rows without an answer may be planned `again`, or stay marked as tried.

    Replies to rows that the input no longer has are kept, because the rows may come back.
    """
    left = "EXISTS (SELECT 1 FROM answer WHERE answer.key = batched.key AND (answer.code IS NULL OR NOT retryable))"
    is_open = f"(coalesce(status, 0) = 0 OR NOT {left})"
    change = "DELETE FROM batched" if again else "UPDATE batched SET status = 0, reply = NULL"
    store.change(
        (f"DELETE FROM batched WHERE batch = ? AND key IS NOT NULL AND NOT {is_open}", [(batch.id,)]),
        (f"{change} WHERE batch = ? AND key IS NOT NULL", [(batch.id,)]),
        _written([batch.changed(state="done")]),
    )


def mark_tried(store: JobDatabase, slot: int, condition: str) -> None:
    """Mark the rows that meet a condition and are in no batch: they are sent live. `condition` is a round's."""
    base = slot * SLOT
    rows = f"{condition} AND NOT {IN_BATCH.format(base=base)}"
    mark = "INSERT OR IGNORE INTO batched (batch, custom, key, status)"
    store.change((f"{mark} SELECT 0, row.n + {base}, row.n + {base}, 0 FROM {join_of(slot)} WHERE {rows}", [()]))


def forget(store: JobDatabase) -> None:
    """Forget which rows a batch did not answer: the job has finished, and a later order may send them by batch."""
    store.change((f"DELETE FROM batched WHERE status = 0 AND (batch = 0 OR batch IN ({_DONE}))", [()]))


def most_cost(store: JobDatabase) -> float:
    """Return the highest possible cost of the batches whose answers are not known."""
    return sum(batch.most for batch in open_batches(store))


def without_row(store: JobDatabase, batch: Batch) -> int:
    """Return the number of answers in a batch whose rows the input no longer has."""
    query = "SELECT count(*) FROM batched WHERE batch = ? AND key IS NULL AND status BETWEEN 200 AND 299"
    return int(store.read(query, batch.id)[0][0])


def rebind(store: JobDatabase, targets: Sequence[Target]) -> None:
    """Give each reply, or awaited reply, the row that asks its question now. `targets`: by slot.

    Rows with the same question keep their order. A batch that was done is read again if rows of it have come back.
    """
    work: list[tuple[str, Iterable[Any]]] = []
    for slot, target in enumerate(targets):
        asked = f"substr(row.asked, {1 + 16 * target.prompt}, 16)"
        counted = ", ".join(map(str, target.counted))
        done = f"{_DONE} AND value ->> '$.slot' = {slot}"
        in_slot = f"custom BETWEEN {slot * SLOT} AND {slot * SLOT + SLOT - 1}"
        work += [
            ("DROP TABLE IF EXISTS temp.moved", [()]),
            (
                f"""CREATE TEMP TABLE moved AS
                WITH wanted AS (
                    SELECT batch, custom, asked, row_number() OVER (PARTITION BY asked ORDER BY custom, batch) AS place
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
