"""Disks that are full, folders that cannot be written, journals that are damaged, clocks that are set."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from promptmill.cli import main as cli
from promptmill.jobs import disk
from promptmill.jobs.disk import RandomFile
from promptmill.jobs.journal import Journal, ScanReport
from replies import answer, late

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")

LOST = 32 + 16  # in flight at a kill, and not written yet


def limited(size: int) -> Any:
    """Return what sets the largest file a process may write, as a disk that is full would."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@posix
@pytest.mark.parametrize("size", [5_000, 150_000])  # the index does not fit either, the journal alone does not
def test_a_full_disk_stops_the_job_and_loses_nothing(bench: Any, size: int) -> None:
    bench.prompts(2000)
    said = bench.fail("--json", code=1, preexec_fn=limited(size))
    assert "Traceback" not in said
    found = bench.status()
    assert found["state"] == "stopped"
    assert "cannot be written: file too large" in found["reason"], said
    sent = len(bench.upstream.seen)
    assert 0 < found["done"] < 2000
    assert sent - found["done"] <= LOST
    assert not bench.output.exists()
    bench.succeed()
    assert len(bench.answers()) == 2000
    assert len(bench.upstream.seen) == 2000 + sent - found["done"]


@posix
def test_a_disk_that_is_full_for_what_dedupe_remembers_stops_the_job_in_words(bench: Any) -> None:
    bench.prompts(3000)
    temperature = ("--set", "sampling_params.temperature=0")
    said = bench.fail("--dedupe", *temperature, "--json", code=1, preexec_fn=limited(60_000))
    assert "Traceback" not in said
    found = bench.status()
    assert (found["state"], "bug" in found["reason"]) == ("stopped", False), found["reason"]
    bench.succeed("--dedupe", *temperature)
    assert len(bench.answers()) == 3000


@posix
def test_a_disk_that_is_full_when_the_output_is_written_costs_no_request(bench: Any) -> None:
    bench.write([{"prompt": f"p{at}", "carried": "x" * 400} for at in range(500)])
    bench.fail(code=1, preexec_fn=limited(200_000))
    assert "file too large" in bench.status()["reason"]
    assert [path.name for path in bench.path.iterdir()] == ["in.jsonl", "config.yaml"] or not bench.output.exists()
    assert not list(bench.path.glob(".*partial"))
    sent = len(bench.upstream.seen)
    bench.succeed()
    assert len(bench.upstream.seen) == sent == 500


def test_windows_lets_nobody_replace_a_file_that_is_being_read_and_a_reader_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = iter([True, True, False])
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if next(readers):
            raise PermissionError(13, "Access is denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    monkeypatch.setattr(sys, "platform", "win32")
    disk.write_json(tmp_path / "status.json", {"state": "finished"}, durable=False)
    assert disk.read_json(tmp_path / "status.json") == {"state": "finished"}


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that even root cannot write")
def test_an_output_folder_that_cannot_be_written_is_said_before_anything_is_spent(bench: Any) -> None:
    bench.prompts(3)
    bench.output = Path("/proc/out.jsonl")
    assert "cannot be written into /proc" in bench.fail()
    assert not bench.upstream.seen
    assert not bench.folder.path.exists()


def test_an_output_folder_that_is_not_there_is_said(bench: Any) -> None:
    bench.prompts(3)
    bench.output = bench.path / "nowhere" / "out.jsonl"
    assert "make it first" in bench.fail()
    assert not bench.upstream.seen


def journalled(bench: Any) -> list[tuple[int, int]]:
    """Return `(row, offset)` of the sound records."""
    file = RandomFile(bench.folder.journal, writable=True)
    try:
        return [(head.row, offset) for offset, head in Journal(file).scan(ScanReport())]
    finally:
        file.close()


def half_done(bench: Any, rows: int = 300) -> None:
    """Have a job of `rows` rows that was killed after half of them."""
    bench.prompts(rows)
    process = bench.start()
    bench.wait(lambda: len(bench.upstream.seen) > rows // 2)
    process.kill()
    process.communicate()
    bench.wait(lambda: not bench.upstream.open)


def test_a_torn_last_record_is_cut_off_and_its_row_done_again(bench: Any) -> None:
    half_done(bench)
    records = journalled(bench)
    content = bench.folder.journal.read_bytes()
    bench.folder.journal.write_bytes(content[:-20])
    sent = len(bench.upstream.seen)
    found = bench.succeed()
    assert len(bench.upstream.seen) - sent == 300 - (len(records) - 1)
    assert bench.upstream.attempts[f"prompt {records[-1][0]}"] == 2
    assert found["warnings"] == []
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(300)]


@pytest.mark.parametrize("at", [5, 60, -2])
def test_a_flipped_byte_is_found_out_told_and_not_trusted(bench: Any, at: int) -> None:
    half_done(bench)
    records = journalled(bench)
    row, offset = records[40]
    content = bytearray(bench.folder.journal.read_bytes())
    end = content.index(b"\n", offset)
    content[offset + at if at >= 0 else end + at] ^= 0x04
    bench.folder.journal.write_bytes(content)
    sent = len(bench.upstream.seen)
    found = bench.succeed()
    assert found["warnings"] == ["1 damaged record(s) in the journal are not trusted; their rows are done again."]
    assert len(bench.upstream.seen) - sent == 300 - (len(records) - 1)
    assert bench.upstream.attempts[f"prompt {row}"] == 2
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(300)]


