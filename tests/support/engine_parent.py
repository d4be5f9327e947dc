"""A process that loads an engine and has it answer without end, for tests that kill it; see `engine_parent`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from promptmill.backends.engines.host import create
from promptmill.backends.protocol import Call, Outcome, Source
from promptmill.config.configuration import Configuration
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.service.driver import Driver

_SOURCE = Path(__file__).parents[2] / "src"


@contextmanager
def engine_parent(
    python: Sequence[str], backend: str, model: Path
) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Start one by the command `python`; give it and its engine, which is only starting. Then it says `loaded`."""
    environment = {**os.environ, "PYTHONPATH": str(_SOURCE)}
    command = [*python, __file__, backend, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        yield parent, psutil.Process(int(parent.stdout.readline()))


class _Endless(Source):
    async def take(self, n: int) -> list[Request]:
        long = Sampling(max_tokens=400), {"ignore_eos": True}
        return [Request(i, conversation_from_prompt("a", ""), *long) for i in range(n)]


class _Nowhere:
    async def put(self, key: int, outcome: Outcome) -> None:
        pass


async def _main(backend: str, model: str) -> None:
    block = {"model_name_or_path": model, "dtype": "float32"}  # vLLM's bfloat16 kernels need AMX to be lent
    host = create(Configuration({"backend": backend, "backend_configs": {backend: block}}).config)
    loading = asyncio.create_task(host.load(lambda _: None))
    while host._process is None:
        await asyncio.sleep(0.01)
    print(host._process.pid, flush=True)
    await loading
    print("loaded", flush=True)
    call = Call()
    await Driver(_Endless(), _Nowhere(), call).run(host.answer, host.enter(call))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
