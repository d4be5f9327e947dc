"""Peak memory and CPU of a job's runner: a file ten times as long must need no more memory.

`python -m benchmarks.jobs_memory [--lines 100000] [--format csv]` runs that many rows and a tenth of them, into the
same format. Formats: jsonl, csv, sqlite, duckdb (by a query), parquet.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable
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
    _write(source, ((at, f"Question {at}: what is the capital of France?") for at in range(lines)))
    query = ["--sql", "SELECT * FROM rows"] if suffix == "duckdb" else []
    if suffix == "db":
        source = source.with_name(f"{source.name}#rows")
    if suffix in {"db", "duckdb"}:
        target = target.with_name(f"{target.name}#rows")
    # one process: with workers, most of the memory is theirs
    block = {"base_url": around.fast, "model_name": "bench", "api_key": "x", "num_workers": 1}
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    began, cpu = time.perf_counter(), _children_cpu_s()
    peak = peak_bytes(
        [sys.executable, "-m", "promptmill", "bulk", str(source), str(target), *query, "--config", str(config)],
        folder=ROOT,
        env={**os.environ, "PROMPTMILL_STATE": str(folder / "state")},
    )
    seconds = time.perf_counter() - began
    assert _count(target) == lines
    return peak, seconds, _children_cpu_s() - cpu


def _write(path: Path, rows: Iterable[tuple[int, str]]) -> None:
    """Write rows with the columns `id` and `prompt`."""
    if path.suffix == ".db":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE rows (id INTEGER, prompt TEXT)")
            connection.executemany("INSERT INTO rows VALUES (?, ?)", rows)
        connection.close()
    elif path.suffix == ".duckdb":
        import duckdb  # no package of the environment of vLLM, whose benchmarks run from the same command
        import pyarrow as pa

        ids, prompts = zip(*rows, strict=True)
        table = pa.table({"id": ids, "prompt": prompts})
        with duckdb.connect(str(path)) as connection:
            connection.register("made", table)
            connection.execute("CREATE TABLE rows AS FROM made")
    elif path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        ids, prompts = zip(*rows, strict=True)
        parquet.write_table(pa.table({"id": ids, "prompt": prompts}), path, row_group_size=100_000)
    else:
        with path.open("w", newline="") as file:
            if path.suffix == ".csv":
                csv.writer(file).writerows([("id", "prompt"), *rows])
            else:
                file.writelines(json.dumps({"id": at, "prompt": prompt}) + "\n" for at, prompt in rows)


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    if ".duckdb#" in path.name:
        import duckdb

        with duckdb.connect(str(path).partition("#")[0]) as connection:
            return int(connection.execute("SELECT count(*) FROM rows").fetchall()[0][0])
    if "#" in path.name:
        with sqlite3.connect(str(path).partition("#")[0]) as connection:
            return int(connection.execute("SELECT count(*) FROM rows").fetchone()[0])
    with path.open() as file:
        return sum(1 for _ in file) - (path.suffix == ".csv")


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
    parser.add_argument("--format", choices=("jsonl", "csv", "sqlite", "duckdb", "parquet"), default="jsonl")
    arguments = parser.parse_args()
    uvloop.run(_main(arguments.lines, {"sqlite": "db"}.get(arguments.format, arguments.format)))
