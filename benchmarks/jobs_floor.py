"""What a row of a CSV job costs beyond the work itself: reading, posting, storing and writing it in a bare loop.

`python -m benchmarks.jobs_floor [--rows N] [--pairs N]`. Both are processes of their own; all their CPU counts. The
loop reads with `csv`, posts with our transport, commits 1,000 answers at a time to SQLite, and writes with `csv`.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import uvloop

from benchmarks.client import OUT, ROOT
from benchmarks.field import Field, field
from benchmarks.jobs_store import report
from benchmarks.measure import Row, interleaved, ratio
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.transport import Pool
from promptmill.config.configuration import Configuration

_IN_FLIGHT = 64
_COMMITTED = 1_000


async def over_floor(around: Field, pairs: int, rows: int = 200_000) -> list[Row]:
    """CPU of a job over that of the bare loop."""
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = Path(name)
        with (folder / "in.csv").open("w", newline="") as file:
            asked = ((at, f"Question {at}: what is the capital of France?") for at in range(rows))
            csv.writer(file).writerows([("id", "prompt"), *asked])
        block = {"base_url": around.fast, "model_name": "bench", "api_key": "x"}
        (folder / "config.yaml").write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
        numbers = itertools.count()

        async def job() -> float:
            run = folder / f"run-{next(numbers)}"
            files = [str(folder / "in.csv"), f"{run}.csv", "--config", str(folder / "config.yaml")]
            return await _cpu_s(run, "-m", "promptmill", "bulk", *files)

        async def floor() -> float:
            run = folder / f"run-{next(numbers)}"
            return await _cpu_s(
                run, "-m", "benchmarks.jobs_floor", "--floor", around.fast, str(folder / "in.csv"), str(run)
            )

        found = await interleaved(pairs, job=job, floor=floor)
    value, spread = ratio(found["job"], found["floor"])
    each = " and ".join(f"{sorted(found[side])[pairs // 2] / rows * 1e6:.0f}" for side in ("job", "floor"))
    return [
        Row(
            "jobs_floor",
            f"CPU of a CSV job of {rows:,} rows over the bare loop",
            value,
            spread=spread,
            detail=f"{each} µs a row",
        )
    ]


async def _cpu_s(state: Path, *words: str) -> float:
    before = _children_s()
    environ = {**os.environ, "PROMPTMILL_STATE": str(state)}
    done = await asyncio.to_thread(subprocess.run, [sys.executable, *words], env=environ, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()
    return _children_s() - before


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _bare_loop(url: str, source: Path, run: Path) -> None:
    """Answer the rows of a table as simply as it goes."""
    block = {"base_url": url, "model_name": "bench", "api_key": "x"}
    config = Configuration({"backend": "openai", "backend_configs": {"openai": block}}).config
    (endpoint,), pool = endpoints(config), Pool(config.settings.backend_configs.openai, _IN_FLIGHT)
    store = sqlite3.connect(f"{run}.db", isolation_level=None)
    store.execute("PRAGMA journal_mode=WAL")
    store.execute("CREATE TABLE answers (n INTEGER PRIMARY KEY, text TEXT)")
    answers: list[tuple[int, str]] = []

    def commit() -> None:
        store.execute("BEGIN")
        store.executemany("INSERT INTO answers VALUES (?, ?)", answers)
        store.execute("COMMIT")
        answers.clear()

    async def work(rows: Iterator[tuple[int, dict[str, str]]]) -> None:
        for at, row in rows:
            asked = {"model": "bench", "messages": [{"role": "user", "content": row["prompt"]}]}
            reply = await pool.send(endpoint, orjson.dumps(asked))
            answers.append((at, orjson.loads(reply.body)["choices"][0]["message"]["content"]))
            if len(answers) == _COMMITTED:
                commit()

    with source.open(newline="") as file:
        rows = enumerate(csv.DictReader(file))
        await asyncio.gather(*(work(rows) for _ in range(_IN_FLIGHT)))
    commit()
    with source.open(newline="") as file, run.with_suffix(".csv").open("w", newline="") as target:
        written = csv.writer(target)
        written.writerow([*next(csv.reader(file)), "answer"])
        for row, (answer,) in zip(csv.reader(file), store.execute("SELECT text FROM answers ORDER BY n"), strict=True):
            written.writerow([*row, answer])


async def _main(arguments: argparse.Namespace) -> None:
    async with field() as around:
        for row in await over_floor(around, arguments.pairs, arguments.rows):
            print(report(row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.jobs_floor", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--floor", nargs=3, metavar=("URL", "SOURCE", "RUN"), help="run the loop itself")
    arguments = parser.parse_args()
    if arguments.floor:
        url, source, run = arguments.floor
        uvloop.run(_bare_loop(url, Path(source), Path(run)))
    else:
        uvloop.run(_main(arguments))
