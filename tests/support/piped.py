"""The server as a subprocess, spoken to in raw lines, as no client library would: every line it writes is checked.

with Piped(file) as server:             # `promptmill serve --config file`
    server.initialize()
    number = server.call("generate", prompt_ls=["hi"])
    answers = server.result(number)["structuredContent"]["ans_ls"]
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from busy import within

PATIENCE_S = 60.0


class Piped:
    """A server and what it has written. `lines` are its messages with the time each came."""

    def __init__(
        self,
        config: Path | None,
        *arguments: str,
        environ: dict[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`command` starts it otherwise than `promptmill serve --config config`."""
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [*(command or [sys.executable, "-m", "promptmill", "serve", "--config", str(config)]), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=dict(os.environ) | (environ or {}),
        )
        self.lines: list[tuple[float, dict[str, Any]]] = []
        self.strays: list[bytes] = []
        self._news = threading.Condition()
        self._number = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Piped:
        return self

    def __exit__(self, *_: object) -> None:
        family = self.family()
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        self._reader.join(5)
        self.errors.close()
        assert not self.strays, f"not JSON-RPC on stdout: {self.strays[:3]}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                message = json.loads(line)
                assert message["jsonrpc"] == "2.0"
                assert "id" in message or "method" in message
            except (ValueError, AssertionError, TypeError, KeyError):
                self.strays.append(line)
            else:
                with self._news:
                    self.heard(message, line)
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def heard(self, message: dict[str, Any], line: bytes) -> None:
        """Keep a message, which the server wrote as `line`."""
        self.lines.append((time.monotonic(), message))

    def write(self, line: bytes) -> None:
        """Send one line as it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def notify(self, method: str, **params: Any) -> None:
        """Send a notification."""
        self.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    def request(self, method: str, **params: Any) -> int:
        """Send a request; return its id."""
        self._number += 1
        message = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        self.write(json.dumps(message).encode())
        return self._number

    def call(self, tool: str, *, progress: str | None = None, **arguments: Any) -> int:
        """Call a tool; return the request's id. `progress` is the token to be told progress by."""
        meta = {"_meta": {"progressToken": progress}} if progress else {}
        return self.request("tools/call", name=tool, arguments=arguments, **meta)

    def initialize(self) -> dict[str, Any]:
        """Shake hands; return the server's answer."""
        client = {"name": "test", "version": "1"}
        answer = self.reply(
            self.request("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=client)
        )
        self.notify("notifications/initialized")
        result: dict[str, Any] = answer["result"]
        return result

    def found(self, number: int | str) -> dict[str, Any] | None:
        """Return the response to a request, or None while there is none."""
        return next((line for _, line in self.lines if line.get("id") == number and "method" not in line), None)

    def reply(self, number: int | str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for the response to a request."""
        with self._news:
            waited = self._news.wait_for(lambda: self.found(number) or not self._reader.is_alive(), within(timeout_s))
        answer = self.found(number)
        assert answer is not None, f"no answer to {number} ({'waited' if not waited else 'the server is gone'})"
        return answer

    def result(self, number: int, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for the result of a request that must not be an error of the protocol."""
        answer = self.reply(number, timeout_s)
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def answers(self, *prompts: Any) -> list[str]:
        """Return the answers of a `generate`."""
        result = self.result(self.call("generate", prompt_ls=list(prompts)))
        assert not result.get("isError"), result["content"][0]["text"]
        answers: list[str] = result["structuredContent"]["ans_ls"]
        return answers

    def progress(self, token: str | None) -> list[tuple[float, dict[str, Any]]]:
        """Return the progress that was told by `token` (None: by none), with the time of each."""
        return [
            (at, line["params"])
            for at, line in self.lines
            if line.get("method") == "notifications/progress" and line["params"].get("progressToken") == token
        ]

    def family(self) -> list[psutil.Process]:
        """Return the server's child processes, down to the last."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    def end(self, how: str) -> None:
        """Close its stdin (`EOF`) or send it a signal."""
        if how == "EOF":
            assert self.process.stdin is not None
            self.process.stdin.close()
        else:
            self.process.send_signal(getattr(signal, how))

    def said(self) -> str:
        """Return what it has written to stderr."""
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace")


def eventually(condition: Any, timeout_s: float = PATIENCE_S) -> None:
    """Wait until `condition()` holds."""
    limit = time.monotonic() + within(timeout_s)
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        time.sleep(0.01)
