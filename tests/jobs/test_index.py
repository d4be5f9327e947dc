from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptmill.jobs.disk import RandomFile
from promptmill.jobs.index import Index, entries


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RandomFile]:
    """An empty file."""
    found = RandomFile(tmp_path / "index", writable=True)
    yield found
    found.close()


def test_entries_come_back_in_any_order(file: RandomFile) -> None:
    index, chance = Index(file), random.Random(1)
    wanted = {chance.randrange(500_000): at + 1 for at in range(5000)}
    for row, entry in wanted.items():
        index.set(row, entry)
    assert all(index.get(row) == entry for row, entry in wanted.items())
    index.flush()
    assert all(entries(file, row, 1)[0] == entry for row, entry in wanted.items())


def test_rows_without_an_entry_are_zero_also_beyond_the_end(file: RandomFile) -> None:
    index = Index(file)
    index.set(3, 1 << 63 | 5)
    index.flush()
    assert list(entries(file, 2, 3)) == [0, 1 << 63 | 5, 0]
    assert list(entries(file, 10_000_000, 2)) == [0, 0]
    assert index.get(10_000_000) == 0


def test_others_see_changes_after_flush(file: RandomFile) -> None:
    index = Index(file)
    index.set(0, 9)
    assert entries(file, 0, 1)[0] == 0
    index.flush()
    assert entries(file, 0, 1)[0] == 9
    index.clear()
    assert entries(file, 0, 1)[0] == index.get(0) == 0
