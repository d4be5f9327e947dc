"""Peak memory of a job's runner: a file ten times as long must need no more.

`python -m benchmarks.jobs_memory [--lines 100000]` runs that many lines and a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.client import OUT, ROOT
from benchmarks.field import Field, field
from benchmarks.jobs_store import report
from benchmarks.measure import Row

sys.path.insert(0, str(ROOT / "tests" / "support"))

from peak import peak_bytes


async def memory(around: Field, pairs: int, lines: int = 100_000) -> list[Row]:
    """Peak resident memory with `lines` lines over that with a tenth."""
    del pairs  # a peak is no time
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        few, many = (_peak(around, Path(folder), count) for count in (lines // 10, lines))
    detail = f"{many[0] / 2**20:.1f} / {few[0] / 2**20:.1f} MiB; {lines / many[1]:,.0f} lines/s with start and merge"
    raw = {"few_bytes": few[0], "many_bytes": many[0], "seconds": many[1]}
    return [
        Row(
            "jobs_memory",
            f"peak memory, {lines:,} over {lines // 10:,} lines",
            many[0] / few[0],
            1.15,
            detail=detail,
            raw=raw,
        )
    ]


def _peak(around: Field, folder: Path, lines: int) -> tuple[int, float]:
    """Run a job of `lines` lines; return the runner's peak resident bytes and its wall time."""
    source, target, config = folder / f"in-{lines}.jsonl", folder / f"out-{lines}.jsonl", folder / "config.yaml"
    with source.open("w") as file:
        for at in range(lines):
            file.write(json.dumps({"id": at, "prompt": f"Question {at}: what is the capital of France?"}) + "\n")
    # one process: with workers, most of the memory is theirs
    block = {"base_url": around.fast, "model_name": "bench", "api_key": "x", "num_workers": 1}
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    began = time.perf_counter()
    peak = peak_bytes(
        [sys.executable, "-m", "promptmill", "bulk", str(source), str(target), "--config", str(config)],
        folder=ROOT,
        env={**os.environ, "PROMPTMILL_STATE": str(folder / "state")},
    )
    seconds = time.perf_counter() - began
    with target.open() as file:
        assert sum(1 for _ in file) == lines
    return peak, seconds


async def _main(lines: int) -> None:
    async with field() as around:
        for row in await memory(around, 1, lines):
            print(report(row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.jobs_memory", description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    uvloop.run(_main(parser.parse_args().lines))
