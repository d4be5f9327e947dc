"""Disks that are full, folders that cannot be written, journals that are damaged, clocks that are set."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from half_done import answers
from promptmill.cli import main as cli
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.files import disk
from promptmill.jobs.door import OpenJob
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder
from promptmill.system import frames
from replies import answer, choose, late, status
from waiting import eventually

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")

LOST = 32 + 64  # in flight at a kill, and not written yet


def limited(size: int) -> Any:
    """Return what sets the largest file a process may write, as a disk that is full would."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@posix
def test_a_full_disk_stops_the_job_and_loses_nothing(bench):
    bench.prompts(2000)
    bench.upstream.reply = choose(lambda seen: status(400, "no") if seen.prompt[-1] in "37" else answer())
    result = bench.run("--json", preexec_fn=limited(500_000))
    assert result.returncode == 75
    assert "Traceback" not in result.stderr
    found = json.loads(result.stdout)
    assert found["state"] == "stopped"
    assert f"The job's database {bench.folder.database} cannot be" in found["reason"]
    assert bench.status()["state"] in {"stopped", "interrupted"}
    sent = len(bench.upstream.seen)
    (note,) = (warning for warning in found["warnings"] if "could not be stored" in warning)
    assert note.startswith(f"{sent - found['done']} rows had a request whose answer"), "paid and lost"
    assert 0 < found["done"] < 2000
    assert (found["done"], found["failed"]) == (
        len(bench.records()),
        len([one for one in bench.records() if one.code]),
    )
    assert sent - found["done"] <= LOST
    assert not bench.output.exists()
    assert bench.run().returncode == 1
    assert len(bench.answers()) == 2000
    assert len(bench.upstream.seen) == 2000 + sent - found["done"]


@posix
def test_a_disk_that_is_full_while_the_input_is_read_is_named_with_the_remedy(bench):
    bench.prompts(20_000)
    found = json.loads(bench.run("--json", preexec_fn=limited(300_000)).stdout)
    assert found["reason"].startswith(f"The job's file {bench.folder.database} cannot be used: ")
    assert "Free space there" in found["reason"]
    with mock.patch("promptmill.jobs.run.phases.ingest", side_effect=OSError(28, "No space left on device")):
        found = json.loads(bench.run("--json").stdout)  # of a temporary file, which has no name
    assert f"The job's folder {bench.folder.path} cannot be used: no space left" in found["reason"]


@posix
def test_a_step_in_another_process_names_what_is_full(tmp_path):
    arguments = {"folder": str(tmp_path), "limit": None}
    told = frames.packed({"call": "promptmill.jobs.run.phases:export", "arguments": arguments, "computing_s": 60.0})
    command = [sys.executable, "-m", "promptmill.jobs.manage.child_step"]
    pipe = subprocess.PIPE
    limit = limited(4096)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, preexec_fn=limit) as step:  # noqa: PLW1509 (see `Bench`)
        incoming: Any = step.stdin
        outgoing: Any = step.stdout
        incoming.write(told)  # and stays open: its end is the end of the step
        incoming.flush()
        said = frames.read(outgoing)
    assert said is not None
    error = frames.unpacked_error(said["error"])
    assert error.message.startswith(f"The job's file {tmp_path / 'job.db'} cannot be used: ")
    assert "Free space there" in error.hint
    unnamed = disk.unusable(OSError(28, "No space left on device"), tmp_path)  # of a temporary file
    assert unnamed.message == f"The job's folder {tmp_path} cannot be used: no space left on device."


@pytest.mark.thorough
@posix
def test_a_disk_that_is_full_for_what_dedupe_remembers_stops_the_job_in_words(bench):
    bench.prompts(3000)
    temperature = ("--set", "sampling_params.temperature=0")
    result = bench.run("--dedupe", *temperature, "--json", preexec_fn=limited(75_000))
    assert "Traceback" not in result.stderr
    found = json.loads(result.stdout)
    assert (found["state"], "bug" in found["reason"]) == ("stopped", False), found["reason"]
    bench.succeed("--dedupe", *temperature)
    assert len(bench.answers()) == 3000


