"""A raw JSON-RPC client over stdio: what is measured is the server, not a client library."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import orjson

from benchmarks.measure import pin

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "out"
OUT.mkdir(exist_ok=True)
_PROTOCOL = "2025-11-25"
_LONGEST_LINE = 2**31 - 1


class Server:
    """A server process and the session with it."""

    def __init__(self, command: Sequence[str], *, core: int | None = None) -> None:
        self._command, self._core = command, core
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._watchers: dict[str, Callable[[float], None]] = {}
        self.tools: list[dict[str, Any]] = []
        self.ready_s = 0.0

    async def __aenter__(self) -> Self:
        started = time.perf_counter()
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log(),
            limit=_LONGEST_LINE,
            cwd=ROOT,
            preexec_fn=lambda: pin(self._core),
        )
        self._reading = asyncio.ensure_future(self._read())
        info = {"name": "benchmarks", "version": "0"}
        await self.request("initialize", {"protocolVersion": _PROTOCOL, "capabilities": {}, "clientInfo": info})
        self._send({"method": "notifications/initialized"})
        self.tools = (await self.request("tools/list", {}))["tools"]
        self.ready_s = time.perf_counter() - started
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), 10)
        self._reading.cancel()

    @staticmethod
    def _log() -> IO[bytes]:
        return (OUT / "servers.log").open("ab")

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Return the result of one request. Raises `RuntimeError` for a JSON-RPC error."""
        number = next(self._ids)
        self._waiting[number] = reply = asyncio.get_running_loop().create_future()
        self._send({"id": number, "method": method, "params": params})
        try:
            answer = await reply
        except asyncio.CancelledError:
            self._waiting.pop(number, None)
            self._send({"method": "notifications/cancelled", "params": {"requestId": number, "reason": "enough"}})
            raise
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of one tool call. Raises `RuntimeError` for a tool error."""
        result = await self.request("tools/call", {"name": tool, "arguments": arguments})
        if result.get("isError"):
            raise RuntimeError(result["content"][0]["text"][:500])
        return result

    async def call_watched(self, tool: str, watch: Callable[[float], None], **arguments: Any) -> dict[str, Any]:
        """Return the result of one tool call; `watch` is told how many items are done whenever the server reports."""
        token = f"watched-{next(self._ids)}"
        self._watchers[token] = watch
        try:
            meta = {"progressToken": token}
            return await self.request("tools/call", {"name": tool, "arguments": arguments, "_meta": meta})
        finally:
            del self._watchers[token]

    async def ping(self) -> float:
        """Return the seconds that one ping takes."""
        started = time.perf_counter()
        await self.request("ping", {})
        return time.perf_counter() - started

    def _send(self, message: dict[str, Any]) -> None:
        self._process.stdin.write(orjson.dumps({"jsonrpc": "2.0", **message}) + b"\n")

    async def _read(self) -> None:
        while line := await self._process.stdout.readline():
            message = orjson.loads(line)
            if (waiting := self._waiting.pop(message.get("id"), None)) is not None:
                waiting.set_result(message)
            elif message.get("method") == "notifications/progress":
                progress = message["params"]
                if watch := self._watchers.get(progress["progressToken"]):
                    watch(progress["progress"])
        for waiting in self._waiting.values():
            waiting.set_exception(RuntimeError("the server ended"))


BARE = (sys.executable, "-m", "benchmarks.bare_server")
OURS = (sys.executable, "-m", "promptmill", "serve")


def ours(url: str, in_flight: int | None, *, core: int | None = None) -> Server:
    """Return our server on its openai backend, not yet started; without `in_flight` it has no `concurrency` set."""
    block = "backend_configs.openai"
    settings: dict[str, object] = {
        f"{block}.base_url": url,
        f"{block}.model_name": "bench",
        f"{block}.bulk_threshold": 10_000_000,  # the pool of one process is measured here, not the worker processes
    }
    if in_flight is not None:
        settings[f"{block}.concurrency"] = in_flight
    command = [*OURS, "--backend", "openai"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    return Server(command, core=core)
