"""aiohttp's session as a transport, for proxies, large bodies, streamed responses and pages.

This module is imported on first use, because the import takes 11 MB and 0.1 s, and most processes never need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp
from yarl import URL

from promptmill.backends.openai import failures
from promptmill.backends.openai.http_connection import (
    BODIES_IN_FLIGHT,
    SMALL_BODY,
    Headers,
    HttpResponse,
    arrival_at,
    check_body,
)
from promptmill.backends.openai.route import KEEPALIVE_S, FileBody, Route
from promptmill.core.bounds import LARGEST_BODY
from promptmill.images.fetch import FinalResponse, NotPublicError, public_socket
from promptmill.system.memory import Held

# The slowest permitted upload. The time that a body takes at this speed is added to the timeouts.
_SLOWEST_UPLOAD_BYTES_S = 50_000
# The bytes of a stream that are shown before the event loop does other work. This takes at most 7 milliseconds, because
# the shortest events have 7 bytes and take 3 microseconds each.
_MOST_PER_TURN = 16 * 1024


class StreamedResponse:
    """A response whose body is not yet read. Methods raise the errors of `Session`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.content = response.content
        self.status = response.status
        self.headers = _headers_of(response)
        self._begun = b""

    async def beginning(self, largest: int) -> bytes:
        """Return the first bytes of the body, at least `largest` if it is so long. `pieces` yields them again."""
        while len(self._begun) < largest and (piece := await self.content.readany()):
            self._begun += piece
        return self._begun

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the decompressed body in pieces."""
        if self._begun:
            yield self._begun
        async for piece in self.content.iter_any():
            yield piece

    async def read(self, largest: int) -> bytes:
        """Return the whole body. Raises `TooLargeError` if it exceeds `largest` bytes."""
        pieces: list[bytes] = []
        size = 0
        async for piece in self.pieces():
            size += len(piece)
            pieces.append(piece)
            if size > largest:
                raise failures.TooLargeError(f"more than {largest} bytes")
        return b"".join(pieces)


class _Use:
    """The connection of a request. `is_fresh`: it must be new. `is_kept`: another request was answered on it before."""

    def __init__(self, *, is_fresh: bool) -> None:
        self.is_fresh, self.is_kept = is_fresh, False


_USE: ContextVar[_Use] = ContextVar("_USE")
"""The `_Use` of the request that the present task sends."""


class _Connector(aiohttp.TCPConnector):
    """Keeps connections. If a connection has received data between requests, or was ended by the server, it is closed:
    aiohttp would take the data for the next answer, and a request that is sent after the end would be lost."""

    async def _get(self, key: Any, traces: Any) -> Any:
        use = _USE.get()
        use.is_kept = False  # reset, because aiohttp itself may repeat a GET
        while not use.is_fresh and (connection := await super()._get(key, traces)) is not None:
            protocol, transport = connection.protocol, connection.transport
            if protocol is not None and transport is not None and not protocol.should_close:
                use.is_kept = not arrival_at(transport.get_extra_info("socket"))()
            if use.is_kept:
                return connection
            connection.close()
        return None


class Session:
    """Sends requests over aiohttp's connections, which it keeps open in the same way as `RawHttpClient`.

    All methods raise `TransportError` and the system's exceptions.
    """

    def __init__(self, limit: int, connect_s: float, silence_s: float, trust: ssl.SSLContext) -> None:
        """Create it on the event loop. `limit`: the number of connections that may be open at a time."""
        self._limits_s = connect_s, silence_s
        self._session, self._public = (
            aiohttp.ClientSession(
                connector=_Connector(
                    limit=limit,
                    ttl_dns_cache=300,
                    keepalive_timeout=KEEPALIVE_S,
                    ssl=trust,
                    socket_factory=socket_factory,
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                response_class=FinalResponse,
            )
            for socket_factory in (None, public_socket)
        )

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        route: Route,
        method: str,
        body: FileBody | bytes = b"",
        *,
        url: URL | None = None,
        headers: Mapping[str, str] | None = None,
        only_public: bool = False,
        fresh: bool = False,
    ) -> AsyncIterator[StreamedResponse]:
        """Send a request to the route's URL, or to `url`, on a new connection if `fresh`. The response must be read
        within the context.

        The total time until the response starts is limited, because each interim response restarts aiohttp's timeout,
        and a server could send interim responses forever.
        """
        sent, length = _payload(body)
        session = self._public if only_public and route.proxy is None else self._session
        use = _Use(is_fresh=fresh)
        _USE.set(use)
        with _our_errors(self._limits_s, route.proxy, use):
            sending = session.request(
                method,
                url or route.url,
                data=sent,
                headers={**route.headers, **(headers or {})} | ({"Content-Length": str(length)} if length else {}),
                allow_redirects=False,
                proxy=route.proxy,
                proxy_headers=route.proxy_headers,
            )
            begins_s = sum(self._limits_s) + length / _SLOWEST_UPLOAD_BYTES_S
            async with asyncio.timeout(
                begins_s
            ):  # in Python 3.11, `wait_for` loses a cancellation that arrives together with the head
                response = await sending
            use.is_kept = False  # the answer has begun, so a later failure does not mean that the connection was stale
            async with response:
                try:
                    yield StreamedResponse(response)
                except failures.TooLargeError:
                    response.close()
                    raise

    async def post(
        self, route: Route, body: bytes, on_data: Callable[[bytes], None] | None, *, fresh: bool = False
    ) -> HttpResponse:
        """Post a body, on a new connection if `fresh`. `on_data` is called with each piece of the response's body as it
        arrives."""
        async with self.exchange(route, "POST", body, fresh=fresh) as response:
            content, held = await _read(response.content, on_data, self._limits_s[1])
            reader = _name(route.proxy) if route.url.scheme == "http" else ""  # TLS hides a request from the proxy
            return HttpResponse(response.status, response.headers, content, held, proxy=reader)

    async def get(self, route: Route, url: URL) -> HttpResponse:
        """Return the page at `url`."""
        async with self.exchange(route, "GET", url=url) as response:
            return HttpResponse(response.status, response.headers, await response.read(LARGEST_BODY))

    async def aclose(self) -> None:
        """Close all connections, even if the first close is cancelled."""
        try:
            await self._session.close()
        finally:
            await self._public.close()


def _payload(body: FileBody | bytes) -> tuple[AsyncIterator[bytes] | None, int]:
    """Return the blocks of a body, which aiohttp writes without copying the whole body, and the body's length."""
    if isinstance(body, FileBody):
        return body.blocks(), body.length
    return _whole(body) if body else None, len(body)


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _read(
    content: aiohttp.StreamReader, on_data: Callable[[bytes], None] | None, silence_s: float
) -> tuple[bytes, Held | None]:
    """Return the body and, if it is large, its `Held`, which reserves memory. `on_data` is called with each piece.

    After a `TooLargeError`, the connection is unusable.
    """
    chunks: list[bytes] = []
    size = 0
    held: Held | None = None
    while not content.at_eof():
        chunk = await content.readany()  # joins small chunks, up to 512 KiB
        if not chunk:
            continue
        size += len(chunk)
        chunks.append(chunk)
        check_body(size, len(chunks))
        if on_data is not None:
            for start in range(0, len(chunk), _MOST_PER_TURN):
                on_data(chunk[start : start + _MOST_PER_TURN])
                await asyncio.sleep(0)
        if size > SMALL_BODY:
            counted, held = held is not None, held or BODIES_IN_FLIGHT.hold()
            room = held.grow(len(chunk) if counted else size)
            if not room.done():
                try:
                    async with asyncio.timeout(silence_s):
                        await asyncio.shield(asyncio.wrap_future(room))
                except BaseException:
                    held.free()
                    raise
    return b"".join(chunks), held


