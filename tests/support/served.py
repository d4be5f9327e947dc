"""The server over HTTP as a subprocess, asked in plain HTTP and raw bytes, as no client library would.

with Served(file) as server:            # `promptmill serve --http 127.0.0.1:0 --config file`
    answer = server.ask("GET", "/healthz")
    answers = server.session().answers("hi")
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from promptmill.cli import main as cli
from promptmill.server import process
from promptmill.system import logs, runtime
from server_process import ServerProcess
from waiting import PATIENCE_S, eventually

TOKEN = "correct-horse-battery-staple-0123"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
_GREETING = re.compile(r"serving MCP at (https?)://(\S+):(\d+)/mcp")
_ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
VERSION = "2025-11-25"
SESSIONLESS = "2026-07-28"


@dataclass
class Answer:
    """One HTTP response, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """What the JSON-RPC error in it says."""
        return str(self.json["error"]["message"])


class Asked:
    """An address of a server, and requests to it."""

    version = VERSION
    """The protocol of its sessions; the fixture `protocol` changes it."""

    def __init__(self, url: str) -> None:
        """`url` is that of MCP."""
        self.url = url
        self.port = int(url.rsplit(":", maxsplit=1)[-1].removesuffix("/mcp"))

    def ask(
        self,
        method: str = "POST",
        path: str = "/mcp",
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> Answer:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def raw(self, data: bytes, timeout_s: float = PATIENCE_S) -> bytes:
        """Send bytes; return what comes back until it closes, falls silent for `timeout_s`, or has said all."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            with contextlib.suppress(OSError):  # it may answer and close before it has read all
                connection.sendall(data)
            said = b""
            with contextlib.suppress(OSError):
                while piece := connection.recv(65_536):
                    said += piece
                    head, end, body = said.partition(b"\r\n\r\n")
                    length = re.search(rb"content-length: (\d+)", head)
                    if end and length and len(body) >= int(length[1]):
                        break
            return said

    def session(self, headers: dict[str, str] | None = None) -> Session:
        """Return a client, which has shaken hands if `version` has sessions."""
        return Session(self, headers or {}) if self.version == VERSION else Sessionless(self, headers or {})


class Served(ServerProcess, Asked):
    """A server and its address."""

    def __init__(
        self,
        config: Path,
        *arguments: str,
        listen: str = "127.0.0.1:0",
        environ: dict[str, str] | None = None,
        descriptors: int | None = None,
    ) -> None:
        """`descriptors`: the limit of its open files, if it is not the usual one."""
        command = [sys.executable, "-m", "promptmill", "serve", "--config", str(config), "--http", listen, *arguments]
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *command]
        ServerProcess.__init__(self, command, stdin=subprocess.DEVNULL, environ=environ)
        try:
            eventually(lambda: _GREETING.search(self.said()) or self.process.poll() is not None)
            found = _GREETING.search(self.said())
            assert found, f"it did not start: {self.said()}"
        except BaseException:
            self._leave()
            raise
        Asked.__init__(self, f"{found[1]}://127.0.0.1:{found[3]}/mcp")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        printed = self.process.stdout.read()
        self.errors.close()
        assert printed == b"", "nothing belongs on stdout"


class ServedHere(Asked):
    """A server in a thread of this process, where a start takes no time. No signal can end it."""

    def __init__(self, config: Path, *arguments: str, environ: dict[str, str] | None = None) -> None:
        greeted, ends = Future[str](), Future[Callable[[], object]]()

        class Signals:
            def __init__(self) -> None:
                self.received, self.hurry, ended = [int(signal.SIGTERM)], asyncio.Event(), asyncio.Event()
                self._ended = ended
                ends.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, ended.set))

            async def wait_for_one_or(self, _: object) -> None:
                await self._ended.wait()

        def serve() -> None:
            with contextlib.suppress(_LeftError):
                cli.main(["serve", "--config", str(config), "--http", "127.0.0.1:0", *arguments])

        self._thread = threading.Thread(target=serve, daemon=True)
        self._environ = mock.patch.dict(os.environ, environ or {})
        self._environ.start()
        with (
            mock.patch.multiple(process, _Signals=Signals, announce=greeted.set_result, stay_responsive=int),
            mock.patch.object(runtime, "start_quickly"),
            mock.patch.object(logs, "to_stderr"),
        ):
            self._thread.start()
            found = _GREETING.search(greeted.result(PATIENCE_S))
        assert found is not None
        self._end = ends.result()
        super().__init__(f"{found[1]}://127.0.0.1:{found[3]}/mcp")

    def __enter__(self) -> ServedHere:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.kill()

    def kill(self) -> None:
        """End it, as far as a thread can be: it closes what it has opened, and its jobs go on."""
        with mock.patch.object(process, "_leave", _leave):
            self._end()
            self._thread.join()
        self._environ.stop()


class _LeftError(Exception):
    pass


def _leave(*_: object) -> NoReturn:
    raise _LeftError


class Session:
    """A session with the server, over plain requests."""

    def __init__(self, server: Asked, headers: dict[str, str]) -> None:
        self._server = server
        self._ids = itertools.count(1)
        self.headers = _ACCEPT | headers
        hello = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        opened = self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
        assert opened.status == 200, opened
        self.headers |= {"Mcp-Session-Id": opened.headers["mcp-session-id"], "Mcp-Protocol-Version": VERSION}
        self.notify("notifications/initialized")

    def post(self, message: Any, timeout_s: float = PATIENCE_S) -> Answer:
        """POST one message."""
        headers, body = self.written(message)
        return self._server.ask(headers=headers, body=body, timeout_s=timeout_s)

    def written(self, message: Any) -> tuple[dict[str, str], bytes]:
        """Return the headers and the body of a message."""
        return self.headers, json.dumps(message).encode()

    def notify(self, method: str, **params: Any) -> None:
        """Send a notification."""
        assert self.post({"jsonrpc": "2.0", "method": method, "params": params}).status == 202

    def request(self, method: str, number: int | None = None, timeout_s: float = PATIENCE_S, **params: Any) -> Any:
        """Send a request; return its response message."""
        number = number or next(self._ids)
        answer = self.post({"jsonrpc": "2.0", "id": number, "method": method, "params": params}, timeout_s)
        assert answer.status == 200, answer
        return next(message for message in messages(answer.body) if message.get("id") == number)

    def call(self, tool: str, number: int | None = None, **arguments: Any) -> dict[str, Any]:
        """Call a tool; return its result."""
        result: dict[str, Any] = self.request("tools/call", number, name=tool, arguments=arguments)["result"]
        return result

    def answers(self, *prompts: Any) -> list[str]:
        """Return the answers of a `generate`."""
        result = self.call("generate", prompt_ls=list(prompts))
        assert not result.get("isError"), result["content"][0]["text"]
        answers: list[str] = result["structuredContent"]["ans_ls"]
        return answers

    def close(self) -> None:
        """End the session as clients should."""
        assert self._server.ask("DELETE", headers=self.headers).status == 200


class Sessionless(Session):
    """A client of 2026-07-28, each of whose requests stands for itself."""

    def __init__(self, server: Asked, headers: dict[str, str]) -> None:
        self._server = server
        self._ids = itertools.count(1)
        self.headers = _ACCEPT | headers | {"Mcp-Protocol-Version": SESSIONLESS}

    def written(self, message: Any) -> tuple[dict[str, str], bytes]:
        """Return the headers and the body of a message."""
        name = "io.modelcontextprotocol/"
        meta = {f"{name}protocolVersion": SESSIONLESS, f"{name}clientCapabilities": {}}
        params = message.get("params", {})
        params = {**params, "_meta": {**params.get("_meta", {}), **meta}}
        named = {"Mcp-Name": str(params.get("name", params.get("uri", "")))}
        headers = self.headers | {"Mcp-Method": message["method"]} | (named if named["Mcp-Name"] else {})
        return headers, json.dumps({**message, "params": params}).encode()

    def close(self) -> None:
        """Do nothing: there is no session."""


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the messages of an event stream, or the one of a JSON body."""
    if not body.startswith((b"event:", b":", b"data:", b"id:")):
        return [json.loads(body)]
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