@pytest.mark.thorough
@posix
def test_a_disk_that_is_full_when_the_output_is_written_costs_no_request(bench):
    bench.prompts(500)
    bench.upstream.reply = answer("\x01" * 5_000)  # each is six bytes in the output, and one in the database
    assert "file too large" in bench.fail(code=75, preexec_fn=limited(9_000_000))
    assert [path.name for path in bench.path.iterdir()] == ["in.jsonl", "config.yaml"] or not bench.output.exists()
    assert not list(bench.path.glob(".*partial"))
    sent = len(bench.upstream.seen)
    bench.succeed()
    assert len(bench.upstream.seen) == sent == 500


def test_windows_lets_nobody_replace_a_file_that_is_being_read_and_a_reader_costs_nothing(tmp_path, monkeypatch):
    readers = iter([True, True, False])
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if next(readers):
            raise PermissionError(13, "Access is denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    monkeypatch.setattr(sys, "platform", "win32")
    (tmp_path / "new").write_text("new")
    disk.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that even root cannot write")
def test_an_output_folder_that_cannot_be_written_is_said_before_anything_is_spent(bench):
    bench.prompts(3)
    bench.output = Path("/proc/out.jsonl")
    assert "cannot be written into /proc" in bench.fail()
    assert not bench.upstream.seen
    assert not bench.folder.path.exists()


def half_done(bench: Any, rows: int = 300) -> None:
    """Have a job of `rows` rows that was killed after half of them."""
    bench.prompts(rows)
    bench.half_done(answers(0, rows // 2))


def pages(bench: Any) -> bytearray:
    """Return the database as one file, once everything in its log is part of it."""
    with bench.folder.reading():
        pass  # the last to close it writes the log back
    return bytearray(bench.folder.database.read_bytes())


@pytest.mark.parametrize("what", ["an answer", "a checksum"])
def test_a_flipped_byte_in_an_answer_is_found_out_told_and_not_trusted(bench, what):
    half_done(bench)
    records = bench.records()
    content = pages(bench)
    place = content.index(f"echo: prompt {records[40].row}".encode())
    content[place + 3 if what == "an answer" else content.index(b"stop", place - 40) - 9] ^= 0x04
    bench.folder.database.write_bytes(content)
    sent = len(bench.upstream.seen)
    bench.succeed()
    assert len(bench.upstream.seen) - sent <= 300 - (len(records) - 1)
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(300)]


@pytest.mark.thorough
def test_any_flipped_byte_is_found_out_or_harmless(bench):
    chance = random.Random(11)
    rows = bench.prompts(400)
    bench.succeed()
    whole = pages(bench)
    bench.output.unlink()
    for _ in range(12):
        content = bytearray(whole)
        place = chance.randrange(len(content))
        content[place] ^= 1 << chance.randrange(8)
        bench.folder.database.write_bytes(content)
        result = bench.run("--json")
        assert "Traceback" not in result.stderr, (place, result.stderr)
        if result.returncode == 0:
            assert [row["answer"] for row in bench.answers()] == [f"echo: {row['prompt']}" for row in rows], place
            bench.output.unlink(missing_ok=True)
        else:
            said = result.stderr + result.stdout  # a setting that is not what it was is refused by its name
            assert "damaged" in said or "was begun with " in said, (place, result.stderr, result.stdout)
        for name in ("job.db", "job.db-wal", "job.db-shm"):
            (bench.folder.path / name).unlink(missing_ok=True)


@pytest.mark.thorough
@pytest.mark.parametrize("is_done", [False, True])
def test_with_any_damaged_page_the_same_command_finishes_the_job(bench, is_done):
    half_done(bench)
    if is_done:
        bench.succeed()
    content = pages(bench)
    with contextlib.closing(sqlite3.connect(bench.folder.database)) as other:
        ((root,),) = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'answer'")
    for page in range(1, len(content) // 4096):
        at = page * 4096
        bench.output.unlink(missing_ok=True)
        bench.folder.database.write_bytes(content[:at] + b"\xff" * 16 + content[at + 16 :])
        bench.upstream.seen.clear()
        bench.succeed()
        assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(300)], page
        if page + 1 != root:  # through which all answers are found
            assert len(bench.upstream.seen) < 300, page
        for name in ("job.db-wal", "job.db-shm"):
            (bench.folder.path / name).unlink(missing_ok=True)


@pytest.mark.thorough
def test_a_job_that_has_read_its_input_needs_it_no_longer(bench):
    half_done(bench)
    bench.input.unlink()
    bench.succeed()
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(300)]
    assert bench.succeed()["requests"] == 300
    assert bench.jobs(bench.folder.job_id, "--resume").returncode == 0
    assert "There is no input file" in bench.fail("--prompt", "Another: {{prompt}}", "--again", "all")
    bench.output = bench.path / "other.jsonl"
    assert "There is no input file" in bench.fail()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["file", "folder", "pattern", "files"])
