"""Jobs that every release left in the middle go on. `scripts/keep_job.py` makes one for a new release."""

from __future__ import annotations

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


@pytest.mark.parametrize("release", sorted(path.name for path in RELEASES.iterdir()))
def test_a_job_of_a_release_goes_on_and_keeps_what_was_answered(release, tmp_path, upstream):
    for file in (RELEASES / release).rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(RELEASES / release)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    rows = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    upstream.reply = by_prompt({row["prompt"]: answer(f"new {row['id']}") for row in rows})
    proxy = upstream.url.removesuffix("/v1")
    done = subprocess.run(
        [sys.executable, "-m", "promptmill", "bulk", "in.jsonl", "out.jsonl", "--again", "failed", "--quiet"],
        cwd=tmp_path,
        env=os.environ | {"http_proxy": proxy, "no_proxy": "", "PROMPTMILL_CONFIG": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in found] == [
        *(f"kept {at}" for at in range(4)),
        *(f"new {at}" for at in range(4, 8)),
    ]
    assert len(upstream.seen) == 4, "what was answered is not asked again"
