"""One small HTTP exchange on a connection of aiohttp's pool, bypassing its session.

The session costs 40 of the 65 µs that a bare aiohttp loop takes per request: header merging, cookies, redirects, a
task for the body, response objects. aiohttp still opens, keeps and closes the connections and parses what comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from yarl import URL

from promptmill.backends.openai.connector import Connection, Connector

# Above any answer a model gives; a body that goes on beyond it is an attack or a wrong URL.
LARGEST_BODY = 64 * 1024 * 1024
# With its head below the 64 KiB that asyncio and uvloop buffer before they ask the writer to wait.
LARGEST_SMALL_REQUEST = 48 * 1024
# What is used here below the session is no promise of aiohttp's: other versions get the session until they are tested.
KNOWN = aiohttp.__version__.startswith("3.14.")
_AT_ONCE = {"Content-Length", "Transfer-Encoding"}


class TooLarge(aiohttp.ClientPayloadError):
    """A response body beyond `LARGEST_BODY`."""


class StaleError(aiohttp.ServerDisconnectedError):
    """A kept connection ended without a byte of answer: most likely the server closed it between requests.

    RFC 9112, section 9.5, has clients expect that; a new connection tells whether it was so.
    """


class HttpResponse(NamedTuple):
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def whole(content: aiohttp.StreamReader) -> bytes:
    """Return the body. Raises `TooLarge`; the connection is then of no more use."""
    chunk = await content.readany()
    if content.at_eof():
        return chunk
    chunks, size = [chunk], len(chunk)
    while not content.at_eof():
        chunk = await content.readany()
        size += len(chunk)
        if size > LARGEST_BODY:
            raise TooLarge(f"more than {LARGEST_BODY} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


class RawHttpClient:
    """Posts to one URL, never through a proxy. The request's head is written once; only its length changes."""

    def __init__(
        self,
        connector: Connector,
        fresh: Connector,
        url: URL,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        """`connector` keeps connections, `fresh` makes a new one each time; both stay the caller's."""
        self._connector = connector
        self._fresh = fresh
        self._timeout = timeout
        # aiohttp's own request knows where to connect and which headers aiohttp would send
        self._request = aiohttp.ClientRequest("POST", url, headers=headers, loop=asyncio.get_running_loop())
        sent = [(name, value) for name, value in self._request.headers.items() if name.title() not in _AT_ONCE]
        if any(set(name + value) & {"\r", "\n", "\0"} for name, value in sent):
            raise ValueError("a header holds a line break")
        lines = [f"POST {url.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in sent)]
        self._head = "".join(f"{line}\r\n" for line in lines).encode() + b"Content-Length: "

    async def post(self, body: bytes, *, fresh: bool = False) -> HttpResponse:
        """Post up to `LARGEST_SMALL_REQUEST` bytes, on a new connection if `fresh`.

        Raises what aiohttp and the system raise, `TooLarge` and `StaleError`.
        """
        connector = self._fresh if fresh else self._connector
        try:
            connection = await connector.connect(self._request, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"no connection to {self._request.host}") from error
        try:
            protocol, transport = connection.protocol, connection.transport
            assert isinstance(protocol, Connection)
            assert transport is not None
            protocol.set_response_params(read_until_eof=True, read_timeout=self._timeout.sock_read)
            transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
            protocol.start_timeout()
            try:
                message, content = await protocol.read()
            except (aiohttp.ServerDisconnectedError, ConnectionError):
                if protocol.answered:
                    raise StaleError from None
                raise
            reply = HttpResponse(message.code, message.headers, await whole(content))
        except BaseException:
            connection.close()
            raise
        protocol.answered = True
        connection.release()
        return reply
