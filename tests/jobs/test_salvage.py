"""What is kept of a damaged database, and how its job goes on."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from half_done import answers
from promptmill.backends.protocol import Completion
from promptmill.core.errors import input_error
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
    """Return how many rows and answers there are, which are sound. A job without all of its rows reads its input."""
    store = JobDatabase(path)
    answers = store.sound_records()
    assert [one.key for one in answers] == sorted({one.key for one in answers})
    assert all(one.text in {f"answer {one.row}" * 10, f"other {one.row}", f"new {one.row}"} for one in answers)
    stored_rounds(store)
    assert not {one.round for one in answers} - {0, *(round_.id for round_ in stored_rounds(store))}
    assert store.read("SELECT 1 FROM answer WHERE settings NOT IN (SELECT id FROM settings)") == []
    rows, stretches = list(store.rows()), store.get("stretches")
    assert all(row.cells == f'{{"prompt": "row {row.n}"}}'.encode() for row in rows)
    if (spec := store.get("spec")) is not None:
        is_whole = stretches is not None and len(rows) == ROWS
        assert spec["output"]["names"] == (OUTPUT["names"] if is_whole else None)
    store.close()
    return len(rows), len(answers)


def test_everything_of_a_database_without_damage_is_kept(path):
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


def test_of_the_tables_of_ways_all_readable_rows_are_kept(path):
    store = JobDatabase(path, write=True)
    store.add(
        {
            "lake": "CREATE TABLE lake (id INTEGER PRIMARY KEY, value TEXT NOT NULL)",
            "fish": "CREATE TABLE fish (n INTEGER, lake INTEGER, name TEXT, PRIMARY KEY (lake, n)) WITHOUT ROWID",
            "fish_rows": "CREATE INDEX fish_rows ON fish (n)",
        }
    )
    lakes = [(at, f"lake {at} " * 40) for at in range(ROWS)]
    fishes = [(at % 7, at, f"fish {at} " * 40) for at in range(ROWS)]
    store.change(("INSERT INTO lake VALUES (?, ?)", lakes), ("INSERT INTO fish VALUES (?, ?, ?)", fishes))
    store.close()
    for text in ("lake 200 ", "fish 300 "):
        for whole in (True, False):
            if not whole:
                damage(path, path.read_bytes().index(text.encode() * 40))
            salvage(path)
            store = JobDatabase(path)
            kept, caught = store.read("SELECT * FROM lake"), store.read("SELECT * FROM fish ORDER BY lake")
            assert caught == fishes[: len(caught)]
            assert {*kept} <= {*lakes}
            assert len(kept) > ROWS * 0.9
            assert len(caught) > ROWS / 2
            assert "fish_rows" in store.added
            store.close()
    assert len(kept) < ROWS
    assert len(caught) < ROWS


@pytest.mark.thorough
def test_of_any_damaged_page_the_rest_is_kept(path):
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
    assert sum(count > (ROWS + SPARE) * 0.9 for count in answers) > len(found) - 2, "all but the root"
    assert sum(count > ROWS * 0.7 for count in rows) > len(found) - 2


@pytest.mark.thorough
@pytest.mark.parametrize("left", [100, 2048])
def test_a_database_that_was_cut_within_any_page_is_salvaged(path, left):
    whole = path.read_bytes()
    for page in range(2, len(whole) // 4096 + 1):
        path.write_bytes(whole[: (page - 1) * 4096 + left])
        salvage(path)
        assert check(path)[1] <= ROWS + SPARE


@pytest.mark.parametrize("content", [b"", b"text" * 2000, b"SQLite format 3\0"])
def test_a_file_that_is_no_database_is_left_as_it_is(path, content):
    path.write_bytes(content)
    with pytest.raises((DamagedError, FileNotFoundError)):
        salvage(path)
    assert path.read_bytes() == content


def root_of(database: Path, table: str) -> int:
    """Return where the first page of a table is in the file."""
    with contextlib.closing(sqlite3.connect(database)) as other:
        ((page,),) = other.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,))
    return int(page - 1) * 4096


def damage(database: Path, at: int, *, half: bool = False) -> None:
    """Damage the head of the page that has the byte `at`, or make its second half zeros."""
    content = bytearray(database.read_bytes())
    page = at // 4096 * 4096
    content[page : page + 16] = b"\xff" * 16
    if half:
        content[page : page + 4096] = database.read_bytes()[page : page + 2048] + bytes(2048)
    database.write_bytes(content)


def test_lost_settings_and_rounds_leave_their_ids_to_the_answers_that_have_them(path):
    store = JobDatabase(path, write=True)
    store.settings_id({"model": "b"})
    store.put(spec={**SPEC, "targets": [{"settings": 1, "fingerprint": {"model": "b"}}]})
    store.change(("UPDATE answer SET settings = 1, round = 2 WHERE key < 9", [()]))
    store.close()
    for table in ("settings", "round"):
        damage(path, root_of(path, table))
    salvage(path)
    store = JobDatabase(path, write=True)
    assert [(round_.id, round_.done) for round_ in stored_rounds(store)] == [(2, True)]
    assert store.settings_id({"model": "b"}) == 1
    assert store.settings_id({"model": "a"}) == 2, "id 0 was that of unknown settings"
    store.close()


def half_done(bench: Any, rows: int = 600) -> Path:
    """Have a job that was killed after half of its rows; return its database."""
    bench.prompts(rows)
    bench.half_done(answers(0, rows // 2))
    with bench.folder.reading():
        pass  # the last to close it writes the log back
    return bench.folder.database


def check_answers(bench: Any, rows: list[int]) -> None:
    """Check that the output has these rows, answered."""
    assert [(row["id"], row["answer"]) for row in bench.answers()] == [(f"r{at}", f"echo: prompt {at}") for at in rows]


@pytest.mark.parametrize("has_input", [True, False])
@pytest.mark.parametrize("table", ["round", "settings"])
def test_without_its_rounds_or_settings_a_job_sends_no_answered_row_again(bench, table, has_input):
    database = half_done(bench)
    damage(database, root_of(database, table))
    if not has_input:
        bench.input.unlink()
    bench.succeed()
    assert len(bench.upstream.seen) == 300
    check_answers(bench, list(range(600)))


@pytest.mark.parametrize("half", [False, True])
def test_lost_rows_are_read_from_the_input_again(bench, half):
    for prompt in ("prompt 20", "prompt 450"):  # an answered row, and one that is sent
        database = half_done(bench)
        damage(database, database.read_bytes().index(f'"prompt": "{prompt}"'.encode()), half=half)
        bench.upstream.seen.clear()
        bench.succeed()
        assert len(bench.upstream.seen) == 300
        check_answers(bench, list(range(600)))
        bench.folder.forget()
        bench.output.unlink()


@pytest.mark.parametrize("half", [False, True])
def test_a_job_that_lost_rows_waits_for_its_input(bench, half):
    database = half_done(bench)
    damage(database, database.read_bytes().index(b'"prompt": "prompt 450"'), half=half)
    before = bench.path / "before.jsonl"
    bench.input.rename(before)
    for _ in range(2):
        assert f"There is no input file {bench.input}" in bench.fail().replace("\n", " ")
        assert not bench.output.exists()
    before.rename(bench.input)
    bench.succeed()
    assert len(bench.upstream.seen) == 300
    check_answers(bench, list(range(600)))


def test_a_job_goes_on_where_its_answers_cannot_be_written(bench):
    database = half_done(bench)
    with contextlib.closing(sqlite3.connect(database)) as other:
        other.execute("DELETE FROM answer WHERE key % 3 = 0")  # so that each page is written
        other.commit()
    damage(database, database.read_bytes().index(b"echo: prompt 100"), half=True)
    found = bench.succeed()
    assert "was damaged" in found["warnings"][0]
    assert len(bench.upstream.seen) < 600
    check_answers(bench, list(range(600)))


@pytest.mark.thorough
def test_a_damaged_digest_costs_at_most_a_request_and_gives_no_row_the_answer_of_another(bench):
    database = half_done(bench)
    with contextlib.closing(sqlite3.connect(database)) as other:
        for table, key in (("answer", 3), ("row", 5)):
            name = "key" if table == "answer" else "n"
            other.execute(f"UPDATE {table} SET asked = randomblob(16) WHERE {name} = ?", (key,))
        other.commit()
    bench.succeed()
    assert len(bench.upstream.seen) == 300
    check_answers(bench, list(range(600)))
    bench.input.write_text(bench.input.read_text() + '{"id": "r600", "prompt": "prompt 600"}\n')
    bench.succeed()
    assert len(bench.upstream.seen) <= 300 + 3
    check_answers(bench, list(range(601)))


@pytest.mark.thorough
def test_answers_whose_description_is_lost_are_not_removed_with_a_mistake(bench):
    database = half_done(bench)
    damage(database, root_of(database, "job"))
    with mock.patch("promptmill.jobs.run.phases.ingest", side_effect=input_error("It is broken.")):
        assert "It is broken." in bench.fail()
    bench.succeed()
    assert len(bench.upstream.seen) == 300
    check_answers(bench, list(range(600)))


@pytest.mark.parametrize("limit", [(), ("--limit", "20")])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "is empty, so the answers of its job are lost"),
        (lambda data: b"no database" * 1000, "is damaged beyond reading"),
        (lambda data: data[:4096] + b"\xff" * 12288 + data[16384:], "was damaged or removed"),
    ],
    ids=["empty", "garbage", "description"],
)
def test_a_damaged_database_is_said_before_anything_else_and_no_row_is_paid_again(bench, limit, damage, said):
    """The command said of its own output that it was another's, or answered the rows again without a word."""
    bench.prompts(40)
    bench.succeed(*limit)
    sent = len(bench.upstream.seen)
    database = bench.folder.database
    for beside in database.parent.glob("job.db-*"):
        beside.unlink()
    database.write_bytes(damage(database.read_bytes()))
    for _ in range(2):
        assert said in bench.fail(*limit)
    assert len(bench.upstream.seen) == sent
    again = ("--again", "all", "--overwrite") if said != "was damaged or removed" else ("--overwrite",)
    assert bench.succeed(*limit, *again)["answered"] == (20 if limit else 40)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no database" * 1000,
        lambda data: data[:4096] + b"\xff" * 12288 + data[16384:],
        lambda data: data[:100],
        lambda data: b"\0" * len(data),
        lambda data: None,
    ],
    ids=["empty", "garbage", "description", "cut", "zeros", "missing"],
)
def test_a_list_of_jobs_names_a_damaged_database_and_what_to_do(bench, damage):
    bench.prompts(4)
    bench.succeed()
    database, job_id = bench.folder.database, bench.folder.known_spec().job_id
    for beside in database.parent.glob("job.db-*"):
        beside.unlink()
    left = damage(database.read_bytes())
    database.unlink() if left is None else database.write_bytes(left)
    done = bench.here(["promptmill", "jobs"])
    assert f"{database} is damaged or missing, so its job is not listed. Repeat the command" in done.stderr
    assert "there are no jobs" not in done.stderr
    as_json = bench.here(["promptmill", "jobs", "--json"])
    assert json.loads(as_json.stdout) == {"jobs": [], "damaged": [str(database)]}
    for name in (str(bench.output), job_id):
        done = bench.here(["promptmill", "jobs", name])
        assert done.returncode == 2
        assert "is damaged or missing" in done.stderr


@pytest.mark.thorough
def test_a_job_that_was_forgotten_is_no_damaged_one(bench):
    bench.prompts(4)
    bench.succeed()
    assert bench.here(["promptmill", "jobs", str(bench.output), "--forget"]).returncode == 0
    assert "there are no jobs" in bench.here(["promptmill", "jobs"]).stderr


@pytest.mark.thorough
def test_an_unfinished_job_whose_database_is_empty_is_not_paid_again_without_a_word(bench):
    bench.prompts(40)
    bench.half_done(answers(0, 20))
    bench.folder.database.write_bytes(b"")
    for beside in bench.folder.database.parent.glob("job.db-*"):
        beside.unlink()
    assert "is empty, so the answers of its job are lost" in bench.fail()
    assert not bench.upstream.seen
    assert bench.succeed("--again", "all")["answered"] == 40
