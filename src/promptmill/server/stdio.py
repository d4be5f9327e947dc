"""The server over standard input and output: the SDK's transport, with additions.

* A client may send `server/discover` first, and `initialize` if the answer takes too long (the Vercel AI SDK: one
  second). The MCP SDK derives the protocol version from the first request and refuses the other version, so an initial
  `server/discover` is handled as a separate conversation.
* An unreadable request gets an error reply, and so do a batch and a request with an invalid id. The SDK alone would
  drop such lines, and their senders would wait forever.
* `last_answers` waits until the client has read the answers to its calls, so that they arrive before the process ends.
  The SDK does not report what it has written, so it writes into `_Pipe`, which does.
* After the client has disconnected, nothing is sent.

The SDK tries to parse a line as each kind of message in turn. For a valid call of 20 MB, the SDK takes as much CPU time
as a custom parser if the call has one prompt (0.28 and 0.33 s) or 500 prompts (0.12 and 0.11 s), and twice as much if
it has 400,000 turns of 20 characters (1.97 and 0.95 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import mcp_types
from fastmcp import FastMCP
from fastmcp.server.context import reset_transport, set_transport
from mcp.os.win32.utilities import rebind_std_handle_to_fd
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

# The longest wait for `tools/list`: Python's SDK sends it after a tool's first result, and needs the reply.
_FOLLOW_UP_S = 0.5
_READING_S = 5.0  # seconds for a client to read a large answer; then a signal ends the server immediately
_POLL_S = 0.01
_PIECE_BYTES = 16 << 10
# A piece of JSON. An unclosed string extends to its line's end, so that the missing quote is searched for only once.
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\]:]|-?\d+')
# The prefixes of the names of methods that are requests.
_REQUESTS = ("ping", "initialize", "server/", "tools/", "resources/", "prompts/", "completion/", "logging/", "tasks/")
_NO_CLIENT = (
    "promptmill: stdin holds no JSON; this is an MCP server: a client starts it; for a question: "
    "promptmill generate 'PROMPT'"
)


class StdioServer:
    """Serves the client that is connected by standard input and output.

    Messages pass through two tasks between the SDK's transport and its server:

        stdin ─▶ transport ─▶ `_received` ─▶ server ─▶ `_send` ─▶ transport ─▶ `_Pipe`
    """

    def __init__(self, server: FastMCP) -> None:
        self._server = server
        self._pipe = _Pipe()
        self._client = _Client()
        self._transport: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until the input ends or the task is cancelled.

        Meanwhile and later, other code and child processes find stdin empty, and their output goes to stderr.
        """
        streams: asyncio.Future[tuple[Any, Any]] = asyncio.get_running_loop().create_future()
        self._transport = asyncio.ensure_future(_open(self._pipe, streams))
        either: set[asyncio.Future[Any]] = {self._transport, streams}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not streams.done():
            self._transport.result()
        reading, writing = streams.result()
        token = set_transport("stdio")
        try:
            async with self._server._lifespan_manager():
                messages = _received(reading, writing, self._client)
                async for item in messages:
                    is_discovery = isinstance(item.message, mcp_types.JSONRPCRequest) and (
                        item.message.method == "server/discover"
                    )
                    await self._converse(self._alone(item) if is_discovery else _with_first(item, messages), writing)
        finally:
            reset_transport(token)

    async def _alone(self, item: SessionMessage) -> AsyncIterator[SessionMessage]:
        """Yield one request, and end when it is answered."""
        yield item
        await self._client.all_answered.wait()

    async def _converse(self, messages: AsyncIterator[SessionMessage], writing: Any) -> None:
        """Serve `messages` until they end."""
        to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, from_server = anyio.create_memory_object_stream[SessionMessage](0)

        async def receive() -> None:
            async with to_server:
                async for item in messages:
                    await to_server.send(item)

        async def send() -> None:
            async for item in from_server:
                await self._client.send(item, writing)

        low_level = self._server._mcp_server
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(send)
            async with outgoing:
                await low_level.run(incoming, outgoing, low_level.create_initialization_options())
            if self._client.has_left:  # a client that left may never read, so that a message would wait forever
                group.cancel_scope.cancel()

    async def last_answers(self, limit_s: float) -> None:
        """Wait until the client has read all answers, including answers to requests that it sends after an answer.

        Wait at most `limit_s` seconds, which begin again whenever the client reads a piece of an answer.
        """
        began, client = time.monotonic(), self._client
        busy_at = began if began < client.answered_at + _READING_S else -math.inf
        while (now := time.monotonic()) < max(began, self._pipe.read_at) + limit_s:
            if client.unanswered or client.sent > self._pipe.written:
                busy_at = now
            if now > max(busy_at, client.answered_at) + _FOLLOW_UP_S:
                return
            await asyncio.sleep(_POLL_S)

    def hang_up(self) -> None:
        """Send nothing more to the client."""
        self._client.has_left = True


