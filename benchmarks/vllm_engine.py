"""The vllm backend beside vLLM itself, on the embedded model and the CPU: run it with .venv-vllm/bin/python."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, Literal

from benchmarks.alone import alone
from benchmarks.client import OURS, Server
from benchmarks.contestant import prompt
from benchmarks.field import Field
from benchmarks.measure import Row, every_core, interleaved, ratio

_VLLM = "benchmarks.vllm_contestant"
_PROMPTS, _TOKENS = 64, 64
_SMALL_CALL = 32  # tokens of an answer where calls are compared

Case = Callable[[Field, int], Awaitable[list[Row]]]


def _where_vllm_is(case: Case) -> Case:
    @wraps(case)
    async def run(field: Field, pairs: int) -> list[Row]:
        if importlib.util.find_spec("vllm") is None:
            return [Row(case.__name__, "vLLM is not installed here", float("nan"), detail="scripts/setup-vllm")]
        with every_core(field.outer):
            return await case(field, pairs)

    return run


@asynccontextmanager
async def ours(tokens: int = _TOKENS, **block: Any) -> AsyncIterator[tuple[Server, float]]:
    """Start our server and load the model; yield it and the seconds from the start of its process."""
    settings = {"sampling_params": f"{{temperature: 0, max_tokens: {tokens}}}", "extra_params": "{ignore_eos: true}"}
    settings |= {"backend_configs.vllm.model_name_or_path": "smollm2-135m-instruct"}
    settings |= {f"backend_configs.vllm.{name}": value for name, value in block.items()}
    command = [*OURS, "--backend", "vllm"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    started = time.perf_counter()
    async with Server(command) as server:
        await server.call("generation_init", backend_configs={}, sampling_params={}, backend="vllm")
        yield server, time.perf_counter() - started


async def tokens_per_s(server: Server) -> float:
    """Return tokens per second of the workload through the tool."""
    began = time.perf_counter()
    result = await server.call("generate", prompt_ls=[prompt(index) for index in range(_PROMPTS)])
    seconds = time.perf_counter() - began
    assert "errors" not in result["structuredContent"], result["structuredContent"]["errors"][:1]
    return _PROMPTS * _TOKENS / seconds


@_where_vllm_is
async def vllm_chat(field: Field, pairs: int) -> list[Row]:
    """64 prompts through the tool beside the offline `LLM.chat` with the same settings, both loaded all the time."""
    del field
    async with ours(kv_cache_memory_bytes=2 << 30) as (server, _), alone(_VLLM, "same") as theirs:
        await tokens_per_s(server), await theirs.tokens_per_s(_PROMPTS, _TOKENS)
        found = await interleaved(
            pairs, ours=lambda: tokens_per_s(server), theirs=lambda: theirs.tokens_per_s(_PROMPTS, _TOKENS)
        )
    value, spread = ratio(found["ours"], found["theirs"])
    detail = f"{statistics.median(found['ours']):.0f} / {statistics.median(found['theirs']):.0f} tokens/s"
    what = "64 prompts through the tool over LLM.chat"
    return [Row("vllm_chat", what, value, 0.95, ">=", spread=spread, detail=detail, raw=found)]


@_where_vllm_is
async def vllm_settings(field: Field, pairs: int) -> list[Row]:
    """Our settings on a CPU beside vLLM's own, uncompiled: until ready, and tokens per second; started in turn."""
    del field
    ready: dict[str, list[float]] = {"ours": [], "own": []}

    async def chosen() -> float:
        async with ours() as (server, seconds):
            ready["ours"].append(seconds)
            await tokens_per_s(server)
            return await tokens_per_s(server)

    async def own() -> float:
        async with alone(_VLLM, "own") as theirs:
            ready["own"].append(float(theirs.said))
            await theirs.tokens_per_s(_PROMPTS, _TOKENS)
            return await theirs.tokens_per_s(_PROMPTS, _TOKENS)

    speed = await interleaved(pairs, ours=chosen, own=own)
    rows = []
    better: Literal["<=", ">="]
    for what, found, target, better, unit in (
        ("tokens/s with our settings over vLLM's own", speed, 1.3, ">=", "tokens/s"),
        ("until ready with our settings over vLLM's own", ready, 0.7, "<=", "s"),
    ):
        value, spread = ratio(found["ours"], found["own"])
        detail = f"{statistics.median(found['ours']):.1f} / {statistics.median(found['own']):.1f} {unit}"
        rows.append(Row("vllm_settings", what, value, target, better, spread=spread, detail=detail, raw=found))
    return rows


@_where_vllm_is
async def vllm_calls(field: Field, pairs: int) -> list[Row]:
    """Four calls at once beside the same four one after another."""
    del field
    rows = []
    async with ours(_SMALL_CALL) as (server, _):
        await server.call("generate", prompt_ls=["warm"])
        for size, target in ((1, 2.0), (16, 1.15)):

            async def call(number: int, size: int = size) -> None:
                await server.call("generate", prompt_ls=[prompt(number * size + index) for index in range(size)])

            async def in_turn() -> float:
                began = time.perf_counter()
                for number in range(4):
                    await call(number)
                return time.perf_counter() - began

            async def at_once() -> float:
                began = time.perf_counter()
                await asyncio.gather(*(call(number) for number in range(4)))
                return time.perf_counter() - began

            await in_turn(), await at_once()
            found = await interleaved(pairs, in_turn=in_turn, at_once=at_once)
            value, spread = ratio(found["in_turn"], found["at_once"])
            detail = f"{statistics.median(found['in_turn']):.2f} s / {statistics.median(found['at_once']):.2f} s"
            what = f"4 calls of {size} at once over one after another"
            rows.append(Row("vllm_calls", what, value, target, ">=", spread=spread, detail=detail, raw=found))
    return rows
