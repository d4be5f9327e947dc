"""The server as a subprocess, spoken to in raw lines, as no client library would: every line it writes is checked.

with Piped(file) as server:             # `promptmill serve --config file`
    server.initialize()
    number = server.call("generate", prompt_ls=["hi"])
    answers = server.result(number)["structuredContent"]["ans_ls"]
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server_process import ServerProcess
from waiting import PATIENCE_S


class Piped(ServerProcess):
    """A server and what it has written. `lines` are its messages with the time each came."""

    def __init__(
        self,
        config: Path | None,
        *arguments: str,
        environ: dict[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`command` starts it otherwise than `promptmill serve --config config`."""
        command = command or [sys.executable, "-m", "promptmill", "serve", "--config", str(config)]
        super().__init__([*command, *arguments], stdin=subprocess.PIPE, environ=environ)
        self.lines: list[tuple[float, dict[str, Any]]] = []
        self.strays: list[bytes] = []
        self._news = threading.Condition()
        self._number = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Piped:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reader.join(PATIENCE_S)
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
        """Send one line as it is; a server that has ended reads none."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
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

    def reply(self, number: int | str) -> dict[str, Any]:
        """Wait for the response to a request."""
        with self._news:
            waited = self._news.wait_for(lambda: self.found(number) or not self._reader.is_alive(), PATIENCE_S)
        answer = self.found(number)
        assert answer is not None, f"no answer to {number} ({'waited' if not waited else 'the server is gone'})"
        return answer

    def result(self, number: int) -> dict[str, Any]:
        """Wait for the result of a request that must not be an error of the protocol."""
        answer = self.reply(number)
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
