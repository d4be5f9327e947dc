from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptmill.backends.protocol import Call, Completion, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.run.unanswered_rows import StoreSink, Taken
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.records import JobCounts
from promptmill.jobs.store.spec import FailureLimit


class World:
    """A sink over a database."""

    def __init__(self, path: Path) -> None:
        self.reasons: list[PromptmillError] = []
        self.no_room: list[PromptmillError] = []
        self.store = JobStore(path / "job.db", create=True)
        self.counts = JobCounts()

    def sink(self, limit: str | None = None, recorded: Callable[[Sequence[int]], None] | None = None) -> StoreSink:
        """Return a sink."""
        return StoreSink(
            self.store,
            self.counts,
            Call(),
            self.reasons.append,
            self.no_room.append,
            failure_limit=None if limit is None else FailureLimit.parse(limit),
            recorded=recorded,
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty database."""
    found = World(tmp_path)
    yield found
    found.store.close()


async def returns(sink: StoreSink, row: int, outcome: Any) -> bool:
    """Put an outcome; return whether it was taken, False when the run is to end by it."""
    putting = asyncio.ensure_future(sink.put(row, outcome))
    await asyncio.wait({putting})
    return not putting.cancelled()


def failure(code: Code, attempts: int) -> Failure:
    """Return a failure."""
    return Failure(PromptmillError(code, "why"), attempts)


async def test_a_row_without_room_in_the_budget_cancels_no_other_and_is_kept_only_if_it_cost_something(
    world: World,
) -> None:
    sink = world.sink("0")
    assert await returns(sink, 0, failure(Code.BUDGET, 0))
    assert await returns(sink, 1, replace(failure(Code.BUDGET, 2), cost=0.5))
    assert await returns(sink, 2, Completion("answer"))
    await sink.aclose()
    refused, answered = world.store.record(1), world.store.record(2)
    assert refused is not None
    assert refused.outcome().cost == 0.5
    assert world.store.record(0) is None
    assert answered is not None
    assert (len(world.no_room), world.reasons) == (2, [])


async def test_outcomes_are_written_soon_and_a_full_batch_at_once(world: World) -> None:
    written = asyncio.Event()
    sink = world.sink(recorded=lambda rows: written.set() if 99 in rows else None)
    for row in range(100):
        await sink.put(row, Completion(f"answer {row}"))
    assert world.counts.done == 64, "a full batch does not wait"
    await written.wait()
    record = world.store.record(99)
    assert record is not None
    assert record.text == "answer 99"


@pytest.mark.parametrize(
    ("code", "attempts", "journalled"),
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
async def test_only_what_is_the_rows_own_affair_is_journalled(
    world: World, code: Code, attempts: int, journalled: bool
) -> None:
    sink = world.sink()
    assert await returns(sink, 0, failure(code, attempts)) is journalled
    await sink.aclose()
    assert (world.counts.done, world.counts.failed) == ((1, 1) if journalled else (0, 0))
    assert [error.code for error in world.reasons] == ([] if journalled else [code])


@pytest.mark.parametrize("code", [Code.UNAUTHORIZED, Code.INSUFFICIENT_QUOTA, Code.TLS, Code.BAD_REQUEST])
async def test_what_the_backend_says_concerns_all_stops_the_job(world: World, code: Code) -> None:
    refused = Failure(PromptmillError(code, "refused"), 1, concerns_all=True)
    assert not await returns(world.sink(), 0, refused)
    assert [error.code for error in world.reasons] == [code]


async def test_a_row_that_was_sent_only_by_an_earlier_run_was_not_sent(world: World) -> None:
    sink = world.sink()
    await sink.put(0, failure(Code.UNREACHABLE, 3))
    await sink.aclose()
    again, later = world.sink(), world.sink()
    again.taken[0] = later.taken[0] = Taken(attempts=3)
    assert not await returns(again, 0, failure(Code.UNREACHABLE, 3))
    assert await returns(later, 0, failure(Code.UNREACHABLE, 4))


async def test_a_later_record_replaces_an_earlier_one(world: World) -> None:
    sink = world.sink()
    await sink.put(0, failure(Code.TIMEOUT, 3))
    await sink.put(1, Completion("one"))
    await sink.put(0, Completion("better", attempts=4))
    await sink.aclose()
    counts = world.store.counts()
    assert (counts.done, counts.failed, counts.codes, counts.requests) == (2, 0, {}, 5)
    record = world.store.record(0)
    assert record is not None
    assert record.text == "better"


async def test_the_earlier_failures_of_a_batch_are_read_at_once(world: World) -> None:
    rows = range(10)
    sink = world.sink()
    for row in rows:
        await sink.put(row, replace(failure(Code.TIMEOUT, 1), cost=0.5))
    await sink.aclose()
    reads: list[str] = []
    read = world.store.read

    def counted(query: str, *rest: Any, **more: Any) -> Any:
        reads.append(query)
        return read(query, *rest, **more)

    world.store.read = counted
    again = world.sink()
    again.taken.update({row: Taken(attempts=1) for row in rows})
    for row in rows:
        await again.put(row, Completion("better", cost=1.0, attempts=2))
    await again.aclose()
    assert len(reads) == 1
    assert {record.outcome().cost for record in world.store.all_records()} == {1.5}


async def test_where_a_commit_waits_for_the_disk_puts_wait_and_share_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.close()
    world.store = JobStore(tmp_path / "job.db", create=True, has_locks=False)
    commits: list[int] = []
    write = world.store.write

    def counted(records: Any, replaced: Any = ()) -> None:
        commits.append(len(records))
        write(records, replaced)

    world.store.write = counted
    assert world.store.waits_for_disk
    sink = world.sink()
    await asyncio.gather(*(sink.put(row, Completion(f"answer {row}")) for row in range(40)))
    assert world.counts.done == 40
    assert len(world.store.all_records()) == 40
    await sink.aclose()
    assert sum(commits) == 40
    assert len(commits) <= 3
    world.store.close()


async def test_too_many_failures_end_the_job_but_are_kept(world: World) -> None:
    sink = world.sink("2")
    for row in range(3):
        assert await returns(sink, row, failure(Code.BAD_REQUEST, 1))
    await sink.aclose()
    assert world.counts.failed == 3
    assert "3 of 3 rows failed, more than `max_failures` allows. The last one: why" in world.reasons[0].message
