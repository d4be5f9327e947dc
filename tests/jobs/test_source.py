from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptmill.backends.protocol import Completion, Failure
from promptmill.backends.rows import RowReader
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs.files.disk import LineRange, RandomFile
from promptmill.jobs.run.unanswered_rows import FileSource, Rows, Taken
from promptmill.jobs.store.answers import RETRYABLE, JobStore
from promptmill.jobs.store.records import record_of


class World:
    """An input with a database beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settled: dict[int, Failure] = {}
        self.reasons: list[PromptmillError] = []
        self.store = JobStore(path / "job.db", create=True)
        self.taken: dict[int, Taken] = {}

    def answer(self, row: int, outcome: Any) -> None:
        """Record an outcome."""
        self.store.write([record_of(row, outcome)])

    def source(self, limit: int | None = None, guard: Any = lambda: None) -> FileSource:
        """Return a source over the input."""
        self.file = RandomFile(self.path / "in.jsonl")
        rows = Rows(
            LineRange(self.file), self.path / "in.jsonl", RowReader("jsonl"), self.store, RETRYABLE, limit, guard
        )

        async def settle(row: int, outcome: Any) -> None:
            self.settled[row] = outcome

        return FileSource(rows, self.taken, settle, self.reasons.append)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Rows 0 to 3999, but line 5 is blank and line 6 is broken."""
    lines = [json.dumps({"prompt": f"prompt {at}", "carried": "x" * 100}) for at in range(4000)]
    lines[5], lines[6] = " ", "{"
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    found = World(tmp_path)
    yield found
    found.store.close()
    found.file.close()


async def keys(source: FileSource, n: int = 100) -> list[int]:
    """Take everything."""
    found: list[int] = []
    while requests := await source.take(n):
        assert len(requests) <= n
        found += [request.key for request in requests]
    assert await source.take(n) == []
    await source.aclose()
    return found


async def test_rows_come_in_order_and_wrong_ones_are_settled(world: World) -> None:
    source = world.source()
    assert await keys(source) == [at for at in range(4000) if at not in {5, 6}]
    assert list(world.settled) == [6]
    assert "line 7" in str(world.settled[6].error)
    assert source.rows == 3999


async def test_answered_rows_are_skipped_and_retryable_failures_bring_their_attempts(world: World) -> None:
    world.answer(0, Completion("a"))
    world.answer(1, Failure(PromptmillError(Code.TIMEOUT, ""), 3))
    world.answer(2, Failure(PromptmillError(Code.BAD_REQUEST, ""), 1))
    source = world.source()
    requests = await source.take(3)
    assert [(request.key, request.attempts) for request in requests] == [(1, 3), (3, 0), (4, 0)]
    content = source.file.path.read_bytes()
    assert content == (world.path / "in.jsonl").read_bytes()
    rows = [content[row.offset : row.offset + row.length] for request in requests if (row := request.row)]
    assert [json.loads(row)["prompt"] for row in rows] == ["prompt 1", "prompt 3", "prompt 4"]
    await source.aclose()


async def test_a_limit_counts_rows_not_lines(world: World) -> None:
    source = world.source(limit=8)
    assert await keys(source) == [0, 1, 2, 3, 4, 7, 8]
    assert source.rows == 8


async def test_a_file_that_is_not_what_it_was_ends_the_reading(world: World, closing: Any) -> None:
    import asyncio

    def guard() -> None:
        raise input_error("changed")

    source = closing(world.source(guard=guard))
    with pytest.raises(asyncio.CancelledError):
        await source.take(10)
    assert [error.message for error in world.reasons] == ["changed"]
