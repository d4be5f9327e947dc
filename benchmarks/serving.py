"""What the server costs beside the barest FastMCP server: until its tools are listed, and per call."""

from __future__ import annotations

import statistics
import time

from benchmarks.client import BARE, Server
from benchmarks.contestant import prompt
from benchmarks.field import Field
from benchmarks.measure import Row, interleaved, ratio

_CALLS = 200


async def startup(field: Field, pairs: int) -> list[Row]:
    """From the start of the process until `tools/list` is answered."""

    async def ours() -> float:
        async with field.ours(field.fast, 64) as server:
            return server.ready_s

    async def bare() -> float:
        async with Server(BARE, core=field.inner) as server:
            return server.ready_s

    await ours(), await bare()  # the first start writes byte code
    found = await interleaved(max(pairs, 9), ours=ours, bare=bare)
    value, spread = ratio(found["ours"], found["bare"])
    detail = f"{statistics.median(found['ours']):.2f} s / {statistics.median(found['bare']):.2f} s"
    return [Row("startup", "start until tools/list", value, 1.15, spread=spread, detail=detail, raw=found)]


async def call(field: Field, pairs: int) -> list[Row]:
    """One prompt over an upstream that answers at once, against an empty tool."""
    async with field.ours(field.fast, 64) as server, Server(BARE, core=field.inner) as empty:

        async def block(of: Server, tool: str) -> float:
            times = []
            for index in range(_CALLS):
                started = time.perf_counter()
                await of.call(tool, prompt_ls=[prompt(index)])
                times.append(time.perf_counter() - started)
            return statistics.median(times)

        await block(server, "generate"), await block(empty, "one")
        found = await interleaved(
            max(pairs, 9), ours=lambda: block(server, "generate"), bare=lambda: block(empty, "one")
        )
    value, spread = ratio(found["ours"], found["bare"])
    detail = f"{statistics.median(found['ours']) * 1e3:.2f} ms / {statistics.median(found['bare']) * 1e3:.2f} ms"
    return [Row("call", "generate, one prompt", value, 2.0, spread=spread, detail=detail, raw=found)]
