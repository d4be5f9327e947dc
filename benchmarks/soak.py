"""`python -m benchmarks.soak [--seconds 170]`: mixed calls, cancellations, re-inits and faults; what is left of them.

A real client over stdio; an upstream of the tests that fails one request in ten. At the end memory, file descriptors,
threads, tasks and child processes are compared with those after the warm-up, when every kind of call was made once.
Exit code 1 when something leaked or an answer was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from PIL import Image

from benchmarks.client import ROOT

sys.path.insert(0, str(ROOT / "tests" / "support"))

from replies import answer, chaos, closed, hang, late, reset, status, truncated
from upstream import Upstream

_WORKERS = 8
_SETTLE_S = 6.0
_ALLOWED_GROWTH = 0.1  # what several large calls at once leave in the allocator depends on how they met
_POOL = min(32, (os.cpu_count() or 1) + 4)  # threads that asyncio keeps once it needed them
_LARGE = 3000
_PROBE = "PROMPTMILL_SOAK_PROBE"
_SLOW = "slow"


class Soak:
    """One server, one client, and the calls it makes."""

    def __init__(self, client: Client[Any], upstream: Upstream, folder: Path, seed: int) -> None:
        self._client = client
        self._upstream = upstream
        self._folder = folder
        self._chance = random.Random(seed)
        self._number = 0
        self.made: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(picture, "PNG")
        (folder / "a.png").write_bytes(picture.getvalue())
        self._picture = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
        self.kinds: list[Callable[[], Awaitable[None]]] = [
            self.small, self.small, self.small, self.large, self.images, self.turns, self.cancelled, self.file,
            self.sampling, self.backend, self.refused, self.look,
        ]  # fmt: skip

    async def any(self) -> None:
        """Make a call of some kind."""
        await self._chance.choice(self.kinds)()

    async def small(self) -> None:
        await self._generate("small", self._chance.randint(1, 5))

    async def large(self) -> None:
        await self._generate("large", _LARGE)

    async def _generate(self, kind: str, count: int) -> None:
        prompts = [self._prompt() for _ in range(count)]
        result = await self._call("generate", kind, prompt_ls=prompts)
        self._check(prompts, result)
        if job_id := (result.structured_content or {}).get("job_id"):
            self.made["deferred"] += 1
            await self._until_ended(job_id)
            page = await self._call("bulk_status", "results", job_id=job_id, read="all", limit=1000)
            for row in page.structured_content["rows"]:
                self._compare(prompts[row["index"]], row["answer"], failed=row["error"] is not None)

    async def images(self) -> None:
        prompts = [self._prompt() for _ in range(4)]
        pictures = [[self._picture], ["a.png"], [], ["gone.png"]]
        self._check(
            prompts, await self._call("multimodal_generate", "images", prompt_ls=prompts, multimodal_path=pictures)
        )

    async def turns(self) -> None:
        prompt = self._prompt()
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
        messages = [*turns, {"role": "user", "content": prompt}]
        self._check([prompt], await self._call("multiturn_generate", "turns", messages=messages))

    async def cancelled(self) -> None:
        prompts = [f"{_SLOW} {self._prompt()}" for _ in range(50)]
        call = asyncio.ensure_future(self._call("generate", "cancelled", prompt_ls=prompts))
        await asyncio.sleep(self._chance.random())
        call.cancel()
        await asyncio.wait({call})

    async def file(self) -> None:
        self._number += 1
        name = f"{self._number}.jsonl"
        prompts = [self._prompt() for _ in range(50)]
        (self._folder / name).write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        started = await self._call("bulk_generate", "file", input_file=name, output_file=f"out-{name}")
        if started.is_error:
            return
        job_id = started.structured_content["job_id"]
        if self._chance.random() < 0.3:
            await self._call("bulk_status", "cancel", job_id=job_id, action="cancel")
            return
        await self._until_ended(job_id)
        page = await self._call("bulk_status", "results", job_id=job_id, read="all")
        for row in page.structured_content["rows"]:
            self._compare(row["prompt"], row["answer"], failed=row["error"] is not None)

    async def sampling(self) -> None:
        temperature = round(self._chance.random(), 2)
        await self._init("sampling", {}, {"temperature": temperature})

    async def backend(self) -> None:
        await self._init("backend", {"openai": {"concurrency": self._chance.randint(8, 64)}}, {})

    async def refused(self) -> None:
        await self._init("refused", {"openai": {"concurency": 1}}, {})
        await self._call("generate", "refused", prompt_ls=[7])
        await self._call("vllm_shutdown", "shutdown")

    async def look(self) -> None:
        await self._client.read_resource("promptmill://status")
        await self._client.list_tools()
        self.made["look"] += 1

    async def engine(self) -> None:
        """Change to the embedded model, ask it something, and change back, which ends its process."""
        few = {"max_tokens": 4}
        await self._call("generation_init", "engine", backend_configs={}, sampling_params=few, backend="hf")
        await self._call("generate", "engine", prompt_ls=["hi", "ho"])
        await self._init("sampling", {}, {})

    async def _init(self, kind: str, configs: dict[str, Any], sampling: dict[str, Any]) -> None:
        await self._call("generation_init", kind, backend_configs=configs, sampling_params=sampling, backend="openai")

    async def _until_ended(self, job_id: str) -> None:
        while (await self._call("bulk_status", "status", job_id=job_id)).structured_content["alive"]:
            await asyncio.sleep(0.2)

    async def _call(self, tool: str, kind: str, **arguments: Any) -> Any:
        self.made[kind] += 1
        result = await self._client.call_tool(tool, arguments, raise_on_error=False)
        if result.is_error:
            self.failed[kind] += 1
        return result

    def _prompt(self) -> str:
        return f"{self._chance.getrandbits(64):x} " + "x" * 200

    def _check(self, prompts: list[str], result: Any) -> None:
        found = result.structured_content
        if found is None:
            return
        failed = {entry["index"]: entry["code"] for entry in found.get("errors", [])}
        for at, (prompt, said) in enumerate(zip(prompts, found["ans_ls"], strict=True)):
            if failed.get(at) != "deferred":
                self._compare(prompt, said, failed=at in failed)

    def _compare(self, prompt: str, said: str, *, failed: bool) -> None:
        self.made["answers"] += not failed
        self.made["failed items"] += failed
        if said != ("" if failed else f"echo: {prompt}"):
            self.wrong.append(f"{prompt[:20]} was answered {said[:40]}")

    async def work(self, until: float) -> None:
        """Make calls one after the other until then."""
        while time.monotonic() < until:
            await self.any()
            self._upstream.seen.clear()
            self._upstream.attempts.clear()


def _measured(server: psutil.Process, probe: Path) -> dict[str, float]:
    """Return what the server holds now."""
    probe.unlink(missing_ok=True)
    server.send_signal(signal.SIGUSR1)
    end = time.monotonic() + 10
    while not probe.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return {
        "memory MiB": round(server.memory_info().rss / 2**20, 1),
        "file descriptors": server.num_fds(),
        "threads": server.num_threads(),
        "tasks": int(probe.read_text()),
        "child processes": len(server.children(recursive=True)),
    }


async def _soak(seconds: float, seed: int) -> int:
    faults = [status(500), status(429, retry_after="0"), status(400, "no"), reset(), closed(), truncated(), hang()]
    with tempfile.TemporaryDirectory() as name, Upstream() as upstream:
        folder = Path(name)
        misbehaving, slow = chaos(seed, 0.1, faults, late(0.02, answer())), late(2.0, answer())

        async def reply(exchange: Any) -> None:
            await (slow if exchange.seen.prompt.startswith(_SLOW) else misbehaving)(exchange)

        upstream.reply = reply
        block = {"base_url": upstream.url, "model_name": "m", "api_key": "k", "timeout": [2, 2], "base_delay": 0.05}
        local = {"model_name_or_path": "smollm2-135m-instruct"}
        config = folder / "parameter.yaml"
        raw = {
            "backend": "openai",
            "max_call_s": 4,
            "call_timeout": 60,
            "backend_configs": {"openai": block, "hf": local},
        }
        config.write_text(yaml.safe_dump(raw))
        environ = {
            **os.environ,
            "PROMPTMILL_STATE": str(folder),
            _PROBE: str(folder / "probe"),
            "PYTHONPATH": str(ROOT),
        }
        command = ["-m", "benchmarks.soak", "--serve", str(config)]
        transport = StdioTransport(sys.executable, command, env=environ, cwd=str(folder))
        ends = time.monotonic() + seconds
        async with Client(transport) as client:
            (server,) = [one for one in psutil.Process().children() if "--serve" in one.cmdline()]
            soak = Soak(client, upstream, folder, seed)
            for kind in [soak.engine, *dict.fromkeys(soak.kinds)]:
                await kind()
            warm_until = time.monotonic() + 0.2 * seconds
            await asyncio.gather(*(soak.work(warm_until) for _ in range(_WORKERS)))
            await asyncio.sleep(_SETTLE_S)
            before = await asyncio.to_thread(_measured, server, folder / "probe")
            until = ends - 3 * _SETTLE_S
            await asyncio.gather(*(soak.work(until) for _ in range(_WORKERS)))
            await soak.engine()
            await asyncio.sleep(_SETTLE_S)
            after = await asyncio.to_thread(_measured, server, folder / "probe")
            totals = json.loads((await client.read_resource("promptmill://status"))[0].text)
    print("calls:", ", ".join(f"{count} {kind}" for kind, count in soak.made.most_common()))
    print("of them refused or failed as a whole:", dict(soak.failed))
    print("the server's own totals:", totals["totals"], "in progress:", totals["calls_in_progress"])
    allowed = {"memory MiB": before["memory MiB"] * _ALLOWED_GROWTH, "threads": _POOL}
    leaks = [what for what, value in after.items() if value > before[what] + allowed.get(what, 0)]
    for what, value in before.items():
        print(
            f"{what:>18}: {value:g} after the warm-up, {after[what]:g} at the end{'   LEAK' if what in leaks else ''}"
        )
    print(f"{len(soak.wrong)} wrong answers", *soak.wrong[:5], sep="\n")
    return int(bool(leaks or soak.wrong))


def _serve(config: Path) -> int:
    """Serve as `promptmill serve` does, and write the number of tasks to a file on SIGUSR1."""
    from promptmill.config.configuration import Configuration
    from promptmill.server import process
    from promptmill.system import logs

    run: Callable[..., int] = process.run  # type: ignore[attr-defined]

    def probed(work: Any) -> int:
        async def serving() -> int:
            def tell() -> None:
                probe = Path(os.environ[_PROBE])
                probe.with_suffix(".new").write_text(str(len(asyncio.all_tasks())))
                probe.with_suffix(".new").replace(probe)

            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
            return await work

        return run(serving())

    process.run = probed  # type: ignore[attr-defined, assignment]
    logs.to_stderr()
    configuration = Configuration.load(config)
    return process.serve_stdio(configuration)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=170)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return _serve(arguments.serve)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_soak(arguments.seconds, arguments.seed))
    return 130


if __name__ == "__main__":
    sys.exit(main())