def test_an_unfinished_job_whose_input_was_deleted_is_finished_by_its_path_and_by_its_id(bench, kind):
    data = bench.path / "data"
    data.mkdir()
    for at in range(2):
        (data / f"{at}.csv").write_text("text\n" + "".join(f"{at} {n}\n" for n in range(5)))
    inputs = {"file": ["0.csv"], "folder": [""], "pattern": ["*.csv"], "files": ["0.csv", "1.csv"]}[kind]
    bench.output = bench.path / "out.csv"
    command = bench.command("--prompt", "Is it? {{text}}")
    at = command.index(str(bench.input))
    command[at : at + 1] = [str(data / name) for name in inputs]
    assert bench.here([*command, "--limit", "2"]).returncode == 0
    if kind == "files":
        (data / "1.csv").unlink()
    else:
        shutil.rmtree(data)
    again = bench.here(command)
    assert again.returncode == 0, again.stderr
    written = bench.output.read_text()
    rows = 5 if kind == "file" else 10
    assert (written.count("echo: Is it? "), len(bench.upstream.seen)) == (rows, rows)
    bench.output.unlink()
    assert bench.jobs(bench.folder.job_id, "--resume").returncode == 0
    assert bench.output.read_text() == written
    assert len(bench.upstream.seen) == rows
    command[command.index(str(bench.output))] = str(bench.path / "new.csv")
    new = bench.here(command)
    assert new.returncode == 2
    assert ("No file matches" if kind == "pattern" else "There is no input file") in new.stderr


def test_a_name_that_is_added_to_the_inputs_must_exist(bench):
    first = bench.write(['{"prompt": "a"}'], "a.jsonl")
    bench.succeed()
    command = bench.command()
    at = command.index(str(first))
    mistaken = bench.here([*command[: at + 1], str(bench.path / "typo.jsonl"), *command[at + 1 :]])
    assert mistaken.returncode == 2
    assert "There is no input file" in mistaken.stderr


def test_of_a_damaged_database_is_kept_what_can_be_read(bench):
    half_done(bench)
    count = len(bench.records())
    content = pages(bench)
    page = content.index(b"echo: prompt 40") // 4096 * 4096
    content[page : page + 8] = b"\xff" * 8  # the head of a page with answers
    bench.folder.database.write_bytes(content)
    sent = len(bench.upstream.seen)
    found = bench.succeed()
    again = len(bench.upstream.seen) - sent
    assert 300 - count <= again < 300
    assert "was damaged" in found["warnings"][0]
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(300)]


@pytest.mark.thorough
@pytest.mark.parametrize("left", [0.6, 0.75, 0.97])
def test_of_a_database_that_was_cut_short_is_kept_what_is_left(bench, left):
    half_done(bench, 1500)
    count = len(bench.records())
    content = pages(bench)
    rows = content.rindex(b'"prompt": "prompt')  # almost all answers are behind the rows
    bench.folder.database.write_bytes(content[: rows + int((len(content) - rows) * left)])
    sent = len(bench.upstream.seen)
    found = bench.succeed()
    again = len(bench.upstream.seen) - sent
    assert 1500 - count < again < 1500 - count * (left - 0.4)
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(1500)]
    assert found["failed"] == 0


@pytest.mark.thorough
def test_a_record_that_is_damaged_while_the_job_runs_is_found_out_when_the_output_is_written(bench):
    bench.prompts(400)
    bench.upstream.reply = late(0.02, answer())
    process = bench.start("--json")
    eventually(lambda: len(bench.records()) > 100)
    with contextlib.closing(sqlite3.connect(bench.folder.database)) as other:
        other.execute("UPDATE answer SET text = 'ECHO' WHERE key = 3")
        other.commit()
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert "1 damaged record(s)" in json.loads(out)["warnings"][0]
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(400)]


