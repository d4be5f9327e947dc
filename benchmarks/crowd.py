"""Much at once: 100,000 prompts in one call, several calls, a small call and pings beside a huge one."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil

from benchmarks.client import Server
from benchmarks.contestant import prompt
from benchmarks.field import Field, timed_call
from benchmarks.measure import Row, interleaved, percentile, ratio

_HUGE = 100_000
_PING_PAUSE_S = 0.005
_IN_FLIGHT = 64
_SMALL = 8
_SMALL_CALLS = 60


@contextlib.asynccontextmanager
async def beside(work: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Do `work` again and again while the block runs."""

    async def forever() -> None:
        while True:
            await work()

    task = asyncio.ensure_future(forever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def pings(server: Server, found: list[float]) -> None:
    """Ping until cancelled, noting seconds."""
    while True:
        found.append(await server.ping())
        await asyncio.sleep(_PING_PAUSE_S)


async def large(field: Field, pairs: int) -> list[Row]:
    """100,000 prompts in one call: memory, rate over time, live tasks, pings meanwhile."""
    del pairs
    prompts = [prompt(index) for index in range(_HUGE)]
    waits: list[float] = []
    sizes: list[tuple[float, int]] = []
    done: list[tuple[float, float]] = []
    async with field.ours(field.fast, 256) as server:
        await server.call("generate", prompt_ls=prompts[:2000])
        process = psutil.Process(server.pid)

        async def weigh() -> None:
            while True:
                sizes.append((time.perf_counter(), process.memory_info().rss))
                await asyncio.sleep(0.1)

        before = process.memory_info().rss
        watchers = [asyncio.ensure_future(pings(server, waits)), asyncio.ensure_future(weigh())]
        started = time.perf_counter()
        result = await server.call_watched(
            "generate", lambda count: done.append((time.perf_counter(), count)), prompt_ls=prompts
        )
        seconds = time.perf_counter() - started
        for watcher in watchers:
            watcher.cancel()
    answers = result["structuredContent"]["ans_ls"]
    payload = sum(map(len, prompts)) + sum(map(len, answers))
    peak = max(size for _, size in sizes) - before
    tasks = await _live_tasks(field, _IN_FLIGHT)
    first, last = _rates(done)
    milliseconds = [wait * 1e3 for wait in waits]
    slowest = f"median {statistics.median(milliseconds):.1f}, longest {max(milliseconds):.0f} ms"
    each = f"the texts alone are {payload / _HUGE:.0f} bytes each"
    return [
        Row(
            "large",
            "100,000 prompts: rate of the last third / first third",
            last / first,
            0.9,
            ">=",
            detail=f"{last:,.0f} / {first:,.0f} requests/s; {seconds:.1f} s with {len(answers):,} answers",
        ),
        Row(
            "large",
            "memory at its peak, per prompt",
            peak / _HUGE,
            unit="bytes",
            detail=f"{peak / 2**20:.0f} MiB above the idle server; {each}",
        ),
        Row("large", f"live tasks at most, {_IN_FLIGHT} in flight", tasks, 2 * _IN_FLIGHT, unit="tasks"),
        Row(
            "large",
            "ping meanwhile, p99",
            percentile(milliseconds, 99),
            20,
            unit="ms",
            detail=f"{len(waits)} pings, {slowest}",
        ),
    ]


def _rates(done: list[tuple[float, float]]) -> tuple[float, float]:
    """Return items per second of the first and the last third of a call, from its progress."""
    points = [point for point in done if point[1] >= 1]
    third = max(1, (len(points) - 1) // 3)

    def rate(since: tuple[float, float], until: tuple[float, float]) -> float:
        return (until[1] - since[1]) / max(1e-9, until[0] - since[0])

    return rate(points[0], points[third]), rate(points[-1 - third], points[-1])


async def _live_tasks(field: Field, in_flight: int) -> int:
    """Return the most tasks that a call of 20,000 prompts keeps alive, counted inside one process."""
    from promptmill.backends.protocol import Call
    from promptmill.config.configuration import Configuration
    from promptmill.core.request import conversation_from_prompt
    from promptmill.service.service import Service

    block = "backend_configs.openai"
    settings = {"base_url": field.fast, "model_name": "bench", "concurrency": in_flight}
    configuration = Configuration.load(
        backend="openai", assignments={f"{block}.{key}": value for key, value in settings.items()}
    )
    service = Service(configuration)
    others = len(asyncio.all_tasks())
    call = asyncio.ensure_future(
        service.generate([conversation_from_prompt(prompt(index), "") for index in range(20_000)], Call())
    )
    most = 0
    while not call.done():
        most = max(most, len(asyncio.all_tasks()) - others)
        await asyncio.sleep(0.02)
    await service.aclose()
    return most


async def four(field: Field, pairs: int) -> list[Row]:
    """Four calls at once against one call of the same size in all."""
    size = 24_000
    prompts = [prompt(index) for index in range(size)]
    async with field.ours(field.fast, _IN_FLIGHT) as server:

        async def one() -> float:
            return size / (await timed_call(server, "generate", prompt_ls=prompts))["seconds"]

        async def four() -> float:
            started = time.perf_counter()
            part = size // 4
            await asyncio.gather(
                *(server.call("generate", prompt_ls=prompts[at : at + part]) for at in range(0, size, part))
            )
            return size / (time.perf_counter() - started)

        await one()
        found = await interleaved(pairs, four=four, one=one)
    value, spread = ratio(found["four"], found["one"])
    detail = f"{statistics.median(found['four']):,.0f} / {statistics.median(found['one']):,.0f} requests/s"
    return [Row("four", "four calls at once / one call", value, 0.95, ">=", spread=spread, detail=detail, raw=found)]


async def small_beside_huge(field: Field, pairs: int) -> list[Row]:
    """A call of a few prompts, alone and beside a huge one."""
    rows = []
    for name, url, target in (("50 ms", field.slow, 3.0), ("no latency", field.fast, None)):
        async with field.ours(url, _IN_FLIGHT) as server:
            few = [prompt(index) for index in range(_SMALL)]
            many = [prompt(index) for index in range(_HUGE if url == field.fast else 8_000)]

            async def block(server: Server = server, few: list[str] = few) -> float:
                times = [(await timed_call(server, "generate", prompt_ls=few))["seconds"] for _ in range(_SMALL_CALLS)]
                return percentile(times, 95)

            async def crowded(
                server: Server = server, many: list[str] = many, block: Callable[[], Awaitable[float]] = block
            ) -> float:
                async with beside(lambda: server.call("generate", prompt_ls=many)):
                    await asyncio.sleep(0.5)
                    return await block()

            await server.call("generate", prompt_ls=many[:2000])
            found = await interleaved(min(pairs, 5), crowded=crowded, alone=block)
        value, spread = ratio(found["crowded"], found["alone"])
        crowd, alone = (statistics.median(found[key]) * 1e3 for key in ("crowded", "alone"))
        detail = f"{crowd:.1f} / {alone:.1f} ms, {_SMALL} prompts"
        rows.append(
            Row("beside", f"small call beside a huge one, p95, {name}", value, target, spread=spread, detail=detail)
        )
    return rows
