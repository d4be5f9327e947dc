"""What is kept of a damaged database."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptmill.backends.protocol import Completion
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.records import SLOT, record_of
from promptmill.jobs.store.rounds import Round, store_round, stored_rounds
from promptmill.jobs.store.salvage import salvage

ROWS, SPARE = 400, 30
OUTPUT = {"names": {"answer": "answer_1"}}
SPEC = {"job_id": "a", "input": {"path": "in", "size": 5, "version": 6, "sha256": "7"}, "output": OUTPUT}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The database of a job with rows, rounds, settings, and answers."""
    path = tmp_path / "job.db"
    store = JobDatabase(path, write=True)
    store.put(spec=SPEC, task={"owner": ""}, stretches={"of": [], "rows": ROWS}, written={"x": 1})
    rows = [(n, bytes(16), None, f'{{"prompt": "row {n}"}}'.encode()) for n in range(ROWS)]
    store.change(("INSERT INTO row VALUES (?, ?, ?, ?)", rows), ("INSERT INTO chosen VALUES (2, ?)", [(5,), (6,)]))
    store.settings_id({"model": "a"})
    for id_ in (1, 2):
        store_round(store, Round(id_, "open", "first", done=id_ == 1))
    store.write([record_of(n, Completion(f"answer {n}" * 10), bytes(16)) for n in range(ROWS)])
    store.write([record_of(n + SLOT, Completion(f"other {n}")) for n in range(SPARE)])
    store.write([record_of(n + SLOT, Completion(f"new {n}")) for n in range(SPARE)], [n + SLOT for n in range(SPARE)])
    store.close()
    return path


def check(path: Path) -> tuple[int, int]:
    """Return how many rows and answers there are, which are sound; rows are all there or have to be read again."""
    store = JobDatabase(path)
    answers = store.sound_records()
    assert [one.key for one in answers] == sorted({one.key for one in answers})
    assert all(one.text in {f"answer {one.row}" * 10, f"other {one.row}", f"new {one.row}"} for one in answers)
    stored_rounds(store)
    rows, spec = list(store.rows()), store.get("spec")
    assert len(rows) in {0, ROWS}
    is_read = bool(spec and spec["output"]["names"] is not None)
    assert (store.get("stretches") is not None) is (len(rows) == ROWS)
    assert not is_read or len(rows) == ROWS
    store.close()
    return len(rows), len(answers)


def test_everything_of_a_database_without_damage_is_kept(path: Path) -> None:
    salvage(path)
    assert check(path) == (ROWS, ROWS + SPARE)
    store = JobDatabase(path)
    to_be_read = {"path": "in", "size": 0, "version": 0, "sha256": ""}
    assert store.get("spec") == {"job_id": "a", "input": to_be_read, "output": OUTPUT}
    assert store.get("stretches") == {"of": [], "rows": ROWS}, "no row counts as unchanged"
    assert store.get("task") == {"owner": ""}, "else nobody could ask for its answers"
    assert store.get("written") is None, "the next output is written as a whole"
    assert [(round_.id, round_.done) for round_ in stored_rounds(store)] == [(1, True), (2, False)]
    assert store.read("SELECT id, fingerprint FROM settings") == [(0, '{"model":"a"}')]
    assert store.read("SELECT * FROM chosen") == [(2, 5), (2, 6)]
    assert store.read("SELECT key, text FROM spare") == [(n + SLOT, f"other {n}") for n in range(SPARE)]
    store.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["in-flight", "job.db"]


def test_of_any_damaged_page_the_rest_is_kept(path: Path) -> None:
    whole = path.read_bytes()
    found = {}
    for page in range(2, len(whole) // 4096 + 1):
        at = (page - 1) * 4096
        path.write_bytes(whole[:at] + b"\xff" * 16 + whole[at + 16 :])
        salvage(path)
        found[page] = check(path)
    rows, answers = zip(*found.values(), strict=True)
    assert sum(count == ROWS for count in rows) > len(found) / 2
    assert sum(count == ROWS + SPARE for count in answers) > len(found) / 4
    assert sum(count > ROWS * 0.8 for count in answers) > len(found) - 4


@pytest.mark.parametrize("left", [100, 2048])
def test_a_database_that_was_cut_within_any_page_is_salvaged(path: Path, left: int) -> None:
    whole = path.read_bytes()
    for page in range(2, len(whole) // 4096 + 1):
        path.write_bytes(whole[: (page - 1) * 4096 + left])
        salvage(path)
        assert check(path)[1] <= ROWS + SPARE


@pytest.mark.parametrize("content", [b"", b"text" * 2000, b"SQLite format 3\0"])
def test_a_file_that_is_no_database_is_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises((DamagedError, FileNotFoundError)):
        salvage(path)
    assert path.read_bytes() == content