class _Client:
    """The client: its open requests, and the messages sent to it.

    After the client has closed its side, nothing is sent. The SDK would answer each running call with "Connection
    closed", for which clients of its 1.x line raise an exception while they exit.
    """

    def __init__(self) -> None:
        self.has_left = False
        self.sent = 0
        """The number of messages that the transport has accepted."""
        self.unanswered: set[Any] = set()
        """The ids of requests that are not yet answered."""
        self.all_answered = asyncio.Event()
        self.answered_at = -math.inf
        """The time when the transport accepted the last answer. The transport writes the answer afterwards."""

    async def send(self, item: SessionMessage, writing: Any) -> None:
        """Send a message, unless the client has left."""
        if self.has_left:
            return
        try:
            await writing.send(item)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):  # the client has closed its reading end
            self.has_left = True
            self.all_answered.set()
            return
        self.sent += 1
        if isinstance(item.message, mcp_types.JSONRPCResponse | mcp_types.JSONRPCError):
            self.answered_at = time.monotonic()
            self._end(item.message.id)

    def expect(self, message: mcp_types.JSONRPCMessage) -> None:
        """Record a message from the client: a request awaits an answer, and a cancelled request no longer does."""
        if isinstance(message, mcp_types.JSONRPCRequest):
            self.unanswered.add(message.id)
            self.all_answered.clear()
        elif isinstance(message, mcp_types.JSONRPCNotification) and message.method == "notifications/cancelled":
            self._end((message.params or {}).get("requestId"))

    def _end(self, request_id: Any) -> None:
        if isinstance(request_id, int | str):
            self.unanswered.discard(request_id)
        if not self.unanswered:
            self.all_answered.set()


async def _with_first(item: SessionMessage, others: AsyncIterator[SessionMessage]) -> AsyncIterator[SessionMessage]:
    yield item
    async for other in others:
        yield other


async def _received(reading: Any, writing: Any, client: _Client) -> AsyncIterator[SessionMessage]:
    """Yield the messages of the client. An invalid line gets an error reply if it is a request."""
    is_hinted = False
    async for received in reading:
        item = _without_mark(received)
        if isinstance(item, SessionMessage):
            if (refusal := _refusal_of(item.message)) is not None:
                await client.send(SessionMessage(refusal), writing)
                continue
            client.expect(item.message)
            yield item
        elif isinstance(item, ValidationError):
            line = _unreadable_line(item)
            if line is not None and not line.strip():  # a thread for each of a million blank lines would take minutes
                continue
            answer = await asyncio.to_thread(answer_to, item)  # a line of 20 MB of brackets takes seconds to read
            if answer is not None:
                await client.send(SessionMessage(answer), writing)
            if not is_hinted and line is not None and line.lstrip()[0] not in "{[":
                is_hinted = True
                print(_NO_CLIENT, file=sys.stderr)
    client.has_left = True


def _refusal_of(message: mcp_types.JSONRPCMessage) -> mcp_types.JSONRPCError | None:
    """Return the error reply to a request whose id is neither a text nor a whole number; None for other messages.

    The SDK takes such a request for a notification, so its sender would wait forever. A progress token that is null is
    removed, as if it were absent.
    """
    if isinstance(message, mcp_types.JSONRPCNotification) and message.method.startswith(_REQUESTS):
        return _invalid(None, "The `id` of a request is a text or a whole number.")
    meta = (message.params or {}).get("_meta") if isinstance(message, mcp_types.JSONRPCRequest) else None
    if isinstance(meta, dict) and meta.get("progressToken", "") is None:
        del meta["progressToken"]
    return None


def _invalid(number: int | str | None, problem: str) -> mcp_types.JSONRPCError:
    wrong = mcp_types.ErrorData(code=mcp_types.INVALID_REQUEST, message=problem)
    return mcp_types.JSONRPCError(jsonrpc="2.0", id=number, error=wrong)


def _without_mark(item: SessionMessage | Exception) -> SessionMessage | Exception:
    """Remove a byte-order mark, which .NET writes before the first line, from a message. Other items stay unchanged."""
    line = _unreadable_line(item) if isinstance(item, ValidationError) else None
    if line is None or not line.startswith("\ufeff"):
        return item
    try:
        return SessionMessage(mcp_types.jsonrpc_message_adapter.validate_json(line[1:], by_name=False))
    except ValidationError as error:
        return error


