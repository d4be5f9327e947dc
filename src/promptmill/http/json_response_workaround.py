"""Workaround: send large results as one JSON response to clients that cannot take them as an event.

httpx2, on which the Python SDK's client of the 2.x line stands, ends an event stream at an event of 1 MiB: the call
has then been paid for, and its answers are lost. A JSON body has no such limit. It leaves no place for progress, so
only calls large enough to matter are answered that way, of clients that asked for no progress or are known to have the
limit; blanks keep the line alive. Any other result above the limit comes as its first answers and a job.
"""

from __future__ import annotations

from starlette.types import Message, Scope, Send

_LIMITED = b"httpx2"
ONE_PIECE = "promptmill.one_piece"
"""In a request's scope: its result goes as one JSON body."""
_TOKEN = b'"progressToken"'
_LARGE = 4 << 10  # some dozens of prompts
_NOTIFICATION = b'{"jsonrpc":"2.0","method":'
_DATA = b"data: "


def wants_one_piece(scope: Scope, body: bytes) -> bool:
    """Return whether the request is better answered with JSON than with an event stream."""
    agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
    return len(body) > _LARGE and (_LIMITED in agent or _TOKEN not in body)


def in_one_piece(send: Send) -> Send:
    """Return `send`, changed to answer with JSON instead of an event stream."""
    framed = False

    async def wrapped_send(message: Message) -> None:
        nonlocal framed
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            framed = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            if framed:
                message = {**message, "headers": [*(headers | {b"content-type": b"application/json"}).items()]}
        elif framed and message.get("body"):
            message = {**message, "body": _response(message["body"])}
        await send(message)

    return wrapped_send


def _response(events: bytes) -> bytes:
    """Return the response among `events`, or a blank, which may stand before any JSON."""
    for line in events.splitlines():
        if line.startswith(_DATA) and not line.startswith(_NOTIFICATION, len(_DATA)):
            return line[len(_DATA) :]
    return b" "
