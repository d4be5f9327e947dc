"""Memory stays flat; `benchmarks/jobs_memory.py` measures it on longer files."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from replies import answer


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the peak memory of a child")
def test_a_longer_file_takes_no_more_memory(bench: Any) -> None:
    def peak(rows: int) -> int:
        bench.write([{"id": at, "prompt": f"prompt {at}", "carried": "x" * 200} for at in range(rows)], f"{rows}.jsonl")
        bench.output = bench.path / f"{rows}.out.jsonl"
        process = subprocess.Popen(
            bench.command(concurrency=64),
            cwd=bench.path,
            env=dict(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        return usage.ru_maxrss

    bench.upstream.reply = answer()
    few, many = peak(4000), peak(12_000)  # the fewer fill every buffer already
    assert many <= 1.15 * few, (few, many, sys.platform)
