"""What it costs to read an input again, and bind the answers to its rows: one row was changed, and all have moved.

`python -m benchmarks.jobs_binding [--rows N]`
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from benchmarks.jobs_store import read, spec_of
from promptmill.backends.protocol import Completion, Usage
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import record_of

_BLOCK = 10_000


def _rows(numbers: Iterable[int]) -> Iterator[bytes]:
    for row in numbers:
        yield orjson.dumps({"id": row, "prompt": f"Question {row}: what is the capital of France?"}) + b"\n"


def main() -> None:
    """Print the CPU seconds."""
    parser = argparse.ArgumentParser("python -m benchmarks.jobs_binding", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "in.jsonl"
        store = JobDatabase(Path(name) / "job.db", write=True)
        with path.open("wb") as file:
            file.writelines(_rows(range(rows)))
        spec, _ = read(store, spec_of(path, "jsonl"))
        answer = Completion("The capital of France is Paris.", "stop", Usage(14, 7), latency_s=0.25)
        for first in range(0, rows, _BLOCK):
            store.write([record_of(row.n, answer, row.asked) for row in store.rows(first, first + _BLOCK - 1)])
            store.sync()
        for what, numbers in (
            ("one row changed", (-1 if row == rows // 2 else row for row in range(rows))),
            ("all rows moved", (-2, *(row for row in range(rows)))),
        ):
            with path.open("wb") as file:
                file.writelines(_rows(numbers))
            began = time.process_time()
            spec, bound = read(store, spec)
            cpu_s = time.process_time() - began
            print(f"{what}: {cpu_s:.1f} CPU s; {bound.kept:,} of {bound.rows:,} rows keep their answers")
        store.close()


if __name__ == "__main__":
    main()
