"""A round that sends requests: open rows are taken in order, and outcomes are recorded in batches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingested import Ingested
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.files import disk
from promptmill.jobs.run.live import RowSource
from promptmill.jobs.run.open_rows import OpenRow, OpenRows
from promptmill.jobs.run.store_sink import StoreSink
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.order import FailureLimit
from promptmill.jobs.store.records import SLOT, Provenance, record_of
from promptmill.jobs.store.rounds import Round
from promptmill.jobs.store.statistics import JobCounts

Ingest = Callable[..., Ingested]


class World:
    """A sink over a database."""

    def __init__(self, store: JobDatabase) -> None:
        self.no_room: list[PromptmillError] = []
        self.store = store
        self.counts = JobCounts()
        self.call = Call()

    def sink(
        self,
        limit: str | None = None,
        recorded: Callable[[Sequence[int]], None] | None = None,
        made: Sequence[Provenance] = (Provenance(),),
    ) -> StoreSink:
        """Return a sink."""
        return StoreSink(
            self.store,
            self.counts,
            self.call,
            self.no_room.append,
            failure_limit=None if limit is None else FailureLimit.parse(limit),
            recorded=recorded,
            made=made,
        )

    def source(self, job: Ingested, sink: StoreSink, rows: str = "open", **options: Any) -> RowSource:
        """Return a source of the rows of a job that meet a rule in round 5."""
        targets = options.pop("targets", (Target(),))
        round_ = Round(5, rows, "first", tuple(range(len(targets))), since=4)
        requests = [job.requests for _ in targets]
        return RowSource(OpenRows(job.store, round_, targets, requests, **options), sink, self.call)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty database."""
    found = World(JobDatabase(tmp_path / "job.db", write=True))
    yield found
    found.store.close()


@pytest.fixture
def rows(ingested: Ingest, tmp_path: Path) -> Ingested:
    """Rows 0 to 9999, but line 5 is blank and line 6 is broken."""
    lines = [json.dumps({"prompt": f"prompt {at}", "carried": "x" * 100}) for at in range(10_000)]
    lines[5], lines[6] = " ", "{"
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    return ingested("in.jsonl")


async def keys(source: RowSource, n: int = 100) -> list[int]:
    """Take everything."""
    found: list[int] = []
    while requests := await source.take(n):
        assert len(requests) <= n
        found += [request.key for request in requests]
    assert await source.take(n) == []
    await source.aclose()
    return found


@pytest.mark.thorough
async def test_rows_come_in_order_and_broken_ones_fail_without_a_request(rows):
    world = World(rows.store)
    sink = world.sink()
    assert await keys(world.source(rows, sink)) == [at for at in range(10_000) if at not in {5, 6}]
    await sink.commits.aclose()
    (record,) = rows.store.sound_records()
    assert (record.row, record.code, record.text[:6]) == (6, Code.INVALID_INPUT, "line 7")


@pytest.mark.thorough
async def test_answered_rows_are_left_out_and_retryable_failures_bring_their_attempts(rows):
    world = World(rows.store)
    failures = [failure(Code.TIMEOUT, 3), failure(Code.BAD_REQUEST, 1)]
    outcomes: list[Outcome] = [Completion("a"), *failures, Completion("b", "length")]
    rows.store.write([record_of(row, outcome) for row, outcome in enumerate(outcomes)])
    source = world.source(rows, world.sink())
    requests = await source.take(2)
    assert [(request.key, request.attempts) for request in requests] == [(1, 3), (4, 0)]
    assert [request.conversation.as_messages()[0]["content"] for request in requests] == ["prompt 1", "prompt 4"]
    await source.aclose()
    again = world.source(rows, sink := world.sink(), "again truncated")
    (request,) = await again.take(10)
    assert (request.key, request.attempts, sink.taken[3].answered) == (3, 0, True)
    await again.aclose()


@pytest.mark.thorough
async def test_no_row_is_taken_once_there_are_enough(rows):
    enough: list[int] = []
    world = World(rows.store)
    source = world.source(rows, world.sink(), enough=lambda: bool(enough))
    assert len(await source.take(3)) == 3
    enough.append(1)
    assert await source.take(3) == []
    await source.aclose()