@pytest.mark.thorough
def test_any_sqlite_tool_can_read_while_the_job_runs(bench):
    bench.prompts(600)
    bench.upstream.reply = late(0.05, answer())
    process = bench.start()
    eventually(lambda: len(bench.records()) > 50)
    with contextlib.closing(sqlite3.connect(f"file:{bench.folder.database}?mode=ro", uri=True)) as other:
        ((count, first),) = other.execute("SELECT count(*), min(text) FROM answer WHERE code IS NULL")
    assert process.poll() is None
    assert count > 50
    assert first == "echo: prompt 0"
    process.communicate(timeout=180)
    assert process.returncode == 0


def test_answers_are_not_thrown_away_because_the_description_is_damaged(bench):
    half_done(bench)
    count = len(bench.records())
    with contextlib.closing(sqlite3.connect(bench.folder.database)) as other:
        other.execute("UPDATE job SET value = '{' WHERE name = 'spec'")
        other.commit()
    sent = len(bench.upstream.seen)
    bench.succeed()
    assert len(bench.upstream.seen) - sent == 300 - count


@pytest.mark.thorough
def test_a_database_with_views_or_triggers_is_not_opened(bench):
    half_done(bench)
    with contextlib.closing(sqlite3.connect(bench.folder.database)) as other:
        other.execute("CREATE TRIGGER t AFTER INSERT ON answer BEGIN DELETE FROM answer; END")
    assert "is damaged beyond reading. --again all starts a new one" in bench.fail()
    bench.succeed("--again", "all")


@pytest.mark.thorough
def test_a_clock_that_is_set_back_does_no_harm(bench, monkeypatch):
    half_done(bench)
    count = len(bench.records())
    future = time.time() + 86_400
    for file in bench.folder.path.iterdir():
        os.utime(file, (future, future))
    (bench.path / "sitecustomize.py").write_text("import time\nnow = time.time\ntime.time = lambda: now() - 200_000\n")
    sent = len(bench.upstream.seen)
    with monkeypatch.context() as during:
        during.setenv("PYTHONPATH", str(bench.path))
        found = bench.succeed(apart=True)
    assert len(bench.upstream.seen) - sent == 300 - count
    assert 0 <= found["seconds"] < 60
    assert bench.succeed()["done"] == 300


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions")
@pytest.mark.parametrize("arguments", [[], ["--prune", "7d"]])
def test_a_folder_of_jobs_that_cannot_be_read_is_said(monkeypatch, capsys, arguments):
    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)  # root may read everything
    assert cli.main(["jobs", *arguments]) == 2
    assert "cannot be read: permission denied" in capsys.readouterr().err


def test_no_secret_is_written(bench):
    bench.prompts(3)
    bench.succeed(headers={"x-secret": "another-secret-value"})
    written = b"".join(file.read_bytes() for file in bench.folder.path.iterdir()) + bench.output.read_bytes()
    assert b"test-key-0123456789abcdef" not in written
    assert b"another-secret-value" not in written


def test_a_job_is_found_by_its_id_where_the_users_folder_cannot_be_written(tmp_path):
    (tmp_path / "home").write_text("a file, so that nothing can be made below it")
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    block = {"base_url": "http://127.0.0.1:9/v1", "model_name": "m"}
    models = Configuration({"backend": "openai", "backend_configs": {"openai": block}})
    folders = JobFolders(tmp_path / "home" / "jobs", beside_outputs=True)
    order = JobOrder(inputs=(tmp_path / "in.jsonl",), output=tmp_path / "out.jsonl")
    job = OpenJob(order, models, folders).admit()
    job.close()
    assert folders.find(job.spec.job_id).path == job.folder.path


@pytest.mark.parametrize("name", ["\ud800", "labels\udbc9.csv", "labels\0.csv"])
def test_a_name_that_no_file_can_have_is_no_job(tmp_path, name):
    with pytest.raises(PromptmillError, match="no job"):
        JobFolders(tmp_path).named(name)
