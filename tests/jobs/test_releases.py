"""Jobs that every release left in the middle go on. `scripts/keep_job.py` makes one for a new release."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import promptmill
from replies import answer, by_prompt

RELEASES = Path(__file__).parent / "releases"


def test_there_is_a_job_of_this_version():
    assert (RELEASES / promptmill.__version__).is_dir(), "run scripts/keep_job.py"


@pytest.fixture(params=sorted(path.name for path in RELEASES.iterdir()))
def job(request, tmp_path, upstream):
    """Lay out the job of a release, four of whose eight rows are answered; return what runs a command there."""
    release = RELEASES / request.param
    for file in release.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(release)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    rows = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    upstream.reply = by_prompt({row["prompt"]: answer(f"new {row['id']}") for row in rows}, answer("other"))

    def run(*words):
        proxy = upstream.url.removesuffix("/v1")
        done = subprocess.run(
            [sys.executable, "-m", "promptmill", *words],
            cwd=tmp_path,
            env=os.environ | {"http_proxy": proxy, "no_proxy": "", "PROMPTMILL_CONFIG": ""},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout

    return run


def answers_in(path):
    """Return the answers of an output."""
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


def test_a_job_of_a_release_goes_on_and_keeps_what_was_answered(job, tmp_path, upstream):
    job("bulk", "in.jsonl", "out.jsonl", "--again", "failed", "--quiet")
    assert answers_in(tmp_path / "out.jsonl") == [f"{'kept' if at < 4 else 'new'} {at}" for at in range(8)]
    assert len(upstream.seen) == 4, "what was answered is not asked again"


def test_a_job_of_a_release_is_read_as_it_is(job, tmp_path):
    database = tmp_path / ".promptmill" / "out.jsonl.job" / "job.db"
    before = database.read_bytes()
    job("jobs", "out.jsonl", "--export", "some.jsonl")
    assert answers_in(tmp_path / "some.jsonl") == [f"kept {at}" for at in range(4)]
    assert database.read_bytes() == before


def test_a_job_of_a_release_keeps_its_answers_when_its_rows_have_moved(job, tmp_path, upstream):
    rows = (tmp_path / "in.jsonl").read_text().splitlines()
    (tmp_path / "in.jsonl").write_text("\n".join(['{"prompt": "other"}', *rows[3::-1], *rows[4:]]) + "\n")
    job("bulk", "in.jsonl", "out.jsonl", "--again", "failed", "--quiet")
    kept = [f"kept {at}" for at in (3, 2, 1, 0)]
    assert answers_in(tmp_path / "out.jsonl") == ["other", *kept, *(f"new {at}" for at in range(4, 8))]
    assert len(upstream.seen) == 5


@pytest.mark.parametrize("job", ["0.1.1.dev"], indirect=True)
def test_a_job_with_a_prompt_keeps_its_answers(job, tmp_path, upstream):
    job("bulk", "in.csv", "out.csv", "--prompt", "Say {{text}}", "--again", "failed", "--quiet")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["answer"] for row in rows] == [*(f"kept {at}" for at in range(4)), *(f"new {at}" for at in range(4, 8))]
    assert len(upstream.seen) == 4
