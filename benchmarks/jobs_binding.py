"""What it costs to bind the answers of a job to its rows after one row was changed, and after all of them have moved.

`python -m benchmarks.jobs_binding [--rows N]`
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from promptmill.backends.protocol import Completion, Usage
from promptmill.backends.rows import RowReader
from promptmill.jobs.files.disk import Lines, RandomFile
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.binding import Binding, Bound
from promptmill.jobs.store.records import FIRST, record_of

_BLOCK = 10_000


def _rows(numbers: Iterable[int]) -> Iterator[bytes]:
    for row in numbers:
        yield orjson.dumps({"id": row, "prompt": f"Question {row}: what is the capital of France?"}) + b"\n"


def _bind(store: JobStore, path: Path) -> tuple[Bound, float]:
    """Return what was bound to the rows of a file, and the CPU seconds of it."""
    began, reading, file = time.process_time(), RowReader("jsonl"), RandomFile(path)
    lines, binding = Lines(file), Binding(store, [0])
    while block := lines.read():
        binding.note([(line.row, reading.digest(line.data or b"")) for line in block])
    bound = binding.match()
    binding.apply(bool, FIRST)
    file.close()
    return bound, time.process_time() - began


def main() -> None:
    """Print the CPU seconds."""
    parser = argparse.ArgumentParser("python -m benchmarks.jobs_binding", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        path, reading = Path(name) / "in.jsonl", RowReader("jsonl")
        store = JobStore(Path(name) / "job.db", create=True)
        for first in range(0, rows, _BLOCK):
            block = enumerate(_rows(range(first, min(rows, first + _BLOCK))), first)
            answer = Completion("The capital of France is Paris.", "stop", Usage(14, 7), latency_s=0.25)
            store.write([record_of(row, answer, reading.digest(line.strip())) for row, line in block])
            store.sync()
        for what, numbers in (
            ("one row changed", (-1 if row == rows // 2 else row for row in range(rows))),
            ("all rows moved", (-2, *(row for row in range(rows)))),
        ):
            with path.open("wb") as file:
                file.writelines(_rows(numbers))
            bound, cpu_s = _bind(store, path)
            print(f"{what}: {cpu_s:.1f} CPU s; {bound.kept:,} of {bound.rows:,} rows keep their answers")
        store.close()


if __name__ == "__main__":
    main()
