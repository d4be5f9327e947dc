"""Sessions of HTTP clients, and the events that a client receives after its connection broke.

A client with a session requests the events after the last event it has seen: `Events` keeps the newest events of all
sessions. A client without a session (allowed since 2026-07-28) repeats its request: `LostCalls` connects it to the
running call, or sends the kept answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
from mcp.server.streamable_http import (
    GET_STREAM_KEY,
    EventCallback,
    EventMessage,
    EventStore,
    StreamableHTTPServerTransport,
)
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptmill.core.bounds import MOST_SHARED

IDLE_S = 1800.0
_EACH = 1024  # bytes that count for an event in addition to its JSON
# How long a call continues after its connection closed. If the client has cancelled the call, work may go on for 1 s.
_RUNS_ON_S = 0.7
_KEPT_S = 60.0
_LOOKS_S = 1.0  # seconds between two checks whether a session has ended
_UNIQUE = 16  # min characters of an id that counts as unique: two clients do not choose the same id by chance
_IDENTIFYING = (b"authorization", b"accept", b"mcp-protocol-version", b"user-agent")


class Sessions(StreamableHTTPSessionManager):
    """The SDK's sessions, except that at the limit, a new session replaces the session with the longest idle time.

    The SDK refuses new sessions at its limit, so a client that opens many would lock out others. Each session keeps its
    last events, so that a client whose connection broke receives the events it missed.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._events = Events()
        super().__init__(*arguments, **options)

    @property
    def event_store(self) -> EventStore | None:
        """A new store, for one new session. The SDK reads this attribute once per session."""
        return SessionEvents(self._events)

    @event_store.setter
    def event_store(self, _: EventStore | None) -> None:
        """Ignore the store that the SDK sets."""

    def _admit_session(self, requestor: Any) -> StreamableHTTPServerTransport | None:
        if self.max_sessions is not None and len(self._server_instances) >= self.max_sessions:
            self._end_the_idlest()
        transport = super()._admit_session(requestor)
        if transport is not None:
            events = transport._event_store
            assert isinstance(events, SessionEvents)
            self._events.forget_ended()
            events.follow(lambda: transport.is_terminated)
        return transport

    def _end_the_idlest(self) -> None:
        idle = [
            (transport.idle_scope.deadline, session_id)
            for session_id, transport in self._server_instances.items()
            if not transport._requests_in_flight and transport.idle_scope is not None
        ]
        if idle:
            _, session_id = min(idle)
            transport = self._server_instances.pop(session_id)
            assert transport.idle_scope is not None
            transport.idle_scope.cancel()  # ends its message loop, and with it the session


class _Event(NamedTuple):
    stream: str
    message: JSONRPCMessage | None
    """The message, without the result of a response."""
    result: bytes
    """The result of a response as JSON, which takes a third of the memory of objects; empty if JSON cannot hold it."""
    size: int

    @classmethod
    def of(cls, stream: str, message: JSONRPCMessage | None) -> _Event:
        if not isinstance(message, JSONRPCResponse):
            return cls(stream, message, b"", _EACH + (len(repr(message)) if isinstance(message, JSONRPCError) else 0))
        try:
            result = bytes(memoryview(orjson.dumps(message.result)))  # copied: orjson leaves half of its buffer unused
        except TypeError:  # a lone surrogate, or a number of more than 64 bits
            return cls(stream, message, b"", _EACH + len(repr(message.result)))
        return cls(stream, message.model_copy(update={"result": {}}), result, _EACH + len(result))

    def whole(self) -> JSONRPCMessage | None:
        """Return the message as it was stored."""
        if not self.result or self.message is None:
            return self.message
        return self.message.model_copy(update={"result": orjson.loads(self.result)})


class Events:
    """The events of all sessions by id, at most `most_bytes`. The oldest events are dropped."""

    def __init__(self, most_bytes: int = MOST_SHARED) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._events: OrderedDict[str, _Event] = OrderedDict()
        self.sessions: dict[str, Callable[[], bool]] = {}
        """By session id, with which its events' ids begin: a function that returns whether the session has ended."""

    def add(self, event_id: str, stream: str, message: JSONRPCMessage | None) -> None:
        """Add an event as the newest."""
        event = _Event.of(stream, message)
        self._events[event_id] = event
        self._bytes += event.size
        while self._bytes > self._most_bytes and len(self._events) > 1:
            _, oldest = self._events.popitem(last=False)
            self._bytes -= oldest.size

    def forget_ended(self) -> None:
        """Drop the events of sessions that have ended. If a session has ended, this takes 0.3 µs per stored event."""
        if ended := {session for session, is_over in self.sessions.items() if is_over()}:
            for event_id in [each for each in self._events if each.partition("-")[0] in ended]:
                self._bytes -= self._events.pop(event_id).size
            for session in ended:
                del self.sessions[session]

    def after(self, event_id: str) -> tuple[str, list[tuple[str, JSONRPCMessage]]] | None:
        """Return an event's stream and the stream's later events; None for an unknown or dropped event."""
        event = self._events.get(event_id)
        if event is None:
            return None
        younger = itertools.dropwhile(lambda item: item[0] != event_id, self._events.items())
        next(younger)
        messages = [(name, later.whole()) for name, later in younger if later.stream == event.stream]
        return event.stream, [(name, message) for name, message in messages if message is not None]

    def is_answer(self, event_id: str) -> bool:
        """Return whether an event is the final response of its stream."""
        event = self._events.get(event_id)
        return event is not None and isinstance(event.message, JSONRPCResponse | JSONRPCError)


