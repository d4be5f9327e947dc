"""The SDK's streams over our own wire.

The SDK's own transport reads a line as each kind of message in turn: 10 MB of small objects take 400 MB and a second of
CPU that way, a quarter of that when the JSON is read once. Lines that are no message it drops.

As in the SDK's, anyio's threads read and write: those of asyncio may all be busy with images.
"""

from __future__ import annotations

from typing import Any

import anyio.to_thread
import pydantic_core
from fastmcp import FastMCP
from fastmcp.server.context import reset_transport, set_transport
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCMessage, jsonrpc_message_adapter

from promptmill.server.stdio_errors import answer_to
from promptmill.stdio.wire import Wire


async def serve(server: FastMCP, wire: Wire) -> None:
    """Serve the client of `wire` until its input ends."""
    token = set_transport("stdio")
    low_level = server._mcp_server  # FastMCP's own way takes the process's standard streams
    try:
        async with server._lifespan_manager():
            outgoing = _Outgoing(wire)
            await low_level.run(_Incoming(wire, outgoing), outgoing, low_level.create_initialization_options())
    finally:
        reset_transport(token)


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

    async def send(self, item: SessionMessage) -> None:
        """Send a message if the client still listens."""
        if self.client_has_left:
            return
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        async with self._in_turn:
            await anyio.to_thread.run_sync(self._wire.send, line)


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
                return SessionMessage(message_of(text))
            except ValueError as error:
                answer = answer_to(text, error)
            if answer is not None:
                await self._outgoing.send(SessionMessage(answer))
        self._outgoing.client_has_left = True
        raise StopAsyncIteration

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message."""
        return await anext(self)


def message_of(text: str) -> JSONRPCMessage:
    """Return the message in a line. Raises `ValueError`, and its `ValidationError` for JSON that is no message."""
    return jsonrpc_message_adapter.validate_python(pydantic_core.from_json(text), by_name=False)
