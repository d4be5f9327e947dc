"""What a job's database costs: rows through the openai backend with it, against the same rows without.

`python -m benchmarks.jobs_store [--rows N] [--pairs N]`
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.client import OUT
from benchmarks.field import Field, field
from benchmarks.measure import Row, interleaved, own_cpu_s, pin, ratio
from promptmill.backends.protocol import Call, Outcome
from promptmill.backends.rows import RowReader
from promptmill.config.loading import Configuration
from promptmill.jobs.files.disk import LineRange, RandomFile
from promptmill.jobs.run.unanswered_rows import Answering, FileSource, Rows, StoreSink
from promptmill.jobs.store.answers import NEVER, JobStore
from promptmill.jobs.store.records import JobCounts
from promptmill.service.service import Service

_SYNC_S = 0.9


class NoSink:
    """Takes outcomes and forgets them."""

    async def put(self, key: int, outcome: Outcome) -> None:
        """Do nothing."""


async def cost(around: Field, pairs: int, rows: int = 20_000) -> list[Row]:
    """Seconds with the database over those without, at an upstream that answers at once and at one that takes 50 ms."""
    pin(around.inner)
    try:
        fast = await _cost(around.fast, pairs, rows, 64, "answers at once: our core is the limit")
        slow = await _cost(around.slow, pairs, rows // 4, 64, "answers after 50 ms")
        return [fast, slow]
    finally:
        pin(around.outer)


async def _cost(url: str, pairs: int, rows: int, in_flight: int, what: str) -> Row:
    folder = Path(tempfile.mkdtemp(prefix="store-", dir=OUT))
    source = folder / "in.jsonl"
    with source.open("wb") as file:
        for row in range(rows):
            file.write(orjson.dumps({"id": row, "prompt": f"Question {row}: what is the capital of France?"}) + b"\n")
    # one process: the rows of workers are recorded by one process as well
    block = {"base_url": url, "model_name": "bench", "api_key": "x", "concurrency": in_flight, "num_workers": 1}
    service = Service(Configuration({"backend": "openai", "backend_configs": {"openai": block}}))
    used: dict[bool, list[float]] = {True: [], False: []}

    async def run(*, stored: bool) -> float:
        shutil.rmtree(folder / "job", ignore_errors=True)
        (folder / "job").mkdir()
        file = RandomFile(source)
        store = JobStore(folder / "job" / "job.db", create=True)
        stats = Call()
        began, cpu = time.perf_counter(), own_cpu_s()
        await (_stored if stored else _forgotten)(service, store, stats, file, source)
        seconds = time.perf_counter() - began
        used[stored].append(own_cpu_s() - cpu)
        assert (stats.done, stats.failed) == (rows, 0)
        store.close()
        file.close()
        return seconds

    try:
        await run(stored=True), await run(stored=False)
        used = {True: [], False: []}
        found = await interleaved(pairs, on=lambda: run(stored=True), off=lambda: run(stored=False))
    finally:
        await service.aclose()
        shutil.rmtree(folder)
    value, spread = ratio(found["on"], found["off"])
    each = {stored: statistics.median(times) / rows * 1e6 for stored, times in used.items()}
    rates = [rows / statistics.median(found[name]) for name in ("on", "off")]
    detail = f"{rates[0]:,.0f} / {rates[1]:,.0f} rows/s; CPU {each[True]:.0f} / {each[False]:.0f} µs a row"
    return Row("jobs_store", f"database on over off, {what}", value, 1.08, spread=spread, detail=detail, raw=found)


async def _stored(service: Service, store: JobStore, stats: Call, file: RandomFile, source: Path) -> None:
    syncing = asyncio.ensure_future(_sync(store))
    rows = Rows(LineRange(file), source, RowReader("jsonl"), store, NEVER, None, _nothing)
    sink = StoreSink(store, JobCounts(), stats, _give_up, _give_up)
    await Answering(service, rows, sink, stats, _give_up, service.plan).run()
    syncing.cancel()


async def _forgotten(service: Service, store: JobStore, stats: Call, file: RandomFile, source: Path) -> None:
    async def settle(row: int, outcome: Outcome) -> None:
        raise AssertionError(row, outcome)

    rows = Rows(LineRange(file), source, RowReader("jsonl"), store, NEVER, None, _nothing)
    reader = FileSource(rows, {}, settle, _give_up)
    await service.run(reader, NoSink(), stats)
    await reader.aclose()


def _nothing() -> None:
    """Guard nothing."""


def _give_up(error: Exception) -> None:
    raise error


async def _sync(store: JobStore) -> None:
    while True:
        await asyncio.to_thread(store.sync)
        await asyncio.sleep(_SYNC_S)


async def _main(arguments: argparse.Namespace) -> None:
    async with field() as around:
        for row in await cost(around, arguments.pairs, arguments.rows):
            print(report(row))


def report(row: Row) -> str:
    """Return the row as a line."""
    spread = f" ({row.spread[0]:.3f}-{row.spread[1]:.3f})" if row.spread else ""
    bound = f", target {row.better} {row.target:g}" if row.target is not None else ""
    return f"{row.what}: {row.value:.3f}{row.unit}{spread}{bound}; {row.detail}"


def _arguments() -> Any:
    parser = argparse.ArgumentParser("python -m benchmarks.jobs_store", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    uvloop.run(_main(_arguments()))
