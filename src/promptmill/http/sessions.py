"""The sessions of clients over HTTP: how many, for how long, and their last events for those whose connection broke."""

from __future__ import annotations

import itertools
import secrets
from collections import OrderedDict
from typing import Any, NamedTuple

from mcp.server.streamable_http import EventCallback, EventMessage, EventStore, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import JSONRPCMessage, JSONRPCResponse

IDLE_S = 1800.0
# A client that ended without saying so leaves its session behind: some 40 KiB, for half an hour.
MOST_SESSIONS = 2000
_MOST_EVENT_BYTES = 64 << 20
_EACH = 1024  # what an event takes beside its texts


class Sessions(StreamableHTTPSessionManager):
    """The SDK's sessions, but a new one never waits for old ones: the one that is idle for longest goes.

    Each keeps its last events, so that a client whose connection broke gets what it missed.

    The SDK refuses whoever comes when all places are taken, so that whoever takes them locks all others out.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._events = Events()
        super().__init__(*arguments, **options)

    @property
    def event_store(self) -> EventStore | None:
        """What the SDK gives to a new session, which it asks for once."""
        return SessionEvents(self._events)

    @event_store.setter
    def event_store(self, _: EventStore | None) -> None:
        """Take what the SDK sets by itself: nothing."""

    def _admit_session(self, requestor: Any) -> StreamableHTTPServerTransport | None:
        if self.max_sessions is not None and len(self._server_instances) >= self.max_sessions:
            self._end_the_idlest()
        return super()._admit_session(requestor)

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
            transport.idle_scope.cancel()  # ends its message loop, which then discards the session


class _Event(NamedTuple):
    stream: str
    message: JSONRPCMessage | None
    size: int


class Events:
    """Events by id, of all sessions; the oldest go when there are more than `most_bytes` of them.

    A library's store would write each as JSON and read it again; here a message is kept as it is.
    """

    def __init__(self, most_bytes: int = _MOST_EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._events: OrderedDict[str, _Event] = OrderedDict()

    def add(self, event_id: str, stream: str, message: JSONRPCMessage | None) -> None:
        """Keep an event, the newest one."""
        event = _Event(stream, message, _size(message))
        self._events[event_id] = event
        self._bytes += event.size
        while self._bytes > self._most_bytes and len(self._events) > 1:
            _, oldest = self._events.popitem(last=False)
            self._bytes -= oldest.size

    def after(self, event_id: str) -> tuple[str, list[tuple[str, JSONRPCMessage]]] | None:
        """Return an event's stream and what followed in it; None when it is not known (any more)."""
        event = self._events.get(event_id)
        if event is None:
            return None
        younger = itertools.dropwhile(lambda item: item[0] != event_id, self._events.items())
        next(younger)
        found = [(name, later.message) for name, later in younger if later.stream == event.stream]
        return event.stream, [(name, message) for name, message in found if message is not None]


class SessionEvents(EventStore):
    """One session's part of `Events`: nobody else's events can be asked for with its ids, or end up in its streams."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._session = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep an event of a stream of the session; return its id."""
        event_id = f"{self._session}-{next(self._numbers)}"
        self._events.add(event_id, f"{self._session}:{stream_id}", message)
        return event_id

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send what followed the event in its stream; return the stream, None when the session has no such event."""
        found = self._events.after(last_event_id) if last_event_id.startswith(f"{self._session}-") else None
        if found is None:
            return None
        stream, events = found
        for event_id, message in events:
            await send_callback(EventMessage(message, event_id))
        return stream.removeprefix(f"{self._session}:")


def _size(message: JSONRPCMessage | None) -> int:
    """Return about what a message takes in memory: a result is large by its texts, which the structure repeats."""
    if not isinstance(message, JSONRPCResponse) or not isinstance(content := message.result.get("content"), list):
        return _EACH
    return _EACH + 2 * sum(len(block.get("text", "")) for block in content if isinstance(block, dict))
