"""OpenAI's API of our server: added latency, its rate beside that of MCP, and 1,000 streams at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import orjson

from benchmarks.client import ROOT
from benchmarks.contestant import prompt
from benchmarks.field import Field
from benchmarks.measure import Row, interleaved, percentile, pin

_SINGLE = 300  # calls one after another in a round
_CALLS = 1500  # in a round of the rate
_AT_ONCE = 32
_STREAMS = 1000
_HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Mcp-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "generate",
}
_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
Call = Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def _serving(around: Field) -> AsyncIterator[str]:
    """Run our server over HTTP; yield its URL."""
    block = "backend_configs.openai"
    settings = {"base_url": around.fast, "model_name": "bench", "concurrency": 256}
    sets = [part for key, value in settings.items() for part in ("--set", f"{block}.{key}={value}")]
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "promptmill", "serve", "--backend", "openai", "--http", "127.0.0.1:0", *sets),
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=lambda: pin(around.inner),
    )
    try:
        greeting = (await server.stderr.readline()).decode().replace(",", " ")
        yield next(word for word in greeting.split() if "://" in word).removesuffix("/mcp")
    finally:
        server.terminate()
        await asyncio.gather(server.stderr.read(), server.wait())


def _chat(http: aiohttp.ClientSession, url: str) -> Call:
    numbers = itertools.count()

    async def call() -> None:
        body = {"model": "bench", "messages": [{"role": "user", "content": prompt(next(numbers))}]}
        async with http.post(f"{url}/chat/completions", json=body) as reply:
            assert orjson.loads(await reply.read())["choices"][0]["message"]["content"], reply.status

    return call


def _tool(http: aiohttp.ClientSession, url: str) -> Call:
    numbers = itertools.count(1)

    async def call() -> None:
        number = next(numbers)
        params = {"name": "generate", "arguments": {"prompt_ls": [prompt(number)]}, "_meta": _META}
        body = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
        async with http.post(f"{url}/mcp", json=body, headers=_HEADERS) as reply:
            text = await reply.read()
        messages = [line[6:] for line in text.splitlines() if line.startswith(b"data: {")]
        assert orjson.loads((messages or [text])[-1])["result"]["structuredContent"]["ans_ls"][0]

    return call


async def _median_ms(call: Call) -> float:
    waits = []
    for _ in range(_SINGLE):
        began = time.perf_counter()
        await call()
        waits.append((time.perf_counter() - began) * 1e3)
    return statistics.median(waits)


async def _rate(call: Call) -> float:
    left = iter(range(_CALLS))

    async def work() -> None:
        for _ in left:
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return _CALLS / (time.perf_counter() - began)


async def _streams(http: aiohttp.ClientSession, url: str) -> tuple[int, list[float]]:
    """Return how many of the streams that begin at once come whole, and the seconds of each."""

    async def one(number: int) -> float:
        began = time.perf_counter()
        body = {"stream": True, "messages": [{"role": "user", "content": prompt(number)}]}
        async with http.post(f"{url}/v1/chat/completions", json=body) as reply:
            assert (await reply.read()).endswith(b"data: [DONE]\n\n"), reply.status
        return time.perf_counter() - began

    found = await asyncio.gather(*map(one, range(_STREAMS)), return_exceptions=True)
    seconds = [each for each in found if isinstance(each, float)]
    return len(seconds), seconds


async def openai_server(around: Field, pairs: int) -> list[Row]:
    """Measure against an endpoint that answers at once, so that all of the time is our own."""
    connector = aiohttp.TCPConnector(limit=0)
    async with _serving(around) as url, aiohttp.ClientSession(connector=connector) as http:
        ours, endpoint, tool = _chat(http, f"{url}/v1"), _chat(http, around.fast), _tool(http, url)
        await asyncio.gather(_rate(ours), _rate(tool))  # warm
        waits = await interleaved(pairs, ours=lambda: _median_ms(ours), endpoint=lambda: _median_ms(endpoint))
        rates = await interleaved(pairs, openai=lambda: _rate(ours), mcp=lambda: _rate(tool))
        whole, seconds = await _streams(http, url)
    added = [mine - theirs for mine, theirs in zip(waits["ours"], waits["endpoint"], strict=True)]
    ratios = [mine / theirs for mine, theirs in zip(rates["openai"], rates["mcp"], strict=True)]
    per_s = {name: statistics.median(values) for name, values in rates.items()}
    return [
        Row(
            "openai_server",
            "median of a chat completion beyond the endpoint's own",
            statistics.median(added),
            1.0,
            unit="ms",
            spread=(min(added), max(added)),
            detail=f"{statistics.median(waits['ours']):.2f} and {statistics.median(waits['endpoint']):.2f} ms",
        ),
        Row(
            "openai_server",
            "chat completions a second, over calls of `generate` with one prompt",
            statistics.median(ratios),
            0.9,
            better=">=",
            spread=(min(ratios), max(ratios)),
            detail=f"{per_s['openai']:,.0f} and {per_s['mcp']:,.0f} a second, {_AT_ONCE} at once",
        ),
        Row(
            "openai_server",
            f"whole streams of {_STREAMS:,} at once",
            whole,
            _STREAMS,
            better=">=",
            unit="streams",
            detail=f"the last after {max(seconds, default=0):.1f} s, median {percentile(seconds or [0], 50):.1f} s",
        ),
    ]
