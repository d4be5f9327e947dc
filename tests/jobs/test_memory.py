"""Memory stays flat; `benchmarks/jobs_memory.py` measures it on longer files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

import peak
from replies import answer


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the peak memory of a child")
def test_a_longer_file_takes_no_more_memory(bench):
    def peak_with(rows: int) -> int:
        bench.write([{"id": at, "prompt": f"prompt {at}", "carried": "x" * 200} for at in range(rows)], f"{rows}.jsonl")
        bench.output = bench.path / f"{rows}.out.jsonl"
        return peak.peak_bytes(bench.command(concurrency=64), folder=bench.path)

    bench.upstream.reply = answer()
    few, many = peak_with(4000), peak_with(12_000)  # the fewer fill every buffer already
    assert many <= 1.15 * few, (few, many)


PAGE_BYTES = 20 << 20
STEP = """
import sys
from pathlib import Path

from ingested import Ingested
from promptmill.jobs.export import output
from promptmill.files.files import InputFile, InputFiles
from promptmill.files.parquet import ParquetTable
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.plan import JobSpec

source, step = Path(sys.argv[1]), sys.argv[2]
if step == "open":
    ParquetTable(InputFiles([InputFile(source)]))
elif step == "read":
    job = Ingested(source.parent, source.name, output_name="out.parquet")
    job.answer()
    job.store.put(spec=job.spec.model_dump(mode="json"))
else:
    store = JobDatabase(source.with_name("0.db"))
    output.write_output(store, JobSpec.model_validate(store.get("spec")), Work())
"""


def peak_of(source: Path, step: str) -> int:
    """Return the peak memory of a step of a job over this file."""
    support = str(Path(peak.__file__).parent)
    command = [sys.executable, "-c", STEP, str(source), step]
    return peak.peak_bytes(command, folder=source.parent, env={**os.environ, "PYTHONPATH": support})


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="pages pass through Python elsewhere, and are held once more")
def test_parquet_takes_the_memory_of_a_few_pages_however_long_it_is(tmp_path):
    """Images as `datasets` writes them: a row group of 100 has one page, which is there packed and unpacked.

    Arrow keeps some of what it has freed, differently from run to run; the whole file would be ten pages.
    """
    source = tmp_path / "in.parquet"
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("prompt", pa.string()), ("image", image)])
    with parquet.ParquetWriter(source, schema) as writer:
        for _ in range(10):
            images = [{"bytes": os.urandom(PAGE_BYTES // 100), "path": None} for _ in range(100)]
            writer.write_table(pa.table({"prompt": ["what?"] * 100, "image": images}, schema))
    opened, read, written = (peak_of(source, step) for step in ("open", "read", "write"))
    assert read - opened < 7 * PAGE_BYTES, (opened, read)
    assert written - opened < 7 * PAGE_BYTES, (opened, written)


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the peak memory of a child")
def test_rows_of_json_become_parquet_in_flat_memory(tmp_path):
    def peaks(rows: int) -> list[int]:
        (folder := tmp_path / str(rows)).mkdir()
        row = '{"prompt": "what?", "id": %d, "tags": ["a", "b"], "deep": {"x": 1.5}, "filler": "%s"}\n'
        with (folder / "in.jsonl").open("w") as file:
            file.writelines(row % (at, os.urandom(500).hex()) for at in range(rows))
        return [peak_of(folder / "in.jsonl", step) for step in ("read", "write")]

    for few, many in zip(peaks(20_000), peaks(120_000), strict=True):  # 100 MB more
        assert many - few < 30 << 20, (few, many)
