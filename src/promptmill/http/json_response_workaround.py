"""Workaround: sends a large result as one JSON response to clients that may not accept it as an event.

httpx2, which the Python SDK's 2.x client uses, aborts a stream at an event of 1 MiB, and Go's SDK at 16 MiB, so the
answers of a paid call are lost. A JSON body has no such limit, but cannot carry progress. A program chooses its
`User-Agent` and its name freely, so only clients known to have no limit get long events.
"""

from __future__ import annotations

import re

from starlette.types import Message, Scope, Send

from promptmill.core.values import json_text, read_json

_LIMITED = b"httpx2"
# The `User-Agent`s of clients that read events of any size: httpx, in the Python SDK's 1.x line and FastMCP up to 3;
# Node's fetch, in the TypeScript SDK (which accepted an event of 60 MB) and the AI SDK; Claude Code.
_WITHOUT_LIMIT = re.compile(rb"python-httpx/|claude-code/|(?:node|undici)$")
_TOKEN = b'"progressToken"'
_CALL = b'"tools/call"'
_LARGE = 4 << 10  # a request with more bytes than this (dozens of prompts) may have large answers
_NOTIFICATION = b'{"jsonrpc":"2.0","method":'
_DATA = b"data: "
_EVENT_BYTES = 1_000_000  # max bytes of an event: 1,048,576 less the event's other lines
RESPONSE = "promptmill.response"
"""The key of the `EitherResponse` in a request's scope. It is there if the client may have a limit."""


class EitherResponse:
    """A response that becomes one JSON body or a stream of events when its first message is sent.

    If the result is the first message, the response is JSON. It must be a stream if the client requested progress, or
    if the connection would be silent for too long. The response is always JSON for a large request, and for a client
    that is known to have the limit and requested no progress; then blanks keep the connection alive.
    """

    def __init__(self, body: bytes, *, is_limited: bool) -> None:
        """`body`: the request's body. `is_limited`: whether the client is known to have the limit of events."""
        self._json = _CALL in body and (len(body) > _LARGE or (is_limited and _TOKEN not in body))
        self._is_stream = False
        self._held: list[Message] = []
        self._sent = False

    @classmethod
    def to(cls, scope: Scope, body: bytes) -> EitherResponse | None:
        """Return the response for a request; None if the client has no limit."""
        agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
        if scope["method"] != "POST" or _WITHOUT_LIMIT.match(agent):
            return None
        return cls(body, is_limited=_LIMITED in agent)

    def stream(self) -> None:
        """Make the response a stream, so that the server can send its own requests to the client."""
        self._is_stream, self._json = True, False

    def most_bytes(self) -> int | None:
        """Return the limit in bytes for the next result; None if there is no limit."""
        self._json = self._json or not (self._sent or self._is_stream)
        return None if self._json else _EVENT_BYTES

    def over(self, send: Send) -> Send:
        """Return a `send` that converts the response's messages to JSON, or passes events on."""
        return lambda message: self._take(message, send)

    async def _take(self, message: Message, send: Send) -> None:
        if message["type"] == "http.response.start" and _is_stream(message):
            self._held.append(message)
        elif not self._held and not self._sent:
            await send(message)  # the response is JSON already
        else:
            await self._take_events(message, send)

    async def _take_events(self, message: Message, send: Send) -> None:
        events = message.get("body", b"")
        response = b"" if self._is_stream or (self._sent and not self._json) else _response(events)
        if not self._sent:
            if not response and _is_empty(events) and message.get("more_body"):
                self._held.append(message)  # this event has the id with which a client resumes the stream
                return
            self._json = self._json or bool(response)
            self._sent = True
            start, *held = self._held
            await send(_as_json(start) if self._json else start)
            for event in () if self._json else held:
                await send(event)
        if self._json and events:
            message = {**message, "body": response or b" "}  # a blank keeps the connection alive, and may precede JSON
        elif events:
            message = {**message, "body": _unescaped(events)}
        await send(message)


def _is_stream(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"])


def _as_json(start: Message) -> Message:
    return {**start, "headers": [*(dict(start["headers"]) | {b"content-type": b"application/json"}).items()]}


def _response(events: bytes) -> bytes:
    return next((data for data in _data(events) if data and not data.startswith(_NOTIFICATION)), b"")


def _unescaped(events: bytes) -> bytes:
    r"""Return `events` with JSON in UTF-8: the SDK writes six bytes (`\u4f60`) for characters of two or three bytes."""
    if b"\\u" not in events:
        return events
    return b"".join(map(_unescaped_line, events.splitlines(keepends=True)))


def _unescaped_line(line: bytes) -> bytes:
    if not line.startswith(_DATA) or b"\\u" not in line:
        return line
    data = line[len(_DATA) :].rstrip(b"\r\n")
    try:
        return _DATA + json_text(read_json(data)).encode() + line[len(_DATA) + len(data) :]
    except ValueError:  # a lone surrogate
        return line


def _is_empty(events: bytes) -> bool:
    """Return whether all events in `events` are without data."""
    data = _data(events)
    return bool(data) and not any(data)


def _data(events: bytes) -> list[bytes]:
    return [line[len(_DATA) :] for line in events.splitlines() if line.startswith(_DATA)]