@pytest.mark.thorough
async def test_the_slots_of_a_row_are_sent_one_after_the_other(rows):
    world = World(rows.store)
    rows.store.write([record_of(1, Completion("a")), record_of(SLOT + 2, Completion("b"), made=Provenance(settings=7))])
    targets = (Target(name="x"), Target(name="y", settings=7))
    sink = world.sink(made=(Provenance(), Provenance(settings=7)))
    found = await keys(world.source(rows, sink, targets=targets, among=range(5)))
    assert found == [0, SLOT, SLOT + 1, 2, 3, SLOT + 3, 4, SLOT + 4]
    assert len(await keys(world.source(rows, sink, targets=targets))) == 2 * 9998 - 2
    await sink.commits.aclose()
    assert [(record.row, record.slot, record.settings) for record in rows.store.records(where="code IS NOT NULL")] == [
        (6, 0, 0),
        (6, 1, 7),
    ]


@pytest.mark.thorough
async def test_an_answer_of_other_settings_is_no_answer_of_a_row(rows):
    world = World(rows.store)
    rows.store.write([record_of(row, Completion("a"), made=Provenance(settings=row)) for row in range(4)])
    source = world.source(rows, world.sink(), targets=(Target(settings=1, kept=(3,)),))
    assert [request.key for request in await source.take(3)] == [0, 2, 4]
    await source.aclose()


