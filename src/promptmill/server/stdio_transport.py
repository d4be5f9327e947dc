"""The SDK's streams over our own wire.

The SDK's own transport reads a line as each kind of message in turn: 10 MB of small objects take 400 MB and a second of
CPU that way, a quarter of that when the JSON is read once. Lines that are no message it drops.

As in the SDK's, anyio's threads read and write: those of asyncio may all be busy with images.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio.to_thread
import pydantic_core
from fastmcp import FastMCP
from fastmcp.server.context import reset_transport, set_transport
from mcp.shared.message import SessionMessage
from mcp_types import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)

from promptmill.server.stdio_errors import answer_to
from promptmill.stdio.wire import Wire

# Python's SDK lists the tools once it has the first result of a tool, and drops the result when nothing answers that.
_FOLLOW_UP_S = 0.5


class StdioServer:
    """The server of the client at the other end of `wire`."""

    def __init__(self, server: FastMCP, wire: Wire) -> None:
        self._server = server
        self._outgoing = _Outgoing(wire)
        self._incoming = _Incoming(wire, self._outgoing)

    async def run(self) -> None:
        """Serve until the input ends."""
        token = set_transport("stdio")
        low_level = self._server._mcp_server  # FastMCP's own way takes the process's standard streams
        try:
            async with self._server._lifespan_manager():
                await low_level.run(self._incoming, self._outgoing, low_level.create_initialization_options())
        finally:
            reset_transport(token)

    async def last_answers(self) -> None:
        """Wait until every request has its answer, and every request that the client sends on an answer, too."""
        while self._outgoing.unanswered:
            await self._outgoing.all_answered.wait()
            await asyncio.sleep(_FOLLOW_UP_S)


class _Stream:
    """What the SDK asks of both directions."""

    async def aclose(self) -> None:
        """Leave the wire to its owner."""

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None


class _Outgoing(_Stream):
    """Messages to the client, in the order in which they are sent.

    When the client has closed its side nobody reads any more, and nothing is said. The SDK would answer every call in
    progress with "Connection closed", on which clients of its 1.x line raise while they leave.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._in_turn = anyio.Lock()
        self.client_has_left = False
        self.unanswered: set[Any] = set()
        """The ids of requests without an answer so far."""
        self.all_answered = asyncio.Event()

    async def send(self, item: SessionMessage) -> None:
        """Send a message if the client still listens."""
        if self.client_has_left:
            return
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        async with self._in_turn:
            await anyio.to_thread.run_sync(self._wire.send, line)
        if isinstance(item.message, JSONRPCResponse | JSONRPCError):
            self._settle(item.message.id)

    def expect(self, message: JSONRPCMessage) -> None:
        """Note a message of the client: a request gets an answer, unless the client cancels it."""
        if isinstance(message, JSONRPCRequest):
            self.unanswered.add(message.id)
            self.all_answered.clear()
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self._settle((message.params or {}).get("requestId"))

    def _settle(self, request_id: Any) -> None:
        if isinstance(request_id, int | str):
            self.unanswered.discard(request_id)
        if not self.unanswered:
            self.all_answered.set()


class _Incoming(_Stream):
    """Messages of the client. What is none is answered, if anybody waits for that."""

    def __init__(self, wire: Wire, outgoing: _Outgoing) -> None:
        self._wire = wire
        self._outgoing = outgoing

    def __aiter__(self) -> _Incoming:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while line := await anyio.to_thread.run_sync(self._wire.stdin.readline, abandon_on_cancel=True):
            text = line.decode(errors="replace")
            try:
                message = message_of(text)
            except ValueError as error:
                answer = answer_to(text, error)
                if answer is not None:
                    await self._outgoing.send(SessionMessage(answer))
                continue
            self._outgoing.expect(message)
            return SessionMessage(message)
        self._outgoing.client_has_left = True
        raise StopAsyncIteration

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message."""
        return await anext(self)


def message_of(text: str) -> JSONRPCMessage:
    """Return the message in a line. Raises `ValueError`, and its `ValidationError` for JSON that is no message."""
    return jsonrpc_message_adapter.validate_python(pydantic_core.from_json(text), by_name=False)
