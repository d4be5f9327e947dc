"""Calls whose connection broke: a client that sends the same request again rejoins the call that is still running."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A client ends a call by closing its connection, too, and then the work has to stop within a second.
_RUNS_ON_S = 0.7
_KEPT_S = 60.0
_MOST_BYTES = 64 << 20
_UNIQUE = 16  # characters of a request's id that nobody else has by chance
_ASKED_BY = (b"authorization", b"accept", b"mcp-protocol-version", b"user-agent")


class LostCalls:
    """Answers requests by `app`; who lost the connection sends the same request again and gets the same answer.

    The call goes on for `runs_on_s` seconds without anybody, and what it has answered is kept for `kept_s`. A request
    joins one that somebody still listens to only if its id is unique: clients count from 0, and two of them that ask
    the same at the same time may want two answers.
    """

    def __init__(
        self, app: ASGIApp, *, runs_on_s: float = _RUNS_ON_S, kept_s: float = _KEPT_S, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._app = app
        self._runs_on_s, self._kept_s, self._most_bytes = runs_on_s, kept_s, most_bytes
        self._calls: OrderedDict[bytes, _Call] = OrderedDict()

    async def answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Answer one request; `body` is its body, `receive` says when its client has left."""
        key = _key(scope, body)
        call = self._calls.get(key)
        if call is None or (call.listeners and not _has_unique_id(body)):
            call = _Call(self._app, scope, body)
            self._calls.setdefault(key, call)
        try:
            delivered = await call.listen(receive, send)
            if not delivered and not call.listeners:
                await asyncio.wait({call.task}, timeout=self._runs_on_s)
        except asyncio.CancelledError:
            if not call.listeners:
                call.abandon()
            raise
        if delivered:
            self._forget(key, call)
        elif not call.listeners:
            self._leave(key, call)
        if call.task.done():
            call.task.result()

    def _leave(self, key: bytes, call: _Call) -> None:
        """Nobody came back in time: stop the call, or keep what it has answered."""
        if not call.task.done():
            call.abandon()
            self._forget(key, call)
        elif self._calls.get(key) is call:
            self._calls.move_to_end(key)
            asyncio.get_running_loop().call_later(self._kept_s, self._forget, key, call)
            while sum(kept.size for kept in self._calls.values() if kept.task.done()) > self._most_bytes:
                oldest = next(name for name, kept in self._calls.items() if kept.task.done())
                del self._calls[oldest]

    def _forget(self, key: bytes, call: _Call) -> None:
        if self._calls.get(key) is call and not call.listeners:
            del self._calls[key]


class _Call:
    """One run of the app, and everything that it has sent."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self.listeners = 0
        self.size = 0
        self._said: list[Message] = []
        self._news = asyncio.Event()
        self._left = asyncio.Event()
        self._body: bytes | None = body
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))
        self.task.add_done_callback(self._ended)

    async def listen(self, receive: Receive, send: Send) -> bool:
        """Pass on what the app has sent and sends; return whether the client has all of it."""
        self.listeners += 1
        left = asyncio.ensure_future(_disconnected(receive))
        passed = 0
        try:
            while True:
                while passed < len(self._said) and not left.done():
                    await send(self._said[passed])
                    passed += 1
                if left.done() and not (self.task.done() and passed == len(self._said)):
                    return False
                if self.task.done():
                    return True
                news = asyncio.ensure_future(self._news.wait())
                await asyncio.wait({left, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
        except ConnectionError:
            return False
        finally:
            left.cancel()
            self.listeners -= 1

    def abandon(self) -> None:
        """Tell the app that its client has left."""
        self._left.set()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._said.append(message)
        self.size += len(message.get("body", b""))
        self._tell()

    def _ended(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled():
            task.exception()  # told to whoever listens
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _key(scope: Scope, body: bytes) -> bytes:
    digest = hashlib.blake2b(body)
    for name, value in sorted(scope["headers"]):
        if name in _ASKED_BY:
            digest.update(b"\0%b\0%b" % (name, value))
    return digest.digest()


def _has_unique_id(body: bytes) -> bool:
    with contextlib.suppress(ValueError):
        message = orjson.loads(body)
        return isinstance(message, dict) and isinstance(name := message.get("id"), str) and len(name) >= _UNIQUE
    return False


def is_lone_call(scope: Scope) -> bool:
    """Return whether a request is a tool call outside any session, as the protocol has them since 2026-07-28."""
    headers = dict(scope["headers"])
    named = headers.get(b"mcp-method") == b"tools/call"
    return named and scope["method"] == "POST" and b"mcp-session-id" not in headers
