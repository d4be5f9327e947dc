"""Memory stays flat; `benchmarks/jobs_memory.py` measures it on longer files."""

from __future__ import annotations

import os
from typing import Any

import pytest

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
