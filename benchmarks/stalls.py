"""How long one client can hold up the others: `python -m benchmarks.stalls [CASE…] [--over http|stdio] [--stacks]`.

Every case sends the largest input that the limits allow, or has the endpoint answer with it. The server's event loop
reports when it is late (`stall_probe`). `wall` is the longest gap, `cpu` what the loop's thread computed in that gap:
on a busy machine only the second one is ours, but a thread that holds the GIL shows in the first alone.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks.client import ROOT

MIB = 1 << 20
_ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
_VERSION = "2025-11-25"
_PATIENCE_S = 120


@dataclass
class Case:
    """A call, and the body with which the endpoint answers each of its requests."""

    arguments: Callable[[], dict[str, Any] | bytes]
    tool: str = "generate"
    reply: Callable[[], bytes] = lambda: completion("echo")
    headers: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    times: int = 1


def completion(text: str, **more: Any) -> bytes:
    """Return the body of an answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **more}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return orjson.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def nested(levels: int) -> dict[str, Any]:
    """Return a schema of objects in objects."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}
    return schema


def _schema_of(levels: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(levels)}


def _logprobs(tokens: int) -> bytes:
    one = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    return completion("a", logprobs={"content": [one] * tokens})


def _text(size: int) -> str:
    return ('word "quoted" é\n' * (size // 16 + 1))[:size]


CASES: dict[str, Case] = {
    "plain": Case(lambda: {"prompt_ls": ["hi"] * 10}),
    "answers_15m": Case(lambda: {"prompt_ls": ["hi"] * 64}, reply=lambda: completion("a" * (15 * MIB))),
    "answers_1m": Case(lambda: {"prompt_ls": ["hi"] * 64}, reply=lambda: completion(_text(MIB))),
    "answers_60k": Case(lambda: {"prompt_ls": [str(n) for n in range(3000)]}, reply=lambda: completion(_text(59_000))),
    "answer_15m": Case(lambda: {"prompt_ls": ["hi"]}, reply=lambda: completion(_text(15 * MIB))),
    "zip_15m": Case(
        lambda: {"prompt_ls": ["hi"] * 64},
        reply=lambda: gzip.compress(completion("a" * (15 * MIB))),
        headers={"Content-Encoding": "gzip"},
    ),
    "zip_bomb": Case(
        lambda: {"prompt_ls": ["hi"] * 64},
        reply=lambda: gzip.compress(b"a" * (256 * MIB)),
        headers={"Content-Encoding": "gzip"},
    ),
    "zip_bomb_session": Case(
        lambda: {"prompt_ls": ["x" * (2 * MIB)] * 16},
        reply=lambda: gzip.compress(b"a" * (256 * MIB)),
        headers={"Content-Encoding": "gzip"},
    ),
    "schema_11": Case(
        lambda: {"prompt_ls": ["hi"] * 16, "schema": nested(11)},
        reply=lambda: completion(json.dumps({"a": "x" * MIB})),
    ),
    "schema_prose": Case(
        lambda: {"prompt_ls": ["hi"] * 16, "schema": nested(4)},
        reply=lambda: completion("Here: " + '{"a": [' + "1," * (MIB // 2)),
    ),
    "no_budget": Case(
        lambda: {"prompt_ls": ["x"] * 290_000, "max_cost": 0.0, "sampling_params": {"max_tokens": 1}},
        settings={"price": {"input": 1, "output": 1}},
    ),
    "prompts_290k": Case(lambda: {"prompt_ls": [f"q{n}" for n in range(290_000)]}),
    "failures_100k": Case(lambda: {"prompt_ls": [f"q{n}" for n in range(20_000)]}, reply=lambda: completion("")),
    "turns_70k": Case(
        lambda: {"messages": [{"role": "user", "content": "hello you"}] * 70_000}, tool="multiturn_generate"
    ),
    "prompt_30m": Case(lambda: {"prompt_ls": ["x" * (30 * MIB)]}),
    "prompt_30m_escaped": Case(lambda: b'{"prompt_ls":["%s"]}' % (rb"\u00e9" * (5 * MIB))),
    "prompts_in_text": Case(lambda: {"prompt_ls": "[" + "[]," * (10 * MIB) + "[]]"}),
    "sampling_in_text": Case(
        lambda: {"prompt_ls": ["x"], "sampling_params": '{"stop": [' + "[]," * (10 * MIB) + "[]]}"}
    ),
    "schema_in_text": Case(lambda: {"prompt_ls": ["x"], "schema": '{"enum": [' + "[]," * (10 * MIB) + "[]]}"}),
    "system_30m": Case(lambda: {"prompt_ls": ["x"] * 100, "system_prompt": "x" * (20 * MIB)}),
    "images_in_text": Case(
        lambda: {"prompt_ls": ["x"], "multimodal_path": ["[" + "[]," * (10 * MIB) + "[]]"]}, tool="multimodal_generate"
    ),
    "image_30m": Case(
        lambda: {"prompt_ls": ["x"], "multimodal_path": [["data:image/png;base64," + "A" * (30 * MIB)]]},
        tool="multimodal_generate",
    ),
    "wrong_name_30m": Case(lambda: {"prompt_ls": ["x"], "a" * (30 * MIB): 1}),
    "wrong_model_30m": Case(lambda: {"prompt_ls": ["x"], "model": "a" * (30 * MIB)}),
    "extra_30m": Case(lambda: {"prompt_ls": ["x"], "sampling_params": {"bogus": "a" * (30 * MIB)}}),
    "logprobs": Case(lambda: {"prompt_ls": ["hi"] * 8}, reply=lambda: _logprobs(120_000)),
    "values": Case(lambda: {"prompt_ls": ["hi"] * 16}, reply=lambda: b'{"choices":[%s]}' % (b"[]," * 240_000 + b"[]")),
    "tool_calls": Case(
        lambda: {"prompt_ls": ["hi"] * 8},
        reply=lambda: orjson.dumps(
            {"choices": [{"message": {"tool_calls": [{"a": {}}] * 100_000}, "finish_reason": "stop"}]}
        ),
    ),
    "several": Case(
        lambda: {"prompt_ls": ["hi"] * 128, "sampling_params": {"n": 128}}, reply=lambda: completion(_text(4000))
    ),
}


class Upstream:
    """An endpoint that answers every request with the same bytes."""

    def __init__(self, body: bytes, headers: dict[str, str]) -> None:
        head = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        self._answer = f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as reading:
            while reading.readline():
                length, chunked = 0, False
                while (line := reading.readline()) not in {b"\r\n", b""}:
                    name, _, value = line.lower().partition(b":")
                    length = int(value) if name == b"content-length" else length
                    chunked = chunked or name == b"transfer-encoding"
                assert not chunked
                reading.read(length)
                connection.sendall(self._answer)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


class Server:
    """The probed server."""

    def __init__(self, url: str, settings: dict[str, Any], *, over: str) -> None:
        self.report = Path(tempfile.mkstemp(prefix="stalls-")[1])
        self._config = self.report.with_suffix(".yaml")
        block = {"model_name": "m", "base_url": url, "concurrency": 64, "retries": 1, "base_delay": 0.01}
        top = {"backend": "openai", "check_retries": 0, **settings, "backend_configs": {"openai": block}}
        self._config.write_bytes(orjson.dumps(top))
        arguments = ["serve", "--config", str(self._config), *(["--http", "127.0.0.1:0"] if over == "http" else [])]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stall_probe", str(self.report), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
        )

    def said(self) -> str:
        """Return what it wrote to stderr."""
        self._log.seek(0)
        return self._log.read().decode()

    def gaps(self) -> list[dict[str, Any]]:
        """Return the gaps so far."""
        return [orjson.loads(line) for line in self.report.read_bytes().splitlines()]

    def peak(self) -> int:
        """Return the most memory that the process had so far, in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._log.close()
        self.report.unlink()
        self._config.unlink()


