"""Memory stays flat; `benchmarks/jobs_memory.py` measures it on longer files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from peak import peak_bytes
from replies import answer


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the peak memory of a child")
def test_a_longer_file_takes_no_more_memory(bench: Any) -> None:
    def peak(rows: int) -> int:
        bench.write([{"id": at, "prompt": f"prompt {at}", "carried": "x" * 200} for at in range(rows)], f"{rows}.jsonl")
        bench.output = bench.path / f"{rows}.out.jsonl"
        return peak_bytes(bench.command(concurrency=64), folder=bench.path)

    bench.upstream.reply = answer()
    few, many = peak(4000), peak(12_000)  # the fewer fill every buffer already
    assert many <= 1.15 * few, (few, many)


PAGE_BYTES = 20 << 20
EITHER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from promptmill.backends.protocol import Completion, Usage
from promptmill.jobs.files import spool, tables
from promptmill.jobs.files.row_files import InputFiles, Part
from promptmill.jobs.run import merge
from promptmill.jobs.store.records import record_of
source, what = Path(sys.argv[1]), sys.argv[2]
files = InputFiles([Part(source)])
if what == "open":
    tables.ParquetTable(files)
elif what == "spool":
    spool.spool(files, "parquet", source.with_suffix(".rows"))
else:
    record = record_of(0, Completion("yes", "stop", Usage(1, 1)))
    kind, lines = ("parquet", None) if source.suffix == ".parquet" else ("jsonl", files.first)
    spec = SimpleNamespace(columns=None, answer_schema=None, input_format=kind, leaves_out=lambda code: False)
    answers = SimpleNamespace(rare_fields=lambda: (), find=lambda row: record)
    with source.with_suffix(".out").open("wb") as out:
        merge.write_rows(merge.Merge(spec, files, lines, answers, source.with_suffix(".out"), "parquet"), out)
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="pages pass through Python elsewhere, and are held once more")
@pytest.mark.parametrize("what", ["spool", "write"])
def test_parquet_takes_the_memory_of_a_few_pages_however_long_it_is(tmp_path: Path, what: str) -> None:
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

    def peak(doing: str) -> int:
        return peak_bytes([sys.executable, "-c", EITHER, str(source), doing], folder=tmp_path)

    opened, peaks = peak("open"), [peak(what) for _ in range(3)]
    assert min(peaks) - opened < 7 * PAGE_BYTES, (opened, peaks)


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the peak memory of a child")
def test_rows_of_json_become_parquet_in_flat_memory(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        source = tmp_path / f"{rows}.jsonl"
        row = '{"prompt": "what?", "id": %d, "tags": ["a", "b"], "deep": {"x": 1.5}, "filler": "%s"}\n'
        source.write_text("".join(row % (at, os.urandom(500).hex()) for at in range(rows)))
        return peak_bytes([sys.executable, "-c", EITHER, str(source), "write"], folder=tmp_path)

    few, many = peak(20_000), peak(120_000)  # 100 MB more
    assert many - few < 30 << 20, (few, many)
