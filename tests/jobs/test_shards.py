"""A job in shards, joined at the end."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from typing import Any

import pytest


def join(bench: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `promptmill jobs OUTPUT --join` on the bench's output."""
    command = [sys.executable, "-m", "promptmill", "jobs", str(bench.output), "--join", *arguments]
    return bench.here(command)


def test_shards_join_to_what_one_job_would_have_made(bench):
    bench.prompts(50)
    assert "--shard I/N" in join(bench).stderr
    bench.succeed("--shard", "2/3")
    missing = join(bench)
    assert (missing.returncode, "Of the 3 parts of out.jsonl, parts 1, 3 are not done yet" in missing.stderr) == (
        2,
        True,
    )
    bench.succeed("--shard", "1/3")
    assert bench.succeed("--shard", "3/3")["done"] < 50
    assert not bench.output.exists()
    done = join(bench, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 50
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(50)]
    assert len(bench.upstream.seen) == 50
    again = join(bench)
    assert (again.returncode, "50 rows, 0 failed" in again.stdout, "was there already" in again.stdout) == (
        0,
        True,
        True,
    )
    bench.output.write_text("somebody else's\n")
    assert "--overwrite replaces it" in join(bench).stderr
    assert bench.output.read_text() == "somebody else's\n"
    assert bench.succeed("--shard", "2/3")["state"] == "finished"
    assert len(bench.upstream.seen) == 50


def test_a_shard_without_rows_and_a_single_missing_one_are_told_as_such(bench):
    bench.prompts(1)
    said = [bench.run("--shard", f"{at}/2").stdout for at in (1, 2)]
    assert "holds no rows; that is all right" in "".join(said)
    bench.output.with_name("out.jsonl.part-2-of-2").unlink()
    assert "run it with --shard 2/2" in join(bench).stderr


def test_parts_of_another_job_or_another_input_are_refused(bench):
    bench.prompts(6)
    bench.succeed("--shard", "1/2")
    bench.succeed("--shard", "2/2", "--temperature", "0.5")
    assert "of another input or other settings than part 1" in join(bench).stderr
    bench.succeed("--shard", "2/2", "--again", "all")
    bench.input.write_text(bench.input.read_text().replace("prompt 1", "prompt X"))
    bench.succeed("--shard", "2/2")
    assert "of another input or other settings than part 1" in join(bench).stderr
    part = bench.output.with_name("out.jsonl.part-2-of-2")
    part.write_text("{}")
    assert "is not what its shard made last" in join(bench).stderr
    assert not bench.output.exists()


def test_an_input_that_is_gone_is_not_needed_to_join_its_shards(bench):
    bench.write(['{"prompt": "a"}', "", '{"prompt": "b"}', "broken", '{"prompt": "c"}'])
    for shard in ("1/3", "2/3", "3/3"):
        assert bench.run("--shard", shard).returncode in {0, 1}
    bench.input.unlink()
    assert join(bench).returncode == 1
    assert [row["answer"] for row in bench.answers()] == ["echo: a", "echo: b", "", "echo: c"]
    assert bench.answers()[2]["error"]["message"].startswith("line 4")


def test_a_table_is_cut_too_and_the_parts_may_have_moved(bench, tmp_path):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("id,prompt\n" + "".join(f'{at},"p\n{at}"\n' for at in range(9)))
    for at in (1, 2):
        bench.succeed("--shard", f"{at}/2")
    bench.path.rename(tmp_path / "moved")
    bench.path, bench.output = tmp_path / "moved", tmp_path / "moved" / "out.csv"
    done = join(bench)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(bench.output.open(newline="")))
    assert [(row["id"], row["answer"]) for row in rows] == [(str(at), f"echo: p\n{at}") for at in range(9)]


@pytest.mark.parametrize(
    ("shard", "said"),
    [("0/3", "the first is 1"), ("4/3", "4 is more than 3"), ("1", "is not I/N"), ("a/b", "is not I/N")],
)
def test_a_shard_that_cannot_be_is_refused(bench, shard, said):
    bench.prompts(1)
    assert said in bench.fail("--shard", shard)


def test_the_output_of_a_job_without_shards_has_no_parts(bench):
    bench.prompts(1)
    bench.succeed()
    assert "out.jsonl is a job's own output" in join(bench).stderr