def test_a_record_that_is_damaged_while_the_job_runs_is_found_out_by_the_merge(bench: Any) -> None:
    bench.prompts(400)
    bench.upstream.reply = late(0.02, answer())
    process = bench.start("--json")
    bench.wait(lambda: bench.folder.journal.exists() and len(bench.folder.journal.read_bytes().splitlines()) > 100)
    with bench.folder.journal.open("r+b") as file:
        place = file.read().index(b"echo: prompt 3")
        file.seek(place)
        file.write(b"ECHO")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "1 damaged record(s)" in json.loads(out)["warnings"][0]
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(400)]


@pytest.mark.parametrize("name", ["index", "status.json", "lock"])
def test_other_files_of_a_job_are_not_trusted(bench: Any, name: str) -> None:
    half_done(bench)
    count = len(journalled(bench))
    (bench.folder.path / name).write_bytes(b"\xff" * 5000)
    sent = len(bench.upstream.seen)
    bench.succeed()
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(300)]
    assert len(bench.upstream.seen) - sent == 300 - count


def test_answers_are_not_thrown_away_because_the_description_is_damaged(bench: Any) -> None:
    half_done(bench)
    count = len(journalled(bench))
    (bench.folder.path / "spec.json").write_bytes(b"\xff")
    assert "is damaged. --overwrite" in bench.fail()
    assert len(journalled(bench)) == count
    bench.succeed("--overwrite")


def test_a_journal_that_is_gone_means_that_nothing_is_answered(bench: Any) -> None:
    half_done(bench)
    bench.folder.journal.unlink()
    sent = len(bench.upstream.seen)
    bench.succeed()
    assert len(bench.upstream.seen) - sent == 300


def test_a_clock_that_is_set_back_does_no_harm(bench: Any) -> None:
    half_done(bench)
    count = len(journalled(bench))
    future = time.time() + 86_400
    for file in bench.folder.path.iterdir():
        os.utime(file, (future, future))
    (bench.path / "sitecustomize.py").write_text("import time\nnow = time.time\ntime.time = lambda: now() - 200_000\n")
    sent = len(bench.upstream.seen)
    found = bench.succeed(env={"PYTHONPATH": str(bench.path)})
    assert len(bench.upstream.seen) - sent == 300 - count
    assert 0 <= found["seconds"] < 60
    assert bench.succeed()["done"] == 300


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions")
@pytest.mark.parametrize("arguments", [[], ["--prune", "7d"]])
def test_a_folder_of_jobs_that_cannot_be_read_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)  # root may read everything
    assert cli.main(["jobs", *arguments]) == 2
    assert "cannot be read: permission denied" in capsys.readouterr().err


def test_files_of_a_job_are_for_this_user_alone(bench: Any) -> None:
    bench.prompts(3)
    bench.succeed()
    assert bench.folder.path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in bench.folder.path.iterdir()} == {0o600}


def test_no_secret_is_written(bench: Any) -> None:
    bench.prompts(3)
    bench.succeed(headers={"x-secret": "another-secret-value"})
    written = b"".join(file.read_bytes() for file in bench.folder.path.iterdir()) + bench.output.read_bytes()
    assert b"test-key-0123456789abcdef" not in written
    assert b"another-secret-value" not in written
