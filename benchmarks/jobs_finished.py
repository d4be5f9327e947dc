"""How long it takes to find out that a job has nothing left: finished, and answered but for the merge.

`python -m benchmarks.jobs_finished [--lines 1000000]`; no request is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.client import OUT, ROOT
from benchmarks.field import Field
from benchmarks.jobs_store import report
from benchmarks.measure import Row
from promptmill.backends.protocol import Completion, Usage
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import Provenance, record_of
from promptmill.jobs.store.rounds import Round, store_round

_ANSWER = Completion("Paris is the capital of France, on the river Seine.", "stop", Usage(24, 12), latency_s=0.5)
_AT_ONCE = 10_000


async def finished(around: Field | None, pairs: int, lines: int = 1_000_000) -> list[Row]:
    """Seconds of wall time, the process's start included."""
    del around, pairs  # no upstream, and seconds of another order than the noise
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = Path(name)
        with (folder / "in.jsonl").open("w") as file:
            for at in range(lines):
                file.write(json.dumps({"id": at, "prompt": f"Question {at}: what is the capital of France?"}) + "\n")
        block = {"base_url": "http://127.0.0.1:9/v1", "model_name": "bench", "api_key": "x"}
        (folder / "config.yaml").write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
        _run(folder, "--limit", "1", expect=75)  # makes the job's folder; nobody answers there
        (database,) = (folder / "state" / "jobs").glob("*/job.db")
        _answer(database, 0, lines // 2)
        opened_s = _run(folder, "--set", "backend_configs.openai.patience=0.1", expect=75)  # nobody answers there
        _answer(database, lines // 2, lines)
        merged_s = _run(folder, expect=0)
        again_s = _run(folder, expect=0)
    what = f"{lines:,} lines"
    return [
        Row("jobs_finished", f"finding out that a finished job of {what} has nothing left", again_s, 1, unit=" s"),
        Row("jobs_opened", f"until a half-done job of {what} has met an endpoint that is gone", opened_s, 5, unit=" s"),
        Row("jobs_merge", f"counting and writing the output of {what}", merged_s, unit=" s"),
    ]


def _answer(database: Path, first: int, end: int) -> None:
    """Answer rows, as a run before did."""
    store = JobDatabase(database, write=True)
    with contextlib.closing(store):
        store_round(store, Round(1, "open", "first"))
        for at in range(first, end, _AT_ONCE):
            rows = store.rows(at, min(at + _AT_ONCE, end) - 1)
            store.write([record_of(row.n, _ANSWER, row.asked, Provenance(round=1)) for row in rows])
        store.sync()


def _run(folder: Path, *arguments: str, expect: int) -> float:
    began = time.perf_counter()
    result = subprocess.run(
        [
            *(sys.executable, "-m", "promptmill", "bulk", str(folder / "in.jsonl"), str(folder / "out.jsonl")),
            *("--config", str(folder / "config.yaml"), "--set", "backend_configs.openai.patience=1", *arguments),
        ],
        env={**os.environ, "PROMPTMILL_STATE": str(folder / "state")},
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == expect, result.stderr.decode()
    return time.perf_counter() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.jobs_finished", description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    for row in asyncio.run(finished(None, 1, parser.parse_args().lines)):
        print(report(row))