def _hello(name: str) -> dict[str, Any]:
    return {"protocolVersion": _VERSION, "capabilities": {}, "clientInfo": {"name": name, "version": "0"}}


def _call(number: int, tool: str, arguments: dict[str, Any] | bytes) -> bytes:
    written = arguments if isinstance(arguments, bytes) else orjson.dumps(arguments)
    return (
        b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%s","arguments":' % (number, tool.encode())
        + written
        + b"}}"
    )


class OverHttp:
    """A client over HTTP, with a session."""

    def __init__(self, server: Server) -> None:
        while "serving MCP at" not in server.said():
            assert server.process.poll() is None, server.said()
            time.sleep(0.05)
        self._port = int(server.said().split("127.0.0.1:")[1].split("/")[0])
        self._headers = dict(_ACCEPT)
        opened = self._post(orjson.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": _hello("x")}))
        self._headers |= {"Mcp-Session-Id": opened[1]["mcp-session-id"], "Mcp-Protocol-Version": _VERSION}
        self._post(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')

    def _post(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("POST", "/mcp", body, self._headers)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()

    def call(self, number: int, tool: str, arguments: dict[str, Any] | bytes) -> bytes:
        """Return the response to a call."""
        return self._post(_call(number, tool, arguments))[2]

    def latency(self, done: threading.Event) -> float:
        """Return the longest that /healthz took until `done`."""
        worst = 0.0
        while not done.is_set():
            began = time.perf_counter()
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
                connection.request("GET", "/healthz")
                connection.getresponse().read()
            worst = max(worst, time.perf_counter() - began)
            done.wait(0.01)
        return worst


class OverStdio:
    """A client over stdio that has no limit."""

    def __init__(self, server: Server) -> None:
        self._in, self._out = server.process.stdin, server.process.stdout
        self._ask(orjson.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": _hello("mcp")}), 0)
        self._in.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')

    def _ask(self, line: bytes, number: int) -> bytes:
        self._in.write(line + b"\n")
        self._in.flush()
        while answer := self._out.readline():
            if b'"id":%d,' % number in answer[:100] or b'"id":%d}' % number in answer[-100:]:
                return answer
        raise RuntimeError("the server ended")

    def call(self, number: int, tool: str, arguments: dict[str, Any] | bytes) -> bytes:
        """Return the response to a call."""
        return self._ask(_call(number, tool, arguments), number)

    def latency(self, done: threading.Event) -> float:
        """Return nothing of use: a client's pings would wait behind its own call."""
        done.wait()
        return 0.0


@contextlib.contextmanager
def _running(case: Case, over: str) -> Iterator[tuple[Server, OverHttp | OverStdio]]:
    upstream = Upstream(case.reply(), case.headers)
    server = Server(upstream.url, case.settings, over=over)
    try:
        client = OverHttp(server) if over == "http" else OverStdio(server)
        yield server, client
    finally:
        server.close()
        upstream.close()


def _measure(name: str, over: str, *, stacks: bool) -> None:
    case = CASES[name]
    with _running(case, over) as (server, client):
        client.call(1, "generate", {"prompt_ls": []})
        time.sleep(0.3)
        before, rest = len(server.gaps()), server.peak()
        done, worst = threading.Event(), [0.0]
        watching = threading.Thread(target=lambda: worst.append(client.latency(done)))
        watching.start()
        arguments = case.arguments()
        began = time.perf_counter()
        try:
            for number in range(case.times):
                answer = client.call(number + 2, case.tool, arguments)
        except Exception as error:
            answer = repr(error).encode()
        took = time.perf_counter() - began
        time.sleep(0.5)
        done.set()
        watching.join()
        gaps = server.gaps()[before:]
        worst_gap = max(gaps, key=lambda gap: gap["wall"], default={"wall": 0.0, "cpu": 0.0, "gc": 0.0, "stacks": []})
        most_cpu = max((gap["cpu"] for gap in gaps), default=0.0)
        load = psutil.getloadavg()[0]
        shown = answer[:60].decode(errors="replace") if len(answer) < 2000 else ""
        print(
            f"{name:20} {over:5} wall {worst_gap['wall']:5.2f} cpu {worst_gap['cpu']:5.2f} (most {most_cpu:5.2f}) "
            f"gc {worst_gap['gc']:.2f} healthz {max(worst):5.2f}  rss {rest:4} → {server.peak():4} MiB  "
            f"{took:6.2f} s  {len(answer):>11,} bytes  load {load:.1f}  {shown}",
            flush=True,
        )
        if stacks:
            for gap in sorted(gaps, key=lambda gap: -gap["wall"])[:4]:
                print(f"    gap {gap['wall']:.3f} cpu {gap['cpu']:.3f} gc {gap['gc']:.3f}")
                for stack in gap["stacks"][:6]:
                    print("      " + " < ".join(stack[:9]))


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser("python -m benchmarks.stalls", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"which: {', '.join(CASES)}; default: all")
    parser.add_argument("--over", choices=["http", "stdio"], action="append")
    parser.add_argument("--stacks", action="store_true", help="show where the loop was in its longest gaps")
    arguments = parser.parse_args()
    for name in arguments.names or CASES:
        for over in arguments.over or ["http", "stdio"]:
            _measure(name, over, stacks=arguments.stacks)


if __name__ == "__main__":
    main()
