"""The sessions of clients over HTTP: how many, for how long, and which one goes when there are too many."""

from __future__ import annotations

from typing import Any

from mcp.server.streamable_http import EventStore, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from promptmill.http.event_store import Events, SessionEvents

IDLE_S = 1800.0
# A client that ended without saying so leaves its session behind: some 40 KiB, for half an hour.
MOST_SESSIONS = 2000


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
