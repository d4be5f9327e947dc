"""A thread that answers the opening of a conversation and then leaves the client to the server."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from promptmill.stdio.manifest import Manifest
from promptmill.stdio.opening import Opening, request_of
from promptmill.stdio.wire import Wire

ENDING_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")

_NO_CLIENT = (
    "promptmill: stdin holds no JSON; this is an MCP server: a client starts it; for a question: "
    "promptmill generate 'PROMPT'"
)


class Front:
    """Answers from the manifest until the server is there and the client has said in which era it talks.

    FastMCP takes a second to import, and clients wait for less: the Vercel AI SDK gives `server/discover` one second,
    Codex starts a turn without the tools of a server that takes longer than that, Cline gave `initialize` 1.5.
    """

    def __init__(self, wire: Wire, opening: Opening, *, leave: Callable[[int], object] = os._exit) -> None:
        """Start answering on `wire`. `leave` ends the process when the client leaves before the server is there."""
        self.wire = wire
        self._opening = opening
        self._leave = leave
        self._configured = threading.Event()
        self._server_is_there = False
        self._owes_answers = False
        self._told = False
        threading.Thread(target=self._run, name="front", daemon=True).start()

    @classmethod
    def open(cls, *, locked: bool, lists_tools: bool = True) -> Front:
        """Take the process's standard input and output; `lists_tools`: the manifest holds the server's tools.

        Until the server takes signals over they end the process at once: nothing has been started yet.
        """
        for name in ENDING_SIGNALS:
            if (number := getattr(signal, name, None)) is not None:
                signal.signal(number, lambda got, _frame: os._exit(128 + got))
        return cls(Wire.claim(), Opening(Manifest.read(locked=locked), lists_tools=lists_tools))

    def configured(self) -> None:
        """Say that the configuration is right; only then the tools are told."""
        self._configured.set()

    def hand_over(self) -> None:
        """Say that the server is there, and reads from the wire."""
        self._server_is_there = True

    def _run(self) -> None:
        parts: list[bytes] = []
        answering = True
        while answering and (chunk := self.wire.read()):
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                line = b"".join([*parts, end, b"\n"])
                parts.clear()
                answering = answering and not (self._server_is_there and self._opening.era)
                if answering:
                    self._take(line)
                else:
                    self.wire.pass_on(line)
            if rest:
                parts.append(rest)
        if answering and not self._server_is_there and not self._owes_answers:
            self._configured.wait()  # a wrong configuration is said even to who has left
            self._leave(0)
        self.wire.pass_on(b"".join(parts))
        self.wire.release()

    def _take(self, line: bytes) -> None:
        request = request_of(line)
        if not self._told and line.strip() and not line.lstrip().startswith((b"{", b"[")):
            self._told = True
            print(_NO_CLIENT, file=sys.stderr)
        if request is not None and request["method"] == "tools/list":
            self._configured.wait()
        result = None if request is None else self._opening.answer(request)
        if request is None or result is None:
            self._owes_answers = self._owes_answers or request is not None
            self.wire.pass_on(line)
            return
        self.wire.send(_response(request["id"], result))
        if request["method"] == "initialize":  # the server must know the client, too
            self.wire.hide_answer_to(request["id"])
            self.wire.pass_on(line)


def _response(request_id: Any, result: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode() + b"\n"
