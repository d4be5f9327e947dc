"""From the start of the server to the first answer, with the file that is shipped; the disk is warm."""

from __future__ import annotations

import statistics
import time

from benchmarks.client import OURS, ROOT, Server
from benchmarks.field import Field
from benchmarks.measure import Row, every_core, family_cpu_s

_PROMPT = "What is the capital of France?"


async def first_answer(field: Field, pairs: int) -> list[Row]:
    """Not pinned: the engine uses every core, as it does for a user."""
    with every_core(field.outer):
        return await _first_answer(pairs)


async def _first_answer(pairs: int) -> list[Row]:
    whole: list[float] = []
    server_s: list[float] = []
    cpu: list[float] = []
    for _ in range(pairs + 1):
        started = time.perf_counter()
        async with Server([*OURS, "--config", str(ROOT / "parameter.yaml")]) as server:
            result = await server.call("generate", prompt_ls=[_PROMPT])
            whole.append(time.perf_counter() - started)
            server_s.append(server.ready_s)
            cpu.append(family_cpu_s(server.pid))
            text = result["structuredContent"]["ans_ls"][0]
            tokens = result["_meta"]["completion_tokens"]
    whole, server_s, cpu = whole[1:], server_s[1:], cpu[1:]  # the first one warmed the disk
    detail = (
        f"of these {statistics.median(server_s):.1f} s until the server answered; {statistics.median(cpu):.1f} s of "
        f"CPU in all processes; {min(whole):.1f} … {max(whole):.1f} s; the last answer: {tokens} tokens, {text[:40]!r}"
    )
    return [Row("first", "first answer, shipped parameter.yaml", statistics.median(whole), 3, unit="s", detail=detail)]