async def test_a_database_that_cannot_be_read_ends_the_run(rows):
    def read(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    world = World(rows.store)
    rows.store.read = read
    source = world.source(rows, world.sink())
    with pytest.raises(PromptmillError, match="cannot be read: input/output error") as raised:
        await source.take(10)
    await source.aclose()
    assert raised.value.code is Code.STORAGE


async def test_a_damaged_database_is_left_to_the_run_which_repairs_it(rows, monkeypatch):
    def damaged(*_: Any, **__: Any) -> Any:
        raise DamagedError("malformed")

    world, found = World(rows.store), asyncio.Event()
    sink = world.sink()
    sink.commits.on_error = found.set
    monkeypatch.setattr(world.store, "write", damaged)
    await put(sink, 0, Completion("a"))
    await sink.commits.aclose()
    await asyncio.sleep(0)
    assert found.is_set()
    assert not await returns(sink, 1, Completion("b"))
    assert (type(sink.commits.error), world.counts.done) == (DamagedError, 0)
    monkeypatch.setattr(world.store, "read", damaged)
    source = world.source(rows, sink)
    with pytest.raises(DamagedError):
        await source.take(10)
    await source.aclose()


async def test_large_rows_are_in_flight_only_up_to_some_bytes(ingested, tmp_path):
    texts = ["a", "b" * 40_000, "c" * 40_000, "d", "e" * 40_000]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    job = ingested("in.jsonl")
    world = World(job.store)
    sink = world.sink()
    source = world.source(job, sink, held_bytes=50_000)
    assert [request.key for request in await source.take(10)] == [0, 1]
    waiting = asyncio.ensure_future(source.take(10))
    await asyncio.sleep(0)
    assert not waiting.done()
    await put(sink, 1, Completion("b"))
    assert [request.key for request in await waiting] == [2, 3]
    await put(sink, 2, Completion("c"))
    assert [request.key for request in await source.take(10)] == [4]
    await source.aclose()
    await sink.commits.aclose()


async def put(sink: StoreSink, row: int, outcome: Outcome) -> None:
    """Put an outcome, and wait as the driver does."""
    if (taken := sink.put(row, outcome)) is not None:
        await taken


async def returns(sink: StoreSink, row: int, outcome: Any) -> bool:
    """Put an outcome; return whether it was taken, False when the run is to end by it."""
    return await refusal(sink, row, outcome) is None


async def refusal(sink: StoreSink, row: int, outcome: Any) -> BaseException | None:
    """Put an outcome; return the error by which the run is to end, None if the outcome was taken."""
    try:
        await put(sink, row, outcome)
    except (PromptmillError, DamagedError, asyncio.CancelledError) as error:
        return error
    return None


def failure(code: Code, attempts: int) -> Failure:
    """Return a failure."""
    return Failure(PromptmillError(code, "why"), attempts)


def taken(attempts: int = 0, *, answered: bool = False) -> OpenRow:
    """Return a row that was sent before."""
    return OpenRow(0, 0, None, None, b"{}", attempts, answered=answered)


async def test_a_row_without_room_in_the_budget_cancels_no_other_and_is_kept_only_if_it_cost_something(world):
    sink = world.sink("0")
    assert await returns(sink, 0, failure(Code.BUDGET, 0))
    assert await returns(sink, 1, replace(failure(Code.BUDGET, 2), cost=0.5))
    assert await returns(sink, 2, Completion("answer"))
    await sink.commits.aclose()
    refused, answered = world.store.record(1), world.store.record(2)
    assert refused is not None
    assert refused.outcome().cost == 0.5
    assert world.store.record(0) is None
    assert answered is not None
    assert len(world.no_room) == 2


async def test_outcomes_are_written_soon_and_a_full_batch_at_once(world):
    written = asyncio.Event()
    sink = world.sink(recorded=lambda rows: written.set() if 99 in rows else None)
    for row in range(100):
        await put(sink, row, Completion(f"answer {row}"))
    assert world.counts.done == 64, "a full batch does not wait"
    await written.wait()
    record = world.store.record(99)
    assert record is not None
    assert record.text == "answer 99"


@pytest.mark.parametrize(
    ("code", "attempts", "recorded"),
    [
        (Code.UNAUTHORIZED, 1, True),
        (Code.INSUFFICIENT_QUOTA, 2, True),
        (Code.SHUTDOWN, 1, False),
        (Code.REPLACED, 0, False),
        (Code.UNREACHABLE, 0, False),
        (Code.RATE_LIMITED, 0, False),
        (Code.NAME_RESOLUTION, 0, False),
        (Code.UNREACHABLE, 3, True),
        (Code.RATE_LIMITED, 5, True),
        (Code.TIMEOUT, 1, True),
        (Code.INVALID_INPUT, 0, True),
        (Code.INVALID_IMAGE, 0, True),
        (Code.BAD_REQUEST, 1, True),
        (Code.CONTENT_FILTER, 1, True),
    ],
)
async def test_only_what_is_the_rows_own_fault_is_recorded(world, code, attempts, *, recorded):
    sink = world.sink()
    error = await refusal(sink, 0, failure(code, attempts))
    assert getattr(error, "code", None) == (None if recorded else code)
    await sink.commits.aclose()
    assert (world.counts.done, world.counts.failed) == ((1, 1) if recorded else (0, 0))


async def test_a_row_that_was_sent_only_by_an_earlier_run_was_not_sent(world):
    sink = world.sink()
    await put(sink, 0, failure(Code.UNREACHABLE, 3))
    await sink.commits.aclose()
    again, later = world.sink(), world.sink()
    again.taken[0] = later.taken[0] = taken(3)
    assert not await returns(again, 0, failure(Code.UNREACHABLE, 3))
    assert await returns(later, 0, failure(Code.UNREACHABLE, 4))


async def test_where_a_commit_waits_for_the_disk_puts_wait_and_share_it(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "can_share_memory", lambda _folder: False)
    world = World(JobDatabase(tmp_path / "job.db", write=True))
    commits: list[int] = []
    write = world.store.write

    def counted(records: Any, replaced: Any = (), *changes: Any) -> None:
        commits.append(len(records))
        write(records, replaced, *changes)

    world.store.write = counted
    assert world.store.waits_for_disk
    sink = world.sink()
    await asyncio.gather(*(put(sink, row, Completion(f"answer {row}")) for row in range(40)))
    assert world.counts.done == 40
    assert len(world.store.sound_records()) == 40
    await sink.commits.aclose()
    assert sum(commits) == 40
    assert len(commits) <= 3
    world.store.close()


async def test_a_record_has_the_question_of_its_row_and_the_note_of_its_slot(world):
    sink = world.sink(made=(Provenance(1, 5), Provenance(2, 5, ["model"])))
    for key in (3, SLOT + 3):
        sink.taken[key] = taken()._replace(n=3, slot=key // SLOT, asked=bytes([key // SLOT] * 16))
        await put(sink, key, Completion("a"))
    await sink.commits.aclose()
    found = [(one.row, one.slot, one.asked, one.settings, one.round) for one in world.store.sound_records()]
    assert found == [(3, 0, bytes(16), 1, 5), (3, 1, bytes([1] * 16), 2, 5)]
    assert not sink.taken


async def test_an_answer_that_is_replaced_is_kept_as_spare(world):
    sink = world.sink()
    await put(sink, 0, Completion("old"))
    await sink.commits.aclose()
    sink.taken[0] = taken(answered=True)
    await put(sink, 0, Completion("new"))
    await sink.commits.aclose()
    assert [record.text for record in world.store.sound_records()] == ["new"]
    assert world.store.read("SELECT text FROM spare") == [("old",)]


async def test_a_database_that_cannot_be_written_stops_the_job(world, monkeypatch):
    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.store, "write", write)
    sink = world.sink()
    assert await returns(sink, 0, Completion("a"))
    await sink.commits.aclose()
    await asyncio.sleep(0)
    assert not await returns(sink, 1, Completion("b"))
    assert isinstance(sink.commits.error, PromptmillError)
    assert (sink.commits.error.code, world.counts.done) == (Code.STORAGE, 0)