class _Pipe:
    """Standard output, as a file to which the SDK writes. While it is open, the output of other code goes to stderr."""

    def __init__(self) -> None:
        self.written = 0
        """The number of messages written to the pipe."""
        self.read_at = -math.inf
        """The time when the client last read a piece of a long message."""
        self._descriptor = -1

    def open(self) -> None:
        """Take over standard output, as the SDK does if it gets no file."""
        null = os.open(os.devnull, os.O_RDWR)  # becomes descriptor 2 if there is no stderr
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        if null > 2:
            os.close(null)
        with contextlib.suppress(OSError):
            rebind_std_handle_to_fd(1)

    async def write(self, message: str) -> None:
        """Write one message. Return when all of it is in the pipe."""
        await anyio.to_thread.run_sync(self._write, message)
        self.written += 1

    def _write(self, message: str) -> None:
        left = memoryview(message.encode())
        while left:
            left = left[os.write(self._descriptor, left[:_PIECE_BYTES]) :]
            if left:  # a long message; short ones, such as progress, fit into the pipe even if the client does not read
                self.read_at = time.monotonic()

    async def flush(self) -> None:
        """Do nothing: a written message is already in the pipe."""


async def _open(pipe: _Pipe, streams: asyncio.Future[tuple[Any, Any]]) -> None:
    """Open the SDK's transport. It stays open until the process ends: the thread that reads stdin cannot be stopped."""
    pipe.open()
    stdout: Any = pipe
    async with stdio_server(stdout=stdout) as opened:
        streams.set_result(opened)
        await asyncio.Event().wait()


def answer_to(error: ValidationError) -> mcp_types.JSONRPCError | None:
    """Return the error reply to a line that was refused with `error`; None if the line is not a request.

    A request is unreadable if it has a lone surrogate (`"\\ud800"`, from a program that split an emoji), is nested too
    deeply, or has a list as `params`, which JSON-RPC allows but MCP does not.
    """
    if (line := _unreadable_line(error)) is None:
        problem = error.errors(include_url=False)[0]
        if problem["type"] == "model_type" and isinstance(problem["input"], list):
            return _invalid(None, "A batch of messages is not supported; send each message in a line of its own.")
        return _refusal_of_request(error)
    if (number := _id_of(line)) is None:
        return None
    reason = error.errors(include_url=False, include_input=False)[0]["ctx"]["error"]
    return mcp_types.JSONRPCError(
        jsonrpc="2.0", id=number, error=mcp_types.ErrorData(code=mcp_types.PARSE_ERROR, message=_in_words(reason))
    )


def _unreadable_line(error: ValidationError) -> str | None:
    """Return the line if it is not JSON; None if it is JSON but not a message."""
    problem = error.errors(include_url=False)[0]
    return str(problem["input"]) if problem["type"] == "json_invalid" else None


def _in_words(reason: str) -> str:
    if "surrogate" in reason or "hex escape" in reason:
        return "The request contains an unpaired surrogate; remove it or send the whole character."
    if "recursion" in reason:
        return "The request is nested too deeply."
    return f"The request is not valid JSON: {reason}."


def _id_of(line: str) -> int | str | None:
    try:
        message = json.loads(line, parse_int=_number)
        request_id = message.get("id") if isinstance(message, dict) and "method" in message else None
    except RecursionError:
        request_id = _outermost_id(line)
    except ValueError:
        return None
    return request_id if _is_id(request_id) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _number(text: str) -> int | None:
    # Python refuses to convert more than 4,300 digits.
    return int(text) if len(text) <= 4000 else None


def _refusal_of_request(error: ValidationError) -> mcp_types.JSONRPCError | None:
    """Return the error reply to a message that is a valid request except for its `params` or its `jsonrpc`."""
    for problem in error.errors(include_url=False):
        match problem["input"]:
            case {"jsonrpc": "2.0", "method": str(), "id": number} if _is_id(number):
                return _invalid(number, "`params` of the request is not an object.")
            case {"method": str(), "id": number} if _is_id(number):
                return _invalid(number, '`jsonrpc` of the request is not "2.0".')
    return None


def _outermost_id(line: str) -> int | str | None:
    """Return the value of `id` in the outermost object, however deeply its other values are nested."""
    depth = 0
    before: tuple[str, str] = ("", "")
    for piece in map(re.Match.group, _PIECE.finditer(line)):
        if piece in "{[":
            depth += 1
        elif piece in "}]":
            depth -= 1
        elif depth == 1 and before == ('"id"', ":"):
            return piece[1:-1] if piece.startswith('"') else _number(piece)
        before = (before[1], piece)
    return None
