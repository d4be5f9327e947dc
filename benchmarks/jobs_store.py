"""What a job's database costs: rows through the openai backend with it, against the same rows without.

With it, the file is read into the database first.

`python -m benchmarks.jobs_store [--rows N] [--pairs N]`
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
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
from promptmill.config.configuration import Configuration
from promptmill.core.request import Request
from promptmill.files.files import InputFile, InputFiles
from promptmill.jobs.ingest import ingest
from promptmill.jobs.inputs.any_format import input_of
from promptmill.jobs.inputs.question_columns import questions_of
from promptmill.jobs.rows.row_lines import RowReader
from promptmill.jobs.rows.row_questions import RowRequests
from promptmill.jobs.run.live import answer_rows
from promptmill.jobs.run.open_rows import OpenRows
from promptmill.jobs.run.store_sink import StoreSink
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.rounds import Round
from promptmill.jobs.store.spec import InputSpec, OutputSpec
from promptmill.jobs.store.statistics import JobCounts
from promptmill.service.service import Service


class Lines:
    """The requests of a file of rows, without a database."""

    def __init__(self, path: Path) -> None:
        self._lines = enumerate(path.read_bytes().splitlines())
        self._reader = RowReader("jsonl")

    async def take(self, n: int) -> list[Request]:
        """Return the next requests."""
        return [self._reader.request(row, line) for row, line in itertools.islice(self._lines, n)]


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
    reading: list[float] = []

    async def run(*, stored: bool) -> float:
        shutil.rmtree(folder / "job", ignore_errors=True)
        (folder / "job").mkdir()
        store, call = JobDatabase(folder / "job" / "job.db", write=True), Call()
        began, cpu = time.perf_counter(), own_cpu_s()
        if stored:
            reading.append(await _stored(service, store, call, source))
        else:
            await service.run(Lines(source), NoSink(), call)
        seconds = time.perf_counter() - began
        used[stored].append(own_cpu_s() - cpu)
        assert (call.counts.done, call.counts.failed) == (rows, 0)
        store.close()
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
    detail = f"{rates[0]:,.0f} / {rates[1]:,.0f} rows/s; CPU {each[True]:.0f} / {each[False]:.0f} µs a row; "
    detail += f"reading {statistics.median(reading) / rows * 1e6:.0f} µs a row"
    return Row("jobs_store", f"database on over off, {what}", value, 1.08, spread=spread, detail=detail, raw=found)


async def _stored(service: Service, store: JobDatabase, call: Call, source: Path) -> float:
    """Run a job; return the seconds in which it read its input."""
    began = time.perf_counter()
    spec, _ = await asyncio.to_thread(read, store, spec_of(source, "jsonl"))
    seconds = time.perf_counter() - began
    round_ = Round(1, "open", "first")
    (questions,) = questions_of(spec.question, spec.input.format, spec.input.header)
    rows = OpenRows(store, round_, spec.targets, [RowRequests(RowReader("jsonl"), questions)])
    sink = StoreSink(store, JobCounts(), call, _give_up, made=[spec.targets[0].made(round_.id)])
    await answer_rows(service, rows, sink, call, service.config)
    return seconds


def spec_of(source: Path, input_format: str) -> JobSpec:
    """Return a job over a file."""
    return JobSpec(
        job_id="bench-0123456789",
        created=0,
        input=InputSpec(path=source, format=input_format),
        output=OutputSpec(path=source.with_name("out.jsonl"), format="jsonl"),
        backend="openai",
        model="bench",
    )


def read(store: JobDatabase, spec: JobSpec) -> tuple[JobSpec, Bound]:
    """Read the input of a job, again if it was read before."""
    files = InputFiles([InputFile(spec.input.path)])
    return ingest(store, spec, input_of(files, spec.input.format), Work(), files)


def _give_up(error: Exception) -> None:
    raise error


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
