"""Peak memory and CPU of a job's runner: a file ten times as long must need no more memory.

`python -m benchmarks.jobs_memory [--lines 100000] [--format csv]` runs that many rows and a tenth of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
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


async def memory(around: Field, pairs: int, lines: int = 100_000, suffix: str = "jsonl") -> list[Row]:
    """Peak resident memory with `lines` rows over that with a tenth."""
    del pairs  # a peak is no time
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        few, many = (_peak(around, Path(folder), count, suffix) for count in (lines // 10, lines))
    detail = (
        f"{many[0] / 2**20:.1f} / {few[0] / 2**20:.1f} MiB; with start and merge {lines / many[1]:,.0f} rows/s, "
        f"{many[2] / lines * 1e6:.0f} µs of CPU a row"
    )
    raw = {"few_bytes": few[0], "many_bytes": many[0], "seconds": many[1], "cpu_s": many[2]}
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


def _peak(around: Field, folder: Path, lines: int, suffix: str) -> tuple[int, float, float]:
    """Run a job of `lines` rows; return the runner's peak resident bytes, its wall time and its CPU time."""
    source, target = (folder / f"{name}-{lines}.{suffix}" for name in ("in", "out"))
    config = folder / "config.yaml"
    rows = ((at, f"Question {at}: what is the capital of France?") for at in range(lines))
    with source.open("w", newline="") as file:
        if suffix == "csv":
            csv.writer(file).writerows([("id", "prompt"), *rows])
        else:
            file.writelines(json.dumps({"id": at, "prompt": prompt}) + "\n" for at, prompt in rows)
    # one process: with workers, most of the memory is theirs
    block = {"base_url": around.fast, "model_name": "bench", "api_key": "x", "num_workers": 1}
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    began, cpu = time.perf_counter(), _children_cpu_s()
    peak = peak_bytes(
        [sys.executable, "-m", "promptmill", "bulk", str(source), str(target), "--config", str(config)],
        folder=ROOT,
        env={**os.environ, "PROMPTMILL_STATE": str(folder / "state")},
    )
    seconds = time.perf_counter() - began
    with target.open() as file:
        assert sum(1 for _ in file) == lines + (suffix == "csv")
    return peak, seconds, _children_cpu_s() - cpu


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _main(lines: int, suffix: str) -> None:
    async with field() as around:
        for row in await memory(around, 1, lines, suffix):
            print(report(row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.jobs_memory", description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    arguments = parser.parse_args()
    uvloop.run(_main(arguments.lines, arguments.format))
