"""The processes around a measurement: the upstream, the contestants, and which core each runs on."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import orjson

from benchmarks.client import OUT, ROOT, Server, ours
from benchmarks.measure import cores, cpu_s, pin

# `openai` and `litellm` are what we are compared with, never what we are built on: they live in their own environment.
OTHERS = OUT / "venv" / "bin" / "python"
HOW_TO_INSTALL = (
    "skipped, not installed: python -m venv benchmarks/out/venv && benchmarks/out/venv/bin/pip install openai litellm"
)


class Field:
    """An upstream on the outer core, and whatever is measured on the inner one."""

    def __init__(self, inner: int | None, outer: int | None, fast: int, slow: int) -> None:
        self.inner, self.outer = inner, outer
        self.fast, self.slow = (f"http://127.0.0.1:{port}/v1" for port in (fast, slow))

    def ours(self, url: str, in_flight: int) -> Server:
        """Return our server, not yet started."""
        return ours(url, in_flight, core=self.inner)

    def contestant(self, name: str, url: str, in_flight: int) -> Contestant:
        """Return another contestant, not yet started."""
        return Contestant(name, url, in_flight, self.inner)


@contextlib.asynccontextmanager
async def field(delay_ms: float = 50) -> AsyncIterator[Field]:
    """Start the upstream and end it."""
    inner, outer = cores()
    pin(outer)
    command = [sys.executable, "-m", "benchmarks.upstream", "--delay-ms", str(delay_ms)]
    if outer is not None:
        command += ["--core", str(outer)]
    upstream = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    try:
        fast, slow = map(int, (await upstream.stdout.readline()).split())
        yield Field(inner, outer, fast, slow)
    finally:
        upstream.kill()
        await upstream.wait()


class Contestant:
    """A process of `benchmarks.contestant`; `bare` runs in our environment, the others in theirs."""

    def __init__(self, name: str, url: str, in_flight: int, core: int | None) -> None:
        self.name, self._url, self._in_flight, self._core = name, url, in_flight, core

    async def __aenter__(self) -> Contestant:
        python = sys.executable if self.name == "bare" else str(OTHERS)
        self._process = await asyncio.create_subprocess_exec(
            *(python, "-m", "benchmarks.contestant", self.name, self._url, str(self._in_flight)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            preexec_fn=lambda: pin(self._core),
        )
        await self._process.stdout.readline()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.stdin.close()
        await self._process.wait()

    async def work(self, **job: Any) -> dict[str, float]:
        """Do a job and return its `seconds`, `cpu_s` and number of `answers`."""
        self._process.stdin.write(orjson.dumps(job) + b"\n")
        return orjson.loads(await self._process.stdout.readline())


def installed(name: str) -> bool:
    """Return whether the contestant can run here."""
    if name == "bare":
        return True
    if not OTHERS.exists():
        return False
    check = f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is None)"
    return subprocess.run([OTHERS, "-c", check], check=False).returncode == 0


async def timed_call(server: Server, tool: str, **arguments: Any) -> dict[str, float]:
    """Call a tool of our server; return `seconds` as the client sees them and `cpu_s` of the server's process."""
    loop = asyncio.get_running_loop()
    used, started = cpu_s(server.pid), loop.time()
    result = await server.call(tool, **arguments)
    seconds = loop.time() - started
    answers = result["structuredContent"]["ans_ls"]
    return {"seconds": seconds, "cpu_s": cpu_s(server.pid) - used, "answers": sum(map(bool, answers))}
