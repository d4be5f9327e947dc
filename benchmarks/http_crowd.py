"""200 clients over HTTP at once, for a minute: errors, waiting times, and what the server holds afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import psutil

from benchmarks.client import ROOT
from benchmarks.contestant import prompt
from benchmarks.field import Field
from benchmarks.measure import Row, percentile, pin

CLIENTS = 200
SECONDS = 60.0
_WARM_UP_S = 15.0
_CALLS_PER_CLIENT = 20  # then it leaves, and another comes
_PROMPTS = 4
_SETTLE_S = 10.0
_OLD, _NEW = "2025-11-25", "2026-07-28"
_META = {"io.modelcontextprotocol/protocolVersion": _NEW, "io.modelcontextprotocol/clientCapabilities": {}}


@dataclass
class Found:
    """What all clients saw."""

    waits: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    clients: int = 0
    progress: int = 0


class _Client:
    """One client: with a session as of 2025, or without as of 2026; half of them ask for progress."""

    def __init__(self, url: str, number: int, found: Found) -> None:
        self._url, self._number, self._found = url, number, found
        self._new = number % 2 == 1
        self._ids = itertools.count(1)
        self._headers = {"Accept": "application/json, text/event-stream", "Mcp-Protocol-Version": _NEW}

    async def live(self, until: float) -> None:
        async with aiohttp.ClientSession() as self._http:
            if not self._new:
                await self._shake_hands()
            for call in range(_CALLS_PER_CLIENT):
                if time.perf_counter() > until:
                    break
                started = time.perf_counter()
                await self._call(call)
                self._found.waits.append(time.perf_counter() - started)
            if not self._new:
                async with self._http.delete(self._url, headers=self._headers) as ended:
                    assert ended.status == 200, ended.status
        self._found.clients += 1

    async def _shake_hands(self) -> None:
        del self._headers["Mcp-Protocol-Version"]
        hello = {"protocolVersion": _OLD, "capabilities": {}, "clientInfo": {"name": "crowd", "version": "0"}}
        async with self._post({"id": 0, "method": "initialize", "params": hello}) as opened:
            await opened.read()
            assert opened.status == 200, opened.status
            self._headers |= {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "Mcp-Protocol-Version": _OLD}
        async with self._post({"method": "notifications/initialized"}) as noted:
            assert noted.status == 202, noted.status

    async def _call(self, call: int) -> None:
        number = next(self._ids)
        meta: dict[str, Any] = dict(_META) if self._new else {}
        if self._number % 4 < 2:
            meta["progressToken"] = number
        arguments = {"prompt_ls": [prompt(self._number * 1000 + call + at) for at in range(_PROMPTS)]}
        params = {"name": "generate", "arguments": arguments} | ({"_meta": meta} if meta else {})
        routing = {"Mcp-Method": "tools/call", "Mcp-Name": "generate"} if self._new else {}
        async with self._post({"id": number, "method": "tools/call", "params": params}, routing) as answer:
            body = await answer.read()
            assert answer.status == 200, answer.status
        messages = [orjson.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
        message = messages[-1] if messages else orjson.loads(body)
        assert message["id"] == number, "another's answer"
        answers = message["result"]["structuredContent"]["ans_ls"]
        assert len(answers) == _PROMPTS, len(answers)
        assert all(answers), "an empty answer"
        self._found.progress += len(messages) - 1 if messages else 0

    def _post(self, message: dict[str, object], headers: dict[str, str] | None = None) -> Any:
        sent = {"jsonrpc": "2.0"} | message
        return self._http.post(self._url, json=sent, headers=self._headers | (headers or {}))


@contextlib.asynccontextmanager
async def _serving(field: Field) -> AsyncIterator[tuple[str, psutil.Process]]:
    block = "backend_configs.openai"
    settings = {"base_url": field.slow, "model_name": "bench", "concurrency": 256}
    sets = [part for key, value in settings.items() for part in ("--set", f"{block}.{key}={value}")]
    command = [
        sys.executable,
        "-m",
        "promptmill",
        "serve",
        "--backend",
        "openai",
        "--http",
        "127.0.0.1:0",
        *sets,
    ]
    server = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.PIPE, cwd=ROOT, preexec_fn=lambda: pin(field.inner)
    )
    try:
        greeting = await server.stderr.readline()
        yield (
            next(word for word in greeting.decode().replace(",", " ").split() if "://" in word),
            psutil.Process(server.pid),
        )
    finally:
        server.terminate()
        said, _ = await asyncio.gather(server.stderr.read(), server.wait())
        assert not said, said[:2000]


async def crowd(url: str, clients: int, seconds: float) -> Found:
    """Let `clients` come, call and go for `seconds`, always as many at once."""
    found = Found()
    numbers = itertools.count()
    until = time.perf_counter() + seconds

    async def come_and_go() -> None:
        while time.perf_counter() < until:
            try:
                await _Client(url, next(numbers), found).live(until)
            except Exception as error:
                found.errors[f"{type(error).__name__}: {error}"[:100]] += 1

    await asyncio.gather(*(come_and_go() for _ in range(clients)))
    return found


def _held(process: psutil.Process) -> dict[str, int]:
    return {
        "rss": process.memory_info().rss,
        "fds": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
    }


async def http_crowd(field: Field, pairs: int, clients: int = CLIENTS, seconds: float = SECONDS) -> list[Row]:
    """A first crowd brings the server to size, a second one is measured."""
    del pairs
    async with _serving(field) as (url, process):
        await crowd(url, clients, min(seconds, _WARM_UP_S))
        await asyncio.sleep(_SETTLE_S)
        before = _held(process)
        found = await crowd(url, clients, seconds)
        peak = process.memory_info().rss
        await asyncio.sleep(_SETTLE_S)
        after = _held(process)
    calls = len(found.waits)
    waits = [wait * 1e3 for wait in found.waits]
    slowest = f"median {statistics.median(waits):.0f}, p99 {percentile(waits, 99):.0f}, longest {max(waits):.0f} ms"
    lives = f"{found.clients:,} clients came and went, {found.progress:,} notifications of progress"
    detail = "; ".join(f"{count} x {error}" for error, count in found.errors.most_common(3)) or lives
    growth = (after["rss"] - before["rss"]) / 2**20
    sizes = "{:.0f} before, {:.0f} right after, {:.0f} at rest".format(
        *(size / 2**20 for size in (before["rss"], peak, after["rss"]))
    )
    rows = [
        Row(
            "http_crowd",
            f"{clients} clients for {seconds:.0f} s: errors",
            sum(found.errors.values()),
            0,
            unit="errors",
            detail=detail,
        ),
        Row(
            "http_crowd",
            "calls a second",
            calls / seconds,
            unit="calls/s",
            detail=f"{_PROMPTS} prompts each; {slowest}",
        ),
        Row(
            "http_crowd",
            "memory afterwards beyond before",
            growth,
            10,
            unit="MiB",
            detail=sizes,
        ),
    ]
    for what, name in (("fds", "file descriptors"), ("threads", "threads"), ("children", "child processes")):
        grown = after[what] - before[what]
        rows.append(
            Row(
                "http_crowd",
                f"{name} afterwards beyond before",
                grown,
                0,
                unit="",
                detail=f"{before[what]} / {after[what]}",
            )
        )
    return rows
