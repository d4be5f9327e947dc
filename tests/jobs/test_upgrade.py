"""Databases of release 0.1.0, and of later versions whose rows are still in the input file."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptmill.jobs.store import statistics, upgrade
from promptmill.jobs.store.database import TABLES, DamagedError, JobDatabase, OldDatabaseError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.rounds import Round, stored_rounds

RELEASES = Path(__file__).parent / "releases"
KEPT = [f"kept {n}" for n in range(4)]


@pytest.fixture(params=["0.1.0", "0.1.1.dev"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """The folder of a job of an older version, beside its input."""
    work = tmp_path / "work"
    shutil.copytree(RELEASES / request.param, work)
    for file in work.rglob("*"):
        file.chmod(0o700 if file.is_dir() else 0o600)
    job = Folder(work / ".promptmill" / "out.jsonl.job")
    job.lock.touch()
    yield job
    job.close()


def change(folder: Folder, *statements: str) -> None:
    """Change the database as it is."""
    with contextlib.closing(sqlite3.connect(folder.database)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def change_value(folder: Folder, name: str, **values: Any) -> None:
    """Change a value of table `job`."""
    change(folder, f"UPDATE job SET value = json_patch(value, '{json.dumps(values)}') WHERE name = '{name}'")


def content(folder: Folder) -> dict[str, list[tuple[Any, ...]]]:
    """Return every table of the database."""
    with contextlib.closing(sqlite3.connect(folder.database)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in names}


def texts(store: JobDatabase) -> list[str]:
    """Return the answers."""
    return [record.text for record in store.sound_records() if record.code is None]


def test_a_job_that_is_run_is_upgraded_once_with_all_its_records(folder):
    before = content(folder)
    with pytest.raises(OldDatabaseError):
        JobDatabase(folder.database)
    store = folder.open()
    assert texts(store) == KEPT
    assert [record.code for record in store.sound_records()][4:] == ["bad_request"]
    names = [name for name, _ in before["job"] if name != "request"]
    assert {name for (name,) in store.read("SELECT name FROM job")} == {*names, "order"}
    assert store.row_count() == 0, "the rows are still in the input"
    schema = dict(store.read("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    assert {name: sql.replace('"', "") for name, sql in schema.items()} == TABLES
    folder.close()
    assert texts(folder.open()) == KEPT


def test_the_description_and_the_order_are_those_of_the_old_job(folder):
    old = {name: json.loads(value) for name, value in content(folder)["job"]}
    before = folder.spec, folder.order, folder.status
    folder.open()
    spec, order = folder.known_spec(), folder.order
    assert (spec, order, folder.status) == before, "as they were read without an upgrade"
    assert order is not None
    assert (spec.job_id, spec.created, spec.model) == tuple(
        old["spec"][name] for name in ("job_id", "created", "model")
    )
    assert spec.input.path == folder.path.parents[1] / "in.jsonl", "where it is now"
    assert (spec.input.format, spec.output.format, spec.is_read) == ("jsonl", "jsonl", False)
    assert order.inputs == (Path(old["request"]["input"]),)
    assert json.loads(folder.store.read("SELECT fingerprint FROM settings WHERE id = 0")[0][0]).keys() >= {"model"}


def test_a_job_that_is_read_is_upgraded_in_a_copy_with_its_rows(folder):
    before = folder.database.read_bytes()
    with folder.reading() as store:
        assert texts(store) == KEPT
        assert [json.loads(row.cells or b"")["id"] for row in store.rows()] == list(range(8))
        assert folder.spec_in(store).is_read
        copy = store.path
    assert not copy.exists()
    assert folder.database.read_bytes() == before
    (folder.path.parents[1] / "in.jsonl").unlink()
    with folder.reading() as store:
        assert (texts(store), store.row_count()) == (KEPT, 0)


def test_what_was_not_written_back_to_the_database_yet_is_part_of_the_copy(folder):
    with contextlib.closing(sqlite3.connect(folder.database)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("UPDATE answer SET attempts = 7")
        writer.commit()
        with folder.reading() as store:
            assert {record.attempts for record in store.records()} == {7}


@pytest.mark.parametrize("again", [None, "failed", "truncated", "all"])
@pytest.mark.parametrize("folder", ["0.1.1.dev"], indirect=True)
def test_an_order_that_was_interrupted_goes_on(folder, again):
    change_value(folder, "spec", again=again, round=3)
    change(folder, "UPDATE answer SET round = 2", "UPDATE answer SET round = 3 WHERE row = 4")
    store = folder.open()
    rows = "open" if again is None else f"again {again}"
    (round_,) = stored_rounds(store)
    assert round_ == Round(3, rows, "first" if again is None else rows, since=2, done=again is None)
    condition = round_.condition([0])
    found = [n for (n,) in store.read(f"SELECT key FROM answer WHERE {condition} ORDER BY key")]
    assert found == {None: [], "failed": [], "truncated": [], "all": [0, 1, 2, 3]}[again]


@pytest.mark.parametrize("folder", ["0.1.0"], indirect=True)
def test_failures_of_an_old_run_count_as_those_of_an_earlier_one(folder):
    change(folder, "UPDATE answer SET retryable = 1 WHERE row = 4")
    (round_,) = stored_rounds(folder.open())
    following = Round(round_.id + 1, "open", "first", since=round_.id)
    assert folder.store.keys(following.condition([0])) == [4]


def test_a_damaged_record_stays_damaged(folder):
    change(
        folder,
        "UPDATE answer SET text = 'other' WHERE row = 0",
        "UPDATE answer SET text = CAST(x'ff41' AS TEXT) WHERE row = 1",
        "UPDATE answer SET more = x'00' WHERE row = 2",
    )
    assert texts(folder.open()) == KEPT[3:]
    assert folder.store.drop_damaged() == 3


@pytest.mark.parametrize("folder", ["0.1.0"], indirect=True)
def test_answers_that_were_set_aside_by_release_0_1_are_spare(folder):
    change(
        folder,
        "CREATE TABLE earlier (place INTEGER PRIMARY KEY, row INTEGER, attempts INTEGER, latency_s REAL, "
        "prompt_tokens INTEGER, completion_tokens INTEGER, code TEXT, retryable INTEGER, finish_reason TEXT, "
        "text TEXT, reasoning TEXT, more TEXT, digest BLOB, checksum INTEGER)",
        "CREATE INDEX earlier_digest ON earlier (digest)",
        "INSERT INTO earlier SELECT row + 100, * FROM answer WHERE row < 2",
        "UPDATE earlier SET more = '{\"cost\":0.5}' WHERE row = 0",
    )
    store = folder.open()
    assert store.read("SELECT key, text FROM spare ORDER BY place") == [(0, "kept 0"), (1, "kept 1")]
    assert statistics.cost(store) == 0.5


@pytest.mark.parametrize("folder", ["0.1.1.dev"], indirect=True)
def test_answers_of_other_settings_keep_them(folder):
    change(
        folder,
        """INSERT INTO settings VALUES (4, '{"model": "x", "prompt_template": "y"}')""",
        "UPDATE answer SET settings = 4 WHERE row = 1",
        "INSERT INTO spare SELECT NULL, * FROM answer WHERE row = 1",
    )
    change_value(folder, "spec", settings=4, kept=[0], changed=["model"])
    store = folder.open()
    (target,) = folder.known_spec().targets
    assert (target.settings, target.kept, target.changed) == (4, (0,), ("model",))
    assert [record.settings for record in store.records()] == [0, 4, 0, 0, 0]
    assert store.read("SELECT key, settings FROM spare") == [(1, 4)]
    assert store.settings_id({"model": "x"}) == 4


def test_without_a_description_the_answers_remain(folder):
    change(
        folder, "UPDATE job SET value = '{' WHERE name IN ('spec', 'status')", "DELETE FROM job WHERE name = 'request'"
    )
    assert (folder.spec, folder.order, folder.status) == (None, None, {})
    with folder.reading() as store:
        assert texts(store) == KEPT
    assert texts(folder.open()) == KEPT


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE job",
        "ALTER TABLE answer DROP COLUMN text",
        "CREATE VIEW settings_view AS SELECT missing FROM answer",
        "CREATE TRIGGER gone AFTER DELETE ON job BEGIN DELETE FROM answer; END",
    ],
)
def test_a_database_with_other_tables_is_damaged_and_stays_as_it_is(folder, statement):
    change(folder, statement)
    before = content(folder)
    with pytest.raises(DamagedError):
        folder.open()
    assert content(folder) == before
    with pytest.raises(DamagedError), folder.reading():
        pass


def test_a_database_that_is_damaged_within_is_reported_as_such(folder):
    with contextlib.closing(sqlite3.connect(folder.database)) as database:
        ((page,),) = database.execute("PRAGMA page_size")
        ((root,),) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'answer'")
    with folder.database.open("r+b") as file:
        file.seek((root - 1) * page)
        file.write(b"\xff" * 16)
    with pytest.raises(DamagedError):
        folder.open()


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(folder, monkeypatch):
    before = content(folder)
    with monkeypatch.context() as during:
        during.setitem(TABLES, "spare", "CREATE TABLE spare (no")
        with pytest.raises(DamagedError):
            folder.open()
    assert content(folder) == before
    assert texts(folder.open()) == KEPT


def test_where_files_cannot_be_locked_a_database_is_upgraded_all_the_same(folder):
    upgrade.in_place(folder.database, has_locks=False)
    with contextlib.closing(JobDatabase(folder.database, write=True, has_locks=False)) as store:
        assert texts(store) == KEPT
