"""How close we come to limits that an endpoint has or the configuration sets."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple

from benchmarks.client import ROOT, Server, ours
from benchmarks.contestant import prompt
from benchmarks.field import Field, timed_call
from benchmarks.measure import Row, interleaved, ratio

_LIMIT = 40
_DELAY_S = 0.05
_PROMPTS = 2_000
_RPM = 3_000
_TPM = 600_000
_TOKENS = 36  # that the upstream says it used
_SECONDS = 12


class _Counted(NamedTuple):
    answered: int
    refused: int
    first: float
    last: float
    p95_s: float
    p99_s: float


class Endpoint:
    """A process of `benchmarks.limited`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{port}/v1"

    async def counted(self, limit: int | None = None) -> _Counted:
        """Return what it counted since the last time; from now on it has a new `limit`, if one is given."""
        self._process.stdin.write(b"\n" if limit is None else b"%d\n" % limit)
        answered, refused, *times = (await self._process.stdout.readline()).split()
        return _Counted(int(answered), int(refused), *map(float, times))


@contextlib.asynccontextmanager
async def endpoint(field: Field, limit: int, delay_s: float, *more: str) -> AsyncIterator[Endpoint]:
    """Start an endpoint of `benchmarks.limited`, with `more` on its command line."""
    command = [sys.executable, "-m", "benchmarks.limited", "--limit", str(limit), "--delay-ms", str(delay_s * 1000)]
    command += more
    if field.outer is not None:
        command += ["--core", str(field.outer)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
    try:
        yield Endpoint(process, int(await process.stdout.readline()))
    finally:
        process.kill()
        await process.wait()


def server_with(url: str, field: Field, **block: object) -> Server:
    """Return our server with more keys in its block."""
    in_flight = block.pop("concurrency", 256)
    server = ours(url, None if in_flight is None else int(str(in_flight)), core=field.inner)
    server._command = [
        *server._command,
        *(part for key, value in block.items() for part in ("--set", f"backend_configs.openai.{key}={value}")),
    ]
    return server


async def window(field: Field, pairs: int) -> list[Row]:
    """The adaptive window against a limit of 40 in flight that it must find, beside one set to 40 by hand."""
    prompts = [prompt(index) for index in range(_PROMPTS)]
    shares: list[float] = []
    async with endpoint(field, _LIMIT, _DELAY_S) as upstream:

        async def found_out() -> float:
            async with server_with(upstream.url, field) as server:  # a new one: what it finds out, it keeps
                await upstream.counted()
                took = await timed_call(server, "generate", prompt_ls=prompts)
            seen = await upstream.counted()
            assert took["answers"] == _PROMPTS
            shares.append(seen.refused / (seen.refused + seen.answered))
            return _PROMPTS / took["seconds"]

        async def by_hand() -> float:
            async with server_with(upstream.url, field, concurrency=_LIMIT, adaptive="false") as server:
                took = await timed_call(server, "generate", prompt_ls=prompts)
            return _PROMPTS / took["seconds"]

        found = await interleaved(pairs, found=found_out, hand=by_hand)
        async with server_with(upstream.url, field) as server:
            await server.call("generate", prompt_ls=prompts)
            await upstream.counted(2 * _LIMIT)
            await server.call("generate", prompt_ls=prompts * 3)
            doubled = await upstream.counted(_LIMIT)
    value, spread = ratio(found["found"], found["hand"])
    detail = f"{statistics.median(found['found']):,.0f} / {statistics.median(found['hand']):,.0f} requests/s"
    after = doubled.answered / (doubled.last - doubled.first)
    rate = statistics.median(found["hand"])
    return [
        Row("window", "finds a limit of 40 / set by hand", value, 0.85, ">=", spread=spread, detail=detail, raw=found),
        Row("window", "requests refused on the way", max(shares) * 100, 5, unit="%", detail="the worst round"),
        Row(
            "window",
            "rate after the limit doubled / before",
            after / rate,
            1.5,
            ">=",
            detail=f"{after:,.0f} / {rate:,.0f} requests/s",
        ),
    ]


async def rates(field: Field, pairs: int) -> list[Row]:
    """`rpm` and `tpm` over four calls at once: requests that arrived, over those that were allowed in that time."""
    del pairs
    rows = []
    for name, block, per_minute in (("rpm", {"rpm": _RPM}, _RPM), ("tpm", {"tpm": _TPM}, _TPM / _TOKENS)):
        count = int(per_minute / 60 * _SECONDS) // 4
        async with endpoint(field, 1_000_000, 0.0) as upstream, server_with(upstream.url, field, **block) as server:
            await asyncio.gather(
                *(
                    server.call("generate", prompt_ls=[prompt(index) for index in range(at * count, (at + 1) * count)])
                    for at in range(4)
                )
            )
            seen = await upstream.counted()
        allowed = per_minute / 60 * (seen.last - seen.first)
        detail = f"{seen.answered:,} in {seen.last - seen.first:.2f} s, allowed {allowed:,.0f}, four calls"
        over = abs(seen.answered / allowed - 1) * 100
        rows.append(Row("rates", f"`{name}`: off by", over, 5, unit="%", detail=detail))
    return rows
