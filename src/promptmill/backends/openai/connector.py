"""aiohttp's connector, with what its connections lack for requests that are answered much later than they are sent."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

_MOST_INTERIM = 32


class Connection(ResponseHandler):
    """A connection that knows its past, and reads over interim responses (1xx).

    aiohttp stops the clock of silence at an interim response, and would read such responses for ever.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """`loop` is the running one."""
        super().__init__(loop)
        self.lent = False
        """Whether it was lent to a request before."""
        self.answered = False
        """Whether a request on it was answered."""

    async def read(self) -> tuple[RawResponseMessage, StreamReader]:
        """Return the head of the next final response, and its body. Raises what aiohttp and the system raise."""
        interim = 0
        while 100 <= (found := await super().read())[0].code < 200 and found[0].code != 101:
            interim += 1
            if interim > _MOST_INTERIM:  # each one is a sign of life, so no silence would ever end this
                raise aiohttp.ClientPayloadError("interim responses without end")
            self.start_timeout()
        return found


class Connector(aiohttp.TCPConnector):
    """Drops pooled connections that received unsolicited data.

    It would be taken for the answer to the next request, and each answer from then on for that of the one after.
    """

    def __init__(self, **options: Any) -> None:
        """`options` are `aiohttp.TCPConnector`'s; must be made on the event loop."""
        super().__init__(**options)
        self._factory = cast("functools.partial[ResponseHandler]", functools.partial(Connection, self._loop))

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        """Return a connection for `req`, kept or new. Raises what aiohttp and the system raise."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if not isinstance(protocol, Connection):  # an aiohttp that makes them in another way
                return connection
            if not (protocol.lent and protocol.should_close):
                protocol.lent = True
                return connection
            connection.close()
