"""An engine's library alone, in a process of its own: its contestant says a line when the model is loaded."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.client import OUT, ROOT

_START_S = 300
_END_S = 60


class Alone:
    """A contestant that is loaded. `said` is its first line."""

    def __init__(self, process: asyncio.subprocess.Process, said: bytes) -> None:
        self._process = process
        self.said = said

    async def tokens_per_s(self, *workload: int) -> float:
        """Return tokens per second of a workload, told in the contestant's own numbers."""
        self._process.stdin.write(" ".join(map(str, workload)).encode() + b"\n")
        return float(await self._process.stdout.readline())


@asynccontextmanager
async def alone(module: str, *arguments: str) -> AsyncIterator[Alone]:
    """Start `module` and wait until its model is loaded."""
    with (OUT / "servers.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
        )
    try:
        said = await asyncio.wait_for(process.stdout.readline(), _START_S)
        if not said:
            raise RuntimeError(f"{module} did not start; see {OUT / 'servers.log'}")
        yield Alone(process, said)
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _END_S)
        except TimeoutError:
            process.kill()