def _headers_of(response: aiohttp.ClientResponse) -> Headers:
    headers: dict[bytes, bytes] = {}
    for name, value in response.raw_headers:
        headers.setdefault(name, value)
    return Headers(headers)


@contextlib.contextmanager
def _our_errors(limits_s: tuple[float, float], proxy: URL | None, use: _Use) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        began = isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)  # a head
        is_stale = use.is_kept and not began
        raise failures.StaleError if is_stale else translated(error, limits_s, _name(proxy)) from error
    except (TimeoutError, aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError) as error:
        raise translated(error, limits_s, _name(proxy)) from error


def _name(proxy: URL | None) -> str:
    return "" if proxy is None else f"{proxy.host}:{proxy.port}"


def translated(error: Exception, limits_s: tuple[float, float], proxy: str = "") -> Exception:
    """Convert an exception of aiohttp to an exception of promptmill or the system.

    `limits_s`: the timeouts for connecting and for silence. `proxy`: the host and port of the proxy that was used.
    """
    match error:
        case aiohttp.ClientHttpProxyError():
            return failures.ProxyError(f"{proxy} answered {error.status}")
        case aiohttp.ClientProxyConnectionError():
            return failures.ProxyError(f"{proxy} accepts no connection")
        case aiohttp.ClientConnectorCertificateError():
            inner: Exception = error.certificate_error
            return inner if isinstance(inner, ssl.SSLError) else ssl.SSLError(1, str(inner))
        case aiohttp.ClientConnectorSSLError():
            return error.os_error if isinstance(error.os_error, ssl.SSLError) else ssl.SSLError(1, str(error))
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch():
            return ssl.SSLError(1, str(error))
        case aiohttp.ConnectionTimeoutError():
            return failures.ConnectTimeoutError(f"within {limits_s[0]:g} s")
        case TimeoutError():
            return failures.SilenceTimeoutError(f"for {limits_s[1]:g} s")
        case aiohttp.ClientConnectorError():
            is_private = isinstance(error.os_error, NotPublicError)
            return failures.PrivateAddressError(error.host) if is_private else failures.of_connecting(error.os_error)
        case aiohttp.InvalidURL():
            return failures.InvalidURLError(str(error))
        case aiohttp.ClientPayloadError():
            return failures.CutError(str(error))
        case aiohttp.ClientConnectionError():
            return failures.TransportError(str(error))
        case _:
            return failures.InvalidResponseError(str(error))
