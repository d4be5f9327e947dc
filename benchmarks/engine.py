"""Pings while the embedded model loads and generates in its own process."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.client import OURS, Server
from benchmarks.contestant import prompt
from benchmarks.crowd import pings
from benchmarks.field import Field
from benchmarks.measure import Row, percentile

_PROMPTS = 32


async def engine(field: Field, pairs: int) -> list[Row]:
    """Not pinned: the engine uses every core, as it does for a user."""
    del field, pairs
    waits: list[float] = []
    async with Server([*OURS, "--backend", "hf", "--set", "sampling_params.max_tokens=64"]) as server:
        pinging = asyncio.ensure_future(pings(server, waits))
        try:
            started = time.perf_counter()
            await server.call("generation_init", backend_configs={}, sampling_params={}, backend="hf")
            loaded, while_loading = time.perf_counter() - started, len(waits)
            await server.call("generate", prompt_ls=[prompt(index) for index in range(_PROMPTS)])
            seconds = time.perf_counter() - started - loaded
        except RuntimeError as error:
            return [Row("engine", "ping while hf loads and generates, p99", float("nan"), detail=str(error))]
        finally:
            pinging.cancel()
    milliseconds = [wait * 1e3 for wait in waits]
    detail = (
        f"{while_loading} pings in {loaded:.1f} s of loading, {len(waits) - while_loading} in {seconds:.1f} s of "
        f"generating; median {statistics.median(milliseconds):.1f}, longest {max(milliseconds):.0f} ms"
    )
    value = percentile(milliseconds, 99)
    return [Row("engine", "ping while hf loads and generates, p99", value, 50, unit="ms", detail=detail)]