class SessionEvents(EventStore):
    """One session's view of `Events`. The session's event ids give access only to its own events."""

    def __init__(self, events: Events) -> None:
        self.is_over: Callable[[], bool] = lambda: False  # returns whether the session has ended
        self._events = events
        self._session = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._added = asyncio.Event()

    def follow(self, is_over: Callable[[], bool]) -> None:
        """Record the function that returns whether the session has ended."""
        self.is_over = self._events.sessions[self._session] = is_over

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep an event in a stream of the session. Return its id."""
        event_id = f"{self._session}-{next(self._numbers)}"
        self._events.add(event_id, f"{self._session}:{stream_id}", message)
        self._added.set()
        self._added = asyncio.Event()
        return event_id

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send the later events in the event's stream. Return the stream; None if nothing more will be sent.

        This function follows the stream of a request until its response. The SDK listens for new events only after this
        function has returned, so the SDK would miss a response stored just before.
        """
        if not last_event_id.startswith(f"{self._session}-"):
            return None
        last = last_event_id
        while not self._events.is_answer(last) and not self.is_over():
            added = self._added
            if (later := self._events.after(last)) is None:
                return None
            stream, events = later
            for event_id, message in events:
                await send_callback(EventMessage(message, event_id))
                last = event_id
            if stream == f"{self._session}:{GET_STREAM_KEY}":
                return GET_STREAM_KEY
            if not events:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(added.wait(), _LOOKS_S)
        return None


class LostCalls:
    """Answers requests with `app`. If a connection breaks, its client can repeat the request and gets the same answer.

    A call continues for `runs_on_s` seconds without a client, and a finished answer is kept for `_KEPT_S`. A request
    joins a call with a connected client only if the request's id is unique: clients count ids from 0, and two clients
    that send the same request at the same time may want two answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        runs_on_s: float = _RUNS_ON_S,
        most_bytes: int = MOST_SHARED,
    ) -> None:
        self._app = app
        self._runs_on_s, self._most_bytes = runs_on_s, most_bytes
        self._calls: OrderedDict[bytes, _Call] = OrderedDict()

    async def answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Answer one request. `body`: the request's body. `receive` reports that the client has disconnected."""
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
        """Stop a call whose client did not return in time; if the call has finished, keep its answer."""
        if not call.task.done():
            call.abandon()
            self._forget(key, call)
        elif self._calls.get(key) is call:
            self._calls.move_to_end(key)
            asyncio.get_running_loop().call_later(_KEPT_S, self._forget, key, call)
            while sum(kept.size for kept in self._calls.values() if kept.task.done()) > self._most_bytes:
                oldest = next(name for name, kept in self._calls.items() if kept.task.done())
                del self._calls[oldest]

    def _forget(self, key: bytes, call: _Call) -> None:
        if self._calls.get(key) is call and not call.listeners:
            del self._calls[key]


class _Call:
    """One run of the app, with all messages it has sent."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self.listeners = 0
        self.size = 0
        self._sent: list[Message] = []
        self._news = asyncio.Event()
        self._left = asyncio.Event()
        self._body: bytes | None = body
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))
        self.task.add_done_callback(self._ended)

    async def listen(self, receive: Receive, send: Send) -> bool:
        """Send the app's messages, earlier ones first. Return whether the client has received all of them."""
        self.listeners += 1
        left = asyncio.ensure_future(_disconnected(receive))
        passed = 0
        try:
            while True:
                while passed < len(self._sent) and not left.done():
                    await send(self._sent[passed])
                    passed += 1
                if left.done() and not (self.task.done() and passed == len(self._sent)):
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
        """Report to the app that its client has disconnected."""
        self._left.set()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._sent.append(message)
        self.size += len(message.get("body", b""))
        self._tell()

    def _ended(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled():
            task.exception()  # retrieve it, so that asyncio does not log it; `answer` raises it
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
        if name in _IDENTIFYING:
            digest.update(b"\0%b\0%b" % (name, value))
    return digest.digest()


def _has_unique_id(body: bytes) -> bool:
    with contextlib.suppress(ValueError):
        message = orjson.loads(body)
        return isinstance(message, dict) and isinstance(name := message.get("id"), str) and len(name) >= _UNIQUE
    return False


def is_lone_call(scope: Scope) -> bool:
    """Return whether a request is a tool call outside of any session."""
    headers = dict(scope["headers"])
    named = headers.get(b"mcp-method") == b"tools/call"
    return named and scope["method"] == "POST" and b"mcp-session-id" not in headers
