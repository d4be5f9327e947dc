"""The database of one job: what goes in comes out, whatever happens to the file."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path

import pytest

from promptmill.backends.protocol import Completion, Outcome, Usage
from promptmill.core.feature import ways
from promptmill.files import disk
from promptmill.jobs.store import binding, rounds
from promptmill.jobs.store.database import TABLES, DamagedError, JobDatabase, _are_of_ways
from promptmill.jobs.store.records import record_of

ANSWER = Completion('h\u00e4llo "x"\n\u2028\0', "length", Usage(3, 4), "hm", ({"id": "1"},), attempts=2, latency_s=0.25)


def fill(store: JobDatabase, *outcomes: Outcome) -> None:
    """Record outcomes, one per row."""
    store.write([record_of(row, outcome, bytes([row % 256] * 16)) for row, outcome in enumerate(outcomes)])


def test_a_latency_at_the_edge_of_a_page_and_every_row_are_read_in_order(store):
    store.write([record_of(key, Completion(f"{key}")) for key in range(1000, -1, -1)])
    assert [record.key for record in store.records()] == list(range(1001))
    assert [record.key for record in store.records(998)] == [998, 999, 1000]
    assert [record.key for record in store.page(3, "key <= 5", 10)] == [3, 4, 5]


def test_the_log_does_not_grow_without_end(store, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.store.database._WAL_CHECKPOINT", 1 << 16)
    monkeypatch.setattr("promptmill.jobs.store.database._WAL_TRUNCATE", 1 << 18)
    largest = 0
    for at in range(400):
        store.write([record_of(key, Completion("x" * 500)) for key in range(at * 16, at * 16 + 16)])
        if at % 20 == 0:
            store.sync()
        largest = max(largest, store.path.with_name("job.db-wal").stat().st_size)
    assert not store.waits_for_disk
    assert largest < 1 << 20
    assert len(store.sound_records()) == 6400


def test_what_is_no_database_of_a_job_is_damaged_or_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        JobDatabase(tmp_path / "gone.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(FileNotFoundError):
        JobDatabase(tmp_path / "empty.db")
    (tmp_path / "text.db").write_text("text" * 2000)
    with pytest.raises(DamagedError):
        JobDatabase(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE answer (row INTEGER)")
    other.close()
    for write in (True, False):
        with pytest.raises(DamagedError):
            JobDatabase(tmp_path / "other.db", write=write)


PLAIN = "CREATE TABLE lake (id INTEGER PRIMARY KEY, value TEXT NOT NULL)"


def test_the_plain_tables_of_a_missing_feature_stay(store):
    tables = {
        "lake": PLAIN,
        "fish": "CREATE TABLE fish (lake INTEGER, n INTEGER, PRIMARY KEY (lake, n)) WITHOUT ROWID",
        "fish_rows": "CREATE INDEX fish_rows ON fish (n)",
    }
    for _ in range(2):
        store.add(tables)
    store.change(("INSERT INTO lake VALUES (1, 'a')", [()]))
    store.close()
    for write in (True, False):
        with contextlib.closing(JobDatabase(store.path, write=write)) as opened:
            assert opened.added == tables
            assert opened.read("SELECT * FROM lake") == [(1, "a")]
            assert not rounds.is_empty(opened)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER x AFTER INSERT ON answer BEGIN DELETE FROM answer; END",
        "CREATE TRIGGER x AFTER INSERT ON lake BEGIN DELETE FROM answer; END",
        "CREATE VIEW x AS SELECT * FROM answer",
        "CREATE VIRTUAL TABLE x USING fts5(a)",
        "CREATE TABLE x (a, b AS (zeroblob(1000)))",
        "CREATE TABLE x (a CHECK (length(a)))",
        "CREATE TABLE x (a DEFAULT (zeroblob(1000)))",
        "CREATE INDEX x ON answer (text)",
        "CREATE UNIQUE INDEX x ON lake (value)",
        "CREATE INDEX x ON lake (upper(value))",
    ],
)
def test_a_file_with_another_schema_is_refused(store, statement):
    store.add({"lake": PLAIN, "x": statement})
    store.close()
    for write in (True, False):
        with pytest.raises(DamagedError):
            JobDatabase(store.path, write=write)


@pytest.mark.features("batches")
def test_a_table_of_a_known_way_is_as_the_way_creates_it(store):
    store.add({"batch": "CREATE TABLE batch (id INTEGER PRIMARY KEY)"})
    store.close()
    with pytest.raises(DamagedError):
        JobDatabase(store.path)


def test_no_two_ways_have_tables_of_the_same_name():
    names = [*TABLES, *(name for way in ways().values() for name in way.tables)]
    assert len({*names}) == len(names)
    assert all(_are_of_ways(way.tables) for way in ways().values())


def test_what_a_kill_left_of_a_reading_is_gone_for_the_next_writer(store):
    binding.begin(store)
    store.close()
    for write, expected in ((False, 1), (True, 0)):
        with contextlib.closing(JobDatabase(store.path, write=write)) as opened:
            assert opened.read("SELECT count(*) FROM sqlite_master WHERE name = 'row_next'") == [(expected,)]


def test_a_record_that_is_not_what_was_written_is_not_sound(store):
    fill(store, ANSWER, ANSWER, ANSWER)
    for column, value in [
        ("text", "b"),
        ("finish_reason", "stop"),
        ("latency_s", 0.5),
        ("more", "{}"),
        ("code", "a"),
    ]:
        fill(store, ANSWER, ANSWER, ANSWER)
        with sqlite3.connect(store.path) as other:
            other.execute(f"UPDATE answer SET {column} = ? WHERE key = 1", (value,))
        other.close()
        assert store.record(1) is None, column
        assert store.drop_damaged() == 1
        assert [record.key for record in store.sound_records()] == [0, 2]


def test_a_text_that_is_not_utf_8_is_damage_of_its_record_alone(store):
    fill(store, ANSWER, ANSWER)
    store._connection.execute("UPDATE answer SET text = CAST(x'ff41' AS TEXT) WHERE key = 1")
    assert [(record.row, record.text, record.is_sound) for record in store.records()] == [
        (0, ANSWER.text, True),
        (1, "\ufffdA", False),
    ]
    assert store.drop_damaged() == 1


def test_a_full_disk_loses_nothing_that_was_written(store):
    fill(store, ANSWER)
    ((size,),) = store._connection.execute("PRAGMA page_count")
    store._connection.execute(f"PRAGMA max_page_count={size}")
    with pytest.raises(OSError, match="no space left") as full:
        store.write([record_of(key, Completion("x" * 5000)) for key in range(1, 9)])
    assert full.value.filename == str(store.path)
    store._connection.execute("PRAGMA max_page_count=100000")
    store.write([record_of(9, ANSWER)])
    assert [record.key for record in store.sound_records()] == [0, 9]


def test_only_a_temporary_database_is_never_synced(tmp_path):
    for is_temporary, syncs in ((True, 0), (False, 1)):
        path = tmp_path / f"{is_temporary}.db"
        with contextlib.closing(JobDatabase(path, write=True, is_temporary=is_temporary)) as store:
            assert store.read("PRAGMA synchronous") == [(syncs,)]


def test_a_database_is_opened_where_memory_cannot_be_shared_and_back(tmp_path, monkeypatch):
    for shares in (True, False, True):
        monkeypatch.setattr(disk, "can_share_memory", lambda _folder, shares=shares: shares)
        store = JobDatabase(tmp_path / "job.db", write=True)
        assert store.waits_for_disk is not shares
        store.write([record_of(int(shares), ANSWER)])
        store.close()
    store = JobDatabase(tmp_path / "job.db")
    assert len(store.sound_records()) == 2
    store.close()


def test_a_network_file_system_has_no_shared_memory(monkeypatch):
    if sys.platform != "linux":
        pytest.skip("others do not say")
    mounts = [
        "22 1 0:20 / / rw - ext4 /dev/sda rw",
        "23 22 0:21 / /home rw - nfs4 server:/home rw",
        "24 22 0:22 / /a\\040b rw shared:1 - fuse.sshfs x rw",
    ]
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "\n".join(mounts))
    found = {name: disk.can_share_memory(Path(name)) for name in ("/tmp", "/home/me", "/homes", "/a b/c")}
    assert found == {"/tmp": True, "/home/me": False, "/homes": True, "/a b/c": False}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "long",
    [
        Completion("a" * (3 << 20)),
        Completion("a", reasoning="b" * (3 << 20)),
        Completion("", tool_calls=({"function": {"name": "f", "arguments": "a" * (3 << 20)}},)),
    ],
)
def test_a_page_of_long_texts_is_short_and_the_pages_together_have_all(store, long):
    fill(store, *[long] * 4, Completion("b"), Completion("c"))
    assert [record.key for record in store.page(0)] == [0, 1]
    assert [record.key for record in store.records()] == list(range(6))
