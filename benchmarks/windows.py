"""The adaptive window where answers take seconds: beside a fixed one, under random refusals, at one's own server."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.contestant import prompt
from benchmarks.field import Field, timed_call
from benchmarks.limits import endpoint, server_with
from benchmarks.measure import Row, interleaved, percentile, ratio

_ANSWERS = {"one by one": "1", "by 16": "16", "together": "0"}
# seconds of latency, prompts, concurrency
_SIZES = ((0.05, 5000, 256), (2.0, 500, 128), (2.0, 5000, 512), (10.0, 1000, 128))
_SATURATES = 200


async def _call(field: Field, url: str, prompts: int, **block: object) -> dict[str, Any]:
    """Return what one call to a new server of ours took, which knows nothing of the endpoint yet."""
    async with server_with(url, field, **block) as server:
        result = await timed_call(server, "generate", prompt_ls=[prompt(index) for index in range(prompts)])
    assert result["answers"] == prompts
    return result


async def slow(field: Field, pairs: int) -> list[Row]:
    """Where nothing is refused: the window beside `adaptive: false`."""
    rows = []
    for delay_s, prompts, concurrency in _SIZES:
        for name, batch in _ANSWERS.items():
            async with endpoint(field, 1_000_000, delay_s, "--batch", batch) as upstream:

                async def run(
                    adaptive: str, url: str = upstream.url, of: tuple[int, int] = (prompts, concurrency)
                ) -> float:
                    took = await _call(field, url, of[0], concurrency=of[1], adaptive=adaptive)
                    return of[0] / took["seconds"]

                found = await interleaved(min(pairs, 3), found=lambda: run("true"), fixed=lambda: run("false"))
            value, spread = ratio(found["found"], found["fixed"])
            detail = f"{statistics.median(found['found']):,.0f} / {statistics.median(found['fixed']):,.0f} requests/s"
            what = f"{delay_s:g} s, {prompts:,} at {concurrency}, {name}"
            rows.append(Row("slow_window", what, value, 0.9, ">=", spread=spread, detail=detail, raw=found))
    return rows


async def random_refusals(field: Field, pairs: int) -> list[Row]:
    """429 to some requests, whatever is in flight, beside none."""
    rows = []
    for delay_s, prompts in ((0.05, 20_000), (2.0, 2_000)):

        async def run(share: float, delay_s: float = delay_s, prompts: int = prompts) -> float:
            async with endpoint(field, 1_000_000, delay_s, "--refused", str(share)) as upstream:
                return prompts / (await _call(field, upstream.url, prompts))["seconds"]

        found = await interleaved(min(pairs, 3), none=lambda: run(0), two=lambda: run(0.02), ten=lambda: run(0.1))
        for name, percent, target in (("two", 2, 0.9), ("ten", 10, 0.7)):
            value, spread = ratio(found[name], found["none"])
            what = f"{delay_s:g} s, {prompts:,} prompts, {percent} % refused / none"
            rows.append(Row("random_429", what, value, target, ">=", spread=spread, raw=found))
    return rows


async def own_server(field: Field, pairs: int) -> list[Row]:
    """A server with continuous batching that saturates at 200, without `concurrency`, beside the best fixed window."""
    prompts, delay_s = 10_000, 0.5
    p95: dict[bool, list[float]] = {True: [], False: []}

    async def run(*, fixed: bool) -> float:
        async with endpoint(field, 1_000_000, delay_s, "--saturates", str(_SATURATES)) as upstream:
            block = {"concurrency": _SATURATES, "adaptive": "false"} if fixed else {"concurrency": None}
            took = await _call(field, upstream.url, prompts, **block)
            p95[fixed].append((await upstream.counted()).p95_s)
        return prompts / took["seconds"]

    found = await interleaved(min(pairs, 3), found=lambda: run(fixed=False), fixed=lambda: run(fixed=True))
    value, spread = ratio(found["found"], found["fixed"])
    slower, slower_spread = ratio(p95[False], p95[True])
    return [
        Row("own_server", "rate / a fixed window of 200", value, 0.95, ">=", spread=spread, raw=found),
        Row("own_server", "p95 latency / a fixed window of 200", slower, 1.3, spread=slower_spread),
    ]


async def hedge(field: Field, pairs: int) -> list[Row]:
    """One request in a hundred takes ten times as long: the 99th percentile with twins, beside without."""
    prompts, delay_s = 1_000, 0.5
    requests: list[int] = []

    async def run(*, twins: str) -> float:
        async with (
            endpoint(field, 1_000_000, delay_s, "--stragglers", "0.012") as upstream,
            server_with(upstream.url, field, concurrency=128, hedge=twins) as server,
        ):
            result = await server.call("generate", prompt_ls=[prompt(index) for index in range(prompts)])
        meta = result["_meta"]
        columns = meta.get("latency_s") or next(value["latency_s"] for value in meta.values() if "latency_s" in value)
        if twins == "true":
            requests.append(await _requests(meta))
        return percentile(columns, 99)

    found = await interleaved(min(pairs, 3), twins=lambda: run(twins="true"), none=lambda: run(twins="false"))
    value, spread = ratio(found["twins"], found["none"])
    more = (max(requests) / prompts - 1) * 100
    return [
        Row(
            "hedge", "p99 with 1 % stragglers of ten times, with twins / without", value, 0.5, spread=spread, raw=found
        ),
        Row("hedge", "more requests", more, 5, unit="%"),
    ]


async def _requests(meta: dict[str, Any]) -> int:
    """Return the number of requests that a result tells of."""
    return int(
        meta["requests"] if "requests" in meta else next(v["requests"] for v in meta.values() if "requests" in v)
    )
