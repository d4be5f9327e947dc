"""Pings while the embedded model loads and generates in its own process."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time

from benchmarks.client import OURS, Server
from benchmarks.contestant import prompt
from benchmarks.crowd import pings
from benchmarks.field import Field
from benchmarks.measure import Row, percentile

_PROMPTS = 32


async def engine(field: Field, pairs: int) -> list[Row]:
    """Pings beside hf, and beside vllm where it is installed."""
    del field, pairs
    backends = ["hf"] if importlib.util.find_spec("vllm") is None else ["hf", "vllm"]
    return [await _pinged(backend) for backend in backends]


async def _pinged(backend: str) -> Row:
    """Not pinned: the engine uses every core, as it does for a user."""
    what = f"ping while {backend} loads and generates, p99"
    waits: list[float] = []
    model = f"backend_configs.{backend}.model_name_or_path=smollm2-135m-instruct"
    command = [*OURS, "--backend", backend, "--set", "sampling_params.max_tokens=64", "--set", model]
    async with Server(command) as server:
        pinging = asyncio.ensure_future(pings(server, waits))
        try:
            started = time.perf_counter()
            await server.call("generation_init", backend_configs={}, sampling_params={}, backend=backend)
            loaded, while_loading = time.perf_counter() - started, len(waits)
            await server.call("generate", prompt_ls=[prompt(index) for index in range(_PROMPTS)])
            seconds = time.perf_counter() - started - loaded
        except RuntimeError as error:
            return Row("engine", what, float("nan"), detail=str(error))
        finally:
            pinging.cancel()
    milliseconds = [wait * 1e3 for wait in waits]
    detail = (
        f"{while_loading} pings in {loaded:.1f} s of loading, {len(waits) - while_loading} in {seconds:.1f} s of "
        f"generating; median {statistics.median(milliseconds):.1f}, longest {max(milliseconds):.0f} ms"
    )
    return Row("engine", what, percentile(milliseconds, 99), 50, unit="ms", detail=detail)
